//! Names and whiteouts (A1, A5).

use super::raw::{Raw, extended, pax};
use super::{contents, entries, entry, fault, is_file};
use crate::tar::{Fault, Kind};

fn path_of(raw: &str) -> Vec<u8> {
    entry(&[Raw::new(b'5', raw.as_bytes()).bytes()]).path
}

/// Paths and kinds of an archive with one empty file of each name.
fn kinds(names: &[&str]) -> Vec<(String, Kind)> {
    let parts: Vec<_> = names.iter().map(|name| Raw::file(name, b"").bytes()).collect();
    entries(&parts).into_iter().map(|entry| (String::from_utf8(entry.path).expect("UTF-8"), entry.kind)).collect()
}

#[test]
fn a_001_a_whiteout_names_the_hidden_thing() {
    assert_eq!(
        kinds(&["a/b/.wh.c", ".wh.d"]),
        [("a/b/c".to_owned(), Kind::Whiteout), ("d".to_owned(), Kind::Whiteout)]
    );
}

#[test]
fn a_021_a_whiteout_is_cleaned_before_it_is_recognised() {
    for name in ["dne/../.wh.etc", ".wh.etc/", "./.wh.etc/.", "/../.wh.etc"] {
        assert_eq!(kinds(&[name]), [("etc".to_owned(), Kind::Whiteout)], "{name}");
    }
}

#[test]
fn a_022_an_opaque_marker_names_its_directory() {
    assert_eq!(kinds(&["d/e/.wh..wh..opq"]), [("d/e".to_owned(), Kind::Opaque)]);
}

#[test]
fn a_027_an_opaque_marker_at_the_root_names_the_root() {
    assert_eq!(kinds(&[".wh..wh..opq"]), [(String::new(), Kind::Opaque)]);
}

#[test]
fn a_031_a_whiteout_of_nothing_is_rejected() {
    for name in [".wh.", "d/.wh.", ".wh./", ".wh..wh.orph/.wh."] {
        assert_eq!(fault(&[Raw::file(name, b"").bytes()]), Fault::Whiteout, "{name}");
    }
}

#[test]
fn a_032_d_003_a_whiteout_of_the_directory_or_its_parent_is_rejected() {
    for name in [".wh..", ".wh...", "etc/.wh..", "etc/.wh...", "x/../.wh..."] {
        assert_eq!(fault(&[Raw::file(name, b"").bytes()]), Fault::Whiteout, "{name}");
    }
}

#[test]
fn a_033_a_whiteout_can_hide_a_name_that_starts_with_a_dot() {
    assert_eq!(
        kinds(&[".wh..baz", ".wh....", ".wh.wh"]),
        [(".baz".to_owned(), Kind::Whiteout), ("...".to_owned(), Kind::Whiteout), ("wh".to_owned(), Kind::Whiteout)]
    );
}

#[test]
fn a_034_other_aufs_names_are_nothing() {
    let parts = [
        Raw::file("d/.wh..wh.foo", b"payload").bytes(),
        Raw::file(".wh..wh.foo", b"payload").bytes(),
        Raw::file("d/.wh..wh.", b"").bytes(),
        Raw::file("f", b"shown").bytes(),
    ];
    assert_eq!(contents(&parts), [("f".to_owned(), b"shown".to_vec())]);
}

#[test]
fn a_035_of_the_aufs_directories_only_link_contents_are_kept() {
    let parts = [
        Raw::file(".wh..wh.aufs", b"").bytes(),
        Raw::new(b'5', b".wh..wh.orph/").bytes(),
        Raw::file(".wh..wh.orph/x", b"orphan").bytes(),
        Raw::new(b'5', b"./.wh..wh.plnk/").bytes(),
        Raw::file(".wh..wh.plnk/1.2", b"content").bytes(),
        Raw::link(b'1', ".wh..wh.plnk/3.4", "x").bytes(),
        Raw::file(".wh..wh.plnk/d/x", b"deep").bytes(),
        Raw::link(b'1', "x", ".wh..wh.plnk/1.2").bytes(),
    ];
    assert_eq!(contents(&parts), [(".wh..wh.plnk/1.2".to_owned(), b"content".to_vec()), ("x".to_owned(), Vec::new())]);
    assert_eq!(entries(&parts)[1].kind, Kind::HardLink { target: b".wh..wh.plnk/1.2".to_vec() });
}

