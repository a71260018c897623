//! What programs say to the daemon: one request a line, then events a line each until `done` or `failed`.
//!
//! Both sides are the same program, and a daemon may be older than its client after an upgrade; unknown requests are
//! answered with a failure that says so. A `data` event is followed by exactly that many raw bytes.

mod cache;
mod indexes;
mod outage;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Failure;
use crate::registry;
pub use cache::{CacheReport, DropReport, ImportReport, Kept, Usage, UsedBy, VerifyReport, other_cache_size};
pub use indexes::{
    ConvertedImage, IndexProfile, IndexWork, IndexedImage, IndexedLayer, PushReport, SharedIndex, SharedLayer,
    UnwantedIndexes,
};
pub use outage::{OnOutage, OutageReport};

/// Which image, and how its source may be asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Image {
    /// The reference; local paths in it are absolute.
    pub reference: String,
    /// `os/architecture[/variant]`, or none for this machine's.
    pub platform: Option<String>,
    /// Use only what the cache has.
    pub offline: bool,
    /// Speak plain HTTP.
    pub plain_http: bool,
    /// Credential files in order.
    pub auth_files: Vec<PathBuf>,
    /// The files that say how registries are reached.
    #[serde(default)]
    pub hosts: HostFiles,
    /// Whose indexes are believed.
    #[serde(default)]
    pub trust_index: TrustIndex,
    /// By whose keys they may be signed.
    #[serde(default)]
    pub index_keys: Vec<IndexKey>,
}

/// A public key of somebody whose indexes are believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexKey {
    /// How its user calls it: the path of its file.
    pub name: String,
    /// The key in PEM.
    pub pem: String,
}

/// Files that say how registries are reached, in the order in which they are asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostFiles {
    /// containerd's trees of `hosts.toml` files.
    pub trees: Vec<PathBuf>,
    /// `registries.conf`, and directories of drop-ins.
    pub registries: Vec<PathBuf>,
    /// Directories of certificates.
    pub certificates: Vec<PathBuf>,
}

impl From<&HostFiles> for registry::HostFiles {
    fn from(files: &HostFiles) -> Self {
        let HostFiles { trees, registries, certificates } = files.clone();
        Self { trees, registries, certificates }
    }
}

/// Whose indexes are believed beside those that were made here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrustIndex {
    /// Those of the image's repository if the reference is a tag, and those that a key signed.
    #[default]
    ByReference,
    /// Nobody's.
    None,
    /// Those that a key signed.
    Signed,
    /// Those of the image's repository.
    Registry,
}

/// When the rest of an image is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fill {
    /// Never.
    Off,
    /// While no reader waits.
    Idle,
    /// At once.
    Now,
}

/// How the files of a mount are read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Io {
    /// By what the image holds and the machine can do.
    #[default]
    Auto,
    /// Complete files by the kernel from the file store.
    Passthrough,
    /// From the kernel's page cache, which the daemon fills.
    Cached,
}

/// A mount to make.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Mount {
    /// The image.
    pub image: Image,
    /// The mount point, absolute.
    pub dir: PathBuf,
    /// When to fetch the rest.
    pub fill: Fill,
    /// How files are read.
    #[serde(default)]
    pub io: Io,
    /// Whether processors are kept from sleeping while programs start, where that pays.
    #[serde(default)]
    pub low_latency: bool,
    /// What readers do while the registry does not answer.
    #[serde(default)]
    pub on_outage: OnOutage,
    /// How long to record the start, in seconds: 0 for not at all, none until it is quiet.
    #[serde(default)]
    pub profile_until: Option<u32>,
    /// How large its user believes the cache may grow, in bytes; a daemon that runs keeps its own bound and warns.
    #[serde(default)]
    pub cache_size: Option<u64>,
}

/// What `cache drop` removes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drop {
    /// Layer blobs.
    pub blobs: bool,
    /// Decoded files.
    pub files: bool,
    /// Layer indexes and trees.
    pub indexes: bool,
    /// Manifests, configurations, what tags resolved to, and profiles.
    pub documents: bool,
}

/// Which of what the cache has of an image's layers a parcel carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selection {
    /// What was read.
    Touched,
    /// What the image's profile names.
    Profile,
    /// Everything.
    All,
}

