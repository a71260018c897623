//! What the files of a layer say about others ([`crate::dependencies`]), as an index keeps it.
//!
//! One zstd frame, a record for each file that says anything, in the order of their bytes in the layer. Each is named by the
//! place of its first byte, which is also how a merged tree knows it.
//!
//! ```text
//! section = zstd( record* )
//! record  = varint distance from the place before; byte string: body
//! body    = varint kind, then
//!   0 script    strings interpreters; imports; strings specifiers
//!   1 program   varint machine; strings interpreter (one or none), needed, rpath, runpath; ranges start, constants; strings names
//!   2 compiled  varint stamp: 0 hash, 1 unchecked, 2 source, varint mtime, varint size; varint 0, or 1 and imports
//!   3 text      the rest
//!   4 package   strings main (one or none); varint 0, or 1 and pairs of strings as one list: exports
//! strings = varint count; byte string*
//! ranges  = varint count; (varint start, varint length)*
//! imports = varint count; (varint level, byte string module, strings names)*
//! ```
//!
//! Extensions hold thousands of words that could name a module, and which of them do nobody knows who sees one file. So those
//! are kept that are modules of the same layer, or that some module of it imports.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::varint::{put, put_bytes, take, take_bytes};
use crate::dependencies::Dependencies;
use crate::elf::{Elf, Machine};
use crate::javascript::Package;
use crate::limits::{
    CONSTANT_WORDS_BYTES, DEPENDENCIES_BYTES, DEPENDENCIES_RECORD_BYTES, ELF_NAMES, ELF_PARTS, ELF_STRING_BYTES,
};
use crate::python::{Compiled, Import, Stamp};

/// As for entries.
const LEVEL: i32 = 12;

/// Most files of a layer of which anything is said.
const MOST_RECORDS: usize = DEPENDENCIES_BYTES / 32;

/// What a count or a length of something that fits may take.
const NUMBER_BYTES: usize = 4;

const SCRIPT: u64 = 0;
const PROGRAM: u64 = 1;
const COMPILED: u64 = 2;
const TEXT: u64 = 3;
const PACKAGE: u64 = 4;

/// Collects what the files of one layer say.
#[derive(Debug, Default)]
pub(super) struct DependencyWriter {
    records: Vec<Record>,
    /// First parts of the names of modules.
    modules: HashSet<String>,
    /// Bytes that records and modules take.
    length: usize,
    words: Words,
}

#[derive(Debug)]
struct Record {
    place: u64,
    body: Vec<u8>,
    /// Words among the constants, of which those that name modules are yet to be written to the body; none if it needs none.
    words: Option<Vec<u32>>,
}

/// Words among the constants of all extensions, each once: most are in many of them, and few of all name a module.
#[derive(Debug, Default)]
struct Words {
    numbers: HashMap<String, u32>,
    /// Bytes that they and the lists of their numbers take.
    length: usize,
}

impl Words {
    /// The numbers of `words`, as far as there is room for them.
    fn add(&mut self, words: Vec<String>) -> Vec<u32> {
        let mut numbers = Vec::new();
        for word in words {
            let next = u32::try_from(self.numbers.len()).unwrap_or(u32::MAX);
            let known = self.numbers.get(&word).copied();
            self.length += size_of::<u32>() + if known.is_some() { 0 } else { word.len() + size_of::<(String, u32)>() };
            if self.length > CONSTANT_WORDS_BYTES {
                break;
            }
            numbers.push(known.unwrap_or_else(|| *self.numbers.entry(word).or_insert(next)));
        }
        numbers
    }

    /// The words by their numbers.
    fn list(&self) -> Vec<&str> {
        let mut list = vec![""; self.numbers.len()];
        for (word, number) in &self.numbers {
            list[*number as usize] = word;
        }
        list
    }
}

