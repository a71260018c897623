//! Flatbuffers, as far as zTOCs use them: tables, vectors, strings and numbers, read with every offset checked.
//!
//! A table begins with the distance back to its vtable, which says where each field lies in the table; a field that is
//! not in the vtable has its default. Vectors, strings and tables are reached by distances forward. The runtime of the
//! flatbuffers crate reads unverified buffers only by `unsafe`, and takes strings for UTF-8, which file names need not be.
//!
//! Offsets may lead many fields to the same bytes, so that a short buffer looks like a long one. [`Buffer`] therefore
//! counts the bytes of strings and vectors that are read, and allows [`SHARING`] times what the buffer has.

use std::cell::Cell;

/// How many times the bytes of a buffer may be read: builders may write equal strings once.
const SHARING: u64 = 4;

/// A buffer, and how much more may be read of it.
#[derive(Debug)]
pub(super) struct Buffer<'a> {
    bytes: &'a [u8],
    allowance: Cell<u64>,
}

/// The buffer is not what it should be: an offset leads out of it, or it is read too often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// A table in a buffer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table<'b> {
    buffer: &'b Buffer<'b>,
    at: usize,
    /// The vtable, its first four bytes left out.
    fields: &'b [u8],
}

/// A vector of tables.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tables<'b> {
    buffer: &'b Buffer<'b>,
    at: usize,
    length: usize,
}

impl<'a> Buffer<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        let allowance = (bytes.len() as u64).saturating_mul(SHARING);
        Self { bytes, allowance: Cell::new(allowance) }
    }

    /// The table that the buffer holds.
    pub(super) fn root(&'a self) -> Result<Table<'a>, Malformed> {
        self.table(0)
    }

    /// The table that the distance at `at` leads to.
    fn table(&'a self, at: usize) -> Result<Table<'a>, Malformed> {
        let at = self.forward(at)?;
        let back = i64::from(i32::from_le_bytes(self.array(at)?));
        let vtable = usize::try_from(at as i64 - back).map_err(|_| Malformed)?;
        let length = usize::from(u16::from_le_bytes(self.array(vtable)?));
        let end = vtable.checked_add(length).ok_or(Malformed)?;
        let fields = self.bytes.get(vtable + 4..end).filter(|fields| fields.len() % 2 == 0).ok_or(Malformed)?;
        Ok(Table { buffer: self, at, fields })
    }

    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N], Malformed> {
        self.bytes.get(at..).and_then(|bytes| bytes.first_chunk()).copied().ok_or(Malformed)
    }

    fn length(&self, at: usize) -> Result<usize, Malformed> {
        usize::try_from(u32::from_le_bytes(self.array(at)?)).map_err(|_| Malformed)
    }

    fn forward(&self, at: usize) -> Result<usize, Malformed> {
        at.checked_add(self.length(at)?).ok_or(Malformed)
    }

    /// The bytes of the string or the vector of bytes that the distance at `at` leads to.
    fn content(&self, at: usize) -> Result<&'a [u8], Malformed> {
        let at = self.forward(at)?;
        let (start, length) = (at + 4, self.length(at)?);
        let bytes = start.checked_add(length).and_then(|end| self.bytes.get(start..end)).ok_or(Malformed)?;
        self.charge(length)?;
        Ok(bytes)
    }

    fn charge(&self, bytes: usize) -> Result<(), Malformed> {
        self.allowance.set(self.allowance.get().checked_sub(bytes as u64).ok_or(Malformed)?);
        Ok(())
    }

    /// Where the elements of the vector of distances begin that the distance at `at` leads to, and how many there are.
    fn vector(&self, at: usize) -> Result<(usize, usize), Malformed> {
        let at = self.forward(at)?;
        let length = self.length(at)?;
        let end = length.checked_mul(4).and_then(|bytes| bytes.checked_add(at + 4)).ok_or(Malformed)?;
        if end > self.bytes.len() {
            return Err(Malformed);
        }
        self.charge(4 * length)?;
        Ok((at + 4, length))
    }
}

impl<'b> Table<'b> {
    /// Where the field of this vtable offset lies; none if it has its default.
    fn field(&self, offset: u16) -> Option<usize> {
        let place = self.fields.get(usize::from(offset).checked_sub(4)?..)?.first_chunk()?;
        match u16::from_le_bytes(*place) {
            0 => None,
            place => self.at.checked_add(place.into()),
        }
    }

    pub(super) fn i64(&self, offset: u16) -> Result<i64, Malformed> {
        self.field(offset).map_or(Ok(0), |at| self.buffer.array(at).map(i64::from_le_bytes))
    }

    pub(super) fn i32(&self, offset: u16) -> Result<i32, Malformed> {
        self.field(offset).map_or(Ok(0), |at| self.buffer.array(at).map(i32::from_le_bytes))
    }

    pub(super) fn u32(&self, offset: u16) -> Result<u32, Malformed> {
        self.field(offset).map_or(Ok(0), |at| self.buffer.array(at).map(u32::from_le_bytes))
    }

    pub(super) fn byte(&self, offset: u16, default: u8) -> Result<u8, Malformed> {
        self.field(offset).map_or(Ok(default), |at| self.buffer.array(at).map(|[byte]| byte))
    }

