//! What is served, to one mount or several, now or soon again.
//!
//! The kernel remembers names and pages for each connection. So a mount of an image that is mounted already, or was
//! until a moment ago, is made on the connection there is: it begins warm. [`Table`] knows the connections, keeps a few that
//! nobody has mounted for a while, and knows what those that still live need of the cache: a mount that was taken out of the
//! mount table while it was in use is served until its last user is gone.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::control;
use super::mounts::InUse;
use crate::fetch;
use crate::fs::FileSystem;
use crate::fuse::{Connection, Elsewhere};
use crate::image::Image;
use crate::oci::Digest;
use crate::registry::{Repository, WeakClient};

/// How long a connection is kept when nothing of it is mounted: what a restart takes, and the pause between two jobs.
const KEPT: Duration = Duration::from_secs(300);

/// How many such connections are kept at most. Each holds its tree mapped and its layers from being evicted.
const MOST: usize = 4;

/// How long the kernel, and then this process, is given to end a connection that nobody uses.
const ENDING: Duration = Duration::from_secs(1);

/// How often it is looked whether it has ended.
const MOMENT: Duration = Duration::from_millis(1);

/// By what two mounts can be served together: they want the same, and where something of it is missing, it is asked for by
/// the same client. Who has logged in as somebody else has another one, though his files have the same names.
#[derive(Debug, Clone)]
pub(super) struct Key {
    wanted: Wanted,
    client: Option<WeakClient>,
}

/// What must be the same for two mounts to be served together.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    tree: Digest,
    /// False for layouts and archives: they may be replaced by others of the same name once nobody uses them, and are
    /// not to be held open.
    is_remote: bool,
    source: Option<Arc<str>>,
    io: control::Io,
    low_latency: bool,
    /// The kernel does not say through which directory a file is read, so the patience is the connection's.
    on_outage: control::OnOutage,
    offline: bool,
    plain_http: bool,
    auth_files: Vec<PathBuf>,
    hosts: control::HostFiles,
    /// The hosts that these files led to.
    asked: Vec<String>,
}

impl Key {
    pub(super) fn new(wanted: &control::Mount, image: &Image) -> Self {
        let client = image.repository.as_ref().map(Repository::client);
        let wanted = Wanted {
            tree: image.tree_id,
            is_remote: image.is_remote,
            source: image.layers.first().map(|layer| Arc::clone(&layer.layer.source_name)),
            io: wanted.io,
            low_latency: wanted.low_latency,
            on_outage: wanted.on_outage,
            offline: wanted.image.offline,
            plain_http: wanted.image.plain_http,
            auth_files: wanted.image.auth_files.clone(),
            hosts: wanted.image.hosts.clone(),
            asked: image.repository.iter().flat_map(Repository::hosts).map(|host| host.name).collect(),
        };
        Self { wanted, client }
    }
}

/// A file system and its connection.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) fs: Arc<FileSystem>,
    pub(super) connection: Arc<Connection>,
    /// The layers that the file system reads, from the bottom.
    pub(super) layers: Vec<Arc<fetch::Layer>>,
}

/// The connections that live.
#[derive(Debug)]
pub(super) struct Table {
    /// Protects the list; held for look-ups and changes only.
    list: Mutex<List>,
    /// Their number.
    alive: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct List {
    entries: Vec<Entry>,
    /// How many there ever were.
    entered: u64,
}

#[derive(Debug)]
struct Entry {
    number: u64,
    key: Key,
    /// None once it is to end with its last user, as one that can be mounted only once is from the beginning.
    served: Option<Arc<Elsewhere<Served>>>,
    in_use: InUse,
    /// How many mounts have it.
    mounts: usize,
    /// When there was one last.
    used: Instant,
}

impl Entry {
    /// True if another mount may have it: it lives, and shows what it should.
    fn serves(&self) -> bool {
        self.served.as_ref().is_some_and(|served| !served.connection.has_ended() && !served.fs.is_stopped())
    }

    /// True if a mount with this key may have it.
    fn fits(&self, key: &Key) -> bool {
        // An index that came without its windows asks for them.
        let is_here = |layer: &Arc<fetch::Layer>| layer.blob.is_complete() && layer.index.has_windows();
        let is_complete = |served: &Arc<Elsewhere<Served>>| served.layers.iter().all(is_here);
        self.key.wanted == key.wanted
            && self.serves()
            // Nobody is asked for what is here, and it stays while it is served.
            && (self.key.client == key.client || self.served.as_ref().is_some_and(is_complete))
    }
}

/// What a mount has of a connection; it is mounted until this is dropped.
#[derive(Debug)]
pub(super) struct Use {
    table: Arc<Table>,
    number: u64,
}

impl Drop for Use {
    fn drop(&mut self) {
        let mut ended = None;
        let mut list = self.table.lock();
        if let Some(entry) = list.entries.iter_mut().find(|entry| entry.number == self.number) {
            entry.mounts = entry.mounts.saturating_sub(1);
            entry.used = Instant::now();
            let is_kept = entry.key.wanted.is_remote && entry.serves();
            ended = entry.served.take_if(|_| entry.mounts == 0 && !is_kept);
        }
        drop(list);
        drop(ended);
    }
}

impl Default for Table {
    fn default() -> Self {
        Self { list: Mutex::default(), alive: watch::Sender::new(0) }
    }
}

impl Table {
    /// What serves `key` already.
    pub(super) fn find(self: &Arc<Self>, key: &Key) -> Option<(Arc<Elsewhere<Served>>, Use)> {
        let mut list = self.lock();
        let entry = list.entries.iter_mut().find(|entry| entry.fits(key))?;
        entry.mounts += 1;
        Some((entry.served.clone()?, Use { table: Arc::clone(self), number: entry.number }))
    }