impl DependencyWriter {
    /// Keeps what the file says whose bytes begin at `place` of the stream, which is behind those before, unless it says too
    /// much or there is no room for it.
    pub(super) fn push(&mut self, place: u64, dependencies: Dependencies) {
        let mut body = Vec::new();
        match &dependencies {
            Dependencies::Script { imports, .. } => self.note(imports),
            Dependencies::Compiled(Compiled { imports, .. }) => self.note(imports.as_deref().unwrap_or_default()),
            _ => {}
        }
        put_body(&mut body, &dependencies);
        if body.len() > DEPENDENCIES_RECORD_BYTES {
            return;
        }
        let length = self.length + body.len() + size_of::<Record>();
        if length <= DEPENDENCIES_BYTES {
            let words = match dependencies {
                Dependencies::Program { names, .. } => Some(self.words.add(names)),
                _ => None,
            };
            self.length = length;
            self.records.push(Record { place, body, words });
        }
    }

    fn note(&mut self, imports: &[Import]) {
        let absolute = imports.iter().filter(|import| import.level == 0);
        absolute.filter_map(|import| import.module.split('.').next()).for_each(|first| self.note_module(first));
    }

    /// Takes note that there is a module or package of this name outside any other.
    pub(super) fn note_module(&mut self, name: &str) {
        if !self.modules.contains(name) && self.length < DEPENDENCIES_BYTES {
            self.length += name.len() + size_of::<String>();
            self.modules.insert(name.to_owned());
        }
    }

    /// The section; empty if no file says anything.
    pub(super) fn finish(self) -> Vec<u8> {
        let mut decoded = Vec::new();
        let mut before = 0;
        let words = self.words.list();
        // For names; what else there is fits.
        let mut room = DEPENDENCIES_BYTES.saturating_sub(self.length);
        for mut record in self.records {
            if let Some(numbers) = &record.words {
                let mut own = room.min(DEPENDENCIES_RECORD_BYTES - record.body.len()).saturating_sub(NUMBER_BYTES);
                let is_module = |word: &&str| self.modules.contains(word.split('.').next().unwrap_or(word));
                let names = numbers.iter().map(|number| words[*number as usize]).filter(is_module);
                let fits = |name: &&[u8]| {
                    let left = own.checked_sub(name.len() + NUMBER_BYTES);
                    own = left.unwrap_or(own);
                    left.is_some()
                };
                let names: Vec<_> = names.map(str::as_bytes).take_while(fits).collect();
                let body = record.body.len();
                put_strings(&mut record.body, names.into_iter());
                room = room.saturating_sub(record.body.len() - body);
            }
            put(&mut decoded, record.place - before);
            put_bytes(&mut decoded, &record.body);
            before = record.place;
        }
        if decoded.is_empty() {
            return Vec::new();
        }
        zstd::bulk::compress(&decoded, LEVEL).expect("compressing to memory cannot fail")
    }
}

/// What the files of one layer say, decoded.
#[derive(Debug)]
pub struct DependencyTable {
    bytes: Vec<u8>,
    /// Where each record's body is, by the place of the file; in order of the places.
    records: Vec<(u64, Range<u32>)>,
}

impl DependencyTable {
    /// From the section of a layer with `entries`; none if it is damaged.
    pub(super) fn read(section: &[u8], entries: u64) -> Option<Self> {
        let most = usize::try_from(entries).unwrap_or(usize::MAX).min(MOST_RECORDS);
        let bytes =
            if section.is_empty() { Vec::new() } else { zstd::bulk::decompress(section, DEPENDENCIES_BYTES).ok()? };
        let mut records = Vec::new();
        let (mut rest, mut place) = (&bytes[..], 0_u64);
        while !rest.is_empty() {
            let distance = take(&mut rest)?;
            place = place.checked_add(distance).filter(|_| distance > 0 || records.is_empty())?;
            let body = take_bytes(&mut rest).filter(|body| !body.is_empty() && records.len() < most)?;
            let end = bytes.len() - rest.len();
            records.push((place, u32::try_from(end - body.len()).ok()?..u32::try_from(end).ok()?));
        }
        Some(Self { bytes, records })
    }

    /// Bytes that it takes in memory.
    pub fn size(&self) -> usize {
        self.bytes.len() + self.records.len() * size_of::<(u64, Range<u32>)>()
    }

