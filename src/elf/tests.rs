use std::io::Write;

use proptest::prelude::*;

use super::*;

fn read_bytes(bytes: &[u8]) -> Result<Elf, Error> {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(bytes).expect("it can be written");
    Elf::read(&file)
}

/// The start of a static 64-bit big-endian program for s390x.
fn plain() -> Vec<u8> {
    let mut bytes = vec![0; 64];
    bytes[..6].copy_from_slice(b"\x7fELF\x02\x02");
    bytes[19] = 22;
    bytes
}

#[test]
fn the_shell_of_this_host_says_what_it_needs_and_what_its_loading_touches() {
    let file = std::fs::File::open("/bin/sh").expect("there is a shell");
    let length = file.metadata().expect("it is a file").len();
    let elf = Elf::read(&file).expect("the shell is an ELF file");
    assert!(elf.start[0].start == 0 && elf.start[0].end >= HEAD, "{:?}", elf.start);
    assert!(elf.start.iter().all(|part| part.start < length), "{:?}", elf.start);
    if elf.interpreter.is_some() {
        assert!(!elf.needed.is_empty());
    }
}

#[test]
fn a_static_program_needs_nothing() {
    let elf = read_bytes(&plain()).expect("a valid file");
    assert_eq!(elf.machine, Machine { wide: true, little: false, number: 22 });
    assert_eq!((elf.interpreter, elf.needed.len()), (None, 0));
    assert!(elf.start.len() == 1 && elf.start[0] == (0..HEAD), "{:?}", elf.start);
}

#[test]
fn constants_are_what_is_only_read() {
    let mut bytes = vec![0; 64 + 3 * 56];
    bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
    for (place, value) in [(32, 64), (54, 56), (56, 3)] {
        bytes[place] = value;
    }
    // The flags, the offset and the length of three PT_LOAD: code, constants, data.
    for (number, (flags, offset, length)) in [(5, 0, 16), (4, 16, 32), (6, 48, 8)].into_iter().enumerate() {
        let header = 64 + 56 * number;
        (bytes[header], bytes[header + 4], bytes[header + 8], bytes[header + 32]) = (1, flags, offset, length);
    }
    let elf = read_bytes(&bytes).expect("a valid file");
    assert_eq!(elf.constants, std::slice::from_ref(&(16..48)));
    // What several parts load is there once.
    bytes[64 + 4] = 4;
    bytes[64 + 32] = 40;
    assert_eq!(read_bytes(&bytes).expect("a valid file").constants, std::slice::from_ref(&(0..48)));
}

/// A library whose linker put its symbols and strings first, and of which a patch then moved the strings to the end
/// (patchelf does): 16 MiB with one needed library.
fn patched() -> Vec<u8> {
    let mut bytes = vec![0; 16 << 20];
    bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
    let mut put = |place: usize, value: u64| bytes[place..place + 8].copy_from_slice(&value.to_le_bytes());
    put(32, 64);
    put(54, 56 | 5 << 16);
    let parts: [(u64, u64, u64, u64); 5] = [
        (1, 4, 0, 1 << 20),
        (1, 5, 2 << 20, 10 << 20),
        (1, 6, 12 << 20, 1 << 20),
        (1, 6, 15 << 20, 4096),
        (2, 6, 12 << 20, 6 * 16),
    ];
    for (number, (kind, flags, offset, size)) in parts.into_iter().enumerate() {
        let header = 64 + 56 * number;
        for (at, value) in [(0, kind | flags << 32), (8, offset), (16, offset), (32, size)] {
            put(header + at, value);
        }
    }
    // DT_NEEDED, DT_STRTAB, DT_STRSZ, DT_SYMTAB, DT_GNU_HASH.
    let dynamic = [(1, 100), (5, 15 << 20), (10, 4096), (6, 300 << 10), (0x6fff_fef5, 500 << 10)];
    for (number, (tag, value)) in dynamic.into_iter().enumerate() {
        put((12 << 20) + 16 * number, tag);
        put((12 << 20) + 16 * number + 8, value);
    }
    let name = (15 << 20) + 100;
    bytes[name..name + 8].copy_from_slice(b"libx.so\0");
    bytes
}

