use proptest::prelude::*;

use super::*;

/// What a file of these bytes says, given in pieces of `piece` bytes.
fn observed(path: &str, bytes: &[u8], piece: usize) -> Option<Dependencies> {
    let mut observer = Observer::new(path.as_bytes(), bytes.len() as u64);
    bytes.chunks(piece).for_each(|piece| observer.data(piece));
    observer.finish()
}

fn imports(found: Option<Dependencies>) -> Vec<String> {
    match found {
        Some(Dependencies::Script { imports, .. }) => imports.into_iter().map(|import| import.module).collect(),
        other => panic!("no script: {other:?}"),
    }
}

#[test]
fn scripts_name_their_interpreters_and_imports() {
    assert_eq!(imports(observed("app/main.py", b"import a\nfrom b.c import d\n", 7)), ["a", "b.c"]);
    assert_eq!(imports(observed("bin/tool", b"#!/usr/bin/env python3\nimport a\n", 7)), ["a"]);
    assert_eq!(imports(observed("bin/tool", b"#!/opt/x/bin/python3.11 -s\nimport a\n", 7)), ["a"]);
    // Words of another language are no imports, and data is no script.
    assert_eq!(imports(observed("bin/tool", b"#!/bin/sh\nimport a\n", 7)), [""; 0]);
    assert_eq!(observed("data", b"import a\n", 7), None);
    assert_eq!(observed("empty.py", b"", 7), None);
    let long = vec![b'#'; AHEAD_MODULE_BYTES as usize + 1];
    assert_eq!(observed("long.py", &long, 4096), None);
}

#[test]
fn script_lines_name_their_interpreters() {
    let named = |line: &str| {
        interpreters(line.as_bytes()).iter().map(|word| word.escape_ascii().to_string()).collect::<Vec<_>>()
    };
    assert_eq!(named("#!/bin/sh"), ["/bin/sh"]);
    assert_eq!(named("#! /bin/bash -eu\r"), ["/bin/bash"]);
    assert_eq!(named("#!/usr/bin/env python3\n#!/bin/sh"), ["/usr/bin/env", "python3"]);
    assert_eq!(named("#!/usr/bin/env -S A=1 node --flag"), ["/usr/bin/env", "node"]);
    assert_eq!(named("#!  "), [""; 0]);
    assert_eq!(named("/bin/sh"), [""; 0]);
    assert_eq!(named(&format!("#!/{}", "x".repeat(400))), [format!("/{}", "x".repeat(253))]);
}

#[test]
fn modules_are_told_by_where_they_are() {
    let module = |path: &str| module_of(path.as_bytes()).unwrap_or("-").to_owned();
    assert_eq!(module("usr/lib/python3.11/json/decoder.py"), "json");
    assert_eq!(module("usr/lib/python3.11/lib-dynload/_ssl.cpython-311.so"), "_ssl");
    assert_eq!(module("opt/venv/lib/python3.11/site-packages/pandas/core/api.py"), "pandas");
    assert_eq!(module("usr/lib/python3/dist-packages/six.py"), "six");
    assert_eq!(module("usr/share/doc/x.py"), "-");
    assert_eq!(module("site-packages"), "-");
}