/// A request.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// Mount an image; progress events come before the end.
    Mount(Mount),
    /// Wait until every layer of a mount is complete; progress events come before the end. Filled at once if nothing else
    /// was asked for.
    Wait {
        /// The mount point, absolute.
        dir: PathBuf,
    },
    /// End a mount.
    Unmount {
        /// The mount point, absolute.
        dir: PathBuf,
        /// Detach it even if it is in use.
        lazy: bool,
    },
    /// List all mounts.
    List,
    /// Describe one mount or all, in detail.
    Status {
        /// The mount point, absolute.
        dir: Option<PathBuf>,
    },
    /// Describe an image without touching its layers.
    Inspect(Image),
    /// List a directory of an image, one [`Listed`] item a name.
    ListDirectory {
        /// The image.
        image: Image,
        /// The path inside it, as bytes.
        path: Vec<u8>,
        /// Also everything below.
        recursive: bool,
    },
    /// Send a file of an image as data.
    Read {
        /// The image.
        image: Image,
        /// The path inside it, as bytes.
        path: Vec<u8>,
    },
    /// The profile of an image.
    Profile(Image),
    /// Replace the profile of an image.
    ImportProfile {
        /// The image.
        image: Image,
        /// The profile as text.
        text: String,
    },
    /// Remove the profile of an image.
    RemoveProfile(Image),
    /// Make the indexes of an image, and perhaps push them; progress events come before the end.
    Index(IndexWork),
    /// What indexes lie beside an image in its registry.
    ListIndexes(Image),
    /// Remove indexes that lie beside an image in its registry.
    RemoveIndexes(UnwantedIndexes),
    /// End, if nothing is mounted and nobody else asks for anything; the answer is whether that is so.
    Retire,
    /// What the cache holds.
    CacheUsage,
    /// Remove parts of the cache that no mount uses.
    CacheDrop(Drop),
    /// Check every object of the cache.
    CacheVerify,
    /// Send what the cache has of an image as data: a parcel. Progress events come in between.
    CacheExport {
        /// The image. One in a registry is looked for in the cache only.
        image: Image,
        /// Which of what the cache has of its layers.
        selection: Selection,
    },
    /// Take a parcel into the cache. Its bytes follow the request; then the client closes its sending side.
    CacheImport,
}

impl Request {
    /// True if the cache directory must be there for it.
    pub(super) fn needs_cache(&self) -> bool {
        !matches!(self, Self::Wait { .. } | Self::Unmount { .. } | Self::List | Self::Status { .. } | Self::Retire)
    }

    /// True if the daemon answers at once, whatever it is doing.
    pub(super) fn is_quick(&self) -> bool {
        matches!(self, Self::List | Self::Status { .. } | Self::Retire)
    }
}

/// An event of the daemon.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// How far opening an image has come, or completing it.
    Progress(Progress),
    /// Something else begins; its progress comes next.
    Phase {
        /// What, for people.
        text: String,
    },
    /// Something the user should know.
    Warning {
        /// The text, one line, without control characters.
        text: String,
    },
    /// One item of a listing.
    Item(Listed),
    /// This many raw bytes follow.
    Data {
        /// How many.
        length: u64,
    },
    /// The request succeeded.
    Done {
        /// Its answer, if it has one.
        answer: serde_json::Value,
    },
    /// The request failed.
    Failed(Failure),
}

/// How far opening an image has come, or completing it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Layers being streamed or filled; none if that is not known yet, which at least shows that the daemon has heard.
    pub layers: usize,
    /// Layers of them that are read to the end, or complete.
    pub finished: usize,
    /// Bytes of these layers.
    pub total: u64,
    /// Bytes read, or in the cache.
    pub taken: u64,
    /// Bytes that came over the network.
    pub received: u64,
}

/// One name of an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Listed {
    /// The path inside the image, without leading slash, as bytes.
    pub path: Vec<u8>,
    /// `directory`, `file`, `symlink`, `char-device`, `block-device` or `fifo`.
    pub kind: String,
    /// Permission bits.
    pub mode: u16,
    /// Number of names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length in bytes.
    pub size: u64,
    /// Seconds since the epoch of the last modification.
    pub mtime: i64,
    /// Target of a symbolic link, as bytes.
    pub target: Vec<u8>,
    /// Device number.
    pub device: Option<(u32, u32)>,
}

/// One mount, in short or in detail.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MountReport {
    /// The mount point.
    pub dir: PathBuf,
    /// The reference it was mounted by.
    pub reference: String,
    /// Digest of the manifest.
    pub digest: String,
    /// The image's platform.
    pub platform: String,
    /// When the rest is fetched.
    pub fill: Fill,
    /// How far that is.
    #[serde(default)]
    pub filling: FillReport,
    /// What readers do while the registry does not answer, as it is written on the command line.
    #[serde(default)]
    pub on_outage: String,
    /// The outage it is in, if it is in one.
    #[serde(default)]
    pub outage: Option<OutageReport>,
    /// Bytes of all layers, compressed.
    pub bytes_needed: u64,
    /// Bytes of them that are in the cache.
    pub bytes_local: u64,
    /// Bytes fetched over the network for this mount.
    pub bytes_fetched: u64,
    /// Ranged reads asked of the source for this mount.
    pub requests: u64,
    /// How files are read, never [`Io::Auto`].
    pub io: Io,
    /// Why they are read so, a short sentence.
    pub io_reason: String,
    /// Open files; none where the kernel opens files without telling.
    pub open_files: Option<u64>,
    /// The hosts that are asked for what is missing, in this order; none for local images and offline.
    #[serde(default)]
    pub hosts: Vec<HostReport>,
    /// The file that this order follows from, and what in it; none if nobody configured it.
    #[serde(default)]
    pub hosts_rule: Option<String>,
    /// Requests that the kernel has sent, by kind.
    pub kernel_requests: BTreeMap<String, u64>,
    /// For how long processors were kept from sleeping for it, in milliseconds.
    #[serde(default)]
    pub low_latency_ms: u64,
    /// Names in the tree.
    pub entries: u64,
    /// The recording of its start, and what was fetched ahead.
    #[serde(default)]
    pub profile: ProfileReport,
    /// The layers from the bottom; empty in a short listing.
    #[serde(default)]
    pub layers: Vec<LayerReport>,
}

