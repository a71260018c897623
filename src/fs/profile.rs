//! Recording the order of first accesses of one mount, for its profile.
//!
//! The recorder sits on the path of every read, so it must cost nothing that can be measured: once the recording is
//! over, and in file systems that are not recorded, one relaxed load; while it lasts, a look-up in a map below a short lock,
//! without allocation for what was read before. Reads that a prefetch causes do not come through here.
//!
//! The start is over after a quiet time or a fixed one ([`Recorder::over`]), or with the mount. A [`Recording`] knows
//! nodes; paths are found once, at the end.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::profile::{Access, ImageSize, Noted, Order, Origin, Profile};
use crate::tree::{NodeId, NodeKind, Tree};

/// How long nothing may be read for the first time until a start counts as over.
///
/// Programs wait during their start (for a database, for a lock), mostly for a second or two. Ten seconds without any new
/// access is a server that serves; what it reads later belongs to its requests.
pub const QUIET: Duration = Duration::from_secs(10);

/// What a file that the kernel reads itself counts as read of, from its beginning: most programs and libraries as a whole, and
/// of a model or a database not all of its gigabytes.
const UNSEEN: u64 = 1 << 20;

/// How long a start is recorded at most: what reads new things for longer is a job, not a start.
pub const LONGEST: Duration = Duration::from_secs(300);

/// When the recording of a start ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// When nothing new was read for [`QUIET`].
    Quiet,
    /// After this long since the mount; [`LONGEST`] at most.
    After(Duration),
}

/// The recorder of one mount. It records nothing until it is started.
#[derive(Debug, Default)]
pub struct Recorder {
    active: AtomicBool,
    /// Protects the recording; held for a few look-ups.
    state: Mutex<State>,
    /// Told at the first access and at the end.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    order: Order<NodeId>,
    /// When something was read for the first time: at first, and last.
    times: Option<(Instant, Instant)>,
    unseen: bool,
    /// Files of which nobody knows what was read.
    guessed: HashSet<NodeId>,
}

/// What was recorded.
#[derive(Debug)]
pub struct Recording {
    order: Order<NodeId>,
    unseen: bool,
    guessed: HashSet<NodeId>,
}

impl Recorder {
    /// Begins to record.
    pub fn start(&self) {
        self.lock().order = Order::joining();
        self.active.store(true, Ordering::Relaxed);
    }

    /// True while it records.
    pub fn is_active(&self) -> bool {
        self.active.load(Ordering::Relaxed)
    }

    /// Number of first accesses so far.
    pub fn accesses(&self) -> usize {
        self.lock().order.entries().len()
    }

    /// Notes a read of `range` of a file.
    #[inline]
    pub fn note(&self, node: NodeId, range: Range<u64>) {
        if self.active.load(Ordering::Relaxed) {
            self.record(node, range);
        }
    }

    /// Notes that reads will be answered without this being told.
    ///
    /// Such a recording adds to a profile and replaces none.
    pub fn note_unseen(&self) {
        if self.active.load(Ordering::Relaxed) {
            self.lock().unseen = true;
        }
    }

    /// The same of one file of `size` bytes, which the kernel has been given and reads itself. Its beginning counts as read,
    /// unless a profile knows better.
    pub fn note_given(&self, node: NodeId, size: u64) {
        if self.active.load(Ordering::Relaxed) {
            let mut state = self.lock();
            state.unseen = true;
            state.guessed.insert(node);
            drop(state);
            self.record(node, 0..size.min(UNSEEN));
        }
    }

    fn record(&self, node: NodeId, range: Range<u64>) {
        let mut state = self.lock();
        match state.order.note(node, range.start, range.end) {
            Noted::Known => {}
            Noted::New => {
                let now = Instant::now();
                let first = state.times.map(|(first, _)| first);
                state.times = Some((first.unwrap_or(now), now));
                if first.is_none() {
                    self.changed.notify_one();
                }
            }
            Noted::Full => {
                self.active.store(false, Ordering::Relaxed);
                self.changed.notify_one();
            }
        }
    }

