//! How files are opened and read: by the kernel alone, or with a message for each open so that reads need none.
//!
//! A connection can do one of two things. If the first OPEN is answered ENOSYS (`FUSE_NO_OPEN_SUPPORT`), the kernel
//! opens files by itself and keeps their pages: a warm mount of many small files is silent. If opens are answered, they can
//! name a file of the cache that the kernel then reads without the daemon (`FUSE_PASSTHROUGH`): data comes at the speed of
//! the disk, pages are shared by all mounts that hold the same file, and each open costs two messages.
//!
//! [`Io`] is what was asked for, [`Plan`] what is tried, [`Chosen`] what it came to, and why. [`Opens`] answers opens.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytesize::ByteSize;
use fuser::{BackingId, FileHandle, FopenFlags, ReplyOpen};

use crate::fs::{Backing, Ino};
use crate::tree::{NodeKind, Tree};

/// From which mean size of a node, in bytes, a tree is better read by passthrough.
///
/// An open and its release cost 20 µs (19,246 opens: 0.3 s), reading through the daemon instead of the backing file costs
/// 0.65 ns a byte (1.2 against 5 to 8 GB/s), so that a file which is opened once for each time it is read from the disk
/// gains from 30 KiB on. But pages stay in memory while files are opened over and over: with thirty opens for each cold
/// read, the two are even at 1 MiB. Images of distributions and languages have 20 to 60 KiB, those that carry models,
/// databases or virtual machines several MiB.
const LARGE: u64 = 1 << 20;

/// Many small files beside a few that hold most of the bytes are opened in vain for 20 µs each. What reads the long ones
/// gains up to 0.65 s a GiB where the disk is fast, nothing where it is slow, and always the memory for a second copy of
/// their pages: so many bytes in files of at least [`LONG`] are worth it. Programs with a model are like that.
const BULK: u64 = 1 << 30;

/// The least size of a file that is read for its bytes.
const LONG: u64 = 64 << 20;

/// How files open if not by passthrough: data stays cached across opens, and closing needs no flush.
const CACHED: FopenFlags = FopenFlags::FOPEN_KEEP_CACHE.union(FopenFlags::FOPEN_NOFLUSH);

/// How files open for passthrough; the kernel refuses the flags of cached files there.
const PASSED: FopenFlags = FopenFlags::FOPEN_NOFLUSH;

/// The handles, which carry no state but how the file was opened.
const CACHED_HANDLE: FileHandle = FileHandle(0);
const PASSED_HANDLE: FileHandle = FileHandle(1);

/// How files are to be read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Io {
    /// By what the tree holds and the machine can do.
    #[default]
    Auto,
    /// By the kernel from the file store, where that is possible.
    Passthrough,
    /// From the kernel's page cache, which the daemon fills.
    Cached,
}

/// How files are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Complete files by the kernel from the file store, the others cached.
    Passthrough,
    /// All from the kernel's page cache, which the daemon fills.
    Cached,
}

/// What was chosen for a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// The mode.
    pub mode: Mode,
    /// Why, as a short sentence without a full stop.
    pub reason: String,
    /// True if something else was asked for.
    pub degraded: bool,
}

/// What the files of a tree are like.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    /// Bytes per node.
    mean: u64,
    /// Bytes of all files.
    total: u64,
    /// Bytes of the files that have at least [`LONG`].
    long: u64,
}

impl Sizes {
    /// Looks at all nodes of a tree that holds much.
    pub(super) fn of(tree: &Tree) -> Self {
        let total = tree.total_size();
        let mean = total / u64::from(tree.node_count().max(1));
        let nodes = (0..tree.node_count()).filter_map(|number| tree.id(number)).map(|id| tree.node(id));
        let long = nodes.filter(|node| node.kind() == NodeKind::Regular && node.size() >= LONG);
        let long = if total < BULK { 0 } else { long.map(|node| node.size()).fold(0, u64::saturating_add) };
        Self { mean, total, long }
    }

    /// Why passthrough is the better mode; why not, as an error.
    fn reason(self) -> Result<String, String> {
        let Self { mean, total, long } = self;
        let size = |bytes| ByteSize::b(bytes).display().iec();
        match () {
            () if mean >= LARGE => Ok(format!("files are large: {} on average", size(mean))),
            () if long >= BULK && long >= total / 2 => {
                Ok(format!("large files hold {} of {}", size(long), size(total)))
            }
            () => Err(format!("files are small: {} on average", size(mean))),
        }
    }
}

