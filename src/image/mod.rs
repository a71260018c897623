//! From a reference to an image that can be served: the one place where the parts are joined.
//!
//! [`Images::resolve`] turns a reference into a manifest and a configuration, from the source or from what the cache
//! proves. [`Images::open`] finds or makes the index of every layer, all at once, merges the tree or maps the stored one,
//! and hands back an [`Image`].

mod clients;
mod discovery;
mod documents;
mod error;
mod inline;
mod layers;
mod shared;
mod soci;
mod source;
mod toc;
mod trust;
mod windows;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use crate::fetch::{self, Fetcher, OnceMap};
use crate::index::LayerIndex;
use crate::index::toc::{Format, is_own_file};
use crate::oci::{Descriptor, Digest, ImageConfig, ImageIndex, ImageManifest, Platform, Reference, Wanted};
use crate::profile::Profile;
use crate::registry::{HostFiles, Repository};
use crate::signature::Keys;
use crate::store::{Mapped, Store};
use crate::tree::Tree;

pub use error::{DiffIdMismatch, Error, Lack};
pub use soci::pin as soci_pin;
pub use trust::{Belief, Trust, Verdict, verdict, verdict_of_pins};

use clients::Clients;
use layers::Others;
use shared::Search;
use source::Opened;

use toc::Tocs;

/// What the caller wants resolved, and how the source may be asked.
#[derive(Debug, Clone)]
pub struct Request {
    /// The image.
    pub reference: Reference,
    /// Which of its platforms.
    pub wanted: Wanted,
    /// Ask no source; use what the cache has.
    pub offline: bool,
    /// Speak plain HTTP to the registry.
    pub plain_http: bool,
    /// Credential files, in the order in which they are asked.
    pub auth_files: Vec<PathBuf>,
    /// The files that say how registries are reached.
    pub hosts: HostFiles,
    /// Whose indexes are believed.
    pub trust: Trust,
    /// By whose keys an index may be signed.
    pub keys: Keys,
}

impl Request {
    /// What is believed of that which lies beside the image.
    pub fn verdict(&self) -> Verdict {
        let is_pinned = matches!(&self.reference, Reference::Registry(name) if name.digest().is_some());
        verdict(self.trust, is_pinned, !self.keys.is_empty())
    }
}

/// A reference followed to one image.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The image index that the reference named, if it named one.
    pub index: Option<ImageIndex>,
    /// Digest of the manifest.
    pub digest: Digest,
    /// What its source calls the manifest; none if it did not say.
    pub media_type: Option<String>,
    /// Length of the manifest in bytes.
    pub manifest_size: u64,
    /// The manifest.
    pub manifest: ImageManifest,
    /// The configuration.
    pub config: ImageConfig,
    /// The configuration as its publisher wrote it.
    pub config_bytes: Bytes,
    /// Things the user should know, such as that a cached tag was used because the registry cannot be reached.
    pub warnings: Vec<String>,
    /// True if the registry could not be asked what the reference names, and what it named last stands in.
    pub is_remembered: bool,
    /// Every document this was read from, so that the cache keeps them while the image is in use.
    pub documents: Vec<Digest>,
}

/// How a layer came to have an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// It was in the cache.
    Cached,
    /// The layer brings it along: a table of contents, which the manifest pins.
    Toc(Format),
    /// It was made now, by streaming the layer.
    FirstContact,
    /// Somebody put it beside the image: the artifact with this digest.
    Shared(Digest),
    /// A user of this cache imported it, in a parcel.
    Imported,
}

/// One layer of an opened image.
#[derive(Debug, Clone)]
pub struct ImageLayer {
    /// The layer's descriptor in the manifest.
    pub descriptor: Descriptor,
    /// How its index came to be.
    pub origin: Origin,
    /// Why it was believed, or why it had to be made, as the end of a sentence.
    pub reason: String,
    /// The layer itself.
    pub layer: Arc<fetch::Layer>,
    /// What was read to index it, if that happened now.
    pub streamed: Option<Arc<fetch::Progress>>,
}