    /// A string or a vector of bytes, empty if it is not there.
    pub(super) fn bytes(&self, offset: u16) -> Result<&'b [u8], Malformed> {
        self.field(offset).map_or(Ok(&[]), |at| self.buffer.content(at))
    }

    pub(super) fn table(&self, offset: u16) -> Result<Option<Self>, Malformed> {
        self.field(offset).map(|at| self.buffer.table(at)).transpose()
    }

    /// A vector of tables, empty if it is not there.
    pub(super) fn tables(&self, offset: u16) -> Result<Tables<'b>, Malformed> {
        let (at, length) = self.field(offset).map_or(Ok((0, 0)), |at| self.buffer.vector(at))?;
        Ok(Tables { buffer: self.buffer, at, length })
    }

    /// A vector of strings, empty if it is not there.
    pub(super) fn strings(&self, offset: u16) -> Result<Vec<&'b [u8]>, Malformed> {
        let (at, length) = self.field(offset).map_or(Ok((0, 0)), |at| self.buffer.vector(at))?;
        (0..length).map(|number| self.buffer.content(at + 4 * number)).collect()
    }
}

impl<'b> Tables<'b> {
    pub(super) fn len(&self) -> usize {
        self.length
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Result<Table<'b>, Malformed>> + use<'b> {
        let Self { buffer, at, length } = *self;
        (0..length).map(move |number| buffer.table(at + 4 * number))
    }
}

/// Writes a buffer front to back: a table comes before what it refers to. Equal calls give equal bytes.
#[derive(Debug)]
pub(super) struct Builder {
    bytes: Vec<u8>,
}

/// A field of a table that is written.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value {
    I64(i64),
    I32(i32),
    U32(u32),
    Byte(u8),
    /// A distance that [`Builder::here`] fills in later.
    Later,
}

impl Value {
    fn size(self) -> usize {
        match self {
            Self::I64(_) => 8,
            Self::I32(_) | Self::U32(_) | Self::Later => 4,
            Self::Byte(_) => 1,
        }
    }
}

/// A distance still to be filled in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot(usize);

impl Builder {
    /// Begins a buffer; the slot is for its root.
    pub(super) fn new() -> (Self, Slot) {
        (Self { bytes: vec![0; 4] }, Slot(0))
    }

    fn align(&mut self, to: usize, before: usize) {
        while !(self.bytes.len() + before).is_multiple_of(to) {
            self.bytes.push(0);
        }
    }

    /// Makes `slot` lead to what is written next, which is not aligned by this.
    fn here(&mut self, slot: Slot) {
        let distance = (self.bytes.len() - slot.0) as u32;
        self.bytes[slot.0..slot.0 + 4].copy_from_slice(&distance.to_le_bytes());
    }

    /// Writes the vtable of tables with these fields, in the order of their vtable offsets from 4 on.
    pub(super) fn vtable(&mut self, fields: &[Value]) -> usize {
        let (places, length) = places(fields);
        self.align(2, 0);
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&(4 + 2 * fields.len() as u16).to_le_bytes());
        self.bytes.extend_from_slice(&(length as u16).to_le_bytes());
        for place in places {
            self.bytes.extend_from_slice(&(place as u16).to_le_bytes());
        }
        at
    }

    /// Writes a table with all the fields of `vtable`, which was made for fields of the same kinds, where `slot` leads to.
    /// Returns the slots of the fields that come later, in order.
    pub(super) fn table(&mut self, slot: Slot, vtable: usize, fields: &[Value]) -> Vec<Slot> {
        // The first eight-byte field is four bytes into the table.
        self.align(8, 4);
        self.here(slot);
        let at = self.bytes.len();
        let (places, length) = places(fields);
        self.bytes.resize(at + length, 0);
        let back = (at - vtable) as i32;
        self.bytes[at..at + 4].copy_from_slice(&back.to_le_bytes());
        let mut slots = Vec::new();
        for (field, place) in fields.iter().zip(places) {
            let target = &mut self.bytes[at + place..];
            match field {
                Value::I64(value) => target[..8].copy_from_slice(&value.to_le_bytes()),
                Value::I32(value) => target[..4].copy_from_slice(&value.to_le_bytes()),
                Value::U32(value) => target[..4].copy_from_slice(&value.to_le_bytes()),
                Value::Byte(value) => target[0] = *value,
                Value::Later => slots.push(Slot(at + place)),
            }
        }
        slots
    }

    /// Writes a string.
    pub(super) fn string(&mut self, slot: Slot, text: &[u8]) {
        self.bytes(slot, text);
        self.bytes.push(0);
    }

    /// Writes a vector of bytes.
    pub(super) fn bytes(&mut self, slot: Slot, bytes: &[u8]) {
        self.align(4, 0);
        self.here(slot);
        self.bytes.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(bytes);
    }

    /// Writes a vector of things that come later; returns their slots.
    pub(super) fn vector(&mut self, slot: Slot, length: usize) -> Vec<Slot> {
        self.align(4, 0);
        self.here(slot);
        self.bytes.extend_from_slice(&(length as u32).to_le_bytes());
        let start = self.bytes.len();
        self.bytes.resize(start + 4 * length, 0);
        (0..length).map(|number| Slot(start + 4 * number)).collect()
    }

    /// The bytes; none if they are more than distances can say.
    pub(super) fn finish(self) -> Option<Vec<u8>> {
        i32::try_from(self.bytes.len()).is_ok().then_some(self.bytes)
    }
}

/// Where fields lie in their table, large ones first, and how long it is.
fn places(fields: &[Value]) -> (Vec<usize>, usize) {
    let (mut places, mut end) = (vec![0; fields.len()], 4);
    for size in [8, 4, 1] {
        for (place, _) in places.iter_mut().zip(fields).filter(|(_, field)| field.size() == size) {
            *place = end;
            end += size;
        }
    }
    (places, end.next_multiple_of(4))
}
