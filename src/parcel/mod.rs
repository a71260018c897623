//! Parcels: what one image has touched of a cache, as one file that a CI cache can keep and another machine imports.
//!
//! Three difficulties. *Small*: a parcel holds documents, indexes and the [`Spans`] that were read, or that a profile names,
//! and no byte else. *Streamed*: it may be a gigabyte and go through a pipe, so it is written and read front to
//! back, in records of bounded length (`format`). *Strangers*: a CI cache is written by whoever can write there.
//!
//! # What is believed
//!
//! | in the parcel | is kept if |
//! |---|---|
//! | manifest, index of images, configuration | it has its digest |
//! | a layer that is here as a whole | layer digest and diffID are right; its index is made anew from its bytes |
//! | spans of a layer | each decodes to what the layer's index says |
//! | the index of a layer that is here in parts | **it is well-formed**, unless the cache has an index of its own |
//! | what a tag meant, profile | it is well-formed |
//!
//! The last two rows cannot be proven from the parcel. Importing one is therefore an explicit act of trust in who wrote
//! it, and `ocifs cache import --help` says so: an index can lie about the tree until all bytes of its layer are here. So it
//! is kept as a claim ([`IMPORTED`](crate::store::IMPORTED)), which fill proves or discards. What the cache knows by itself
//! is never replaced, a layer's bytes never enter the cache unverified, and whatever happens in between leaves a sound cache.
//!
//! [`export()`] writes [`Contents`]; [`import()`] reads them into a store.

mod export;
mod format;
mod import;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;

pub use export::export;
pub use import::import;

use crate::fetch::{Layer, Ranges};
use crate::index::Rejected;
use crate::oci::Digest;
use crate::profile::Profile;
use crate::tree::Tree;
use crate::{index, store};

/// What a reference means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The canonical text of the reference, which names something in a registry.
    pub reference: String,
    /// The document that it resolved to.
    pub digest: Digest,
    /// The media type of that.
    pub media_type: String,
}

/// Which spans of the layers are exported, as far as they are here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spans {
    /// All.
    All,
    /// Those that the profile names.
    OfProfile,
    /// Those in these parts of the layers.
    In(Ranges),
}

/// What is to be exported.
#[derive(Debug)]
pub struct Contents {
    /// What the reference means; none for an image that is not named by a tag in a registry.
    pub named: Option<Named>,
    /// Manifests and configuration.
    pub documents: Vec<(Digest, Bytes)>,
    /// The manifest, and the profile that is stored for it.
    pub profile: Option<(Digest, Profile)>,
    /// Which spans.
    pub spans: Spans,
    /// The layers from the bottom.
    pub layers: Vec<Arc<Layer>>,
    /// What they make.
    pub tree: Tree,
}

impl Contents {
    /// About how many bytes of layers there are to export, for whoever shows progress.
    pub fn bytes(&self) -> u64 {
        export::estimate(self)
    }
}

/// How far an export is; read by whoever shows it.
#[derive(Debug, Default)]
pub struct Progress {
    finished: AtomicUsize,
    taken: AtomicU64,
}

impl Progress {
    /// Layers written to the end.
    pub fn finished(&self) -> usize {
        self.finished.load(Ordering::Relaxed)
    }

    /// Bytes of layers written.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }
}

/// What was exported.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Exported {
    /// Bytes of layers.
    pub bytes: u64,
    /// Spans that are here but were found damaged; the cache has forgotten them.
    pub damaged: u64,
    /// Spans that are too long to be carried without the rest of their layer.
    pub too_long: u64,
}

/// What was imported.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Imported {
    /// The reference that can be mounted offline now.
    pub reference: Option<String>,
    /// Layers, whole or in parts.
    pub layers: u64,
    /// Bytes of layers in the parcel.
    pub bytes: u64,
    /// True if it held a profile.
    pub profile: bool,
}

/// Why a parcel could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The destination refused bytes.
    #[error("cannot write the parcel")]
    Write(#[source] io::Error),
    /// The bytes of the parcel could not be had.
    #[error("cannot read the parcel")]
    Read(#[source] io::Error),
    /// It ends too early.
    #[error("the parcel is cut short")]
    Truncated,
    /// It is something else.
    #[error("this is not a parcel of a cache")]
    Foreign,
    /// It is of another version.
    #[error("the parcel has version {found}, this program knows {}", format::VERSION)]
    Version {
        /// Its version.
        found: u32,
    },
    /// Bytes of it were changed on the way.
    #[error("the parcel is damaged: {0}")]
    Damaged(&'static str),
    /// It says what no export writes.
    #[error("the parcel is malformed: {0}")]
    Malformed(&'static str),
    /// Bytes in it are not those of the layer.
    #[error("the parcel has wrong bytes for layer {layer}")]
    Layer {
        /// The layer.
        layer: Digest,
        /// What is wrong.
        #[source]
        source: Box<index::Error>,
    },
    /// A layer in it is not what it should be.
    #[error("the parcel has a wrong layer {layer}")]
    Rejected {
        /// The layer.
        layer: Digest,
        /// What is wrong.
        #[source]
        source: Box<Rejected>,
    },
    /// The index of a layer cannot be used.
    #[error("the index of layer {layer} cannot be used")]
    Index {
        /// The layer.
        layer: Digest,
        /// What is wrong.
        #[source]
        source: Box<index::Error>,
    },
    /// The index of a layer is still being fetched.
    #[error("the index of layer {0} is not all here yet")]
    Windows(Digest),
    /// A complete layer of the cache has changed on the disk.
    #[error("layer {0} is damaged in the cache")]
    Rotten(Digest),
    /// The cache failed.
    #[error(transparent)]
    Store(#[from] store::Error),
}
