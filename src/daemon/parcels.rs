//! Parcels through the control socket: the part of the cache that belongs to an image, out and in as a stream.
//!
//! Reading and writing parcels blocks, talking to clients does not; between them is a short queue of pieces, which makes
//! the faster side wait.

use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use tokio::io::AsyncReadExt;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::control::{self, Event, ImportReport, Selection};
use super::events::open_image;
use super::query::request_of;
use super::{Code, Failure, touched};
use crate::image::{self, Image, Images};
use crate::oci::{Digest, Reference};
use crate::parcel::{self, Contents, Exported, Imported, Named, Progress, Spans};
use crate::profile::Profile;
use crate::store::Store;

/// Bytes that are handed over at once.
const PIECE: usize = 256 << 10;

/// Pieces that may wait.
const QUEUE: usize = 4;

/// A parcel on its way out.
pub(super) struct Outgoing {
    pieces: mpsc::Receiver<Bytes>,
    task: JoinHandle<Result<Exported, parcel::Error>>,
    progress: Arc<Progress>,
    layers: usize,
    total: u64,
    selection: Selection,
}

/// Finds what the cache has of an image and begins to write it.
///
/// Images in registries are opened offline: what is exported is what was mounted, wherever the tag has moved since.
pub(super) async fn open(
    images: &Images,
    wanted: &control::Image,
    selection: Selection,
    events: &mpsc::Sender<Event>,
) -> Result<Outgoing, Failure> {
    let mut request = request_of(wanted)?;
    let is_remote = matches!(request.reference, Reference::Registry(_));
    request.offline |= is_remote;
    let opened = open_image(images, &request, events).await;
    let image = opened.map_err(|error| cannot_export(&error, &wanted.reference))?;
    let reference = is_remote.then(|| request.reference.to_string());
    let (store, name) = (Arc::clone(images.store()), wanted.reference.clone());
    let gathered = tokio::task::spawn_blocking(move || gather(&store, &image, reference, selection, &name)).await;
    let contents = gathered.map_err(|_| stopping())??;
    let (sender, pieces) = mpsc::channel(QUEUE);
    let (progress, layers, total) = (Arc::new(Progress::default()), contents.layers.len(), contents.bytes());
    let told = Arc::clone(&progress);
    let task = tokio::task::spawn_blocking(move || {
        parcel::export(&contents, io::BufWriter::with_capacity(PIECE, Sending(sender)), &told)
    });
    Ok(Outgoing { pieces, task, progress, layers, total, selection })
}

fn cannot_export(error: &image::Error, reference: &str) -> Failure {
    let failure = Failure::from(error).about(format!("cannot export {reference}"));
    match failure.code {
        Code::Unreachable => failure
            .hint("mount it first: only what the cache has is exported; with --trust-index, if it was mounted so"),
        _ => failure,
    }
}

/// Collects what belongs to `image`.
fn gather(
    store: &Store,
    image: &Image,
    reference: Option<String>,
    selection: Selection,
    name: &str,
) -> Result<Contents, Failure> {
    let failed = |error: crate::store::Error| Failure::from(&error);
    let resolved = &image.resolved;
    let mut documents = Vec::new();
    for digest in &resolved.documents {
        // A document that is embedded in another is not kept by itself.
        if let Some(bytes) = store.document(digest).map_err(failed)? {
            documents.push((*digest, bytes));
        }
    }
    let named = match reference {
        Some(reference) => store.reference(&reference).map_err(failed)?.map(|(digest, media_type)| Named {
            reference,
            digest,
            media_type,
        }),
        None => None,
    };
    let profile = profile(store, &resolved.digest)?;
    let spans = match selection {
        Selection::All => Spans::All,
        Selection::Profile if profile.is_some() => Spans::OfProfile,
        Selection::Profile => {
            return Err(Failure::new(Code::NotFound, format!("there is no profile of {name}"))
                .hint("leave out --profile to export what was read of it"));
        }
        Selection::Touched => Spans::In(touched::load(store, &resolved.digest)),
    };
    Ok(Contents {
        named: named.filter(|named| documents.iter().any(|(digest, _)| *digest == named.digest)),
        documents,
        profile: profile.map(|profile| (resolved.digest, profile)),
        spans,
        layers: image.layers.iter().map(|layer| Arc::clone(&layer.layer)).collect(),
        tree: image.tree.clone(),
    })
}

/// The stored profile; one that cannot be read is none.
fn profile(store: &Store, manifest: &Digest) -> Result<Option<Profile>, Failure> {
    let text = store.profile(manifest).map_err(|error| Failure::from(&error))?;
    Ok(text.and_then(|text| Profile::parse(&text).ok()))
}

impl Outgoing {
    /// The next bytes; none after the last, or after a failure that [`Self::finish`] tells.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        self.pieces.recv().await
    }

    /// How far it is.
    pub(super) fn progress(&self) -> control::Progress {
        control::Progress {
            layers: self.layers,
            finished: self.progress.finished(),
            total: self.total,
            taken: self.progress.taken(),
            received: self.progress.taken(),
        }
    }

    /// What the user should know of the export.
    pub(super) async fn finish(self) -> Result<Vec<String>, Failure> {
        let exported = self.task.await.map_err(|_| stopping())?;
        let exported = exported.map_err(|error| Failure::from(&error))?;
        let mut warnings = Vec::new();
        if exported.bytes == 0 && self.selection == Selection::Touched {
            let text = "nothing was read of the image, so the file has no byte of its layers: --all exports what is here of them";
            warnings.push(text.to_owned());
        }
        if exported.damaged > 0 {
            warnings.push(format!("{} spans were damaged in the cache and are left out", exported.damaged));
        }
        if exported.too_long > 0 {
            warnings.push(format!(
                "{} spans are too long to be exported before their layer is complete: `ocifs mount --wait` completes it",
                exported.too_long
            ));
        }
        Ok(warnings)
    }
}

/// Takes the parcel that a client sends until it closes its side.
pub(super) async fn import(
    images: &Images,
    mut client: tokio::io::BufReader<OwnedReadHalf>,
) -> Result<ImportReport, Failure> {
    let (sender, pieces) = mpsc::channel(QUEUE);
    let store = Arc::clone(images.store());
    let task = tokio::task::spawn_blocking(move || parcel::import(Receiving { pieces, rest: Bytes::new() }, &store));
    loop {
        let mut piece = bytes::BytesMut::with_capacity(PIECE);
        let read = client.read_buf(&mut piece).await;
        let piece = match read {
            Ok(0) => break,
            Ok(_) => Ok(piece.freeze()),
            Err(error) => Err(error),
        };
        let failed = piece.is_err();
        // A closed queue means that the import knows already what is wrong with the parcel.
        if sender.send(piece).await.is_err() || failed {
            break;
        }
    }
    drop(sender);
    let Imported { reference, layers, bytes, profile } =
        task.await.map_err(|_| stopping())?.map_err(|error| Failure::from(&error))?;
    Ok(ImportReport { reference, layers, bytes, profile })
}

fn stopping() -> Failure {
    Failure::new(Code::Other, "the daemon is stopping")
}

/// The writing end of the queue.
struct Sending(mpsc::Sender<Bytes>);

impl Write for Sending {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(PIECE)];
        // Nobody listens once the client has gone away.
        self.0.blocking_send(Bytes::copy_from_slice(piece)).map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The reading end of the queue.
struct Receiving {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    rest: Bytes,
}

impl Read for Receiving {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.rest = piece?,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.rest.len());
        self.rest.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}
