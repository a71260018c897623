//! Writing a zTOC: from an index of ours and the layer's bytes.
//!
//! The index has the windows, so nothing has to be looked for again: checkpoints are those of our spans that lie a SOCI span
//! apart. Ours have zeros where nothing that comes later refers to, which decodes to the same. The members are read from the
//! archive once more, because entries are normalised, and a zTOC has names as they are and the place of every member.
//!
//! Nothing in it depends on when or where it is made, so equal layers give equal zTOCs.

use std::io::{self, Write};
use std::ops::Range;

use bytes::Bytes;

use super::checkpoints::{CHECKPOINT, HEAD, HEADER};
use super::flat::{Builder, Slot, Value};
use super::{GZIP, UNCOMPRESSED, VERSION};
use crate::codec::WINDOW;
use crate::index::compare::pieces;
use crate::index::{Compression, Error, LayerIndex};
use crate::oci::{Algorithm, Hasher, Printable};
use crate::tar::{self, DescribedKind, Parser};

/// What the tool that makes a zTOC calls itself; without a version, so that a new one writes the same.
const TOOL: &[u8] = b"ocifs";

/// Bytes of the stream between checkpoints, at least: what SOCI has unless told otherwise.
pub const SPAN_SIZE: u64 = 4 << 20;

/// Longest gzip header of a member at which a checkpoint is put.
const LONGEST_HEADER: u64 = 64 << 10;

/// Why no zTOC of a layer can be written.
#[derive(Debug, thiserror::Error)]
pub enum Unwritable<E: std::error::Error + 'static> {
    /// The format knows gzip and plain layers only, and none that are empty.
    #[error("SOCI has no form for {0}")]
    Layer(&'static str),
    /// The format does not know what the archive has.
    #[error("SOCI has no form for \"{name}\", which is {what}")]
    Member {
        /// A member, escaped.
        name: String,
        /// What it is.
        what: &'static str,
    },
    /// The layer's bytes could not be had.
    #[error("the layer could not be read")]
    Input(#[source] E),
    /// The layer's bytes are not those of the index.
    #[error(transparent)]
    Index(#[from] Error),
}

/// The zTOC of the layer that `index` is of, whose bytes `read` gives and may block for.
///
/// Decodes the layer once, on the calling thread.
pub fn write<E: std::error::Error + 'static>(
    index: &LayerIndex,
    read: impl Fn(Range<u64>) -> Result<Bytes, E>,
) -> Result<Vec<u8>, Unwritable<E>> {
    if index.uncompressed_size() == 0 {
        return Err(Unwritable::Layer("empty layers"));
    }
    let (algorithm, checkpoints, ranges) = match index.compression() {
        Compression::None => (UNCOMPRESSED, plain_checkpoints(index), plain_ranges(index)),
        Compression::Gzip => {
            let chosen = choose(index, &read)?;
            (GZIP, gzip_checkpoints(index, &chosen)?, gzip_ranges(index, &chosen))
        }
        Compression::Zstd => return Err(Unwritable::Layer("zstd layers")),
    };
    let digests = ranges.into_iter().map(|range| digest(range, &read)).collect::<Result<_, _>>()?;
    let members = members(index, &read)?;
    let parts = Parts { index, algorithm, checkpoints, digests, members };
    assemble(&parts).ok_or(Unwritable::Layer("layers of so many files"))
}

/// What is joined to a zTOC.
struct Parts<'a> {
    index: &'a LayerIndex,
    algorithm: u8,
    checkpoints: Vec<u8>,
    digests: Vec<String>,
    members: Vec<Member>,
}

/// A place where decoding can start.
struct Checkpoint {
    input: u64,
    output: u64,
    bits: u8,
    /// The span of ours that begins there.
    span: crate::index::SpanId,
}

impl Checkpoint {
    fn start(&self) -> u64 {
        self.input - u64::from(self.bits != 0)
    }
}

