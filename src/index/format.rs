//! The encoded form of a layer index: one buffer that is stored, mapped and read in place.
//!
//! ```text
//! ┌─ header, 488 bytes ───────────────────────────────────────────────────────────────────────────┐
//! │ magic "ocifsidx" · version · compression · digest algorithms · form                           │
//! │ layer digest · diffID · compressed size · uncompressed size · end of payload · entry count    │
//! │ for each section: its length and its BLAKE3 digest (zeros for the windows)                    │
//! │ BLAKE3 of all the above                                                                       │
//! ├─ spans ──── 52 bytes each: bit offset in the blob, offset in the stream, window, BLAKE3; ─────┤
//! │             of a claim 66 bytes each (`spans`)                                                │
//! ├─ groups ─── 40 bytes each: end in the window section, BLAKE3 of the group ────────────────────┤
//! ├─ blocks ─── 16 bytes each: encoded length, decoded length, entries, digests ──────────────────┤
//! ├─ entries ── zstd frames, one for each block (`entries`) ──────────────────────────────────────┤
//! ├─ digests ── SHA-256 of files, 32 bytes each, in entry order ──────────────────────────────────┤
//! ├─ dependencies ── one zstd frame: what files say about others (`dependencies`) ───────────────┤
//! └─ windows ── zstd frames, one for each group (`windows`) ──────────────────────────────────────┘
//! ```
//!
//! Numbers are little-endian and nothing is aligned, so records are read where they lie. Sections follow each other
//! without gaps and the buffer ends with the last, so every byte is covered by some digest. [`Parts::parse`] checks all of
//! them but those of the windows, most of the bytes, which are checked group by group when a span needs one; it
//! then checks every record, so that later reading cannot fail for any bytes. [`assemble`] makes the buffer.
//!
//! The windows come last, so that all of the buffer before them, the *metadata*, can be used without them: it is enough to
//! merge the tree and to decode every span that begins with a member or frame.

use std::ops::Range;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::entries::{self, MAX_BLOCK_BYTES};
use super::spans::{Bounds, ClaimedRecord, SpanRecord, Table};
use super::windows::{self, GROUP};
use super::{Compression, Expected, Times};
use crate::limits::{BLOB_BYTES, INDEX_BYTES, LAYER_ENTRIES};
use crate::oci::{Algorithm, Digest};

const MAGIC: [u8; 8] = *b"ocifsidx";

/// Raised whenever the form or the meaning of any part changes; an index of another version is made anew.
const VERSION: u32 = 3;

const SECTIONS: usize = 7;

/// Length of the header in bytes.
pub(super) const HEADER_BYTES: usize = size_of::<Header>();

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: U32,
    compression: u8,
    layer_algorithm: u8,
    diff_id_algorithm: u8,
    /// A [`Form`].
    form: u8,
    layer: [u8; 64],
    diff_id: [u8; 64],
    compressed_size: U64,
    uncompressed_size: U64,
    payload_end: U64,
    entries: U64,
    sections: [SectionRecord; SECTIONS],
    digest: [u8; 32],
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct SectionRecord {
    length: U64,
    digest: [u8; 32],
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct GroupRecord {
    pub(super) end: U64,
    pub(super) digest: [u8; 32],
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct BlockRecord {
    pub(super) compressed: U32,
    pub(super) decoded: U32,
    pub(super) entries: U32,
    pub(super) digests: U32,
}

const _: () = assert!(HEADER_BYTES == 488 && size_of::<GroupRecord>() == 40 && size_of::<BlockRecord>() == 16);

/// Whose spans an index has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Ours.
    Own,
    /// Those of another tool, which keeps times like this.
    Claimed(Times),
}

impl Form {
    fn number(self) -> u8 {
        match self {
            Self::Own => 0,
            Self::Claimed(Times::Exact) => 1,
            Self::Claimed(Times::Seconds) => 2,
        }
    }

    fn of(number: u8) -> Option<Self> {
        [Self::Own, Self::Claimed(Times::Exact), Self::Claimed(Times::Seconds)]
            .into_iter()
            .find(|f| f.number() == number)
    }
}

/// A checked header: what the layer is and where the sections lie.
#[derive(Debug, Clone)]
pub(super) struct Parts {
    pub(super) layer: Digest,
    pub(super) diff_id: Digest,
    pub(super) form: Form,
    pub(super) compression: Compression,
    pub(super) compressed_size: u64,
    pub(super) uncompressed_size: u64,
    /// Where the compressed bytes end that the last span needs. In a claim, where each span says it by itself, where those
    /// end that are to be fetched first; all of the blob if there are none.
    pub(super) payload_end: u64,
    pub(super) entry_count: u64,
    spans: Range<usize>,
    groups: Range<usize>,
    blocks: Range<usize>,
    entries: Range<usize>,
    digests: Range<usize>,
    dependencies: Range<usize>,
    windows: Range<usize>,
}

/// What [`assemble`] joins.
#[derive(Debug)]
pub(super) struct Content {
    pub(super) compression: Compression,
    pub(super) uncompressed_size: u64,
    pub(super) payload_end: u64,
    pub(super) spans: Spans,
    pub(super) groups: Vec<windows::Group>,
    pub(super) windows: Vec<u8>,
    pub(super) entries: entries::Written,
    /// The section that a `DependencyWriter` wrote, or nothing.
    pub(super) dependencies: Vec<u8>,
}

/// Span records of one kind.
#[derive(Debug)]
pub(super) enum Spans {
    Own(Vec<SpanRecord>),
    Claimed(Vec<ClaimedRecord>, Times),
}

impl Spans {
    fn form(&self) -> Form {
        match self {
            Self::Own(_) => Form::Own,
            Self::Claimed(_, times) => Form::Claimed(*times),
        }
    }

    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Own(records) => records.as_bytes(),
            Self::Claimed(records, _) => records.as_bytes(),
        }
    }
}

