//! Requests that make no mount: looking into images and the cache.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::control::{self, Event, Listed};
use super::events::{open_image, resolve_image, warn_of};
use super::mounts::Mounts;
use super::report;
use super::{Code, Failure};
use crate::fs::{Ino, Read};
use crate::image::{Image, Images, Request, Trust};
use crate::index::LayerIndex;
use crate::limits::KEYS;
use crate::oci::{Digest, Platform, Printable, Reference, Wanted};
use crate::signature::{Key, Keys};
use crate::store::{Dropped, Missing, Store, Usage};
use crate::tree::{NodeId, NodeKind, Tree};

/// Bytes of a file that are read and sent at once.
const PIECE: u32 = 1 << 20;

/// How long the last users of an image that was unmounted are waited for.
const LETTING_GO: Duration = Duration::from_secs(2);

/// The request for an image as the image module understands it.
pub(super) fn request_of(image: &control::Image) -> Result<Request, Failure> {
    let reference: Reference = image.reference.parse().map_err(|error| Failure::of(Code::Usage, &error))?;
    let wanted = match &image.platform {
        None => Wanted::Host(Platform::host()),
        Some(text) => Wanted::Exactly(text.parse().map_err(|error| Failure::of(Code::Usage, &error))?),
    };
    Ok(Request {
        reference,
        wanted,
        offline: image.offline,
        plain_http: image.plain_http,
        auth_files: image.auth_files.clone(),
        hosts: (&image.hosts).into(),
        trust: match image.trust_index {
            control::TrustIndex::ByReference => Trust::ByReference,
            control::TrustIndex::None => Trust::Nobody,
            control::TrustIndex::Signed => Trust::Signed,
            control::TrustIndex::Registry => Trust::Registry,
        },
        keys: keys_of(&image.index_keys)?,
    })
}

fn keys_of(keys: &[control::IndexKey]) -> Result<Keys, Failure> {
    if keys.len() > KEYS {
        return Err(Failure::new(Code::Usage, format!("{} keys are too many, {KEYS} are allowed", keys.len())));
    }
    let key = |control::IndexKey { name, pem }: &control::IndexKey| {
        let unusable =
            |error| Failure::of(Code::Usage, &error).about(format!("cannot use the key {}", Printable::of(name)));
        Key::parse(name, pem.as_bytes()).map_err(unusable)
    };
    keys.iter().map(key).collect()
}

/// Describes an image without touching its layers.
pub(super) async fn inspect(
    images: &Images,
    wanted: &control::Image,
    events: &mpsc::Sender<Event>,
) -> Result<control::ImageReport, Failure> {
    let request = request_of(wanted)?;
    let resolved = resolve_image(images, &request, events)
        .await
        .map_err(|error| Failure::from(&error).about(format!("cannot inspect {}", wanted.reference)))?;
    warn_of(&resolved.warnings, events).await;
    let store = Arc::clone(images.store());
    let reference = wanted.reference.clone();
    let described = tokio::task::spawn_blocking(move || report::image(&reference, &resolved, &store)).await;
    described.map_err(|_| Failure::new(Code::Other, "the daemon is stopping"))
}

/// Opens an image without mounting it, telling its progress to `events`.
pub(super) async fn open(
    images: &Images,
    wanted: &control::Image,
    events: &mpsc::Sender<Event>,
) -> Result<Image, Failure> {
    let request = request_of(wanted)?;
    let image = open_image(images, &request, events).await;
    let image = image.map_err(|error| Failure::from(&error).about(format!("cannot read {}", wanted.reference)))?;
    warn_of(&image.resolved.warnings, events).await;
    Ok(image)
}

/// The node at `path`, all symbolic links followed, or a failure that names it.
pub(super) fn find(tree: &Tree, path: &[u8]) -> Result<NodeId, Failure> {
    tree.resolve(path, true).ok_or_else(|| missing(tree, path))
}

/// The node at `path` as a listing shows it: a link to a directory is followed into it, any other is shown itself.
pub(super) fn find_listed(tree: &Tree, path: &[u8]) -> Result<NodeId, Failure> {
    let followed = tree.resolve(path, true).filter(|id| tree.node(*id).kind() == NodeKind::Directory);
    followed.or_else(|| tree.resolve(path, false)).ok_or_else(|| missing(tree, path))
}

