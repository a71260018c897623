//! The object tree of a `.pyc` file, as far as it is needed: constants, names and bytecode of the module.
//!
//! The format has no specification beyond `Python/marshal.c`: a type byte, whose highest bit says that later objects may
//! refer to this one by number, and then its value; tuples and code objects contain objects. Objects stand in one list here
//! and refer to each other by their place in it, and what is open is a stack, so that depth costs memory and not the
//! caller's stack.

use std::ops::Range;

/// The bit of a type byte that gives an object a number.
const NUMBERED: u8 = 0x80;

/// Fields of a code object that are objects, before its line number: code, constants and names are the first three.
const FIELDS: u32 = 8;

/// The place of an object in the list.
pub(super) type Id = u32;

/// An object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Object {
    Integer(i64),
    /// Where its bytes are. Text is ASCII or UTF-8.
    Text(Range<usize>),
    Bytes(Range<usize>),
    Tuple(Vec<Id>),
    Code(Code),
    /// Something that imports do not need.
    Other,
}

/// The objects of a code object that matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Code {
    pub(super) bytecode: Id,
    pub(super) constants: Id,
    pub(super) names: Id,
}

/// How code objects of one version of Python are written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    /// 32-bit numbers before the objects.
    pub(super) numbers: usize,
    /// Objects after the line number.
    pub(super) tail: u32,
}

/// All objects, the outermost one last. Each is here once, however often it is referred to.
#[derive(Debug)]
pub(super) struct Objects<'a> {
    input: &'a [u8],
    objects: Vec<Object>,
}

/// An object that is being read.
struct Open {
    kind: Container,
    /// Objects still to come.
    remaining: u32,
    parts: Vec<Id>,
    /// Its number, if it has one.
    number: Option<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Container {
    Tuple,
    /// Pairs until an end mark.
    Dictionary,
    Code,
    /// A set, a list, a slice.
    Other,
}

struct Reader<'a> {
    input: &'a [u8],
    at: usize,
    layout: Layout,
    objects: Vec<Object>,
    /// The objects with numbers, none for those that are open.
    numbered: Vec<Option<Id>>,
    open: Vec<Open>,
}

impl<'a> Objects<'a> {
    /// Reads one object and what it contains; none if `input` is no such thing.
    pub(super) fn read(input: &'a [u8], layout: Layout) -> Option<Self> {
        let mut reader = Reader { input, at: 0, layout, objects: Vec::new(), numbered: Vec::new(), open: Vec::new() };
        reader.run()?;
        Some(Self { input, objects: reader.objects })
    }

    /// The outermost object.
    pub(super) fn root(&self) -> Option<&Object> {
        self.objects.last()
    }

    pub(super) fn get(&self, id: Id) -> Option<&Object> {
        self.objects.get(id as usize)
    }

    pub(super) fn tuple(&self, id: Id) -> Option<&[Id]> {
        match self.get(id)? {
            Object::Tuple(parts) => Some(parts),
            _ => None,
        }
    }

    /// A text that may be a name: of at most `longest` bytes.
    pub(super) fn text(&self, id: Id, longest: usize) -> Option<&'a str> {
        match self.get(id)? {
            Object::Text(range) if range.len() <= longest => std::str::from_utf8(self.input.get(range.clone())?).ok(),
            _ => None,
        }
    }

    pub(super) fn bytes(&self, id: Id) -> Option<&'a [u8]> {
        match self.get(id)? {
            Object::Bytes(range) => self.input.get(range.clone()),
            _ => None,
        }
    }
}

