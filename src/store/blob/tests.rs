//! Blobs under crashes, damage and concurrency.
//!
//! A crash of the process is a dropped value: nothing the process knew but had not written survives it. The instants between
//! two changes of names are set up by hand, a power cut is a spoilt end of the map, and one test kills a real process.

#![expect(clippy::single_range_in_vec_init, reason = "a list of gaps often has one")]

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use proptest::prelude::*;

use super::super::Store;
use super::super::tests::{Scratch, flip};
use super::*;

type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Bytes without a zero, so that a hole never looks like content.
fn content(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at % 251) as u8 + 1).collect()
}

/// The part of `content` that `range` names.
fn part<'a>(content: &'a [u8], range: &Range<u64>) -> &'a [u8] {
    &content[range.start as usize..range.end as usize]
}

fn present(blob: &Blob) -> RangeSet {
    let mut present = RangeSet::default();
    present.insert(&(0..blob.size()));
    for gap in blob.missing(0..blob.size()) {
        present.remove(&gap);
    }
    present
}

#[test]
fn bytes_are_here_once_written_and_complete_once_hashed() -> Result {
    let scratch = Scratch::new();
    let content = content(1000);
    let digest = Digest::sha256(&content);
    let blob = scratch.store.blob(&digest, 1000)?;
    assert_eq!(blob.missing(0..2000), [0..1000]);
    assert_eq!(blob.read(0..1)?, None);
    assert_eq!(blob.read(5..5)?.as_deref(), Some(&b""[..]));
    blob.write(100, &content[100..200])?;
    blob.write(300, &content[300..400])?;
    assert_eq!(blob.missing(150..350), [200..300]);
    assert_eq!(blob.missing(150..180), []);
    assert_eq!(blob.read(120..180)?.as_deref(), Some(&content[120..180]));
    assert_eq!(blob.read(199..201)?, None);
    assert!(matches!(blob.complete(false), Err(Error::Incomplete(_))));
    blob.write(0, &content)?;
    assert_eq!((blob.present_bytes(), blob.is_complete()), (1000, false));
    blob.complete(false)?;
    blob.complete(false)?;
    assert!(blob.is_complete());
    blob.write(0, b"ignored, because all is here")?;
    assert_eq!(blob.read(0..1000)?.as_deref(), Some(&content[..]));
    assert_eq!(fs::read_dir(scratch.path("blobs"))?.count(), 1, "no map stays behind");
    Ok(())
}

#[test]
fn d_022_wrong_content_forgets_everything() -> Result {
    let scratch = Scratch::new();
    let blob = scratch.store.blob(&Digest::sha256(b"right"), 5)?;
    blob.write(0, b"wrong")?;
    assert!(matches!(blob.complete(false), Err(Error::Mismatch(_))));
    assert_eq!(blob.present_bytes(), 0);
    assert_eq!(fs::read_dir(scratch.path("blobs"))?.count(), 0);
    blob.write(0, b"right")?;
    blob.complete(false)?;
    Ok(())
}

#[test]
fn a_caller_that_hashed_the_bytes_itself_is_believed_about_their_content_only() -> Result {
    let scratch = Scratch::new();
    let content = content(1000);
    let blob = scratch.store.blob(&Digest::sha256(b"something else"), 1000)?;
    assert!(matches!(blob.complete(true), Err(Error::Incomplete(_))));
    blob.write(0, &content)?;
    blob.complete(true)?;
    assert!(blob.is_complete());
    blob.discard(0..1000)?;
    blob.write(0, &content)?;
    let partial = scratch.store.shared.layout.blob(&blob.digest(), BlobFile::Partial(1000));
    fs::OpenOptions::new().write(true).open(partial)?.set_len(999)?;
    assert!(matches!(blob.complete(true), Err(Error::Mismatch(_))));
    Ok(())
}

