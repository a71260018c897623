//! A long range of a blob as a stream of pieces: from the disk what is there, the rest from the source.
//!
//! Several ranged reads run ahead at once, because one connection seldom fills a line, and their answers are handed on
//! in order. What comes from the source is recorded in the blob store before it is verified; whoever reads the stream
//! discards the range if it turns out to be wrong.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use futures_util::stream::{self, StreamExt};

use super::{Error, Traffic, read_range};
use crate::limits;
use crate::source::BlobReader;
use crate::store::Blob;

/// Streams `range` of `blob` in order. Without a reader only what is on disk can be had.
pub(super) fn pieces<'a>(
    blob: &'a Arc<Blob>,
    reader: Option<&'a Arc<dyn BlobReader>>,
    range: Range<u64>,
    traffic: &'a Traffic,
) -> impl Stream<Item = Result<Bytes, Error>> + Send + 'a {
    let reads = chunks(range).map(move |chunk| piece(blob, reader, chunk, traffic));
    stream::iter(reads).buffered(limits::PARALLEL_READS)
}

/// The ranges in which `range` is read.
fn chunks(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let step = limits::READ_CHUNK;
    let count = (range.end - range.start).div_ceil(step);
    (0..count).map(move |number| {
        let start = range.start + number * step;
        start..range.end.min(start + step)
    })
}

/// The bytes of one chunk: from the disk what is there, the rest from the source and onto the disk.
async fn piece(
    blob: &Arc<Blob>,
    reader: Option<&Arc<dyn BlobReader>>,
    range: Range<u64>,
    traffic: &Traffic,
) -> Result<Bytes, Error> {
    let mut whole = BytesMut::new();
    let mut at = range.start;
    for gap in blob.missing(range.clone()) {
        append_local(&mut whole, blob, at..gap.start).await?;
        at = gap.end;
        let Some(reader) = reader else {
            return Err(Error::Offline { layer: blob.digest(), start: gap.start, end: gap.end });
        };
        let bytes = read_range(reader.as_ref(), gap.clone(), traffic).await?;
        let target = Arc::clone(blob);
        let copy = bytes.clone();
        let written = tokio::task::spawn_blocking(move || target.write(gap.start, &copy)).await;
        if let Err(error) = written.map_err(|_| Error::Interrupted)? {
            // The pass goes on from memory; what is not on disk will be fetched again when it is read.
            tracing::debug!(layer = %blob.digest(), %error, "layer bytes are not kept");
        }
        if whole.is_empty() && at == range.end {
            return Ok(bytes);
        }
        whole.extend_from_slice(&bytes);
    }
    append_local(&mut whole, blob, at..range.end).await?;
    Ok(whole.freeze())
}

async fn append_local(whole: &mut BytesMut, blob: &Arc<Blob>, range: Range<u64>) -> Result<(), Error> {
    if range.is_empty() {
        return Ok(());
    }
    let source = Arc::clone(blob);
    let wanted = range.clone();
    let read = tokio::task::spawn_blocking(move || source.read(wanted)).await.map_err(|_| Error::Interrupted)?;
    match read? {
        Some(bytes) => {
            whole.extend_from_slice(&bytes);
            Ok(())
        }
        None => Err(Error::Offline { layer: blob.digest(), start: range.start, end: range.end }),
    }
}
