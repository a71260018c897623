//! The accept loop: one task a client, one request a connection, cancelled when the client goes away.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, mpsc, watch};

use super::control::{self, Event, Request};
use super::mounts::Mounts;
use super::served::Served;
use super::socket::Listener;
use super::{Code, Failure, Options, indexing, mount, parcels, profiles, query, report, upkeep};
use crate::fuse::{self, Elsewhere};
use crate::image::Images;

/// Longest request accepted, in bytes: a profile, whose backslashes JSON writes twice.
const REQUEST_BYTES: u64 = 2 * crate::limits::PROFILE_TEXT_BYTES as u64 + (1 << 20);

/// How long the kernel may take, when the daemon ends, to take what it is just being given.
const HUSHING: Duration = Duration::from_secs(1);

/// How long a mount that the kernel is being told of may take, when the daemon ends, to be made and ended.
const CLOSING: Duration = Duration::from_secs(10);

/// How long a client that has its answer may take to go.
const FAREWELL: Duration = Duration::from_secs(1);

/// How long a client may take to say what it wants.
const REQUEST_TIME: Duration = Duration::from_secs(10);

/// The state all clients share.
#[derive(Debug)]
pub(super) struct Server {
    images: Images,
    mounts: Arc<Mounts>,
    options: Options,
    /// Number of connected clients.
    clients: watch::Sender<usize>,
    /// Told when it need not stay any longer without a mount.
    retiring: Notify,
    /// Set while a daemon in the foreground serves one mount.
    foreground: bool,
}

/// One client's side of the conversation.
struct Answers {
    events: mpsc::Sender<Event>,
    writer: OwnedWriteHalf,
    queue: mpsc::Receiver<Event>,
}

impl Server {
    pub(super) fn new(images: Images, options: Options) -> Self {
        let foreground = options.idle.is_none();
        Self {
            images,
            mounts: Arc::default(),
            options,
            clients: watch::Sender::new(0),
            retiring: Notify::new(),
            foreground,
        }
    }

    /// Makes the mount of `ocifs mount --foreground`.
    pub(super) async fn mount_in_foreground(&self, wanted: control::Mount) -> Result<(), Failure> {
        let (events, mut queue) = mpsc::channel(16);
        let report = async {
            while let Some(event) = queue.recv().await {
                if let Event::Warning { text } = event {
                    tracing::warn!("{text}");
                }
            }
        };
        let made = async {
            let made = mount::mount(&self.images, &self.mounts, wanted, &events).await;
            drop(events);
            made.map(drop)
        };
        tokio::join!(made, report).0
    }

