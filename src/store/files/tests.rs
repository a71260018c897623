use std::io::{Read as _, Seek as _};
use std::os::unix::fs::MetadataExt as _;

use super::super::tests::{Scratch, flip};
use super::*;

type Result = std::result::Result<(), Box<dyn std::error::Error>>;

fn content_of(bytes: &[u8]) -> Content {
    let Digest::Sha256(content) = Digest::sha256(bytes) else { unreachable!("a SHA-256 digest") };
    content
}

fn text(mut file: &File) -> io::Result<String> {
    let mut text = String::new();
    file.rewind()?;
    file.read_to_string(&mut text)?;
    Ok(text)
}

#[test]
fn a_published_file_is_found_by_its_content_and_cannot_be_written() -> Result {
    let scratch = Scratch::new();
    let content = content_of(b"hello\0\0\0world");
    assert!(scratch.store.file(&content)?.is_none());
    let new = scratch.store.new_file(&content, 13)?;
    new.write(8, b"world")?;
    new.write(0, b"hello")?;
    let published = new.publish()?;
    let scratch = scratch.reopen();
    let found = scratch.store.file(&content)?.expect("published");
    assert_eq!(text(&found)?, "hello\0\0\0world");
    assert_eq!(published.metadata()?.ino(), found.metadata()?.ino());
    assert_eq!(found.metadata()?.mode() & 0o777, 0o444);
    assert!(published.write_at(b"x", 0).is_err(), "the descriptor is for reading only");
    Ok(())
}

#[test]
fn d_022_other_content_is_not_published_and_leaves_nothing() -> Result {
    let scratch = Scratch::new();
    let content = content_of(b"right");
    let new = scratch.store.new_file(&content, 5)?;
    new.write(0, b"wrong")?;
    assert!(matches!(new.publish(), Err(Error::Mismatch(_))));
    // The right bytes, and then some zeros.
    let new = scratch.store.new_file(&content, 6)?;
    new.write(0, b"right")?;
    assert!(matches!(new.publish(), Err(Error::Mismatch(_))));
    drop(scratch.store.new_file(&content, 5)?);
    assert!(scratch.store.file(&content)?.is_none());
    assert_eq!(fs::read_dir(scratch.path("tmp"))?.count(), 0);
    assert_eq!(scratch.store.usage()?.files.count, 0);
    Ok(())
}

#[test]
fn publish_hashes_what_is_on_disk_and_not_what_was_written() -> Result {
    let scratch = Scratch::new();
    let content = content_of(b"right");
    let new = scratch.store.new_file(&content, 5)?;
    new.write(0, b"right")?;
    flip(&new.path);
    assert!(matches!(new.publish(), Err(Error::Mismatch(_))));
    Ok(())
}

#[test]
fn d_060_writes_stay_within_the_stated_size() -> Result {
    let scratch = Scratch::new();
    let new = scratch.store.new_file(&content_of(b""), 4)?;
    for (offset, length) in [(4, 1), (0, 5), (u64::MAX, 1), (u64::MAX - 1, 4)] {
        assert!(new.write(offset, &[1; 5][..length]).is_err(), "{offset} {length}");
    }
    assert_eq!(new.file.metadata()?.len(), 4);
    let long = scratch.store.new_file(&content_of(b""), u64::MAX);
    assert!(matches!(long, Err(Error::Io { action: "extend", .. })), "{long:?}");
    Ok(())
}

#[test]
fn a_damaged_file_is_found_at_its_first_use_in_a_process() -> Result {
    let scratch = Scratch::new();
    let content = scratch.publish(b"some content");
    let scratch = scratch.reopen();
    let path = scratch.store.shared.layout.file(&content);
    flip(&path);
    assert!(scratch.store.file(&content)?.is_none());
    assert!(!path.exists());
    assert_eq!(scratch.publish(b"some content"), content);
    assert_eq!(text(&scratch.store.file(&content)?.expect("published again"))?, "some content");
    Ok(())
}

#[test]
fn the_file_that_is_there_wins_over_one_published_later() -> Result {
    let scratch = Scratch::new();
    let content = scratch.publish(b"some content");
    let first = scratch.store.file(&content)?.expect("published");
    let new = scratch.store.new_file(&content, 12)?;
    new.write(0, b"some content")?;
    assert!(Arc::ptr_eq(&first, &new.publish()?));
    assert_eq!(fs::metadata(scratch.store.shared.layout.file(&content))?.ino(), first.metadata()?.ino());
    assert_eq!(fs::read_dir(scratch.path("tmp"))?.count(), 0);
    Ok(())
}

#[test]
fn one_file_is_opened_once_however_many_ask() -> Result {
    let scratch = Scratch::new();
    let content = scratch.publish(&[3; 1 << 16]);
    let scratch = scratch.reopen();
    let files: Vec<Arc<File>> = std::thread::scope(|scope| {
        let ask = || scope.spawn(|| scratch.store.file(&content).expect("readable").expect("there"));
        let threads: Vec<_> = (0..8).map(|_| ask()).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert!(files.iter().all(|file| Arc::ptr_eq(file, &files[0])));
    Ok(())
}

#[test]
fn the_store_itself_keeps_a_bounded_number_of_files_open() -> Result {
    let scratch = Scratch::new();
    let first = scratch.publish(&0_u64.to_le_bytes());
    let held = scratch.store.file(&first)?.expect("published");
    let contents: Vec<Content> = (1..=OPEN_FILES as u64 + 50).map(|n| scratch.publish(&n.to_le_bytes())).collect();
    let inner = lock(&scratch.store.shared.files.inner);
    let open = inner.open.values().filter(|file| file.strong_count() > 0).count();
    assert_eq!(open, OPEN_FILES + 1, "those used last, and the one that is held here");
    drop(inner);
    assert!(Arc::ptr_eq(&held, &scratch.store.file(&first)?.expect("still open")));
    assert!(!scratch.store.shared.files.in_use(&contents[0]) && scratch.store.shared.files.in_use(&first));
    Ok(())
}
