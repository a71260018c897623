//! Sparse files: four encodings of one thing, the list of regions that the payload holds one after the other.
//!
//! [`Map`] takes regions from any of them and checks each as it comes, so that a hostile map costs no more than
//! the regions accepted so far. The encodings: old GNU headers with extension blocks, PAX records (0.0 and 0.1), and a
//! list of decimal lines in front of the payload (1.0), which [`Lines`] reads block by block.

use super::header::{Block, number};
use super::pax::{Key, Records};
use super::{Fault, Segment};
use crate::limits;

/// The regions of a file, ascending and disjoint.
#[derive(Debug)]
pub(super) struct Map {
    size: u64,
    /// Where the last region ended.
    end: u64,
    /// Payload bytes that the regions so far take.
    data: u64,
    /// How many regions were given, empty ones too.
    count: usize,
    /// File offset and length of each region that is not empty.
    regions: Vec<(u64, u64)>,
}

impl Map {
    /// A map without regions for a file of `size` bytes.
    pub(super) fn new(size: i64) -> Result<Self, Fault> {
        let size = u64::try_from(size).map_err(|_| Fault::SparseMap)?;
        Ok(Self { size, end: 0, data: 0, count: 0, regions: Vec::new() })
    }

    /// The map in the records of formats 0.0 and 0.1.
    pub(super) fn from_records(records: &Records, size: i64) -> Result<Self, Fault> {
        let mut map = Self::new(size)?;
        let mut numbers = records.sparse_numbers();
        while let Some(offset) = numbers.next() {
            map.push(offset?, numbers.next().ok_or(Fault::SparseMap)??)?;
        }
        let count = records.number(Key::SparseBlocks)?.and_then(|count| usize::try_from(count).ok());
        if count == Some(map.count) { Ok(map) } else { Err(Fault::SparseMap) }
    }

    /// Takes the regions of an old GNU header; true if an extension block follows.
    pub(super) fn gnu_header(&mut self, block: &Block) -> Result<bool, Fault> {
        self.gnu_regions(&block[386..482])?;
        Ok(block[482] != 0)
    }

    /// Takes the regions of an extension block; true if another one follows.
    pub(super) fn gnu_extension(&mut self, block: &Block) -> Result<bool, Fault> {
        self.gnu_regions(&block[..504])?;
        Ok(block[504] != 0)
    }

    fn gnu_regions(&mut self, fields: &[u8]) -> Result<(), Fault> {
        // A first byte of NUL ends the list, as in GNU tar and bsdtar.
        for region in fields.chunks_exact(24).take_while(|region| region[0] != 0) {
            self.push(number(&region[..12], "sparse map")?, number(&region[12..], "sparse map")?)?;
        }
        Ok(())
    }

    fn push(&mut self, offset: i64, length: i64) -> Result<(), Fault> {
        let (Ok(offset), Ok(length)) = (u64::try_from(offset), u64::try_from(length)) else {
            return Err(Fault::SparseMap);
        };
        let end = offset.checked_add(length).filter(|&end| end <= self.size).ok_or(Fault::SparseMap)?;
        if offset < self.end {
            return Err(Fault::SparseMap);
        }
        if self.count == limits::SPARSE_REGIONS {
            return Err(Fault::SparseRegions);
        }
        match self.regions.last_mut() {
            _ if length == 0 => {}
            Some(last) if last.0 + last.1 == offset => last.1 += length,
            _ => self.regions.push((offset, length)),
        }
        self.count += 1;
        self.end = end;
        self.data += length;
        Ok(())
    }

    /// Length of the file.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Places the regions in the stream, where `payload` bytes begin at `layer_offset`; they must be just those.
    pub(super) fn segments(self, mut layer_offset: u64, payload: u64) -> Result<Vec<Segment>, Fault> {
        if self.data != payload {
            return Err(Fault::SparseMap);
        }
        let place = |(file_offset, length)| {
            let segment = Segment { file_offset, layer_offset, length };
            layer_offset += length;
            segment
        };
        Ok(self.regions.into_iter().map(place).collect())
    }
}

/// The map of format 1.0: a count, then offset and length of each region, one number a line, padded to a whole block.
#[derive(Debug)]
pub(super) struct Lines {
    map: Map,
    /// Numbers still to come; none before the first line.
    left: Option<u64>,
    /// The line so far.
    number: Option<i64>,
    /// An offset whose length is still to come.
    offset: Option<i64>,
}

impl Lines {
    /// Starts reading the map of a file of `size` bytes.
    pub(super) fn new(size: i64) -> Result<Self, Fault> {
        Ok(Self { map: Map::new(size)?, left: None, number: None, offset: None })
    }

    /// Takes the next block; true if the map ended in it.
    pub(super) fn block(&mut self, block: &Block) -> Result<bool, Fault> {
        for &byte in block {
            match byte {
                b'\n' => self.line()?,
                b'0'..=b'9' => {
                    let digit = i64::from(byte - b'0');
                    let number = self.number.unwrap_or(0).checked_mul(10).and_then(|tens| tens.checked_add(digit));
                    self.number = Some(number.ok_or(Fault::SparseMap)?);
                }
                _ => return Err(Fault::SparseMap),
            }
            if self.left == Some(0) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn line(&mut self) -> Result<(), Fault> {
        let number = self.number.take().ok_or(Fault::SparseMap)?;
        let Some(left) = &mut self.left else {
            let count = usize::try_from(number).ok().filter(|&count| count <= limits::SPARSE_REGIONS);
            self.left = Some(count.ok_or(Fault::SparseRegions)? as u64 * 2);
            return Ok(());
        };
        *left -= 1;
        match self.offset.take() {
            None => self.offset = Some(number),
            Some(offset) => self.map.push(offset, number)?,
        }
        Ok(())
    }

    /// The map, once it has ended.
    pub(super) fn into_map(self) -> Map {
        self.map
    }
}