    /// Bytes to be decoded to say what the file says whose bytes begin at `place` of the layer's stream; none if nothing is
    /// known of it.
    pub fn length_of(&self, place: u64) -> Option<u64> {
        Some(self.body(place)?.len() as u64)
    }

    /// What the file says whose bytes begin at `place` of the layer's stream; none if nothing is known.
    pub fn of(&self, place: u64) -> Option<Dependencies> {
        let mut body = self.body(place)?;
        let found = take_body(&mut body)?;
        body.is_empty().then_some(found)
    }

    fn body(&self, place: u64) -> Option<&[u8]> {
        let number = self.records.binary_search_by_key(&place, |(place, _)| *place).ok()?;
        let body = &self.records[number].1;
        self.bytes.get(body.start as usize..body.end as usize).filter(|body| body.len() <= DEPENDENCIES_RECORD_BYTES)
    }

    /// The places of the files of which something is known.
    pub fn places(&self) -> impl Iterator<Item = u64> + '_ {
        self.records.iter().map(|(place, _)| *place)
    }
}

fn put_body(out: &mut Vec<u8>, dependencies: &Dependencies) {
    match dependencies {
        Dependencies::Script { interpreters, imports, specifiers } => {
            put(out, SCRIPT);
            put_strings(out, interpreters.iter().map(Vec::as_slice));
            put_imports(out, imports);
            put_strings(out, specifiers.iter().map(String::as_bytes));
        }
        // The names follow when it is known which of them are modules.
        Dependencies::Program { elf, names: _ } => {
            put(out, PROGRAM);
            put(out, u64::from(elf.machine.to_number()));
            put_strings(out, elf.interpreter.iter().map(Vec::as_slice));
            for list in [&elf.needed, &elf.rpath, &elf.runpath] {
                put_strings(out, list.iter().map(Vec::as_slice));
            }
            put_ranges(out, &elf.start);
            put_ranges(out, &elf.constants);
        }
        Dependencies::Compiled(Compiled { stamp, imports }) => {
            put(out, COMPILED);
            match stamp {
                Stamp::Hash => put(out, 0),
                Stamp::Unchecked => put(out, 1),
                Stamp::Source { mtime, size } => {
                    put(out, 2);
                    put(out, u64::from(*mtime));
                    put(out, u64::from(*size));
                }
            }
            put(out, u64::from(imports.is_some()));
            if let Some(imports) = imports {
                put_imports(out, imports);
            }
        }
        Dependencies::Package(Package { main, exports }) => {
            put(out, PACKAGE);
            put_strings(out, main.iter().map(String::as_bytes));
            put(out, u64::from(exports.is_some()));
            if let Some(exports) = exports {
                let pairs: Vec<_> = exports.iter().flat_map(|(name, target)| [name, target]).collect();
                put_strings(out, pairs.iter().map(|text| text.as_bytes()));
            }
        }
        Dependencies::Text(text) => {
            put(out, TEXT);
            out.extend_from_slice(text);
        }
    }
}

fn take_body(input: &mut &[u8]) -> Option<Dependencies> {
    Some(match take(input)? {
        SCRIPT => Dependencies::Script {
            interpreters: take_strings(input)?,
            imports: take_imports(input)?,
            specifiers: take_texts(input)?,
        },
        PROGRAM => {
            let elf = Elf {
                machine: Machine::of_number(u32::try_from(take(input)?).ok()?)?,
                interpreter: take_names(input)?.pop(),
                needed: take_names(input)?,
                rpath: take_names(input)?,
                runpath: take_names(input)?,
                start: take_ranges(input)?,
                constants: take_ranges(input)?,
            };
            let names = take_texts(input)?;
            Dependencies::Program { elf: Box::new(elf), names }
        }
        COMPILED => {
            let stamp = match take(input)? {
                0 => Stamp::Hash,
                1 => Stamp::Unchecked,
                2 => Stamp::Source { mtime: number(input)?, size: number(input)? },
                _ => return None,
            };
            let imports = match take(input)? {
                0 => None,
                1 => Some(take_imports(input)?),
                _ => return None,
            };
            Dependencies::Compiled(Compiled { stamp, imports })
        }
        PACKAGE => {
            let main = take_texts(input)?.pop();
            let exports = match take(input)? {
                0 => None,
                1 => {
                    let texts = take_texts(input)?;
                    let pairs = texts.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone()));
                    Some(pairs.collect())
                }
                _ => return None,
            };
            Dependencies::Package(Package { main, exports })
        }
        TEXT => Dependencies::Text(std::mem::take(input).to_vec()),
        _ => return None,
    })
}

