//! Entries in few bytes: what an index keeps of every tar member.
//!
//! Entries are written one after the other into *blocks*, each a zstd frame of about 64 KiB when decoded, so neither
//! writing nor reading ever holds a layer's entries at once. Inside a block an entry is written as what differs from the
//! one before it: the path after the common prefix, attributes only if they changed, payload places as distances from
//! where tar would put them. Content digests do not compress and stand in a section of their own. [`EntryWriter`]
//! makes blocks, [`EntryReader`] takes one apart.
//!
//! An entry begins with a tag: the kind in the low four bits, then one bit for each thing that follows, in this order:
//!
//! ```text
//! tag            varint
//! path           varint: bytes shared with the previous path; varint: length, and bytes of the rest
//! MODE           varint                      only if it is not that of the previous entry of this kind
//! OWNER          varint uid, varint gid      only if not those of the previous entry
//! SECONDS        signed varint               only if not 0: difference from the previous entry
//! NANOS          varint                      only if not 0
//! XATTRS         varint count, then names and values as byte strings
//! regular        varint size; WHOLE: signed varint, the place of its one segment, as a difference from the expected place;
//!                else varint count and for each: varint gap in the file, signed varint place, varint length
//!                CONTENT: the next digest of the digest section
//! links          target as a byte string
//! devices        varint major, varint minor
//! ```

use super::varint::{put, put_bytes, put_signed, take, take_bytes, take_signed, take_slice};
use crate::limits::INDEX_ENTRY_BYTES;
use crate::tar::{Entry, Kind, Segment, Timestamp, Xattr};

/// Length at which a block is closed, in bytes before compression.
const BLOCK_BYTES: usize = 64 << 10;

/// Blocks are written once and decoded at every merge; this level is measured to be the last that costs little.
const LEVEL: i32 = 12;

/// Longest block before compression: the last entry may be the longest one.
pub(super) const MAX_BLOCK_BYTES: usize = BLOCK_BYTES + INDEX_ENTRY_BYTES;

const KIND: u64 = 0b1111;
const MODE: u64 = 1 << 4;
const OWNER: u64 = 1 << 5;
const SECONDS: u64 = 1 << 6;
const NANOS: u64 = 1 << 7;
const XATTRS: u64 = 1 << 8;
const WHOLE: u64 = 1 << 9;
const CONTENT: u64 = 1 << 10;
const FLAGS: u64 = (1 << 11) - 1;

/// A closed block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    /// Its length in the entry section.
    pub(super) compressed: u32,
    /// Its length when decoded.
    pub(super) decoded: u32,
    /// Entries in it.
    pub(super) entries: u32,
    /// Content digests of its entries.
    pub(super) digests: u32,
}

/// What an entry is written relative to; both sides keep it in step.
#[derive(Debug)]
struct Previous {
    path: Vec<u8>,
    /// The last mode of each kind.
    modes: [u16; 16],
    uid: u32,
    gid: u32,
    seconds: i64,
    /// Where the next payload is expected in the layer.
    place: u64,
}

impl Previous {
    fn new() -> Self {
        Self { path: Vec::new(), modes: [0; 16], uid: 0, gid: 0, seconds: 0, place: 0 }
    }

    /// Moves the expected place behind a payload that ends at `end`: tar pads it to 512 bytes and the next member's
    /// header takes 512 more.
    fn passed(&mut self, end: u64) {
        self.place = end.saturating_add(511) / 512 * 512 + 512;
    }
}

/// Writes entries as they come.
#[derive(Debug)]
pub(super) struct EntryWriter {
    blocks: Vec<Block>,
    sealed: Vec<u8>,
    digests: Vec<u8>,
    open: Vec<u8>,
    entries: u32,
    first_digest: usize,
    count: u64,
    previous: Previous,
}

/// The sections that an [`EntryWriter`] wrote.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) blocks: Vec<Block>,
    pub(super) entries: Vec<u8>,
    pub(super) digests: Vec<u8>,
    pub(super) count: u64,
}

