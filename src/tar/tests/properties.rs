//! What holds for every stream: pieces of any size give the same entries, no bytes make the parser panic, and what the
//! writer writes comes back.

use std::ops::Range;

use proptest::collection::vec;
use proptest::prelude::*;

use super::raw::{Raw, archive, extended, pax};
use super::{Seen, parse, parse_in_pieces};
use crate::tar::{Entry, Kind, Parser, Timestamp, Writer, Xattr};

/// A valid archive with something of everything.
fn sample() -> Vec<u8> {
    let lines = [&b"2\n3\n4\n100\n4\n"[..], &[0; 500], b"abcdefgh"].concat();
    let sparse: [(&str, &[u8]); 3] =
        [("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"200")];
    let mut extension = vec![0; 512];
    extension[..24].copy_from_slice(b"00000000100\x0000000000003\0");
    archive(&[
        Raw::new(b'5', b"d/").bytes(),
        Raw::file("d/a", &[b'a'; 700]).bytes(),
        pax(&[("path", b"d/long"), ("mtime", b"1.5"), ("SCHILY.xattr.user.x", b"y"), ("size", b"512")]),
        Raw::file("d/b", &[b'b'; 512]).bytes(),
        pax(&sparse),
        Raw::file("d/sparse", &lines).bytes(),
        extended(b'L', &[b'n'; 200]),
        Raw::new(b'S', b"s").gnu().field(482, &[1]).field(483, b"00000001000\0").size(3).bytes(),
        extension,
        [&b"xyz"[..], &[0; 509]].concat(),
        extended(b'g', b"8 uid=1\n"),
        Raw::link(b'1', "h", "d/a").bytes(),
        Raw::link(b'2', "l", "d/a").bytes(),
        Raw::file(".wh.gone", b"skipped").bytes(),
        Raw::file(".wh..wh.foo", b"skipped").bytes(),
        Raw::file("last", b"end").bytes(),
    ])
}

#[test]
fn the_sample_is_valid() {
    let Seen(seen) = parse(&sample()).expect("valid");
    let sizes: Vec<_> = seen.iter().map(|(_, data)| data.len()).collect();
    assert_eq!(sizes, [0, 700, 512, 8, 3, 0, 0, 0, 3]);
}

#[test]
fn pieces_of_any_one_size_give_the_same() {
    let stream = sample();
    let whole = parse(&stream);
    for size in (1..520).chain([1023, 1024, 1025, 4096]) {
        assert_eq!(parse_in_pieces(&stream, size), whole, "pieces of {size} bytes");
    }
}

/// What a stream gives, errors included, when it is pushed in pieces that end at `cuts`.
fn outcome(stream: &[u8], cuts: &[usize]) -> (Seen, Result<(), super::Error>) {
    let mut seen = Seen::default();
    let mut parser = Parser::new();
    let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % (stream.len() + 1)).collect();
    cuts.push(stream.len());
    cuts.sort_unstable();
    let mut start = 0;
    for cut in cuts {
        let result = parser.push(&stream[start..cut], &mut seen);
        if result.is_err() {
            return (seen, result);
        }
        start = cut;
    }
    (seen, parser.finish())
}

/// Replaces the checksum of the block at `at`, so that a change in it is looked at.
fn repair(stream: &mut [u8], at: usize) {
    let Some(block) = stream.get_mut(at..at + 512) else { return };
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}

/// What must hold for every entry, whatever the stream.
fn check(entry: &Entry, data: &[u8], stream: &[u8], is_complete: bool) {
    let components = || entry.path.split(|&byte| byte == b'/');
    if entry.path.is_empty() {
        assert!(matches!(entry.kind, Kind::Directory | Kind::Opaque), "{entry:?}");
    } else {
        assert!(components().all(|name| !matches!(name, b"" | b"." | b"..") && name.len() <= 255), "{entry:?}");
    }
    assert!(!entry.path.contains(&0) && entry.mode <= 0o7777 && entry.mtime.nanos < 1_000_000_000, "{entry:?}");
    assert!(entry.mtime.seconds >= 0 && entry.xattrs.is_sorted_by(|a, b| a.name < b.name), "{entry:?}");
    let Kind::Regular { size, segments, .. } = &entry.kind else {
        assert!(data.is_empty(), "{entry:?} has data");
        return;
    };
    let mut end = 0;
    let mut rest = data;
    for segment in segments {
        assert!(segment.length > 0 && segment.file_offset >= end, "{entry:?}");
        end = segment.file_offset.checked_add(segment.length).expect("no overflow");
        let taken = rest.len().min(usize::try_from(segment.length).expect("64 bits"));
        let at = segment.layer_offset as usize;
        assert!(rest[..taken].is_empty() || rest[..taken] == stream[at..at + taken], "{entry:?}");
        assert!(!is_complete || taken as u64 == segment.length, "{entry:?}");
        rest = &rest[taken..];
    }
    assert!(end <= *size && *size <= i64::MAX as u64 && rest.is_empty(), "{entry:?}");
}

fn check_all(seen: &Seen, stream: &[u8], is_complete: bool) {
    for (index, (entry, data)) in seen.0.iter().enumerate() {
        check(entry, data, stream, is_complete || index + 1 < seen.0.len());
    }
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let component = prop_oneof![
        4 => vec(prop_oneof![Just(b'a'), Just(b'.'), Just(b' '), Just(0xff), Just(b'\n')], 1..5),
        1 => vec(1..=255_u8, 1..=255),
    ]
    .prop_filter("must be a name as the tree has them", |name| {
        !name.contains(&b'/') && !matches!(&name[..], b"." | b"..") && !name.starts_with(b".wh.")
    });
    vec(component, 1..4).prop_map(|components| components.join(&b'/'))
}

/// A kind, with content if it is a file.
fn kind() -> impl Strategy<Value = (Kind, Vec<u8>)> {
    let empty = |kind| (kind, Vec::new());
    let file = |content: Vec<u8>| {
        let size = content.len() as u64;
        (Kind::Regular { size, segments: Vec::new(), content: None }, content)
    };
    prop_oneof![
        4 => vec(any::<u8>(), 0..1500).prop_map(file),
        1 => Just(empty(Kind::Directory)),
        1 => vec(1..=255_u8, 1..300).prop_map(move |target| empty(Kind::Symlink { target })),
        1 => name().prop_map(move |target| empty(Kind::HardLink { target })),
        1 => any::<(u32, u32)>().prop_map(move |(major, minor)| empty(Kind::CharDevice { major, minor })),
        1 => any::<(u32, u32)>().prop_map(move |(major, minor)| empty(Kind::BlockDevice { major, minor })),
        1 => Just(empty(Kind::Fifo)),
        1 => Just(empty(Kind::Whiteout)),
        1 => Just(empty(Kind::Opaque)),
    ]
}

fn entry() -> impl Strategy<Value = (Entry, Vec<u8>)> {
    let times = (0..9_223_372_036_i64, prop_oneof![Just(0), 0..1_000_000_000_u32]);
    let xattrs = vec((vec(prop_oneof![Just(b'a'), Just(0xff), Just(b' ')], 1..9), vec(any::<u8>(), 0..40)), 0..4);
    (name(), kind(), 0..0o10000_u16, any::<(u32, u32)>(), times, xattrs).prop_map(
        |(path, (kind, content), mode, (uid, gid), (seconds, nanos), xattrs)| {
            let is_marker = matches!(kind, Kind::Whiteout | Kind::Opaque);
            let has_user = matches!(kind, Kind::Directory | Kind::Regular { .. });
            let name = |name: Vec<u8>| [&b"user."[..], &name].concat();
            let mut xattrs: Vec<_> =
                xattrs.into_iter().map(|(key, value)| Xattr { name: name(key), value }).filter(|_| has_user).collect();
            xattrs.sort_by(|a: &Xattr, b| a.name.cmp(&b.name));
            xattrs.dedup_by(|a, b| a.name == b.name);
            let mode = if matches!(kind, Kind::Symlink { .. }) { 0o777 } else { mode };
            let entry = Entry { path, kind, mode, uid, gid, mtime: Timestamp { seconds, nanos }, xattrs };
            (if is_marker { plain(entry) } else { entry }, content)
        },
    )
}

/// Without attributes, as markers are.
fn plain(entry: Entry) -> Entry {
    Entry { mode: 0, uid: 0, gid: 0, mtime: Timestamp::default(), ..entry }
}

proptest! {
    #[test]
    fn what_the_writer_writes_comes_back(written in vec(entry(), 0..12)) {
        let mut writer = Writer::new(Vec::new());
        for (entry, content) in &written {
            writer.append(entry, &content[..]).expect("memory takes everything");
        }
        let stream = writer.finish().expect("memory takes everything");
        let mut seen = parse(&stream).expect("valid");
        check_all(&seen, &stream, true);
        for (entry, _) in &mut seen.0 {
            if let Kind::Regular { segments, .. } = &mut entry.kind {
                prop_assert!(segments.iter().all(|segment| segment.file_offset == 0));
                segments.clear();
            }
        }
        prop_assert_eq!(seen.0, written);
    }

    #[test]
    fn pieces_of_any_size_give_the_same(cuts in vec(any::<usize>(), 0..40)) {
        let stream = sample();
        prop_assert_eq!(outcome(&stream, &cuts), outcome(&stream, &[]));
    }

    #[test]
    fn arbitrary_bytes_never_panic(stream in vec(any::<u8>(), 0..3000), cuts in vec(any::<usize>(), 0..4)) {
        prop_assert_eq!(outcome(&stream, &cuts), outcome(&stream, &[]));
    }

    #[test]
    fn arbitrary_headers_never_panic(
        fields in vec((0..500_usize, vec(any::<u8>(), 1..12)), 0..6),
        typeflag in proptest::sample::select(&b"\x0001234567xgLKS"[..]),
        size in prop_oneof![0..600_u64, any::<u64>().prop_map(|size| size >> 31)],
        rest in vec(any::<u8>(), 0..1500),
    ) {
        let header = fields.iter().fold(Raw::new(typeflag, b"name").gnu(), |header, (at, bytes)| header.field(*at, bytes));
        let stream = [header.size(size).bytes(), rest].concat();
        let (seen, result) = outcome(&stream, &[]);
        check_all(&seen, &stream, result.is_ok());
    }

    #[test]
    fn a_damaged_archive_gives_an_error_or_sound_entries(
        changes in vec((any::<usize>(), any::<u8>()), 1..8),
        interesting in vec((any::<usize>(), proptest::sample::select(&b"\0 \n,-0189=/.x\x80\xff"[..])), 0..8),
        removed in proptest::option::of((any::<usize>(), 1..4_usize)),
        cuts in vec(any::<usize>(), 0..4),
    ) {
        let mut stream = sample();
        for (at, byte) in changes.into_iter().chain(interesting) {
            let at = at % stream.len();
            stream[at] = byte;
            // Only headers have a magic.
            let block = at / 512 * 512;
            if stream[block + 257..].starts_with(b"ustar") {
                repair(&mut stream, block);
            }
        }
        if let Some((at, blocks)) = removed {
            let start = at % (stream.len() / 512) * 512;
            let gone: Range<usize> = start..(start + blocks * 512).min(stream.len());
            stream.drain(gone);
        }
        let (seen, result) = outcome(&stream, &[]);
        check_all(&seen, &stream, result.is_ok());
        prop_assert_eq!(outcome(&stream, &cuts), (seen, result));
    }
}
