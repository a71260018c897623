//! Files inside images that are looked into before anybody asks: programs, libraries, the loader's cache.

use std::io;

use ocifs::elf::{Elf, LoaderCache, ReadAt, default_directories, search_path};

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
