//! What a program file says about other files: its interpreter, the libraries it links to, and which parts of itself are
//! used as soon as it runs.
//!
//! Programs come from hosts and from images, as files or as bytes that have yet to be fetched; so [`Elf::read`] asks for
//! what it needs through [`ReadAt`], a few hundred bytes at a time, and nothing here opens anything. Every length in a
//! file is bounded before it is used. `loader` is how interpreters look for libraries: default directories, `$ORIGIN`,
//! and the binary `/etc/ld.so.cache`.

mod loader;
#[cfg(test)]
mod tests;

use std::io;
use std::ops::Range;

use crate::limits::{ELF_DYNAMIC_BYTES, ELF_NAMES, ELF_PROGRAM_HEADERS, ELF_STRING_BYTES, ELF_STRINGS_BYTES};

pub use loader::{LoaderCache, default_directories, search_path};

/// A place to read from by offset.
pub trait ReadAt {
    /// Reads into `buffer` from `offset` on and returns how many bytes there were, 0 only at the end. An offset beyond the
    /// end is the end. May block; what it returns for an error ends the reading.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
}

impl ReadAt for std::fs::File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        // The kernel refuses offsets that no file has.
        if i64::try_from(offset).is_err() {
            return Ok(0);
        }
        std::os::unix::fs::FileExt::read_at(self, buffer, offset)
    }
}

/// Why a file cannot be read as a program.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read at all.
    #[error("it cannot be read")]
    Io(#[source] io::Error),
    /// It is no ELF file.
    #[error("it is no ELF program")]
    NotElf,
    /// It contradicts itself, or a bound.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
}

/// Which processors can run a file; a library must agree with its program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    wide: bool,
    little: bool,
    number: u16,
}

/// What one ELF file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elf {
    /// Who can run it.
    pub machine: Machine,
    /// The path of its interpreter (`PT_INTERP`), of programs that have one.
    pub interpreter: Option<Vec<u8>>,
    /// The libraries it links to (`DT_NEEDED`), names or paths.
    pub needed: Vec<Vec<u8>>,
    /// Where this file and those it loads look (`DT_RPATH`), as written; see [`search_path`].
    pub rpath: Vec<Vec<u8>>,
    /// Where this file alone looks (`DT_RUNPATH`), as written; replaces `rpath`.
    pub runpath: Vec<Vec<u8>>,
    /// The parts of the file that its loading touches, whatever it does then: see [`Elf::read`].
    pub start: Vec<Range<u64>>,
    /// Where its constants are: what is loaded to be read only, behind the tables of symbols and relocations. Old linkers put
    /// them beside the code; then there are none here.
    pub constants: Vec<Range<u64>>,
}

/// A part of the file, by its place in memory and in the file.
#[derive(Debug, Clone, Copy)]
struct Part {
    kind: u32,
    flags: u64,
    offset: u64,
    address: u64,
    size: u64,
}

/// The dynamic section: tags and values (elf(5)).
struct Dynamic(Vec<(u64, u64)>);

/// Reads numbers and strings of one file.
struct Reader<'a> {
    file: &'a dyn ReadAt,
    machine: Machine,
    header: [u8; 64],
}

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const PF_X: u64 = 1;
const PF_W: u64 = 2;
const PF_R: u64 = 4;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_STRSZ: u64 = 10;
const DT_RPATH: u64 = 15;
const DT_RUNPATH: u64 = 29;

/// Tables that the interpreter reads to relocate a file, address and size: DT_STRTAB, DT_RELA, DT_REL, DT_JMPREL, DT_RELR; and
/// those whose size nothing says: DT_HASH, DT_SYMTAB, DT_GNU_HASH, DT_VERSYM, DT_VERNEED.
const TABLES: [(u64, Option<u64>); 10] = [
    (DT_STRTAB, Some(DT_STRSZ)),
    (7, Some(8)),
    (17, Some(18)),
    (23, Some(2)),
    (36, Some(35)),
    (4, None),
    (6, None),
    (0x6fff_fef5, None),
    (0x6fff_fff0, None),
    (0x6fff_fffe, None),
];