#[test]
fn a_file_names_no_more_than_it_may() {
    let named = |count: usize| {
        let mut bytes = patched();
        let place = 12 << 20;
        let mut entries: Vec<_> = std::iter::repeat_n((1_u64, 100_u64), count).collect();
        entries.extend([(5, 15 << 20), (10, 4096), (0, 0)]);
        for (number, (tag, value)) in entries.iter().enumerate() {
            let entry = [tag.to_le_bytes(), value.to_le_bytes()].concat();
            bytes[place + 16 * number..place + 16 * (number + 1)].copy_from_slice(&entry);
        }
        let size = 64 + 56 * 4 + 32;
        bytes[size..size + 8].copy_from_slice(&(16 * entries.len() as u64).to_le_bytes());
        read_bytes(&bytes).map(|elf| elf.needed.len())
    };
    assert_eq!(named(ELF_NAMES).expect("as many as may be"), ELF_NAMES);
    assert!(matches!(named(ELF_NAMES + 1), Err(Error::Damaged("too many names"))));
}

#[test]
fn tables_are_found_wherever_they_are() {
    let bytes = patched();
    let elf = read_bytes(&bytes).expect("a valid file");
    assert_eq!(elf.needed, [b"libx.so"]);
    let mebibyte = 1 << 20;
    let expected = [
        0..HEAD,
        // Symbols up to the hashes, and those up to the end of what is loaded with them, which no size bounds.
        (300 << 10) - AROUND..mebibyte + AROUND,
        2 * mebibyte - AROUND..2 * mebibyte + AROUND,
        12 * mebibyte - AROUND..13 * mebibyte + AROUND,
        15 * mebibyte - AROUND..15 * mebibyte + 4096 + AROUND,
    ];
    assert_eq!(elf.start, expected);
    assert!(elf.constants.is_empty(), "all that is only read are tables: {:?}", elf.constants);
}

#[test]
fn the_parts_that_name_everything_else_are_known_by_the_start() {
    let bytes = patched();
    let file = |length: usize| {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(&bytes[..length]).expect("it can be written");
        file
    };
    let (dynamic, strings) = (12 << 20..(12 << 20) + 96, 15 << 20..(15 << 20) + 4096);
    assert_eq!(Elf::needed_parts(&file(4096)), std::slice::from_ref(&dynamic));
    assert_eq!(Elf::needed_parts(&file(13 << 20)), [dynamic, strings]);
    assert!(Elf::needed_parts(&file(60)).is_empty());
}

#[test]
fn what_is_no_program_is_refused() {
    assert!(matches!(read_bytes(b"#!/bin/sh\n"), Err(Error::NotElf)));
    let mut many = plain();
    many[54..58].copy_from_slice(&[0, 56, 0xff, 0xff]);
    assert!(matches!(read_bytes(&many), Err(Error::Damaged("too many program headers"))));
}

#[test]
fn search_paths_replace_the_origin_and_drop_what_is_relative() {
    let origin = Some(b"/opt/x/bin".as_slice());
    let found = search_path(b"$ORIGIN:lib:/a:${ORIGIN}/../b:$LIB/x:", origin);
    assert_eq!(found, [&b"/opt/x/bin"[..], b"/a", b"/opt/x/bin/../b"]);
    assert_eq!(search_path(b"$ORIGIN:/a", None), [b"/a"]);
}

#[test]
fn default_directories_are_those_of_the_machine_and_of_the_interpreter() {
    let machine = Machine { wide: true, little: true, number: 62 };
    let found = default_directories(machine, b"/nix/x/ld-linux-x86-64.so.2");
    assert_eq!(found.first().map(Vec::as_slice), Some(&b"/lib/x86_64-linux-gnu"[..]));
    assert_eq!(found.last().map(Vec::as_slice), Some(&b"/nix/x"[..]));
    let musl = default_directories(machine, b"/lib/ld-musl-x86_64.so.1");
    assert!(musl.contains(&b"/usr/local/lib".to_vec()) && !found.contains(&b"/usr/local/lib".to_vec()));
}