#[test]
fn a_036_only_the_last_component_makes_a_whiteout() {
    assert_eq!(path_of(".wh.etc/some"), b".wh.etc/some");
    assert_eq!(path_of("d/.wh..wh.foo/bar"), b"d/.wh..wh.foo/bar");
    assert_eq!(path_of("a.wh.b"), b"a.wh.b");
}

#[test]
fn a_037_a_whiteout_of_any_type_is_one_and_its_payload_is_skipped() {
    let parts = [
        Raw::file(".wh.a", b"payload").bytes(),
        Raw::new(b'5', b".wh.b/").bytes(),
        Raw::link(b'2', ".wh.c", "").bytes(),
        Raw::link(b'1', ".wh.d", "nowhere").bytes(),
        Raw::new(b'3', b".wh.e").bytes(),
        Raw::file("f", b"shown").bytes(),
    ];
    let seen = contents(&parts);
    assert_eq!(seen.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>(), ["a", "b", "c", "d", "e", "f"]);
    assert!(seen[..5].iter().all(|(_, data)| data.is_empty()));
    assert!(entries(&parts)[..5].iter().all(|entry| entry.kind == Kind::Whiteout));
    assert_eq!(seen[5].1, b"shown");
}

#[test]
fn a_071_a_100_names_are_cleaned_lexically() {
    for name in ["/etc/x", "./etc/x", "etc//x", "etc/./x", "a/../etc/x", "a/b/../../etc/x/", "///etc/x/."] {
        assert_eq!(path_of(name), b"etc/x", "{name}");
    }
}

#[test]
fn a_077_d_002_a_root_that_is_no_directory_is_rejected() {
    for name in [".", "/", "./", "a/..", ""] {
        assert_eq!(fault(&[Raw::link(b'2', name, "target").bytes()]), Fault::Root, "{name}");
        assert_eq!(fault(&[Raw::file(name, b"content").bytes()]), Fault::Root, "{name}");
    }
}

#[test]
fn a_090_d_004_a_hard_link_target_is_clamped_at_the_root() {
    for target in ["etc/passwd", "/etc/passwd", "../../etc/passwd", "./a/../etc//passwd"] {
        let made = entry(&[Raw::link(b'1', "b", target).bytes()]);
        assert_eq!(made.kind, Kind::HardLink { target: b"etc/passwd".to_vec() }, "{target}");
    }
}

#[test]
fn a_089_a_hard_link_to_the_root_or_to_nothing_is_rejected() {
    for target in ["", "/", ".", "a/.."] {
        assert_eq!(fault(&[Raw::link(b'1', "b", target).bytes()]), Fault::NoTarget, "{target}");
    }
}

#[test]
fn a_101_d_001_names_cannot_leave_the_root() {
    for (raw, path) in [("../../x", "x"), ("/../y", "y"), ("a/../../../z", "z")] {
        assert_eq!(path_of(raw), path.as_bytes());
    }
    assert_eq!(path_of("..\\..\\x"), b"..\\..\\x");
}

#[test]
fn a_102_a_directory_without_a_name_is_the_root() {
    for name in ["", ".", "/", "./", "a/.."] {
        assert_eq!(path_of(name), b"", "{name}");
    }
}

#[test]
fn a_103_an_old_file_with_a_trailing_slash_is_a_directory() {
    let made = entry(&[Raw::new(0, b"dd/").v7().field(100, b"0000710").bytes()]);
    assert_eq!((made.kind, made.mode), (Kind::Directory, 0o710));
    // The name that counts is the final one, and a directory has no payload.
    let named = [pax(&[("path", b"e/")]), Raw::new(0, b"x").size(512).bytes(), Raw::file("f", b"").bytes()];
    assert_eq!(entries(&named)[0].kind, Kind::Directory);
    assert_eq!(entries(&named).len(), 2);
}

#[test]
fn a_104_a_file_with_a_trailing_slash_is_a_file() {
    let made = entry(&[Raw::file("dd/", b"content").bytes()]);
    assert!(is_file(&made));
    assert_eq!(made.path, b"dd");
}

#[test]
fn a_105_the_type_decides_and_not_the_slash() {
    let made = entries(&[Raw::link(b'2', "l/", "t/").bytes(), Raw::new(b'5', b"d").bytes()]);
    assert_eq!((&made[0].path[..], &made[0].kind), (&b"l"[..], &Kind::Symlink { target: b"t/".to_vec() }));
    assert_eq!((&made[1].path[..], &made[1].kind), (&b"d"[..], &Kind::Directory));
}