/// An image whose tree is known.
#[derive(Debug)]
pub struct Image {
    /// What it was resolved from.
    pub resolved: Resolved,
    /// Its layers from the bottom.
    pub layers: Vec<ImageLayer>,
    /// The merged tree.
    pub tree: Tree,
    /// The name of the tree in the store.
    pub tree_id: Digest,
    /// True if the tree was not in the store, or not as it had been left there, and was merged now.
    pub merged: bool,
    /// True if it is in a registry, and not in files that somebody may replace.
    pub is_remote: bool,
    /// Its repository, if that is asked for what is missing.
    pub repository: Option<Repository>,
    /// What a start reads, as somebody put it beside the image; none if the cache has a recording of its own.
    pub profile: Option<Profile>,
}

/// How far opening an image has come; filled in as it goes, read by whoever shows progress.
#[derive(Debug, Default)]
pub struct Progress {
    /// Protects the list, which grows once per layer.
    layers: Mutex<Vec<(Whole, Arc<fetch::Progress>)>>,
    /// Which repository is asked, once that is known.
    asked: OnceLock<Repository>,
}

/// How long a layer is, and how much of it was here before it was streamed.
#[derive(Debug, Clone, Copy)]
struct Whole {
    size: u64,
    kept: u64,
}

/// Sums over the layers that are being streamed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Streamed {
    /// Layers that need a first contact.
    pub layers: usize,
    /// Layers of them that are read to the end.
    pub finished: usize,
    /// Bytes to read.
    pub total: u64,
    /// Bytes read in order.
    pub taken: u64,
    /// Bytes that were here before.
    pub kept: u64,
    /// Bytes that came over the network.
    pub received: u64,
}

impl Progress {
    /// Where it stands now.
    pub fn now(&self) -> Streamed {
        let layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        layers.iter().fold(Streamed { layers: layers.len(), ..Streamed::default() }, |sum, (whole, progress)| {
            let taken = progress.taken.load(Ordering::Relaxed);
            Streamed {
                finished: sum.finished + usize::from(taken >= whole.size),
                total: sum.total + whole.size,
                taken: sum.taken + taken,
                kept: sum.kept + whole.kept,
                received: sum.received + progress.traffic.bytes(),
                ..sum
            }
        })
    }

    /// The host that is asked and has said nothing for the longest time, and for how long.
    pub fn silence(&self) -> Option<(String, Duration)> {
        let hosts = self.asked.get()?.hosts().into_iter();
        hosts.filter_map(|host| Some((host.name, host.silence?))).max_by_key(|(_, silence)| *silence)
    }

    fn add(&self, whole: Whole, layer: Arc<fetch::Progress>) {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner).push((whole, layer));
    }
}

/// Opens images against one cache. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Images {
    store: Arc<Store>,
    fetcher: Fetcher,
    /// First contacts in progress, so that two mounts of one layer stream it once.
    contacts: Arc<OnceMap<layers::Contact, Result<LayerIndex, fetch::Error>>>,
    /// Their progress, for those who join later.
    watched: Arc<Mutex<std::collections::HashMap<layers::Contact, std::sync::Weak<fetch::Progress>>>>,
    /// TOCs that may be read at once.
    readers: Arc<tokio::sync::Semaphore>,
    /// Registry clients.
    clients: Arc<Clients>,
}

impl Images {
    /// Opens images with `store` and `fetcher`.
    pub fn new(store: Arc<Store>, fetcher: Fetcher) -> Self {
        let readers = Arc::new(tokio::sync::Semaphore::new(crate::limits::PARALLEL_TOCS));
        Self { store, fetcher, contacts: Arc::default(), watched: Arc::default(), readers, clients: Arc::default() }
    }