/// The layer's name for errors, and what is wrong.
pub(super) type Damage = (String, &'static str);

/// Joins the parts of an index into its encoded form.
pub(super) fn assemble(expected: &Expected, content: &Content) -> Vec<u8> {
    let groups: Vec<_> = content.groups.iter().map(|g| GroupRecord { end: g.end.into(), digest: g.digest }).collect();
    let blocks: Vec<_> = content.entries.blocks.iter().map(block_record).collect();
    let sections: [&[u8]; SECTIONS] = [
        content.spans.as_bytes(),
        groups.as_bytes(),
        blocks.as_bytes(),
        &content.entries.entries,
        &content.entries.digests,
        &content.dependencies,
        &content.windows,
    ];
    let mut records = sections.map(|section| SectionRecord {
        length: (section.len() as u64).into(),
        digest: *blake3::hash(section).as_bytes(),
    });
    records[SECTIONS - 1].digest = [0; 32];
    let mut header = Header {
        magic: MAGIC,
        version: VERSION.into(),
        compression: match content.compression {
            Compression::None => 0,
            Compression::Gzip => 1,
            Compression::Zstd => 2,
        },
        layer_algorithm: algorithm_number(&expected.layer),
        diff_id_algorithm: algorithm_number(&expected.diff_id),
        form: content.spans.form().number(),
        layer: padded(&expected.layer),
        diff_id: padded(&expected.diff_id),
        compressed_size: expected.size.into(),
        uncompressed_size: content.uncompressed_size.into(),
        payload_end: content.payload_end.into(),
        entries: content.entries.count.into(),
        sections: records,
        digest: [0; 32],
    };
    header.digest = header_digest(&header);
    let length: usize = sections.iter().map(|section| section.len()).sum();
    let mut encoded = Vec::with_capacity(HEADER_BYTES + length);
    encoded.extend_from_slice(header.as_bytes());
    for section in sections {
        encoded.extend_from_slice(section);
    }
    encoded
}

fn block_record(block: &entries::Block) -> BlockRecord {
    BlockRecord {
        compressed: block.compressed.into(),
        decoded: block.decoded.into(),
        entries: block.entries.into(),
        digests: block.digests.into(),
    }
}

fn header_digest(header: &Header) -> [u8; 32] {
    let bytes = header.as_bytes();
    *blake3::hash(&bytes[..bytes.len() - 32]).as_bytes()
}

/// Names an index by what it says: its header has a digest of every section, and of every group of windows through the
/// section that lists them. `bytes` were parsed.
pub(super) fn identity(bytes: &[u8]) -> Digest {
    Digest::sha256(&bytes[..HEADER_BYTES])
}

fn algorithm_number(digest: &Digest) -> u8 {
    match digest.algorithm() {
        Algorithm::Sha256 => 0,
        Algorithm::Sha512 => 1,
    }
}

fn padded(digest: &Digest) -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[..digest.bytes().len()].copy_from_slice(digest.bytes());
    bytes
}