#[test]
fn d_060_a_full_map_costs_what_comes_later_and_a_discard_costs_the_map() -> Result {
    let scratch = Scratch::new();
    let digest = Digest::sha256(b"content");
    let mut blob = scratch.store.blob(&digest, 7)?;
    let fill = |blob: &Blob| match &mut lock(&blob.state).held {
        Held::Partial { slots, .. } => *slots = Some(BLOB_MAP_RECORDS),
        held => panic!("not partial but {held:?}"),
    };
    blob.write(0, b"co")?;
    fill(&blob);
    blob.write(4, b"ent")?;
    assert_eq!(blob.missing(0..7), [2..4], "known while it is open");
    drop(blob);
    blob = scratch.store.blob(&digest, 7)?;
    assert_eq!(blob.missing(0..7), [2..7]);
    fill(&blob);
    blob.discard(0..1)?;
    blob.discard(6..7)?;
    assert_eq!(blob.missing(0..7), [0..1, 2..7]);
    blob.write(2, b"n")?;
    drop(blob);
    blob = scratch.store.blob(&digest, 7)?;
    assert_eq!(blob.present_bytes(), 0, "what was discarded does not come back");
    blob.write(0, b"content")?;
    blob.complete(false)?;
    Ok(())
}

#[test]
fn an_empty_blob_can_be_complete() -> Result {
    let scratch = Scratch::new();
    let blob = scratch.store.blob(&Digest::sha256(b""), 0)?;
    assert_eq!((blob.is_complete(), blob.missing(0..10)), (false, Vec::new()));
    blob.complete(false)?;
    let wrong = scratch.store.blob(&Digest::sha256(b"not empty"), 0)?;
    assert!(matches!(wrong.complete(false), Err(Error::Mismatch(_))));
    Ok(())
}

#[test]
fn d_060_ranges_outside_the_blob_are_errors() -> Result {
    let scratch = Scratch::new();
    let blob = scratch.store.blob(&Digest::sha256(b"12345"), 5)?;
    assert!(blob.write(5, b"6").is_err() && blob.write(u64::MAX, b"12").is_err());
    #[expect(clippy::reversed_empty_ranges, reason = "a caller's mistake")]
    let reversed = 3..2;
    assert!(blob.read(0..6).is_err() && blob.read(reversed).is_err());
    assert_eq!(blob.missing(9..20), []);
    blob.discard(3..u64::MAX)?;
    assert!(scratch.store.blob(&Digest::sha256(b"huge"), crate::limits::BLOB_BYTES + 1).is_err());
    assert_eq!(fs::read_dir(scratch.path("blobs"))?.count(), 0);
    Ok(())
}

#[test]
fn a_lie_about_the_size_costs_no_good_blob() -> Result {
    let scratch = Scratch::new();
    let blob = scratch.complete(b"content");
    let digest = blob.digest();
    let lie = |store: &Store| matches!(store.blob(&digest, 3), Err(Error::Size { known: 7, asked: 3, .. }));
    assert!(lie(&scratch.store), "while it is in use");
    drop(blob);
    assert!(lie(&scratch.store), "while it is on disk");
    assert!(scratch.store.blob(&digest, 7)?.is_complete());
    let path = scratch.store.shared.layout.blob(&digest, BlobFile::Complete);
    fs::write(&path, b"cont")?;
    assert_eq!(scratch.store.blob(&digest, 7)?.present_bytes(), 0, "a truncated one is removed");
    assert!(!path.exists());
    Ok(())
}

#[test]
fn a_lie_about_the_size_of_a_blob_that_is_not_complete_is_at_nobodys_cost() -> Result {
    let scratch = Scratch::new();
    let digest = Digest::sha256(b"content");
    let lies = [scratch.store.blob(&digest, 3)?, scratch.store.blob(&digest, 8)?];
    let honest = scratch.store.blob(&digest, 7)?;
    lies[0].write(0, b"abc")?;
    lies[1].write(0, b"liars")?;
    honest.write(0, b"con")?;
    assert!(
        Arc::ptr_eq(&honest, &scratch.store.blob(&digest, 7)?)
            && Arc::ptr_eq(&lies[0], &scratch.store.blob(&digest, 3)?)
    );
    assert!(matches!(lies[0].complete(false), Err(Error::Mismatch(_))));
    assert_eq!((honest.present_bytes(), lies[1].present_bytes()), (3, 5));
    let scratch = {
        drop((lies, honest));
        scratch.reopen()
    };
    let (lie, honest) = (scratch.store.blob(&digest, 8)?, scratch.store.blob(&digest, 7)?);
    assert_eq!((honest.read(0..3)?.as_deref(), lie.read(0..5)?.as_deref()), (Some(&b"con"[..]), Some(&b"liars"[..])));
    honest.write(3, b"tent")?;
    honest.complete(false)?;
    lie.write(5, b"!!!")?;
    assert!(matches!(lie.complete(false), Err(Error::Mismatch(_))));
    assert_eq!(honest.read(0..7)?.as_deref(), Some(&b"content"[..]), "it is not forgotten with the lie");
    lie.write(0, b"again")?;
    drop(lie);
    assert!(matches!(scratch.store.blob(&digest, 8), Err(Error::Size { known: 7, asked: 8, .. })));
    let dropped = scratch.store.drop_blobs(&HashSet::new())?;
    assert_eq!((dropped.freed.count, dropped.kept.len()), (0, 1));
    drop(honest);
    assert_eq!(scratch.store.drop_blobs(&HashSet::new())?.freed.count, 1);
    assert_eq!(fs::read_dir(scratch.path("blobs"))?.count(), 0, "whatever size it was said to have");
    Ok(())
}

