//! Files with holes, in the four encodings (A-163 to A-165, D-012, D-013).

use super::raw::{Raw, extended, pax, record};
use super::{Seen, entry, fault, parse};
use crate::limits;
use crate::tar::header::BLOCK;
use crate::tar::{Entry, Fault, Kind, Segment};

/// Region of a file: offset and length.
type Region = (u64, u64);

/// The same file in every encoding: `regions` of a file of `size` bytes, whose payload is `payload`.
fn encodings(size: u64, regions: &[Region], payload: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("old GNU", old_gnu(size, regions, payload)),
        ("0.0", format_00(size, regions, payload)),
        ("0.1", format_01(size, regions, payload)),
        ("1.0", format_10(size, regions, payload)),
    ]
}

fn old_gnu(size: u64, regions: &[Region], payload: &[u8]) -> Vec<u8> {
    let field = |&(offset, length): &Region| format!("{offset:011o}\0{length:011o}\0").into_bytes();
    let (inline, rest) = regions.split_at(regions.len().min(4));
    let header = Raw::new(b'S', b"sparse").gnu().payload(payload);
    let header = header.field(386, &inline.iter().flat_map(field).collect::<Vec<_>>());
    let header = header.field(482, &[u8::from(!rest.is_empty())]).field(483, format!("{size:011o}\0").as_bytes());
    let mut bytes = header.bytes();
    let mut at = BLOCK;
    let extensions: Vec<_> = rest.chunks(21).collect();
    for (index, regions) in extensions.iter().enumerate() {
        let mut block: Vec<u8> = regions.iter().flat_map(field).collect();
        block.resize(BLOCK, 0);
        block[504] = u8::from(index + 1 < extensions.len());
        bytes.splice(at..at, block);
        at += BLOCK;
    }
    bytes
}

fn format_00(size: u64, regions: &[Region], payload: &[u8]) -> Vec<u8> {
    let mut records = record("GNU.sparse.size", size.to_string().as_bytes());
    records.extend(record("GNU.sparse.numblocks", regions.len().to_string().as_bytes()));
    for (offset, length) in regions {
        records.extend(record("GNU.sparse.offset", offset.to_string().as_bytes()));
        records.extend(record("GNU.sparse.numbytes", length.to_string().as_bytes()));
    }
    [extended(b'x', &records), Raw::file("sparse", payload).bytes()].concat()
}

fn format_01(size: u64, regions: &[Region], payload: &[u8]) -> Vec<u8> {
    let numbers = regions.iter().map(|(offset, length)| format!("{offset},{length}"));
    let (size, count) = (size.to_string(), regions.len().to_string());
    let records = pax(&[
        ("GNU.sparse.name", b"sparse"),
        ("GNU.sparse.size", size.as_bytes()),
        ("GNU.sparse.numblocks", count.as_bytes()),
        ("GNU.sparse.map", numbers.collect::<Vec<_>>().join(",").as_bytes()),
    ]);
    [records, Raw::file("GNUSparseFile.0/x", payload).bytes()].concat()
}

fn format_10(size: u64, regions: &[Region], payload: &[u8]) -> Vec<u8> {
    let numbers = regions.iter().map(|(offset, length)| format!("{offset}\n{length}\n"));
    let map = format!("{}\n{}", regions.len(), numbers.collect::<String>());
    with_lines(size, map.as_bytes(), payload)
}

/// Format 1.0 with this map.
fn with_lines(size: u64, map: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut stored = map.to_vec();
    stored.resize(map.len().next_multiple_of(BLOCK), 0);
    stored.extend_from_slice(payload);
    let records = pax(&[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"sparse"),
        ("GNU.sparse.realsize", size.to_string().as_bytes()),
    ]);
    [records, Raw::file("GNUSparseFile.0/x", &stored).bytes()].concat()
}

/// A file's content, and its regions as the entry gives them.
fn expand(entry: &Entry, data: &[u8], stream: &[u8]) -> (Vec<u8>, Vec<Region>) {
    let Kind::Regular { size, segments, .. } = &entry.kind else { panic!("{entry:?} is no file") };
    let mut content = vec![0; usize::try_from(*size).expect("small")];
    let mut rest = data;
    let at = |offset: u64, length: u64| offset as usize..(offset + length) as usize;
    for &Segment { file_offset, layer_offset, length } in segments {
        let (bytes, later) = rest.split_at(length as usize);
        assert_eq!(bytes, &stream[at(layer_offset, length)], "the segment is where the entry says");
        content[at(file_offset, length)].copy_from_slice(bytes);
        rest = later;
    }
    assert!(rest.is_empty(), "all data belongs to a segment");
    (content, segments.iter().map(|segment| (segment.file_offset, segment.length)).collect())
}

/// Regions of `length` bytes, each after a hole as long.
fn striped(count: u64, length: u64) -> (u64, Vec<Region>, Vec<u8>) {
    let regions: Vec<_> = (0..count).map(|index| ((2 * index + 1) * length, length)).collect();
    let payload = (0..count * length).map(|index| (index % 251) as u8 + 1).collect();
    (2 * count * length + 5, regions, payload)
}

