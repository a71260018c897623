//! What is said about the cache: how much it holds, what an import brought, what a check found.

use std::path::PathBuf;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

/// What a part of the cache holds or lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Objects.
    pub count: u64,
    /// Bytes on disk.
    pub bytes: u64,
}

/// What the cache holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CacheReport {
    /// The cache directory.
    pub dir: PathBuf,
    /// Bytes that the cache may take.
    #[serde(default)]
    pub limit: Option<u64>,
    /// Bytes that it takes.
    #[serde(default)]
    pub used: u64,
    /// Manifests and configurations.
    pub manifests: Usage,
    /// Layer blobs.
    pub blobs: Usage,
    /// Layer indexes.
    pub indexes: Usage,
    /// Merged trees.
    pub trees: Usage,
    /// Decoded files.
    pub files: Usage,
    /// Profiles of starts.
    #[serde(default)]
    pub profiles: Usage,
    /// Parts of layers in use that are decoded as a whole, because the layer has no smaller ones.
    #[serde(default)]
    pub decoded: Usage,
}

/// What `cache drop` did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropReport {
    /// What was removed.
    pub removed: Usage,
    /// What was asked for and stays, because something uses it.
    pub kept: Vec<Kept>,
}

/// What stays in the cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// `layers`, `files`, `indexes` (and merged trees) or `manifests`.
    pub part: String,
    /// How much.
    #[serde(flatten)]
    pub usage: Usage,
    /// Who uses it.
    pub used_by: UsedBy,
}

/// Who uses a part of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UsedBy {
    /// A mount.
    Mount,
    /// A process, or another mount namespace, that still has a mount which was ended here.
    EndedMount,
    /// Who reads it, or has it open to be read.
    Reader,
}

/// What `cache import` brought.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImportReport {
    /// The reference that can be mounted offline now.
    pub reference: Option<String>,
    /// Layers, whole or in parts.
    pub layers: u64,
    /// Bytes of layers.
    pub bytes: u64,
    /// True if there was a profile.
    pub profile: bool,
}

/// What `cache verify` found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Objects that are what their names say.
    pub good: u64,
    /// Objects that were not, by path below the cache directory; they were removed.
    pub removed: Vec<String>,
}

/// The warning for a user who wants a cache of another size than `limit`, which its daemon keeps.
pub fn other_cache_size(limit: Option<u64>, wanted: Option<u64>) -> Option<String> {
    let (limit, wanted) = (limit?, wanted?);
    let shown = |bytes| ByteSize::b(bytes).display().iec();
    (limit != wanted).then(|| {
        format!(
            "the cache may grow to {}, not {}: its daemon was started so, and keeps that until it ends",
            shown(limit),
            shown(wanted)
        )
    })
}