/// What the kernel reads on either side of a page of a mapped file: half of a cluster of its read-around.
const AROUND: u64 = 64 << 10;

/// The start of a file that every loading reads: headers and what follows them.
const HEAD: u64 = 64 << 10;

impl Machine {
    /// From what [`Self::to_number`] gave.
    pub fn of_number(number: u32) -> Option<Self> {
        let bit = |place: u32| number >> place & 1 == 1;
        (number >> 18 == 0).then_some(Self { wide: bit(17), little: bit(16), number: number as u16 })
    }

    /// The `e_machine` number, and above its 16 bits the order and the size of the machine's words.
    pub fn to_number(self) -> u32 {
        u32::from(self.wide) << 17 | u32::from(self.little) << 16 | u32::from(self.number)
    }

    /// The `e_machine` number, and whether addresses have 64 bits.
    fn kind(self) -> (u16, bool) {
        (self.number, self.wide)
    }
}

impl Elf {
    /// One that says nothing but who can run it.
    pub fn new(machine: Machine) -> Self {
        Self {
            machine,
            interpreter: None,
            needed: Vec::new(),
            rpath: Vec::new(),
            runpath: Vec::new(),
            start: Vec::new(),
            constants: Vec::new(),
        }
    }

    /// Reads what `file` says.
    ///
    /// The parts in [`Elf::start`] are why a library can be used before all of it is there: the headers, the tables of
    /// symbols and relocations (which linkers put first, before the code, and patching may move to the end), the writable
    /// segments, whose pages relocation changes, and the first code; each with what the kernel reads around it. Other code is touched by what the program then does, which nobody
    /// knows without a recording.
    pub fn read(file: &dyn ReadAt) -> Result<Self, Error> {
        Reader::new(file)?.elf()
    }

    /// The parts of a file that [`Elf::read`] needs besides its start, as far as those are known that lie before them: the
    /// dynamic section, and the strings that it names. Nothing if the headers are damaged.
    pub fn needed_parts(file: &dyn ReadAt) -> Vec<Range<u64>> {
        let Ok(reader) = Reader::new(file) else { return Vec::new() };
        let parts = reader.parts().unwrap_or_default();
        let section = parts.iter().find(|part| part.kind == PT_DYNAMIC && part.size <= ELF_DYNAMIC_BYTES);
        let Some(section) = section else { return Vec::new() };
        let strings = reader.dynamic(*section).ok().and_then(|dynamic| dynamic.strings(&parts));
        let section = section.offset..section.offset.saturating_add(section.size);
        std::iter::once(section).chain(strings).collect()
    }
}

impl<'a> Reader<'a> {
    fn new(file: &'a dyn ReadAt) -> Result<Self, Error> {
        let mut header = [0; 64];
        let length = read_some(file, &mut header, 0)?;
        if length < 52 || header[..4] != *b"\x7fELF" {
            return Err(Error::NotElf);
        }
        let (wide, little) = match (header[4], header[5]) {
            (class @ (1 | 2), data @ (1 | 2)) => (class == 2, data == 1),
            _ => return Err(Error::NotElf),
        };
        let mut reader = Self { file, machine: Machine { wide, little, number: 0 }, header };
        reader.machine.number = u16::try_from(reader.number(&header[18..20])).unwrap_or(0);
        Ok(reader)
    }