#[test]
fn who_waits_for_bytes_is_told_when_the_last_of_them_is_here() -> Result {
    let scratch = Scratch::new();
    let content = content(1000);
    let digest = Digest::sha256(&content);
    let blob = scratch.store.blob(&digest, 1000)?;
    let mut middle = std::pin::pin!(blob.arrived(200..400));
    let mut whole = std::pin::pin!(blob.arrived(0..1000));
    assert_eq!((middle.as_mut().now_or_never(), whole.as_mut().now_or_never()), (None, None));
    blob.write(100, &content[100..350])?;
    assert_eq!(middle.as_mut().now_or_never(), None, "a part of them is not all");
    blob.write(350, &content[350..400])?;
    assert_eq!(middle.now_or_never(), Some(()));
    let mut replacement = blob.replacement()?;
    replacement.write(&content)?;
    replacement.finish()?;
    assert_eq!(whole.now_or_never(), Some(()), "however they came");
    Ok(())
}

#[test]
fn a_replacement_takes_the_place_of_everything_if_it_has_the_digest_and_leaves_nothing_if_not() -> Result {
    let scratch = Scratch::new();
    let content = content(1000);
    let blob = scratch.store.blob(&Digest::sha256(&content), 1000)?;
    blob.write(0, &[7; 600])?;
    for wrong in [&[7; 1000][..], &content[..999]] {
        let mut replacement = blob.replacement()?;
        replacement.write(wrong)?;
        assert!(matches!(replacement.finish(), Err(Error::Mismatch(_))));
        assert_eq!(blob.missing(0..1000), [600..1000], "it stays as it is");
    }
    drop(blob.replacement()?);
    assert_eq!(fs::read_dir(scratch.path("tmp"))?.count(), 0);
    let mut replacement = blob.replacement()?;
    replacement.write(&content[..400])?;
    // Others go on writing what they have.
    blob.write(600, &[7; 400])?;
    replacement.write(&content[400..])?;
    replacement.finish()?;
    assert!(blob.is_complete());
    assert_eq!(blob.read(0..1000)?.as_deref(), Some(&content[..]));
    assert_eq!((fs::read_dir(scratch.path("blobs"))?.count(), fs::read_dir(scratch.path("tmp"))?.count()), (1, 0));
    let mut late = blob.replacement()?;
    late.write(&content)?;
    late.finish()?;
    assert_eq!(fs::read_dir(scratch.path("tmp"))?.count(), 0);
    Ok(())
}

#[test]
fn what_others_wrote_or_discarded_since_a_mark_is_hashed_again() -> Result {
    type Meddle = fn(&Blob) -> std::result::Result<(), Error>;
    let content = content(1000);
    let meddlers: [(&str, Meddle); 4] = [
        ("nobody", |_| Ok(())),
        ("a reader", |blob| blob.read(0..10).map(drop)),
        ("a writer that was faster", |blob| blob.write(500, b"wrong")),
        ("a reader that did not like what it saw, and a writer", |blob| {
            blob.discard(0..10)?;
            blob.write(0, b"wrong wron")
        }),
    ];
    for (who, meddle) in meddlers {
        let scratch = Scratch::new();
        let blob = scratch.store.blob(&Digest::sha256(&content), 1000)?;
        blob.write(0, &content[..300])?;
        let mark = blob.mark();
        assert_eq!(blob.read(0..300)?.as_deref(), Some(&content[..300]));
        meddle(&blob)?;
        blob.write(300, &content[300..])?;
        let completed = blob.complete_since(mark);
        match blob.is_complete() {
            true => assert!(matches!(who, "nobody" | "a reader") && completed.is_ok(), "{who}"),
            false => assert!(who.contains("writer") && matches!(completed, Err(Error::Mismatch(_))), "{who}"),
        }
    }
    Ok(())
}

