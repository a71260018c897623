//! First contact: a layer's compressed bytes become its index in one streamed pass.
//!
//! Hashing costs as much as inflating, so the work is cut into stages on threads of their own, joined by bounded
//! channels; memory does not depend on the layer's size, except for the index itself.
//!
//! ```text
//! caller's thread      index-unpack          index-entries             index-spans
//! pieces ─ digest ──►  decompress ─┬──────►  tar, files' SHA-256 ──►   BLAKE3, seek points, windows
//!          and size    and check   │         entries                   spans
//!                                  └──────►  index-diffid: SHA-256 of the stream
//! ```
//!
//! A stage that fails drops its channels, so its neighbours stop too; the caller's thread goes on reading and hashing,
//! because only the digest tells whether a malformed layer is what the image names or bytes that got damaged on the
//! way. A stage that panics does the same, and the panic continues on the caller's thread.
//!
//! Nothing depends on timing or on how the pieces are cut: chunks have a fixed size, and every decision is made at a place
//! in the stream. Equal layers give equal indexes.

mod chunk;
mod contents;
mod spans;
mod unpack;

use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, Scope, ScopedJoinHandle, scope};

use bytes::Bytes;

use super::format::{self, Content};
use super::{BuildError, Compression, Expected, LayerIndex, Rejected};
use crate::oci::{Algorithm, Digest, Hasher};
use crate::{codec, tar};

use chunk::Chunk;
use contents::Examined;
use spans::Spans;
use unpack::Unpacked;

/// Pieces and chunks that may wait between two stages: enough to even out stages of uneven speed.
const QUEUE: usize = 6;

/// Why a stage ended early.
#[derive(Debug)]
enum Stop {
    /// A stage behind it ended early, and knows why.
    Downstream,
    /// The stream is malformed.
    Codec(codec::Error),
    /// The archive is malformed.
    Tar(tar::Error),
    /// A bound is passed.
    Limit(&'static str),
}

impl From<codec::Error> for Stop {
    fn from(error: codec::Error) -> Self {
        Self::Codec(error)
    }
}

impl From<tar::Error> for Stop {
    fn from(error: tar::Error) -> Self {
        Self::Tar(error)
    }
}

/// Indexes a layer from its compressed bytes in order, verifying the blob's digest and size and the diffID.
///
/// Blocks the calling thread and uses others of its own; `pieces` yields the whole blob in order and may block.
/// The first error of `pieces` is handed back as [`BuildError::Input`].
///
/// # Panics
///
/// If the system refuses a thread.
pub fn build<E>(
    pieces: impl Iterator<Item = Result<Bytes, E>> + Send,
    expected: Expected,
) -> Result<LayerIndex, BuildError<E>>
where
    E: std::error::Error + Send + 'static,
{
    let algorithm = expected.diff_id.algorithm();
    let (received, stages) = scope(|scope| {
        let (pieces_in, pieces_out) = sync_channel(QUEUE);
        let stages = Stages::start(scope, pieces_out, algorithm);
        let received = receive(pieces, &expected, pieces_in);
        (received, stages.join())
    });
    received?;
    let index = stages.conclude(&expected)?;
    Ok(index)
}

/// Hashes and counts the pieces and passes them on, as long as anybody wants them.
fn receive<E: std::error::Error>(
    pieces: impl Iterator<Item = Result<Bytes, E>>,
    expected: &Expected,
    stages: SyncSender<Bytes>,
) -> Result<(), BuildError<E>> {
    let layer = expected.layer;
    let mut stages = Some(stages);
    let mut hasher = Hasher::new(layer.algorithm());
    let mut found = 0_u64;
    for piece in pieces {
        let piece = piece.map_err(BuildError::Input)?;
        found = found.saturating_add(piece.len() as u64);
        if found > expected.size {
            return Err(Rejected::TooLong { layer, expected: expected.size, found }.into());
        }
        // The next stage gets its piece first: its work takes longer than hashing.
        if stages.as_ref().is_some_and(|stages| stages.send(piece.clone()).is_err()) {
            stages = None;
        }
        hasher.update(&piece);
    }
    if found < expected.size {
        return Err(Rejected::TooShort { layer, expected: expected.size, found }.into());
    }
    match hasher.finish() {
        digest if digest == layer => Ok(()),
        found => Err(Rejected::WrongDigest { layer, found: Box::new(found) }.into()),
    }
}

/// The running stages.
struct Stages<'scope> {
    unpack: ScopedJoinHandle<'scope, Result<Unpacked, Stop>>,
    diff_id: ScopedJoinHandle<'scope, Digest>,
    contents: ScopedJoinHandle<'scope, Result<Examined, Stop>>,
    spans: ScopedJoinHandle<'scope, Result<Spans, Stop>>,
}

