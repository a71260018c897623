//! Where interpreters (ld.so(8)) look for libraries.

use super::Machine;
use crate::limits::LOADER_CACHE_BYTES;

/// Where interpreters look without being told: Debian's multiarch directories, then those of everybody else, then the
/// interpreter's own directory, which is the one place on systems that keep each package in a directory of its own.
pub fn default_directories(machine: Machine, interpreter: &[u8]) -> Vec<Vec<u8>> {
    // The numbers are `e_machine` of elf(5).
    let triplet = match machine.kind() {
        (3, false) => "i386-linux-gnu",
        (8, true) => "mips64el-linux-gnuabi64",
        (21, true) => "powerpc64le-linux-gnu",
        (22, true) => "s390x-linux-gnu",
        (40, false) if interpreter.ends_with(b"/ld-linux-armhf.so.3") => "arm-linux-gnueabihf",
        (40, false) => "arm-linux-gnueabi",
        (62, true) => "x86_64-linux-gnu",
        (62, false) => "x86_64-linux-gnux32",
        (183, true) => "aarch64-linux-gnu",
        (243, true) => "riscv64-linux-gnu",
        (258, true) => "loongarch64-linux-gnu",
        _ => "",
    };
    let mut directories: Vec<Vec<u8>> = Vec::new();
    for base in ["/lib/", "/usr/lib/"].iter().filter(|_| !triplet.is_empty()) {
        directories.push([base.as_bytes(), triplet.as_bytes()].concat());
    }
    let word = if machine.kind().1 { ["/lib64", "/usr/lib64"] } else { ["/lib32", "/usr/lib32"] };
    directories.extend(word.into_iter().chain(["/lib", "/usr/lib"]).map(|text| text.as_bytes().to_vec()));
    let (parent, name) = match interpreter.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&interpreter[..slash], &interpreter[slash + 1..]),
        None => (&interpreter[..0], interpreter),
    };
    if name.starts_with(b"ld-musl-") {
        directories.push(b"/usr/local/lib".to_vec());
    }
    if !parent.is_empty() {
        directories.push(parent.to_vec());
    }
    directories
}

/// The absolute directories of a search path; `$ORIGIN` is the directory of the file that has it. They may hold `..`.
pub fn search_path(text: &[u8], origin: Option<&[u8]>) -> Vec<Vec<u8>> {
    let directories = text.split(|byte| *byte == b':').filter_map(|directory| {
        if !directory.contains(&b'$') {
            return Some(directory.to_vec());
        }
        let origin = origin?;
        Some(replace(&replace(directory, b"${ORIGIN}", origin), b"$ORIGIN", origin))
    });
    directories.filter(|directory| directory.starts_with(b"/")).collect()
}

fn replace(text: &[u8], name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.windows(name.len()).position(|window| window == name) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(value);
        rest = &rest[at + name.len()..];
    }
    out.extend_from_slice(rest);
    out
}

/// A parsed `/etc/ld.so.cache`: the directories of `ld.so.conf` as glibc itself looks them up.
///
/// The form is that of glibc's `dl-cache.h`, "glibc-ld.so.cache1.1", alone or behind the older one. Its numbers are in the
/// byte order of the machine it is for, which is taken from the count of its entries: only one order fits the length.
#[derive(Debug, Default)]
pub struct LoaderCache<'a> {
    bytes: &'a [u8],
    /// The entries of the table.
    entries: &'a [u8],
    is_big_endian: bool,
}

const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
const OLD_MAGIC: &[u8] = b"ld.so-1.7.0\0";
const HEADER: usize = 48;
const ENTRY: usize = 24;
const OLD_ENTRY: usize = 12;

impl<'a> LoaderCache<'a> {
    /// Reads a cache; none if it is not one.
    pub fn parse(file: &'a [u8]) -> Option<Self> {
        if file.len() as u64 > LOADER_CACHE_BYTES {
            return None;
        }
        [false, true].into_iter().find_map(|is_big_endian| Self::with_order(file, is_big_endian))
    }

    fn with_order(file: &'a [u8], is_big_endian: bool) -> Option<Self> {
        let start = match file.starts_with(OLD_MAGIC) {
            // The older table comes first, and the newer one is aligned to eight bytes after it.
            true => {
                let count = number(file, 12, is_big_endian)? as usize;
                count.checked_mul(OLD_ENTRY)?.checked_add(16)?.checked_next_multiple_of(8)?
            }
            false => 0,
        };
        let bytes = file.get(start..)?;
        let count = number(bytes.strip_prefix(MAGIC)?, 0, is_big_endian)? as usize;
        let entries = bytes.get(HEADER..HEADER.checked_add(count.checked_mul(ENTRY)?)?)?;
        Some(Self { bytes, entries, is_big_endian })
    }

    /// The paths of the library `name`, best first. Builds for particular processors (hwcaps) are left out: which of them
    /// is used only the processor knows, and it is used instead of, not beside, the others.
    pub fn find(&self, name: &[u8]) -> impl Iterator<Item = &'a [u8]> {
        self.entries.chunks_exact(ENTRY).filter_map(move |entry| {
            let is_general = entry[16..24] == [0; 8];
            let key = self.string(entry, 4)?;
            (is_general && key == name).then(|| self.string(entry, 8))?
        })
    }

    /// The string whose place stands at `at` in an entry.
    fn string(&self, entry: &[u8], at: usize) -> Option<&'a [u8]> {
        let text = self.bytes.get(number(entry, at, self.is_big_endian)? as usize..)?;
        let text = &text[..text.len().min(crate::limits::PROFILE_PATH_BYTES)];
        let end = text.iter().position(|byte| *byte == 0)?;
        Some(&text[..end])
    }
}

fn number(bytes: &[u8], at: usize, is_big_endian: bool) -> Option<u32> {
    let bytes: [u8; 4] = bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
    Some(if is_big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) })
}
