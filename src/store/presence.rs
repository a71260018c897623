//! The map of a partial blob: on disk, which of its bytes are in place.
//!
//! The map is a log of records, each in a slot of its own. Slots are handed out in order under the blob's lock and
//! written outside it, by `pwrite`, so records are in the order of the decisions even if the writes overtake each other,
//! and a short write spoils its own slot only. (Appending would need the lock during the write to keep that order, and one
//! short append would shift all that follow.) A record is written only after the bytes it speaks of: what a
//! replay finds was there, whenever the process was killed.
//!
//! A replay skips slots that do not check: never written because the process was killed in between, or torn or
//! overwritten by a power cut. Skipping forgets what the record said. A lost "present" costs a fetch. A lost "forgotten"
//! shows bytes again that were once found wrong, and their next reader finds them wrong again; ending the replay at the
//! first bad slot would lose more of both.
//!
//! A record checks itself, its slot, the blob's digest and the blob's size, so no record counts in another place.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use super::object;
use super::ranges::RangeSet;
use crate::limits::BLOB_MAP_RECORDS;
use crate::oci::Digest;

/// Bytes in a slot: start, end, kind, check; each a little-endian `u64`. Slots never straddle a page.
const SLOT: usize = 32;

/// Slots read at a time.
const READ: usize = 2048;

/// A map may hold this many records more than its ranges need, before a factor of two makes it worth rewriting.
const SLACK: u64 = 256;

const PRESENT: u64 = 1;
const FORGOTTEN: u64 = 2;

/// What one record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    /// These bytes are in place.
    Present(Range<u64>),
    /// These bytes were found wrong.
    Forgotten(Range<u64>),
}

/// Whose map it is: part of every record's check.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner<'a> {
    pub(super) digest: &'a Digest,
    pub(super) size: u64,
}

/// What a map says, read back.
#[derive(Debug)]
pub(super) struct Replay {
    pub(super) present: RangeSet,
    /// Slots in use, good or bad; the next free one has this number.
    pub(super) slots: u64,
    /// Slots that did not check.
    pub(super) bad: u64,
}

impl Replay {
    /// True if a rewritten map would be much shorter, or would not have damage in it.
    pub(super) fn wants_rewrite(&self) -> bool {
        self.bad > 0 || self.slots > SLACK + 2 * self.present.pieces() as u64
    }
}

/// Writes `record` to `slot`.
pub(super) fn write(file: &File, slot: u64, record: &Record, owner: Owner<'_>) -> io::Result<()> {
    file.write_all_at(&encode(slot, record, owner), slot * SLOT as u64)
}

/// A whole map that says `present`, using as many slots as there are pieces.
pub(super) fn encode_all(present: &RangeSet, owner: Owner<'_>) -> Vec<u8> {
    let slots = present.iter().zip(0..);
    slots.flat_map(|(range, slot)| encode(slot, &Record::Present(range), owner)).collect()
}

/// Reads a map back. Never fails on what is in it: what does not check is skipped.
pub(super) fn replay(file: &File, owner: Owner<'_>) -> io::Result<Replay> {
    let mut replay = Replay { present: RangeSet::default(), slots: 0, bad: 0 };
    let mut buffer = vec![0; READ * SLOT];
    while replay.slots < BLOB_MAP_RECORDS {
        let count = object::read_at_most(file, &mut buffer, replay.slots * SLOT as u64)?;
        for bytes in buffer[..count].chunks(SLOT) {
            match decode(replay.slots, bytes, owner) {
                Some(Record::Present(range)) => replay.bad += u64::from(!replay.present.insert(&range)),
                Some(Record::Forgotten(range)) => replay.present.remove(&range),
                None => replay.bad += 1,
            }
            replay.slots += 1;
        }
        if count < buffer.len() {
            break;
        }
    }
    Ok(replay)
}

fn encode(slot: u64, record: &Record, owner: Owner<'_>) -> [u8; SLOT] {
    let (range, kind) = match record {
        Record::Present(range) => (range, PRESENT),
        Record::Forgotten(range) => (range, FORGOTTEN),
    };
    let mut bytes = [0; SLOT];
    bytes[..8].copy_from_slice(&range.start.to_le_bytes());
    bytes[8..16].copy_from_slice(&range.end.to_le_bytes());
    bytes[16..24].copy_from_slice(&kind.to_le_bytes());
    let check = check(slot, &bytes[..24], owner);
    bytes[24..].copy_from_slice(&check);
    bytes
}

fn decode(slot: u64, bytes: &[u8], owner: Owner<'_>) -> Option<Record> {
    let (start, rest) = bytes.split_first_chunk::<8>()?;
    let (end, rest) = rest.split_first_chunk::<8>()?;
    let (kind, rest) = rest.split_first_chunk::<8>()?;
    if rest != check(slot, &bytes[..24], owner) {
        return None;
    }
    let range = u64::from_le_bytes(*start)..u64::from_le_bytes(*end);
    if range.start >= range.end || range.end > owner.size {
        return None;
    }
    match u64::from_le_bytes(*kind) {
        PRESENT => Some(Record::Present(range)),
        FORGOTTEN => Some(Record::Forgotten(range)),
        _ => None,
    }
}