    /// The cache.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The fetcher.
    pub fn fetcher(&self) -> &Fetcher {
        &self.fetcher
    }

    /// Follows the reference to one image without touching its layers.
    pub async fn resolve(&self, request: &Request, progress: &Progress) -> Result<Resolved, Error> {
        let opened = self.source_for(request, progress).await?;
        let nothing = Search::new(request, None, &self.store);
        self.documents(request, opened.source(), &nothing).await
    }

    /// The platforms that the reference names, as its image index lists them; empty if it names one image.
    pub async fn platforms(&self, request: &Request) -> Result<Vec<Platform>, Error> {
        let opened = self.source(request).await?;
        let Some(index) = self.index_of(request, opened.source()).await? else { return Ok(Vec::new()) };
        let mut seen = std::collections::HashSet::new();
        let stated = index.entries.into_iter().filter_map(|entry| entry.platform);
        Ok(stated.filter(|platform| !platform.is_unknown() && seen.insert(platform.to_string())).collect())
    }

    /// The repository of an image in a registry; none for local images and offline.
    pub async fn repository(&self, request: &Request) -> Result<Option<Repository>, Error> {
        Ok(self.source(request).await?.repository)
    }

    /// Makes or finds the proven index of every distinct layer, without merging anything. What others say is not used.
    pub async fn prove(
        &self,
        request: &Request,
        progress: &Arc<Progress>,
    ) -> Result<(Resolved, Vec<ImageLayer>), Error> {
        let opened = self.source_for(request, progress).await?;
        let nothing = Search::new(request, None, &self.store);
        let resolved = self.documents(request, opened.source(), &nothing).await?;
        let mut layers = self.layers(&resolved, opened.source.as_ref(), progress, None).await?;
        let mut seen = std::collections::HashSet::new();
        layers.retain(|layer| seen.insert(layer.descriptor.digest));
        Ok((resolved, layers))
    }

    /// Opens the image: after this every read can be answered.
    ///
    /// Layers without an index are streamed now; the others are not touched.
    pub async fn open(&self, request: &Request, progress: &Arc<Progress>) -> Result<Image, Error> {
        let opened = self.source_for(request, progress).await?;
        let search = Search::new(request, opened.repository.clone(), &self.store);
        let mut resolved = self.documents(request, opened.source(), &search).await?;
        let tocs = Tocs::new(self, request);
        let others = Some(Others { tocs: &tocs, search: &search });
        let mut layers = self.layers(&resolved, opened.source.as_ref(), progress, others).await?;
        let digest = resolved.digest;
        let (tree, tree_id, merged) = match self.tree(digest, &layers).await {
            // What does not merge may be what somebody says of a layer, and not what it is.
            Err(Error::Tree(error)) if layers.iter().any(|layer| !layer.layer.index.is_proven()) => {
                tocs.refuse(&error);
                layers = self.layers(&resolved, opened.source.as_ref(), progress, None).await?;
                self.tree(digest, &layers).await?
            }
            merged => merged?,
        };
        let profile = search.profile().await;
        resolved.warnings.extend(tocs.warnings());
        let is_remote = matches!(request.reference, Reference::Registry(_));
        let repository = opened.repository.filter(|_| !request.offline);
        Ok(Image { resolved, layers, tree, tree_id, merged, is_remote, repository, profile })
    }

    /// The source of `request`, which `progress` tells of from now on.
    async fn source_for(&self, request: &Request, progress: &Progress) -> Result<Opened, Error> {
        let opened = self.source(request).await?;
        if let Some(repository) = &opened.repository {
            // It is one and the same for all that one progress is about.
            progress.asked.set(repository.clone()).unwrap_or_default();
        }
        Ok(opened)
    }

