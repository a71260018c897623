//! What a file says about others: those that running or importing it leads to.
//!
//! A program starts as a chain: it names its libraries, a script names its interpreter and its modules, and those name the next
//! ones. Who has the bytes can read that from them ([`crate::elf`], [`crate::python`], [`crate::javascript`]); who has not would fetch one file to
//! learn the name of the next. So an index keeps it for each file that says such a thing: [`Observer`] finds it out while the
//! bytes of a layer pass by, once, and [`Dependencies`] is what it finds.
//!
//! Nothing of this is believed: whoever fetches ahead uses it as a guess.

mod held;
#[cfg(test)]
mod tests;

use std::collections::HashSet;

use crate::elf::{Elf, ReadAt, read_some};
use crate::javascript::{Package, specifiers};
use crate::limits::{
    AHEAD_HOOK_BYTES, AHEAD_MODULE_BYTES, CONSTANT_NAME_BYTES, CONSTANT_NAMES, DEPENDENCIES_PROGRAM_BYTES,
    DEPENDENCIES_RECORD_BYTES, SCRIPT_LINE_BYTES,
};
use crate::python::{Compiled, Import, imports_of_source, names_in_constants};

use held::{Held, START};

/// What one file says about others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dependencies {
    /// A script of any language, or a module of Python or JavaScript in source form.
    Script {
        /// The programs that its `#!` line names, see [`interpreters`]; none without such a line.
        interpreters: Vec<Vec<u8>>,
        /// What it imports if it is Python.
        imports: Vec<Import>,
        /// The names of modules in it if it is JavaScript.
        specifiers: Vec<String>,
    },
    /// A program or library.
    Program {
        /// What it links to.
        elf: Box<Elf>,
        /// The names among its constants that may be those of modules, if it is an extension of an interpreter.
        names: Vec<String>,
    },
    /// A compiled Python module.
    Compiled(Compiled),
    /// What a `package.json` says.
    Package(Package),
    /// All of a short file that is a list of names: a `.pth` file of Python, or `/etc/ld.so.cache`.
    Text(Vec<u8>),
}

/// What the name of a file says about its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    Source,
    Compiled,
    Extension,
    JavaScript,
    Package,
    Text,
    /// `/etc/ld.so.cache`.
    Libraries,
    /// Its first bytes will tell.
    Other,
}

impl Name {
    fn of(path: &[u8]) -> Self {
        let extensions: [(&[u8], Self); 8] = [
            (b".py", Self::Source),
            (b".pyc", Self::Compiled),
            (b".so", Self::Extension),
            (b".js", Self::JavaScript),
            (b".cjs", Self::JavaScript),
            (b".mjs", Self::JavaScript),
            (b"/package.json", Self::Package),
            (b".pth", Self::Text),
        ];
        let found = extensions.iter().find(|(extension, _)| path.ends_with(extension));
        match found {
            Some((_, name)) => *name,
            None if path == b"etc/ld.so.cache" => Self::Libraries,
            None => Self::Other,
        }
    }

    /// Most bytes of a file that are worth holding, whatever they are.
    fn most(self) -> u64 {
        match self {
            Self::Source | Self::Compiled | Self::JavaScript => AHEAD_MODULE_BYTES,
            Self::Libraries => DEPENDENCIES_RECORD_BYTES as u64 / 2,
            Self::Package | Self::Text => AHEAD_HOOK_BYTES,
            Self::Extension | Self::Other => u64::MAX,
        }
    }
}

/// Looks at one file while its bytes pass by. Holds what matters of them: nothing of most files.
#[derive(Debug)]
pub struct Observer {
    name: Name,
    held: Held,
    /// The place where it is next decided what is held of the rest.
    stop: u64,
}

impl Observer {
    /// For a file of `size` bytes at `path`, which is relative to the root of the image.
    pub fn new(path: &[u8], size: u64) -> Self {
        let name = Name::of(path);
        let most = if size <= name.most() { DEPENDENCIES_PROGRAM_BYTES } else { 0 };
        Self { name, held: Held::new(size, most), stop: size.min(START) }
    }