fn missing(tree: &Tree, path: &[u8]) -> Failure {
    let shown = Printable(path);
    let failure = match tree.resolve(path, false).map(|id| tree.node(id)) {
        Some(link) if link.kind() == NodeKind::Symlink => {
            Failure::new(Code::NotFound, format!("the link {shown} leads to nothing in the image"))
                .because(format!("it is a symbolic link to {}", Printable(link.target())))
        }
        _ => Failure::new(Code::NotFound, format!("the image has no {shown}")),
    };
    failure.hint("`ocifs ls REF DIRECTORY` lists what there is")
}

/// Walks the listing of `start`: its children if it is a directory, else itself. Depth first without recursion.
pub(super) struct Walk<'a> {
    tree: &'a Tree,
    recursive: bool,
    pending: Vec<(Vec<u8>, NodeId)>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(tree: &'a Tree, path: &[u8], start: NodeId, recursive: bool) -> Self {
        let mut walk = Self { tree, recursive, pending: Vec::new() };
        let trimmed = path.strip_prefix(b"/").unwrap_or(path);
        let base = trimmed.strip_suffix(b"/").unwrap_or(trimmed);
        if tree.node(start).kind() == NodeKind::Directory {
            walk.push_children(base, start);
        } else {
            walk.pending.push((base.to_vec(), start));
        }
        walk
    }

    fn push_children(&mut self, base: &[u8], directory: NodeId) {
        let children = self.tree.children(directory, 0).map(|child| {
            let separator: &[u8] = if base.is_empty() { b"" } else { b"/" };
            ([base, separator, child.name].concat(), child.node)
        });
        let mut children: Vec<_> = children.collect();
        children.reverse();
        self.pending.append(&mut children);
    }
}

impl Iterator for Walk<'_> {
    type Item = Listed;

    fn next(&mut self) -> Option<Listed> {
        let (path, id) = self.pending.pop()?;
        let node = self.tree.node(id);
        if self.recursive && node.kind() == NodeKind::Directory {
            self.push_children(&path, id);
        }
        Some(Listed {
            path,
            kind: match node.kind() {
                NodeKind::Directory => "directory",
                NodeKind::Regular => "file",
                NodeKind::Symlink => "symlink",
                NodeKind::CharDevice => "char-device",
                NodeKind::BlockDevice => "block-device",
                NodeKind::Fifo => "fifo",
            }
            .to_owned(),
            mode: node.mode(),
            nlink: node.nlink(),
            uid: node.uid(),
            gid: node.gid(),
            size: node.size(),
            mtime: node.mtime().seconds,
            target: node.target().to_vec(),
            device: node.device(),
        })
    }
}

/// A file of an opened image, read piece by piece through the same path as a mount.
pub(super) struct FileReader {
    fs: crate::fs::FileSystem,
    ino: Ino,
    remaining: Range<u64>,
}

impl FileReader {
    pub(super) fn new(images: &Images, image: &Image, path: &[u8]) -> Result<Self, Failure> {
        let id = find(&image.tree, path)?;
        let node = image.tree.node(id);
        if node.kind() != NodeKind::Regular {
            let shown = if path.is_empty() { "/".to_owned() } else { Printable(path).to_string() };
            return Err(Failure::new(Code::NotFound, format!("{shown} is not a regular file"))
                .hint("`ocifs ls` lists directories, and shows what anything else is with -l"));
        }
        let remaining = 0..node.size();
        let layers = image.layers.iter().map(|layer| Arc::clone(&layer.layer)).collect();
        let (fetcher, store) = (images.fetcher().clone(), Arc::clone(images.store()));
        let fs = crate::fs::FileSystem::new(image.tree.clone(), layers, fetcher, store);
        Ok(Self { fs, ino: Ino::from(id), remaining })
    }

    /// The next piece; none at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        if self.remaining.is_empty() {
            return Ok(None);
        }
        let read = self.fs.read(self.ino, self.remaining.start, PIECE);
        let bytes = match read {
            Ok(Read::Ready(bytes)) => Ok(bytes),
            Ok(Read::Later(pending)) => pending.await,
            Err(error) => Err(error),
        };
        let bytes = bytes.map_err(|error| match &error {
            crate::fs::Error::Fetch(error) => Failure::from(error),
            error => Failure::of(Code::Other, error),
        })?;
        self.remaining.start += bytes.len() as u64;
        Ok(Some(bytes))
    }
}