    fn elf(&self) -> Result<Elf, Error> {
        let parts = self.parts()?;
        let mut elf = Elf::new(self.machine);
        if let Some(part) = parts.iter().find(|part| part.kind == PT_INTERP) {
            elf.interpreter = Some(self.string(part.offset)?);
        }
        let mut tables = Vec::new();
        if let Some(dynamic) = parts.iter().find(|part| part.kind == PT_DYNAMIC) {
            let dynamic = self.dynamic(*dynamic)?;
            self.texts(&dynamic, &parts, &mut elf)?;
            tables = dynamic.tables(&parts);
        }
        let entry = if self.machine.wide { &self.header[24..32] } else { &self.header[24..28] };
        let entry = place_of(self.number(entry), &parts).filter(|entry| *entry > 0);
        let entry = entry.map(|entry| entry..entry);
        let loaded = |part: &&Part| part.kind == PT_LOAD && part.size > 0;
        let range = |part: &Part| part.offset..part.offset.saturating_add(part.size);
        let written = parts.iter().filter(loaded).filter(|part| part.flags & PF_W != 0).map(range);
        // The first code of every file that a C compiler linked runs when it is loaded.
        let code =
            parts.iter().filter(loaded).filter(|part| part.flags & PF_X != 0).map(|part| part.offset..part.offset);
        let touched = tables.iter().cloned().chain(entry).chain(code).chain(written);
        elf.start = joined(std::iter::once(0..HEAD).chain(touched.map(|part| around(&part))).collect());
        let constants = parts.iter().filter(loaded).filter(|part| part.flags == PF_R).map(range);
        let behind = |part: &Range<u64>| {
            tables.iter().map(|table| table.end).filter(|end| (part.start..=part.end).contains(end)).max()
        };
        let constants = constants.map(|part| behind(&part).unwrap_or(part.start)..part.end);
        elf.constants = joined(constants.filter(|part| part.start < part.end).collect());
        Ok(elf)
    }

    /// The program headers.
    fn parts(&self) -> Result<Vec<Part>, Error> {
        let wide = self.machine.wide;
        let header = &self.header;
        let (table, entry, count) = if wide {
            (&header[32..40], &header[54..56], &header[56..58])
        } else {
            (&header[28..32], &header[42..44], &header[44..46])
        };
        let (table, entry, count) = (self.number(table), self.number(entry), self.number(count));
        if count > u64::from(ELF_PROGRAM_HEADERS) {
            return Err(Error::Damaged("too many program headers"));
        }
        let least = if wide { 56 } else { 32 };
        if count > 0 && !(least..=4096).contains(&entry) {
            return Err(Error::Damaged("program headers of an impossible size"));
        }
        let mut parts = Vec::new();
        for index in 0..count {
            let place = table.checked_add(index * entry).ok_or(Error::Damaged("program headers out of reach"))?;
            let bytes = self.bytes(place, least)?;
            let (flags, offset, address, size) =
                if wide { (4..8, 8..16, 16..24, 32..40) } else { (24..28, 4..8, 8..12, 16..20) };
            parts.push(Part {
                kind: u32::try_from(self.number(&bytes[0..4])).unwrap_or(0),
                flags: self.number(&bytes[flags]),
                offset: self.number(&bytes[offset]),
                address: self.number(&bytes[address]),
                size: self.number(&bytes[size]),
            });
        }
        Ok(parts)
    }

    fn dynamic(&self, section: Part) -> Result<Dynamic, Error> {
        if section.size > ELF_DYNAMIC_BYTES {
            return Err(Error::Damaged("a dynamic section too long"));
        }
        let bytes = self.bytes(section.offset, section.size)?;
        let word = if self.machine.wide { 8 } else { 4 };
        let entries = bytes.chunks_exact(2 * word);
        let entries = entries.map(|entry| (self.number(&entry[..word]), self.number(&entry[word..])));
        Ok(Dynamic(entries.take_while(|(tag, _)| *tag != 0).collect()))
    }

    /// Reads the strings of the dynamic section into `elf`.
    fn texts(&self, dynamic: &Dynamic, parts: &[Part], elf: &mut Elf) -> Result<(), Error> {
        let Some(address) = dynamic.value(DT_STRTAB) else { return Ok(()) };
        let table = place_of(address, parts).ok_or(Error::Damaged("a string table that is not loaded"))?;
        let is_name = |tag: &u64| matches!(*tag, DT_NEEDED | DT_RPATH | DT_RUNPATH);
        if dynamic.0.iter().filter(|(tag, _)| is_name(tag)).count() > ELF_NAMES {
            return Err(Error::Damaged("too many names"));
        }
        for (tag, value) in &dynamic.0 {
            let list = match *tag {
                DT_NEEDED => &mut elf.needed,
                DT_RPATH => &mut elf.rpath,
                DT_RUNPATH => &mut elf.runpath,
                _ => continue,
            };
            list.push(self.string(table.checked_add(*value).ok_or(Error::Damaged("a string out of reach"))?)?);
        }
        Ok(())
    }