/// What a mount tries, before the kernel was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    wanted: Io,
    chosen: Chosen,
}

impl Plan {
    /// Decides for a tree whose files are like this; only root can have passthrough.
    pub(super) fn new(wanted: Io, sizes: Sizes, is_root: bool) -> Self {
        let asked = || "asked for".to_owned();
        let (mode, reason) = match (wanted, sizes.reason()) {
            (Io::Cached, _) => (Mode::Cached, asked()),
            (Io::Auto, Err(reason)) => (Mode::Cached, reason),
            (Io::Auto, Ok(reason)) => (Mode::Passthrough, reason),
            (Io::Passthrough, _) => (Mode::Passthrough, asked()),
        };
        let plan = Self { wanted, chosen: Chosen { mode, reason, degraded: false } };
        if plan.is_passthrough() && !is_root { plan.without("passthrough needs root") } else { plan }
    }

    /// True if passthrough is to be asked of the kernel.
    pub(super) fn is_passthrough(&self) -> bool {
        self.chosen.mode == Mode::Passthrough
    }

    /// The plan if passthrough is not to be had, for this reason.
    pub(super) fn without(self, reason: impl Into<String>) -> Self {
        let degraded = self.wanted == Io::Passthrough;
        Self { chosen: Chosen { mode: Mode::Cached, reason: reason.into(), degraded }, ..self }
    }

    /// What is left of the plan when the kernel has been asked to pass a file of the cache through: `session` is the
    /// connection, `sample` such a file.
    pub(super) fn probed(self, session: impl AsFd, sample: std::io::Result<File>) -> Self {
        // The number is given back when the connection ends; until then it holds a small file of the cache open.
        match sample.and_then(|file| BackingId::create_raw(session, file)) {
            Ok(_) => self,
            Err(error) => self.without(refusal(&error)),
        }
    }
}

/// Why the kernel does not pass a file through.
fn refusal(error: &std::io::Error) -> String {
    match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::LOOP) => {
            "the cache is on a stacked file system, which cannot be passed through".to_owned()
        }
        Some(rustix::io::Errno::PERM) => "passthrough needs root outside of any container".to_owned(),
        _ => format!("passthrough is not possible: {error}"),
    }
}

/// Answers opens and releases of one mount.
#[derive(Debug)]
pub(super) struct Opens {
    /// Protects the table; held for look-ups, changes and the system call that registers a file, which does no I/O.
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    chosen: Chosen,
    /// The kernel is told once that it is to open files by itself, before the first file is open.
    kernel_opens: bool,
    passed: HashMap<Ino, Passed>,
}

/// An inode that is open for passthrough: the kernel wants the same number for all of its handles.
#[derive(Debug)]
struct Passed {
    handles: u64,
    id: Arc<BackingId>,
}

impl Opens {
    pub(super) fn new(plan: Plan, kernel_can_open: bool) -> Self {
        let kernel_opens = kernel_can_open && plan.chosen.mode == Mode::Cached;
        Self { inner: Mutex::new(Inner { chosen: plan.chosen, kernel_opens, passed: HashMap::new() }) }
    }

    /// What was chosen, and what became of it.
    pub(super) fn chosen(&self) -> Chosen {
        self.lock().chosen.clone()
    }

    /// True if the kernel is to open files by itself.
    pub(super) fn kernel_opens(&self) -> bool {
        self.lock().kernel_opens
    }

    /// Answers an open. `backing` is the same for all handles of an inode that are open at once, so that the mode is.
    pub(super) fn answer(&self, ino: Ino, backing: &Backing, reply: ReplyOpen) {
        match backing.as_ref().and_then(|file| self.pass(ino, file, &reply)) {
            Some(id) => reply.opened_passthrough(PASSED_HANDLE, PASSED, &id),
            None => reply.opened(CACHED_HANDLE, CACHED),
        }
    }