/// A cache of `(name, path, hwcap)`.
fn cache(entries: &[(&str, &str, u64)]) -> Vec<u8> {
    let mut strings = Vec::new();
    let mut table = Vec::new();
    let base = HEADER_BYTES + entries.len() * 24;
    for (name, path, hwcap) in entries {
        table.extend_from_slice(&0x0303_u32.to_le_bytes());
        for text in [name, path] {
            table.extend_from_slice(&u32::try_from(base + strings.len()).expect("short").to_le_bytes());
            strings.extend_from_slice(text.as_bytes());
            strings.push(0);
        }
        table.extend_from_slice(&0_u32.to_le_bytes());
        table.extend_from_slice(&hwcap.to_le_bytes());
    }
    let mut bytes = b"glibc-ld.so.cache1.1".to_vec();
    bytes.extend_from_slice(&u32::try_from(entries.len()).expect("few").to_le_bytes());
    bytes.resize(HEADER_BYTES, 0);
    [bytes, table, strings].concat()
}

const HEADER_BYTES: usize = 48;

#[test]
fn the_loaders_cache_is_read_alone_and_behind_the_older_form() {
    let new = cache(&[("liba.so", "/opt/v3/liba.so", 1 << 62), ("liba.so", "/opt/liba.so", 0), ("libb.so", "/b", 0)]);
    let mut both = b"ld.so-1.7.0\0".to_vec();
    both.extend_from_slice(&1_u32.to_le_bytes());
    both.resize(16 + 12, 7);
    both.resize(32, 0);
    both.extend_from_slice(&new);
    for file in [new, both] {
        let parsed = LoaderCache::parse(&file).expect("a cache");
        assert_eq!(parsed.find(b"liba.so").collect::<Vec<_>>(), [b"/opt/liba.so"]);
        assert_eq!(parsed.find(b"libc.so").count(), 0);
    }
}

#[test]
fn the_cache_of_this_host_knows_the_c_library() {
    let Ok(file) = std::fs::read("/etc/ld.so.cache") else { return eprintln!("SKIPPED: this host has no ld.so.cache") };
    let parsed = LoaderCache::parse(&file).expect("a cache");
    let found = parsed.find(b"libc.so.6").map(|path| path.escape_ascii().to_string()).collect::<Vec<_>>();
    assert!(found.iter().any(|path| std::path::Path::new(path).exists()), "{found:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_damage_makes_the_reader_panic(changes in prop::collection::vec((0_usize..2048, any::<u8>()), 1..20), cut in 0_usize..4096) {
        let mut bytes = std::fs::read("/bin/sh").expect("the shell can be read");
        let length = bytes.len().min(2048);
        for (place, value) in changes {
            bytes[place % length] = value;
        }
        let short = &bytes[..cut.min(bytes.len())];
        prop_assert!(read_bytes(short).map_or(true, |elf| elf.needed.len() < 4096));
        prop_assert!(read_bytes(&bytes).map_or(true, |elf| elf.needed.len() < 4096));
    }

    #[test]
    fn no_damage_makes_the_cache_panic(changes in prop::collection::vec((0_usize..200, any::<u8>()), 1..20), cut in 0_usize..200) {
        let mut bytes = cache(&[("liba.so", "/opt/liba.so", 0), ("libb.so", "/b", 0)]);
        for (place, value) in changes {
            let place = place % bytes.len();
            bytes[place] = value;
        }
        bytes.truncate(cut.max(20));
        let found = LoaderCache::parse(&bytes).map_or(0, |cache| cache.find(b"liba.so").count());
        prop_assert!(found <= 2);
    }
}
