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

use super::{Error, Layer, Traffic, read_range};
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

/// Streams `range` of `layer` in order, together with whoever streams it at the same time: each chunk is asked for once.
pub(super) fn pieces_of(
    layer: &Arc<Layer>,
    range: Range<u64>,
) -> impl Stream<Item = Result<Bytes, Error>> + Send + use<> {
    let layer = Arc::clone(layer);
    let reads = chunks(range).map(move |chunk| {
        let (joined, working, key) = (Arc::clone(&layer), Arc::clone(&layer), (chunk.start, chunk.end));
        async move {
            let work = || async move { piece(&working.blob, working.reader.as_ref(), chunk, &working.traffic).await };
            joined.chunks.join(key, work).await.unwrap_or(Err(Error::Interrupted))
        }
    });
    stream::iter(reads).buffered(limits::PARALLEL_READS)
}

/// The ranges in which `range` is read.
pub(super) fn chunks(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
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
    let mut parts = Vec::new();
    let mut at = range.start;
    for gap in blob.missing(range.clone()) {
        if at < gap.start {
            parts.push(local(blob, reader, at..gap.start, traffic).await?);
        }
        at = gap.end;
        parts.push(remote(blob, reader, gap, traffic).await?);
    }
    if at < range.end {
        parts.push(local(blob, reader, at..range.end, traffic).await?);
    }
    if parts.len() == 1 {
        return Ok(parts.remove(0));
    }
    let mut whole = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
    parts.iter().for_each(|part| whole.extend_from_slice(part));
    Ok(whole.freeze())
}

/// Bytes that the blob store said it has. If it has lost them since, or its disk fails, the source is asked.
async fn local(
    blob: &Arc<Blob>,
    reader: Option<&Arc<dyn BlobReader>>,
    range: Range<u64>,
    traffic: &Traffic,
) -> Result<Bytes, Error> {
    let (source, wanted) = (Arc::clone(blob), range.clone());
    let read = tokio::task::spawn_blocking(move || source.read(wanted)).await.map_err(|_| Error::Interrupted)?;
    match read {
        Ok(Some(bytes)) => return Ok(bytes),
        Ok(None) => tracing::debug!(layer = %blob.digest(), ?range, "cached bytes have vanished"),
        Err(error) if reader.is_none() => return Err(error.into()),
        Err(error) => tracing::warn!(layer = %blob.digest(), %error, "cached blob is unreadable"),
    }
    remote(blob, reader, range, traffic).await
}

/// Bytes of the source, which are put onto the disk too.
async fn remote(
    blob: &Arc<Blob>,
    reader: Option<&Arc<dyn BlobReader>>,
    range: Range<u64>,
    traffic: &Traffic,
) -> Result<Bytes, Error> {
    let Some(reader) = reader else {
        return Err(Error::Offline { layer: blob.digest(), start: range.start, end: range.end });
    };
    let bytes = read_range(reader.as_ref(), range.clone(), traffic).await?;
    let (target, copy) = (Arc::clone(blob), bytes.clone());
    let written = tokio::task::spawn_blocking(move || target.write(range.start, &copy)).await;
    if let Err(error) = written.map_err(|_| Error::Interrupted)? {
        // The pass goes on from memory; what is not on disk will be fetched again when it is read.
        tracing::debug!(layer = %blob.digest(), %error, "layer bytes are not kept");
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;
    use crate::source::{BoxFuture, ByteStream};
    use crate::store::Store;

    #[derive(Debug)]
    struct Memory(Bytes);

    impl BlobReader for Memory {
        fn size(&self) -> u64 {
            self.0.len() as u64
        }

        fn read(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, crate::source::Error>> {
            let bytes = self.0.slice(range.start as usize..range.end as usize);
            Box::pin(async move { Ok(Box::pin(stream::iter([Ok(bytes)])) as ByteStream) })
        }
    }

    #[tokio::test]
    async fn bytes_that_vanish_from_the_disk_come_from_the_source_and_without_one_are_offline() {
        let bytes = Bytes::from((0..100_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>());
        let cache = tempfile::tempdir().expect("a temporary directory");
        let store = Store::open(&cache.path().join("cache")).expect("a new store");
        let blob = store.blob(&Digest::sha256(&bytes), bytes.len() as u64).expect("a new blob");
        let (reader, traffic): (Arc<dyn BlobReader>, _) = (Arc::new(Memory(bytes.clone())), Traffic::default());
        // The file is cut behind the store's back: what it believes to have is not there when it is read.
        let cut = || {
            blob.write(50_000, &bytes[50_000..200_000]).expect("it can be written");
            let partial = std::fs::read_dir(store.dir().join("blobs")).expect("a directory");
            let partial = partial.map(|entry| entry.expect("an entry").path());
            let partial = partial.filter(|path| path.extension().is_some_and(|kind| kind == "partial"));
            for path in partial {
                let file = std::fs::File::options().write(true).open(path).expect("it is ours");
                file.set_len(100_000).expect("it can be cut");
            }
        };
        cut();
        let whole = piece(&blob, Some(&reader), 0..bytes.len() as u64, &traffic).await.expect("the source has them");
        assert!(whole == bytes);
        blob.discard(0..bytes.len() as u64).expect("it can be forgotten");
        cut();
        let alone = piece(&blob, None, 50_000..200_000, &traffic).await;
        assert!(matches!(alone, Err(Error::Offline { start: 50_000, end: 200_000, .. })), "{alone:?}");
    }
}
