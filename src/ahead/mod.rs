//! What is fetched ahead of the first read: what an earlier start read, or else what the entry point is known to need.
//!
//! Between mount and first read lies the time in which a container runtime prepares its sandbox, and during a start the
//! line is idle whenever the program computes. Both are used here. Three difficulties. *What will be read*: a profile says
//! it in order (`replay`); without one a layer's maker may have said it (`landmark`), and the image's command line
//! (`command`) leads to a program, its interpreter and its libraries (`programs`), looked up as kernel and dynamic loader
//! would in the image's own tree (`names`), and if it is Python (`interpreter`), to all modules that its script imports
//! (`imports`), or if it is Node.js, loads (`modules`). What these files say about each other the indexes know (`known`), so
//! all of it is found out before the first byte has come; only where an index does not, such as those of other tools, files
//! are fetched to be looked into (`contents`). What a profile names and is here already is brought from the disk (`warm`).
//! *How much*: nothing in an image or a profile may turn a lazy mount into a pull (`Budget`). *Never in the way*: everything
//! here is optional; it runs beside the mount at [`Priority::Profile`], below any read, and its failures are only logged. Only
//! the few bytes that say what a program needs are as urgent as a read: the kernel is about to ask for them. What is known
//! goes to the planner in the order of need; what is found out later waits for its turn (`turns`).
//!
//! [`run`] does all of it for one image; [`Progress`] tells what it did and why.

mod budget;
mod command;
mod contents;
mod imports;
mod interpreter;
mod known;
mod landmark;
mod modules;
mod names;
mod programs;
mod replay;
#[cfg(test)]
mod tests;
mod turns;
mod warm;

use std::collections::HashSet;
use std::ops::Range;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Poll;

use futures_util::future::maybe_done;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::dependencies::Dependencies;
use crate::fetch::{Error, Fetcher, Foretold, Layer, Priority};
use crate::index::SpanId;
use crate::limits::{AHEAD_HELD_BYTES, AHEAD_LOOKUPS};
use crate::oci::ImageConfig;
use crate::profile::Profile;
use crate::store::Store;
use crate::tree::{NodeId, NodeKind, Tree};

use self::budget::Budget;
use self::known::Known;
use self::names::Names;
use self::turns::{Order, Turns};

pub use self::replay::places;

/// An image's files and where their bytes come from. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Files {
    /// The merged tree.
    pub tree: Tree,
    /// The layers that its extents count, from the bottom.
    pub layers: Vec<Arc<Layer>>,
    /// What brings their bytes.
    pub fetcher: Fetcher,
    /// Where decoded copies of them may be.
    pub store: Arc<Store>,
}

/// Why something was fetched ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// An earlier start read it.
    Profile,
    /// Whoever made the layer put it before a landmark, because a start reads it.
    Landmark,
    /// The entry point needs it.
    EntryPoint,
    /// The script of the entry point imports it.
    Import,
}

/// How far fetching ahead has come; read by whoever shows it.
#[derive(Debug, Default)]
pub struct Progress {
    reason: OnceLock<Reason>,
    replayed: AtomicU64,
    needed: AtomicU64,
    done: AtomicBool,
}

impl Progress {
    /// Why anything is fetched; none if nothing is.
    pub fn reason(&self) -> Option<Reason> {
        self.reason.get().copied()
    }

    /// Spans asked for because a profile or a landmark names them; those that were here already do not count.
    pub fn replayed_spans(&self) -> u64 {
        self.replayed.load(Ordering::Relaxed)
    }

    /// Spans asked for because the entry point needs them, or its script.
    pub fn entry_point_spans(&self) -> u64 {
        self.needed.load(Ordering::Relaxed)
    }

    /// True once nothing more will be fetched ahead.
    pub fn is_done(&self) -> bool {
        self.done.load(Ordering::Relaxed)
    }

    fn note(&self, reason: Reason, spans: usize) {
        self.reason.get_or_init(|| reason);
        let count = match reason {
            Reason::Profile | Reason::Landmark => &self.replayed,
            Reason::EntryPoint | Reason::Import => &self.needed,
        };
        count.fetch_add(spans as u64, Ordering::Relaxed);
    }
}

/// Fetches ahead what a start of the image with `config` will read. Returns when it is done or given up; dropping the
/// future gives up.
///
/// The entry point is looked at also beside a profile that does not know it, such as one of somebody who only looked
/// into the image.
pub async fn run(files: &Files, config: &ImageConfig, profile: Option<&Profile>, progress: &Progress) {
    let fetched = async {
        if let Err(error) = fetch(files, config, profile, progress).await {
            tracing::debug!(%error, "fetching ahead ends");
        }
    };
    let warmed = async {
        if let Some(profile) = profile {
            warm::run(files, profile).await;
        }
    };
    tokio::join!(fetched, warmed);
    progress.done.store(true, Ordering::Relaxed);
}

