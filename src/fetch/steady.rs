//! A ranged read that does not hang: when an answer stalls, its rest is asked for once more, and whoever answers first
//! goes on.
//!
//! If one of the two fails, the other decides.
//!
//! A connection that stops without closing (a path that changed, a server that was frozen, a load balancer that forgot it)
//! costs a reader the time-outs of the client underneath, which must be long. A second request costs a round trip.
//!
//! If the second stalls as well, whoever else asks may have better luck; if nobody has ([`Watch`]), the source is away, and
//! the second request is made anew every few seconds: a connection that is made after a path has healed works at once, while
//! one that has lost packets for a while waits long before it sends again.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::time::{Instant, sleep, timeout};

use super::outage::Outages;
use super::{Error, Traffic};
use crate::source::{self, BlobReader, ByteStream};

/// A second request for the rest, on its way.
type Second = std::pin::Pin<Box<dyn Future<Output = Result<ByteStream, source::Error>> + Send>>;

/// How often the second request to a source that is away is made anew.
pub(super) const ANEW: Duration = Duration::from_secs(5);

/// Whose silence it is when an answer stalls.
pub(super) struct Watch {
    pub(super) outages: Arc<Outages>,
    pub(super) place: Arc<str>,
    /// How often a request to it is made anew when it is away.
    pub(super) anew: Duration,
}

impl Watch {
    /// Returns when a request, of which nothing has come since `since`, should be made anew.
    async fn is_in_vain(&self, since: Instant) {
        loop {
            sleep(self.anew).await;
            self.outages.silent(&self.place, since);
            if self.outages.is_away(&self.place) {
                return;
            }
        }
    }
}

/// The answer to one ranged read.
pub(super) struct Steady<'a> {
    reader: Arc<dyn BlobReader>,
    /// What has not arrived.
    rest: Range<u64>,
    stream: ByteStream,
    second: Option<Second>,
    traffic: &'a Traffic,
    patience: Duration,
    watch: Watch,
    /// When bytes came last.
    came: Instant,
}

impl<'a> Steady<'a> {
    /// Sends the read and waits for its answer to begin. An answer that gives nothing for `patience` counts as stalled.
    pub(super) async fn open(
        reader: Arc<dyn BlobReader>,
        range: Range<u64>,
        traffic: &'a Traffic,
        patience: Duration,
        watch: Watch,
    ) -> Result<Self, Error> {
        let sent = Instant::now();
        traffic.request();
        let mut first = request(&reader, range.clone());
        let opened = timeout(patience, &mut first).await;
        let stream = match opened {
            Ok(stream) => stream?,
            Err(_) => {
                tracing::debug!(start = range.start, "no answer, asking again");
                traffic.request();
                let mut second = request(&reader, range.clone());
                loop {
                    tokio::select! {
                        stream = &mut first => match stream {
                            Ok(stream) => break stream,
                            Err(error) => break second.await.map_err(|_| error)?,
                        },
                        stream = &mut second => match stream {
                            Ok(stream) => break stream,
                            Err(_) => break first.await?,
                        },
                        () = watch.is_in_vain(sent) => {
                            traffic.request();
                            second = request(&reader, range.clone());
                        }
                    }
                }
            }
        };
        Ok(Self { reader, rest: range, stream, second: None, traffic, patience, watch, came: Instant::now() })
    }

    /// The next bytes; none at the end.
    pub(super) async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        loop {
            let item = match &mut self.second {
                None => match timeout(self.patience, self.stream.next()).await {
                    Ok(item) => item,
                    Err(_) => {
                        tracing::debug!(start = self.rest.start, "answer stalls, asking for the rest");
                        self.traffic.request();
                        self.second = Some(request(&self.reader, self.rest.clone()));
                        continue;
                    }
                },
                Some(second) => tokio::select! {
                    item = self.stream.next() => item,
                    answer = second => {
                        self.second = None;
                        match answer {
                            Ok(stream) => self.stream = stream,
                            // The first may still come; asking for ever would not help it.
                            Err(_) => self.patience = self.patience.saturating_mul(2),
                        }
                        continue;
                    }
                    () = self.watch.is_in_vain(self.came) => {
                        self.traffic.request();
                        self.second = Some(request(&self.reader, self.rest.clone()));
                        continue;
                    }
                },
            };
            let second = self.second.take();
            self.came = Instant::now();
            let piece = match (item?, second) {
                (Ok(piece), _) => piece,
                (Err(error), None) => return Some(Err(error.into())),
                (Err(error), Some(second)) => match second.await {
                    Ok(stream) => {
                        self.stream = stream;
                        continue;
                    }
                    Err(_) => return Some(Err(error.into())),
                },
            };
            self.rest.start += piece.len() as u64;
            self.traffic.received(piece.len());
            return Some(Ok(piece));
        }
    }
}

fn request(reader: &Arc<dyn BlobReader>, range: Range<u64>) -> Second {
    let reader = Arc::clone(reader);
    Box::pin(async move { reader.read(range).await })
}
