//! Layers in formats that have a TOC, written byte by byte as their descriptions have it, from any tar stream.
//!
//! It shares no code with the readers: members come from the `tar` crate, digests from `sha2`. Also part of the integration
//! tests, by its path.
#![allow(dead_code, reason = "unit tests and integration tests use different parts")]

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Which format, and who writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Estargz,
    /// The older footer, and no digests of chunks unless there are several.
    Stargz,
    /// eStargz with the TOC in an archive of its own.
    External,
    /// zstd:chunked as stargz-snapshotter writes it.
    ZstdStargz,
    /// zstd:chunked as containers/storage writes it.
    ZstdStorage,
}

impl Form {
    pub(crate) const ALL: [Self; 5] =
        [Self::Estargz, Self::Stargz, Self::External, Self::ZstdStargz, Self::ZstdStorage];

    fn is_gzip(self) -> bool {
        matches!(self, Self::Estargz | Self::Stargz | Self::External)
    }

    pub(crate) fn media_type(self) -> &'static str {
        match self.is_gzip() {
            true => "application/vnd.oci.image.layer.v1.tar+gzip",
            false => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// How to write.
#[derive(Debug, Clone, Copy)]
pub(crate) struct How {
    pub(crate) form: Form,
    /// Longest chunk in bytes.
    pub(crate) chunk: usize,
    /// Least decoded bytes of a member (`innerOffset`); 0 for a member for each chunk.
    pub(crate) member: usize,
    /// Whether a landmark comes first.
    pub(crate) has_landmark: bool,
    /// Whether chunks of zeros are holes.
    pub(crate) has_holes: bool,
}

impl How {
    pub(crate) fn new(form: Form) -> Self {
        let has_landmark = !matches!(form, Form::Stargz | Form::ZstdStorage);
        Self { form, chunk: 4 << 20, member: 0, has_landmark, has_holes: form == Form::ZstdStorage }
    }
}

/// A layer as written.
#[derive(Debug, Clone)]
pub(crate) struct Written {
    pub(crate) blob: Vec<u8>,
    /// What the blob decompresses to.
    pub(crate) stream: Vec<u8>,
    pub(crate) annotations: BTreeMap<String, String>,
    /// The TOC's document.
    pub(crate) document: Vec<u8>,
    /// Its compressed bytes in the blob; in `External`, of which the blob has none, the archive that has it.
    pub(crate) toc: Range<usize>,
    pub(crate) archive: Option<Vec<u8>>,
}

/// Writes the layer whose stream is `tar`.
pub(crate) fn write(tar: &[u8], how: How) -> Written {
    write_changed(tar, how, |_| {})
}

/// Writes the layer with another document: `change` gets what would be right.
pub(crate) fn write_changed(tar: &[u8], how: How, change: impl FnOnce(&mut Value)) -> Written {
    let mut stream = Vec::new();
    if how.has_landmark {
        stream.extend(file_member(".no.prefetch.landmark", &[0xf]));
    }
    let (mut members, end) = members(tar, stream.len());
    stream.extend_from_slice(&tar[..end]);
    if how.has_landmark {
        let landmark = json!({ "name": ".no.prefetch.landmark", "type": "reg" });
        members.insert(0, Member { toc: landmark, payload: Some(512..513) });
    }
    let mut body = Body::new(how);
    let mut entries = Vec::new();
    for member in &members {
        entries.extend(body.entries(&stream, member));
    }
    let mut blob = body.blob(&stream);
    for entry in entries.iter_mut().filter(|entry| entry["offset"].is_number()) {
        for key in ["offset", "endOffset"] {
            if let Some(place) = entry[key].as_u64() {
                entry[key] = body.place_in_blob(place as usize).into();
            }
        }
    }
    let mut document = json!({ "version": 1, "entries": entries });
    change(&mut document);
    let document = serde_json::to_vec_pretty(&document).expect("JSON");
    finish(how, &mut blob, &mut stream, document)
}

/// Puts the TOC and what is behind it after the payload.
fn finish(how: How, blob: &mut Vec<u8>, stream: &mut Vec<u8>, document: Vec<u8>) -> Written {
    let mut annotations = BTreeMap::new();
    let mut annotate = |key: &str, value: String| drop(annotations.insert(key.to_owned(), value));
    let sha256 = |bytes: &[u8]| format!("sha256:{}", hex(&Sha256::digest(bytes)));
    let payload_end = blob.len();
    let mut archive_stream = file_member("stargz.index.json", &document);
    archive_stream.resize(archive_stream.len() + 1024, 0);
    let mut archive = None;
    let toc = match how.form {
        Form::Estargz | Form::Stargz => {
            blob.extend(gzip(&archive_stream));
            stream.extend_from_slice(&archive_stream);
            payload_end..blob.len()
        }
        Form::External => {
            blob.extend(gzip(&[0; 1024]));
            stream.extend_from_slice(&[0; 1024]);
            archive = Some(gzip(&archive_stream));
            0..0
        }
        Form::ZstdStargz | Form::ZstdStorage => {
            let compressed = zstd::encode_all(&document[..], 3).expect("memory can be compressed");
            blob.extend(zstd::encode_all(&[0_u8; 1024][..], 3).expect("memory can be compressed"));
            stream.extend_from_slice(&[0; 1024]);
            let start = blob.len() + 8;
            blob.extend(skippable(&compressed));
            start..start + compressed.len()
        }
    };
    let position = format!("{}:{}:{}:1", toc.start, toc.len(), document.len());
    match how.form {
        Form::Estargz | Form::Stargz => {
            blob.extend(gzip_footer(how.form, &format!("{:016x}STARGZ", toc.start)));
            annotate("containerd.io/snapshot/stargz/toc.digest", sha256(&document));
        }
        Form::External => {
            blob.extend(gzip_footer(how.form, "STARGZEXTERNALTOC"));
            annotate("containerd.io/snapshot/stargz/toc.digest", sha256(&document));
        }
        Form::ZstdStargz => {
            blob.extend(skippable(&zstd_footer(&[toc.start, toc.len(), document.len(), 1], b"GnUlInUx")));
            annotate("containerd.io/snapshot/stargz/toc.digest", sha256(&document));
            annotate("io.containers.zstd-chunked.manifest-checksum", sha256(&blob[toc.clone()]));
            annotate("io.containers.zstd-chunked.manifest-position", position);
        }
        Form::ZstdStorage => {
            let split = zstd::encode_all(&b"tar-split"[..], 3).expect("memory can be compressed");
            let numbers = [toc.start, toc.len(), document.len(), 1, blob.len() + 8, split.len(), 9];
            blob.extend(skippable(&split));
            blob.extend(skippable(&zstd_footer(&numbers, b"GNUlInUx")));
            annotate("io.github.containers.zstd-chunked.manifest-checksum", sha256(&blob[toc.clone()]));
            annotate("io.github.containers.zstd-chunked.manifest-position", position);
        }
    }
    Written { blob: std::mem::take(blob), stream: std::mem::take(stream), annotations, document, toc, archive }
}

/// A member of the stream: its entry without what says where its bytes are, and where they are in the stream.
struct Member {
    toc: Value,
    payload: Option<Range<usize>>,
}

/// The members of a stream that begins at `start` of another, and where the last one ends, without an end marker.
fn members(tar: &[u8], start: usize) -> (Vec<Member>, usize) {
    let mut archive = tar::Archive::new(tar);
    let (mut members, mut end, mut records) = (Vec::new(), 0, Vec::new());
    for entry in archive.entries().expect("a tar stream").raw(true) {
        let entry = entry.expect("a tar stream");
        let at = entry.raw_file_position() as usize;
        let header = entry.header().clone();
        let is_records = header.entry_type().is_pax_local_extensions();
        let size = if header.entry_type().is_file() || is_records { entry.size() as usize } else { 0 };
        end = at + size.next_multiple_of(512);
        if is_records {
            records = pax_records(&tar[at..at + size]);
            continue;
        }
        let payload = (size > 0).then_some(start + at..start + at + size);
        members.push(Member { toc: describe(&header, &std::mem::take(&mut records)), payload });
    }
    (members, end)
}

/// Keys and values; the `tar` crate cannot read a value with a line break in it.
fn pax_records(mut bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let blank = bytes.iter().position(|byte| *byte == b' ').expect("a length");
        let length: usize = std::str::from_utf8(&bytes[..blank]).expect("digits").parse().expect("a number");
        let record = &bytes[blank + 1..length - 1];
        let equals = record.iter().position(|byte| *byte == b'=').expect("a value");
        let key = String::from_utf8(record[..equals].to_vec()).expect("UTF-8");
        records.push((key, record[equals + 1..].to_vec()));
        bytes = &bytes[length..];
    }
    records
}

fn describe(header: &tar::Header, records: &[(String, Vec<u8>)]) -> Value {
    use tar::EntryType;
    let lossy = |bytes: &[u8]| Value::from(String::from_utf8_lossy(bytes).into_owned());
    let mut toc = json!({
        "name": lossy(&header.path_bytes()),
        "type": match header.entry_type() {
            EntryType::Regular | EntryType::Continuous => "reg",
            EntryType::Link => "hardlink",
            EntryType::Symlink => "symlink",
            EntryType::Char => "char",
            EntryType::Block => "block",
            EntryType::Directory => "dir",
            EntryType::Fifo => "fifo",
            other => panic!("{other:?}"),
        },
        "mode": header.mode().expect("a mode"),
        "uid": header.uid().expect("a number"),
        "gid": header.gid().expect("a number"),
        "NumLink": 0,
        "userName": "nobody",
    });
    if let Some(link) = header.link_name_bytes() {
        toc["linkName"] = lossy(&link);
    }
    for (key, number) in [("devMajor", header.device_major()), ("devMinor", header.device_minor())] {
        if let Ok(Some(number)) = number {
            toc[key] = number.into();
        }
    }
    let mut time = (header.mtime().expect("a time") as i64, String::new());
    let mut xattrs = serde_json::Map::new();
    for (key, value) in records {
        let text = || std::str::from_utf8(value).expect("UTF-8");
        match key.as_str() {
            "path" => toc["name"] = lossy(value),
            "linkpath" => toc["linkName"] = lossy(value),
            "uid" | "gid" => toc[key] = text().parse::<u64>().expect("a number").into(),
            "mtime" => {
                let (seconds, fraction) = text().split_once('.').unwrap_or((text(), ""));
                time = (seconds.parse().expect("a number"), fraction.to_owned());
            }
            _ => {
                if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
                    xattrs.insert(name.to_owned(), STANDARD.encode(value).into());
                }
            }
        }
    }
    toc["modtime"] = rfc3339(time.0, &time.1).into();
    if !xattrs.is_empty() {
        toc["xattrs"] = xattrs.into();
    }
    toc
}

