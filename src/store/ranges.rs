//! Which bytes of a blob are there: a set of byte ranges.
//!
//! Neighbouring and overlapping ranges are merged, so a blob that arrives in order is one range however many writes it
//! took. The number of ranges is bounded ([`BLOB_PIECES`]): a range that would be one too many is not
//! remembered, which costs fetching it again and is never wrong.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::limits::BLOB_PIECES;

/// A set of bytes, kept as disjoint ranges that do not touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct RangeSet {
    /// Start to end.
    ranges: BTreeMap<u64, u64>,
    bytes: u64,
}

impl RangeSet {
    /// Number of bytes in the set.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of separate ranges.
    pub(super) fn pieces(&self) -> usize {
        self.ranges.len()
    }

    /// The ranges, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ranges.iter().map(|(&start, &end)| start..end)
    }

    /// True if all of `range` is in the set.
    pub(super) fn contains(&self, range: &Range<u64>) -> bool {
        range.is_empty() || self.ranges.range(..=range.start).next_back().is_some_and(|(_, &end)| end >= range.end)
    }

    /// True if no byte of `range` is in the set.
    pub(super) fn is_disjoint(&self, range: &Range<u64>) -> bool {
        range.is_empty() || self.ranges.range(..range.end).next_back().is_none_or(|(_, &end)| end <= range.start)
    }

    /// The parts of `range` that are not in the set, ascending.
    pub(super) fn missing(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        let mut at =
            self.ranges.range(..=range.start).next_back().map_or(range.start, |(_, &end)| end.max(range.start));
        while at < range.end {
            let next = self.ranges.range(at..range.end).next();
            let (start, end) = next.map_or((range.end, range.end), |(&start, &end)| (start, end));
            if start > at {
                gaps.push(at..start);
            }
            at = end;
        }
        gaps
    }

    /// Adds `range`. Returns false, and changes nothing, if that would be one piece too many.
    pub(super) fn insert(&mut self, range: &Range<u64>) -> bool {
        if range.is_empty() {
            return true;
        }
        let (mut start, mut end) = (range.start, range.end);
        let mut touching = self.ranges.range(..=end).rev().take_while(|&(_, &other_end)| other_end >= start).peekable();
        if touching.peek().is_none() && self.ranges.len() >= BLOB_PIECES {
            return false;
        }
        let touching: Vec<u64> = touching.map(|(&other_start, _)| other_start).collect();
        for other_start in touching {
            if let Some(other_end) = self.ranges.remove(&other_start) {
                self.bytes -= other_end - other_start;
                start = start.min(other_start);
                end = end.max(other_end);
            }
        }
        self.ranges.insert(start, end);
        self.bytes += end - start;
        true
    }

    /// Takes `range` out. Where that would leave one piece too many, what follows it in the same piece goes as well.
    pub(super) fn remove(&mut self, range: &Range<u64>) {
        if range.is_empty() {
            return;
        }
        let overlapping = self.ranges.range(..range.end).rev().take_while(|&(_, &end)| end > range.start);
        let overlapping: Vec<(u64, u64)> = overlapping.map(|(&start, &end)| (start, end)).collect();
        for (start, end) in overlapping {
            self.ranges.remove(&start);
            self.bytes -= end - start;
            for rest in [start..range.start, range.end..end] {
                if !rest.is_empty() && self.ranges.len() < BLOB_PIECES {
                    self.bytes += rest.end - rest.start;
                    self.ranges.insert(rest.start, rest.end);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: usize = 48;

    proptest! {
        #[test]
        fn agrees_with_an_array_of_flags(
            steps in prop::collection::vec((any::<bool>(), 0..SIZE, 0..SIZE), 0..60),
            asked in (0..SIZE, 0..SIZE),
        ) {
            let mut set = RangeSet::default();
            let mut flags = [false; SIZE];
            for (add, a, b) in steps {
                let range = a.min(b)..a.max(b);
                flags[range.clone()].fill(add);
                let range = range.start as u64..range.end as u64;
                if add { prop_assert!(set.insert(&range)) } else { set.remove(&range) }
            }
            let model: Vec<u64> = (0..SIZE as u64).filter(|&at| flags[at as usize]).collect();
            prop_assert_eq!(set.bytes(), model.len() as u64);
            prop_assert_eq!(set.iter().flatten().collect::<Vec<_>>(), model);
            let ends: Vec<_> = set.iter().collect();
            prop_assert!(ends.windows(2).all(|pair| pair[0].end < pair[1].start), "ranges touch: {:?}", ends);
            let asked = asked.0.min(asked.1)..asked.0.max(asked.1);
            let range = asked.start as u64..asked.end as u64;
            prop_assert_eq!(set.contains(&range), flags[asked.clone()].iter().all(|&flag| flag));
            prop_assert_eq!(set.is_disjoint(&range), flags[asked.clone()].iter().all(|&flag| !flag));
            let missing: Vec<u64> = set.missing(&range).into_iter().flatten().collect();
            let model: Vec<u64> = asked.filter(|&at| !flags[at]).map(|at| at as u64).collect();
            prop_assert_eq!(missing, model);
        }
    }

    #[test]
    fn d_060_the_number_of_pieces_is_bounded() {
        let mut set = RangeSet::default();
        for piece in 0..BLOB_PIECES as u64 {
            assert!(set.insert(&(piece * 4..piece * 4 + 3)));
        }
        let full = set.clone();
        assert!(!set.insert(&(u64::MAX - 1..u64::MAX)));
        assert_eq!(set, full);
        assert!(set.insert(&(3..4)), "filling a gap makes fewer pieces");
        assert!(set.insert(&(u64::MAX - 1..u64::MAX)));
        set.remove(&(4001..4002));
        assert_eq!(set.pieces(), BLOB_PIECES);
        assert!(set.contains(&(4000..4001)) && set.is_disjoint(&(4001..4003)));
    }
}