#[test]
fn a_163_a_164_all_encodings_expand_to_the_same_file() {
    for count in [1, 3, 4, 5, 25, 26, 46, 47, 300] {
        let (size, regions, payload) = striped(count, 7);
        for (encoding, bytes) in encodings(size, &regions, &payload) {
            let stream = super::raw::archive(&[bytes, Raw::file("next", b"next").bytes()]);
            let Seen(seen) = parse(&stream).unwrap_or_else(|error| panic!("{encoding}, {count} regions: {error}"));
            let [(sparse, data), (next, after)] = &seen[..] else { panic!("two entries") };
            let (content, found) = expand(sparse, data, &stream);
            assert_eq!(found, regions, "{encoding}");
            assert_eq!(content.len() as u64, size, "{encoding}");
            assert!(content.iter().filter(|&&byte| byte != 0).eq(&payload), "{encoding}");
            assert_eq!((&sparse.path[..], &next.path[..], &after[..]), (&b"sparse"[..], &b"next"[..], &b"next"[..]));
        }
    }
}

#[test]
fn a_163_a_file_may_be_one_hole() {
    for bytes in [old_gnu(9, &[], b""), format_10(9, &[], b""), format_01(9, &[(9, 0)], b"")] {
        assert_eq!(entry(&[bytes]).kind, Kind::Regular { size: 9, segments: Vec::new(), content: None });
    }
    // Formats 0.0 and 0.1 are recognised by their map, as in Go: without one it is an ordinary file.
    for bytes in [format_00(9, &[], b""), format_01(9, &[], b"")] {
        assert!(matches!(entry(&[bytes]).kind, Kind::Regular { size: 0, .. }));
    }
}

#[test]
fn a_163_empty_regions_are_left_out_and_adjacent_ones_joined() {
    let regions = [(0, 0), (0, 2), (2, 3), (5, 0), (9, 1), (20, 0)];
    for (encoding, bytes) in encodings(20, &regions, b"abcdef") {
        // A region of offset and length 0 does not end a GNU map: its first byte is a digit.
        let Kind::Regular { size, segments, .. } = entry(&[bytes]).kind else { panic!("{encoding}: no file") };
        let found: Vec<_> = segments.iter().map(|segment| (segment.file_offset, segment.length)).collect();
        assert_eq!((size, &found[..]), (20, &[(0, 5), (9, 1)][..]), "{encoding}");
    }
}

#[test]
fn a_164_an_extension_block_may_be_empty() {
    let header = Raw::new(b'S', b"s").gnu().payload(b"").field(482, &[1]).field(483, b"00000000012\0");
    let bytes = [header.bytes(), [&[0; 504][..], &[1; 8]].concat(), vec![0; BLOCK]].concat();
    assert_eq!(entry(&[bytes]).kind, Kind::Regular { size: 10, segments: Vec::new(), content: None });
}

#[test]
fn a_164_an_old_sparse_file_must_have_a_gnu_header() {
    assert_eq!(fault(&[Raw::new(b'S', b"s").bytes()]), Fault::SparseMap);
}

#[test]
fn a_165_maps_that_make_no_sense_are_rejected() {
    let bad: [(&str, u64, &[Region], &[u8]); 7] = [
        ("overlapping", 20, &[(0, 3), (2, 3)], b"abcdef"),
        ("out of order", 20, &[(10, 3), (2, 3)], b"abcdef"),
        ("empty and out of order", 20, &[(10, 6), (9, 0)], b"abcdef"),
        ("beyond the size", 12, &[(10, 6)], b"abcdef"),
        ("starting beyond the size", 12, &[(0, 6), (13, 0)], b"abcdef"),
        ("with less payload than regions", 20, &[(10, 7)], b"abcdef"),
        ("with more payload than regions", 20, &[(10, 5)], b"abcdef"),
    ];
    for (what, size, regions, payload) in bad {
        for (encoding, bytes) in encodings(size, regions, payload) {
            assert_eq!(fault(&[bytes]), Fault::SparseMap, "{encoding}, {what}");
        }
    }
}

#[test]
fn a_165_negative_numbers_are_rejected() {
    let numbers = |size: &str, map: &str| {
        let records: [(&str, &[u8]); 3] =
            [("GNU.sparse.size", size.as_bytes()), ("GNU.sparse.numblocks", b"1"), ("GNU.sparse.map", map.as_bytes())];
        fault(&[pax(&records), Raw::file("s", b"").bytes()])
    };
    assert_eq!(numbers("-1", "0,0"), Fault::SparseMap);
    assert_eq!(numbers("1", "-1,1"), Fault::SparseMap);
    assert_eq!(numbers("1", "1,-1"), Fault::SparseMap);
    assert_eq!(numbers("x", "0,0"), Fault::Record);
    let old = Raw::new(b'S', b"s").gnu().field(386, &[0xff; 24]);
    assert_eq!(fault(&[old.clone().bytes()]), Fault::SparseMap);
    assert_eq!(fault(&[old.field(483, &[0xff; 12]).bytes()]), Fault::SparseMap);
}

