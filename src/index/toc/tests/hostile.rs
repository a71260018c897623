//! Documents that lie, contradict themselves or ask for too much.

use super::*;
use crate::limits::{CLAIM_SKIP_BYTES, NAME_BYTES, TOC_BYTES, TOC_ENTRIES};
use crate::tar;

fn with(mut listing: Value, key: &str, value: impl Into<Value>) -> Value {
    listing[key] = value.into();
    listing
}

#[test]
fn d_017_numbers_below_zero_are_refused() {
    let file = || listed_file("f", 100, 512);
    for key in ["size", "offset", "innerOffset", "chunkOffset", "chunkSize", "endOffset"] {
        assert_eq!(fault(&[with(file(), key, -1)]), Fault::Negative, "{key}");
    }
    for key in ["size", "offset", "chunkSize", "uid", "mode"] {
        for number in ["9223372036854775808", "1e3", "1.5", "\"1\""] {
            let text = with(file(), key, "?").to_string().replace("\"?\"", number);
            let refused = read(Format::Estargz, format!("{{\"version\":1,\"entries\":[{text}]}}").as_bytes(), 10_000);
            assert!(matches!(refused, Err(Error::Json(_))), "{key} {number}: {refused:?}");
        }
    }
    for (key, what) in [("uid", "uid"), ("gid", "gid")] {
        for number in [-1, 1_i64 << 32] {
            assert_eq!(fault(&[with(file(), key, number)]), Fault::Member(tar::Fault::Range(what)));
        }
    }
    let device = json!({ "name": "d", "type": "char", "devMajor": -1 });
    assert_eq!(fault(&[device]), Fault::Member(tar::Fault::Range("device number")));
}

#[test]
fn d_018_chunks_must_make_up_their_file() {
    let first = |size: i64| with(listed_file("f", 100, 512), "chunkSize", size);
    let chunk = |offset: i64, from: i64, size: i64| json!({ "type": "chunk", "offset": offset, "chunkOffset": from, "chunkSize": size, "chunkDigest": DIGEST });
    listed(Format::Estargz, &[first(50), chunk(600, 50, 50)]).expect("both halves");
    for entries in [
        vec![first(50)],
        vec![first(101)],
        vec![first(i64::MAX)],
        vec![first(50), chunk(600, 51, 49)],
        vec![first(50), chunk(600, 49, 51)],
        vec![first(50), chunk(600, 50, 49)],
        vec![first(50), chunk(600, 50, 51)],
        vec![first(50), chunk(600, 50, i64::MAX)],
        vec![first(50), chunk(600, i64::MAX, i64::MAX)],
        vec![first(50), chunk(600, 50, 50), chunk(700, 100, 0)],
        vec![first(0), chunk(600, 100, 10)],
        vec![with(first(50), "chunkOffset", 1), chunk(600, 50, 50)],
        vec![json!({ "name": "e", "type": "reg" }), chunk(600, 0, 10)],
    ] {
        assert_eq!(fault(&entries), Fault::Chunks, "{entries:?}");
    }
    let directory = json!({ "name": "d", "type": "dir" });
    assert_eq!(fault(&[chunk(600, 0, 10)]), Fault::Stray);
    assert_eq!(fault(&[first(100), directory, chunk(600, 100, 50)]), Fault::Stray);
    assert_eq!(fault(&[first(50), with(chunk(600, 50, 50), "name", "g")]), Fault::Stray);
    assert_eq!(fault(&[first(50), with(chunk(600, 50, 50), "chunkType", "ones")]), Fault::ChunkType);
    assert_eq!(fault(&[first(50), with(chunk(600, 50, 50), "chunkDigest", "md5:00")]), Fault::Digest);
    let sha512 = format!("sha512:{}", "0".repeat(128));
    assert_eq!(fault(&[with(listed_file("f", 1, 512), "digest", sha512)]), Fault::Digest);
    let other = format!("sha256:{}", "0".repeat(64));
    assert_eq!(
        fault(&[with(listed_file("f", 1, 512), "digest", other)]),
        Fault::Digest,
        "two digests of the same bytes"
    );
}

#[test]
fn d_018_bytes_must_lie_before_the_toc() {
    for offset in [10_000, 10_001, i64::MAX as u64] {
        assert_eq!(fault(&[listed_file("f", 100, offset)]), Fault::Offset);
        let hidden = [listed_file(".prefetch.landmark", 1, offset), listed_file("f", 100, 512)];
        assert_eq!(fault(&hidden), Fault::Offset);
    }
    assert_eq!(fault(&[listed_file("f", 100, 0)]), Fault::Offset, "nothing begins where the first header is");
    listed(Format::Estargz, &[with(listed_file("f", 100, 0), "innerOffset", 512)]).expect("after the first header");
    let far = with(listed_file("f", 100, 512), "innerOffset", CLAIM_SKIP_BYTES + 1);
    assert_eq!(fault(&[far]), Fault::Offset);
    for end in [511, 512, 1] {
        assert_eq!(fault(&[with(listed_file("f", 100, 512), "endOffset", end)]), Fault::Offset);
    }
    let beyond =
        listed(Format::ZstdChunked, &[with(listed_file("f", 100, 512), "endOffset", 20_000)]).expect("bounded");
    assert_eq!(beyond.spans[0].compressed, 512..10_000);
}

