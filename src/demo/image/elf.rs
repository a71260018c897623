//! Which other files a program of this host needs to run: its interpreter and the shared libraries it links to.
//!
//! Read from the ELF files themselves rather than asked of `ldd` or of the interpreter's `--list`: those answer from
//! `/etc/ld.so.cache`, which an image does not have, while here a library counts only if the interpreter will find it
//! by its built-in rules; and nothing is run. A static program needs nothing, and that is an answer too.
//!
//! [`Elf`] is what one file says, read with a few bounded `pread`s; [`closure`] follows it to all others.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};

use crate::limits::{ELF_DYNAMIC_BYTES, ELF_LIBRARIES, ELF_PROGRAM_HEADERS, ELF_STRING_BYTES};

/// Why a program cannot be put into an image.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("cannot read {}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{} is no ELF program", .0.display())]
    NotElf(PathBuf),
    #[error("{} is damaged: {what}", path.display())]
    Damaged { path: PathBuf, what: &'static str },
    #[error("{} needs {}, which is in none of the standard directories", path.display(), library.display())]
    NoLibrary { path: PathBuf, library: PathBuf },
    #[error("{} needs more than {ELF_LIBRARIES} libraries", .0.display())]
    TooMany(PathBuf),
}

/// Which processors can run a file; a library must agree with its program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Machine {
    wide: bool,
    little: bool,
    number: u16,
}

/// What one ELF file says about others.
#[derive(Debug, PartialEq, Eq)]
struct Elf {
    machine: Machine,
    interpreter: Option<PathBuf>,
    needed: Vec<PathBuf>,
    /// Where this file and those it loads look (`DT_RPATH`).
    rpath: Vec<PathBuf>,
    /// Where this file alone looks (`DT_RUNPATH`); replaces `rpath`.
    runpath: Vec<PathBuf>,
}

/// The paths of all files that `program` needs besides itself, as the kernel and the interpreter will look for them.
///
/// Directories on the way may be symbolic links on the host; in an image the paths must lead to the same files.
pub(super) fn closure(program: &Path) -> Result<BTreeSet<PathBuf>, Error> {
    let main = read(program)?;
    let mut found = BTreeSet::new();
    let Some(interpreter) = main.interpreter.clone() else { return Ok(found) };
    if !is_plain(&interpreter) {
        return Err(Error::Damaged { path: program.into(), what: "its interpreter has no plain path" });
    }
    let defaults = default_directories(main.machine, &interpreter);
    let (machine, inherited) = (main.machine, main.rpath.clone());
    let mut waiting = VecDeque::from([(program.to_owned(), main)]);
    found.insert(interpreter);
    while let Some((path, elf)) = waiting.pop_front() {
        let own = if elf.runpath.is_empty() { [elf.rpath, inherited.clone()].concat() } else { elf.runpath };
        for library in elf.needed {
            let places = own.iter().chain(&defaults).map(|directory| directory.join(&library));
            let place = places.filter(|place| is_plain(place)).find_map(|place| fits(place, machine));
            let Some((place, elf)) = place else { return Err(Error::NoLibrary { path, library }) };
            if found.len() >= ELF_LIBRARIES {
                return Err(Error::TooMany(program.into()));
            }
            if found.insert(place.clone()) {
                waiting.push_back((place, elf));
            }
        }
    }
    Ok(found)
}

/// The file if it is a library for `machine`; the interpreter too passes over those that are not.
fn fits(place: PathBuf, machine: Machine) -> Option<(PathBuf, Elf)> {
    let elf = read(&place).ok().filter(|elf| elf.machine == machine)?;
    Some((place, elf))
}

/// True for an absolute path without `.` and `..`, which can be used inside an image as it is.
fn is_plain(path: &Path) -> bool {
    path.is_absolute() && path.components().skip(1).all(|component| matches!(component, Component::Normal(_)))
}