impl EntryWriter {
    pub(super) fn new() -> Self {
        Self {
            blocks: Vec::new(),
            sealed: Vec::new(),
            digests: Vec::new(),
            open: Vec::new(),
            entries: 0,
            first_digest: 0,
            count: 0,
            previous: Previous::new(),
        }
    }

    /// Entries written so far.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// About how many bytes of index the entries written so far take.
    pub(super) fn estimate(&self) -> u64 {
        // An open block shrinks to about a third.
        (self.sealed.len() + self.digests.len() + self.open.len() / 3) as u64
    }

    /// Writes an entry; false if it is too long to be kept.
    pub(super) fn push(&mut self, entry: &Entry) -> bool {
        let start = self.open.len();
        put_entry(&mut self.open, &mut self.digests, &mut self.previous, entry);
        if self.open.len() - start > INDEX_ENTRY_BYTES {
            return false;
        }
        self.entries += 1;
        self.count += 1;
        if self.open.len() >= BLOCK_BYTES {
            self.close();
        }
        true
    }

    fn close(&mut self) {
        let frame = zstd::bulk::compress(&self.open, LEVEL).expect("compressing to memory cannot fail");
        self.blocks.push(Block {
            compressed: frame.len() as u32,
            decoded: self.open.len() as u32,
            entries: self.entries,
            digests: ((self.digests.len() - self.first_digest) / 32) as u32,
        });
        self.sealed.extend_from_slice(&frame);
        self.open.clear();
        self.entries = 0;
        self.first_digest = self.digests.len();
        self.previous = Previous::new();
    }

    /// The sections.
    pub(super) fn finish(mut self) -> Written {
        if self.entries != 0 {
            self.close();
        }
        Written { blocks: self.blocks, entries: self.sealed, digests: self.digests, count: self.count }
    }
}

fn kind_number(kind: &Kind) -> u64 {
    match kind {
        Kind::Directory => 0,
        Kind::Regular { .. } => 1,
        Kind::Symlink { .. } => 2,
        Kind::HardLink { .. } => 3,
        Kind::CharDevice { .. } => 4,
        Kind::BlockDevice { .. } => 5,
        Kind::Fifo => 6,
        Kind::Whiteout => 7,
        Kind::Opaque => 8,
    }
}

fn tag(entry: &Entry, previous: &Previous) -> u64 {
    let kind = kind_number(&entry.kind);
    let mut tag = kind;
    let mut flag = |condition: bool, bit: u64| tag |= if condition { bit } else { 0 };
    flag(entry.mode != previous.modes[kind as usize], MODE);
    flag((entry.uid, entry.gid) != (previous.uid, previous.gid), OWNER);
    flag(entry.mtime.seconds != previous.seconds, SECONDS);
    flag(entry.mtime.nanos != 0, NANOS);
    flag(!entry.xattrs.is_empty(), XATTRS);
    if let Kind::Regular { size, segments, content } = &entry.kind {
        let whole = matches!(&segments[..], [one] if one.file_offset == 0 && one.length == *size);
        flag(whole, WHOLE);
        flag(content.is_some(), CONTENT);
    }
    tag
}

fn put_entry(out: &mut Vec<u8>, digests: &mut Vec<u8>, previous: &mut Previous, entry: &Entry) {
    let tag = tag(entry, previous);
    put(out, tag);
    let shared = entry.path.iter().zip(&previous.path).take_while(|(a, b)| a == b).count();
    put(out, shared as u64);
    put_bytes(out, &entry.path[shared..]);
    previous.path.clone_from(&entry.path);
    if tag & MODE != 0 {
        put(out, u64::from(entry.mode));
        previous.modes[(tag & KIND) as usize] = entry.mode;
    }
    if tag & OWNER != 0 {
        put(out, u64::from(entry.uid));
        put(out, u64::from(entry.gid));
        (previous.uid, previous.gid) = (entry.uid, entry.gid);
    }
    if tag & SECONDS != 0 {
        put_signed(out, entry.mtime.seconds.wrapping_sub(previous.seconds));
        previous.seconds = entry.mtime.seconds;
    }
    if tag & NANOS != 0 {
        put(out, u64::from(entry.mtime.nanos));
    }
    if tag & XATTRS != 0 {
        put(out, entry.xattrs.len() as u64);
        for xattr in &entry.xattrs {
            put_bytes(out, &xattr.name);
            put_bytes(out, &xattr.value);
        }
    }
    match &entry.kind {
        Kind::Regular { size, segments, content } => {
            put(out, *size);
            put_segments(out, previous, tag & WHOLE != 0, segments);
            digests.extend_from_slice(content.as_ref().map_or(&[], |content| &content[..]));
        }
        Kind::Symlink { target } | Kind::HardLink { target } => put_bytes(out, target),
        Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
            put(out, u64::from(*major));
            put(out, u64::from(*minor));
        }
        Kind::Directory | Kind::Fifo | Kind::Whiteout | Kind::Opaque => {}
    }
    // The header of this member itself, unless a payload moves the place anyway.
    if !matches!(&entry.kind, Kind::Regular { segments, .. } if !segments.is_empty()) {
        previous.place = previous.place.saturating_add(512);
    }
}

