//! The container format (A7, without sparse files).

use super::raw::{Raw, archive, extended, pax, record};
use super::{contents, entries, entry, fault, fault_of, is_file, parse};
use crate::limits;
use crate::tar::header::BLOCK;
use crate::tar::{Error, Fault, Kind, Parser, Segment};

fn file() -> Vec<u8> {
    Raw::file("f", b"content").bytes()
}

fn zeros(blocks: usize) -> Vec<u8> {
    vec![0; blocks * BLOCK]
}

/// Entry count of a stream, of whatever end.
fn count(stream: &[u8]) -> usize {
    parse(stream).expect("valid").0.len()
}

#[test]
fn a_150_an_empty_stream_is_an_empty_layer() {
    assert_eq!(count(b""), 0);
}

#[test]
fn a_151_a_152_any_number_of_zero_blocks_ends_an_archive() {
    for blocks in [0, 1, 2, 20] {
        assert_eq!(count(&zeros(blocks)), 0, "{blocks} zero blocks");
        assert_eq!(count(&[file(), zeros(blocks)].concat()), 1, "a file and {blocks} zero blocks");
    }
}

#[test]
fn a_153_a_header_after_one_zero_block_is_rejected() {
    let stream = [file(), zeros(1), file()].concat();
    assert_eq!(parse(&stream), Err(Error::Header { offset: 1536, fault: Fault::AfterZeroBlock }));
}

#[test]
fn a_154_what_follows_two_zero_blocks_is_ignored() {
    assert_eq!(count(&[file(), zeros(2), file(), b"junk".to_vec()].concat()), 1);
}

#[test]
fn a_155_a_stream_may_end_only_between_members_or_in_padding() {
    let stream = [pax(&[("mtime", b"5")]), file()].concat();
    let payload_end = 3 * BLOCK + b"content".len();
    for length in 0..=stream.len() {
        // After the records' last byte there is only padding, and records that nothing follows have no effect.
        let is_whole = length == 0 || (BLOCK + 11..=2 * BLOCK).contains(&length) || length >= payload_end;
        match parse(&stream[..length]) {
            Ok(_) => assert!(is_whole, "{length} bytes"),
            Err(Error::Header { fault, .. } | Error::Entry { fault, .. }) => {
                assert!(fault == Fault::Truncated && !is_whole, "{length} bytes: {fault}");
            }
        }
    }
    assert_eq!(fault_of(&[file(), vec![0; 700]].concat()), Fault::Truncated);
}

#[test]
fn a_155_a_truncated_payload_is_reported_with_its_entry() {
    let error = parse(&file()[..515]).expect_err("the payload has 7 bytes");
    assert_eq!(error, Error::Entry { path: "f".to_owned(), offset: 0, fault: Fault::Truncated });
    assert_eq!(error.to_string(), "tar entry \"f\" at offset 0: the stream ends in the middle of it");
}

#[test]
fn a_156_the_checksum_may_be_of_signed_or_unsigned_bytes() {
    let odd = Raw::new(b'0', b"\xe9\xff\x80");
    assert_eq!(entry(&[odd.clone().bytes()]).path, b"\xe9\xff\x80");
    assert_eq!(entry(&[odd.clone().bytes_with_signed_sum()]).path, b"\xe9\xff\x80");
    for sum in ["000000\0 ", "012345\0 ", "        ", "abcdefgh"] {
        assert_eq!(fault(&[odd.clone().bytes_with_sum(sum)]), Fault::Checksum, "{sum:?}");
    }
    let mut flipped = file();
    flipped[0] ^= 1;
    assert_eq!(fault(&[flipped]), Fault::Checksum);
}

#[test]
fn a_157_all_dialects_give_the_same_entry() {
    let plain = Raw::file("a/f", b"content").field(108, b"0000007").field(136, b"00000000042");
    let expected = entry(&[plain.clone().bytes()]);
    assert_eq!((expected.uid, expected.mtime.seconds), (7, 0o42));
    assert_eq!(entry(&[plain.clone().v7().bytes()]), expected);
    assert_eq!(entry(&[plain.clone().gnu().bytes()]), expected);
    let split = plain.field(0, b"f\0\0").field(345, b"a");
    assert_eq!(entry(&[split.clone().bytes()]), expected);
    let star = split.field(476, b"00000000001 00000000002 ").field(508, b"tar\0");
    assert_eq!(entry(&[star.bytes()]), expected);
}

#[test]
fn a_158_sizes_may_be_base_256_or_in_a_pax_record() {
    let size = [&[0x80, 0, 0, 0, 0, 0, 0, 0][..], &7_u32.to_be_bytes()].concat();
    let parts = [
        Raw::file("a", b"content").field(124, &size).bytes(),
        pax(&[("size", b"7")]),
        Raw::file("b", b"content").size(3).bytes(),
        Raw::file("c", b"end").bytes(),
    ];
    let seen = contents(&parts);
    assert_eq!(seen.iter().map(|(_, data)| &data[..]).collect::<Vec<_>>(), [&b"content"[..], b"content", b"end"]);
}

