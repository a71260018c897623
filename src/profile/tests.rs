use proptest::prelude::*;

use super::*;

fn origin() -> Origin {
    Origin { image: Digest::sha256(b"manifest"), recorded: 1_764_000_000, mount: "/mnt/a b".into() }
}

fn access(path: &str, start: u64, end: u64) -> Access {
    Access::new(path.as_bytes().to_vec(), start, end).expect("a plain path and range")
}

fn profile(accesses: &[(&str, u64, u64)]) -> Profile {
    Profile::new(origin(), accesses.iter().map(|(path, start, end)| access(path, *start, *end)))
}

const LARGE: ImageSize = ImageSize { bytes: 1 << 30, files: 1000 };

#[test]
fn an_order_notes_every_byte_once_and_joins_what_touches() {
    let mut order = Order::joining();
    assert_eq!(order.note('a', 0, 10), Noted::New);
    assert_eq!(order.note('b', 5, 6), Noted::New);
    assert_eq!(order.note('a', 10, 20), Noted::New);
    assert_eq!(order.note('a', 3, 17), Noted::Known);
    assert_eq!(order.note('a', 40, 50), Noted::New);
    assert_eq!(order.note('a', 15, 60), Noted::New, "the gap and the end are new");
    assert_eq!(order.note('a', 7, 7), Noted::Known);
    assert_eq!(order.into_entries(), [('a', 0..40), ('b', 5..6), ('a', 40..60)]);
}

#[test]
fn a_file_read_little_by_little_beside_others_keeps_its_place() {
    let mut order = Order::joining();
    let step = crate::limits::PROFILE_JOIN_BYTES / 2;
    for number in 0..4 {
        order.note('a', number * step, (number + 1) * step);
        order.note('b', number * 100, number * 100 + 1);
    }
    let keys: String = order.entries().iter().map(|(key, _)| *key).collect();
    assert_eq!(keys, "abbabb");
}

#[test]
fn an_order_has_a_bound() {
    let mut order = Order::default();
    for number in 0..PROFILE_ACCESSES as u64 {
        assert_eq!(order.note((), 2 * number, 2 * number + 1), Noted::New);
    }
    assert_eq!(order.note((), 1 << 40, (1 << 40) + 1), Noted::Full);
    assert_eq!(order.note((), 0, 1), Noted::Known);
}

#[test]
fn only_plain_paths_and_possible_ranges_are_accesses() {
    let long = "x".repeat(256);
    for path in ["", "/etc", "a/../b", "..", ".", "a/./b", "a//b", "a/", "a\0b", long.as_str()] {
        assert_eq!(Access::new(path.as_bytes().to_vec(), 0, 1), None, "{path:?}");
    }
    for (start, end) in [(0, 0), (5, 4), (0, u64::MAX), (u64::MAX - 1, u64::MAX), (0, PROFILE_OFFSET + 1)] {
        assert_eq!(Access::new(b"a".to_vec(), start, end), None, "{start}..{end}");
    }
}

#[test]
fn the_text_form_is_the_documented_one() {
    let made = Profile::new(
        origin(),
        [access("usr/bin/python3", 0, 131_072), Access::new(b"caf\xe9 \\\n".to_vec(), 4096, 4097).expect("plain")],
    );
    let image = Digest::sha256(b"manifest");
    let text = format!(
        "ocifs-profile 1\nimage {image}\nrecorded 1764000000\nmount /mnt/a\\x20b\naccesses 2\n0 131072 usr/bin/python3\n\
         4096 1 caf\\xe9\\x20\\x5c\\x0a\n"
    );
    assert_eq!(made.to_text(), text);
    assert_eq!(Profile::parse(text.as_bytes()), Ok(made.clone()));
    assert_eq!(Profile::parse(text.trim_end().as_bytes()), Ok(made), "an editor may drop the last line feed");
}