    /// The source of `request`; none when offline.
    async fn source(&self, request: &Request) -> Result<Opened, Error> {
        match (request.offline, &request.reference) {
            // Knowing the registry's name asks nothing of it.
            (true, Reference::Registry(_)) => {
                Ok(Opened { source: None, ..source::open(request, &self.clients, self.store.dir()).await? })
            }
            // What is on the disk is asked of nobody; if it is not, or not whole, the cache may have the image.
            (true, _) => Ok(source::open(request, &self.clients, self.store.dir()).await.unwrap_or_else(|error| {
                tracing::debug!(%error, "the source is not there, the cache stands in");
                Opened::default()
            })),
            (false, _) => source::open(request, &self.clients, self.store.dir()).await,
        }
    }

    /// The tree of the image with this digest as it was opened last, if it is still here; nothing is fetched. Blocks.
    pub fn opened_tree(&self, image: &Digest) -> Option<Tree> {
        let (id, _) = self.store.reference(&tree_key(image)).ok().flatten()?;
        stored_tree(&self.store, &id).ok().flatten()
    }

    /// The stored tree of `layers`, or a new one; its name; and whether it is new. The cache remembers which it is of `image`.
    async fn tree(&self, image: Digest, layers: &[ImageLayer]) -> Result<(Tree, Digest, bool), Error> {
        let store = Arc::clone(&self.store);
        let layers: Vec<_> =
            layers.iter().map(|layer| (Arc::clone(&layer.layer), toc::is_pinned(&layer.descriptor))).collect();
        let task = tokio::task::spawn_blocking(move || {
            let id =
                crate::tree::id(&layers.iter().map(|(layer, pinned)| identity(layer, *pinned)).collect::<Vec<_>>());
            remember_tree(&store, &image, &id);
            if let Some(tree) = stored_tree(&store, &id)? {
                return Ok((tree, id, false));
            }
            let indexes: Vec<_> = layers.iter().map(|(layer, _)| &layer.index).collect();
            let encoded = crate::tree::merge_without(&indexes, |layer, entry| layers[layer].1 && is_own_file(entry))?;
            let mapped = store.put_tree(&id, &encoded).unwrap_or_else(|error| {
                tracing::warn!(%error, "the tree is not kept, the next mount will merge it again");
                Mapped::from(Bytes::from(encoded))
            });
            Ok((open_tree(&mapped)?, id, true))
        });
        task.await.map_err(|_| Error::Interrupted)?
    }
}

/// What a layer adds to the name of the tree. A layer that brings its index along is merged without the files that are
/// only there for it, however its index came to be; the same layer in another image may not bring it.
fn identity(layer: &fetch::Layer, pins_toc: bool) -> Digest {
    let identity = layer.index.identity();
    if pins_toc { Digest::sha256(format!("{identity} without its own index").as_bytes()) } else { identity }
}

/// By what the cache remembers the name of an image's tree, which depends on whose indexes its layers have. No reference has a
/// blank in it.
fn tree_key(image: &Digest) -> String {
    format!("tree of {image}")
}

fn remember_tree(store: &Store, image: &Digest, id: &Digest) {
    let key = tree_key(image);
    if store.reference(&key).is_ok_and(|known| known.is_some_and(|(known, _)| known == *id)) {
        return;
    }
    if let Err(error) = store.put_reference(&key, id, "") {
        tracing::debug!(%image, %error, "the name of the tree is not remembered");
    }
}

fn stored_tree(store: &Store, id: &Digest) -> Result<Option<Tree>, Error> {
    let Some(mapped) = store.tree(id)? else { return Ok(None) };
    match open_tree(&mapped) {
        Ok(tree) => Ok(Some(tree)),
        Err(error) => {
            tracing::warn!(tree = %id, %error, "merging the tree again");
            store.remove_tree(id)?;
            Ok(None)
        }
    }
}

/// Opens a tree, which reads all of it; the pages that were only needed for checking are given back.
fn open_tree(mapped: &Mapped) -> Result<Tree, crate::tree::Error> {
    let tree = Tree::open(mapped.bytes().clone())?;
    mapped.release_pages();
    Ok(tree)
}
