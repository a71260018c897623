//! The daemon: one process per cache directory that owns the cache and serves all mounts.
//!
//! [`control`] is what programs say to it over a unix socket, one JSON value a line. [`run`] serves until nothing is
//! mounted and nobody has asked for anything for a while, or until it is told to stop; [`Client`] reaches a running
//! daemon or starts one.
//!
//! Two daemons can never share a cache: the store's lock decides, and the socket is only bound by who holds it.

mod client;
pub mod control;
mod events;
mod failure;
mod fill;
mod indexing;
mod lacking;
mod memory;
mod mount;
mod mounts;
mod parcels;
mod profiles;
mod query;
mod report;
mod served;
mod server;
mod signals;
mod socket;
mod touched;
mod upkeep;
mod ztocs;

use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::fetch::{self, Fetcher};
use crate::image::Images;
use crate::store::{Limits, Store};

use socket::Listener;

pub use client::{Client, Connection, Program};
pub use failure::{Code, Failure};
pub use server::unmount_without_daemon;
pub use signals::Signals;
pub use socket::{make_runtime_dir, socket_path};

/// Worker threads of the runtime. They move bytes and decide; decoding and file I/O run on the blocking pool.
const WORKERS: usize = 2;

/// Threads that may block on files and decoding at once.
const BLOCKING: usize = 32;

/// How a daemon is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// The cache directory.
    pub cache_dir: PathBuf,
    /// How large the cache may grow, in bytes; by its file system if none.
    pub cache_size: Option<u64>,
    /// How much memory holds decoded data, in bytes; [`fetch::Options`] has the default.
    pub memory_size: Option<u64>,
    /// The directory of the control socket.
    pub runtime_dir: PathBuf,
    /// Ends by itself after this long without a mount or a client; never if none.
    pub idle: Option<Duration>,
}

/// How a daemon came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It was idle, its mount ended, or it was told to stop.
    Finished,
    /// It was told to stop before its first mount was made.
    Interrupted,
}

/// Runs a daemon in this process until it is idle, told to stop, or terminated.
///
/// `ready` is told by one line when requests can be made, or why they cannot. With `first`, that mount is made before
/// anything else, and the daemon ends when it ends.
pub fn run(options: &Options, ready: Option<OwnedFd>, first: Option<control::Mount>) -> Result<End, Failure> {
    memory::give_back_large_buffers();
    leave_no_core();
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING)
        .thread_name("runtime")
        .enable_all()
        .build()
        .map_err(|error| Failure::io("cannot start threads", &error))
        .and_then(|runtime| {
            let outcome = runtime.block_on(serve(options, ready.as_ref(), first));
            // Work nobody waits for any more must not hold up the end.
            runtime.shutdown_timeout(Duration::from_secs(2));
            outcome
        });
    if let (Err(failure), Some(ready)) = (&outcome, ready) {
        tell(&ready, &serde_json::to_string(failure).unwrap_or_default());
    }
    outcome
}

/// Keeps the memory of this process, which has passwords and tokens in it, from being written to disk if it crashes.
fn leave_no_core() {
    let none = Rlimit { current: Some(0), ..getrlimit(Resource::Core) };
    if let Err(error) = setrlimit(Resource::Core, none) {
        tracing::debug!(%error, "a crash may leave a core file");
    }
}

async fn serve(options: &Options, ready: Option<&OwnedFd>, first: Option<control::Mount>) -> Result<End, Failure> {
    let mut signals =
        Signals::of_daemon(options.idle.is_none()).map_err(|error| Failure::io("cannot wait for signals", &error))?;
    let store = Arc::new(Store::open(&options.cache_dir).map_err(|error| Failure::from(&error))?);
    let mut limits = Limits::of_file_system(store.dir()).map_err(|error| Failure::from(&error))?;
    limits.max_bytes = options.cache_size.or(limits.max_bytes);
    store.set_limits(limits);
    let usual = fetch::Options::default();
    let fetching = fetch::Options { memory: options.memory_size.unwrap_or(usual.memory), ..usual };
    let images = Images::new(store, Fetcher::new(fetching));
    let listener = Listener::bind(&socket_path(&options.cache_dir, &options.runtime_dir))?;
    let server = Arc::new(server::Server::new(images, options.clone()));
    if let Some(mount) = first {
        let made = server.mount_in_foreground(mount);
        tokio::select! {
            made = made => made?,
            _ = signals.end() => {
                server.unmount_all().await;
                return Ok(End::Interrupted);
            }
        }
    }
    if let Some(ready) = ready {
        tell(ready, "ready");
    }
    tracing::info!(cache = %options.cache_dir.display(), "serving");
    tokio::select! {
        () = server.accept(listener) => {}
        () = server.finished() => {}
        () = server.keep() => {}
        _ = signals.end() => {}
    }
    // The socket is gone with the listener: new clients start a new daemon instead of waiting for this one to end.
    server.unmount_all().await;
    server.evict_last().await;
    Ok(End::Finished)
}

/// Tells the process that started this one. It may have given up waiting, which is its own affair.
fn tell(ready: &OwnedFd, line: &str) {
    let told = ready.try_clone().map(std::fs::File::from).and_then(|mut pipe| writeln!(pipe, "{line}"));
    if let Err(error) = told {
        tracing::debug!(%error, "nobody waits for the daemon to be ready");
    }
}