#[test]
fn a_158_a_file_beyond_8_gib_is_placed_where_it_is() {
    let size = 10_u64 << 30;
    let header = [pax(&[("size", size.to_string().as_bytes())]), Raw::file("big", b"").bytes()].concat();
    let mut seen = super::Seen::default();
    let mut parser = Parser::new();
    parser.push(&header, &mut seen).expect("valid");
    let segments = vec![Segment { file_offset: 0, layer_offset: 1536, length: size }];
    assert_eq!(seen.0[0].0.kind, Kind::Regular { size, segments, content: None });
}

#[test]
fn a_159_an_empty_record_gives_the_field_back() {
    let records = [record("path", b"long"), record("path", b""), record("uid", b""), record("mtime", b"")].concat();
    let made = entry(&[extended(b'x', &records), Raw::file("short", b"").field(108, b"0000007").bytes()]);
    assert_eq!((&made.path[..], made.uid), (&b"short"[..], 7));
}

#[test]
fn a_160_the_last_of_two_extended_headers_replaces_the_first() {
    let parts = [pax(&[("path", b"a"), ("uid", b"1")]), pax(&[("gid", b"2")]), file()];
    let made = entry(&parts);
    assert_eq!((&made.path[..], made.uid, made.gid), (&b"f"[..], 0, 2));
    assert_eq!(entry(&[pax(&[("path", b"a")]), extended(b'x', b""), file()]).path, b"f");
}

#[test]
fn a_161_the_last_gnu_long_name_beats_all_others() {
    let (first, last) = (extended(b'L', b"first\0"), extended(b'L', b"last\0rest"));
    let path = pax(&[("path", b"pax"), ("linkpath", b"pax")]);
    let link = Raw::link(b'2', "f", "t").gnu().bytes();
    let parts = [first, last, path.clone(), extended(b'K', b"one"), extended(b'K', b"two\0"), link.clone()];
    let made = entry(&parts);
    assert_eq!((&made.path[..], &made.kind), (&b"last"[..], &Kind::Symlink { target: b"two".to_vec() }));
    // An empty one says nothing.
    let made = entry(&[extended(b'L', b"\0x"), extended(b'K', b""), path, link]);
    assert_eq!((&made.path[..], &made.kind), (&b"pax"[..], &Kind::Symlink { target: b"pax".to_vec() }));
}

#[test]
fn overrides_last_for_one_member() {
    let parts = [pax(&[("path", b"a")]), extended(b'K', b"t"), file(), Raw::link(b'2', "l", "u").bytes()];
    let made = entries(&parts);
    assert_eq!((&made[0].path[..], &made[1].path[..]), (&b"a"[..], &b"l"[..]));
    assert_eq!(made[1].kind, Kind::Symlink { target: b"u".to_vec() });
}

#[test]
fn a_162_a_global_header_is_ignored() {
    let global = extended(b'g', &[record("comment", b"abc"), record("uid", b"7"), record("path", b"x")].concat());
    let parts = [global.clone(), file(), pax(&[("path", b"g")]), global, file()];
    let made = entries(&parts);
    assert_eq!(
        made.iter().map(|entry| (&entry.path[..], entry.uid)).collect::<Vec<_>>(),
        [(&b"f"[..], 0), (&b"g"[..], 0)]
    );
    assert_eq!(fault(&[extended(b'g', b"nonsense")]), Fault::Record);
}

#[test]
fn a_166_a_contiguous_file_is_a_file() {
    let made = contents(&[Raw::new(b'7', b"f").payload(b"content").bytes()]);
    assert_eq!(made, [("f".to_owned(), b"content".to_vec())]);
    assert!(is_file(&entry(&[Raw::new(b'7', b"d/").bytes()])));
}

#[test]
fn a_167_unsupported_types_are_rejected() {
    for typeflag in *b"VMDNZAXI8a\xff" {
        assert_eq!(fault(&[Raw::new(typeflag, b"f").bytes()]), Fault::Type(typeflag));
    }
}

#[test]
fn a_168_d_011_a_special_header_has_at_most_1_mib() {
    for typeflag in *b"xgLK" {
        let claimed = Raw::new(typeflag, b"s").size(limits::TAR_SPECIAL_BYTES + 1).bytes();
        assert_eq!(fault(&[claimed]), Fault::SpecialTooLong);
        assert_eq!(fault(&[Raw::new(typeflag, b"s").field(124, &[0xff; 12]).bytes()]), Fault::Range("size"));
    }
    let overhead = record("comment", &[b'c'; 1 << 19]).len() - (1 << 19);
    let mut records = record("comment", &vec![b'c'; (1 << 20) - overhead - 9]);
    records.extend_from_slice(&record("uid", b"3"));
    records.truncate(1 << 20);
    assert_eq!(records.len(), 1 << 20);
    assert_eq!(entry(&[extended(b'x', &records), file()]).uid, 3);
}

