//! What one stream must give, case by case.

use super::{Entry, Error, Kind, Parser, Sink};

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

fn parse(stream: &[u8]) -> Result<Seen, Error> {
    let mut seen = Seen::default();
    let mut parser = Parser::new();
    parser.push(stream, &mut seen)?;
    parser.finish()?;
    Ok(seen)
}

#[test]
fn entries_written_by_the_tar_crate_come_back() {
    let mut builder = ::tar::Builder::new(Vec::new());
    let mut header = ::tar::Header::new_gnu();
    header.set_size(5);
    header.set_mode(0o640);
    header.set_mtime(77);
    header.set_uid(3);
    header.set_gid(4);
    header.set_entry_type(::tar::EntryType::Regular);
    builder.append_data(&mut header, "a/b", &b"hello"[..]).expect("write to memory");
    let stream = builder.into_inner().expect("write to memory");
    let seen = parse(&stream).expect("valid");
    assert_eq!(seen.0.len(), 1);
    let (entry, data) = &seen.0[0];
    assert_eq!(entry.path, b"a/b");
    assert_eq!(data, b"hello");
    assert!(matches!(&entry.kind, Kind::Regular { size: 5, segments, .. } if segments[0].layer_offset == 512));
}