/// Cuts the stream into members or frames.
struct Body {
    how: How,
    /// Where in the stream the members begin.
    cuts: Vec<usize>,
    /// Where in the blob they begin.
    places: Vec<usize>,
}

impl Body {
    fn new(how: How) -> Self {
        Self { how, cuts: vec![0], places: Vec::new() }
    }

    /// The entries of a member. Places are still those in the stream.
    fn entries(&mut self, stream: &[u8], member: &Member) -> Vec<Value> {
        let mut first = member.toc.clone();
        if self.how.form.is_gzip() || self.how.form == Form::ZstdStargz {
            // These formats have whole seconds.
            if let Some((seconds, _)) = first["modtime"].as_str().and_then(|time| time.split_once('.')) {
                first["modtime"] = format!("{seconds}Z").into();
            }
        }
        if first["type"] == "reg" {
            let whole = member.payload.clone().unwrap_or(0..0);
            first["size"] = whole.len().into();
            first["digest"] = format!("sha256:{}", hex(&Sha256::digest(&stream[whole]))).into();
        }
        let Some(payload) = member.payload.clone() else { return vec![first] };
        let mut entries = vec![first];
        for (number, start) in payload.clone().step_by(self.how.chunk).enumerate() {
            let chunk = start..payload.end.min(start + self.how.chunk);
            if number > 0 {
                entries.push(json!({ "type": "chunk", "chunkOffset": start - payload.start }));
                if !self.how.form.is_gzip() {
                    let name = entries[0]["name"].clone();
                    entries[number]["name"] = name;
                }
            }
            self.place(&mut entries[number], stream, chunk, payload.len());
        }
        if self.how.form == Form::ZstdStorage {
            entries[0]["endOffset"] = payload.end.into();
            self.cut(payload.end);
        }
        entries
    }