    /// Serves clients for ever.
    pub(super) async fn accept(self: &Arc<Self>, mut listener: Listener) {
        loop {
            match listener.accept().await {
                Ok(stream) => {
                    let server = Arc::clone(self);
                    server.clients.send_modify(|count| *count += 1);
                    tokio::spawn(async move {
                        server.serve(stream).await;
                        server.clients.send_modify(|count| *count -= 1);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a client");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Returns when there has been neither a mount nor a client for the idle time; in the foreground, when nothing is
    /// mounted any more.
    pub(super) async fn finished(&self) {
        let (mut mounts, mut clients) = (self.mounts.count(), self.clients.subscribe());
        let mut alive = self.mounts.served().alive();
        let quiet = self.options.idle.unwrap_or(Duration::ZERO);
        let mut is_retiring = false;
        loop {
            is_retiring &= *mounts.borrow() == 0;
            if mounts.wait_for(|count| *count == 0).await.is_err() {
                return;
            }
            if !self.foreground && clients.wait_for(|count| *count == 0).await.is_err() {
                return;
            }
            if !is_retiring {
                tokio::select! {
                    () = tokio::time::sleep(quiet) => {}
                    // Whoever asked for it is still there.
                    () = self.retiring.notified() => {
                        is_retiring = true;
                        continue;
                    }
                    _ = mounts.changed() => continue,
                    _ = clients.changed() => continue,
                }
            }
            // Who uses a mount that is in the mount table no more is served to the end.
            self.mounts.served().release_idle().await;
            tokio::select! {
                biased;
                _ = mounts.changed() => {}
                _ = clients.changed() => {}
                _ = alive.wait_for(|alive| *alive == 0) => return,
            }
        }
    }

    /// Keeps what the mounts share in order. Runs for ever.
    pub(super) async fn keep(&self) {
        upkeep::run(&self.images, &self.mounts).await;
    }

    /// Ends all mounts before the daemon ends. Those in use are detached: their users get errors, but nothing hangs.
    pub(super) async fn unmount_all(&self) {
        if tokio::time::timeout(CLOSING, self.mounts.close()).await.is_err() {
            tracing::error!("a mount that is being made may stay behind");
        }
        // Many mounts may have one connection, and hushing one that hangs takes its whole time.
        let mut hushed = Vec::new();
        for mounted in self.mounts.all() {
            let connection = Arc::downgrade(&mounted.served.connection);
            if !hushed.iter().any(|hushed| connection.ptr_eq(hushed)) {
                hushed.push(connection);
                hush(Arc::clone(&mounted.served)).await;
            }
            let ended = mount::unmount(&mounted, false).await;
            if let Err(failure) = ended {
                tracing::warn!(%failure, "detaching a mount that is in use");
                if let Err(failure) = mount::unmount(&mounted, true).await {
                    tracing::error!(%failure, "a mount stays behind");
                }
            }
        }
    }

    /// Brings the cache within its limits before the daemon ends.
    pub(super) async fn evict_last(&self) {
        upkeep::evict_last(&self.images, &self.mounts).await;
    }

    async fn serve(&self, stream: UnixStream) {
        let (reader, writer) = stream.into_split();
        let (events, queue) = mpsc::channel(64);
        let mut reader = BufReader::new(reader);
        let request = tokio::time::timeout(REQUEST_TIME, read_request(&mut reader)).await;
        let request = match request {
            Ok(Ok(request)) => request,
            Ok(Err(failure)) => return Answers { events, writer, queue }.finish(Err(failure)).await,
            Err(_) => return tracing::debug!("a client said nothing"),
        };
        let mut answers = Answers { events, writer, queue };
        // Whoever asks for what takes its time is not kept wondering whether there is anybody.
        if !request.is_quick()
            && let Err(failure) = answers.write(&Event::Progress(control::Progress::default())).await
        {
            return tracing::debug!(%failure, "the client went away");
        }
        if request.needs_cache() {
            match upkeep::restore_cache(&self.images, &self.mounts).await {
                Ok(None) => {}
                Ok(Some(text)) => {
                    if let Err(failure) = answers.write(&Event::Warning { text }).await {
                        tracing::debug!(%failure, "nobody hears what became of the cache");
                    }
                }
                Err(failure) => return answers.finish(Err(failure)).await,
            }
        }
        if matches!(request, Request::CacheImport) {
            // What the client sends belongs to its request; if it goes away, the parcel is cut short.
            let imported = parcels::import(&self.images, reader).await;
            self.mounts.grown().notify_one();
            return answers.finish(imported.and_then(|report| value(&report))).await;
        }
        tokio::select! {
            () = self.answer(request, answers) => {}
            () = gone(&mut reader) => tracing::debug!("the client went away, its request is cancelled"),
        }
    }

    async fn answer(&self, request: Request, mut answers: Answers) {
        let result = match request {
            Request::Mount(wanted) => {
                let events = answers.events.clone();
                let made = mount::mount(&self.images, &self.mounts, wanted, &events);
                answers.while_running(made).await.and_then(|report| value(&report))
            }
            Request::Wait { dir } => {
                let events = answers.events.clone();
                answers.while_running(self.wait(&dir, &events)).await.and_then(|()| value(&()))
            }
            Request::Unmount { dir, lazy } => self.unmount(&dir, lazy).await,
            Request::List => value(&self.reports(None, false)),
            Request::Status { dir } => self.status(dir.as_deref()),
            Request::Inspect(image) => {
                let events = answers.events.clone();
                let inspected = query::inspect(&self.images, &image, &events);
                answers.while_running(inspected).await.and_then(|report| value(&report))
            }
            Request::ListDirectory { image, path, recursive } => {
                self.list_directory(&image, &path, recursive, &mut answers).await
            }
            Request::Read { image, path } => self.read(&image, &path, &mut answers).await,
            Request::Profile(image) => {
                let events = answers.events.clone();
                let shown = profiles::get(&self.images, &image, &events);
                answers.while_running(shown).await.and_then(|report| value(&report))
            }
            Request::ImportProfile { image, text } => {
                let events = answers.events.clone();
                let taken = profiles::put(&self.images, &image, text, &events);
                answers.while_running(taken).await.and_then(|()| value(&()))
            }
            Request::RemoveProfile(image) => {
                let events = answers.events.clone();
                let removed = profiles::remove(&self.images, &image, &events);
                answers.while_running(removed).await.and_then(|()| value(&()))
            }
            Request::Index(work) => {
                let events = answers.events.clone();
                let made = indexing::make(&self.images, &work, &events);
                answers.while_running(made).await.and_then(|images| value(&images))
            }
            Request::ListIndexes(image) => {
                let events = answers.events.clone();
                let listed = indexing::list(&self.images, &image, &events);
                answers.while_running(listed).await.and_then(|listed| value(&listed))
            }
            Request::RemoveIndexes(unwanted) => {
                let events = answers.events.clone();
                let removed = indexing::remove(&self.images, &unwanted, &events);
                answers.while_running(removed).await.and_then(|count| value(&count))
            }
            Request::Retire => value(&self.retire().await),
            Request::CacheUsage => query::usage(&self.images).await.and_then(|report| value(&report)),
            Request::CacheDrop(what) => {
                query::drop_cache(&self.images, &self.mounts, what).await.and_then(|freed| value(&freed))
            }
            Request::CacheVerify => query::verify(&self.images).await.and_then(|report| value(&report)),
            Request::CacheExport { image, selection } => self.export(&image, selection, &mut answers).await,
            Request::CacheImport => Err(Failure::new(Code::Other, "an import is not answered here")),
        };
        answers.finish(result).await;
    }

    /// Waits until a mount is complete. Whoever gives up waiting leaves it as it is.
    async fn wait(&self, dir: &Path, events: &mpsc::Sender<Event>) -> Result<(), Failure> {
        let Some(mounted) = self.mounts.get(dir) else { return Err(not_mounted(dir)) };
        let outcome = tokio::select! {
            outcome = mounted.filling.wait(events) => outcome,
            () = mounted.mount.ended() => {
                let dir = crate::oci::Printable::path(dir);
                return Err(Failure::new(Code::Other, format!("{dir} was unmounted before it was complete")));
            }
        };
        outcome.map_err(|failure| {
            let dir = crate::oci::Printable::path(dir);
            let stays = format!("{dir} stays mounted; `ocifs status {dir}` shows what is missing");
            let hint = failure.hint.as_ref().map_or_else(|| stays.clone(), |hint| format!("{hint}; {stays}"));
            failure.about(format!("cannot complete {}", mounted.request.image.reference)).hint(hint)
        })
    }

    async fn unmount(&self, dir: &Path, lazy: bool) -> Result<serde_json::Value, Failure> {
        let Some(mounted) = self.mounts.get(dir) else { return Err(not_mounted(dir)) };
        mount::unmount(&mounted, lazy).await?;
        if !lazy {
            // A client that was told so can mount there again at once.
            mounted.mount.ended().await;
            self.mounts.remove(&mounted);
        }
        Ok(serde_json::Value::Null)
    }

    /// Ends as soon as the asking client is gone, if that is all there is; false if not.
    async fn retire(&self) -> bool {
        let is_idle = is_alone(self.clients.subscribe()).await && *self.mounts.count().borrow() == 0;
        if is_idle {
            self.retiring.notify_one();
        }
        is_idle
    }

    fn reports(&self, dir: Option<&Path>, detailed: bool) -> Vec<control::MountReport> {
        let mounts = self.mounts.all();
        let wanted = mounts.iter().filter(|mounted| dir.is_none_or(|dir| dir == mounted.request.dir));
        wanted
            .map(|mounted| {
                let report = report::mount(mounted);
                if detailed { report } else { control::MountReport { layers: Vec::new(), ..report } }
            })
            .collect()
    }

    fn status(&self, dir: Option<&Path>) -> Result<serde_json::Value, Failure> {
        let mounts = self.reports(dir, true);
        if let Some(dir) = dir
            && mounts.is_empty()
        {
            return Err(not_mounted(dir));
        }
        value(&control::StatusReport {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cache_dir: self.options.cache_dir.clone(),
            memory_spans: self.images.fetcher().memory_used(),
            memory_limit: self.images.fetcher().memory_limit(),
            memory_daemon: rss_anon(),
            bytes_in_flight: self.images.fetcher().outstanding(),
            mounts,
        })
    }

    async fn list_directory(
        &self,
        image: &control::Image,
        path: &[u8],
        recursive: bool,
        answers: &mut Answers,
    ) -> Result<serde_json::Value, Failure> {
        let events = answers.events.clone();
        let image = answers.while_running(query::open(&self.images, image, &events)).await?;
        let start = query::find_listed(&image.tree, path)?;
        for item in query::Walk::new(&image.tree, path, start, recursive) {
            answers.write(&Event::Item(item)).await?;
        }
        Ok(serde_json::Value::Null)
    }

    async fn read(
        &self,
        image: &control::Image,
        path: &[u8],
        answers: &mut Answers,
    ) -> Result<serde_json::Value, Failure> {
        let events = answers.events.clone();
        let image = answers.while_running(query::open(&self.images, image, &events)).await?;
        let mut reader = query::FileReader::new(&self.images, &image, path)?;
        while let Some(bytes) = reader.next().await? {
            answers.write(&Event::Data { length: bytes.len() as u64 }).await?;
            answers.writer.write_all(&bytes).await.map_err(|error| lost(&error))?;
        }
        Ok(serde_json::Value::Null)
    }

    async fn export(
        &self,
        image: &control::Image,
        selection: control::Selection,
        answers: &mut Answers,
    ) -> Result<serde_json::Value, Failure> {
        let events = answers.events.clone();
        self.mounts.keep_touched().await;
        let opening = parcels::open(&self.images, image, selection, &events);
        let mut parcel = answers.while_running(opening).await?;
        while let Some(bytes) = parcel.next().await {
            answers.write(&Event::Data { length: bytes.len() as u64 }).await?;
            answers.writer.write_all(&bytes).await.map_err(|error| lost(&error))?;
            answers.write(&Event::Progress(parcel.progress())).await?;
        }
        for text in parcel.finish().await? {
            answers.write(&Event::Warning { text }).await?;
        }
        Ok(serde_json::Value::Null)
    }
}

impl Answers {
    /// Runs `work` while sending on the events it produces, all of them before this returns.
    async fn while_running<T>(&mut self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        tokio::pin!(work);
        let result = loop {
            tokio::select! {
                result = &mut work => break result,
                Some(event) = self.queue.recv() => self.write(&event).await?,
            }
        };
        while let Ok(event) = self.queue.try_recv() {
            self.write(&event).await?;
        }
        result
    }

    async fn finish(mut self, result: Result<serde_json::Value, Failure>) {
        let last = match result {
            Ok(answer) => Event::Done { answer },
            Err(failure) => Event::Failed(failure),
        };
        if let Err(failure) = self.write(&last).await {
            tracing::debug!(%failure, "the answer is lost");
        }
    }

    async fn write(&mut self, event: &Event) -> Result<(), Failure> {
        let mut line = serde_json::to_vec(event).map_err(|error| Failure::of(Code::Other, &error))?;
        line.push(b'\n');
        self.writer.write_all(&line).await.map_err(|error| lost(&error))
    }
}

fn lost(error: &std::io::Error) -> Failure {
    Failure::io("the client is gone", error)
}

fn value(report: &impl serde::Serialize) -> Result<serde_json::Value, Failure> {
    serde_json::to_value(report).map_err(|error| Failure::of(Code::Other, &error))
}

/// Lets the kernel be given nothing more by itself.
async fn hush(served: Arc<Elsewhere<Served>>) {
    let hushed = tokio::task::spawn_blocking(move || served.connection.hush());
    if tokio::time::timeout(HUSHING, hushed).await.is_err() {
        tracing::warn!("the kernel is still being given what it has not asked for");
    }
}

/// The failure for a directory that this daemon has not mounted.
fn not_mounted(dir: &Path) -> Failure {
    let dir = crate::oci::Printable::path(dir);
    Failure::new(Code::NotFound, format!("{dir} is not a mount of this daemon"))
        .hint("`ocifs list` shows what is mounted")
}

async fn read_request(reader: &mut BufReader<OwnedReadHalf>) -> Result<Request, Failure> {
    let mut line = Vec::new();
    let mut bounded = reader.take(REQUEST_BYTES);
    bounded.read_until(b'\n', &mut line).await.map_err(|error| Failure::io("cannot read the request", &error))?;
    serde_json::from_slice(&line).map_err(|error| {
        Failure::of(Code::Usage, &error)
            .about("the daemon does not understand the request".to_owned())
            .hint("it may be older than this program: end its mounts, so that a new one starts")
    })
}

/// True once at most one client is left; false if others stay. One that has its answer counts until it has closed its
/// side, and a process that stood still hears of that late, so the time passes in short turns.
async fn is_alone(mut clients: watch::Receiver<usize>) -> bool {
    const TURNS: u32 = 20;
    for _ in 0..TURNS {
        if let Ok(alone) = tokio::time::timeout(FAREWELL / TURNS, clients.wait_for(|count| *count <= 1)).await {
            return alone.is_ok();
        }
    }
    false
}

/// Returns when the client closes its side; it says nothing more after its request.
async fn gone(reader: &mut BufReader<OwnedReadHalf>) {
    let mut ignored = [0; 64];
    while reader.read(&mut ignored).await.is_ok_and(|count| count > 0) {}
}

/// Ends a mount whose daemon is gone, without a daemon.
pub fn unmount_without_daemon(dir: &Path, lazy: bool) -> Result<(), Failure> {
    match fuse::mounted_at(dir) {
        Ok(Some(point)) if point.is_ocifs() => fuse::unmount_stale(dir, lazy).map_err(|error| Failure::from(&error)),
        Ok(_) => Err(not_mounted(dir)),
        Err(error) => Err(Failure::io("cannot read the mount table", &error)),
    }
}

/// Memory of this process that is no file's, in bytes (`RssAnon`, proc_pid_status(5)).
fn rss_anon() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn clients_that_left_while_the_daemon_stood_still_do_not_keep_it() {
        let clients = watch::Sender::new(2);
        let mut alone = std::pin::pin!(is_alone(clients.subscribe()));
        assert_eq!(alone.as_mut().now_or_never(), None);
        tokio::time::advance(5 * FAREWELL).await;
        assert_eq!(alone.as_mut().now_or_never(), None, "it has not heard of who has gone meanwhile");
        clients.send_replace(1);
        assert!(alone.await);
        clients.send_replace(2);
        assert!(!is_alone(clients.subscribe()).await, "one that stays");
    }
}
