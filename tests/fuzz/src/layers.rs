//! Layers as they come from a registry: tar, gzip, zstd.

use std::convert::Infallible;
use std::io::Write;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use ocifs::index::{self, Expected, LayerIndex};
use ocifs::oci::Digest;
use ocifs::tar::{Entry, Kind, Timestamp, Writer, Xattr};
use ocifs::tree::{self, NodeId, Tree};

/// What a layer of these bytes is expected to be; the diffID is that of a plain one.
pub(crate) fn expected(blob: &[u8], stream: &[u8]) -> Expected {
    Expected { layer: Digest::sha256(blob), size: blob.len() as u64, diff_id: Digest::sha256(stream) }
}

/// Indexes a layer as first contact does.
pub(crate) fn build(blob: &[u8], stream: &[u8]) -> Option<LayerIndex> {
    let piece: Result<Bytes, Infallible> = Ok(Bytes::copy_from_slice(blob));
    index::build(std::iter::once(piece), expected(blob, stream)).ok()
}

/// Indexes what is given, and uses the index.
pub(crate) fn layer(data: &[u8]) {
    let Some(index) = build(data, data) else { return };
    let reopened = LayerIndex::open(index.as_bytes().clone()).expect("what was built can be opened");
    reopened.check().expect("what was built is sound");
    for span in index.span_ids() {
        let range = index.compressed(span);
        let compressed = &data[range.start as usize..range.end as usize];
        index.decode(span, compressed).expect("what was built is decoded from what it was built of");
    }
    merge(&reopened);
    let read = |range: std::ops::Range<u64>| {
        Ok::<_, Infallible>(Bytes::copy_from_slice(&data[range.start as usize..range.end as usize]))
    };
    if let Ok(ztoc) = index::soci::write(&index, read) {
        let expected = expected(data, data);
        let claim = index::soci::claim(&expected, &ztoc).expect("what was written can be read");
        let claimed = LayerIndex::claimed(&expected, claim).expect("and is a claim");
        index::compare(&claimed, &index, read).expect("and says the same");
    }
}

/// Merges the layer twice over itself, and walks the tree.
pub(crate) fn merge(index: &LayerIndex) {
    let Ok(encoded) = tree::merge(&[index, index]) else { return };
    walk(&Tree::open(Bytes::from(encoded)).expect("what was merged can be opened"));
}

/// Asks a tree for all that it knows.
pub(crate) fn walk(tree: &Tree) {
    for number in 0..tree.node_count() {
        let id = tree.id(number).expect("below the count");
        let node = tree.node(id);
        let attributes = (node.mode(), node.uid(), node.gid(), node.mtime(), node.size(), node.nlink(), node.device());
        std::hint::black_box((attributes, node.parent(), node.content(), node.target()));
        std::hint::black_box((node.extents().count(), node.xattrs().count()));
        for child in tree.children(id, 0) {
            assert_eq!(tree.lookup(id, child.name), Some(child.node), "a name that is listed is found");
        }
        std::hint::black_box(tree.resolve(node.target(), true));
    }
    std::hint::black_box((tree.total_size(), tree.has_xattrs(), tree.lookup(NodeId::ROOT, b"a")));
}

/// A stream with members of every kind.
pub(crate) fn stream() -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    let mut add = |path: &[u8], kind: Kind, content: &[u8]| {
        let xattrs = vec![Xattr { name: b"user.a".to_vec(), value: b"b".to_vec() }];
        let mtime = Timestamp { seconds: 1_700_000_000, nanos: 5 };
        let entry = Entry { path: path.to_vec(), kind, mode: 0o755, uid: 1, gid: 2, mtime, xattrs };
        writer.append(&entry, content).expect("a vector takes everything");
    };
    let regular = |content: &[u8]| Kind::Regular { size: content.len() as u64, segments: Vec::new(), content: None };
    add(b"d", Kind::Directory, b"");
    add(b"d/f", regular(b"some words"), b"some words");
    let long: Vec<u8> = (0..9000_u32).flat_map(|number| number.to_le_bytes()).collect();
    add(&[&b"d/"[..], &[b'n'; 120]].concat(), regular(&long), &long);
    add(b"d/l", Kind::Symlink { target: b"../d/f".to_vec() }, b"");
    add(b"h", Kind::HardLink { target: b"d/f".to_vec() }, b"");
    add(b"c", Kind::CharDevice { major: 1, minor: 3 }, b"");
    add(b"p", Kind::Fifo, b"");
    add(b"d/gone", Kind::Whiteout, b"");
    add(b"d", Kind::Opaque, b"");
    writer.finish().expect("a vector takes everything")
}

/// A sparse member in each of its forms (tar(5)): GNU's header, and PAX 0.0, 0.1 and 1.0.
fn sparse() -> Vec<Vec<u8>> {
    let pax = |records: &[(&str, &str)], path: &str, content: &[u8]| {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_pax_extensions(records.iter().map(|(key, value)| (*key, value.as_bytes()))).expect("written");
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, content).expect("written");
        builder.into_inner().expect("written")
    };
    let mut map = b"1\n512\n3\n".to_vec();
    map.resize(512, 0);
    map.extend(b"abc");
    let mut header = tar::Header::new_gnu();
    header.set_path("g").expect("it fits");
    header.set_entry_type(tar::EntryType::GNUSparse);
    header.set_size(3);
    header.as_mut_bytes()[386..412].copy_from_slice(b"00000001000\x0000000000003\x00\x00\x00");
    header.as_mut_bytes()[483..494].copy_from_slice(b"00000002000");
    header.set_cksum();
    let mut gnu = header.as_bytes().to_vec();
    gnu.extend(b"abc");
    gnu.resize(2048, 0);
    vec![
        pax(
            &[
                ("GNU.sparse.size", "1024"),
                ("GNU.sparse.numblocks", "1"),
                ("GNU.sparse.offset", "512"),
                ("GNU.sparse.numbytes", "3"),
            ],
            "s",
            b"abc",
        ),
        pax(&[("GNU.sparse.size", "1024"), ("GNU.sparse.map", "512,3"), ("GNU.sparse.name", "t")], "s", b"abc"),
        pax(
            &[
                ("GNU.sparse.major", "1"),
                ("GNU.sparse.minor", "0"),
                ("GNU.sparse.realsize", "1024"),
                ("GNU.sparse.name", "t"),
            ],
            "s",
            &map,
        ),
        pax(
            &[
                ("path", "x/y"),
                ("linkpath", "z"),
                ("size", "3"),
                ("uid", "7"),
                ("mtime", "1.5"),
                ("SCHILY.xattr.user.a", "b"),
                ("LIBARCHIVE.xattr.user.b", "Yg=="),
            ],
            "s",
            b"abc",
        ),
        gnu,
    ]
}

pub(crate) fn gzip(bytes: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
    encoder.write_all(bytes).expect("a vector takes everything");
    encoder.finish().expect("a vector takes everything")
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let stream = stream();
    let compressed = [gzip(&stream, 0), gzip(&stream, 6), zstd::encode_all(&stream[..], 1).expect("it is compressed")];
    let members = [gzip(&stream[..1024], 6), gzip(&stream[1024..], 6)].concat();
    sparse().into_iter().chain(compressed).chain([members, stream]).collect()
}
