//! The names of directory entries while layers are merged: every distinct name is kept once and known by number.
//!
//! A million entries have far fewer distinct names than paths, and comparing numbers is all that finding a name in a
//! directory needs. The table is open-addressed over the numbers alone, so a name costs its bytes and about twelve more.

use std::hash::{BuildHasher, RandomState};

/// The number of a distinct name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct NameIndex(u32);

impl NameIndex {
    /// The number as an index, from 0, without gaps.
    pub(super) fn get(self) -> usize {
        self.0 as usize
    }
}

/// A slot that holds no name.
const VACANT: u32 = u32::MAX;

/// All distinct names met so far; none is ever forgotten.
#[derive(Debug)]
pub(super) struct Names {
    bytes: Vec<u8>,
    /// Where each name ends in `bytes`; it begins where the one before ends.
    ends: Vec<u32>,
    /// Numbers of names at the place their hash says, or in the next free one. The length is a power of two.
    slots: Vec<u32>,
    /// Randomly keyed, because the names are chosen by others.
    hasher: RandomState,
}

impl Names {
    /// No names.
    pub(super) fn new() -> Self {
        Self { bytes: Vec::new(), ends: Vec::new(), slots: vec![VACANT; 64], hasher: RandomState::new() }
    }

    /// Number of distinct names.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Length of all distinct names together.
    pub(super) fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    /// The name numbered `index`.
    pub(super) fn get(&self, index: NameIndex) -> &[u8] {
        let end = self.ends[index.get()] as usize;
        let start = index.get().checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        &self.bytes[start..end]
    }

    /// The number of `name`, if it was met before.
    pub(super) fn find(&self, name: &[u8]) -> Option<NameIndex> {
        match self.slots[self.slot(name)] {
            VACANT => None,
            number => Some(NameIndex(number)),
        }
    }

    /// The number of `name`. The caller keeps [`Self::byte_len`] within `limits::TREE_BYTES`.
    pub(super) fn intern(&mut self, name: &[u8]) -> NameIndex {
        let mut slot = self.slot(name);
        if self.slots[slot] != VACANT {
            return NameIndex(self.slots[slot]);
        }
        if self.len() >= self.slots.len() / 4 * 3 {
            self.grow();
            slot = self.slot(name);
        }
        let number = index_u32(self.len());
        self.bytes.extend_from_slice(name);
        self.ends.push(index_u32(self.bytes.len()));
        self.slots[slot] = number;
        NameIndex(number)
    }

    /// The slot that holds `name`, or the vacant one where it belongs.
    fn slot(&self, name: &[u8]) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = self.hasher.hash_one(name) as usize & mask;
        while self.slots[slot] != VACANT && self.get(NameIndex(self.slots[slot])) != name {
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn grow(&mut self) {
        self.slots = vec![VACANT; self.slots.len() * 2];
        for number in 0..index_u32(self.len()) {
            let slot = self.slot(self.get(NameIndex(number)));
            self.slots[slot] = number;
        }
    }
}

/// Narrows a count or length that the limits of the tree keep below 2^32.
pub(super) fn index_u32(value: usize) -> u32 {
    u32::try_from(value).expect("limits::TREE_NAMES, TREE_BYTES and TREE_EXTENTS are below 2^32")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_share_a_number_and_others_do_not() {
        let mut names = Names::new();
        let numbers: Vec<_> = (0..5000).map(|i| names.intern(format!("name {i}").as_bytes())).collect();
        assert_eq!(names.len(), 5000);
        for (i, &number) in numbers.iter().enumerate() {
            let name = format!("name {i}");
            assert_eq!(names.intern(name.as_bytes()), number);
            assert_eq!(names.find(name.as_bytes()), Some(number));
            assert_eq!(names.get(number), name.as_bytes());
        }
        assert_eq!(names.len(), 5000);
        assert_eq!(names.find(b"name"), None);
    }
}
