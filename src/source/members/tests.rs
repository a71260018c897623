use std::io::{Seek, SeekFrom, Write};

use proptest::prelude::*;

use super::*;
use crate::source::conformance::{kind, tar_of};

fn scan(bytes: &[u8]) -> Result<Members, Error> {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("written");
    file.seek(SeekFrom::Start(0)).expect("seekable");
    Members::scan(file, "archive".to_owned())
}

fn content(members: &Members, name: &str) -> Result<Vec<u8>, Error> {
    members.open(name)?.read_document(1 << 20).map(|bytes| bytes.to_vec())
}

fn member(kind: u8, name: &str, link: &str, bytes: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::new(kind));
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_size(bytes.len() as u64);
    header.set_cksum();
    let mut block = header.as_bytes().to_vec();
    block.extend_from_slice(bytes);
    block.resize(block.len().next_multiple_of(512), 0);
    block
}

#[test]
fn members_are_found_under_normalised_names_and_the_last_counts() {
    let files = [("./a", "1"), ("b//c/./d", "2"), ("/abs", "3"), ("x/../y", "4"), ("a", "5"), ("empty", "")];
    let bytes: Vec<u8> = files.iter().flat_map(|(name, text)| member(b'0', name, "", text.as_bytes())).collect();
    let members = scan(&bytes).expect("an archive without end marker");
    for (name, text) in [("a", "5"), ("b/c/d", "2"), ("abs", "3"), ("y", "4"), ("empty", "")] {
        assert_eq!(content(&members, name).expect(name), text.as_bytes(), "{name}");
    }
    assert!(members.has_directory("b") && !members.has_directory("a"));
    assert_eq!(kind(members.open("../a")), ErrorKind::NotFound);
}

#[test]
fn long_names_of_both_kinds_are_read() {
    let name = format!("{}/{}", "d".repeat(150), "f".repeat(150));
    let gnu = [member(b'L', "././@LongLink", "", format!("{name}\0").as_bytes()), member(b'0', "cut", "", b"gnu")];
    assert_eq!(content(&scan(&gnu.concat()).expect("GNU"), &name).expect("the name"), b"gnu");
    let record = format!("{} path={name}\n", name.len() + 10);
    let pax = [member(b'x', "pax", "", record.as_bytes()), member(b'0', "cut", "", b"pax")];
    assert_eq!(content(&scan(&pax.concat()).expect("PAX"), &name).expect("the name"), b"pax");
}

#[test]
fn a_pax_size_overrides_the_header() {
    let mut body = member(b'0', "f", "", b"");
    body.extend([b'z'; 512]);
    let bytes = [member(b'x', "pax", "", b"12 size=500\n"), body, member(b'0', "g", "", b"next")].concat();
    let members = scan(&bytes).expect("an archive");
    assert_eq!(content(&members, "f").expect("f"), [b'z'; 500]);
    assert_eq!(content(&members, "g").expect("g"), b"next");
}

#[test]
fn b_025_links_are_followed_once() {
    let bytes = [
        member(b'0', "one/layer.tar", "", b"layer"),
        member(b'2', "two/layer.tar", "../one/layer.tar", b""),
        member(b'1', "hard", "one/layer.tar", b""),
        member(b'2', "three", "two/layer.tar", b""),
        member(b'2', "dangling", "none", b""),
        member(b'2', "self", "self", b""),
        member(b'2', "escape", "../../etc/passwd", b""),
        member(b'2', "absolute", "/etc/passwd", b""),
    ];
    let members = scan(&bytes.concat()).expect("an archive");
    for name in ["two/layer.tar", "hard"] {
        assert_eq!(content(&members, name).expect(name), b"layer");
        assert_eq!(members.follow(name), "one/layer.tar");
    }
    for (name, expected) in [
        ("three", ErrorKind::Invalid),
        ("self", ErrorKind::Invalid),
        ("dangling", ErrorKind::NotFound),
        ("escape", ErrorKind::NotFound),
        ("absolute", ErrorKind::NotFound),
    ] {
        assert_eq!(kind(members.open(name)), expected, "{name}");
    }
}

#[test]
fn d_011_extended_headers_are_bounded_and_sparse_members_refused() {
    let long = vec![b'a'; (1 << 20) + 1];
    for kind_byte in [b'L', b'K', b'x'] {
        assert_eq!(kind(scan(&member(kind_byte, "x", "", &long))), ErrorKind::Corrupt);
    }
    let name = "a".repeat(5000);
    let long_name = [member(b'L', "x", "", name.as_bytes()), member(b'0', "x", "", b"")].concat();
    let members = scan(&long_name).expect("a long name is no error");
    assert!(members.members.is_empty(), "but it is not remembered");
    assert_eq!(kind(scan(&member(b'S', "x", "", b""))), ErrorKind::Unsupported);
    let sparse = [member(b'x', "x", "", b"22 GNU.sparse.major=1\n"), member(b'0', "x", "", b"")].concat();
    assert_eq!(kind(scan(&sparse)), ErrorKind::Unsupported);
}

#[test]
fn d_060_sizes_beyond_the_file_are_corrupt() {
    for size in [513_u64, 1 << 40, u64::MAX / 2, u64::MAX] {
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.resize(1024, 0);
        assert_eq!(kind(scan(&bytes)), ErrorKind::Corrupt, "{size}");
        let record = format!("30 size={size:020}\n");
        let pax = [member(b'x', "x", "", record.as_bytes()), member(b'0', "x", "", b"")].concat();
        assert_eq!(kind(scan(&pax)), ErrorKind::Corrupt, "{size}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_bytes_make_the_scan_panic(at in 0..3000_usize, byte: u8, cut in 0..3000_usize) {
        let mut bytes = tar_of(&[("a".repeat(120), b"one".to_vec()), ("b".to_owned(), b"two".to_vec())]);
        let length = bytes.len();
        bytes[at % length] = byte;
        if let Ok(members) = scan(&bytes[..length - cut % length]) {
            for name in members.members.keys() {
                if let Ok(section) = members.open(name) {
                    prop_assert!(section.read_document(1 << 20).is_ok());
                }
            }
        }
    }
}