fn put_segments(out: &mut Vec<u8>, previous: &mut Previous, whole: bool, segments: &[Segment]) {
    if !whole {
        put(out, segments.len() as u64);
    }
    let (mut file_end, mut place) = (0, previous.place);
    for segment in segments {
        if !whole {
            put(out, segment.file_offset - file_end);
        }
        put_signed(out, segment.layer_offset.wrapping_sub(place) as i64);
        if !whole {
            put(out, segment.length);
        }
        file_end = segment.file_offset + segment.length;
        place = segment.layer_offset + segment.length;
    }
    if !segments.is_empty() {
        previous.passed(place);
    }
}

/// Reads the entries of one decoded block.
#[derive(Debug)]
pub(super) struct EntryReader<'a> {
    rest: &'a [u8],
    digests: &'a [u8],
    previous: Previous,
    /// Length of the layer's uncompressed stream, in which payloads must lie.
    layer_length: u64,
}

impl<'a> EntryReader<'a> {
    /// A reader of `block`, whose digests are `digests`.
    pub(super) fn new(block: &'a [u8], digests: &'a [u8], layer_length: u64) -> Self {
        Self { rest: block, digests, previous: Previous::new(), layer_length }
    }

    /// The state between two entries, to go on with [`Self::resume`].
    pub(super) fn suspend(self) -> Suspended {
        Suspended { rest: self.rest.len(), digests: self.digests.len(), previous: self.previous }
    }

    /// Goes on in the same `block` and `digests`.
    pub(super) fn resume(at: Suspended, block: &'a [u8], digests: &'a [u8], layer_length: u64) -> Option<Self> {
        let rest = block.get(block.len().checked_sub(at.rest)?..)?;
        let digests = digests.get(digests.len().checked_sub(at.digests)?..)?;
        Some(Self { rest, digests, previous: at.previous, layer_length })
    }

    /// True if everything was read.
    pub(super) fn is_done(&self) -> bool {
        self.rest.is_empty() && self.digests.is_empty()
    }

    /// Reads the next entry; none if the bytes are not those of a valid one.
    pub(super) fn next(&mut self) -> Option<Entry> {
        let tag = take(&mut self.rest).filter(|tag| *tag <= FLAGS)?;
        let path = self.path()?;
        let kind = (tag & KIND) as usize;
        if tag & MODE != 0 {
            self.previous.modes[kind] = u16::try_from(take(&mut self.rest)?).ok().filter(|mode| *mode <= 0o7777)?;
        }
        if tag & OWNER != 0 {
            self.previous.uid = self.number()?;
            self.previous.gid = self.number()?;
        }
        if tag & SECONDS != 0 {
            let seconds = self.previous.seconds.wrapping_add(take_signed(&mut self.rest)?);
            self.previous.seconds = Some(seconds).filter(|seconds| *seconds >= 0)?;
        }
        let nanos = if tag & NANOS != 0 { self.number().filter(|nanos| *nanos < 1_000_000_000)? } else { 0 };
        let xattrs = if tag & XATTRS != 0 { self.xattrs()? } else { Vec::new() };
        let kind = self.kind(tag)?;
        if !matches!(&kind, Kind::Regular { segments, .. } if !segments.is_empty()) {
            self.previous.place = self.previous.place.saturating_add(512);
        }
        Some(Entry {
            path,
            mode: self.previous.modes[(tag & KIND) as usize],
            kind,
            uid: self.previous.uid,
            gid: self.previous.gid,
            mtime: Timestamp { seconds: self.previous.seconds, nanos },
            xattrs,
        })
    }

