//! A connection whose status line and headers may go out in small pieces.
//!
//! The HTTP library hands a head over in one piece, so the only place to slow it down is below the library. [`Slowly`] is how
//! the task that answers a request tells [`Paced`], the stream of its connection, to do so for the next answer.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

/// The end of a head (RFC 9112).
const END: &[u8] = b"\r\n\r\n";

/// How the next head goes out: pieces of so many bytes, each after a pause.
#[derive(Debug, Clone, Default)]
pub(super) struct Slowly(Arc<Mutex<Option<(usize, Duration)>>>);

impl Slowly {
    /// Makes the next head go out like this. Called before it is handed over.
    pub(super) fn send(&self, bytes: usize, every: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((bytes.max(1), every));
    }

    fn take(&self) -> Option<(usize, Duration)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A head on its way.
struct Sending {
    left: usize,
    bytes: usize,
    every: Duration,
    pause: Pin<Box<Sleep>>,
}

/// The stream of a connection.
pub(super) struct Paced {
    stream: TcpStream,
    slowly: Slowly,
    sending: Option<Sending>,
}

impl Paced {
    pub(super) fn new(stream: TcpStream, slowly: Slowly) -> Self {
        Self { stream, slowly, sending: None }
    }
}

impl AsyncRead for Paced {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl AsyncWrite for Paced {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.sending.is_none()
            && let Some((bytes, every)) = this.slowly.take()
        {
            let left = from.windows(END.len()).position(|window| window == END).map_or(from.len(), |at| at + END.len());
            this.sending = Some(Sending { left, bytes, every, pause: Box::pin(tokio::time::sleep(every)) });
        }
        let Some(sending) = &mut this.sending else { return Pin::new(&mut this.stream).poll_write(cx, from) };
        ready!(sending.pause.as_mut().poll(cx));
        let piece = from.len().min(sending.left).min(sending.bytes);
        let written = ready!(Pin::new(&mut this.stream).poll_write(cx, &from[..piece]))?;
        sending.left -= written;
        if sending.left == 0 {
            this.sending = None;
        } else {
            sending.pause = Box::pin(tokio::time::sleep(sending.every));
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