    /// Takes the next bytes of the file.
    pub fn data(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let left = self.stop.checked_sub(self.held.seen()).filter(|left| *left > 0);
            let length = left.map_or(bytes.len(), |left| usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len()));
            let (now, later) = bytes.split_at(length);
            self.held.push(now);
            if self.held.seen() == self.stop {
                self.decide();
            }
            bytes = later;
        }
    }

    /// Chooses by the bytes so far what is held of the rest.
    fn decide(&mut self) {
        let start = self.held.start();
        match self.name {
            Name::Source | Name::Compiled | Name::JavaScript | Name::Package | Name::Text | Name::Libraries => {}
            Name::Extension | Name::Other if start.starts_with(b"\x7fELF") => {
                // What says where everything else is may lie far behind, in a program of a hundred megabytes, and so may that.
                let parts = Elf::needed_parts(&self.held);
                let next = parts.last().map(|part| part.end).filter(|end| *end > self.held.seen());
                parts.into_iter().for_each(|part| self.held.hold_also(part));
                self.stop = next.unwrap_or(0);
            }
            Name::Other if start.starts_with(b"#!") && self.held.size() <= AHEAD_MODULE_BYTES => {}
            Name::Extension | Name::Other => self.held.hold_nothing(),
        }
    }

    /// What the file says, after all of its bytes; none if it says nothing, or cannot be read.
    pub fn finish(self) -> Option<Dependencies> {
        let start = self.held.start();
        match self.name {
            _ if start.is_empty() => None,
            Name::Source => Some(script(self.held.whole()?, Some(Language::Python))),
            Name::JavaScript => Some(script(self.held.whole()?, Some(Language::JavaScript))),
            Name::Compiled => Compiled::parse(self.held.whole()?).map(Dependencies::Compiled),
            Name::Package => Package::parse(self.held.whole()?).map(Dependencies::Package),
            Name::Text | Name::Libraries => Some(Dependencies::Text(self.held.whole()?.to_vec())),
            Name::Other if start.starts_with(b"#!") => Some(script(self.held.whole()?, None)),
            Name::Extension | Name::Other => {
                let elf = Elf::read(&self.held).ok()?;
                let constants = elf.constants.iter().filter(|_| self.name == Name::Extension);
                let constants = constants.filter_map(|range| self.held.get(range.clone()));
                let names = constants.flat_map(|bytes| names_in_constants(bytes, CONSTANT_NAME_BYTES));
                let mut seen = HashSet::new();
                let names = names.filter(|name| seen.insert(*name)).take(CONSTANT_NAMES).map(str::to_owned).collect();
                Some(Dependencies::Program { names, elf: Box::new(elf) })
            }
        }
    }
}

/// A language in which a text may name other files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Language {
    Python,
    JavaScript,
}

impl Language {
    /// The language of the program at `path`.
    fn of(path: &[u8]) -> Option<Self> {
        match name_of(path) {
            b"node" | b"nodejs" => Some(Self::JavaScript),
            name => name.starts_with(b"python").then_some(Self::Python),
        }
    }
}

/// What a text says; its `#!` line names the language if nothing else does.
fn script(text: &[u8], language: Option<Language>) -> Dependencies {
    let interpreters = interpreters(text);
    let language = language.or_else(|| interpreters.iter().find_map(|path| Language::of(path)));
    let imports = if language == Some(Language::Python) { imports_of_source(text) } else { Vec::new() };
    let specifiers = if language == Some(Language::JavaScript) { specifiers(text) } else { Vec::new() };
    Dependencies::Script { interpreters, imports, specifiers }
}

/// The last component of a path.
pub(crate) fn name_of(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

/// The name of the module or package outside any other that the file at `path` is of, going by where Python looks for them; none
/// if it is of none.
pub fn module_of(path: &[u8]) -> Option<&str> {
    let mut parts = path.split(|byte| *byte == b'/').peekable();
    while let Some(above) = parts.next() {
        let is_searched = above.ends_with(b"-packages") || above == b"lib-dynload" || above.starts_with(b"python3.");
        let stem = parts.peek()?.split(|byte| *byte == b'.').next().unwrap_or_default();
        if is_searched && !stem.ends_with(b"-packages") && stem != b"lib-dynload" {
            return std::str::from_utf8(stem).ok().filter(|stem| !stem.is_empty());
        }
    }
    None
}

/// The programs that the `#!` line at the start of a file names: the interpreter, and what `env` is to run. The last one is
/// what the script is for. None if there is no such line.
pub fn interpreters(start: &[u8]) -> Vec<Vec<u8>> {
    let start = &start[..start.len().min(SCRIPT_LINE_BYTES)];
    let Some(line) = start.strip_prefix(b"#!") else { return Vec::new() };
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let Some(interpreter) = words.next() else { return Vec::new() };
    let mut programs = vec![interpreter.to_vec()];
    if interpreter.ends_with(b"/env") {
        let named = words.find(|word| !word.starts_with(b"-") && !word.contains(&b'='));
        programs.extend(named.map(<[u8]>::to_vec));
    }
    programs
}

impl Dependencies {
    /// What a file is that is about to be run, by as few of its bytes as possible; none if it is neither script nor program.
    /// The imports of scripts and the names in constants are not looked for.
    pub fn of_program(file: &dyn ReadAt) -> Option<Self> {
        let mut start = vec![0; SCRIPT_LINE_BYTES];
        let filled = read_some(file, &mut start, 0).ok()?;
        if start.starts_with(b"#!") {
            return Some(Self::Script {
                interpreters: interpreters(&start[..filled]),
                imports: Vec::new(),
                specifiers: Vec::new(),
            });
        }
        let elf = Elf::read(file).ok()?;
        Some(Self::Program { elf: Box::new(elf), names: Vec::new() })
    }
}