#[test]
fn what_was_wrong_is_discarded_unless_others_have_discarded_since() -> Result {
    let scratch = Scratch::new();
    let content = content(1000);
    let blob = scratch.store.blob(&Digest::sha256(&content), 1000)?;
    blob.write(0, &content)?;
    blob.complete(true)?;
    let mark = blob.mark();
    assert!(blob.discard_since(100..200, mark)?);
    assert_eq!(blob.missing(0..1000), [100..200]);
    blob.write(100, &content[100..200])?;
    assert!(!blob.discard_since(150..250, mark)?, "what the mark stands for is gone");
    assert!(blob.missing(0..1000).is_empty());
    let mark = blob.mark();
    blob.complete(false)?;
    assert!(blob.discard_since(150..250, mark)?, "completion changes no bytes");
    assert_eq!(blob.missing(0..1000), [150..250]);
    Ok(())
}

#[test]
fn one_value_is_shared_however_many_ask_at_once() -> Result {
    let scratch = Scratch::new();
    let digest = Digest::sha256(b"content");
    scratch.store.blob(&digest, 7)?.write(2, b"nte")?;
    let blobs: Vec<Arc<Blob>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| scratch.store.blob(&digest, 7).expect("loads"))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert!(blobs.iter().all(|blob| Arc::ptr_eq(blob, &blobs[0])));
    assert_eq!(blobs[0].present_bytes(), 3);
    Ok(())
}

#[test]
fn a_complete_blob_that_was_damaged_keeps_the_rest() -> Result {
    let scratch = Scratch::new();
    let content = content(1000);
    let blob = scratch.complete(&content);
    let path = scratch.store.shared.layout.blob(&blob.digest(), BlobFile::Complete);
    flip(&path);
    assert_ne!(blob.read(0..1000)?.as_deref(), Some(&content[..]), "the reader is who notices");
    blob.discard(400..600)?;
    assert!(!path.exists() && !blob.is_complete());
    let digest = blob.digest();
    drop(blob);
    let scratch = scratch.reopen();
    let blob = scratch.store.blob(&digest, 1000)?;
    assert_eq!(blob.missing(0..1000), [400..600]);
    blob.write(400, &content[400..600])?;
    blob.complete(false)?;
    assert_eq!(blob.read(0..1000)?.as_deref(), Some(&content[..]));
    Ok(())
}

#[test]
fn files_taken_away_or_cut_short_behind_our_back_count_as_absent() -> Result {
    let scratch = Scratch::new();
    let content = content(1000);
    let blob = scratch.complete(&content);
    let complete = scratch.store.shared.layout.blob(&blob.digest(), BlobFile::Complete);
    fs::OpenOptions::new().write(true).open(&complete)?.set_len(600)?;
    assert_eq!(blob.read(0..500)?.as_deref(), Some(&content[..500]));
    assert_eq!(blob.read(500..700)?, None);
    assert_eq!(blob.missing(0..1000), [600..1000]);
    blob.write(600, &content[600..])?;
    blob.complete(false)?;
    let digest = blob.digest();
    drop(blob);
    let blob = scratch.store.blob(&digest, 1000)?;
    fs::remove_file(complete)?;
    assert_eq!(blob.read(0..1)?, None);
    assert_eq!((blob.is_complete(), blob.present_bytes()), (false, 0));
    blob.write(0, &content)?;
    blob.complete(false)?;
    Ok(())
}

/// Every combination of files that a cut-off change of names, or a meddler, can leave.
#[test]
fn what_a_cut_off_change_of_names_leaves_is_never_believed_too_much() -> Result {
    let content = content(100);
    let digest = Digest::sha256(&content);
    let owner = Owner { digest: &digest, size: 100 };
    let mut half = RangeSet::default();
    half.insert(&(0..50));
    for (complete, partial, map) in (0..8).map(|bits| (bits & 1 > 0, bits & 2 > 0, bits & 4 > 0)) {
        let scratch = Scratch::new();
        let path = |file| scratch.store.shared.layout.blob(&digest, file);
        if complete {
            fs::write(path(BlobFile::Complete), &content)?;
        }
        if partial {
            fs::write(path(BlobFile::Partial(100)), [&content[..50], &[0; 50]].concat())?;
        }
        if map {
            fs::write(path(BlobFile::Map(100)), presence::encode_all(&half, owner))?;
        }
        let blob = scratch.store.blob(&digest, 100)?;
        let expected = if complete {
            100
        } else if partial && map {
            50
        } else {
            0
        };
        let case = format!("complete {complete}, partial {partial}, map {map}");
        assert_eq!((blob.present_bytes(), blob.is_complete()), (expected, complete), "{case}");
        assert_eq!(blob.read(0..expected)?.as_deref(), Some(&content[..expected as usize]), "{case}");
        let files = fs::read_dir(scratch.path("blobs"))?.count();
        assert_eq!(
            files,
            if complete {
                1
            } else if expected > 0 {
                2
            } else {
                0
            },
            "{case}: nothing else stays"
        );
        blob.write(0, &content)?;
        blob.complete(false)?;
    }
    Ok(())
}