async fn fetch(
    files: &Files,
    config: &ImageConfig,
    profile: Option<&Profile>,
    progress: &Progress,
) -> Result<(), Error> {
    if files.layers.iter().all(|layer| layer.reader.is_none() || layer.blob.is_complete()) {
        return Ok(());
    }
    let session = Session::new(files, progress);
    let fetched = foretold(&session, config, profile).await;
    session.finish().await;
    fetched
}

async fn foretold(session: &Session<'_>, config: &ImageConfig, profile: Option<&Profile>) -> Result<(), Error> {
    let files = session.files;
    let mut known = HashSet::new();
    if let Some(profile) = profile {
        let (spans, nodes) = replay::plan(session, profile).await;
        known = nodes;
        if !known.is_empty() {
            files.layers.iter().for_each(|layer| layer.foretell(Foretold::Parts));
            session.prefetch(Reason::Profile, spans).await?;
        }
    }
    let marked = if known.is_empty() { landmark::plan(session) } else { Vec::new() };
    if !marked.is_empty() {
        // The program is among them if whoever optimised the image ran it, but nothing says so.
        session.prefetch(Reason::Landmark, marked).await?;
    }
    let targets = command::targets(&session.names, config);
    if targets.first().is_some_and(|target| known.contains(&target.place.node)) {
        return Ok(());
    }
    session.know().await;
    let walk = programs::Walk::new(session, config);
    let mut programs = pin!(maybe_done(walk.fetch(&targets)));
    let mut imports = pin!(maybe_done(imports::fetch(&walk, &targets)));
    // What the indexes know is found out without waiting, and goes as one; the program need not wait for all of its modules.
    let _: Poll<()> = poll_once(&mut programs).await;
    session.send().await;
    let _: Poll<()> = poll_once(&mut imports).await;
    modules::begin(&walk, &targets);
    session.send().await;
    session.release();
    tokio::join!(programs.as_mut(), imports.as_mut());
    walk.begin_rest();
    [programs.take_output(), imports.take_output()].into_iter().flatten().collect()
}

/// How far a future gets without waiting.
async fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    std::future::poll_fn(|context| Poll::Ready(Pin::new(&mut *future).poll(context))).await
}

/// Spans and the layers that they are of.
type Spans = Vec<(Arc<Layer>, SpanId)>;

/// One run.
struct Session<'a> {
    files: &'a Files,
    progress: &'a Progress,
    /// Protects what may still be fetched; held for short computations.
    budget: Mutex<Budget>,
    /// What will be fetched once nothing more is known without waiting, and when it is needed; none after that.
    collected: Mutex<Option<Vec<(Order, Spans)>>>,
    /// What is fetched while nobody here waits for it. Ends with the session.
    begun: Mutex<JoinSet<()>>,
    turns: Arc<Turns>,
    /// Room in memory for files that are looked into, in KiB.
    held: Semaphore,
    names: Names,
    /// What indexes say, once that was read.
    known: OnceLock<Known>,
}

/// Why something is fetched, and when it is needed.
#[derive(Debug, Clone)]
struct Need {
    reason: Reason,
    order: Order,
}

/// Spans of one file that are asked for together: what is found out meanwhile can go before the rest.
const AT_ONCE: usize = 2;

/// The compressed bytes of spans.
fn length(spans: &[(Arc<Layer>, SpanId)]) -> u64 {
    let length = |(layer, span): &(Arc<Layer>, SpanId)| {
        let range = layer.index.compressed(*span);
        range.end.saturating_sub(range.start)
    };
    spans.iter().map(length).fold(0, u64::saturating_add)
}

impl<'a> Session<'a> {
    fn new(files: &'a Files, progress: &'a Progress) -> Self {
        let (fetcher, layers) = (files.fetcher.clone(), files.layers.clone());
        let held = Semaphore::new((AHEAD_HELD_BYTES >> 10) as usize);
        // What the line holds: it stays full, and what comes up waits for little.
        let turns = Turns::new(move || (fetcher.reach(&layers) / 4).max(1));
        Self {
            files,
            progress,
            budget: Mutex::new(Budget::new(&files.layers)),
            collected: Mutex::new(Some(Vec::new())),
            begun: Mutex::default(),
            turns,
            held,
            names: Names::new(files.tree.clone(), AHEAD_LOOKUPS),
            known: OnceLock::new(),
        }
    }

    /// Reads what the indexes say of dependencies.
    async fn know(&self) {
        let known = Known::of(&self.files.layers).await;
        self.known.get_or_init(|| known);
    }

    /// The spans of a part of a file that are still to be fetched and may be.
    fn take(&self, node: NodeId, range: Range<u64>) -> Spans {
        self.budget().take(self.files, node, range)
    }