fn put_strings<'a>(out: &mut Vec<u8>, strings: impl ExactSizeIterator<Item = &'a [u8]>) {
    put(out, strings.len() as u64);
    strings.for_each(|string| put_bytes(out, string));
}

fn put_ranges(out: &mut Vec<u8>, ranges: &[Range<u64>]) {
    put(out, ranges.len() as u64);
    for range in ranges {
        put(out, range.start);
        put(out, range.end.saturating_sub(range.start));
    }
}

fn put_imports(out: &mut Vec<u8>, imports: &[Import]) {
    put(out, imports.len() as u64);
    for import in imports {
        put(out, u64::from(import.level));
        put_bytes(out, import.module.as_bytes());
        put_strings(out, import.names.iter().map(String::as_bytes));
    }
}

/// A list after its length. Every item takes a byte at least, so the input bounds it.
fn take_list<T>(input: &mut &[u8], item: impl Fn(&mut &[u8]) -> Option<T>) -> Option<Vec<T>> {
    let count = take(input)?;
    (0..count).map(|_| item(input)).collect()
}

fn take_strings(input: &mut &[u8]) -> Option<Vec<Vec<u8>>> {
    take_list(input, |input| take_bytes(input).map(<[u8]>::to_vec))
}

/// Names in a program, of which there are no more than in one that is read.
fn take_names(input: &mut &[u8]) -> Option<Vec<Vec<u8>>> {
    let names = take_strings(input)?;
    let is_short = |name: &Vec<u8>| name.len() as u64 <= ELF_STRING_BYTES;
    (names.len() <= ELF_NAMES && names.iter().all(is_short)).then_some(names)
}

fn take_texts(input: &mut &[u8]) -> Option<Vec<String>> {
    take_list(input, |input| text(take_bytes(input)?))
}

fn take_ranges(input: &mut &[u8]) -> Option<Vec<Range<u64>>> {
    let ranges = take_list(input, |input| {
        let start = take(input)?;
        Some(start..start.checked_add(take(input)?)?)
    })?;
    (ranges.len() <= ELF_PARTS).then_some(ranges)
}

fn take_imports(input: &mut &[u8]) -> Option<Vec<Import>> {
    take_list(input, |input| {
        let (level, module) = (number(input)?, text(take_bytes(input)?)?);
        let names = take_texts(input)?;
        Some(Import { level, module, names })
    })
}

fn number(input: &mut &[u8]) -> Option<u32> {
    take(input)?.try_into().ok()
}