/// A host that an image is had from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostReport {
    /// Its name, perhaps with a port.
    pub name: String,
    /// Bytes of layers that it sent, for all mounts of this daemon.
    pub received: u64,
    /// What was wrong when it was asked last, on one line; none if it did what was asked.
    pub trouble: Option<String>,
}

/// How far a mount is filled.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FillReport {
    /// `off`, `running`, `waiting` for a source that cannot be reached, `complete`, or `failed` if a layer was given up.
    pub state: String,
    /// The last failure, on one line.
    pub error: Option<String>,
}

/// What a mount records of its start, and what it fetched ahead of the first read.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ProfileReport {
    /// `recording`, `stored` if the cache has a profile of the image, or `none`.
    pub state: String,
    /// First accesses recorded so far.
    pub accesses: u64,
    /// Why something was fetched ahead: `profile`, `landmark` or `entry point`; none if nothing was.
    pub ahead: Option<String>,
    /// Spans fetched ahead because the profile names them, or because they lie before a layer's landmark.
    pub replayed_spans: u64,
    /// Spans fetched ahead because the entry point needs them.
    pub entry_point_spans: u64,
    /// True once nothing more is fetched ahead.
    pub ahead_done: bool,
}

/// The profile of an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ProfileText {
    /// Digest of the image's manifest.
    pub digest: String,
    /// Sum of the sizes of the image's files, if the cache knows it.
    pub image_bytes: Option<u64>,
    /// The profile as text.
    pub text: String,
}

/// One layer of a mount.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LayerReport {
    /// Digest of the blob.
    pub digest: String,
    /// Media type in the manifest.
    pub media_type: String,
    /// `tar`, `gzip` or `zstd`, by its content.
    pub compression: String,
    /// Where the index came from: `cache`, `estargz` or `zstd:chunked` (the layer brings it along), `imported`, `shared` or
    /// `first-contact`.
    pub indexed: String,
    /// The artifact that the index belongs to, if it is a shared one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index_artifact: Option<String>,
    /// Why the index was believed, or had to be made.
    #[serde(default)]
    pub index_reason: String,
    /// Length of the blob.
    pub size: u64,
    /// Bytes of it in the cache.
    pub local: u64,
    /// Bytes of it fetched for this mount.
    pub fetched: u64,
    /// Ranged reads asked for it.
    pub requests: u64,
    /// Spans it is divided into.
    pub spans: u32,
    /// Why it cannot be read lazily, if it cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_lazy: Option<String>,
}

/// The daemon and its mounts.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StatusReport {
    /// Process number.
    pub pid: u32,
    /// Version of the program.
    pub version: String,
    /// The cache directory.
    pub cache_dir: PathBuf,
    /// Bytes of decoded spans in memory.
    pub memory_spans: u64,
    /// What they may have at most.
    pub memory_limit: u64,
    /// Memory of the daemon that is no file's; none if the kernel does not tell.
    pub memory_daemon: Option<u64>,
    /// Bytes that were asked of registries and have not come.
    #[serde(default)]
    pub bytes_in_flight: u64,
    /// The mounts.
    pub mounts: Vec<MountReport>,
}

/// An image as `inspect` shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageReport {
    /// The reference.
    pub reference: String,
    /// Digest of the manifest.
    pub digest: String,
    /// The platform of this manifest.
    pub platform: String,
    /// All platforms there are, if the reference names an image index.
    pub platforms: Vec<String>,
    /// Layers from the bottom.
    pub layers: Vec<LayerSummary>,
    /// Bytes of all layers, compressed, each blob once.
    pub size: u64,
    /// The configuration as its publisher wrote it.
    pub config: serde_json::Value,
}

/// One layer as `inspect` shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LayerSummary {
    /// Digest of the blob.
    pub digest: String,
    /// Digest of the uncompressed stream.
    pub diff_id: String,
    /// Media type in the manifest.
    pub media_type: String,
    /// Length of the blob.
    pub size: u64,
    /// True if its index is in the cache, so that mounting does not stream it.
    pub indexed: bool,
}