/// The beginnings of our spans that lie far enough apart.
fn choose<E: std::error::Error + 'static>(
    index: &LayerIndex,
    read: &impl Fn(Range<u64>) -> Result<Bytes, E>,
) -> Result<Vec<Checkpoint>, Unwritable<E>> {
    let mut chosen: Vec<Checkpoint> = Vec::new();
    for id in index.span_ids() {
        let (span, output) = (index.span(id), index.decoded(id).start);
        if chosen.last().is_some_and(|last| output - last.output < SPAN_SIZE) {
            continue;
        }
        let (start, bits) = (span.compressed.start, (8 - span.bit) % 8);
        let input = match index.window(&span)? {
            Some(_) => start + u64::from(bits != 0),
            // Decoding goes on behind the header of the member.
            None => {
                let end = index.compressed_size().min(start + LONGEST_HEADER);
                let head = read(start..end).map_err(Unwritable::Input)?;
                match header_length(&head) {
                    Some(length) => start + length,
                    None if chosen.is_empty() => return Err(Unwritable::Layer("gzip headers as long as this")),
                    None => continue,
                }
            }
        };
        chosen.push(Checkpoint { input, output, bits, span: id });
    }
    Ok(chosen)
}

/// Length of the gzip header (RFC 1952) that `head` begins with; none if it does not end in it.
fn header_length(head: &[u8]) -> Option<u64> {
    let flags = *head.get(3)?;
    let mut at = 10;
    if flags & 4 != 0 {
        let length = u16::from_le_bytes(*head.get(at..)?.first_chunk()?);
        at += 2 + usize::from(length);
    }
    // A name and a comment, each up to a NUL.
    for flag in [8, 16] {
        if flags & flag != 0 {
            at += head.get(at..)?.iter().position(|byte| *byte == 0)? + 1;
        }
    }
    if flags & 2 != 0 {
        at += 2;
    }
    (at <= head.len()).then_some(at as u64)
}

/// The checkpoints in their first version where that can be, which spares 32 KiB for each layer and is read by all of
/// SOCI's releases: it leaves out the first one behind a plain header.
fn gzip_checkpoints(index: &LayerIndex, chosen: &[Checkpoint]) -> Result<Vec<u8>, Error> {
    let implied = usize::from(chosen.first().is_some_and(|first| first.input == HEADER && first.bits == 0));
    let mut bytes = Vec::with_capacity(HEAD + chosen.len() * CHECKPOINT);
    bytes.extend_from_slice(&(chosen.len() as i32).to_le_bytes());
    bytes.extend_from_slice(&(SPAN_SIZE as i64).to_le_bytes());
    for checkpoint in &chosen[implied..] {
        bytes.extend_from_slice(&checkpoint.input.to_le_bytes());
        bytes.extend_from_slice(&checkpoint.output.to_le_bytes());
        bytes.push(checkpoint.bits);
        match index.window(&index.span(checkpoint.span))? {
            Some(window) => bytes.extend_from_slice(&window[..]),
            None => bytes.extend_from_slice(&[0; WINDOW]),
        }
    }
    Ok(bytes)
}

/// The checkpoints of a plain stream are a table of their own.
fn plain_checkpoints(index: &LayerIndex) -> Vec<u8> {
    let fields = [Value::I32(2), Value::I64(SPAN_SIZE as i64), Value::I64(index.uncompressed_size() as i64)];
    let (mut builder, root) = Builder::new();
    let vtable = builder.vtable(&fields);
    builder.table(root, vtable, &fields);
    builder.finish().unwrap_or_default()
}

fn plain_ranges(index: &LayerIndex) -> Vec<Range<u64>> {
    let size = index.uncompressed_size();
    (0..size).step_by(SPAN_SIZE as usize).map(|start| start..size.min(start + SPAN_SIZE)).collect()
}

/// The bytes whose digest each span has: neighbours share the byte in which one ends and the next begins.
fn gzip_ranges(index: &LayerIndex, chosen: &[Checkpoint]) -> Vec<Range<u64>> {
    let ends = chosen.iter().skip(1).map(|next| next.input).chain([index.compressed_size()]);
    chosen.iter().zip(ends).map(|(checkpoint, end)| checkpoint.start()..end).collect()
}