#[test]
fn modules_and_packages_of_javascript_name_others() {
    let specifiers = |found| match found {
        Some(Dependencies::Script { specifiers, .. }) => Some(specifiers),
        _ => None,
    };
    let named = |path: &str| specifiers(observed(path, b"require('a')\nimport 'b'", 5));
    for path in ["app/x.js", "app/x.cjs", "app/x.mjs"] {
        assert_eq!(named(path).as_deref(), Some(&["a".to_owned(), "b".to_owned()][..]));
    }
    assert_eq!(named("app/x.json"), None);
    let script = observed("bin/x", b"#!/usr/bin/env node\nrequire('a')", 5);
    assert_eq!(specifiers(script), Some(vec!["a".to_owned()]));
    let package = Package { main: Some("m.js".to_owned()), exports: None };
    assert_eq!(observed("app/package.json", br#"{"main":"m.js"}"#, 5), Some(Dependencies::Package(package)));
    assert_eq!(observed("app/package.json", b"{", 5), None);
}

#[test]
fn lists_of_names_are_kept_as_they_are() {
    let longest = [
        ("usr/lib/python3/dist-packages/a.pth", AHEAD_HOOK_BYTES as usize),
        ("etc/ld.so.cache", DEPENDENCIES_RECORD_BYTES / 2),
    ];
    for (path, longest) in longest {
        for text in [b"some names".to_vec(), vec![b'x'; longest]] {
            assert_eq!(observed(path, &text, 4096), Some(Dependencies::Text(text)));
        }
        assert_eq!(observed(path, &vec![b'x'; longest + 1], 4096), None);
    }
}

#[test]
fn the_shell_of_this_host_says_what_it_does_when_it_is_there() {
    let bytes = std::fs::read("/bin/sh").expect("there is a shell");
    let file = std::fs::File::open("/bin/sh").expect("there is a shell");
    let expected = Box::new(Elf::read(&file).expect("it is a program"));
    for piece in [1 << 20, 4096, 1000] {
        let found = observed("bin/sh", &bytes, piece);
        assert_eq!(found, Some(Dependencies::Program { elf: expected.clone(), names: Vec::new() }));
    }
    assert_eq!(Dependencies::of_program(&file), Some(Dependencies::Program { elf: expected, names: Vec::new() }));
}

/// A program of `size` bytes whose dynamic section is followed by its strings at its end.
fn large(size: usize, section: usize, strings: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
    let mut put = |place: usize, value: u64| bytes[place..place + 8].copy_from_slice(&value.to_le_bytes());
    put(32, 64);
    put(54, 56 | 2 << 16);
    for (header, kind, start, length) in [(64, 1, 0, size), (120, 2, section, 4 * 16)] {
        for (at, value) in [(0, kind | 4 << 32), (8, start as u64), (16, start as u64), (32, length as u64)] {
            put(header + at, value);
        }
    }
    for (number, (tag, value)) in [(1, 1), (5, strings as u64), (10, 32)].into_iter().enumerate() {
        put(section + 16 * number, tag);
        put(section + 16 * number + 8, value);
    }
    bytes[strings + 1..strings + 10].copy_from_slice(b"libfar.so");
    bytes
}

#[test]
fn what_lies_far_behind_in_a_large_program_is_found_without_holding_it() {
    let size = DEPENDENCIES_PROGRAM_BYTES as usize + (8 << 20);
    // The strings come in the same piece as the section, or in another.
    for strings in [size - 4096, size - (1 << 20)] {
        let bytes = large(size, size - (2 << 20), strings);
        for piece in [256 << 10, 4 << 20] {
            let found = observed("usr/lib/libbig.so", &bytes, piece);
            let Some(Dependencies::Program { elf, .. }) = found else { panic!("{found:?}") };
            assert_eq!(elf.needed, [b"libfar.so"]);
        }
    }
    // What comes before the section has passed by.
    assert_eq!(observed("usr/lib/libbig.so", &large(size, size - 4096, size - (1 << 20)), 256 << 10), None);
    let mut observer = Observer::new(b"usr/bin/data", 1 << 40);
    observer.data(&vec![1; 1 << 20]);
    assert!(observer.held.start().is_empty(), "data is not held");
}

#[test]
fn names_among_the_constants_of_an_extension_are_kept() {
    let mut elf = vec![0; 4096];
    elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
    for (place, value) in [(32, 64), (54, 56), (56, 1), (64, 1), (68, 4)] {
        elf[place] = value;
    }
    let constants = format!("random\0not a name\0pkg.sub\0random\0{}\0", "x".repeat(CONSTANT_NAME_BYTES + 1));
    elf[72..80].copy_from_slice(&4096_u64.to_le_bytes());
    elf[96..104].copy_from_slice(&(constants.len() as u64).to_le_bytes());
    elf.extend(constants.as_bytes());
    let names = |path: &str| match observed(path, &elf, 100) {
        Some(Dependencies::Program { names, .. }) => names,
        other => panic!("no program: {other:?}"),
    };
    assert_eq!(names("usr/lib/python3/_x.so"), ["random", "pkg.sub"]);
    assert_eq!(names("usr/bin/tool"), [""; 0], "a program is no extension");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_bytes_say_the_same_in_any_pieces(
        name in prop::sample::select(vec!["a.py", "a.pyc", "a.so", "a.pth", "a.js", "a/package.json", "a", "etc/ld.so.cache"]),
        magic in prop::sample::select(vec![&b""[..], b"\x7fELF\x02\x01\x01", b"#!/usr/bin/python3 "]),
        rest in prop::collection::vec(any::<u8>(), 0..6000),
        piece in 1_usize..5000,
    ) {
        let bytes = [magic, &rest].concat();
        prop_assert_eq!(observed(name, &bytes, piece), observed(name, &bytes, bytes.len().max(1)));
    }
}
