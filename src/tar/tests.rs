//! What one stream must give, case by case; the cases are named as in the conformance list.
//!
//! `raw` makes archives that no writer makes, the others are the cases: of the container format, of names, of metadata,
//! and the properties that hold for all streams.

mod format;
mod metadata;
mod names;
mod properties;
mod raw;
mod sparse;

use super::{Entry, Error, Fault, Kind, Parser, Sink};

/// Keeps everything: entries, each with the bytes that followed it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen(Vec<(Entry, Vec<u8>)>);

impl Sink for Seen {
    fn entry(&mut self, entry: Entry) {
        self.0.push((entry, Vec::new()));
    }

    fn data(&mut self, bytes: &[u8]) {
        self.0.last_mut().expect("data follows an entry").1.extend_from_slice(bytes);
    }
}

/// Parses a stream pushed in pieces of `size` bytes.
fn parse_in_pieces(stream: &[u8], size: usize) -> Result<Seen, Error> {
    let mut seen = Seen::default();
    let mut parser = Parser::new();
    for piece in stream.chunks(size) {
        parser.push(piece, &mut seen)?;
    }
    parser.finish()?;
    Ok(seen)
}

fn parse(stream: &[u8]) -> Result<Seen, Error> {
    parse_in_pieces(stream, usize::MAX)
}

/// The entries of a valid archive of these parts.
fn entries(parts: &[Vec<u8>]) -> Vec<Entry> {
    let seen = parse(&raw::archive(parts)).expect("the archive is valid");
    seen.0.into_iter().map(|(entry, _)| entry).collect()
}

/// The only entry of a valid archive of these parts.
fn entry(parts: &[Vec<u8>]) -> Entry {
    let mut entries = entries(parts);
    assert_eq!(entries.len(), 1, "one entry in {entries:?}");
    entries.remove(0)
}

/// The paths and contents of a valid archive of these parts.
fn contents(parts: &[Vec<u8>]) -> Vec<(String, Vec<u8>)> {
    let seen = parse(&raw::archive(parts)).expect("the archive is valid");
    seen.0.into_iter().map(|(entry, data)| (String::from_utf8(entry.path).expect("UTF-8"), data)).collect()
}

/// Why an archive of these parts is rejected.
fn fault(parts: &[Vec<u8>]) -> Fault {
    fault_of(&raw::archive(parts))
}

fn fault_of(stream: &[u8]) -> Fault {
    match parse(stream).expect_err("the archive is invalid") {
        Error::Header { fault, .. } | Error::Entry { fault, .. } => fault,
    }
}

fn is_file(entry: &Entry) -> bool {
    matches!(entry.kind, Kind::Regular { .. })
}