#[test]
fn a_wrong_text_is_refused_with_the_line_that_is_wrong() {
    let image = Digest::sha256(b"manifest");
    let head = format!("ocifs-profile 1\nimage {image}\nrecorded 1\nmount /m\n");
    let cases = [
        (String::new(), "line 1: this is no profile"),
        ("#!/bin/sh\n".to_owned(), "line 1: this is no profile"),
        ("ocifs-profile 2\n".to_owned(), "line 1: the profile is of a version"),
        ("ocifs-profile 1\nimage sha256:12\n".to_owned(), "line 2: the digest"),
        (head.replace("recorded 1", "recorded -1"), "line 3: the time"),
        (head.replace("/m", "/m m"), "line 4: the mount point"),
        (head.clone(), "line 5: \"accesses COUNT\""),
        (format!("{head}accesses 99999999\n"), "line 5: there are more accesses"),
        (format!("{head}accesses 2\n0 1 a\n"), "line 7: the text ends"),
        (format!("{head}accesses 1\n0 1 a\n0 1 b\n"), "line 7: there is more"),
        (format!("{head}accesses 1\n0 1\n"), "line 6: \"OFFSET LENGTH PATH\""),
        (format!("{head}accesses 1\n+0 1 a\n"), "line 6: the offset"),
        (format!("{head}accesses 1\n0 0 a\n"), "line 6: no file has"),
        (format!("{head}accesses 1\n{} 2 a\n", u64::MAX), "line 6: no file has"),
        (format!("{head}accesses 1\n0 1 ../a\n"), "line 6: the path is not one"),
        (format!("{head}accesses 1\n0 1 /a\n"), "line 6: the path is not one"),
        (format!("{head}accesses 1\n0 1 a\r\n"), "line 6: the path is not escaped"),
        (format!("{head}accesses 1\n0 1 a\\x4\n"), "line 6: the path is not escaped"),
    ];
    for (text, expected) in cases {
        let error = Profile::parse(text.as_bytes()).expect_err(&text).to_string();
        assert!(error.starts_with(expected), "{text:?} gives {error:?}");
    }
    let long = vec![b'a'; PROFILE_TEXT_BYTES + 1];
    assert_eq!(Profile::parse(&long), Err(ParseError::TooLong));
}

#[test]
fn a_profile_never_grows_beyond_what_can_be_read_back() {
    let name = "\u{e9}".repeat(120);
    let deep = [name.as_str(); 16].join("/");
    let many = (0..20_000).map(|number| access(&format!("{deep}/{number}"), 0, 1));
    let made = Profile::new(origin(), many);
    assert!(made.accesses().len() > 100 && made.accesses().len() < 20_000);
    assert_eq!(Profile::parse(made.to_text().as_bytes()), Ok(made.clone()));
    assert_eq!(made.update(None, LARGE, true), Update::Scan, "no start fills a profile");
}

#[test]
fn a_tiny_recording_adds_to_a_good_one_and_a_new_start_replaces_it() {
    let good = profile(&[("bin/app", 0, 1000), ("lib/a", 0, 1000)]);
    assert_eq!(good.clone().update(None, LARGE, true), Update::Store(good.clone()));
    let tiny = profile(&[("lib/a", 0, 10), ("etc/motd", 0, 10)]);
    let both = profile(&[("bin/app", 0, 1000), ("lib/a", 0, 1000), ("etc/motd", 0, 10)]);
    assert_eq!(tiny.clone().update(Some(&good), LARGE, true), Update::Store(both));
    assert_eq!(profile(&[("lib/a", 5, 10)]).update(Some(&good), LARGE, true), Update::Keep);
    assert_eq!(profile(&[]).update(Some(&good), LARGE, true), Update::Keep);
    assert_eq!(profile(&[]).update(None, LARGE, true), Update::Keep);
    let other = profile(&[("bin/worker", 0, 1000)]);
    assert_eq!(other.clone().update(Some(&good), LARGE, true), Update::Store(other.clone()));
    assert_eq!(good.clone().update(Some(&tiny), LARGE, true), Update::Store(good.clone()));
    let both = profile(&[("bin/app", 0, 1000), ("lib/a", 0, 1000), ("bin/worker", 0, 1000)]);
    assert_eq!(other.update(Some(&good), LARGE, false), Update::Store(both), "it did not see everything");
}