fn digest_of(algorithm: u8, bytes: &[u8; 64]) -> Option<Digest> {
    match algorithm {
        0 if bytes[32..] == [0; 32] => bytes.first_chunk().map(|bytes| Digest::Sha256(*bytes)),
        1 => Some(Digest::Sha512(*bytes)),
        _ => None,
    }
}

impl Parts {
    /// Checks `bytes`, which may lack the window section, and finds the sections.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Damage> {
        let unnamed = |what| ("unknown".to_owned(), what);
        let (header, _) = Header::read_from_prefix(bytes).map_err(|_| unnamed("it is too short"))?;
        if header.magic != MAGIC {
            return Err(unnamed("it is not a layer index"));
        }
        if header.version.get() != VERSION {
            return Err(unnamed("it is of another version"));
        }
        if header.digest != header_digest(&header) {
            return Err(unnamed("its header does not have its digest"));
        }
        let digests = digest_of(header.layer_algorithm, &header.layer)
            .zip(digest_of(header.diff_id_algorithm, &header.diff_id))
            .ok_or_else(|| unnamed("its digests are of no known algorithm"))?;
        let parts = Self::locate(bytes, &header, digests).map_err(|what| (digests.0.to_string(), what))?;
        parts.check(bytes).map_err(|what| (digests.0.to_string(), what))?;
        Ok(parts)
    }

    fn locate(bytes: &[u8], header: &Header, (layer, diff_id): (Digest, Digest)) -> Result<Self, &'static str> {
        let mut ranges: [Range<usize>; SECTIONS] = Default::default();
        let mut start = HEADER_BYTES;
        for (range, section) in ranges.iter_mut().zip(&header.sections) {
            let length = usize::try_from(section.length.get()).map_err(|_| "it is too long")?;
            let end = start.checked_add(length).filter(|end| *end as u64 <= INDEX_BYTES).ok_or("it is too long")?;
            *range = start..end;
            start = end;
        }
        let metadata = ranges[SECTIONS - 1].start;
        if bytes.len() < metadata {
            return Err("it is cut short");
        }
        if bytes.len() != metadata && bytes.len() != start {
            return Err("its windows are cut short, or something follows them");
        }
        for (range, section) in ranges.iter().zip(&header.sections).take(SECTIONS - 1) {
            if *blake3::hash(&bytes[range.clone()]).as_bytes() != section.digest {
                return Err("a section does not have its digest");
            }
        }
        if header.sections[SECTIONS - 1].digest != [0; 32] {
            return Err("the window section has a digest");
        }
        let [spans, groups, blocks, entries, digests, dependencies, windows] = ranges;
        Ok(Self {
            layer,
            diff_id,
            form: Form::of(header.form).ok_or("its form is unknown")?,
            compression: match header.compression {
                0 => Compression::None,
                1 => Compression::Gzip,
                2 => Compression::Zstd,
                _ => return Err("the compression is unknown"),
            },
            compressed_size: header.compressed_size.get(),
            uncompressed_size: header.uncompressed_size.get(),
            payload_end: header.payload_end.get(),
            entry_count: header.entries.get(),
            spans,
            groups,
            blocks,
            entries,
            digests,
            dependencies,
            windows,
        })
    }

    fn check(&self, bytes: &[u8]) -> Result<(), &'static str> {
        if self.compressed_size > BLOB_BYTES || self.payload_end > self.compressed_size {
            return Err("its sizes are impossible");
        }
        let groups = <[GroupRecord]>::ref_from_bytes(&bytes[self.groups.clone()]).map_err(|_| "half a group record")?;
        let mut end = 0;
        for group in groups {
            if group.end.get() <= end {
                return Err("the groups are not in order");
            }
            end = group.end.get();
        }
        if end != self.windows.len() as u64 {
            return Err("the groups do not make the window section");
        }
        let bounds = Bounds {
            compression: self.compression,
            compressed_size: self.compressed_size,
            uncompressed_size: self.uncompressed_size,
            groups: groups.len(),
        };
        self.try_spans(bytes)?.check(&bounds)?;
        let blocks = <[BlockRecord]>::ref_from_bytes(&bytes[self.blocks.clone()]).map_err(|_| "half a block record")?;
        self.check_blocks(blocks)
    }

    fn check_blocks(&self, blocks: &[BlockRecord]) -> Result<(), &'static str> {
        let sum =
            |field: fn(&BlockRecord) -> U32| blocks.iter().map(|block| u64::from(field(block).get())).sum::<u64>();
        if sum(|block| block.compressed) != self.entries.len() as u64
            || sum(|block| block.digests) * 32 != self.digests.len() as u64
            || sum(|block| block.entries) != self.entry_count
            || self.entry_count > LAYER_ENTRIES
        {
            return Err("the blocks do not make the entry sections");
        }
        if blocks.iter().any(|block| block.decoded.get() as usize > MAX_BLOCK_BYTES) {
            return Err("a block is too long");
        }
        Ok(())
    }

    fn try_spans<'a>(&self, bytes: &'a [u8]) -> Result<Table<'a>, &'static str> {
        let bytes = &bytes[self.spans.clone()];
        let table = match self.form {
            Form::Own => <[SpanRecord]>::ref_from_bytes(bytes).ok().map(|own| Table::Own(own, self.payload_end)),
            Form::Claimed(_) => <[ClaimedRecord]>::ref_from_bytes(bytes).ok().map(Table::Claimed),
        };
        table.ok_or("half a span record")
    }

    /// The spans, in `bytes`, which are those that were parsed.
    pub(super) fn spans<'a>(&self, bytes: &'a [u8]) -> Table<'a> {
        self.try_spans(bytes).expect("checked when opened")
    }

    /// Where the window section lies.
    pub(super) fn windows(&self) -> Range<usize> {
        self.windows.clone()
    }

    /// The blocks.
    pub(super) fn blocks<'a>(&self, bytes: &'a [u8]) -> &'a [BlockRecord] {
        <[BlockRecord]>::ref_from_bytes(&bytes[self.blocks.clone()]).expect("checked when opened")
    }

    /// The entry and digest sections.
    pub(super) fn entries<'a>(&self, bytes: &'a [u8]) -> (&'a [u8], &'a [u8]) {
        (&bytes[self.entries.clone()], &bytes[self.digests.clone()])
    }

    /// The section of dependencies.
    pub(super) fn dependencies<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        &bytes[self.dependencies.clone()]
    }

    fn groups<'a>(&self, bytes: &'a [u8]) -> &'a [GroupRecord] {
        <[GroupRecord]>::ref_from_bytes(&bytes[self.groups.clone()]).expect("checked when opened")
    }

    /// The bytes of the group that holds `window`, out of the window section, their digest, and the window's place in the
    /// group.
    pub(super) fn group<'a>(&self, bytes: &'a [u8], section: &'a [u8], window: u32) -> (&'a [u8], &'a [u8; 32], u32) {
        let number = (window / GROUP) as usize;
        let (range, digest) = bounds_of(self.groups(bytes), number);
        (&section[range], digest, window % GROUP)
    }

    /// True if every group of the window section has its digest. Reads all of it.
    pub(super) fn windows_are_sound(&self, bytes: &[u8], section: &[u8]) -> bool {
        let groups = self.groups(bytes);
        section.len() == self.windows.len()
            && (0..groups.len()).all(|number| {
                let (range, digest) = bounds_of(groups, number);
                blake3::hash(&section[range]) == *digest
            })
    }
}

fn bounds_of(groups: &[GroupRecord], number: usize) -> (Range<usize>, &[u8; 32]) {
    let start = if number == 0 { 0 } else { groups[number - 1].end.get() as usize };
    (start..groups[number].end.get() as usize, &groups[number].digest)
}

/// Gives damaged bytes the digests that they would have if somebody had made them so.
#[cfg(any(test, fuzzing))]
pub(super) fn reseal(bytes: &mut [u8]) {
    let Ok((mut header, _)) = Header::read_from_prefix(bytes) else { return };
    let mut start = HEADER_BYTES;
    for section in &mut header.sections[..SECTIONS - 1] {
        let length = usize::try_from(section.length.get()).unwrap_or(usize::MAX);
        let Some(end) = start.checked_add(length).filter(|end| *end <= bytes.len()) else { break };
        section.digest = *blake3::hash(&bytes[start..end]).as_bytes();
        start = end;
    }
    header.digest = header_digest(&header);
    bytes[..HEADER_BYTES].copy_from_slice(header.as_bytes());
}