#[test]
fn a_107_a_108_a_112_bytes_of_names_are_preserved() {
    let odd = b"\xff\xfe \n\t\x1b[31m\\\"\xe2\x80\xae";
    assert_eq!(entry(&[Raw::new(b'0', odd).bytes()]).path, odd);
    assert_eq!(entry(&[extended(b'L', odd), Raw::new(b'0', b"short").gnu().bytes()]).path, odd);
    for charset in [&b"BINARY"[..], b""] {
        let records: [(&str, &[u8]); 2] = [("hdrcharset", charset), ("path", odd)];
        assert_eq!(entry(&[pax(&records), Raw::new(b'0', b"short").bytes()]).path, odd);
    }
}

#[test]
fn a_109_nul_in_a_string_of_a_pax_header_is_rejected() {
    for key in ["path", "linkpath", "uname", "gname", "GNU.sparse\0name"] {
        assert_eq!(fault(&[pax(&[(key, b"a\0b")]), Raw::file("f", b"").bytes()]), Fault::Record, "{key}");
    }
    let sparse: [(&str, &[u8]); 5] = [
        ("GNU.sparse.major", b"0"),
        ("GNU.sparse.minor", b"1"),
        ("GNU.sparse.name", b"a\0b"),
        ("GNU.sparse.numblocks", b"0"),
        ("GNU.sparse.realsize", b"0"),
    ];
    assert_eq!(fault(&[pax(&sparse), Raw::file("f", b"").bytes()]), Fault::Nul);
}

#[test]
fn a_110_a_component_has_at_most_255_bytes() {
    let name = |length| [&b"d/"[..], &vec![b'n'; length]].concat();
    let file = |name: &[u8]| [pax(&[("path", name)]), Raw::file("f", b"").bytes()];
    assert_eq!(entry(&file(&name(255))).path.len(), 257);
    assert_eq!(fault(&file(&name(256))), Fault::NameTooLong);
    assert_eq!(fault(&file(&[&name(256)[..], b"/x"].concat())), Fault::NameTooLong);
    // What is cleaned away does not count, and what hides the longest name is longer than that.
    assert_eq!(entry(&file(&[&name(256)[..], b"/../x"].concat())).path, b"d/x");
    let whiteout = [&b".wh."[..], &[b'n'; 255]].concat();
    assert_eq!(entry(&file(&whiteout)).kind, Kind::Whiteout);
    assert_eq!(fault(&file(&[&whiteout[..], b"n"].concat())), Fault::NameTooLong);
}

#[test]
fn a_111_a_path_may_be_longer_than_path_max() {
    let path = [&[b'n'; 200][..]; 50].join(&b'/');
    assert_eq!(entry(&[pax(&[("path", &path)]), Raw::file("f", b"").bytes()]).path, path);
}

#[test]
fn d_015_a_hundred_thousand_components_are_no_problem() {
    let path = b"d/".repeat(100_000);
    assert_eq!(entry(&[extended(b'L', &path), Raw::new(b'5', b"d").gnu().bytes()]).path.len(), path.len() - 1);
    let up = b"../".repeat(100_000);
    assert_eq!(entry(&[extended(b'L', &up), Raw::new(b'5', b"d").gnu().bytes()]).path, b"");
}

#[test]
fn d_061_a_symlink_target_has_at_most_4095_bytes() {
    let link = |length| [pax(&[("linkpath", &vec![b't'; length])]), Raw::link(b'2', "l", "").bytes()];
    assert_eq!(entry(&link(4095)).kind, Kind::Symlink { target: vec![b't'; 4095] });
    assert_eq!(fault(&link(4096)), Fault::TargetTooLong);
    assert_eq!(fault(&[Raw::link(b'2', "l", "").bytes()]), Fault::NoTarget);
}

#[test]
fn d_070_an_error_shows_the_name_escaped_and_shortened() {
    let name = [&b"\x1b[2J\n"[..], &[b'n'; 300]].concat();
    let stream = super::raw::archive(&[pax(&[("path", &name)]), Raw::new(b'Z', b"f").bytes()]);
    let shown = super::parse(&stream).expect_err("Z is no type").to_string();
    assert!(shown.contains("\\x1b[2J\\nnnn") && shown.contains("...\" at offset 1024: "), "{shown}");
    assert!(shown.len() < 300 && !shown.contains('\x1b'), "{shown}");
}