#[test]
fn d_011_many_records_are_only_as_much_as_a_special_header_holds() {
    let records = record("uid", b"3").repeat(100_000);
    assert_eq!(entry(&[extended(b'x', &records), file()]).uid, 3);
}

#[test]
fn a_169_octal_fields_may_be_padded_but_hold_nothing_else() {
    for text in [
        &b"     7 \0"[..],
        b"\x00\x00000007",
        b"7\0\0\0\0\0\0\0",
        b"7 \0\0\0\0\0\0",
        b"0000007\0",
        b"00000007",
        b"7\0garbag",
    ] {
        assert_eq!(entry(&[Raw::file("f", b"").field(108, text).bytes()]).uid, 7, "{text:?}");
    }
    assert_eq!(entry(&[Raw::file("f", b"").field(108, b"        ").bytes()]).uid, 0);
    for text in [&b"0000008\0"[..], b"-000007\0", b"+000007\0", b"0x00007\0", b"00 0007\0"] {
        assert_eq!(fault(&[Raw::file("f", b"").field(108, text).bytes()]), Fault::Number("uid"), "{text:?}");
    }
}

#[test]
fn a_169_base_256_fields_must_fit_64_bits() {
    let size = |field: [u8; 12]| fault(&[Raw::file("f", b"").field(124, &field).bytes()]);
    assert_eq!(size([0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]), Fault::Number("size"));
    assert_eq!(size([0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0]), Fault::Number("size"));
    assert_eq!(size([0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), Fault::Number("size"));
    assert_eq!(size([0xff; 12]), Fault::Range("size"));
}

#[test]
fn a_170_a_prefix_in_a_gnu_header_is_read_where_no_times_can_be() {
    let gnu = Raw::file("f", b"").gnu();
    assert_eq!(entry(&[gnu.clone().field(345, b"some/prefix").bytes()]).path, b"some/prefix/f");
    assert_eq!(entry(&[gnu.clone().field(345, b"00000000001\x0000000000002\0").bytes()]).path, b"f");
    assert_eq!(entry(&[gnu.clone().field(345, b"pr\xe9fix").bytes()]).path, b"f");
    assert_eq!(entry(&[gnu.field(345, b"\0prefix").bytes()]).path, b"f");
}

#[test]
fn a_092_a_172_types_without_payload_have_none_whatever_their_size() {
    for typeflag in *b"123456" {
        let made = entries(&[Raw::link(typeflag, "x", "t").size(1000).bytes(), file()]);
        assert_eq!(made.len(), 2, "{}", char::from(typeflag));
    }
    // A payload that is there after all is taken for a header.
    let link = Raw::link(b'1', "x", "t").payload(b"not a header").bytes();
    assert_eq!(fault(&[link, file()]), Fault::Checksum);
}

#[test]
fn malformed_records_are_rejected() {
    for contents in [
        &b"5"[..],
        b"x path=y\n",
        b"11 path=file\n",
        b"100 path=f\n",
        b"9 path=f\n8 path=f\n",
        b"8 nokey\n",
        b"5 =v\n",
        b"4 =\n",
        b"-9 path=f\n",
        b"0 path=f\n",
        b"99999999999999999999 path=f\n",
        b"10 path=f\n\0\0\0",
        b"\n",
        b" ",
        b"1 ",
        b"2 \n",
    ] {
        assert_eq!(
            fault(&[extended(b'x', contents), file()]),
            Fault::Record,
            "{:?}",
            contents.escape_ascii().to_string()
        );
    }
}

#[test]
fn d_060_sizes_that_overflow_are_rejected_or_left_incomplete() {
    let largest = pax(&[("size", i64::MAX.to_string().as_bytes())]);
    assert_eq!(fault(&[largest.clone(), file()]), Fault::Truncated);
    let hole: [(&str, &[u8]); 4] = [
        ("size", b"9223372036854775807"),
        ("GNU.sparse.numblocks", b"1"),
        ("GNU.sparse.map", b"9223372036854775807,9223372036854775807"),
        ("GNU.sparse.size", b"9223372036854775807"),
    ];
    assert_eq!(fault(&[pax(&hole), file()]), Fault::SparseMap);
    assert_eq!(fault(&[pax(&[("size", b"9223372036854775808")]), file()]), Fault::Record);
    assert_eq!(fault(&[pax(&[("size", b"-1")]), file()]), Fault::Range("size"));
}

#[test]
fn after_an_error_the_error_is_all_there_is() {
    let mut parser = Parser::new();
    let mut seen = super::Seen::default();
    let bad = archive(&[Raw::new(b'Z', b"f").bytes(), file()]);
    let error = parser.push(&bad, &mut seen).expect_err("Z is no type");
    assert_eq!(parser.push(&file(), &mut seen), Err(error.clone()));
    assert_eq!(parser.finish(), Err(error));
    assert!(seen.0.is_empty());
}