/// Where interpreters look without being told: Debian's multiarch directories, then those of everybody else, then the
/// interpreter's own directory, which is the one place on systems that keep each package in a directory of its own.
fn default_directories(machine: Machine, interpreter: &Path) -> Vec<PathBuf> {
    // The numbers are `e_machine` of elf(5).
    let triplet = match (machine.number, machine.wide) {
        (3, false) => "i386-linux-gnu",
        (8, true) => "mips64el-linux-gnuabi64",
        (21, true) => "powerpc64le-linux-gnu",
        (22, true) => "s390x-linux-gnu",
        (40, false) if interpreter.ends_with("ld-linux-armhf.so.3") => "arm-linux-gnueabihf",
        (40, false) => "arm-linux-gnueabi",
        (62, true) => "x86_64-linux-gnu",
        (62, false) => "x86_64-linux-gnux32",
        (183, true) => "aarch64-linux-gnu",
        (243, true) => "riscv64-linux-gnu",
        (258, true) => "loongarch64-linux-gnu",
        _ => "",
    };
    let mut directories = Vec::new();
    for base in ["/lib", "/usr/lib"].iter().filter(|_| !triplet.is_empty()) {
        directories.push(Path::new(base).join(triplet));
    }
    let word = if machine.wide { ["/lib64", "/usr/lib64"] } else { ["/lib32", "/usr/lib32"] };
    directories.extend(word.into_iter().chain(["/lib", "/usr/lib"]).map(PathBuf::from));
    if interpreter.file_name().is_some_and(|name| name.to_string_lossy().starts_with("ld-musl-")) {
        directories.push("/usr/local/lib".into());
    }
    directories.extend(interpreter.parent().map(Path::to_owned));
    directories.extend(interpreter.canonicalize().ok().and_then(|real| Some(real.parent()?.to_owned())));
    directories
}

/// Reads what `path` says.
fn read(path: &Path) -> Result<Elf, Error> {
    let io = |source| Error::Io { path: path.into(), source };
    let file = File::open(path).map_err(io)?;
    if !file.metadata().map_err(io)?.is_file() {
        return Err(Error::NotElf(path.into()));
    }
    let origin = path.canonicalize().ok().and_then(|real| Some(real.parent()?.to_owned()));
    Reader::new(&file).and_then(|reader| reader.elf(origin.as_deref())).map_err(|failure| match failure {
        Failure::Io(source) => Error::Io { path: path.into(), source },
        Failure::NotElf => Error::NotElf(path.into()),
        Failure::Damaged(what) => Error::Damaged { path: path.into(), what },
    })
}

#[derive(Debug)]
enum Failure {
    Io(io::Error),
    NotElf,
    Damaged(&'static str),
}

/// A part of the file, by its place in memory and in the file.
#[derive(Debug, Clone, Copy)]
struct Part {
    kind: u32,
    offset: u64,
    address: u64,
    size: u64,
}

/// Reads numbers and strings of one file.
struct Reader<'a> {
    file: &'a File,
    machine: Machine,
    header: [u8; 64],
}

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_RPATH: u64 = 15;
const DT_RUNPATH: u64 = 29;

impl<'a> Reader<'a> {
    fn new(file: &'a File) -> Result<Self, Failure> {
        let mut header = [0; 64];
        let length = read_some(file, &mut header, 0)?;
        if length < 52 || header[..4] != *b"\x7fELF" {
            return Err(Failure::NotElf);
        }
        let (wide, little) = match (header[4], header[5]) {
            (class @ (1 | 2), data @ (1 | 2)) => (class == 2, data == 1),
            _ => return Err(Failure::NotElf),
        };
        let mut reader = Self { file, machine: Machine { wide, little, number: 0 }, header };
        reader.machine.number = u16::try_from(reader.number(&header[18..20])).unwrap_or(0);
        Ok(reader)
    }

    fn elf(&self, origin: Option<&Path>) -> Result<Elf, Failure> {
        let parts = self.parts()?;
        let mut elf = Elf {
            machine: self.machine,
            interpreter: None,
            needed: Vec::new(),
            rpath: Vec::new(),
            runpath: Vec::new(),
        };
        if let Some(part) = parts.iter().find(|part| part.kind == PT_INTERP) {
            elf.interpreter = Some(OsString::from_vec(self.string(part.offset)?).into());
        }
        if let Some(dynamic) = parts.iter().find(|part| part.kind == PT_DYNAMIC) {
            self.dynamic(*dynamic, &parts, origin, &mut elf)?;
        }
        Ok(elf)
    }