#[test]
fn a_165_malformed_records_of_a_map_are_rejected() {
    let map = |records: &[(&str, &[u8])]| fault(&[pax(records), Raw::file("s", b"").bytes()]);
    for text in ["", "0", "0,0,0", "0,0,0,0", "0,x", ",", "0,0,"] {
        let records: [(&str, &[u8]); 4] = [
            ("GNU.sparse.major", b"0"),
            ("GNU.sparse.minor", b"1"),
            ("GNU.sparse.numblocks", b"1"),
            ("GNU.sparse.map", text.as_bytes()),
        ];
        assert_eq!(map(&records), Fault::SparseMap, "{text:?}");
    }
    assert_eq!(map(&[("GNU.sparse.map", b"0,0")]), Fault::SparseMap, "without a count");
    assert_eq!(map(&[("GNU.sparse.numbytes", b"0"), ("GNU.sparse.offset", b"0")]), Fault::Record);
    assert_eq!(map(&[("GNU.sparse.offset", b"0"), ("GNU.sparse.offset", b"0")]), Fault::Record);
}

#[test]
fn a_165_malformed_lines_of_a_map_are_rejected() {
    for lines in [&b"\n"[..], b"1\n0\n\n", b"1\n-0\n6\n", b"x\n", b"1\n0\n6", b"1\n0 \n6\n", b"9223372036854775808\n"] {
        assert_eq!(fault(&[with_lines(20, lines, b"abcdef")]), Fault::SparseMap, "{}", lines.escape_ascii());
    }
    // The map must end before the payload does.
    let records = pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0")]);
    let short = [records, Raw::file("s", b"1\n").bytes(), Raw::file("t", b"").bytes()];
    assert_eq!(fault(&short), Fault::SparseMap);
}

#[test]
fn a_165_only_files_can_be_sparse() {
    let records = pax(&[("GNU.sparse.map", b"0,0"), ("GNU.sparse.numblocks", b"1")]);
    assert_eq!(fault(&[records, Raw::new(b'5', b"d").bytes()]), Fault::SparseMap);
}

#[test]
fn an_unknown_sparse_version_is_an_ordinary_file() {
    let records = pax(&[("GNU.sparse.major", b"2"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.name", b"name")]);
    let made = entry(&[records, Raw::file("f", b"abc").bytes()]);
    assert_eq!(made.path, b"f");
    assert!(matches!(made.kind, Kind::Regular { size: 3, .. }));
}

#[test]
fn d_012_a_map_has_a_bounded_number_of_regions() {
    let count = limits::SPARSE_REGIONS;
    let lines = |count: usize| format!("{count}\n{}", "0\n0\n".repeat(count));
    assert_eq!(fault(&[with_lines(1, lines(count + 1).as_bytes(), b"")]), Fault::SparseRegions);
    assert_eq!(fault(&[with_lines(1, b"9223372036854775807\n", b"")]), Fault::SparseRegions);
    assert!(matches!(entry(&[with_lines(1, lines(count).as_bytes(), b"")]).kind, Kind::Regular { size: 1, .. }));
    let regions = vec![(0, 0); count + 1];
    assert_eq!(fault(&[old_gnu(1, &regions, b"")]), Fault::SparseRegions);
}

#[test]
fn d_013_a_hole_of_2_to_the_62_bytes_is_only_a_number() {
    let size = 1 << 62;
    let segments = |offset| vec![Segment { file_offset: size - 3, layer_offset: offset, length: 3 }];
    let expected = |offset| Kind::Regular { size, segments: segments(offset), content: None };
    assert_eq!(entry(&[format_01(size, &[(size - 3, 3)], b"end")]).kind, expected(1536));
    assert_eq!(entry(&[format_10(size, &[(size - 3, 3)], b"end")]).kind, expected(2048));
}

#[test]
fn a_037_the_payload_of_a_sparse_whiteout_is_skipped() {
    let (size, regions, payload) = striped(30, 7);
    let mut hidden = old_gnu(size, &regions, &payload);
    // Renames "sparse" to ".wh.se": the sum of the bytes changes by as much as is put into another field.
    let before: u32 = hidden[..6].iter().map(|&byte| u32::from(byte)).sum();
    hidden[..6].copy_from_slice(b".wh.se");
    let after: u32 = hidden[..6].iter().map(|&byte| u32::from(byte)).sum();
    hidden[265..268].copy_from_slice(&[0; 3]);
    let mut missing = before - after;
    for byte in &mut hidden[265..268] {
        *byte = missing.min(255) as u8;
        missing -= u32::from(*byte);
    }
    let seen = super::contents(&[hidden, Raw::file("f", b"shown").bytes()]);
    assert_eq!(seen, [("se".to_owned(), Vec::new()), ("f".to_owned(), b"shown".to_vec())]);
}