    /// Hands out no more what serves `key`: it maps parts of the cache that had to be made anew.
    pub(super) fn forget(&self, key: &Key) {
        self.forget_where(|entry| entry.key.wanted == key.wanted);
    }

    /// Hands out no more what there is: the cache has lost what it was complete by, and what it lacks now is asked for by
    /// whoever mounted it first.
    pub(super) fn forget_all(&self) {
        self.forget_where(|_| true);
    }

    fn forget_where(&self, is_unwanted: impl Fn(&Entry) -> bool) {
        let mut list = self.lock();
        let unwanted = list.entries.iter_mut().filter(|entry| is_unwanted(entry));
        let forgotten: Vec<_> = unwanted.filter_map(|entry| entry.served.take()).collect();
        drop(list);
        drop(forgotten);
    }

    /// Takes in what serves `key` from now on, until the kernel ends it.
    pub(super) fn enter(self: &Arc<Self>, key: Key, image: &Image, served: Served) -> (Arc<Elsewhere<Served>>, Use) {
        let served = Arc::new(Elsewhere::new(served));
        let mut in_use = InUse::default();
        in_use.add(image);
        let ended = served.connection.end();
        let layers: Vec<_> = served.layers.iter().map(Arc::downgrade).collect();
        let number = {
            let mut list = self.lock();
            list.entered += 1;
            let number = list.entered;
            let kept = served.connection.outlives_its_mounts().then(|| Arc::clone(&served));
            list.entries.push(Entry { number, key, served: kept, in_use, mounts: 1, used: Instant::now() });
            self.alive.send_replace(list.entries.len());
            number
        };
        let table = Arc::clone(self);
        tokio::spawn(async move {
            ended.await;
            // Tasks that ended with it may hold its layers a moment longer, and what is held cannot be dropped from the cache.
            let since = Instant::now();
            while layers.iter().any(|layer| layer.strong_count() > 0) && since.elapsed() < ENDING {
                tokio::time::sleep(MOMENT).await;
            }
            table.remove(number);
        });
        (served, Use { table: Arc::clone(self), number })
    }

    /// Lets go of connections that nobody has mounted: of those that `are_unwanted`, by how long ago they were mounted,
    /// from the one used last on.
    fn release(&self, mut are_unwanted: impl FnMut(usize, Duration) -> bool) {
        let mut list = self.lock();
        list.entries.sort_by_key(|entry| std::cmp::Reverse(entry.used));
        let idle = list.entries.iter_mut().filter(|entry| entry.mounts == 0 && entry.served.is_some()).enumerate();
        let unwanted = idle.filter(|(rank, entry)| are_unwanted(*rank, entry.used.elapsed()));
        let released: Vec<_> = unwanted.filter_map(|(_, entry)| entry.served.take()).collect();
        drop(list);
        // The last mount of each ends here.
        drop(released);
    }

    /// Lets go of what has been idle for long, or is too much.
    pub(super) fn tidy(&self) {
        self.release(|rank, idle| rank >= MOST || idle >= KEPT);
    }

    /// Lets go of everything that is idle, and returns when the kernel has ended it, which takes a moment: all but what
    /// somebody still uses without its being mounted.
    pub(super) async fn release_idle(&self) {
        self.release(|_, _| true);
        let is_mounted = |entry: &&Entry| entry.mounts > 0 || entry.served.is_some();
        let mounted = self.lock().entries.iter().filter(is_mounted).count();
        let mut alive = self.alive.subscribe();
        let ended = alive.wait_for(|alive| *alive <= mounted);
        if tokio::time::timeout(2 * ENDING, ended).await.is_err() {
            tracing::debug!("a mount that was taken out of the mount table is still in use");
        }
    }

    /// Watches the number of connections that live.
    pub(super) fn alive(&self) -> watch::Receiver<usize> {
        self.alive.subscribe()
    }

    /// What they need of the cache.
    pub(super) fn in_use(&self) -> InUse {
        let mut all = InUse::default();
        for entry in &self.lock().entries {
            all.join(&entry.in_use);
        }
        all
    }

    fn remove(&self, number: u64) {
        let mut list = self.lock();
        list.entries.retain(|entry| entry.number != number);
        self.alive.send_replace(list.entries.len());
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