#[test]
fn a_map_much_longer_than_its_ranges_is_shortened_when_loaded() -> Result {
    let scratch = Scratch::new();
    let content = content(4000);
    let digest = Digest::sha256(&content);
    let blob = scratch.store.blob(&digest, 4000)?;
    for at in 0..3000 {
        blob.write(at, &content[at as usize..=at as usize])?;
    }
    blob.discard(10..20)?;
    let map = scratch.store.shared.layout.blob(&digest, BlobFile::Map(4000));
    let length = fs::metadata(&map)?.len();
    drop(blob);
    let blob = scratch.store.blob(&digest, 4000)?;
    assert!(fs::metadata(&map)?.len() * 100 < length);
    blob.write(10, &content[10..12])?;
    drop(blob);
    let blob = scratch.store.blob(&digest, 4000)?;
    assert_eq!(blob.missing(0..4000), [12..20, 3000..4000]);
    Ok(())
}

#[test]
fn descriptors_of_many_blobs_are_closed_and_opened_again() -> Result {
    let scratch = Scratch::new();
    let blobs: Vec<Arc<Blob>> = (0..crate::limits::OPEN_BLOBS as u64)
        .map(|number| {
            let blob = scratch.store.blob(&Digest::sha256(&number.to_le_bytes()), 8)?;
            blob.write(0, &number.to_le_bytes()[..4])?;
            Ok(blob)
        })
        .collect::<Result<_>>()?;
    let open = blobs.iter().filter(|blob| lock(&blob.state).data.strong_count() > 0).count();
    assert_eq!(open, crate::limits::OPEN_BLOBS / 2, "half of the descriptors are maps");
    for (blob, number) in blobs.iter().zip(0_u64..) {
        blob.write(4, &number.to_le_bytes()[4..])?;
        assert_eq!(blob.read(0..8)?.as_deref(), Some(&number.to_le_bytes()[..]));
        blob.complete(false)?;
    }
    Ok(())
}

#[derive(Debug, Clone)]
enum Step {
    Write(Range<u64>, bool),
    Discard(Range<u64>),
    Complete,
    /// The process ends; then this much of the last slot of the map is spoilt by cutting or by flipping a bit.
    Crash(Option<(bool, usize)>),
}

const SIZE: u64 = 60;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let range = || (0..SIZE, 1..=SIZE).prop_map(|(start, length)| start..(start + length).min(SIZE));
    let step = prop_oneof![
        6 => (range(), prop::bool::weighted(0.95)).prop_map(|(range, good)| Step::Write(range, good)),
        2 => range().prop_map(Step::Discard),
        2 => Just(Step::Complete),
        2 => Just(Step::Crash(None)),
        1 => (any::<bool>(), 1_usize..32).prop_map(|spoilt| Step::Crash(Some(spoilt))),
    ];
    prop::collection::vec(step, 1..40)
}

/// What must be true of a blob: for each byte whether it is present, and what was last written there.
struct Model {
    content: Vec<u8>,
    present: Vec<bool>,
    written: Vec<Option<u8>>,
    complete: bool,
}

impl Model {
    fn forget(&mut self) {
        self.present.fill(false);
        self.written.fill(None);
        self.complete = false;
    }

    fn write(&mut self, range: &Range<u64>, bytes: &[u8]) {
        for (at, &byte) in (range.start as usize..).zip(bytes) {
            if !self.present[at] {
                self.present[at] = true;
                self.written[at] = Some(byte);
            }
        }
    }