    fn bytes(&self, place: u64, length: u64) -> Result<Vec<u8>, Error> {
        let length = usize::try_from(length).map_err(|_| Error::Damaged("too long a part"))?;
        let mut bytes = vec![0; length];
        match read_some(self.file, &mut bytes, place)? {
            count if count == length => Ok(bytes),
            _ => Err(Error::Damaged("it ends too early")),
        }
    }

    /// The string that begins at `place` and ends at a NUL.
    fn string(&self, place: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; usize::try_from(ELF_STRING_BYTES).unwrap_or(usize::MAX)];
        let count = read_some(self.file, &mut bytes, place)?;
        let end = bytes[..count].iter().position(|byte| *byte == 0).ok_or(Error::Damaged("a string without end"))?;
        bytes.truncate(end);
        Ok(bytes)
    }

    /// A number of up to eight bytes in the file's byte order.
    fn number(&self, bytes: &[u8]) -> u64 {
        let add = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        if self.machine.little { bytes.iter().rev().fold(0, add) } else { bytes.iter().fold(0, add) }
    }
}

impl Dynamic {
    fn value(&self, wanted: u64) -> Option<u64> {
        self.0.iter().find_map(|(tag, value)| (*tag == wanted).then_some(*value))
    }

    /// The places of the tables in the file, in order. One whose size nothing says goes up to the next, or to the end of
    /// what is loaded with it.
    fn tables(&self, parts: &[Part]) -> Vec<Range<u64>> {
        let places: Vec<_> =
            TABLES.iter().filter_map(|(table, size)| Some((place_of(self.value(*table)?, parts)?, *size))).collect();
        let loaded = |place: u64| {
            let mut loaded = parts.iter().filter(|part| part.kind == PT_LOAD);
            let part = loaded.find(|part| place.checked_sub(part.offset).is_some_and(|inside| inside < part.size));
            part.map_or(place, |part| part.offset.saturating_add(part.size))
        };
        let end = |(start, size): &(u64, Option<u64>)| match size {
            Some(size) => start.saturating_add(self.value(*size).unwrap_or(0)),
            None => places.iter().map(|(place, _)| *place).filter(|place| place > start).fold(loaded(*start), u64::min),
        };
        let mut tables: Vec<_> = places.iter().map(|place| place.0..end(place)).collect();
        tables.sort_by_key(|table| (table.start, table.end));
        tables
    }

    /// The strings, if they are not too long.
    fn strings(&self, parts: &[Part]) -> Option<Range<u64>> {
        let start = place_of(self.value(DT_STRTAB)?, parts)?;
        let size = self.value(DT_STRSZ).filter(|size| *size <= ELF_STRINGS_BYTES)?;
        Some(start..start.checked_add(size)?)
    }
}

/// What the kernel reads when `part` is touched.
fn around(part: &Range<u64>) -> Range<u64> {
    part.start.saturating_sub(AROUND)..part.end.saturating_add(AROUND)
}

/// Parts in order, those that touch as one.
fn joined(mut parts: Vec<Range<u64>>) -> Vec<Range<u64>> {
    parts.sort_by_key(|part| part.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for part in parts {
        match joined.last_mut() {
            Some(last) if part.start <= last.end => last.end = last.end.max(part.end),
            _ => joined.push(part),
        }
    }
    joined
}

/// Where the byte at `address` in memory is in the file: the loaded part it lies in says that.
fn place_of(address: u64, parts: &[Part]) -> Option<u64> {
    parts.iter().filter(|part| part.kind == PT_LOAD).find_map(|part| {
        let inside = address.checked_sub(part.address).filter(|inside| *inside < part.size)?;
        part.offset.checked_add(inside)
    })
}

/// Reads until the buffer is full or the file ends. A place no file has is the end of every file.
pub(crate) fn read_some(file: &dyn ReadAt, buffer: &mut [u8], place: u64) -> Result<usize, Error> {
    let mut filled = 0;
    while filled < buffer.len() {
        let Some(place) = place.checked_add(filled as u64) else { break };
        match file.read_at(&mut buffer[filled..], place) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::Io(error)),
        }
    }
    Ok(filled)
}