    /// Returns when the start is over. What was recorded stays to be taken.
    pub async fn over(&self, until: Until) {
        let deadline = match until {
            Until::Quiet => None,
            Until::After(time) => Some(Instant::now() + time.min(LONGEST)),
        };
        while self.is_active() {
            let end = deadline.or_else(|| self.lock().times.map(quiet_end));
            match end {
                Some(end) if end <= Instant::now() => return,
                // The end moves while it is waited for; a recording that is full ends at once.
                Some(end) => drop(tokio::time::timeout_at(end, self.changed.notified()).await),
                None => self.changed.notified().await,
            }
        }
    }

    /// Ends the recording and hands it out, once.
    pub fn take(&self) -> Option<Recording> {
        self.active.store(false, Ordering::Relaxed);
        let state = std::mem::take(&mut *self.lock());
        state.times.map(|_| Recording { order: state.order, unseen: state.unseen, guessed: state.guessed })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recording {
    /// True if no read went by unseen.
    pub fn saw_all(&self) -> bool {
        !self.unseen
    }

    /// The recording with paths, and how large the image is. Walks the tree: a moment for a million nodes.
    ///
    /// A file with several names is named by the first one in the tree's order. Of files that `stored` knows only what was seen
    /// to be read is taken.
    pub fn into_profile(self, tree: &Tree, origin: Origin, stored: Option<&Profile>) -> (Profile, ImageSize) {
        let known: HashSet<_> = stored.iter().flat_map(|stored| stored.accesses()).map(Access::path).collect();
        let mut paths: HashMap<NodeId, Option<Vec<u8>>> = HashMap::new();
        paths.extend(self.order.entries().iter().map(|(node, _)| (*node, None)));
        let extent = find_paths(tree, &mut paths);
        let accesses = self.order.into_entries().into_iter().filter_map(|(node, range)| {
            let path = paths.get(&node)?.clone()?;
            if self.guessed.contains(&node) && known.contains(&path[..]) {
                return None;
            }
            Access::new(path, range.start, range.end)
        });
        (Profile::new(origin, accesses), extent)
    }
}

/// When a start is over that read something for the first time at these two instants at first and last. Counted from the
/// first read: a container may be created long after its image was mounted.
fn quiet_end((first, last): (Instant, Instant)) -> Instant {
    (last + QUIET).min(first + LONGEST)
}

/// Fills in the paths of the wanted nodes, and measures the tree.
fn find_paths(tree: &Tree, paths: &mut HashMap<NodeId, Option<Vec<u8>>>) -> ImageSize {
    let mut directories = vec![(NodeId::ROOT, Vec::new())];
    while let Some((directory, base)) = directories.pop() {
        for child in tree.children(directory, 0) {
            let path = || [&base, child.name].concat();
            match tree.node(child.node).kind() {
                NodeKind::Directory => directories.push((child.node, [&path()[..], b"/"].concat())),
                NodeKind::Regular => {
                    if let Some(wanted @ None) = paths.get_mut(&child.node) {
                        *wanted = Some(path());
                    }
                }
                _ => {}
            }
        }
    }
    let nodes = (0..tree.node_count()).filter_map(|number| tree.id(number)).map(|id| tree.node(id));
    let files = nodes.filter(|node| node.kind() == NodeKind::Regular && node.size() > 0).count() as u64;
    ImageSize { bytes: tree.total_size(), files }
}

/// The origin of a recording that ends now.
pub fn origin_now(image: crate::oci::Digest, mount: PathBuf) -> Origin {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Origin { image, recorded: now.map_or(0, |now| now.as_secs()), mount }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::PROFILE_ACCESSES;
    use crate::oci::Digest;
    use crate::tar::{Entry, Kind, Timestamp};
    use crate::tree::Merger;

    fn tree(paths: &[(&str, Option<&str>)]) -> Tree {
        let entries = paths.iter().map(|(path, link)| Entry {
            path: (*path).into(),
            kind: match link {
                Some(target) => Kind::HardLink { target: target.as_bytes().to_vec() },
                None => Kind::Regular { size: 10, segments: Vec::new(), content: None },
            },
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: Timestamp { seconds: 0, nanos: 0 },
            xattrs: Vec::new(),
        });
        let mut merger = Merger::new();
        merger.layer(None, entries.map(Ok::<_, std::convert::Infallible>)).expect("a good layer");
        Tree::open(bytes::Bytes::from(merger.finish())).expect("a good tree")
    }

    fn node(tree: &Tree, path: &str) -> NodeId {
        tree.resolve(path.as_bytes(), false).expect("it is there")
    }

    #[test]
    fn a_recording_has_paths_in_the_order_of_first_accesses() {
        let tree = tree(&[("a/b/c", None), ("d", None), ("z/link", Some("d")), ("unread", None)]);
        let recorder = Recorder::default();
        recorder.note(node(&tree, "unread"), 0..10);
        recorder.start();
        for (path, range) in [("z/link", 0..5), ("a/b/c", 2..4), ("d", 3..5), ("d", 5..10)] {
            recorder.note(node(&tree, path), range);
        }
        assert_eq!(recorder.accesses(), 2);
        let recording = recorder.take().expect("something was read");
        assert!(recording.saw_all() && !recorder.is_active());
        let (profile, extent) = recording.into_profile(&tree, origin_now(Digest::sha256(b""), "/m".into()), None);
        let accesses: Vec<_> =
            profile.accesses().iter().map(|access| (access.path(), access.start()..access.end())).collect();
        assert_eq!(accesses, [(&b"d"[..], 0..10), (b"a/b/c", 2..4)]);
        assert_eq!(extent, ImageSize { bytes: 30, files: 3 });
        recorder.note(node(&tree, "d"), 0..10);
        assert!(recorder.take().is_none(), "it is handed out once");
    }

    #[test]
    fn files_given_to_the_kernel_make_a_recording_incomplete() {
        let recorder = Recorder::default();
        recorder.start();
        recorder.note_unseen();
        recorder.note(NodeId::ROOT, 0..1);
        assert!(!recorder.take().expect("something was read").saw_all());
    }

    #[test]
    fn a_file_given_to_the_kernel_counts_as_read_unless_a_profile_knows_it() {
        let tree = tree(&[("a", None), ("b", None)]);
        let record = |stored: Option<&Profile>| {
            let recorder = Recorder::default();
            recorder.start();
            recorder.note(node(&tree, "a"), 0..4);
            recorder.note_given(node(&tree, "b"), 10);
            let recording = recorder.take().expect("something was read");
            assert!(!recording.saw_all());
            recording.into_profile(&tree, origin_now(Digest::sha256(b""), "/m".into()), stored).0
        };
        let named = |profile: &Profile| -> Vec<_> {
            profile.accesses().iter().map(|access| (access.path().to_vec(), access.start()..access.end())).collect()
        };
        let first = record(None);
        assert_eq!(named(&first), [(b"a".to_vec(), 0..4), (b"b".to_vec(), 0..10)]);
        let narrow = Profile::new(first.origin().clone(), Access::new(b"b".to_vec(), 3, 5));
        assert_eq!(named(&record(Some(&narrow))), [(b"a".to_vec(), 0..4)]);
        let recorder = Recorder::default();
        recorder.start();
        recorder.note_given(node(&tree, "b"), 1 << 40);
        assert_eq!(recorder.lock().order.entries()[0].1, 0..UNSEEN);
    }

    #[test]
    fn a_start_is_over_after_a_quiet_time_and_never_lasts_too_long() {
        let first = Instant::now();
        let seconds = Duration::from_secs;
        assert_eq!(quiet_end((first, first)), first + QUIET);
        assert_eq!(quiet_end((first, first + seconds(60))), first + seconds(60) + QUIET);
        assert_eq!(quiet_end((first, first + LONGEST)), first + LONGEST);
    }

    #[tokio::test(start_paused = true)]
    async fn a_recording_ends_at_its_time_or_when_it_is_full() {
        let recorder = Recorder::default();
        recorder.start();
        let begun = Instant::now();
        recorder.over(Until::After(Duration::from_millis(100))).await;
        let took = begun.elapsed().as_millis();
        assert!((100..110).contains(&took), "{took} ms");
        let quiet = recorder.over(Until::Quiet);
        tokio::pin!(quiet);
        assert!(tokio::time::timeout(Duration::from_millis(50), &mut quiet).await.is_err(), "nothing was read yet");
        for number in 0..=PROFILE_ACCESSES as u64 {
            recorder.note(NodeId::ROOT, 2 * number..2 * number + 1);
        }
        let full = Instant::now();
        quiet.await;
        assert!(full.elapsed() < Duration::from_millis(10), "it ends at once: {:?}", full.elapsed());
    }
}
