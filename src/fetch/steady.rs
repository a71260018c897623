//! A ranged read that does not hang: when an answer stalls, its rest is asked for once more, and whoever answers first
//! goes on.
//!
//! A connection that stops without closing (a path that changed, a server that was frozen, a load balancer that forgot it)
//! costs a reader the time-outs of the client underneath, which must be long. A second request costs a round trip.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;

use super::{Error, Traffic};
use crate::source::{self, BlobReader, ByteStream};

/// A second request for the rest, on its way.
type Second = std::pin::Pin<Box<dyn Future<Output = Result<ByteStream, source::Error>> + Send>>;

/// The answer to one ranged read.
pub(super) struct Steady<'a> {
    reader: Arc<dyn BlobReader>,
    /// What has not arrived.
    rest: Range<u64>,
    stream: ByteStream,
    second: Option<Second>,
    traffic: &'a Traffic,
    patience: Duration,
}

impl<'a> Steady<'a> {
    /// Sends the read and waits for its answer to begin. An answer that gives nothing for `patience` counts as stalled.
    pub(super) async fn open(
        reader: Arc<dyn BlobReader>,
        range: Range<u64>,
        traffic: &'a Traffic,
        patience: Duration,
    ) -> Result<Self, Error> {
        traffic.request();
        let mut first = request(&reader, range.clone());
        let opened = tokio::time::timeout(patience, &mut first).await;
        let stream = match opened {
            Ok(stream) => stream?,
            Err(_) => {
                tracing::debug!(start = range.start, "no answer, asking again");
                traffic.request();
                let mut second = request(&reader, range.clone());
                tokio::select! {
                    stream = &mut first => stream?,
                    stream = &mut second => match stream {
                        Ok(stream) => stream,
                        Err(_) => first.await?,
                    },
                }
            }
        };
        Ok(Self { reader, rest: range, stream, second: None, traffic, patience })
    }

    /// The next bytes; none at the end.
    pub(super) async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        loop {
            let item = match &mut self.second {
                None => match tokio::time::timeout(self.patience, self.stream.next()).await {
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
                },
            };
            self.second = None;
            let piece = match item? {
                Ok(piece) => piece,
                Err(error) => return Some(Err(error.into())),
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
