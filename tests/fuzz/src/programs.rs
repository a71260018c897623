//! Files inside images that are looked into before anybody asks: programs, libraries, the loader's cache.

use std::io;

use ocifs::dependencies::{Dependencies, Observer};
use ocifs::elf::{Elf, LoaderCache, ReadAt, default_directories, search_path};
use ocifs::javascript::{Package, specifiers};
use ocifs::python::{Compiled, imports_of_source};

struct Bytes<'a>(&'a [u8]);

impl ReadAt for Bytes<'_> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.0.get(offset..)).unwrap_or_default();
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }
}

/// A program or library.
pub(crate) fn elf(data: &[u8]) {
    let Ok(elf) = Elf::read(&Bytes(data)) else { return };
    for path in elf.rpath.iter().chain(&elf.runpath) {
        drop(search_path(path, Some(b"/usr/lib")));
    }
    drop(default_directories(elf.machine, elf.interpreter.as_deref().unwrap_or_default()));
    for part in &elf.start {
        assert!(part.start <= part.end);
    }
}

/// `ld.so.cache`.
pub(crate) fn loader_cache(data: &[u8]) {
    let Some(cache) = LoaderCache::parse(data) else { return };
    std::hint::black_box(cache.find(b"libc.so.6").map(<[u8]>::len).sum::<usize>());
}

/// A compiled module.
pub(crate) fn compiled(data: &[u8]) {
    std::hint::black_box(Compiled::parse(data));
}

/// The source text of a module.
pub(crate) fn source(data: &[u8]) {
    for import in imports_of_source(data) {
        assert!(import.names.iter().chain([&import.module]).all(|name| name.len() <= 512));
    }
}

/// A module in JavaScript, or what describes a package.
pub(crate) fn javascript(data: &[u8]) {
    assert!(specifiers(data).iter().all(|name| (1..=512).contains(&name.len())));
    if let Some(package) = Package::parse(data) {
        std::hint::black_box(package.targets("./a/b.js").map(|target| target.len()).sum::<usize>());
    }
}

/// Any file of a layer: the first byte chooses its name, the second in which pieces it comes.
pub(crate) fn dependencies(data: &[u8]) {
    const NAMES: [&str; 8] = ["a.py", "a.pyc", "a.so", "a.js", "a/package.json", "a.pth", "a", "etc/ld.so.cache"];
    let [name, piece, bytes @ ..] = data else { return };
    let name = NAMES[usize::from(*name) % NAMES.len()];
    let observed = |piece: usize| {
        let mut observer = Observer::new(name.as_bytes(), bytes.len() as u64);
        bytes.chunks(piece).for_each(|piece| observer.data(piece));
        observer.finish()
    };
    assert_eq!(observed(usize::from(*piece) + 1), observed(bytes.len().max(1)));
    std::hint::black_box(Dependencies::of_program(&Bytes(bytes)));
}

pub(crate) fn javascript_seeds() -> Vec<Vec<u8>> {
    let text = b"const a = require('a'), b = `x` // c\nimport d from \"./d\"\nexport * from 'e' /* f */";
    let package = br#"{"main":"a.js","exports":{".":{"require":"./a.cjs","import":"./a.mjs"},"./*.js":["./b/*.js"]}}"#;
    vec![text.to_vec(), package.to_vec()]
}

pub(crate) fn dependencies_seeds() -> Vec<Vec<u8>> {
    let seeds = [source_seeds(), compiled_seeds(), elf_seeds(), javascript_seeds()];
    let seeds = seeds.into_iter().zip([0, 1, 2, 3]);
    let named = seeds.flat_map(|(seeds, name)| seeds.into_iter().map(move |seed| [&[name, 200][..], &seed].concat()));
    named.chain([b"\x06\x05#!/usr/bin/env node\nrequire('a')".to_vec()]).collect()
}

pub(crate) fn compiled_seeds() -> Vec<Vec<u8>> {
    // Where the compiled modules are that begin every start of a Python of Debian.
    let stems = ["bisect", "token", "keyword", "copyreg", "reprlib", "operator"];
    let places = stems.iter().map(|stem| format!("/usr/lib/python3.11/__pycache__/{stem}.cpython-311.pyc"));
    let own = [&3495_u16.to_le_bytes()[..], b"\r\n", &[0; 12], b"c", &[0; 20], b"s\x06\0\0\0d\0d\x01l\0"].concat();
    let own = [&own[..], b")\x02i\0\0\0\0N", b")\x01z\x02os", b")\0s\0\0\0\0NNN", &[0; 4], b"NN"].concat();
    places.filter_map(|place| std::fs::read(place).ok()).chain([own]).collect()
}

pub(crate) fn source_seeds() -> Vec<Vec<u8>> {
    let text =
        b"import a.b as c, d\nfrom .x import (y, # z\n  w)\nif TYPE_CHECKING:\n  import q\ndef f():\n  import r\n";
    vec![text.to_vec(), b"\"import x\" ; import y\nfrom importlib import z\n".to_vec()]
}

pub(crate) fn elf_seeds() -> Vec<Vec<u8>> {
    // What is small and on every machine that builds this.
    let files = ["/bin/true", "/bin/echo", "/lib64/ld-linux-x86-64.so.2"];
    files.iter().filter_map(|file| std::fs::read(file).ok()).filter(|bytes| bytes.len() < 400 << 10).collect()
}

pub(crate) fn loader_cache_seeds() -> Vec<Vec<u8>> {
    let mut cache = b"glibc-ld.so.cache1.1".to_vec();
    cache.extend(2_u32.to_le_bytes());
    cache.resize(48, 0);
    for (key, value) in [(96_u32, 106_u32), (96, 122)] {
        cache.extend(3_u32.to_le_bytes());
        cache.extend(key.to_le_bytes());
        cache.extend(value.to_le_bytes());
        cache.extend([0; 12]);
    }
    cache.extend(b"libc.so.6\0/lib/libc.so.6\0/opt/libc.so.6\0");
    let old = [&b"ld.so-1.7.0\0"[..], &0_u32.to_le_bytes(), &cache].concat();
    vec![cache, old]
}