    /// What the index says of a file's dependencies; none if nothing, or if too much was said already.
    fn dependencies(&self, node: NodeId) -> Option<Dependencies> {
        let (known, layer, place) = self.known_place(node)?;
        let length = known.length_of(layer, place)?;
        let may_be_parsed = self.budget().parse(length);
        if may_be_parsed { known.of_file(layer, place) } else { None }
    }

    /// True if the index says something of a file's dependencies.
    fn knows(&self, node: NodeId) -> bool {
        self.known_place(node).is_some_and(|(known, layer, place)| known.length_of(layer, place).is_some())
    }

    /// What indexes say, and where in a layer the file's bytes begin.
    fn known_place(&self, node: NodeId) -> Option<(&Known, &Layer, u64)> {
        let part = self.files.parts(node, 0..1).next()?;
        Some((self.known.get()?, part.layer, part.stream.start))
    }

    /// Allows one more file to be looked at; false if there were too many.
    fn may_look(&self) -> bool {
        self.budget().look()
    }

    fn budget(&self) -> MutexGuard<'_, Budget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fetches spans in their order.
    async fn prefetch(&self, reason: Reason, spans: Spans) -> Result<(), Error> {
        self.progress.note(reason, spans.len());
        self.fetch(&spans, Priority::Profile).await
    }

    /// Fetches spans that were counted, or waits for those that were begun.
    async fn fetch(&self, spans: &[(Arc<Layer>, SpanId)], priority: Priority) -> Result<(), Error> {
        // An outage delays it: what it knows of the start is worth the same afterwards.
        self.files.fetcher.prefetch_in_the_end(spans, priority).await
    }

    /// Fetches spans without waiting for them, when it is their turn.
    fn begin(&self, need: &Need, spans: Spans) {
        if spans.is_empty() {
            return;
        }
        self.progress.note(need.reason, spans.len());
        if let Some(collected) = &mut *self.collected.lock().unwrap_or_else(PoisonError::into_inner) {
            return collected.push((need.order.clone(), spans));
        }
        let (fetcher, turns, order) = (self.files.fetcher.clone(), Arc::clone(&self.turns), need.order.clone());
        self.spawn(async move {
            let (fetcher, turns, order) = (&fetcher, &turns, &order);
            let fetched = spans
                .chunks(AT_ONCE)
                .map(|spans| async move { turns.fetch(fetcher, order, length(spans), spans).await });
            if let Err(error) = futures_util::future::try_join_all(fetched).await {
                tracing::debug!(%error, "not fetched ahead");
            }
        });
    }

    /// Fetches what was collected so far, in the order of need.
    async fn send(&self) {
        let sent = match &mut *self.collected.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(collected) => {
                collected.sort_by(|(one, _), (other, _)| one.cmp(other));
                std::mem::take(collected)
            }
            None => return,
        };
        let spans: Spans = sent.into_iter().flat_map(|(_, spans)| spans).collect();
        let fetcher = self.files.fetcher.clone();
        let mut fetching = Box::pin(async move {
            if let Err(error) = fetcher.prefetch_in_the_end(&spans, Priority::Profile).await {
                tracing::debug!(%error, "not fetched ahead");
            }
        });
        // Asked for now: a task may begin later than the next one.
        if poll_once(&mut fetching).await.is_pending() {
            self.spawn(fetching);
        }
    }

    /// From now on what is begun is fetched in its turn.
    fn release(&self) {
        *self.collected.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner).spawn(work);
    }

    /// Waits for all that was begun.
    async fn finish(&self) {
        let mut begun = std::mem::take(&mut *self.begun.lock().unwrap_or_else(PoisonError::into_inner));
        while begun.join_next().await.is_some() {}
    }
}

/// A part of a file, and where its bytes are.
#[derive(Debug)]
struct Part<'a> {
    layer: &'a Arc<Layer>,
    /// Of the file.
    range: Range<u64>,
    /// Of the uncompressed stream of the layer; as long.
    stream: Range<u64>,
}

impl Files {
    /// Where `range` of a file is, in order. What is beyond the file, is a hole, or is no regular file has no bytes.
    fn parts(&self, node: NodeId, range: Range<u64>) -> impl Iterator<Item = Part<'_>> {
        let node = self.tree.node(node);
        let end = if node.kind() == NodeKind::Regular { range.end.min(node.size()) } else { 0 };
        node.extents_in(range.start..end).filter_map(move |extent| {
            let start = range.start.max(extent.file_offset);
            let stop = end.min(extent.file_offset.saturating_add(extent.length));
            let layer = self.layers.get(extent.layer as usize).filter(|_| start < stop)?;
            let at = extent.layer_offset + (start - extent.file_offset);
            Some(Part { layer, range: start..stop, stream: at..at + (stop - start) })
        })
    }
}