    /// The program headers.
    fn parts(&self) -> Result<Vec<Part>, Failure> {
        let wide = self.machine.wide;
        let header = &self.header;
        let (table, entry, count) = if wide {
            (&header[32..40], &header[54..56], &header[56..58])
        } else {
            (&header[28..32], &header[42..44], &header[44..46])
        };
        let (table, entry, count) = (self.number(table), self.number(entry), self.number(count));
        if count > u64::from(ELF_PROGRAM_HEADERS) {
            return Err(Failure::Damaged("too many program headers"));
        }
        let least = if wide { 56 } else { 32 };
        if count > 0 && !(least..=4096).contains(&entry) {
            return Err(Failure::Damaged("program headers of an impossible size"));
        }
        let mut parts = Vec::new();
        for index in 0..count {
            let place = table.checked_add(index * entry).ok_or(Failure::Damaged("program headers out of reach"))?;
            let bytes = self.bytes(place, least)?;
            let (offset, address, size) = if wide { (8..16, 16..24, 32..40) } else { (4..8, 8..12, 16..20) };
            parts.push(Part {
                kind: u32::try_from(self.number(&bytes[0..4])).unwrap_or(0),
                offset: self.number(&bytes[offset]),
                address: self.number(&bytes[address]),
                size: self.number(&bytes[size]),
            });
        }
        Ok(parts)
    }

    /// Reads the dynamic section into `elf`.
    fn dynamic(&self, section: Part, parts: &[Part], origin: Option<&Path>, elf: &mut Elf) -> Result<(), Failure> {
        if section.size > ELF_DYNAMIC_BYTES {
            return Err(Failure::Damaged("a dynamic section too long"));
        }
        let bytes = self.bytes(section.offset, section.size)?;
        let word = if self.machine.wide { 8 } else { 4 };
        let entries: Vec<(u64, u64)> = (bytes.chunks_exact(2 * word))
            .map(|entry| (self.number(&entry[..word]), self.number(&entry[word..])))
            .take_while(|(tag, _)| *tag != 0)
            .collect();
        let Some((_, address)) = entries.iter().find(|(tag, _)| *tag == DT_STRTAB) else { return Ok(()) };
        // The table is named by its address in memory; the loaded part it lies in says where that is in the file.
        let table = parts
            .iter()
            .filter(|part| part.kind == PT_LOAD)
            .find_map(|part| {
                let inside = address.checked_sub(part.address).filter(|inside| *inside < part.size)?;
                part.offset.checked_add(inside)
            })
            .ok_or(Failure::Damaged("a string table that is not loaded"))?;
        for (tag, value) in entries {
            if !matches!(tag, DT_NEEDED | DT_RPATH | DT_RUNPATH) {
                continue;
            }
            let text = self.string(table.checked_add(value).ok_or(Failure::Damaged("a string out of reach"))?)?;
            match tag {
                DT_NEEDED => elf.needed.push(OsString::from_vec(text).into()),
                DT_RPATH => elf.rpath.extend(search_path(&text, origin)),
                _ => elf.runpath.extend(search_path(&text, origin)),
            }
        }
        Ok(())
    }

    fn bytes(&self, place: u64, length: u64) -> Result<Vec<u8>, Failure> {
        let length = usize::try_from(length).map_err(|_| Failure::Damaged("too long a part"))?;
        let mut bytes = vec![0; length];
        match read_some(self.file, &mut bytes, place)? {
            count if count == length => Ok(bytes),
            _ => Err(Failure::Damaged("it ends too early")),
        }
    }

    /// The string that begins at `place` and ends at a NUL.
    fn string(&self, place: u64) -> Result<Vec<u8>, Failure> {
        let mut bytes = vec![0; usize::try_from(ELF_STRING_BYTES).unwrap_or(usize::MAX)];
        let count = read_some(self.file, &mut bytes, place)?;
        let end = bytes[..count].iter().position(|byte| *byte == 0).ok_or(Failure::Damaged("a string without end"))?;
        bytes.truncate(end);
        Ok(bytes)
    }

    /// A number of up to eight bytes in the file's byte order.
    fn number(&self, bytes: &[u8]) -> u64 {
        let add = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        if self.machine.little { bytes.iter().rev().fold(0, add) } else { bytes.iter().fold(0, add) }
    }
}

/// Reads until the buffer is full or the file ends. A place no file has is the end of every file.
fn read_some(file: &File, buffer: &mut [u8], place: u64) -> Result<usize, Failure> {
    let mut filled = 0;
    while filled < buffer.len() {
        let Some(place) = place.checked_add(filled as u64).filter(|place| i64::try_from(*place).is_ok()) else { break };
        match file.read_at(&mut buffer[filled..], place) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Failure::Io(error)),
        }
    }
    Ok(filled)
}

