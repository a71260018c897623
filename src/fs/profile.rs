//! Recording the order of first accesses of one mount, for its profile.
//!
//! The recorder sits on the path of every read, so it must cost nothing that can be measured: once the recording is
//! over, and in file systems that are not recorded, one relaxed load; while it lasts, a look-up in a map below a short lock,
//! without allocation for what was read before. Reads that a prefetch causes do not come through here.
//!
//! The start is over after a quiet time or a fixed one ([`Recorder::over`]), or with the mount. A [`Recording`] knows
//! nodes; paths are found once, at the end.

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::profile::{Access, Extent, Noted, Order, Origin, Profile};
use crate::tree::{NodeId, NodeKind, Tree};

/// How long nothing may be read for the first time until a start counts as over.
///
/// Programs wait during their start (for a database, for a lock), mostly for a second or two. Ten seconds without any new
/// access is a server that serves; what it reads later belongs to its requests.
pub const QUIET: Duration = Duration::from_secs(10);

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
    /// When something was read for the first time last.
    last: Option<Instant>,
    unseen: bool,
}

/// What was recorded.
#[derive(Debug)]
pub struct Recording {
    order: Order<NodeId>,
    unseen: bool,
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

    /// Notes that reads of a file will be answered without this being told, because the kernel has been given the file.
    ///
    /// Such a recording adds to a profile and replaces none.
    pub fn note_unseen(&self) {
        if self.active.load(Ordering::Relaxed) {
            self.lock().unseen = true;
        }
    }

    fn record(&self, node: NodeId, range: Range<u64>) {
        let mut state = self.lock();
        match state.order.note(node, range.start, range.end) {
            Noted::Known => {}
            Noted::New => {
                if state.last.replace(Instant::now()).is_none() {
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
        let begun = Instant::now();
        if let Until::After(time) = until {
            let full = async {
                while self.is_active() {
                    self.changed.notified().await
                }
            };
            tokio::select! {
                () = tokio::time::sleep(time.min(LONGEST)) => {}
                () = full => {}
            }
            return;
        }
        let mut latest = None;
        loop {
            let last = self.lock().last;
            let Some(last) = last.filter(|_| self.is_active()) else {
                if !self.is_active() {
                    return;
                }
                self.changed.notified().await;
                continue;
            };
            // Counted from the first access: a container may be created long after its image was mounted.
            let end = (last + QUIET).min(*latest.get_or_insert(last.max(begun) + LONGEST));
            if end <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }

    /// Ends the recording and hands it out, once.
    pub fn take(&self) -> Option<Recording> {
        self.active.store(false, Ordering::Relaxed);
        let state = std::mem::take(&mut *self.lock());
        state.last.map(|_| Recording { order: state.order, unseen: state.unseen })
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
    /// A file with several names is named by the first one in the tree's order.
    pub fn into_profile(self, tree: &Tree, origin: Origin) -> (Profile, Extent) {
        let mut paths: HashMap<NodeId, Option<Vec<u8>>> = HashMap::new();
        paths.extend(self.order.entries().iter().map(|(node, _)| (*node, None)));
        let extent = find_paths(tree, &mut paths);
        let accesses = self.order.into_entries().into_iter().filter_map(|(node, range)| {
            let path = paths.get(&node)?.clone()?;
            Access::new(path, range.start, range.end)
        });
        (Profile::new(origin, accesses), extent)
    }
}

/// Fills in the paths of the wanted nodes, and measures the tree.
fn find_paths(tree: &Tree, paths: &mut HashMap<NodeId, Option<Vec<u8>>>) -> Extent {
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
    Extent { bytes: tree.total_size(), files }
}

/// The origin of a recording that ends now.
pub fn origin_now(image: crate::oci::Digest, mount: PathBuf) -> Origin {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Origin { image, recorded: now.map_or(0, |now| now.as_secs()), mount }
}
