//! Sends the body of an answer piece by piece, at the [`Pace`] its faults set.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::Frame;

use super::content::Blob;
use super::fault::{Cut, End, Pace};
use super::log::Log;

/// The body of every answer.
pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Most bytes handed to the connection at once.
const PIECE: usize = 256 << 10;

/// How long a body that is to be cut waits, so that what was sent before reaches the client: an error makes the HTTP
/// library drop its buffer together with the connection.
const FLUSH: Duration = Duration::from_millis(30);

/// No body at all, for HEAD.
pub(super) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body about to be sent.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) payload: Blob,
    /// The bytes of the payload to send.
    pub(super) range: Range<u64>,
    pub(super) pace: Pace,
    pub(super) log: Log,
    /// The number of the request in the log.
    pub(super) number: u64,
    pub(super) socket: Arc<OwnedFd>,
}

/// A body on its way.
struct Sending {
    flow: Flow,
    source: Source,
    next: u64,
}

enum Source {
    Memory(Bytes),
    Unopened(Arc<std::path::Path>),
    File(Arc<File>),
}

impl Flow {
    pub(super) fn into_body(self) -> Body {
        let source = match &self.payload {
            Blob::Memory(bytes) => Source::Memory(bytes.clone()),
            Blob::File { path, .. } => Source::Unopened(Arc::clone(path)),
        };
        let sending = Sending { next: self.range.start, source, flow: self };
        let pieces = stream::unfold(sending, |mut sending| async move {
            let piece = sending.piece().await?;
            Some((piece.map(Frame::data), sending))
        });
        StreamBody::new(pieces).boxed_unsync()
    }
}

impl Drop for Sending {
    /// The answer is over, whether it was sent, cut or given up by the client.
    fn drop(&mut self) {
        self.flow.log.ended(self.flow.number);
    }
}

impl Sending {
    /// The next piece; none at the end.
    async fn piece(&mut self) -> Option<io::Result<Bytes>> {
        let mut end = self.flow.range.end;
        if let Some(cut) = self.flow.pace.cut {
            let stop = self.flow.range.start.saturating_add(cut.after);
            if self.next >= stop && stop < end {
                return Some(Err(self.cut(cut).await));
            }
            end = end.min(stop);
        }
        if self.next >= end {
            return None;
        }
        let mut most = PIECE;
        if let Some((bytes, every)) = self.flow.pace.drip {
            tokio::time::sleep(every).await;
            most = most.min(bytes);
        }
        let length = usize::try_from(end - self.next).map_or(most, |left| left.min(most));
        let piece = match self.read(length).await {
            Ok(piece) => self.corrupt(piece),
            Err(error) => return Some(Err(error)),
        };
        self.next += piece.len() as u64;
        self.flow.log.sent(self.flow.number, piece.len() as u64);
        Some(Ok(piece))
    }

    /// Ends the body early; the error makes the HTTP library close the connection.
    async fn cut(&self, cut: Cut) -> io::Error {
        tokio::time::sleep(FLUSH).await;
        match cut.end {
            End::Close => {}
            End::Reset => {
                // A socket that lingers for no time is closed by a reset (socket(7)).
                if let Err(error) = rustix::net::sockopt::set_socket_linger(&self.flow.socket, Some(Duration::ZERO)) {
                    tracing::debug!(%error, "a connection is closed where it was to be reset");
                }
            }
            End::Stall => std::future::pending().await,
        }
        io::Error::new(io::ErrorKind::ConnectionAborted, "cut by a fault")
    }

    /// Reads `length` bytes at the present place. Files are read on the blocking pool.
    async fn read(&mut self, length: usize) -> io::Result<Bytes> {
        if let Source::Memory(bytes) = &self.source {
            let start = usize::try_from(self.next).unwrap_or(usize::MAX).min(bytes.len());
            return Ok(bytes.slice(start..start.saturating_add(length).min(bytes.len())));
        }
        let place = self.next;
        let opened = match &self.source {
            Source::File(file) => Ok(Arc::clone(file)),
            Source::Unopened(path) => Err(Arc::clone(path)),
            Source::Memory(_) => unreachable!("answered above"),
        };
        let task = tokio::task::spawn_blocking(move || -> io::Result<(Arc<File>, Vec<u8>)> {
            let file = match opened {
                Ok(file) => file,
                Err(path) => Arc::new(File::open(path)?),
            };
            let mut buffer = vec![0; length];
            file.read_exact_at(&mut buffer, place)?;
            Ok((file, buffer))
        });
        let (file, buffer) = task.await.map_err(io::Error::other)??;
        self.source = Source::File(file);
        Ok(buffer.into())
    }

    /// Inverts the bytes that are to be wrong.
    fn corrupt(&self, piece: Bytes) -> Bytes {
        let places: Vec<usize> = (self.flow.pace.corrupt.iter())
            .filter_map(|offset| usize::try_from(offset.checked_sub(self.next)?).ok())
            .filter(|place| *place < piece.len())
            .collect();
        if places.is_empty() {
            return piece;
        }
        let mut piece = piece.to_vec();
        for place in places {
            piece[place] ^= 0xff;
        }
        piece.into()
    }
}