fn text(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes).ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::limits::CONSTANT_NAMES;

    /// Of a layer in which there is enough.
    const ENTRIES: u64 = 1 << 20;

    fn import() -> impl Strategy<Value = Import> {
        let names = prop::collection::vec("[a-z*]{1,5}", 0..3);
        (0_u32..3, "[a-z.]{0,8}", names).prop_map(|(level, module, names)| Import { level, module, names })
    }

    fn ranges() -> impl Strategy<Value = Vec<Range<u64>>> {
        let range = (0..u64::MAX / 2, 0..u64::MAX / 2).prop_map(|(start, length)| start..start + length);
        prop::collection::vec(range, 0..3)
    }

    fn any_dependencies() -> impl Strategy<Value = Dependencies> {
        let strings = || prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 0..3);
        let imports = || prop::collection::vec(import(), 0..4);
        let texts = || prop::collection::vec("[a-z./]{0,9}", 0..4);
        let stamp = prop_oneof![
            Just(Stamp::Hash),
            Just(Stamp::Unchecked),
            any::<(u32, u32)>().prop_map(|(mtime, size)| Stamp::Source { mtime, size }),
        ];
        let elf = (
            0_u32..1 << 18,
            prop::option::of(Just(b"/ld".to_vec())),
            strings(),
            strings(),
            strings(),
            ranges(),
            ranges(),
        );
        let elf = elf.prop_map(|(machine, interpreter, needed, rpath, runpath, start, constants)| {
            let machine = Machine::of_number(machine).expect("18 bits");
            Dependencies::Program {
                elf: Box::new(Elf { machine, interpreter, needed, rpath, runpath, start, constants }),
                names: Vec::new(),
            }
        });
        prop_oneof![
            (strings(), imports(), texts()).prop_map(|(interpreters, imports, specifiers)| {
                Dependencies::Script { interpreters, imports, specifiers }
            }),
            elf,
            (stamp, prop::option::of(imports()))
                .prop_map(|(stamp, imports)| Dependencies::Compiled(Compiled { stamp, imports })),
            (
                prop::option::of("[a-z]{0,4}"),
                prop::option::of(prop::collection::vec(("[a-z.]{0,4}", "[a-z.]{0,4}"), 0..3))
            )
                .prop_map(|(main, exports)| Dependencies::Package(Package { main, exports })),
            prop::collection::vec(any::<u8>(), 0..50).prop_map(Dependencies::Text),
        ]
    }

    proptest! {
        #[test]
        fn dependencies_come_back_as_they_were(
            files in prop::collection::vec((1_u64..1 << 40, any_dependencies()), 0..20),
            flip in any::<(prop::sample::Index, u8)>(),
        ) {
            let mut writer = DependencyWriter::default();
            let mut place = 0;
            let files: Vec<_> = files.into_iter().map(|(gap, file)| { place += gap; (place, file) }).collect();
            for (place, file) in &files {
                writer.push(*place, file.clone());
            }
            let section = writer.finish();
            let table = DependencyTable::read(&section, ENTRIES).expect("what was written");
            prop_assert_eq!(table.places().collect::<Vec<_>>(), files.iter().map(|(place, _)| *place).collect::<Vec<_>>());
            for (place, file) in &files {
                prop_assert_eq!(table.of(*place), Some(file.clone()));
                prop_assert!(table.of(*place - 1).is_none() || files.iter().any(|(other, _)| *other == *place - 1));
            }
            // What is damaged may say something else, or nothing.
            if !section.is_empty() {
                let mut decoded = zstd::bulk::decompress(&section, DEPENDENCIES_BYTES).expect("what was written");
                let length = decoded.len();
                decoded[flip.0.index(length)] ^= flip.1;
                let damaged = zstd::bulk::compress(&decoded, 1).expect("compressing to memory cannot fail");
                if let Some(table) = DependencyTable::read(&damaged, ENTRIES) {
                    table.places().for_each(|place| drop(table.of(place)));
                }
            }
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes: Vec<u8>) {
            prop_assert!(DependencyTable::read(&bytes, ENTRIES).is_none() || bytes.is_empty());
            let section = zstd::bulk::compress(&bytes, 1).expect("compressing to memory cannot fail");
            if let Some(table) = DependencyTable::read(&section, ENTRIES) {
                table.places().for_each(|place| drop(table.of(place)));
            }
        }
    }

    fn extension(names: &[&str]) -> Dependencies {
        let elf = Elf::new(Machine::of_number(62).expect("a number"));
        Dependencies::Program { elf: Box::new(elf), names: names.iter().map(|name| (*name).to_owned()).collect() }
    }

    #[test]
    fn of_names_among_constants_those_of_modules_are_kept() {
        let mut writer = DependencyWriter::default();
        // What names them comes later.
        writer.push(512, extension(&["random", "self", "here.sub", "relative"]));
        let imports = [(0, "random.x"), (1, "relative")];
        let imports = imports.map(|(level, module)| Import { level, module: module.to_owned(), names: Vec::new() });
        writer.push(
            1024,
            Dependencies::Script { interpreters: Vec::new(), imports: imports.into(), specifiers: Vec::new() },
        );
        writer.note_module("here");
        writer.push(2048, extension(&["here", "self", "random"]));
        let table = DependencyTable::read(&writer.finish(), ENTRIES).expect("what was written");
        assert_eq!(table.of(512), Some(extension(&["random", "here.sub"])));
        assert_eq!(table.of(2048), Some(extension(&["here", "random"])));
    }

    #[test]
    fn words_that_name_no_module_cost_no_record() {
        let mut writer = DependencyWriter::default();
        let words: Vec<_> = (0..50_000).map(|number| format!("{number:060}")).collect();
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        writer.push(512, extension(&words));
        for number in 2..200 {
            // The same ones again take the room of their numbers.
            writer.push(number * 512, extension(&words));
        }
        writer.note_module("last");
        writer.push(200 * 512, extension(&["last"]));
        assert!(writer.words.length > CONSTANT_WORDS_BYTES && writer.length < DEPENDENCIES_BYTES / 100);
        let table = DependencyTable::read(&writer.finish(), ENTRIES).expect("what was written");
        assert_eq!((table.places().count(), table.of(200 * 512)), (200, Some(extension(&[]))));
    }

    #[test]
    fn names_of_modules_are_kept_as_far_as_there_is_room() {
        let mut writer = DependencyWriter::default();
        let words: Vec<_> = (0..CONSTANT_NAMES).map(|number| format!("m.{number:0>60}")).collect();
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        for number in 1..60 {
            writer.push(number * 512, extension(&words));
        }
        writer.push(60 * 512, Dependencies::Text(b"last".to_vec()));
        writer.note_module("m");
        let table = DependencyTable::read(&writer.finish(), ENTRIES).expect("no longer than may be read");
        let names = |number: u64| match table.of(number * 512) {
            Some(Dependencies::Program { names, .. }) => names.len(),
            other => panic!("no program: {other:?}"),
        };
        assert!(names(1) > 10_000 && names(1) < words.len() && names(59) < names(1), "{} {}", names(1), names(59));
        assert_eq!(table.of(60 * 512), Some(Dependencies::Text(b"last".to_vec())));
    }

    #[test]
    fn a_table_holds_no_more_than_the_layer() {
        let mut writer = DependencyWriter::default();
        writer.push(512, Dependencies::Text(b"one".to_vec()));
        writer.push(1024, Dependencies::Text(vec![b'x'; DEPENDENCIES_RECORD_BYTES]));
        writer.push(2048, Dependencies::Text(b"two".to_vec()));
        let section = writer.finish();
        let table = DependencyTable::read(&section, 2).expect("as many as entries");
        assert_eq!(table.places().collect::<Vec<_>>(), [512, 2048], "nothing is so long");
        assert!(DependencyTable::read(&section, 1).is_none());
    }

    #[test]
    fn a_program_says_no_more_than_its_file_could() {
        let program = |name: Vec<u8>, count: usize, parts: usize| {
            let mut elf = Elf::new(Machine::of_number(62).expect("a number"));
            (elf.needed, elf.start) = (vec![name; count], vec![0..1; parts]);
            let mut writer = DependencyWriter::default();
            writer.push(512, Dependencies::Program { elf: Box::new(elf), names: Vec::new() });
            DependencyTable::read(&writer.finish(), ENTRIES).expect("what was written").of(512).is_some()
        };
        let longest = vec![b'n'; ELF_STRING_BYTES as usize];
        assert!(program(longest.clone(), 1, 1) && program(b"n".to_vec(), ELF_NAMES, ELF_PARTS));
        assert!(!program([longest, b"n".to_vec()].concat(), 1, 1));
        assert!(!program(b"n".to_vec(), ELF_NAMES + 1, 1) && !program(b"n".to_vec(), 1, ELF_PARTS + 1));
    }

    #[test]
    fn no_layer_has_more_dependencies_than_an_index_holds() {
        let mut writer = DependencyWriter::default();
        for number in 0..2000 {
            writer.push((number + 1) * 512, Dependencies::Text(vec![number as u8; 64 << 10]));
            writer.note_module(&"x".repeat(number as usize));
        }
        let table = DependencyTable::read(&writer.finish(), ENTRIES).expect("what was written");
        let count = table.places().count();
        assert!((200..=255).contains(&count), "{count}");
    }
}