    /// Ends a handle.
    pub(super) fn release(&self, ino: Ino, handle: FileHandle) {
        if handle != PASSED_HANDLE {
            return;
        }
        let mut inner = self.lock();
        let ended = match inner.passed.entry(ino) {
            Entry::Occupied(mut passed) if passed.get().handles > 1 => {
                passed.get_mut().handles -= 1;
                None
            }
            Entry::Occupied(passed) => Some(passed.remove()),
            // A handle of before this process.
            Entry::Vacant(_) => None,
        };
        drop(inner);
        // Gives the number back.
        drop(ended);
    }

    /// The number of an inode's backing file; none if it is to be read cached.
    fn pass(&self, ino: Ino, file: &File, reply: &ReplyOpen) -> Option<Arc<BackingId>> {
        let mut inner = self.lock();
        if let Some(passed) = inner.passed.get_mut(&ino) {
            passed.handles += 1;
            return Some(Arc::clone(&passed.id));
        }
        if inner.chosen.mode != Mode::Passthrough {
            return None;
        }
        match reply.open_backing(file) {
            Ok(id) => {
                let id = Arc::new(id);
                inner.passed.insert(ino, Passed { handles: 1, id: Arc::clone(&id) });
                Some(id)
            }
            // For good: the handles of this inode that follow must be cached as well.
            Err(error) => {
                tracing::warn!(%error, "the kernel refused passthrough, files are cached from now on");
                let degraded = true;
                inner.chosen = Chosen { mode: Mode::Cached, reason: refusal(&error), degraded };
                None
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn sizes(nodes: u64, total: u64, long: u64) -> Sizes {
        Sizes { mean: total / nodes, total, long }
    }

    fn chosen(wanted: Io, sizes: Sizes, is_root: bool) -> (Mode, String, bool) {
        let Chosen { mode, reason, degraded } = Plan::new(wanted, sizes, is_root).chosen;
        (mode, reason, degraded)
    }

    #[test]
    fn auto_goes_by_the_sizes_of_files_and_by_who_mounts() {
        // The python image, the same with two models of 5 GB, and these alone.
        let python = sizes(19_000, 537 << 20, 0);
        let small = (Mode::Cached, "files are small: 28.9 KiB on average".to_owned(), false);
        assert_eq!(chosen(Io::Auto, python, true), small);
        let both = sizes(19_000, 10 * GIB + (537 << 20), 10 * GIB);
        let bulk = (Mode::Passthrough, "large files hold 10.0 GiB of 10.5 GiB".to_owned(), false);
        assert_eq!(chosen(Io::Auto, both, true), bulk);
        let large = sizes(3000, 10 * GIB, 10 * GIB);
        let alone = (Mode::Passthrough, "files are large: 3.4 MiB on average".to_owned(), false);
        assert_eq!(chosen(Io::Auto, large, true), alone);
        for few in [sizes(19_000, GIB, GIB - 1), sizes(190_000, 4 * GIB, 2 * GIB - 1)] {
            assert_eq!(chosen(Io::Auto, few, true).0, Mode::Cached, "{few:?}");
        }
        assert_eq!(chosen(Io::Auto, large, false), (Mode::Cached, "passthrough needs root".into(), false));
        assert_eq!(chosen(Io::Cached, large, true), (Mode::Cached, "asked for".into(), false));
    }

    #[test]
    fn what_was_asked_for_and_cannot_be_is_degraded() {
        let small = sizes(1, 1, 0);
        assert_eq!(chosen(Io::Passthrough, small, true), (Mode::Passthrough, "asked for".into(), false));
        assert_eq!(chosen(Io::Passthrough, small, false), (Mode::Cached, "passthrough needs root".into(), true));
        let refused = Plan::new(Io::Auto, sizes(1, GIB, GIB), true).without("no");
        assert!(!refused.chosen.degraded && !refused.is_passthrough());
    }

    #[test]
    fn a_refusal_says_what_is_in_the_way() {
        let of = |errno: rustix::io::Errno| refusal(&errno.into());
        assert!(of(rustix::io::Errno::LOOP).contains("stacked"));
        assert!(of(rustix::io::Errno::PERM).contains("root"));
        assert!(of(rustix::io::Errno::NFILE).starts_with("passthrough is not possible: "));
        // What is no connection refuses everything.
        let device = File::open("/dev/null").expect("it is there");
        let plan = Plan::new(Io::Passthrough, sizes(1, 0, 0), true).probed(device, File::open("/proc/self/exe"));
        assert!(!plan.is_passthrough() && plan.chosen.degraded, "{plan:?}");
    }
}