fn digest<E: std::error::Error + 'static>(
    range: Range<u64>,
    read: &impl Fn(Range<u64>) -> Result<Bytes, E>,
) -> Result<String, Unwritable<E>> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    for piece in pieces(range, read) {
        hasher.update(&piece.map_err(Unwritable::Input)?);
    }
    Ok(hasher.finish().to_string())
}

/// A member as a zTOC has it.
#[derive(Debug)]
struct Member {
    name: Vec<u8>,
    kind: &'static [u8],
    offset: u64,
    size: u64,
    link: Vec<u8>,
    mode: i64,
    uid: u32,
    gid: u32,
    time: String,
    device: (i64, i64),
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Collects the members of an archive.
#[derive(Debug, Default)]
struct Collector {
    members: Vec<Member>,
    /// The first thing that there is no form for: a name, and what it is.
    strange: Option<(String, &'static str)>,
}

impl Collector {
    fn refuse(&mut self, name: &[u8], what: &'static str) {
        self.strange.get_or_insert_with(|| (Printable::of(name).to_string(), what));
    }
}

impl tar::Sink for Collector {
    const MEMBERS: bool = true;

    fn member(&mut self, member: tar::Member<'_>) {
        if member.is_sparse {
            return self.refuse(member.name, "a sparse file");
        }
        let described = &member.described;
        let (kind, size, link, device): (&[u8], _, &[u8], _) = match described.kind {
            DescribedKind::Regular { size } => (b"reg", size, b"", (0, 0)),
            DescribedKind::Directory => (b"dir", 0, b"", (0, 0)),
            DescribedKind::Symlink { target } => (b"symlink", 0, target, (0, 0)),
            DescribedKind::HardLink { target } => (b"hardlink", 0, target, (0, 0)),
            DescribedKind::CharDevice { major, minor } => (b"char", 0, b"", (major, minor)),
            DescribedKind::BlockDevice { major, minor } => (b"block", 0, b"", (major, minor)),
            DescribedKind::Fifo => (b"fifo", 0, b"", (0, 0)),
        };
        let (Ok(uid), Ok(gid)) = (u32::try_from(described.uid), u32::try_from(described.gid)) else {
            return self.refuse(member.name, "owned by nobody");
        };
        let xattrs = member.xattrs.iter().map(|(name, value)| ([b"SCHILY.xattr.", *name].concat(), value.to_vec()));
        self.members.push(Member {
            name: member.name.to_vec(),
            kind,
            offset: member.offset,
            size,
            link: link.to_vec(),
            mode: described.mode,
            uid,
            gid,
            time: time(described.mtime),
            device,
            xattrs: xattrs.collect(),
        });
    }

    fn global(&mut self) {
        self.refuse(b"", "a header for all that follow");
    }

    fn entry(&mut self, _: tar::Entry) {}