    fn check(&self, blob: &Blob) -> std::result::Result<(), TestCaseError> {
        let found = present(blob);
        prop_assert_eq!(blob.is_complete(), self.complete);
        for (at, &here) in (0_u64..).zip(&self.present) {
            prop_assert_eq!(found.contains(&(at..at + 1)), here, "byte {}", at);
        }
        for range in found.iter() {
            let bytes = blob.read(range.clone()).expect("readable").expect("present");
            let written: Option<Vec<u8>> =
                self.written[range.start as usize..range.end as usize].iter().copied().collect();
            prop_assert_eq!(Some(bytes.to_vec()), written, "never a byte that was not written");
        }
        Ok(())
    }

    /// A spoilt record may lose what it said and nothing else.
    fn lose(&mut self, blob: &Blob, lost: &Range<u64>) -> std::result::Result<(), TestCaseError> {
        let found = present(blob);
        for at in 0..SIZE {
            let (here, before) = (found.contains(&(at..at + 1)), self.present[at as usize]);
            prop_assert!(here == before || lost.contains(&at), "byte {} was {} and is {}", at, before, here);
            self.present[at as usize] = here;
        }
        Ok(())
    }
}

/// Spoils the last slot of the map, if there is a map, and returns the range its record spoke of.
fn spoil(path: &std::path::Path, (cut, amount): (bool, usize)) -> Option<Range<u64>> {
    let mut bytes = fs::read(path).ok().filter(|bytes| bytes.len() >= 32)?;
    let last = bytes.len() - 32;
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let range = number(last)..number(last + 8);
    if cut {
        bytes.truncate(last + amount);
    } else {
        bytes[last + amount] ^= 1;
    }
    fs::write(path, bytes).expect("written");
    Some(range)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn d_062_no_crash_loses_what_was_recorded_or_shows_what_was_not_written(steps in steps()) {
        let mut scratch = Scratch::new();
        let content = content(SIZE as usize);
        let digest = Digest::sha256(&content);
        let size = SIZE as usize;
        let mut model = Model { content, present: vec![false; size], written: vec![None; size], complete: false };
        let mut blob = scratch.store.blob(&digest, SIZE).expect("loads");
        for step in steps {
            match step {
                Step::Write(range, good) => {
                    let mut bytes = part(&model.content, &range).to_vec();
                    bytes[0] ^= if good { 0 } else { 128 };
                    blob.write(range.start, &bytes).expect("written");
                    model.write(&range, &bytes);
                }
                Step::Discard(range) => {
                    blob.discard(range.clone()).expect("discarded");
                    model.present[range.start as usize..range.end as usize].fill(false);
                    model.complete = false;
                }
                Step::Complete => match blob.complete(false) {
                    Ok(()) => {
                        prop_assert!(model.written.iter().zip(&model.content).all(|(byte, right)| *byte == Some(*right)));
                        prop_assert!(model.present.iter().all(|&here| here));
                        model.complete = true;
                    }
                    Err(Error::Incomplete(_)) => prop_assert!(!model.present.iter().all(|&here| here)),
                    Err(Error::Mismatch(_)) => model.forget(),
                    Err(error) => return Err(TestCaseError::fail(error.to_string())),
                },
                Step::Crash(spoilt) => {
                    drop(blob);
                    let map = scratch.store.shared.layout.blob(&digest, BlobFile::Map(SIZE));
                    let lost = spoilt.and_then(|spoilt| spoil(&map, spoilt));
                    scratch = scratch.reopen();
                    blob = scratch.store.blob(&digest, SIZE).expect("loads");
                    model.lose(&blob, &lost.unwrap_or(0..0))?;
                    if blob.present_bytes() == 0 {
                        model.forget();
                    }
                }
            }
            model.check(&blob)?;
        }
    }
}

/// A small generator, so that threads and processes need no shared one.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn range(&mut self, size: u64, longest: u64) -> Range<u64> {
        let start = self.below(size);
        start..(start + 1 + self.below(longest)).min(size)
    }
}

