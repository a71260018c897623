//! Which other files a program of this host needs to run: its interpreter and the shared libraries it links to.
//!
//! Read from the ELF files themselves rather than asked of `ldd` or of the interpreter's `--list`: those answer from
//! `/etc/ld.so.cache`, which an image does not have, while here a library counts only if the interpreter will find it
//! by its built-in rules; and nothing is run. A static program needs nothing, and that is an answer too.
//!
//! [`Elf`] is what one file says; [`closure`] follows it to all others.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use crate::elf::{self, Elf, Machine};
use crate::limits::ELF_LIBRARIES;

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

/// The paths of all files that `program` needs besides itself, as the kernel and the interpreter will look for them.
///
/// Directories on the way may be symbolic links on the host; in an image the paths must lead to the same files.
pub(super) fn closure(program: &Path) -> Result<BTreeSet<PathBuf>, Error> {
    let main = read(program)?;
    let mut found = BTreeSet::new();
    let Some(interpreter) = main.interpreter.clone().map(to_path) else { return Ok(found) };
    if !is_plain(&interpreter) {
        return Err(Error::Damaged { path: program.into(), what: "its interpreter has no plain path" });
    }
    let mut defaults = directories(elf::default_directories(main.machine, interpreter.as_os_str().as_bytes()));
    defaults.extend(interpreter.canonicalize().ok().and_then(|real| Some(real.parent()?.to_owned())));
    let (machine, inherited) = (main.machine, search(program, &main.rpath));
    let mut waiting = VecDeque::from([(program.to_owned(), main)]);
    found.insert(interpreter);
    while let Some((path, elf)) = waiting.pop_front() {
        let own = match elf.runpath.as_slice() {
            [] => [search(&path, &elf.rpath), inherited.clone()].concat(),
            runpath => search(&path, runpath),
        };
        for library in elf.needed.into_iter().map(to_path) {
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

/// Reads what `path` says.
fn read(path: &Path) -> Result<Elf, Error> {
    let io = |source| Error::Io { path: path.into(), source };
    let file = File::open(path).map_err(io)?;
    if !file.metadata().map_err(io)?.is_file() {
        return Err(Error::NotElf(path.into()));
    }
    Elf::read(&file).map_err(|error| match error {
        elf::Error::Io(source) => Error::Io { path: path.into(), source },
        elf::Error::NotElf => Error::NotElf(path.into()),
        elf::Error::Damaged(what) => Error::Damaged { path: path.into(), what },
    })
}

/// The directories in which the search paths of `file` look.
fn search(file: &Path, paths: &[Vec<u8>]) -> Vec<PathBuf> {
    let origin = file.canonicalize().ok().and_then(|real| Some(real.parent()?.to_owned()));
    let origin = origin.as_deref().map(|origin| origin.as_os_str().as_bytes());
    let found = paths.iter().flat_map(|text| elf::search_path(text, origin)).collect();
    // `$ORIGIN/../lib` is the usual form; what it means on the host is what it must mean in the image.
    let plain = directories(found).into_iter();
    plain
        .map(|directory| if is_plain(&directory) { directory } else { directory.canonicalize().unwrap_or(directory) })
        .collect()
}

fn directories(paths: Vec<Vec<u8>>) -> Vec<PathBuf> {
    paths.into_iter().map(to_path).collect()
}

fn to_path(bytes: Vec<u8>) -> PathBuf {
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_shell_of_this_host_names_its_interpreter_and_libraries() {
        let shell = Path::new("/bin/sh");
        let elf = read(shell).expect("the shell is an ELF file");
        let closure = closure(shell).expect("its libraries are here");
        assert!(closure.len() >= elf.needed.len() + usize::from(elf.interpreter.is_some()), "{closure:?}");
        assert!(closure.iter().all(|path| path.exists()), "{closure:?}");
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
    fn what_is_no_program_is_refused_and_a_static_one_needs_nothing() {
        assert!(matches!(read(Path::new("/")), Err(Error::NotElf(_))));
        assert!(matches!(read(Path::new("/nowhere")), Err(Error::Io { .. })));
        // The start of a 64-bit big-endian program for s390x.
        let mut bytes = vec![0; 64];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x02");
        bytes[19] = 22;
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(&bytes).expect("it can be written");
        assert_eq!(closure(file.path()).expect("nothing is missing"), BTreeSet::new());
    }
}
