//! A registry inside this process: the distribution specification, on the loopback interface only.
//!
//! The demo needs a registry without a network, and the tests need one that misbehaves on demand and remembers what it
//! was asked. [`Content`] is what it holds, [`Registry`] serves it, a [`Record`] says what one request asked and got, and
//! a [`Fault`] is how an answer may go wrong. Everything else is as the specification has it, so that other clients
//! (curl, skopeo) pull from it too: what they accept is what keeps this registry honest.
//!
//! Served: `GET /v2/`, manifests by tag and digest, blobs with single ranges, tag lists and referrers with pagination
//! (the latter can be switched off), uploads and mounts, and removing manifests. Catalogues are not, which a client sees
//! as `404`. Besides these there is a token endpoint at [`TOKEN_PATH`] for [`Fault::Bearer`].

mod answer;
mod body;
mod content;
mod fault;
mod head;
mod log;
mod range;
mod referrers;
mod request;
mod token;
mod upload;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::limits::DEMO_CONNECTIONS;

pub use content::Content;
pub use fault::{Answer, Fault};
pub use log::Record;
pub use request::{Endpoint, Request};
pub use token::{Bearer, Credentials, TOKEN_PATH};

/// How long answers under way may go on after the registry was dropped, before their connections are cut.
const GRACE: Duration = Duration::from_millis(500);

/// What every connection works with.
#[derive(Debug)]
struct Shared {
    addr: SocketAddr,
    content: Content,
    log: log::Log,
    faults: fault::Script,
    tokens: token::Tokens,
    uploads: upload::Uploads,
    /// Entries on one page of referrers; 0 for a registry without such an API.
    referrers: AtomicUsize,
}

/// Entries on one page of referrers unless a test wants fewer.
const REFERRERS: usize = 100;

/// A running registry; dropping it stops it.
///
/// It runs as tasks of the tokio runtime it was started on: one that accepts, and one for each connection (at most
/// [`DEMO_CONNECTIONS`]). After the drop it accepts nothing more, idle connections close at once, and answers
/// under way have half a second to end.
#[derive(Debug)]
pub struct Registry {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Registry {
    /// Serves `content` on a free port of 127.0.0.1.
    ///
    /// Must be called on a tokio runtime with I/O and time enabled. Content may still be added later.
    pub async fn start(content: Content) -> io::Result<Self> {
        Self::start_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), content).await
    }

    /// Like [`Self::start`], at a given address: how a test brings a registry back after an outage.
    ///
    /// Addresses that other machines can reach are refused: this is no registry to be seen by a network.
    pub async fn start_at(addr: SocketAddr, content: Content) -> io::Result<Self> {
        if !addr.ip().is_loopback() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{addr} is not a loopback address")));
        }
        let listener = TcpListener::bind(addr).await?;
        let shared = Arc::new(Shared {
            addr: listener.local_addr()?,
            content,
            log: log::Log::default(),
            faults: fault::Script::default(),
            tokens: token::Tokens::default(),
            uploads: upload::Uploads::default(),
            referrers: AtomicUsize::new(REFERRERS),
        });
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(accept(listener, Arc::clone(&shared), stopped));
        Ok(Self { shared, stop, task })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.shared.addr
    }

    /// What it serves.
    pub fn content(&self) -> &Content {
        &self.shared.content
    }

    /// What was asked so far, in the order of arrival, requests under way included.
    ///
    /// The last [`crate::limits::DEMO_REQUESTS`] are remembered.
    pub fn requests(&self) -> Vec<Record> {
        self.shared.log.records()
    }

    /// Forgets what was asked so far, so that [`Self::requests`] shows what comes next. Numbers and attempts go on.
    pub fn forget_requests(&self) {
        self.shared.log.forget();
    }

    /// Lets `hook` decide, for every request from now on, whether and how its answer goes wrong.
    ///
    /// The hook runs on the connection's task and must not block. It replaces the one before it.
    pub fn set_faults(&self, hook: impl Fn(&Request) -> Option<Fault> + Send + Sync + 'static) {
        self.shared.faults.set(Some(Arc::new(hook)));
    }

    /// Answers every request from now on as it should be answered.
    pub fn clear_faults(&self) {
        self.shared.faults.set(None);
    }

    /// Serves referrers in pages of this many entries from now on; with 0 like a registry that has no such API.
    pub fn set_referrers(&self, page: usize) {
        self.shared.referrers.store(page, Ordering::Relaxed);
    }

    /// Makes all tokens issued so far invalid, as a registry does that was restarted with a new key.
    pub fn revoke_tokens(&self) {
        self.shared.tokens.revoke();
    }

    /// Stops as dropping does, and returns when the last connection is closed and the port is free.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        if let Err(error) = (&mut self.task).await {
            tracing::debug!(%error, "the embedded registry ended with an error, which changes nothing after its end");
        }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

/// Accepts connections until told to stop, then waits for them, but not for long.
async fn accept(listener: TcpListener, shared: Arc<Shared>, mut stopped: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = told(&mut stopped) => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < DEMO_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve(stream, Arc::clone(&shared), stopped.clone()));
                }
                // Out of descriptors, or a peer that was gone before it was accepted: the next one may do better.
                Err(error) => {
                    tracing::debug!(%error, "the embedded registry could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            },
        }
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, all).await.is_err() {
        connections.shutdown().await;
    }
}

/// Returns when the registry is to stop, or was dropped.
async fn told(stopped: &mut watch::Receiver<bool>) {
    drop(stopped.wait_for(|stopped| *stopped).await);
}

/// Serves one connection until the client leaves, a fault cuts it, or the registry stops.
async fn serve(stream: TcpStream, shared: Arc<Shared>, mut stopped: watch::Receiver<bool>) {
    // The second descriptor is how a fault turns the close of the connection into a reset.
    let own = match stream.set_nodelay(true).and_then(|()| stream.as_fd().try_clone_to_owned()) {
        Ok(socket) => answer::Connection { socket: Arc::new(socket), head: head::Slowly::default() },
        Err(error) => return tracing::debug!(%error, "the embedded registry lost a connection at its start"),
    };
    let stream = TokioIo::new(head::Paced::new(stream, own.head.clone()));
    let service = service_fn(move |request| {
        let (shared, own) = (Arc::clone(&shared), own.clone());
        async move { Ok::<_, std::convert::Infallible>(answer::answer(&shared, own, request).await) }
    });
    let connection = http1::Builder::new().timer(TokioTimer::new()).serve_connection(stream, service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = told(&mut stopped) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        // Clients leave when they have what they want, and cut connections are what some faults are for.
        tracing::debug!(%error, "a connection to the embedded registry ended early");
    }
}

#[cfg(test)]
mod tests;