    fn place(&mut self, entry: &mut Value, stream: &[u8], chunk: Range<usize>, whole: usize) {
        let begun = self.cuts.last().copied().unwrap_or(0);
        if self.how.member == 0 || chunk.start - begun >= self.how.member {
            self.cut(chunk.start);
            entry["offset"] = chunk.start.into();
        } else {
            entry["offset"] = begun.into();
            entry["innerOffset"] = (chunk.start - begun).into();
        }
        if chunk.len() < whole {
            let is_last = entry["chunkOffset"].as_u64().unwrap_or(0) as usize + chunk.len() == whole;
            if !is_last || !self.how.form.is_gzip() {
                entry["chunkSize"] = chunk.len().into();
            }
        }
        let bytes = &stream[chunk.clone()];
        if self.how.has_holes && bytes.iter().all(|byte| *byte == 0) {
            entry["chunkType"] = "zeros".into();
        } else if self.how.form != Form::Stargz || chunk.len() < whole {
            entry["chunkDigest"] = format!("sha256:{}", hex(&Sha256::digest(bytes))).into();
        }
    }

    fn cut(&mut self, at: usize) {
        if self.cuts.last() != Some(&at) {
            self.cuts.push(at);
        }
    }

    fn blob(&mut self, stream: &[u8]) -> Vec<u8> {
        let mut blob = Vec::new();
        for (number, start) in self.cuts.iter().enumerate() {
            self.places.push(blob.len());
            let piece = &stream[*start..self.cuts.get(number + 1).copied().unwrap_or(stream.len())];
            blob.extend(match self.how.form.is_gzip() {
                true => gzip(piece),
                false => zstd::encode_all(piece, 3).expect("memory can be compressed"),
            });
        }
        self.places.push(blob.len());
        self.cuts.push(stream.len());
        blob
    }

