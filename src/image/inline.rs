//! Blobs that a descriptor embeds (`data`, image-spec descriptor.md).

use std::ops::Range;

use bytes::Bytes;
use futures_util::stream;

use crate::source::{BlobReader, BoxFuture, ByteStream, Error, ErrorKind};

/// A blob whose bytes came with its descriptor, already verified (B-057).
#[derive(Debug)]
pub(super) struct InlineBlob(pub(super) Bytes);

impl BlobReader for InlineBlob {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, Error>> {
        let within = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
        let piece = within.filter(|(start, end)| start <= end && *end <= self.0.len()).map(|(s, e)| self.0.slice(s..e));
        Box::pin(async move {
            match piece {
                Some(bytes) => Ok(Box::pin(stream::iter([Ok(bytes)])) as ByteStream),
                None => Err(Error::new(ErrorKind::Corrupt, "embedded data is shorter than its descriptor says")),
            }
        })
    }
}