impl Reader<'_> {
    fn run(&mut self) -> Option<()> {
        loop {
            let Some(mut done) = self.object()? else { continue };
            // Each object that ends may be the last part of the one around it.
            loop {
                let Some(open) = self.open.last_mut() else { return Some(()) };
                open.parts.push(done);
                open.remaining = open.remaining.saturating_sub(1);
                if open.kind == Container::Code && open.parts.len() == FIELDS as usize {
                    // The first line.
                    self.skip(4)?;
                }
                let Some(open) = self.open.pop_if(|open| open.remaining == 0) else { break };
                done = self.close(open)?;
            }
        }
    }

    /// Reads the beginning of an object. Its place if that is all of it; none if it has parts, which come next.
    fn object(&mut self) -> Option<Option<Id>> {
        let kind = self.byte()?;
        let number = (kind & NUMBERED != 0).then(|| {
            self.numbered.push(None);
            self.numbered.len() - 1
        });
        let object = match kind & !NUMBERED {
            // The end of a dictionary.
            b'0' => match self.open.pop_if(|open| open.kind == Container::Dictionary) {
                Some(open) => return self.close(open).map(Some),
                None => Object::Other,
            },
            b'N' | b'F' | b'T' | b'S' | b'.' => Object::Other,
            b'i' => Object::Integer(i32::from_le_bytes(self.take(4)?.try_into().ok()?).into()),
            b'I' | b'g' => self.skip(8)?,
            b'y' => self.skip(16)?,
            b'f' => {
                let length = self.byte()?;
                self.skip(length.into())?
            }
            b'x' => {
                let length = self.byte()?;
                self.skip(length.into())?;
                let length = self.byte()?;
                self.skip(length.into())?
            }
            b'l' => {
                let digits = i32::from_le_bytes(self.take(4)?.try_into().ok()?).unsigned_abs();
                self.skip((digits as usize).checked_mul(2)?)?
            }
            b's' => Object::Bytes(self.long_range()?),
            b't' | b'u' | b'a' | b'A' => Object::Text(self.long_range()?),
            b'z' | b'Z' => {
                let length = self.byte()?;
                Object::Text(self.range(length.into())?)
            }
            b'r' => {
                let target = self.length()?;
                // Of what is still open nothing is known, and nothing of it is needed.
                match *self.numbered.get(target)? {
                    Some(id) => return Some(Some(id)),
                    None => Object::Other,
                }
            }
            b')' => {
                let count = self.byte()?;
                return self.begin(Container::Tuple, count.into(), number);
            }
            b'(' => return self.counted(Container::Tuple, number),
            b'[' | b'<' | b'>' => return self.counted(Container::Other, number),
            b'{' => return self.begin(Container::Dictionary, u32::MAX, number),
            b':' => return self.begin(Container::Other, 3, number),
            b'c' => {
                self.skip(self.layout.numbers * 4)?;
                return self.begin(Container::Code, FIELDS + self.layout.tail, number);
            }
            _ => return None,
        };
        Some(Some(self.add(object, number)?))
    }

    fn counted(&mut self, kind: Container, number: Option<usize>) -> Option<Option<Id>> {
        let count = u32::try_from(self.length()?).ok()?;
        self.begin(kind, count, number)
    }

    fn begin(&mut self, kind: Container, count: u32, number: Option<usize>) -> Option<Option<Id>> {
        let open = Open { kind, remaining: count, parts: Vec::new(), number };
        if count == 0 {
            return self.close(open).map(Some);
        }
        self.open.push(open);
        Some(None)
    }

    fn close(&mut self, open: Open) -> Option<Id> {
        let object = match open.kind {
            Container::Tuple => Object::Tuple(open.parts),
            Container::Code => {
                Object::Code(Code { bytecode: open.parts[0], constants: open.parts[1], names: open.parts[2] })
            }
            Container::Dictionary | Container::Other => Object::Other,
        };
        self.add(object, open.number)
    }

    fn add(&mut self, object: Object, number: Option<usize>) -> Option<Id> {
        let id = Id::try_from(self.objects.len()).ok()?;
        self.objects.push(object);
        if let Some(number) = number {
            self.numbered[number] = Some(id);
        }
        Some(id)
    }

    fn byte(&mut self) -> Option<u8> {
        let byte = *self.input.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn length(&mut self) -> Option<usize> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?) as usize)
    }

    fn take(&mut self, length: usize) -> Option<&[u8]> {
        let range = self.range(length)?;
        self.input.get(range)
    }

    fn skip(&mut self, length: usize) -> Option<Object> {
        self.range(length).map(|_| Object::Other)
    }

    fn long_range(&mut self) -> Option<Range<usize>> {
        let length = self.length()?;
        self.range(length)
    }

    fn range(&mut self, length: usize) -> Option<Range<usize>> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.input.len())?;
        let range = self.at..end;
        self.at = end;
        Some(range)
    }
}