/// The first eight bytes of the BLAKE3 of everything a record depends on.
fn check(slot: u64, fields: &[u8], owner: Owner<'_>) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(fields).update(&slot.to_le_bytes()).update(&owner.size.to_le_bytes()).update(owner.digest.bytes());
    let mut check = [0; 8];
    check.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    check
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: u64 = 100;

    fn map_of(bytes: &[u8]) -> File {
        let file = tempfile::tempfile().expect("temporary file");
        file.write_all_at(bytes, 0).expect("written");
        file
    }

    fn records() -> impl Strategy<Value = Vec<Record>> {
        let record = (any::<bool>(), 0..SIZE, 1..=SIZE).prop_map(|(present, start, length)| {
            let range = start..(start + length).min(SIZE);
            if present { Record::Present(range) } else { Record::Forgotten(range) }
        });
        prop::collection::vec(record, 0..40)
    }

    fn said_by(records: &[Record]) -> RangeSet {
        let mut set = RangeSet::default();
        for record in records {
            match record {
                Record::Present(range) => assert!(set.insert(range)),
                Record::Forgotten(range) => set.remove(range),
            }
        }
        set
    }

    proptest! {
        #[test]
        fn a_replay_says_what_was_written_less_the_slot_that_was_spoilt(
            records in records(),
            spoilt in any::<prop::sample::Index>(),
            bit in 0..8,
            cut in 0..SLOT,
        ) {
            let digest = Digest::sha256(b"blob");
            let owner = Owner { digest: &digest, size: SIZE };
            let file = map_of(b"");
            for (record, slot) in records.iter().zip(0..) {
                write(&file, slot, record, owner)?;
            }
            let replayed = replay(&file, owner)?;
            prop_assert_eq!((&replayed.present, replayed.slots, replayed.bad), (&said_by(&records), records.len() as u64, 0));
            if records.is_empty() {
                return Ok(());
            }
            let mut bytes = vec![0; records.len() * SLOT];
            file.read_exact_at(&mut bytes, 0)?;
            let at = spoilt.index(bytes.len());
            bytes[at] ^= 1_u8 << bit;
            let mut rest = records.clone();
            rest.remove(at / SLOT);
            let replayed = replay(&map_of(&bytes), owner)?;
            prop_assert_eq!((&replayed.present, replayed.slots, replayed.bad), (&said_by(&rest), records.len() as u64, 1));
            bytes[at] ^= 1_u8 << bit;
            bytes.truncate(bytes.len() - cut);
            let whole = &records[..bytes.len() / SLOT];
            let replayed = replay(&map_of(&bytes), owner)?;
            prop_assert_eq!((&replayed.present, replayed.slots), (&said_by(whole), records.len() as u64));
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            let digest = Digest::sha256(b"blob");
            let replayed = replay(&map_of(&bytes), Owner { digest: &digest, size: u64::MAX })?;
            prop_assert_eq!(replayed.present.bytes(), 0);
            prop_assert_eq!(replayed.slots, bytes.len().div_ceil(SLOT) as u64);
        }
    }

    #[test]
    fn a_map_of_another_blob_or_size_says_nothing() -> io::Result<()> {
        let (digest, other) = (Digest::sha256(b"blob"), Digest::sha256(b"other"));
        let set = said_by(&[Record::Present(0..10), Record::Present(20..30)]);
        let owner = Owner { digest: &digest, size: SIZE };
        let file = map_of(&encode_all(&set, owner));
        assert_eq!(replay(&file, owner)?.present, set);
        assert_eq!(replay(&file, Owner { digest: &other, size: SIZE })?.present.bytes(), 0);
        assert_eq!(replay(&file, Owner { digest: &digest, size: SIZE + 1 })?.present.bytes(), 0);
        Ok(())
    }

    #[test]
    fn a_slot_that_was_never_written_does_not_hide_the_ones_after_it() -> io::Result<()> {
        let digest = Digest::sha256(b"blob");
        let owner = Owner { digest: &digest, size: SIZE };
        let file = map_of(b"");
        write(&file, 2, &Record::Present(5..6), owner)?;
        let replayed = replay(&file, owner)?;
        assert_eq!((replayed.present.bytes(), replayed.slots, replayed.bad), (1, 3, 2));
        assert!(replayed.wants_rewrite());
        Ok(())
    }

    #[test]
    fn d_060_a_map_longer_than_the_bound_is_read_up_to_it() -> io::Result<()> {
        let digest = Digest::sha256(b"blob");
        let owner = Owner { digest: &digest, size: SIZE };
        let file = map_of(b"");
        write(&file, BLOB_MAP_RECORDS - 1, &Record::Present(1..2), owner)?;
        write(&file, BLOB_MAP_RECORDS, &Record::Present(3..4), owner)?;
        let replayed = replay(&file, owner)?;
        assert_eq!((replayed.present.bytes(), replayed.slots), (1, BLOB_MAP_RECORDS));
        Ok(())
    }
}