#[test]
fn d_019_hard_links_in_a_circle_are_refused() {
    let link = |name: &str, target: &str| json!({ "name": name, "type": "hardlink", "linkName": target });
    assert_eq!(fault(&[link("a", "b"), link("b", "a")]), Fault::Circle);
    assert_eq!(fault(&[link("a", "./a")]), Fault::Circle);
    assert_eq!(
        fault(&[listed_file("f", 1, 512), link("a", "b"), link("b", "c"), link("c", "d"), link("d", "b")]),
        Fault::Circle
    );
    assert_eq!(fault(&[link("a", "")]), Fault::Member(tar::Fault::NoTarget));
    let long: Vec<Value> = (0..50_000).map(|number| link(&number.to_string(), &(number + 1).to_string())).collect();
    for format in BOTH {
        assert_eq!(listed(format, &long).expect("a long way is no circle").entries.len(), long.len());
    }
    let replaced = [link("a", "b"), listed_file("a", 1, 512), link("b", "a")];
    listed(Format::Estargz, &replaced).expect("the link is gone when the other comes");
    // A chunk has no name of its own that a link could lead to.
    let first = with(listed_file("f", 2, 512), "chunkSize", 1);
    let second = json!({ "type": "chunk", "name": "f", "offset": 600, "chunkOffset": 1, "chunkDigest": DIGEST });
    let claim = listed(Format::Estargz, &[first, second, link("a", "f")]).expect("the link leads to the file");
    assert_eq!(claim.entries.len(), 2);
    let chunk = json!({ "type": "chunk", "name": "c", "offset": 600, "chunkOffset": 1, "chunkDigest": DIGEST });
    assert_eq!(fault(&[listed_file("f", 2, 512), chunk, link("a", "c")]), Fault::Stray);
}

#[test]
fn d_020_names_are_those_of_tar_members() {
    let named = |name: &str| {
        BOTH.map(|format| listed(format, &[json!({ "name": name, "type": "fifo" })]).map(|claim| claim.entries))
    };
    for name in ["a/../../b", "/b", "../../../b", "./b/", "b//."] {
        for entries in named(name) {
            assert_eq!(entries.expect("cleaned as in tar")[0].path, b"b", "{name}");
        }
    }
    let member = |fault| Fault::Member(fault);
    assert_eq!(fault(&[json!({ "name": "a\0b", "type": "fifo" })]), member(tar::Fault::Nul));
    assert_eq!(fault(&[json!({ "name": "l", "type": "symlink", "linkName": "a\0" })]), member(tar::Fault::Nul));
    assert_eq!(fault(&[json!({ "name": "", "type": "fifo" })]), member(tar::Fault::Root));
    assert_eq!(fault(&[json!({ "type": "fifo" })]), member(tar::Fault::Root));
    assert_eq!(fault(&[json!({ "name": "..", "type": "reg" })]), member(tar::Fault::Root));
    assert_eq!(fault(&[json!({ "name": ".wh.", "type": "reg" })]), member(tar::Fault::Whiteout));
    assert_eq!(fault(&[json!({ "name": "n".repeat(NAME_BYTES + 1), "type": "dir" })]), member(tar::Fault::NameTooLong));
    assert_eq!(fault(&[json!({ "name": "l", "type": "symlink" })]), member(tar::Fault::NoTarget));
    assert_eq!(fault(&[json!({ "name": "d", "type": "socket" })]), Fault::Type);
    assert_eq!(fault(&[json!({ "name": "d" })]), Fault::Type);
    // A parent that is a file is for the merge to settle, as in tar: tests/it/formats/tocs.rs.
    listed(Format::ZstdChunked, &[listed_file("a", 1, 512), json!({ "name": "a/b", "type": "dir" })])
        .expect("as in tar");
}

#[test]
fn names_that_json_cannot_say_are_refused() {
    assert_eq!(fault(&[json!({ "name": "caf\u{fffd}", "type": "dir" })]), Fault::Name);
    assert_eq!(fault(&[json!({ "name": "l", "type": "symlink", "linkName": "\u{fffd}" })]), Fault::Name);
    assert_eq!(fault(&[json!({ "name": "d", "type": "dir", "xattrs": { "user.\u{fffd}": "" } })]), Fault::Name);
}

