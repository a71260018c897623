//! Archives byte by byte, the malformed ones included.

use std::ops::Range;

use crate::tar::header::{BLOCK, Block};

/// A header under construction, with its payload.
#[derive(Debug, Clone)]
pub(super) struct Raw {
    block: Block,
    payload: Vec<u8>,
}

pub(super) const SIZE: Range<usize> = 124..136;

impl Raw {
    /// A ustar header of mode 0644 and size 0.
    pub(super) fn new(typeflag: u8, name: &[u8]) -> Self {
        let raw = Self { block: [0; BLOCK], payload: Vec::new() };
        raw.field(0, name).field(100, b"0000644").field(156, &[typeflag]).field(257, b"ustar\x0000")
    }

    pub(super) fn file(name: &str, payload: &[u8]) -> Self {
        Self::new(b'0', name.as_bytes()).payload(payload)
    }

    pub(super) fn link(typeflag: u8, name: &str, target: &str) -> Self {
        Self::new(typeflag, name.as_bytes()).field(157, target.as_bytes())
    }

    /// Overwrites bytes of the block.
    pub(super) fn field(mut self, at: usize, bytes: &[u8]) -> Self {
        self.block[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub(super) fn gnu(self) -> Self {
        self.field(257, b"ustar  \0")
    }

    pub(super) fn v7(self) -> Self {
        self.field(257, &[0; 8])
    }

    /// Sets the payload and the size.
    pub(super) fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = payload.to_vec();
        self.size(payload.len() as u64)
    }

    /// Sets the size alone.
    pub(super) fn size(self, size: u64) -> Self {
        self.field(SIZE.start, format!("{size:011o}\0").as_bytes())
    }

    /// Header and padded payload, with the right checksum.
    pub(super) fn bytes(self) -> Vec<u8> {
        let sum = sum(&self.block);
        self.bytes_with_sum(&format!("{sum:06o}\0 "))
    }

    /// Header and padded payload, with the checksum of signed characters.
    pub(super) fn bytes_with_signed_sum(self) -> Vec<u8> {
        let bytes = self.block[..148].iter().chain(b"        ").chain(&self.block[156..]);
        let sum: i32 = bytes.map(|&byte| i32::from(byte.cast_signed())).sum();
        self.bytes_with_sum(&format!("{sum:06o}\0 "))
    }

    pub(super) fn bytes_with_sum(mut self, sum: &str) -> Vec<u8> {
        self.block[148..156].copy_from_slice(sum.as_bytes());
        let mut bytes = self.block.to_vec();
        bytes.extend_from_slice(&self.payload);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }
}

fn sum(block: &Block) -> u32 {
    block[..148].iter().chain(b"        ").chain(&block[156..]).map(|&byte| u32::from(byte)).sum()
}

/// One PAX record.
pub(super) fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length = (rest..).find(|length| rest + length.to_string().len() == *length).expect("there is one");
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

/// An `x` header.
pub(super) fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    extended(b'x', &records.iter().flat_map(|(key, value)| record(key, value)).collect::<Vec<_>>())
}

/// A special header with these contents.
pub(super) fn extended(typeflag: u8, contents: &[u8]) -> Vec<u8> {
    Raw::new(typeflag, b"././special").payload(contents).bytes()
}

/// All parts and the end marker.
pub(super) fn archive(parts: &[Vec<u8>]) -> Vec<u8> {
    [&parts.concat()[..], &[0; 2 * BLOCK]].concat()
}