    fn number(&mut self) -> Option<u32> {
        take(&mut self.rest)?.try_into().ok()
    }

    fn path(&mut self) -> Option<Vec<u8>> {
        let shared = usize::try_from(take(&mut self.rest)?).ok()?;
        let suffix = take_bytes(&mut self.rest)?;
        let mut path = self.previous.path.get(..shared)?.to_vec();
        path.extend_from_slice(suffix);
        self.previous.path.clone_from(&path);
        is_clean(&path).then_some(path)
    }

    fn xattrs(&mut self) -> Option<Vec<Xattr>> {
        let mut xattrs: Vec<Xattr> = Vec::new();
        for _ in 0..take(&mut self.rest)? {
            let name = take_bytes(&mut self.rest)?.to_vec();
            let value = take_bytes(&mut self.rest)?.to_vec();
            let sorted = xattrs.last().is_none_or(|last| last.name < name);
            if name.contains(&0) || name.is_empty() || !sorted {
                return None;
            }
            xattrs.push(Xattr { name, value });
        }
        Some(xattrs)
    }

    fn kind(&mut self, tag: u64) -> Option<Kind> {
        let kind = tag & KIND;
        if kind != 1 && tag & (WHOLE | CONTENT) != 0 {
            return None;
        }
        Some(match kind {
            0 => Kind::Directory,
            1 => {
                let size = take(&mut self.rest).filter(|size| *size <= i64::MAX as u64)?;
                let segments = self.segments(tag & WHOLE != 0, size)?;
                let content = if tag & CONTENT != 0 {
                    Some(*take_slice(&mut self.digests, 32)?.first_chunk::<32>()?)
                } else {
                    None
                };
                Kind::Regular { size, segments, content }
            }
            2 => Kind::Symlink { target: self.target().filter(|target| !target.is_empty())? },
            3 => Kind::HardLink { target: self.target().filter(|target| is_clean(target))? },
            4 => Kind::CharDevice { major: self.number()?, minor: self.number()? },
            5 => Kind::BlockDevice { major: self.number()?, minor: self.number()? },
            6 => Kind::Fifo,
            7 => Kind::Whiteout,
            8 => Kind::Opaque,
            _ => return None,
        })
    }

    fn target(&mut self) -> Option<Vec<u8>> {
        take_bytes(&mut self.rest).filter(|target| !target.contains(&0)).map(<[u8]>::to_vec)
    }

    fn segments(&mut self, whole: bool, size: u64) -> Option<Vec<Segment>> {
        let count = if whole { 1 } else { take(&mut self.rest)? };
        let (mut file_end, mut place, mut segments) = (0_u64, self.previous.place, Vec::new());
        for _ in 0..count {
            let gap = if whole { 0 } else { take(&mut self.rest)? };
            let layer_offset = place.wrapping_add(take_signed(&mut self.rest)? as u64);
            let length = if whole { size } else { take(&mut self.rest)? };
            let file_offset = file_end.checked_add(gap)?;
            file_end = file_offset.checked_add(length).filter(|end| *end <= size)?;
            place = layer_offset.checked_add(length).filter(|end| *end <= self.layer_length)?;
            if length == 0 {
                return None;
            }
            segments.push(Segment { file_offset, layer_offset, length });
        }
        if count != 0 {
            self.previous.passed(place);
        }
        Some(segments)
    }
}

/// Where an [`EntryReader`] stopped.
#[derive(Debug)]
pub(super) struct Suspended {
    rest: usize,
    digests: usize,
    previous: Previous,
}

/// True for what [`Entry::path`] may be.
pub(super) fn is_clean(path: &[u8]) -> bool {
    path.is_empty()
        || path.split(|byte| *byte == b'/').all(|part| !matches!(part, b"" | b"." | b"..") && !part.contains(&0))
}
