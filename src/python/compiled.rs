//! Compiled modules: the header of a `.pyc` file (PEP 552) and the bytecode of the module.
//!
//! Bytecode is different in every version of Python, but importing is not: two constants are loaded, the level and the names,
//! and then comes the instruction that names the module. Versions are told apart by the magic number of the header.
//!
//! An attribute of an imported module may be a module of its own, which that one imports when it is asked for it (PEP 562):
//! `np.random` does what `from numpy import random` does, and counts as that.

use std::collections::{HashMap, HashSet};

use super::marshal::{Code, Layout, Object, Objects};
use super::{Import, LEVELS, MOST};
use crate::limits::MODULE_NAME_BYTES;

/// Length of the header in bytes.
const HEADER: usize = 16;

/// Most names taken from one statement, and from all statements and attributes of a module together.
const MOST_NAMES: usize = 1024;
const MOST_TOGETHER: usize = 16 * MOST;

/// The name whose truth means that only a type checker reads what follows.
const TYPE_CHECKING: &str = "TYPE_CHECKING";

/// How a module knows that it is still the compiled form of its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stamp {
    /// If the source has this modification time, in seconds modulo 2³², and this length modulo 2³².
    Source {
        /// Seconds.
        mtime: u32,
        /// Bytes.
        size: u32,
    },
    /// If the source has a certain hash: it is read.
    Hash,
    /// Without looking.
    Unchecked,
}

/// A compiled module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiled {
    /// What its source must be like.
    pub stamp: Stamp,
    /// What it imports, in its order; none if this version of Python is not known.
    pub imports: Option<Vec<Import>>,
}

/// What differs between versions of Python.
#[derive(Debug, Clone, Copy)]
struct Version {
    layout: Layout,
    extended: u8,
    load_constant: u8,
    load_name: u8,
    store_name: u8,
    load_attribute: u8,
    /// How far an attribute's number is shifted.
    attribute_shift: u32,
    import: u8,
    jump_if_false: u8,
    jump: Jump,
}

/// What the argument of a conditional jump means.
#[derive(Debug, Clone, Copy)]
enum Jump {
    /// The offset in bytes.
    Byte,
    /// The number of the instruction.
    Instruction,
    /// So many instructions further.
    Further,
}

impl Version {
    /// The version with this magic number: the first one that CPython's `Lib/importlib/_bootstrap_external.py` (since 3.14
    /// `Include/internal/pycore_magic_number.h`) lists for a series, up to the first one of the next.
    fn of(magic: u16) -> Option<Self> {
        let old = Self {
            layout: Layout { numbers: 6, tail: 1 },
            extended: 144,
            load_constant: 100,
            load_name: 101,
            store_name: 90,
            load_attribute: 106,
            attribute_shift: 0,
            import: 108,
            jump_if_false: 114,
            jump: Jump::Byte,
        };
        let layout = Layout { numbers: 5, tail: 2 };
        Some(match magic {
            // 3.8 and 3.9.
            3400..3430 => old,
            // 3.10 counts instructions.
            3430..3450 => Self { jump: Jump::Instruction, ..old },
            // 3.11 has other code objects.
            3450..3500 => Self { jump: Jump::Further, layout, ..old },
            // 3.12 keeps a flag in the lowest bit of an attribute's number.
            3500..3550 => Self { jump: Jump::Further, layout, attribute_shift: 1, ..old },
            // 3.13 numbers its instructions by name.
            3550..3600 => Self {
                layout,
                extended: 71,
                load_constant: 83,
                load_name: 92,
                store_name: 114,
                load_attribute: 82,
                attribute_shift: 1,
                import: 75,
                jump_if_false: 97,
                jump: Jump::Further,
            },
            _ => return None,
        })
    }
}

impl Compiled {
    /// Reads a `.pyc` file; none if it is no such thing.
    pub fn parse(file: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_le_bytes(file.get(at..at + 4)?.try_into().ok()?));
        let magic = word(0)?;
        if magic >> 16 != u32::from(u16::from_le_bytes(*b"\r\n")) {
            return None;
        }
        let stamp = match word(4)? {
            0 => Stamp::Source { mtime: word(8)?, size: word(12)? },
            1 => Stamp::Unchecked,
            3 => Stamp::Hash,
            _ => return None,
        };
        let imports = Version::of(magic as u16).and_then(|version| {
            let objects = Objects::read(file.get(HEADER..)?, version.layout)?;
            let Object::Code(code) = *objects.root()? else { return None };
            Some(
                Walk {
                    version,
                    objects: &objects,
                    constants: objects.tuple(code.constants)?,
                    names: names(&objects, code)?,
                }
                .imports(objects.bytes(code.bytecode)?),
            )
        });
        Some(Self { stamp, imports })
    }
}