#[test]
fn many_writers_readers_and_discards_at_once_end_in_a_complete_blob() -> Result {
    const SIZE: u64 = 1 << 20;
    let scratch = Scratch::new();
    let content = content(SIZE as usize);
    let digest = Digest::sha256(&content);
    let blob = scratch.store.blob(&digest, SIZE)?;
    let busy = AtomicBool::new(true);
    thread::scope(|scope| {
        for seed in 1..=3 {
            let (blob, content, busy) = (&blob, &content, &busy);
            scope.spawn(move || {
                let mut random = Random(u64::wrapping_mul(seed, 0x9e37_79b9_7f4a_7c15));
                while busy.load(Ordering::Relaxed) {
                    let range = random.range(SIZE, 9000);
                    if let Some(bytes) = blob.read(range.clone()).expect("readable") {
                        assert_eq!(bytes, part(content, &range), "bytes are in place before they are present");
                    }
                }
            });
        }
        let writers: Vec<_> = (1..=4)
            .map(|seed| {
                let (blob, content) = (&blob, &content);
                scope.spawn(move || {
                    let mut random = Random(u64::wrapping_mul(seed, 0x2545_f491_4f6c_dd1d));
                    for round in 0..300 {
                        let range = random.range(SIZE, 20_000);
                        blob.write(range.start, part(content, &range)).expect("written");
                        if round % 10 == 0 {
                            blob.discard(random.range(SIZE, 3000)).expect("discarded");
                        }
                        if round % 50 == 0 {
                            let completed = blob.complete(false);
                            assert!(matches!(completed, Ok(()) | Err(Error::Incomplete(_))), "{completed:?}");
                        }
                    }
                    while !blob.is_complete() {
                        for gap in blob.missing(0..SIZE) {
                            blob.write(gap.start, part(content, &gap)).expect("written");
                        }
                        let completed = blob.complete(false);
                        assert!(matches!(completed, Ok(()) | Err(Error::Incomplete(_))), "{completed:?}");
                    }
                })
            })
            .collect();
        let panicked = writers.into_iter().filter_map(|writer| writer.join().err()).count();
        busy.store(false, Ordering::Relaxed);
        assert_eq!(panicked, 0);
    });
    while !blob.is_complete() {
        // A discard of the last writer may have come after the last completion.
        for gap in blob.missing(0..SIZE) {
            blob.write(gap.start, part(&content, &gap))?;
        }
        blob.complete(false)?;
    }
    assert_eq!(blob.read(0..SIZE)?.as_deref(), Some(&content[..]));
    drop(blob);
    assert!(scratch.reopen().store.blob(&digest, SIZE)?.is_complete());
    Ok(())
}

#[test]
fn what_concurrent_writers_recorded_is_there_after_a_restart() -> Result {
    const SIZE: u64 = 1 << 18;
    let scratch = Scratch::new();
    let content = content(SIZE as usize);
    let digest = Digest::sha256(&content);
    let blob = scratch.store.blob(&digest, SIZE)?;
    thread::scope(|scope| {
        for seed in 1..=8 {
            let (blob, content) = (&blob, &content);
            scope.spawn(move || {
                let mut random = Random(u64::wrapping_mul(seed, 0x9e37_79b9_7f4a_7c15));
                for _ in 0..200 {
                    let range = random.range(SIZE, 500);
                    blob.write(range.start, part(content, &range)).expect("written");
                }
            });
        }
    });
    let before = present(&blob);
    drop(blob);
    let scratch = scratch.reopen();
    let blob = scratch.store.blob(&digest, SIZE)?;
    assert_eq!(present(&blob), before);
    for range in before.iter() {
        assert_eq!(blob.read(range.clone())?.as_deref(), Some(part(&content, &range)));
    }
    Ok(())
}

#[test]
fn dropping_and_checking_never_touch_a_blob_that_is_being_opened() -> Result {
    const SIZE: u64 = 10_000;
    let scratch = Scratch::new();
    let content = content(SIZE as usize);
    let digest = Digest::sha256(&content);
    let dropped = AtomicU64::new(0);
    thread::scope(|scope| {
        let users = [1, 2].map(|seed| {
            let (store, content, dropped) = (&scratch.store, &content, &dropped);
            scope.spawn(move || {
                let mut random = Random(seed);
                let mut rounds = 0;
                // Until some were dropped, so that opening and dropping did meet.
                while rounds < 300 || (dropped.load(Ordering::Relaxed) < 10 && rounds < 100_000) {
                    rounds += 1;
                    let blob = store.blob(&digest, SIZE).expect("loads");
                    let range = random.range(SIZE, 4000);
                    blob.write(range.start, part(content, &range)).expect("written");
                    assert_eq!(blob.read(range.clone()).expect("readable").as_deref(), Some(part(content, &range)));
                    assert!(matches!(blob.complete(false), Ok(()) | Err(Error::Incomplete(_))));
                    drop(blob);
                    thread::sleep(Duration::from_micros(random.below(300)));
                }
            })
        });
        while !users.iter().any(|user| user.is_finished()) {
            let freed = scratch.store.drop_blobs(&std::collections::HashSet::new()).expect("dropped").freed;
            dropped.fetch_add(freed.count, Ordering::Relaxed);
            let verified = scratch.store.verify(&|_, _, _| true).expect("checked");
            assert_eq!(verified.removed, [""; 0]);
        }
    });
    assert!(dropped.into_inner() >= 10);
    Ok(())
}

