//! A zTOC writer of the tests' own, after SOCI's: another tar reader, checkpoints found by decoding, and the flatbuffers
//! crate, which writes buffers back to front and leaves out defaults.

use flatbuffers::{FlatBufferBuilder, TableFinishedWIPOffset, UnionWIPOffset, WIPOffset};

use crate::codec::{Point, WINDOW, gzip};
use crate::oci::Digest;

type Offset = WIPOffset<TableFinishedWIPOffset>;

/// A member of the archive as Go's reader gives it.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) name: Vec<u8>,
    pub(super) kind: &'static str,
    pub(super) offset: i64,
    pub(super) size: i64,
    pub(super) link: Vec<u8>,
    pub(super) mode: i64,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) time: String,
    pub(super) device: (i64, i64),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Debug, Clone)]
pub(super) struct Checkpoint {
    pub(super) input: i64,
    pub(super) output: i64,
    pub(super) bits: u8,
    pub(super) window: Vec<u8>,
}

/// Everything a zTOC says, to be spoilt before it is written.
#[derive(Debug, Clone)]
pub(super) struct Ztoc {
    pub(super) version: String,
    pub(super) compressed: i64,
    pub(super) uncompressed: i64,
    pub(super) members: Vec<Member>,
    pub(super) algorithm: u8,
    pub(super) last_span: i32,
    pub(super) digests: Vec<String>,
    pub(super) checkpoints: Vec<u8>,
}

/// What SOCI says of a gzip layer, with spans of `span` bytes; `first` is whether the first checkpoint is written.
pub(super) fn gzip_ztoc(blob: &[u8], tar: &[u8], span: i64, first: bool) -> Ztoc {
    let checkpoints = checkpoints(blob, span);
    let ends = checkpoints[1..].iter().map(|next| next.input).chain([blob.len() as i64]);
    let starts = checkpoints.iter().map(|point| point.input - i64::from(point.bits != 0));
    let digests: Vec<_> = starts.zip(ends).map(|(start, end)| digest(&blob[start as usize..end as usize])).collect();
    let stored = if first { &checkpoints[..] } else { &checkpoints[1..] };
    Ztoc { algorithm: 1, checkpoints: encode(checkpoints.len() as i32, span, stored), ..plain_ztoc(blob, tar, digests) }
}

/// What SOCI says of a plain layer, with spans of `span` bytes.
pub(super) fn tar_ztoc(tar: &[u8], span: usize) -> Ztoc {
    let mut builder = FlatBufferBuilder::new();
    let start = builder.start_table();
    builder.push_slot::<i32>(4, 2, 0);
    builder.push_slot::<i64>(6, span as i64, 0);
    builder.push_slot::<i64>(8, tar.len() as i64, 0);
    let table = builder.end_table(start);
    builder.finish(table, None);
    let checkpoints = builder.finished_data().to_vec();
    Ztoc { algorithm: 2, checkpoints, ..plain_ztoc(tar, tar, tar.chunks(span).map(digest).collect()) }
}

fn plain_ztoc(blob: &[u8], tar: &[u8], digests: Vec<String>) -> Ztoc {
    Ztoc {
        version: "0.9".to_owned(),
        compressed: blob.len() as i64,
        uncompressed: tar.len() as i64,
        members: members(tar),
        algorithm: 0,
        last_span: digests.len() as i32 - 1,
        digests,
        checkpoints: Vec::new(),
    }
}

fn digest(bytes: &[u8]) -> String {
    Digest::sha256(bytes).to_string()
}

/// The checkpoint blob.
pub(super) fn encode(count: i32, span: i64, checkpoints: &[Checkpoint]) -> Vec<u8> {
    let mut bytes = [&count.to_le_bytes()[..], &span.to_le_bytes()].concat();
    for point in checkpoints {
        bytes.extend_from_slice(&point.input.to_le_bytes());
        bytes.extend_from_slice(&point.output.to_le_bytes());
        bytes.push(point.bits);
        bytes.extend_from_slice(&point.window);
    }
    bytes
}

/// The places where zlib stops (`Z_BLOCK`): after a member's header and between blocks, where the last one lies more than
/// `span` bytes back. The headers of all members have 10 bytes.
pub(super) fn checkpoints(blob: &[u8], span: i64) -> Vec<Checkpoint> {
    let mut decoder = gzip::Decoder::new();
    let (mut read, mut out, mut points) = (0, Vec::new(), Vec::<Checkpoint>::new());
    let mut room = vec![0; 1 << 16];
    loop {
        let step = decoder.step(&blob[read..], &mut room).expect("a good stream");
        read += step.read;
        out.extend_from_slice(&room[..step.written]);
        let place = match step.point {
            Some(Point::Fresh { .. }) => Some((read + 10, 0)),
            Some(Point::Block { bits, .. }) => Some((read, bits)),
            None => None,
        };
        if let Some((input, bits)) = place
            && points.last().is_none_or(|last| out.len() as i64 - last.output > span)
        {
            let history = &out[out.len().saturating_sub(WINDOW)..];
            let window = [&vec![0; WINDOW - history.len()][..], history].concat();
            points.push(Checkpoint { input: input as i64, output: out.len() as i64, bits, window });
        }
        if step.is_idle() {
            return points;
        }
    }
}

/// The members of an archive, read by the `tar` crate.
fn members(tar: &[u8]) -> Vec<Member> {
    let mut archive = ::tar::Archive::new(tar);
    let entries = archive.entries().expect("an archive");
    entries.map(|entry| member(entry.expect("a member"))).collect()
}

