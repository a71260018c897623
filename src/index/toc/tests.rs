//! TOCs as their writers write them, and as nobody should.
//!
//! Layers are written by [`writer`], which shares nothing with the readers. What a reader makes of them is compared with
//! what the tar reader makes of the same stream; contents are decoded here, by the claim alone.

mod documents;
mod hostile;
mod places;
mod properties;
mod writer;

use std::collections::BTreeMap;
use std::io::Read;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use self::writer::{Form, How, Written, write, write_changed};
use super::*;
use crate::index::{SpanDigest, Start, Times};
use crate::tar::{Entry, Kind, Parser, Segment, Sink, Timestamp, Writer, Xattr};

/// What the tar reader makes of a stream.
#[derive(Debug, Default)]
struct Tarred {
    entries: Vec<Entry>,
    /// The content of each entry, holes included.
    contents: Vec<Vec<u8>>,
}

impl Sink for Tarred {
    fn entry(&mut self, entry: Entry) {
        self.entries.push(entry);
        self.contents.push(Vec::new());
    }

    fn data(&mut self, bytes: &[u8]) {
        self.contents.last_mut().expect("an entry comes first").extend_from_slice(bytes);
    }
}

fn tarred(stream: &[u8]) -> Tarred {
    let (mut parser, mut tarred) = (Parser::new(), Tarred::default());
    parser.push(stream, &mut tarred).expect("a tar stream");
    parser.finish().expect("a tar stream");
    tarred
}

/// A stream of these entries.
fn stream(members: &[(Entry, Vec<u8>)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (entry, content) in members {
        writer.append(entry, &content[..]).expect("writing to memory");
    }
    writer.finish().expect("writing to memory")
}

fn entry(path: &str, kind: Kind) -> Entry {
    let mtime = Timestamp { seconds: 1_700_000_000, nanos: 0 };
    Entry { path: path.as_bytes().to_vec(), kind, mode: 0o644, uid: 0, gid: 0, mtime, xattrs: Vec::new() }
}

fn file(path: &str, content: impl Into<Vec<u8>>) -> (Entry, Vec<u8>) {
    let content = content.into();
    let length = content.len() as u64;
    let segments = if length == 0 { vec![] } else { vec![Segment { file_offset: 0, layer_offset: 0, length }] };
    (entry(path, Kind::Regular { size: length, segments, content: None }), content)
}

/// Text that compresses and does not repeat.
fn text(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        b'a' + (state >> 60) as u8
    })
    .take(length)
    .collect()
}

/// A layer of one of everything.
fn everything() -> Vec<(Entry, Vec<u8>)> {
    let mut su = file("bin/su", text(9000, 1));
    su.0.mode = 0o4755;
    su.0.xattrs = vec![Xattr { name: b"security.capability".to_vec(), value: vec![1, 0, 0, 2, 0xff] }];
    let mut home = file("home/\u{e9}t\u{e9}", "summer");
    (home.0.uid, home.0.gid) = (1000, 3_000_000_000);
    home.0.mtime = Timestamp { seconds: 1_234_567_890, nanos: 987_654_321 };
    let mut early = entry("early", Kind::Directory);
    (early.mtime, early.mode) = (Timestamp::default(), 0o1777);
    let other = |path, kind| (entry(path, kind), Vec::new());
    vec![
        other("bin", Kind::Directory),
        su,
        other("bin/mount", Kind::HardLink { target: b"bin/su".to_vec() }),
        file("data/long", text(300_000, 2)),
        file("data/zeros", vec![0; 100_000]),
        file("data/empty", ""),
        (early, Vec::new()),
        home,
        other("dev/null", Kind::CharDevice { major: 1, minor: 3 }),
        other("dev/sda", Kind::BlockDevice { major: 8, minor: 0 }),
        other("run/pipe", Kind::Fifo),
        other("sbin", Kind::Symlink { target: b"../bin//./su".to_vec() }),
        other("gone", Kind::Whiteout),
        other("opaque", Kind::Opaque),
        file("last", "last"),
    ]
}