    fn place_in_blob(&self, at: usize) -> usize {
        self.places[self.cuts.binary_search(&at).expect("a cut is here")]
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("memory can be compressed")
}

/// An empty gzip member with `text` in its extra field.
pub(crate) fn gzip_footer(form: Form, text: &str) -> Vec<u8> {
    let mut footer = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff];
    let length = u16::try_from(text.len()).expect("it is short");
    if form == Form::Stargz {
        footer.extend(length.to_le_bytes());
    } else {
        footer.extend((length + 4).to_le_bytes());
        footer.extend(*b"SG");
        footer.extend(length.to_le_bytes());
    }
    footer.extend(text.as_bytes());
    footer.extend([1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
    footer
}

pub(crate) fn zstd_footer(numbers: &[usize], magic: &[u8; 8]) -> Vec<u8> {
    let mut footer: Vec<u8> = numbers.iter().flat_map(|number| (*number as u64).to_le_bytes()).collect();
    footer.extend(magic);
    footer
}

fn skippable(content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).expect("it is short");
    [&[0x50, 0x2a, 0x4d, 0x18][..], &length.to_le_bytes(), content].concat()
}

/// A tar member for a file, padded.
pub(crate) fn file_member(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.set_path(name).expect("a short name");
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    let mut member = header.as_bytes().to_vec();
    member.extend_from_slice(content);
    member.resize(member.len().next_multiple_of(512), 0);
    member
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A time as Go prints it.
fn rfc3339(seconds: i64, fraction: &str) -> String {
    let (mut days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let length = |year: i64| if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) { 366 } else { 365 };
    let mut year = 1970;
    while days >= length(year) {
        days -= length(year);
        year += 1;
    }
    while days < 0 {
        year -= 1;
        days += length(year);
    }
    let mut month = 1;
    for days_of_month in [31, length(year) - 337, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < days_of_month {
            break;
        }
        days -= days_of_month;
        month += 1;
    }
    let fraction = fraction.trim_end_matches('0');
    let dot = if fraction.is_empty() { "" } else { "." };
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}{dot}{fraction}Z", days + 1)
}