/// What the stages came to.
struct Outcome {
    unpacked: Result<Unpacked, Stop>,
    diff_id: Digest,
    contents: Result<Examined, Stop>,
    spans: Result<Spans, Stop>,
}

impl<'scope> Stages<'scope> {
    fn start<'env>(scope: &'scope Scope<'scope, 'env>, pieces: Receiver<Bytes>, algorithm: Algorithm) -> Self {
        let (hashed_in, hashed_out) = sync_channel::<Bytes>(QUEUE);
        let (chunks_in, chunks_out) = sync_channel::<Chunk>(QUEUE);
        let (examined_in, examined_out) = sync_channel(QUEUE);
        Self {
            unpack: spawn(scope, "index-unpack", move || unpack::run(&pieces, &hashed_in, &chunks_in)),
            diff_id: spawn(scope, "index-diffid", move || {
                let mut hasher = Hasher::new(algorithm);
                hashed_out.into_iter().for_each(|bytes| hasher.update(&bytes));
                hasher.finish()
            }),
            contents: spawn(scope, "index-entries", move || contents::run(&chunks_out, &examined_in)),
            spans: spawn(scope, "index-spans", move || spans::run(&examined_out)),
        }
    }

    fn join(self) -> Outcome {
        Outcome {
            unpacked: joined(self.unpack),
            diff_id: joined(self.diff_id),
            contents: joined(self.contents),
            spans: joined(self.spans),
        }
    }
}

fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    stage: impl FnOnce() -> T + Send + 'scope,
) -> ScopedJoinHandle<'scope, T> {
    Builder::new().name(name.to_owned()).spawn_scoped(scope, stage).expect("the system grants a thread")
}

fn joined<T>(stage: ScopedJoinHandle<'_, T>) -> T {
    stage.join().unwrap_or_else(|panic| resume_unwind(panic))
}

impl Outcome {
    /// Makes the index, or says what is wrong with the layer: the first stage that knows speaks.
    fn conclude(self, expected: &Expected) -> Result<LayerIndex, Rejected> {
        let layer = expected.layer;
        let (unpacked, contents, spans) = match (self.unpacked, self.contents, self.spans) {
            (Ok(unpacked), Ok(contents), Ok(spans)) => (unpacked, contents, spans),
            (unpacked, contents, spans) => {
                let stops = [unpacked.err(), contents.err(), spans.err()];
                return Err(stops.into_iter().flatten().find_map(|stop| stop.rejects(layer)).unwrap_or(
                    // Some stage ends without a successor only if that one stopped for a reason of its own.
                    Rejected::Limit { layer, what: "a stage of its indexing ended" },
                ));
            }
        };
        if self.diff_id != expected.diff_id {
            let (expected, found) = (Box::new(expected.diff_id), Box::new(self.diff_id));
            return Err(Rejected::WrongDiffId { layer, expected, found });
        }
        let content = Content {
            compression: match unpacked.format {
                codec::Format::Plain => Compression::None,
                codec::Format::Gzip => Compression::Gzip,
                codec::Format::Zstd => Compression::Zstd,
            },
            uncompressed_size: unpacked.length,
            payload_end: unpacked.payload_end,
            spans: format::Spans::Own(spans.records),
            groups: spans.groups,
            windows: spans.windows,
            entries: contents.entries,
            dependencies: contents.dependencies,
        };
        let encoded = format::assemble(expected, &content);
        LayerIndex::open(Bytes::from(encoded))
            .map_err(|_| Rejected::Limit { layer, what: "its index would be too long" })
    }
}

impl Stop {
    fn rejects(self, layer: Digest) -> Option<Rejected> {
        match self {
            Self::Downstream => None,
            Self::Codec(source) => Some(Rejected::Codec { layer, source }),
            Self::Tar(source) => Some(Rejected::Tar { layer, source: Box::new(source) }),
            Self::Limit(what) => Some(Rejected::Limit { layer, what }),
        }
    }
}
