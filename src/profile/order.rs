//! First accesses in order: what was asked for before is not noted again.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::limits::{PROFILE_ACCESSES, PROFILE_JOIN_BYTES};

/// What noting an access changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noted {
    /// All of it was known.
    Known,
    /// Some of it was new.
    New,
    /// There is no room for more.
    Full,
}

/// Ranges of things (nodes, paths) in the order in which they were first asked for.
///
/// The ranges of one thing never overlap. An access that is known already costs one look-up and no allocation.
#[derive(Debug, Clone)]
pub struct Order<K> {
    /// Longest entry that a range touching its end is joined to.
    join: u64,
    entries: Vec<(K, Range<u64>)>,
    /// The number of the entry that begins there.
    starts: BTreeMap<(K, u64), usize>,
}

impl<K> Default for Order<K> {
    fn default() -> Self {
        Self { join: 0, entries: Vec::new(), starts: BTreeMap::new() }
    }
}

impl<K: Ord + Clone> Order<K> {
    /// An order that joins a range to the entry whose end it touches, up to [`PROFILE_JOIN_BYTES`]: what one program
    /// reads piece by piece becomes one entry.
    pub fn joining() -> Self {
        Self { join: PROFILE_JOIN_BYTES, ..Self::default() }
    }

    /// Notes an access to `start..end` of `key`.
    pub fn note(&mut self, key: K, start: u64, end: u64) -> Noted {
        let mut noted = Noted::Known;
        let mut place = (key, start);
        while place.1 < end {
            let before = self.starts.range(..=&place).next_back().map(|(_, number)| *number);
            let before = before.filter(|number| self.entries[*number].0 == place.0);
            let known = before.map_or(0, |number| self.entries[number].1.end);
            if known > place.1 {
                place.1 = known;
                continue;
            }
            let next = self.starts.range(&place..).next().filter(|(next, _)| next.0 == place.0);
            let stop = next.map_or(end, |(next, _)| next.1.min(end));
            if !self.add(&place, stop, before) {
                return Noted::Full;
            }
            noted = Noted::New;
            place.1 = stop;
        }
        noted
    }

    /// Adds what lies between known ranges; false if there is no room.
    fn add(&mut self, place: &(K, u64), stop: u64, before: Option<usize>) -> bool {
        if let Some((_, range)) = before.and_then(|number| self.entries.get_mut(number))
            && range.end == place.1
            && stop - range.start <= self.join
        {
            range.end = stop;
            return true;
        }
        if self.entries.len() >= PROFILE_ACCESSES {
            return false;
        }
        self.starts.insert(place.clone(), self.entries.len());
        self.entries.push((place.0.clone(), place.1..stop));
        true
    }

    /// The entries so far.
    pub fn entries(&self) -> &[(K, Range<u64>)] {
        &self.entries
    }

    /// All entries in order.
    pub fn into_entries(self) -> Vec<(K, Range<u64>)> {
        self.entries
    }
}