/// The claim of a layer, from its annotations, its blob and the archive beside it.
fn claim_of(written: &Written) -> Result<Claim, Error> {
    let pin = Pin::of(&written.annotations)?.ok_or(Error::Unpinned)?;
    let size = written.blob.len() as u64;
    let bytes = |place: &Place| &written.blob[place.bytes().start as usize..place.bytes().end as usize];
    if let Some(place) = pin.place(size)? {
        return open(&place, bytes(&place), &pin);
    }
    let tail = &written.blob[written.blob.len().saturating_sub(Footer::BYTES as usize)..];
    match Footer::find(tail, size)? {
        Some(Footer::Within(place)) => open(&place, bytes(&place), &pin),
        Some(Footer::Outside(outside)) => open_outside(outside, written.archive.as_deref().unwrap_or_default(), &pin),
        None => Err(Error::Place),
    }
}

/// The stream of a claim, every span decoded by itself and compared with its digest.
fn decoded(claim: &Claim, blob: &[u8]) -> Vec<u8> {
    let mut stream = Vec::new();
    for span in &claim.spans {
        let compressed = &blob[span.compressed.start as usize..span.compressed.end as usize];
        let mut own = Vec::new();
        let wanted = span.skip + span.length;
        match claim.compression {
            Compression::Gzip => {
                flate2::bufread::MultiGzDecoder::new(compressed).take(wanted).read_to_end(&mut own).map(drop)
            }
            _ => {
                let decoder = zstd::Decoder::new(compressed).expect("a decoder");
                decoder.take(wanted).read_to_end(&mut own).map(drop)
            }
        }
        .expect("a span can be decoded by itself");
        let own = &own[span.skip as usize..];
        assert_eq!(SpanDigest::Decoded(Sha256::digest(own).into()), span.digest);
        assert!(span.bit == 0 && matches!(span.start, Start::Fresh));
        stream.extend_from_slice(own);
    }
    assert_eq!(stream.len() as u64, claim.uncompressed_size);
    stream
}

/// The content of a file as its segments have it.
fn content(entry: &Entry, stream: &[u8]) -> Vec<u8> {
    let Kind::Regular { size, segments, .. } = &entry.kind else { return Vec::new() };
    let mut content = vec![0; *size as usize];
    for Segment { file_offset, layer_offset, length } in segments {
        let (to, from, length) = (*file_offset as usize, *layer_offset as usize, *length as usize);
        content[to..to + length].copy_from_slice(&stream[from..from + length]);
    }
    content
}

/// Compares a claim with what the tar reader makes of the stream the layer was written from.
#[track_caller]
fn assert_is(claim: &Claim, written: &Written, tar: &[u8]) {
    let expected = tarred(tar);
    let stream = decoded(claim, &written.blob);
    let paths = |entries: &[Entry]| entries.iter().map(|entry| entry.path.clone()).collect::<Vec<_>>();
    assert_eq!(paths(&claim.entries), paths(&expected.entries));
    for ((found, expected), bytes) in claim.entries.iter().zip(&expected.entries).zip(&expected.contents) {
        let mut plain = found.clone();
        if let (Kind::Regular { segments, content: digest, .. }, Kind::Regular { segments: real, .. }) =
            (&mut plain.kind, &expected.kind)
        {
            assert_eq!(content(found, &stream), *bytes, "{found:?}");
            if !segments.is_empty() {
                assert_eq!(*digest, Some(Sha256::digest(bytes).into()));
            }
            (*segments, *digest) = (real.clone(), None);
        }
        let mut expected = expected.clone();
        if claim.fidelity == Times::Seconds {
            expected.mtime.nanos = 0;
        }
        assert_eq!(plain, expected);
    }
}

/// A document of these entries in a blob whose payload ends at 10,000.
fn listed(format: Format, entries: &[Value]) -> Result<Claim, Error> {
    read(format, json!({ "version": 1, "entries": entries }).to_string().as_bytes(), 10_000)
}

const BOTH: [Format; 2] = [Format::Estargz, Format::ZstdChunked];

/// Some digest.
const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// The fault for which a document of these entries is refused, in both formats.
#[track_caller]
fn fault(entries: &[Value]) -> Fault {
    let [first, second] = BOTH.map(|format| match listed(format, entries) {
        Err(Error::Entry { fault, .. }) => fault,
        other => panic!("{other:?}"),
    });
    assert_eq!(first, second);
    first
}

/// A listed file of `size` bytes in one chunk at `offset`.
fn listed_file(name: &str, size: u64, offset: u64) -> Value {
    json!({ "name": name, "type": "reg", "size": size, "offset": offset, "digest": DIGEST, "chunkDigest": DIGEST })
}
