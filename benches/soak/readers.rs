//! Readers that compare what they read with the unpacked tree.

use std::fs::{self, File};
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::fs::{Advice, fadvise};

use super::below;

/// Most bytes that are read at once.
const PIECE: u64 = 256 << 10;

/// Files that are compared as a whole have at most this length, so that no reader is busy with one for long.
const WHOLE: u64 = 8 << 20;

/// What readers have seen so far.
#[derive(Debug, Default)]
pub(super) struct Seen {
    reads: AtomicU64,
    bytes: AtomicU64,
    /// Bytes that are not those of the tree.
    pub(super) wrong: AtomicU64,
    /// Calls that failed.
    pub(super) errors: AtomicU64,
    /// The longest that one call took, in milliseconds.
    longest: AtomicU64,
}

/// The readers at work.
pub(super) struct Readers {
    pub(super) seen: Arc<Seen>,
    stop: Arc<AtomicBool>,
    /// Held by a reader while it has a file open.
    open: Arc<RwLock<()>>,
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
    begun: Instant,
}

/// One of them.
struct Reader {
    seen: Arc<Seen>,
    stop: Arc<AtomicBool>,
    open: Arc<RwLock<()>>,
    files: Arc<Vec<(PathBuf, u64)>>,
    tree: PathBuf,
    mounted: PathBuf,
    state: u64,
}

impl Readers {
    pub(super) fn start(count: u64, tree: &Path, mounted: &Path) -> Result<Self> {
        let mut files = Vec::new();
        list(tree, Path::new("/"), &mut files)?;
        let (files, seen, stop) = (Arc::new(files), Arc::<Seen>::default(), Arc::<AtomicBool>::default());
        let open = Arc::<RwLock<()>>::default();
        let mut threads = Vec::new();
        for number in 0..count {
            let mut reader = Reader {
                seen: Arc::clone(&seen),
                stop: Arc::clone(&stop),
                open: Arc::clone(&open),
                files: Arc::clone(&files),
                tree: tree.to_owned(),
                mounted: mounted.to_owned(),
                state: (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
            };
            threads.push(std::thread::Builder::new().name(format!("reader {number}")).spawn(move || reader.work())?);
        }
        Ok(Self { seen, stop, open, threads: threads.into(), begun: Instant::now() })
    }

    /// Does something while no reader has a file open.
    pub(super) fn aside<T>(&self, work: impl FnOnce() -> T) -> T {
        let _none = self.open.write().unwrap_or_else(PoisonError::into_inner);
        work()
    }

    /// Ends them all, each after the call it is in.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.lock().expect("nobody panics with it").drain(..) {
            if thread.join().is_err() {
                self.seen.errors.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// How far they are, in one line.
    pub(super) fn line(&self) -> String {
        let seen = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let Seen { reads, bytes, wrong, errors, longest } = &*self.seen;
        format!(
            "{:4} s: {} reads, {} MiB, {} wrong bytes, {} errors, the longest {} ms",
            self.begun.elapsed().as_secs(),
            seen(reads),
            seen(bytes) >> 20,
            seen(wrong),
            seen(errors),
            seen(longest)
        )
    }
}

/// Lists the regular files of a tree that are not empty.
fn list(root: &Path, directory: &Path, files: &mut Vec<(PathBuf, u64)>) -> io::Result<()> {
    for entry in fs::read_dir(below(root, directory))? {
        let entry = entry?;
        let path = directory.join(entry.file_name());
        let metadata = entry.metadata()?;
        if metadata.is_dir() {
            list(root, &path, files)?;
        } else if metadata.is_file() && metadata.len() > 0 {
            files.push((path, metadata.len()));
        }
    }
    Ok(())
}

impl Reader {
    fn work(&mut self) {
        while !self.stop.load(Ordering::Relaxed) {
            let number = self.below(self.files.len() as u64);
            let (path, size) = self.files[usize::try_from(number).unwrap_or(0)].clone();
            let begun = Instant::now();
            if let Err(error) = self.compare(&path, size) {
                self.seen.errors.fetch_add(1, Ordering::Relaxed);
                eprintln!("{} after {:?}: {error}", path.display(), begun.elapsed());
            }
        }
    }

    /// A number below `end`, by Marsaglia's xorshift64.
    fn below(&mut self, end: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        NonZeroU64::new(end).map_or(0, |end| self.state % end)
    }

    /// Compares the whole of a file or some part of it, and lets the kernel forget what it read.
    fn compare(&mut self, path: &Path, size: u64) -> io::Result<()> {
        let open = Arc::clone(&self.open);
        let _open = open.read().unwrap_or_else(PoisonError::into_inner);
        let expected = File::open(below(&self.tree, path))?;
        let shown = self.timed(|| File::open(below(&self.mounted, path)))?;
        let length = self.timed(|| shown.metadata())?.len();
        if length != size {
            self.seen.wrong.fetch_add(length.abs_diff(size), Ordering::Relaxed);
        }
        let part = self.below(size)..size;
        let mut range =
            if size <= WHOLE && self.below(4) > 0 { 0..size } else { part.start..size.min(part.start + PIECE) };
        while !range.is_empty() && !self.stop.load(Ordering::Relaxed) {
            let piece = (range.end - range.start).min(PIECE);
            let (mut ours, mut theirs) = (vec![0; piece as usize], vec![0; piece as usize]);
            self.timed(|| shown.read_exact_at(&mut ours, range.start))?;
            expected.read_exact_at(&mut theirs, range.start)?;
            let wrong = ours.iter().zip(&theirs).filter(|(ours, theirs)| ours != theirs).count() as u64;
            if wrong > 0 {
                eprintln!("{}: {wrong} of {piece} bytes at {} are wrong", path.display(), range.start);
            }
            self.seen.wrong.fetch_add(wrong, Ordering::Relaxed);
            self.seen.reads.fetch_add(1, Ordering::Relaxed);
            self.seen.bytes.fetch_add(piece, Ordering::Relaxed);
            range.start += piece;
        }
        fadvise(&shown, 0, None, Advice::DontNeed)?;
        Ok(())
    }

    /// Does one call and notes how long it took.
    fn timed<T>(&self, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let begun = Instant::now();
        let result = call();
        let took = begun.elapsed().max(Duration::from_millis(1)).as_millis();
        self.seen.longest.fetch_max(u64::try_from(took).unwrap_or(u64::MAX), Ordering::Relaxed);
        result
    }
}