fn member(mut entry: ::tar::Entry<'_, &[u8]>) -> Member {
    let mut nanos = String::new();
    let mut xattrs = Vec::new();
    let mut seconds = None;
    for record in entry.pax_extensions().expect("readable").into_iter().flatten() {
        let record = record.expect("well-formed");
        match record.key_bytes() {
            b"mtime" => {
                let text = std::str::from_utf8(record.value_bytes()).expect("digits");
                let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
                seconds = Some(whole.parse().expect("digits"));
                nanos = fraction.trim_end_matches('0').to_owned();
            }
            key => xattrs.push((key.to_vec(), record.value_bytes().to_vec())),
        }
    }
    let header = entry.header();
    let seconds = seconds.unwrap_or_else(|| header.mtime().expect("a time"));
    let kind = match header.entry_type().as_byte() {
        b'0' => "reg",
        b'1' => "hardlink",
        b'2' => "symlink",
        b'3' => "char",
        b'4' => "block",
        b'5' => "dir",
        b'6' => "fifo",
        other => panic!("SOCI cannot do {other}"),
    };
    let device = |number: std::io::Result<Option<u32>>| i64::from(number.ok().flatten().unwrap_or(0));
    let is_device = matches!(kind, "char" | "block");
    Member {
        name: entry.path_bytes().into_owned(),
        kind,
        offset: entry.raw_file_position() as i64,
        size: entry.size() as i64,
        link: entry.link_name_bytes().map(std::borrow::Cow::into_owned).unwrap_or_default(),
        mode: i64::from(header.mode().expect("a mode")),
        uid: header.uid().expect("an owner") as u32,
        gid: header.gid().expect("a group") as u32,
        time: rfc3339(seconds, &nanos),
        device: if is_device { (device(header.device_major()), device(header.device_minor())) } else { (0, 0) },
        xattrs,
    }
}

/// Counts years and months from the epoch.
fn rfc3339(mut seconds: u64, nanos: &str) -> String {
    let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let (mut year, mut month) = (1970, 1);
    loop {
        let february = if is_leap(year) { 29 } else { 28 };
        let days = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31][month - 1];
        if seconds < days * 86_400 {
            break;
        }
        seconds -= days * 86_400;
        (year, month) = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
    }
    let (day, hour, minute) = (seconds / 86_400 + 1, seconds / 3600 % 24, seconds / 60 % 60);
    let fraction = if nanos.is_empty() { String::new() } else { format!(".{nanos}") };
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}{fraction}Z", seconds % 60)
}

impl Ztoc {
    /// The flatbuffer.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut builder = FlatBufferBuilder::new();
        let members: Vec<Offset> = self.members.iter().map(|member| write_member(&mut builder, member)).collect();
        let members = builder.create_vector(&members);
        let start = builder.start_table();
        builder.push_slot_always(4, members);
        let toc = builder.end_table(start);
        let digests: Vec<_> = self.digests.iter().map(|digest| builder.create_string(digest)).collect();
        let digests = builder.create_vector(&digests);
        let checkpoints = builder.create_vector(&self.checkpoints);
        let start = builder.start_table();
        builder.push_slot::<u8>(4, self.algorithm, 1);
        builder.push_slot::<i32>(6, self.last_span, 0);
        builder.push_slot_always(8, digests);
        builder.push_slot_always(10, checkpoints);
        let info = builder.end_table(start);
        let version = builder.create_string(&self.version);
        let tool = builder.create_string("AWS SOCI CLI v0.2");
        let start = builder.start_table();
        builder.push_slot_always(4, version);
        builder.push_slot_always(6, tool);
        builder.push_slot::<i64>(8, self.compressed, 0);
        builder.push_slot::<i64>(10, self.uncompressed, 0);
        builder.push_slot_always(12, toc);
        builder.push_slot_always(14, info);
        let root = builder.end_table(start);
        builder.finish(root, None);
        builder.finished_data().to_vec()
    }
}

/// A string that need not be UTF-8: Go writes any bytes.
fn string(builder: &mut FlatBufferBuilder<'_>, bytes: &[u8]) -> WIPOffset<UnionWIPOffset> {
    match std::str::from_utf8(bytes) {
        Ok(text) => builder.create_string(text).as_union_value(),
        Err(_) => builder.create_vector(bytes).as_union_value(),
    }
}

fn write_member(builder: &mut FlatBufferBuilder<'_>, member: &Member) -> Offset {
    let pairs = member.xattrs.iter().map(|(key, value)| {
        let (key, value) = (string(builder, key), string(builder, value));
        let start = builder.start_table();
        builder.push_slot_always(4, key);
        builder.push_slot_always(6, value);
        builder.end_table(start)
    });
    let pairs: Vec<Offset> = pairs.collect();
    let xattrs = builder.create_vector(&pairs);
    let name = string(builder, &member.name);
    let link = string(builder, &member.link);
    let kind = builder.create_string(member.kind);
    let root = builder.create_string("root");
    let time = builder.create_string(&member.time);
    let start = builder.start_table();
    builder.push_slot_always(4, name);
    builder.push_slot_always(6, kind);
    builder.push_slot::<i64>(8, member.offset, 0);
    builder.push_slot::<i64>(10, member.size, 0);
    builder.push_slot_always(12, link);
    builder.push_slot::<i64>(14, member.mode, 0);
    builder.push_slot::<u32>(16, member.uid, 0);
    builder.push_slot::<u32>(18, member.gid, 0);
    builder.push_slot_always(20, root);
    builder.push_slot_always(22, root);
    builder.push_slot_always(24, time);
    builder.push_slot::<i64>(26, member.device.0, 0);
    builder.push_slot::<i64>(28, member.device.1, 0);
    builder.push_slot_always(30, xattrs);
    builder.end_table(start)
}