/// The directories of a search path; `$ORIGIN` is the directory of the file that has it.
fn search_path(text: &[u8], origin: Option<&Path>) -> Vec<PathBuf> {
    let text = String::from_utf8_lossy(text);
    let origin = origin.and_then(Path::to_str);
    text.split(':')
        .filter_map(|directory| match origin {
            _ if !directory.contains('$') => Some(directory.to_owned()),
            Some(origin) => Some(directory.replace("${ORIGIN}", origin).replace("$ORIGIN", origin)),
            None => None,
        })
        .map(PathBuf::from)
        .filter(|directory| directory.is_absolute())
        // `$ORIGIN/../lib` is the usual form; what it means on the host is what it must mean in the image.
        .map(|directory| if is_plain(&directory) { directory } else { directory.canonicalize().unwrap_or(directory) })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn read_bytes(bytes: &[u8]) -> Result<Elf, Failure> {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(bytes).expect("it can be written");
        Reader::new(&file).and_then(|reader| reader.elf(None))
    }

    /// The start of a static 64-bit big-endian program for s390x.
    fn plain() -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x02");
        bytes[19] = 22;
        bytes
    }

    #[test]
    fn the_shell_of_this_host_names_its_interpreter_and_libraries() {
        let shell = Path::new("/bin/sh");
        let elf = read(shell).expect("the shell is an ELF file");
        let closure = closure(shell).expect("its libraries are here");
        assert!(closure.len() >= elf.needed.len() + usize::from(elf.interpreter.is_some()), "{closure:?}");
        assert!(closure.iter().all(|path| path.exists()), "{closure:?}");
    }

    #[test]
    fn a_static_program_needs_nothing() {
        let elf = read_bytes(&plain()).expect("a valid file");
        assert_eq!(elf.machine, Machine { wide: true, little: false, number: 22 });
        assert_eq!((elf.interpreter, elf.needed.len()), (None, 0));
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(&plain()).expect("it can be written");
        assert_eq!(closure(file.path()).expect("nothing is missing"), BTreeSet::new());
    }

    #[test]
    fn libraries_are_found_beside_the_program_or_named_as_missing() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let run = |arguments: &str| {
            let mut command = std::process::Command::new("cc");
            let status = command.current_dir(dir.path()).args(arguments.split(' ')).status();
            status.is_ok_and(|status| status.success())
        };
        for (name, text) in [("a.c", "int b(void); int a(void) { return b(); }"), ("b.c", "int b(void) { return 0; }")]
        {
            std::fs::write(dir.path().join(name), text).expect("a source can be written");
        }
        std::fs::write(dir.path().join("main.c"), "int a(void); int main(void) { return a(); }").expect("the same");
        std::fs::create_dir(dir.path().join("lib")).expect("a directory can be made");
        let built = run("-shared -fPIC -o lib/libb.so b.c")
            && run("-shared -fPIC -o lib/liba.so a.c -Llib -lb -Wl,-rpath,$ORIGIN")
            && run("-o main main.c -Llib -la -Wl,-rpath-link,lib -Wl,-rpath,$ORIGIN/lib");
        if !built {
            assert!(std::env::var_os("CI").is_none(), "the C compiler that Rust links with is missing");
            return eprintln!("SKIPPED: there is no C compiler");
        }
        let dir = dir.path().canonicalize().expect("it is there");
        let found = closure(&dir.join("main")).expect("all are there");
        assert!(found.contains(&dir.join("lib/liba.so")) && found.contains(&dir.join("lib/libb.so")), "{found:?}");
        std::fs::remove_file(dir.join("lib/libb.so")).expect("it can be removed");
        let missing = closure(&dir.join("main")).expect_err("one is missing").to_string();
        assert!(missing.ends_with("liba.so needs libb.so, which is in none of the standard directories"), "{missing}");
    }

    #[test]
    fn what_is_no_program_is_refused() {
        assert!(matches!(read_bytes(b"#!/bin/sh\n"), Err(Failure::NotElf)));
        assert!(matches!(read(Path::new("/")), Err(Error::NotElf(_))));
        assert!(matches!(read(Path::new("/nowhere")), Err(Error::Io { .. })));
        let mut many = plain();
        many[54..58].copy_from_slice(&[0, 56, 0xff, 0xff]);
        assert!(matches!(read_bytes(&many), Err(Failure::Damaged("too many program headers"))));
    }

    #[test]
    fn search_paths_replace_the_origin_and_drop_what_is_relative() {
        let origin = Some(Path::new("/opt/x/bin"));
        assert_eq!(
            search_path(b"$ORIGIN:lib:/a:${ORIGIN}/b:", origin),
            ["/opt/x/bin", "/a", "/opt/x/bin/b"].map(PathBuf::from)
        );
        assert_eq!(search_path(b"$ORIGIN:/a", None), [PathBuf::from("/a")]);
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
    }
}