    fn data(&mut self, _: &[u8]) {}
}

/// A parser that bytes are written to.
struct Parsing {
    parser: Parser,
    collector: Collector,
}

impl Write for Parsing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.parser.push(bytes, &mut self.collector).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn members<E: std::error::Error + 'static>(
    index: &LayerIndex,
    read: &impl Fn(Range<u64>) -> Result<Bytes, E>,
) -> Result<Vec<Member>, Unwritable<E>> {
    let mut parsing = Parsing { parser: Parser::new(), collector: Collector::default() };
    for span in index.span_ids() {
        let mut failed = None;
        let compressed = pieces(index.compressed(span), read);
        let bytes = compressed.map_while(|piece| piece.map_err(|error| failed = Some(error)).ok());
        let decoded = index.decode_to(span, bytes, &mut parsing);
        if let Some(error) = failed {
            return Err(Unwritable::Input(error));
        }
        decoded?;
    }
    match parsing.collector.strange {
        Some((name, what)) => Err(Unwritable::Member { name, what }),
        None => Ok(parsing.collector.members),
    }
}

/// A time as Go's `time.RFC3339Nano` has it.
fn time((seconds, nanos): (i64, u32)) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days since 0000-03-01, in eras of 400 years: a leap day is the last of its year then.
    let day = days + 719_468;
    let (era, day) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (day - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    let year = year + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let fraction = match nanos {
        0 => String::new(),
        _ => format!(".{nanos:09}").trim_end_matches('0').to_owned(),
    };
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
}

/// Joins the parts; none if that is too long for a flatbuffer.
fn assemble(parts: &Parts<'_>) -> Option<Vec<u8>> {
    let (mut builder, root) = Builder::new();
    let index = parts.index;
    let ztoc = [
        Value::Later,
        Value::Later,
        Value::I64(index.compressed_size() as i64),
        Value::I64(index.uncompressed_size() as i64),
        Value::Later,
        Value::Later,
    ];
    let vtable = builder.vtable(&ztoc);
    let [version, tool, toc, info] = builder.table(root, vtable, &ztoc)[..] else { return None };
    builder.string(version, VERSION);
    builder.string(tool, TOOL);
    let fields = [Value::Later];
    let vtable = builder.vtable(&fields);
    let [metadata] = builder.table(toc, vtable, &fields)[..] else { return None };
    let slots = builder.vector(metadata, parts.members.len());
    let vtables = Vtables { member: builder.vtable(&member_fields(None)), xattr: builder.vtable(&[Value::Later; 2]) };
    for (slot, member) in slots.into_iter().zip(&parts.members) {
        put_member(&mut builder, slot, &vtables, member)?;
    }
    let last = i32::try_from(parts.digests.len()).ok()? - 1;
    let fields = [Value::Byte(parts.algorithm), Value::I32(last), Value::Later, Value::Later];
    let vtable = builder.vtable(&fields);
    let [digests, checkpoints] = builder.table(info, vtable, &fields)[..] else { return None };
    let slots = builder.vector(digests, parts.digests.len());
    for (slot, digest) in slots.into_iter().zip(&parts.digests) {
        builder.string(slot, digest.as_bytes());
    }
    builder.bytes(checkpoints, &parts.checkpoints);
    builder.finish()
}

/// What the tables of all members have in common.
struct Vtables {
    member: usize,
    xattr: usize,
}

/// The fields of a member from `name` to `xattrs`; only their kinds if there is none.
fn member_fields(member: Option<&Member>) -> [Value; 14] {
    let number = |field: fn(&Member) -> i64| Value::I64(member.map_or(0, field));
    let id = |field: fn(&Member) -> u32| Value::U32(member.map_or(0, field));
    [
        Value::Later,
        Value::Later,
        number(|member| member.offset as i64),
        number(|member| member.size as i64),
        Value::Later,
        number(|member| member.mode),
        id(|member| member.uid),
        id(|member| member.gid),
        // The names of owner and group, which nobody asks for.
        Value::Later,
        Value::Later,
        Value::Later,
        number(|member| member.device.0),
        number(|member| member.device.1),
        Value::Later,
    ]
}

fn put_member(builder: &mut Builder, slot: Slot, vtables: &Vtables, member: &Member) -> Option<()> {
    let slots = builder.table(slot, vtables.member, &member_fields(Some(member)));
    let [name, kind, link, user, group, time, xattrs] = slots[..] else { return None };
    for (slot, text) in [
        (name, &member.name[..]),
        (kind, member.kind),
        (link, &member.link),
        (user, b""),
        (group, b""),
        (time, member.time.as_bytes()),
    ] {
        builder.string(slot, text);
    }
    let slots = builder.vector(xattrs, member.xattrs.len());
    for (slot, (key, value)) in slots.into_iter().zip(&member.xattrs) {
        let [key_slot, value_slot] = builder.table(slot, vtables.xattr, &[Value::Later; 2])[..] else { return None };
        builder.string(key_slot, key);
        builder.string(value_slot, value);
    }
    Some(())
}
