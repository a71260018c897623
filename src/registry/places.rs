//! Which of the places that may have a blob are asked first.
//!
//! The order is that of the configuration, and [`Places`] is what is known against it for one blob: a mirror that does not
//! have it costs a round trip each time it is asked before the others, and one that sent wrong bytes is not to be asked
//! again. Nothing is held against a place for ever but wrong bytes: a mirror may fill, a host may heal.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::limits::SERVED_KEPT;

/// How long a place that did not have the blob is asked after all others.
const LACKING: Duration = Duration::from_secs(300);

/// The places of one blob, by number: first the URLs of its descriptor, then the endpoints of its repository.
#[derive(Debug)]
pub(super) struct Places {
    urls: usize,
    count: usize,
    /// The registry itself, if it is among them.
    own: Option<usize>,
    /// Held for look-ups and notes only.
    notes: Mutex<Notes>,
}

#[derive(Debug)]
struct Notes {
    /// The place that answered last.
    last: usize,
    /// When a place did not have the blob, and whether its bytes were wrong.
    against: Vec<(Option<Instant>, bool)>,
    /// Who sent which bytes, the latest at the end.
    served: VecDeque<(Range<u64>, usize)>,
}

impl Places {
    pub(super) fn new(urls: usize, endpoints: usize, own: Option<usize>) -> Self {
        let count = urls + endpoints;
        let notes = Notes { last: 0, against: vec![(None, false); count], served: VecDeque::new() };
        Self { urls, count, own: own.map(|own| urls + own), notes: Mutex::new(notes) }
    }

    /// True for the registry itself.
    pub(super) fn is_own(&self, place: usize) -> bool {
        self.own == Some(place)
    }

    /// All places in the order in which to ask them; those that are to be left in peace for now `rest`.
    pub(super) fn order(&self, rests: impl Fn(usize) -> bool) -> Vec<usize> {
        let notes = self.lock();
        let last_is_url = notes.last < self.urls;
        let mut order: Vec<usize> = (0..self.count).collect();
        order.sort_by_key(|&place| {
            let (lacked, is_wrong) = notes.against[place];
            let lacks = lacked.is_some_and(|at| at.elapsed() < LACKING);
            // URLs come first until the registry turns out to have what they do not (B-071).
            let is_later = if last_is_url { place != notes.last } else { place < self.urls };
            (is_wrong, lacks, rests(place), is_later)
        });
        order
    }

    /// Notes that `place` answers a request for `range`.
    pub(super) fn answers(&self, place: usize, range: Range<u64>) {
        let mut notes = self.lock();
        notes.last = place;
        notes.against[place].0 = None;
        // With one place there is nobody else to blame.
        if self.count > 1 {
            if notes.served.len() >= SERVED_KEPT {
                notes.served.pop_front();
            }
            notes.served.push_back((range, place));
        }
    }

    /// Notes that `place` does not have the blob.
    pub(super) fn lacks(&self, place: usize) {
        if !self.is_own(place) {
            self.lock().against[place].0 = Some(Instant::now());
        }
    }

    /// Notes that bytes of `range` are wrong; true if they came from a place that was trusted, and another still is.
    pub(super) fn distrust(&self, range: &Range<u64>) -> bool {
        let mut notes = self.lock();
        let overlaps = |served: &Range<u64>| served.start < range.end && range.start < served.end;
        let mut served = vec![false; self.count];
        notes.served.iter().filter(|(range, _)| overlaps(range)).for_each(|(_, place)| served[*place] = true);
        // If parts came from the registry as well, those of the others are the likelier to be wrong.
        if let Some(own) = self.own
            && served.iter().enumerate().any(|(place, served)| *served && place != own)
        {
            served[own] = false;
        }
        let mut is_news = false;
        for (place, _) in served.iter().enumerate().filter(|(_, served)| **served) {
            is_news |= !std::mem::replace(&mut notes.against[place].1, true);
        }
        is_news && notes.against.iter().any(|(_, is_wrong)| !is_wrong)
    }

    fn lock(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn awake(_: usize) -> bool {
        false
    }

    #[test]
    fn b_100_a_mirror_that_lacks_the_blob_is_asked_last_for_a_while() {
        let places = Places::new(0, 3, Some(2));
        assert_eq!(places.order(awake), [0, 1, 2]);
        places.lacks(0);
        places.lacks(2);
        assert_eq!(places.order(awake), [1, 2, 0], "the registry keeps its place");
        places.answers(0, 0..1);
        assert_eq!(places.order(awake), [0, 1, 2], "it has it now");
        assert_eq!(places.order(|place| place == 0), [1, 2, 0]);
    }

    #[test]
    fn b_071_urls_are_asked_before_the_registry_until_it_was_the_one_that_answered() {
        let places = Places::new(2, 1, Some(0));
        assert_eq!(places.order(awake), [0, 1, 2]);
        places.answers(1, 0..1);
        assert_eq!(places.order(awake), [1, 0, 2]);
        places.answers(2, 0..1);
        assert_eq!(places.order(awake), [2, 0, 1]);
    }

    #[test]
    fn who_sent_wrong_bytes_is_asked_last_and_each_is_blamed_once() {
        let places = Places::new(0, 3, Some(2));
        places.answers(0, 0..100);
        places.answers(1, 100..200);
        assert!(!places.distrust(&(200..300)), "nobody here sent these");
        assert!(places.distrust(&(50..60)));
        assert_eq!(places.order(awake), [1, 2, 0]);
        assert!(!places.distrust(&(50..60)), "it was blamed already");
        places.answers(2, 100..150);
        assert!(places.distrust(&(100..200)), "the mirror sent a part");
        assert_eq!(places.order(awake), [2, 0, 1]);
        places.answers(2, 0..200);
        assert!(!places.distrust(&(0..200)), "nobody is left");
    }

    #[test]
    fn a_registry_alone_has_nobody_to_blame() {
        let places = Places::new(0, 1, Some(0));
        places.answers(0, 0..100);
        assert!(!places.distrust(&(0..100)));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let places = Places::new(0, 2, Some(1));
        for start in 0..3 * SERVED_KEPT as u64 {
            places.answers(0, start..start + 1);
        }
        assert_eq!(places.lock().served.len(), SERVED_KEPT);
        assert!(!places.distrust(&(0..1)) && places.distrust(&(3 * SERVED_KEPT as u64 - 1..u64::MAX)));
    }
}