#[test]
fn documents_of_another_shape_are_refused() {
    for text in [
        "",
        "{}",
        "[]",
        "null",
        "{\"version\":1}",
        "{\"entries\":[]}",
        "{\"version\":2,\"entries\":[]}",
        "{\"version\":1,\"entries\":[],\"entries\":[]}",
        "{\"version\":1,\"version\":1,\"entries\":[]}",
        "{\"version\":1,\"entries\":{}}",
        "{\"version\":1,\"entries\":[null]}",
        "{\"version\":1,\"entries\":[1]}",
        "{\"version\":1,\"entries\":[{\"name\":\"a\",\"name\":\"b\",\"type\":\"dir\"}]}",
        "{\"version\":1,\"entries\":[]} x",
        "{\"version\":1,\"entries\":[",
    ] {
        let refused = read(Format::Estargz, text.as_bytes(), 100);
        assert!(matches!(refused, Err(Error::Json(_))), "{text}: {refused:?}");
    }
    let deep = |key: &str| {
        let nested = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
        format!("{{\"version\":1,\"x\":1,\"entries\":[{{\"name\":\"d\",\"type\":\"dir\",\"{key}\":{nested}}}]}}")
    };
    read(Format::Estargz, deep("NumLink").as_bytes(), 100).expect("what nobody reads is passed over");
    assert!(matches!(read(Format::Estargz, deep("xattrs").as_bytes(), 100), Err(Error::Json(_))));
}

#[test]
fn entries_are_counted() {
    let one = r#"{"name":"a","type":"dir"}"#;
    let text = |count: usize| format!("{{\"version\":1,\"entries\":[{}]}}", vec![one; count].join(","));
    assert_eq!(read(Format::Estargz, text(TOC_ENTRIES + 1).as_bytes(), 100).err(), Some(Error::Entries));
    assert_eq!(read(Format::Estargz, text(1000).as_bytes(), 100).expect("few").entries.len(), 1000);
}

#[test]
fn d_017_a_document_that_unpacks_to_too_much_is_refused() {
    let mut bomb = zstd::Encoder::new(Vec::new(), 1).expect("an encoder");
    let mib = vec![0; 1 << 20];
    (0..=TOC_BYTES >> 20).for_each(|_| std::io::Write::write_all(&mut bomb, &mib).expect("memory can be compressed"));
    let bomb = bomb.finish().expect("memory can be compressed");
    assert_eq!(zstd_chunked::document(&bomb, None), Err(Error::Length));
    assert_eq!(zstd_chunked::document(&bomb, Some(1000)), Err(Error::Length));
    let small = zstd::encode_all(&b"{}"[..], 1).expect("memory can be compressed");
    assert_eq!(zstd_chunked::document(&small, Some(2)).expect("a document"), b"{}");
    assert_eq!(zstd_chunked::document(&small[..small.len() - 1], Some(2)), Err(Error::Compressed));
    assert_eq!(zstd_chunked::document(b"no zstd", None), Err(Error::Compressed));
    let mut archive = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut put = |bytes: &[u8]| std::io::Write::write_all(&mut archive, bytes).expect("memory can be compressed");
    let mut header = ::tar::Header::new_ustar();
    header.set_path("stargz.index.json").expect("a name");
    header.set_size(TOC_BYTES + 1);
    header.set_mode(0);
    header.set_entry_type(::tar::EntryType::Regular);
    header.set_cksum();
    put(header.as_bytes());
    (0..=TOC_BYTES >> 20).for_each(|_| put(&mib));
    let bomb = archive.finish().expect("memory can be compressed");
    assert_eq!(estargz::document(&bomb), Err(Error::Length));
}

#[test]
fn archives_without_a_document_are_refused() {
    assert_eq!(estargz::document(&writer::gzip(&writer::file_member("other", b"{}"))), Err(Error::Missing));
    assert_eq!(estargz::document(&writer::gzip(&[])), Err(Error::Missing));
    assert!(matches!(estargz::document(&writer::gzip(&[1; 512])), Err(Error::Archive(_))));
    assert_eq!(estargz::document(b"no gzip"), Err(Error::Compressed));
    let whole = writer::gzip(&writer::file_member("stargz.index.json", b"{}"));
    assert_eq!(estargz::document(&whole).expect("a document"), b"{}");
    assert_eq!(estargz::document(&whole[..whole.len() - 1]), Err(Error::Compressed));
    // What follows the first member is no part of the archive.
    let more = [whole, writer::gzip(&writer::file_member("stargz.index.json", b"[]"))].concat();
    assert_eq!(estargz::document(&more).expect("a document"), b"{}");
}