fn names<'a>(objects: &Objects<'a>, code: Code) -> Option<Vec<&'a str>> {
    Some(
        objects
            .tuple(code.names)?
            .iter()
            .map(|name| objects.text(*name, MODULE_NAME_BYTES).unwrap_or_default())
            .collect(),
    )
}

struct Walk<'a> {
    version: Version,
    objects: &'a Objects<'a>,
    constants: &'a [u32],
    names: Vec<&'a str>,
}

/// What came before an instruction.
#[derive(Debug, Default)]
struct Seen {
    /// The constants loaded last.
    loaded: [Option<usize>; 2],
    /// The name loaded last is that of type checking.
    is_checked: bool,
    /// The module imported just now.
    imported: Option<String>,
    /// The name of a module that was loaded just now.
    module: Option<usize>,
    /// The modules by the numbers of the names that they were given.
    modules: HashMap<usize, String>,
    /// The attributes of modules that were asked for, by the numbers of the names of both.
    attributes: HashSet<(usize, usize)>,
    /// Imports and their names so far.
    count: usize,
}

impl Walk<'_> {
    /// Goes through the bytecode of a module once, in order. What it skips and what it jumps to does not matter to it, but
    /// for what only type checkers see.
    fn imports(&self, bytecode: &[u8]) -> Vec<Import> {
        let version = &self.version;
        let mut imports = Vec::new();
        let mut argument = 0_usize;
        let mut visible_from = 0;
        let mut seen = Seen::default();
        for (number, unit) in bytecode.chunks_exact(2).enumerate() {
            let (code, low) = (unit[0], unit[1]);
            argument = (argument << 8 | usize::from(low)) & 0xffff_ffff;
            if code == version.extended {
                continue;
            }
            let operand = std::mem::take(&mut argument);
            // Room for what an interpreter keeps beside an instruction.
            if code == 0 || number < visible_from {
                continue;
            }
            if code == version.jump_if_false && seen.is_checked {
                visible_from = match version.jump {
                    Jump::Byte => operand / 2,
                    Jump::Instruction => operand,
                    Jump::Further => number.saturating_add(1).saturating_add(operand),
                };
            }
            if let Some(import) = self.step(code, operand, &mut seen) {
                seen.count += 1 + import.names.len();
                imports.push(import);
            }
            if imports.len() >= MOST || seen.count >= MOST_TOGETHER {
                break;
            }
        }
        imports
    }

    /// Looks at one instruction.
    fn step(&self, code: u8, operand: usize, seen: &mut Seen) -> Option<Import> {
        let version = &self.version;
        let name = |shift: u32| self.names.get(operand >> shift).copied();
        let (imported, module) = (seen.imported.take(), seen.module.take());
        let was_checked = std::mem::take(&mut seen.is_checked);
        if code == version.load_constant {
            seen.loaded = [seen.loaded[1], Some(operand)];
        } else if code == version.import {
            let import = self.import(name(0)?, seen.loaded)?;
            if import.level == 0 && import.names.is_empty() {
                // A dotted name without another name stands for its first part.
                seen.imported = import.module.split('.').next().map(str::to_owned);
            }
            return Some(import);
        } else if code == version.store_name {
            if let Some(imported) = imported {
                seen.attributes.retain(|(module, _)| *module != operand);
                seen.modules.insert(operand, imported);
            } else {
                seen.modules.remove(&operand);
            }
        } else if code == version.load_name {
            seen.is_checked = name(0) == Some(TYPE_CHECKING);
            seen.module = seen.modules.contains_key(&operand).then_some(operand);
        } else if code == version.load_attribute {
            let attribute = name(version.attribute_shift)?;
            seen.is_checked = attribute == TYPE_CHECKING;
            let module = module?;
            let is_new = seen.attributes.insert((module, operand >> version.attribute_shift));
            let module = seen.modules.get(&module).filter(|_| is_new)?.clone();
            return Some(Import { level: 0, module, names: vec![attribute.to_owned()] });
        } else {
            seen.is_checked = was_checked && is_between(code, version);
        }
        None
    }

    fn import(&self, module: &str, loaded: [Option<usize>; 2]) -> Option<Import> {
        let constant = |place: Option<usize>| self.constants.get(place?).copied();
        let level = match self.objects.get(constant(loaded[0])?)? {
            Object::Integer(level) => u32::try_from(*level).ok().filter(|level| *level <= LEVELS)?,
            _ => return None,
        };
        let names = constant(loaded[1]).and_then(|names| self.objects.tuple(names)).unwrap_or_default();
        let names = names.iter().take(MOST_NAMES).filter_map(|name| self.objects.text(*name, MODULE_NAME_BYTES));
        let names = names.map(str::to_owned).collect();
        Some(Import { level, module: module.to_owned(), names })
    }
}

/// True for what may stand between the name and its jump: since 3.13 the conversion to a truth value.
fn is_between(code: u8, version: &Version) -> bool {
    const TO_BOOL: u8 = 40;
    version.load_constant == 83 && code == TO_BOOL
}
