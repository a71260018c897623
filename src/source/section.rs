//! Bytes of local files: a whole blob file of a layout, or a member in the middle of an archive.
//!
//! A [`Section`] is a stretch of an open file. It is read with `pread`, in small pieces on the blocking pool, so that
//! many readers share one descriptor and none occupies a thread for longer than a piece takes.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;

use super::{ByteStream, Error, ErrorKind};

/// Bytes per piece of a stream.
pub(super) const PIECE: u64 = 256 << 10;

/// A stretch of an open file.
#[derive(Debug, Clone)]
pub(super) struct Section {
    file: Arc<File>,
    start: u64,
    length: u64,
    /// How messages name it, escaped.
    label: Arc<str>,
}

impl Section {
    /// The bytes from `start` on; the caller has made sure that `start + length` does not overflow.
    pub(super) fn new(file: Arc<File>, start: u64, length: u64, label: &str) -> Self {
        Self { file, start, length, label: label.into() }
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn label(&self) -> &str {
        &self.label
    }

    /// Fills `buffer` with the bytes at `offset`; blocks.
    pub(super) fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        self.file.read_exact_at(buffer, self.start + offset).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                Error::new(ErrorKind::Corrupt, format!("{} is shorter than its {} bytes", self.label, self.length))
            }
            _ => Error::new(ErrorKind::Io, format!("cannot read {}", self.label)).because(error),
        })
    }

    /// Reads a document of at most `limit` bytes; blocks.
    pub(super) fn read_document(&self, limit: u64) -> Result<Bytes, Error> {
        if self.length > limit {
            let message = format!("{} is {} bytes long, the limit is {limit}", self.label, self.length);
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        self.read(0..self.length)
    }

    /// Calls `each` with the bytes from first to last, a piece at a time; blocks.
    pub(super) fn for_each_piece(&self, mut each: impl FnMut(&[u8])) -> Result<(), Error> {
        let mut offset = 0;
        while offset < self.length {
            let piece = self.read(offset..self.length.min(offset + PIECE))?;
            offset += piece.len() as u64;
            each(&piece);
        }
        Ok(())
    }

    fn read(&self, range: Range<u64>) -> Result<Bytes, Error> {
        let length = usize::try_from(range.end - range.start).map_err(|error| {
            Error::new(ErrorKind::Invalid, format!("{} does not fit into memory", self.label)).because(error)
        })?;
        let mut buffer = vec![0; length];
        self.read_exact_at(&mut buffer, range.start)?;
        Ok(buffer.into())
    }

    /// Streams the bytes of `range`, which lies within the section.
    pub(super) fn stream(&self, range: Range<u64>) -> ByteStream {
        Box::pin(stream::try_unfold((self.clone(), range), |(section, range)| async move {
            if range.is_empty() {
                return Ok(None);
            }
            let end = range.end.min(range.start + PIECE);
            let start = range.start;
            let reader = section.clone();
            let piece = blocking(move || reader.read(start..end)).await?;
            Ok(Some((piece, (section, end..range.end))))
        }))
    }
}

/// Runs file I/O where it may block.
pub(super) async fn blocking<T, F>(work: F) -> Result<T, Error>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, Error> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::new(ErrorKind::Io, "a file read was abandoned").because(error)),
    }
}