/// Removes what `what` names and nobody uses.
pub(super) async fn drop_cache(
    images: &Images,
    mounts: &Mounts,
    what: control::Drop,
) -> Result<control::DropReport, Failure> {
    mounts.served().release_idle().await;
    let (in_use, mounted) = (mounts.in_use(), mounts.mounted());
    let store = Arc::clone(images.store());
    let task = tokio::task::spawn_blocking(move || -> Result<control::DropReport, crate::store::Error> {
        let mut dropped = Vec::new();
        if what.files {
            dropped.push(("files", store.drop_files()?));
        }
        if what.blobs {
            dropped.push(("layers", drop_blobs(&store, &in_use.layers)?));
        }
        if what.indexes {
            dropped.push(("indexes", store.drop_indexes(&in_use.layers, &in_use.trees)?));
        }
        if what.documents {
            dropped.push(("manifests", store.drop_documents(&in_use.documents)?));
            dropped.push(("profiles", Dropped { freed: store.drop_profiles()?, ..Dropped::default() }));
        }
        Ok(report::dropped(&dropped, &in_use, &mounted))
    });
    finish(task.await)
}

/// Removes the blobs that are not to be kept. Those of an image that was unmounted a moment ago are waited for: reads that
/// ended with the mount may still be letting go of them. Blocks.
fn drop_blobs(store: &Store, keep: &HashSet<Digest>) -> Result<Dropped, crate::store::Error> {
    let deadline = Instant::now() + LETTING_GO;
    let mut freed = Usage::default();
    loop {
        let dropped = store.drop_blobs(keep)?;
        freed.add(dropped.freed);
        if dropped.kept.keys().all(|digest| keep.contains(digest)) || Instant::now() >= deadline {
            return Ok(Dropped { freed, ..dropped });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Brings the cache within its limits without taking anything that a mount uses; what is only kept for mounts to come
/// has to go first.
pub(super) async fn evict(images: &Images, mounts: &Mounts) -> Result<control::Usage, Failure> {
    let store = Arc::clone(images.store());
    let task = tokio::task::spawn_blocking(move || store.is_within_limits());
    if finish(task.await)? {
        return Ok(control::Usage::default());
    }
    mounts.served().release_idle().await;
    let in_use = mounts.in_use();
    let store = Arc::clone(images.store());
    let task = tokio::task::spawn_blocking(move || {
        let keep = in_use.layers.union(&in_use.trees).copied().collect();
        store.evict(&keep).map(report::part)
    });
    finish(task.await)
}

/// Makes anew what was taken away of the cache directory; what that was.
pub(super) async fn restore(images: &Images) -> Result<Option<Missing>, Failure> {
    let store = Arc::clone(images.store());
    finish(tokio::task::spawn_blocking(move || store.restore()).await)
}

/// What the cache holds.
pub(super) async fn usage(images: &Images) -> Result<control::CacheReport, Failure> {
    let store = Arc::clone(images.store());
    finish(tokio::task::spawn_blocking(move || store.usage().map(|usage| report::cache(&store, &usage))).await)
}

/// Checks every object of the cache.
pub(super) async fn verify(images: &Images) -> Result<control::VerifyReport, Failure> {
    let store = Arc::clone(images.store());
    let task = tokio::task::spawn_blocking(move || {
        store.verify(&|path, name, bytes| match path.split('/').next().unwrap_or(path) {
            "indexes" => LayerIndex::open(Bytes::copy_from_slice(bytes))
                .is_ok_and(|index| index.layer() == *name && index.check().is_ok()),
            "claims" => LayerIndex::open_claim(Bytes::copy_from_slice(bytes))
                .is_ok_and(|index| index.layer() == *name && index.check().is_ok()),
            "trees" => Tree::open(Bytes::copy_from_slice(bytes)).is_ok(),
            _ => false,
        })
    });
    let verified = finish(task.await)?;
    Ok(control::VerifyReport { good: verified.good, removed: verified.removed })
}

fn finish<T>(result: Result<Result<T, crate::store::Error>, tokio::task::JoinError>) -> Result<T, Failure> {
    result.map_err(|_| Failure::new(Code::Other, "the daemon is stopping"))?.map_err(|error| Failure::from(&error))
}