#[test]
fn a_scan_is_no_start_but_one_large_program_or_a_small_image_is() {
    let all = profile(&[("a", 0, 30 << 20), ("b", 0, 10), ("c", 0, 10)]);
    assert_eq!(all.clone().update(None, ImageSize { bytes: 40 << 20, files: 4 }, true), Update::Scan);
    let one = profile(&[("a", 0, 30 << 20)]);
    assert!(matches!(one.clone().update(None, ImageSize { bytes: 40 << 20, files: 4 }, true), Update::Store(_)));
    let small = ImageSize { bytes: SMALL_IMAGE, files: 3 };
    assert!(matches!(all.clone().update(None, small, true), Update::Store(_)));
    let rest = profile(&[("b", 0, 10), ("c", 0, 10)]);
    let image = ImageSize { bytes: 40 << 20, files: 4 };
    assert_eq!(rest.update(Some(&one), image, true), Update::Scan, "piece by piece is a scan too");
}

fn accesses() -> impl Strategy<Value = Vec<Access>> {
    let name = prop::collection::vec(any::<u8>(), 1..12);
    let path = prop::collection::vec(name, 1..4).prop_map(|names| names.join(&b'/'));
    let one = (path, 0..PROFILE_OFFSET - (1 << 30), 1_u64..1 << 30);
    let one = one.prop_filter_map("not plain", |(path, start, length)| Access::new(path, start, start + length));
    prop::collection::vec(one, 0..40)
}

proptest! {
    #[test]
    fn any_profile_survives_its_text_form(accesses in accesses(), mount in "/[^\0]{0,20}", recorded: u64) {
        let made = Profile::new(Origin { recorded, mount: mount.into(), ..origin() }, accesses);
        let text = made.to_text();
        prop_assert!(text.is_ascii() && text.len() <= made.text_bytes);
        prop_assert_eq!(Profile::parse(text.as_bytes()), Ok(made));
    }

    #[test]
    fn no_text_makes_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), keep in 0_usize..200) {
        let mut text = profile(&[("bin/app", 0, 1000), ("lib/a", 0, 1000)]).to_text().into_bytes();
        text.truncate(keep);
        text.extend(bytes);
        prop_assert!(Profile::parse(&text).map_or(true, |profile| profile.accesses().len() < 100));
    }

    #[test]
    fn an_order_holds_exactly_the_bytes_noted(notes in prop::collection::vec((0_u8..3, 0_u64..60, 0_u64..20), 0..40), join: bool) {
        let mut order = if join { Order::joining() } else { Order::default() };
        let mut model = std::collections::BTreeSet::new();
        for (key, start, length) in notes {
            let fresh = (start..start + length).filter(|place| model.insert((key, *place))).count();
            let noted = order.note(key, start, start + length);
            prop_assert_eq!(noted, if fresh > 0 { Noted::New } else { Noted::Known });
        }
        let mut held = std::collections::BTreeSet::new();
        for (key, range) in order.into_entries() {
            for place in range {
                prop_assert!(held.insert((key, place)), "twice");
            }
        }
        prop_assert_eq!(held, model);
    }

    #[test]
    fn an_update_never_loses_a_larger_profile(stored in accesses(), recorded in accesses(), saw_all: bool) {
        let (stored, recorded) = (Profile::new(origin(), stored), Profile::new(origin(), recorded));
        let bytes = stored.bytes();
        match recorded.update(Some(&stored), ImageSize { bytes: u64::MAX, files: u64::MAX }, saw_all) {
            Update::Store(kept) => prop_assert!(kept.bytes() >= bytes / 2),
            Update::Keep => {}
            Update::Scan => prop_assert!(false, "the image is larger than that"),
        }
    }
}