const KILLED_SIZE: u64 = 64 << 10;
const KILLED_DIR: &str = "OCIFS_TEST_STORE_DIR";

/// Changes a blob at random until it is killed, saying on its output what it is about to do and what it has done.
#[test]
#[ignore = "the process that the test below starts and kills"]
fn works_until_it_is_killed() -> Result {
    let Some(dir) = std::env::var_os(KILLED_DIR) else { return Ok(()) };
    let store = Store::open(dir.as_ref())?;
    let content = content(KILLED_SIZE as usize);
    let blob = store.blob(&Digest::sha256(&content), KILLED_SIZE)?;
    let mut random = Random(u64::from(std::process::id()) << 20 | 1);
    let mut out = std::io::stdout().lock();
    loop {
        let range = random.range(KILLED_SIZE, 8000);
        let (kind, range) = match random.below(20) {
            0 => ("discard", range),
            1 => ("complete", 0..0),
            _ => ("write", range),
        };
        writeln!(out, "\n{kind} {} {}", range.start, range.end)?;
        match kind {
            "discard" => blob.discard(range)?,
            "write" => blob.write(range.start, part(&content, &range))?,
            _ => match blob.complete(false) {
                Ok(()) | Err(Error::Incomplete(_)) => {}
                Err(error) => return Err(error.into()),
            },
        }
        writeln!(out, "done")?;
    }
}

#[test]
fn d_062_a_process_killed_at_any_instant_loses_nothing_it_had_finished() -> Result {
    let dir = tempfile::tempdir()?;
    let content = content(KILLED_SIZE as usize);
    let digest = Digest::sha256(&content);
    let mut known = RangeSet::default();
    let mut operations = 0;
    for round in 0..20 {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--exact", "store::blob::tests::works_until_it_is_killed", "--ignored", "--nocapture"])
            .env(KILLED_DIR, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        // Counted from its first operation, however long the process takes to start.
        let mut last = lines.by_ref().map_while(std::result::Result::ok).find_map(|line| announced(&line));
        let done = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&done);
        let reader = thread::spawn(move || {
            let mut said: Vec<(String, Range<u64>)> = Vec::new();
            for line in lines.map_while(std::result::Result::ok) {
                match (line.as_str(), announced(&line)) {
                    ("done", _) => {
                        said.extend(last.take());
                        counter.fetch_add(1, Ordering::Relaxed);
                    }
                    (_, Some(announced)) => last = Some(announced),
                    _ => {}
                }
            }
            (said, last)
        });
        let deadline = Instant::now() + Duration::from_secs(60);
        while done.load(Ordering::Relaxed) < 6 && Instant::now() < deadline {
            thread::sleep(Duration::from_micros(100));
        }
        thread::sleep(Duration::from_micros(1700 * round));
        child.kill()?;
        child.wait()?;
        let (said, unfinished) = reader.join().expect("no panic");
        operations += said.len();
        for (kind, range) in &said {
            match kind.as_str() {
                "write" => assert!(known.insert(range)),
                "discard" => known.remove(range),
                _ => {}
            }
        }
        if let Some((kind, range)) = unfinished
            && kind == "discard"
        {
            known.remove(&range);
        }
        let store = Store::open(dir.path())?;
        let blob = store.blob(&digest, KILLED_SIZE)?;
        for range in known.iter() {
            assert_eq!(blob.missing(range.clone()), [], "round {round}: finished writes are there");
        }
        known = present(&blob);
        for range in known.iter() {
            assert_eq!(blob.read(range.clone())?.as_deref(), Some(part(&content, &range)), "round {round}: and right");
        }
    }
    assert!(operations > 100, "the process did work: {operations}");
    Ok(())
}

fn announced(line: &str) -> Option<(String, Range<u64>)> {
    let mut words = line.split(' ');
    let kind = words.next().filter(|kind| ["write", "discard", "complete"].contains(kind))?;
    let mut number = || words.next()?.parse().ok();
    Some((kind.to_owned(), number()?..number()?))
}
