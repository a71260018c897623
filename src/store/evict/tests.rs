use std::fs::{File, FileTimes};
use std::path::PathBuf;
use std::time::Duration;

use super::super::layout::BlobFile;
use super::super::tests::Scratch;
use super::*;

type Result = std::result::Result<(), Box<dyn std::error::Error>>;

const SIZE: usize = 64 << 10;

/// Makes the object at `path` look as if it was last used `days` days ago.
fn age(path: PathBuf, days: u64) -> std::io::Result<()> {
    let time = SystemTime::now() - Duration::from_secs(days * 86_400);
    File::open(path)?.set_times(FileTimes::new().set_accessed(time).set_modified(time))
}

fn bytes(number: u8) -> Vec<u8> {
    vec![number; SIZE]
}

/// Files 0 to 2 and blobs 3 to 5, the lower number used longer ago, and an index and a tree.
fn filled() -> std::result::Result<Scratch, Box<dyn std::error::Error>> {
    let scratch = Scratch::new();
    for number in 0..3 {
        let content = scratch.publish(&bytes(number));
        age(scratch.store.shared.layout.file(&content), 20 - u64::from(number))?;
    }
    for number in 3..6 {
        let blob = scratch.complete(&bytes(number));
        age(scratch.store.shared.layout.blob(&blob.digest(), BlobFile::Complete), 40 - u64::from(number))?;
    }
    scratch.store.put_index(&Digest::sha256(b"i"), &bytes(6))?;
    scratch.store.put_tree(&Digest::sha256(b"t"), &bytes(7))?;
    Ok(scratch.reopen())
}

/// The objects of [`filled`] that are still there.
fn left(scratch: &Scratch) -> Vec<u8> {
    let layout = &scratch.store.shared.layout;
    let path = |number: u8| match (number, Digest::sha256(&bytes(number))) {
        (0..3, Digest::Sha256(content)) => layout.file(&content),
        (3..6, digest) => layout.blob(&digest, BlobFile::Complete),
        (6, _) => layout.object(Part::Indexes, &Digest::sha256(b"i")),
        _ => layout.object(Part::Trees, &Digest::sha256(b"t")),
    };
    (0..8).filter(|&number| path(number).exists()).collect()
}

/// Limits that leave room for `objects` of the eight.
fn room_for(scratch: &Scratch, objects: u64) {
    // An eviction frees a little more than it must, so half an object is added.
    let max_bytes = objects * SIZE as u64 + SIZE as u64 / 2;
    scratch.store.set_limits(Limits { max_bytes: Some(max_bytes), min_free: None });
}

#[test]
fn nothing_goes_while_the_cache_is_within_its_limits() -> Result {
    let scratch = filled()?;
    assert_eq!(scratch.store.evict(&HashSet::new())?, Usage::default(), "no limits were set");
    scratch.store.set_limits(Limits { max_bytes: Some(1 << 30), min_free: Some(1) });
    assert_eq!(scratch.store.evict(&HashSet::new())?, Usage::default());
    assert_eq!(left(&scratch), [0, 1, 2, 3, 4, 5, 6, 7]);
    Ok(())
}

#[test]
fn files_go_before_blobs_and_the_oldest_first() -> Result {
    let scratch = filled()?;
    room_for(&scratch, 7);
    assert_eq!(scratch.store.evict(&HashSet::new())?, Usage { count: 1, bytes: SIZE as u64 });
    assert_eq!(left(&scratch), [1, 2, 3, 4, 5, 6, 7]);
    room_for(&scratch, 4);
    scratch.store.evict(&HashSet::new())?;
    assert_eq!(left(&scratch), [4, 5, 6, 7]);
    scratch.store.set_limits(Limits { max_bytes: Some(0), min_free: None });
    scratch.store.evict(&HashSet::new())?;
    assert_eq!(left(&scratch), [0; 0]);
    Ok(())
}

#[test]
fn what_is_kept_or_open_stays_whatever_the_limit() -> Result {
    let scratch = filled()?;
    let keep = HashSet::from([Digest::sha256(&bytes(1)), Digest::sha256(&bytes(4)), Digest::sha256(b"t")]);
    let Digest::Sha256(content) = Digest::sha256(&bytes(2)) else { unreachable!("a SHA-256 digest") };
    let _file = scratch.store.file(&content)?.expect("published");
    let _blob = scratch.store.blob(&Digest::sha256(&bytes(5)), SIZE as u64)?;
    scratch.store.set_limits(Limits { max_bytes: None, min_free: Some(u64::MAX) });
    let freed = scratch.store.evict(&keep)?;
    assert_eq!(freed.count, 3);
    assert_eq!(left(&scratch), [1, 2, 4, 5, 7]);
    Ok(())
}

#[test]
fn use_makes_an_object_young_again() -> Result {
    let scratch = filled()?;
    let Digest::Sha256(content) = Digest::sha256(&bytes(0)) else { unreachable!("a SHA-256 digest") };
    drop(scratch.store.file(&content)?);
    scratch.store.blob(&Digest::sha256(&bytes(3)), SIZE as u64)?.read(0..1)?;
    room_for(&scratch, 6);
    scratch.store.evict(&HashSet::new())?;
    assert_eq!(left(&scratch), [0, 3, 4, 5, 6, 7]);
    room_for(&scratch, 4);
    scratch.store.evict(&HashSet::new())?;
    assert_eq!(left(&scratch), [3, 5, 6, 7]);
    Ok(())
}

#[test]
fn the_default_is_a_tenth_of_the_file_system_and_at_least_a_gibibyte() -> Result {
    let dir = tempfile::tempdir()?;
    let limits = Limits::of_file_system(dir.path())?;
    let (total, _) = space(dir.path())?;
    assert_eq!(limits.max_bytes, Some((total / 10).max(1 << 30)));
    assert!(limits.min_free.is_some_and(|free| free <= 1 << 30));
    Ok(())
}
