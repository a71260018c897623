//! Readers that know what they must get: whole files, parts of them, maps and direct reads, in random order.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use memmap2::{Mmap, MmapMut};
use rustix::fs::{Advice, OFlags, fadvise};
use rustix::io::Errno;

use super::stack::Random;

/// A file and what it holds.
#[derive(Debug, Clone)]
pub(super) struct Expected {
    /// Relative to the root.
    pub(super) path: String,
    pub(super) bytes: Vec<u8>,
}

/// One way to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Whole,
    /// Some ranges, some beyond the end.
    Parts,
    /// A few bytes of each megabyte or less, from the back, then everything.
    Map,
    /// O_DIRECT, in aligned pieces at random.
    Direct,
}

/// The ways of readers that have no preference.
pub(super) const ALL: [Way; 4] = [Way::Whole, Way::Parts, Way::Map, Way::Direct];

/// What readers are to do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan<'a> {
    pub(super) threads: usize,
    /// How often each reads every file.
    pub(super) rounds: usize,
    pub(super) ways: &'a [Way],
    /// Makes the kernel forget a file's pages before it is read, as memory pressure does.
    pub(super) forgets: bool,
    /// A read that fails with EIO is made again, for so long.
    pub(super) patience: Duration,
}

/// An access to a file that is not mapped, because a failing map is a signal.
type Result<T> = io::Result<T>;

/// Lets threads read all `files` below `root`; how many reads failed before they succeeded.
pub(super) fn read_all(root: &Path, files: &[Expected], seed: u64, plan: Plan<'_>) -> usize {
    let failed = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..plan.threads {
            let failed = &failed;
            scope.spawn(move || {
                let mut random = Random::new(seed * 1000 + thread as u64);
                let mut order: Vec<&Expected> = files.iter().collect();
                for _ in 0..plan.rounds {
                    random.shuffle(&mut order);
                    for file in &order {
                        let way = plan.ways[random.below(plan.ways.len())];
                        let count = insist(plan, || read(root, file, way, plan.forgets, &mut random.clone()));
                        failed.fetch_add(count, Ordering::Relaxed);
                        random.next();
                    }
                }
            });
        }
    });
    failed.into_inner()
}

/// Repeats what fails with EIO; how often it did.
fn insist(plan: Plan<'_>, act: impl Fn() -> Result<()>) -> usize {
    let started = Instant::now();
    for failed in 0.. {
        match act() {
            Ok(()) => return failed,
            Err(error) => {
                assert_eq!(Errno::from_io_error(&error), Some(Errno::IO), "{error}");
                assert!(started.elapsed() < plan.patience, "EIO, after {failed} before");
            }
        }
    }
    unreachable!("it ends within patience")
}

fn read(root: &Path, file: &Expected, way: Way, forgets: bool, random: &mut Random) -> Result<()> {
    let (path, expected) = (root.join(&file.path), &file.bytes[..]);
    if forgets {
        fadvise(&File::open(&path)?, 0, None, Advice::DontNeed)?;
    }
    let same = |got: &[u8], offset: usize| {
        let end = expected.len().min(offset + got.len());
        let right = expected.get(offset..end).is_some_and(|part| part == got) || (got.is_empty() && offset >= end);
        assert!(right, "{}: wrong bytes, {way:?}, {} at {offset}", file.path, got.len());
    };
    match way {
        Way::Whole => {
            let bytes = std::fs::read(&path)?;
            assert_eq!(bytes.len(), expected.len(), "{}", file.path);
            same(&bytes, 0);
        }
        Way::Parts => {
            let opened = File::open(&path)?;
            for _ in 0..6 {
                let mut buffer = vec![0; 1 + random.below(200_000)];
                let offset = random.below(expected.len() + 10_000);
                let got = fill(&opened, &mut buffer, offset)?;
                assert_eq!(got, buffer.len().min(expected.len().saturating_sub(offset)), "{}", file.path);
                same(&buffer[..got], offset);
            }
        }
        Way::Map => {
            let opened = File::open(&path)?;
            if expected.is_empty() {
                return Ok(());
            }
            // SAFETY: nothing changes or truncates a file of a read-only mount.
            let map = unsafe { Mmap::map(&opened) }?;
            assert_eq!(map.len(), expected.len(), "{}", file.path);
            let step = 1 + random.below(300_000);
            for offset in (0..map.len()).step_by(step).rev() {
                same(&map[offset..map.len().min(offset + 10)], offset);
            }
            same(&map, 0);
        }
        Way::Direct => {
            let flags = OFlags::DIRECT.bits().cast_signed();
            let opened = OpenOptions::new().read(true).custom_flags(flags).open(&path)?;
            // Whole pages of memory and of the file: the rules of file systems on disks, which passthrough brings.
            let mut buffer = MmapMut::map_anon(4096 * (1 + random.below(64)))?;
            for _ in 0..4 {
                let offset = 4096 * random.below(expected.len() / 4096 + 2);
                let got = opened.read_at(&mut buffer, offset as u64)?;
                assert_eq!(got, buffer.len().min(expected.len().saturating_sub(offset)), "{}", file.path);
                same(&buffer[..got], offset);
            }
        }
    }
    Ok(())
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &File, buffer: &mut [u8], offset: usize) -> Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match file.read_at(&mut buffer[got..], (offset + got) as u64)? {
            0 => break,
            count => got += count,
        }
    }
    Ok(got)
}
