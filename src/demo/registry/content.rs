//! What the embedded registry holds: blobs by digest, manifests and tags by repository.
//!
//! [`Content`] is a handle: clones share what is in it, so that two registries (a mirror, the target of a redirect) can
//! serve the same images and content can be added while a registry runs.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;

use crate::oci::{Algorithm, Descriptor, Digest, Hasher};

/// Images for the embedded registry to serve, in memory or in files.
///
/// Blobs belong to every repository, unlike in a real registry: it saves tests from saying who has what.
#[derive(Debug, Clone, Default)]
pub struct Content(Arc<RwLock<State>>);

#[derive(Debug, Default)]
struct State {
    blobs: HashMap<Digest, Blob>,
    repositories: BTreeMap<String, Repository>,
}

#[derive(Debug, Default)]
struct Repository {
    manifests: HashMap<Digest, Manifest>,
    tags: BTreeMap<String, Digest>,
}

/// A manifest as it was added.
#[derive(Debug, Clone)]
pub(super) struct Manifest {
    pub(super) media_type: String,
    pub(super) digest: Digest,
    pub(super) bytes: Bytes,
}

/// Where the bytes of a blob are.
#[derive(Debug, Clone)]
pub(super) enum Blob {
    Memory(Bytes),
    File { path: Arc<Path>, size: u64 },
}

impl Blob {
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File { size, .. } => *size,
        }
    }
}

impl Content {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a blob from memory and describes it, with its SHA-256 digest.
    pub fn add_blob(&self, media_type: &str, bytes: impl Into<Bytes>) -> Descriptor {
        self.add_blob_as(Algorithm::Sha256, media_type, bytes)
    }

    /// Adds a blob from memory and describes it, with a digest of `algorithm`.
    pub fn add_blob_as(&self, algorithm: Algorithm, media_type: &str, bytes: impl Into<Bytes>) -> Descriptor {
        let bytes = bytes.into();
        let descriptor = describe(media_type, Digest::of(algorithm, &bytes), bytes.len() as u64);
        self.write().blobs.insert(descriptor.digest, Blob::Memory(bytes));
        descriptor
    }

    /// Adds the file at `path` as a blob and describes it, with its SHA-256 digest.
    ///
    /// The file is read through once here and then for every request; it must stay, unchanged, as long as it is served.
    pub fn add_blob_file(&self, media_type: &str, path: impl Into<PathBuf>) -> io::Result<Descriptor> {
        let path = path.into();
        let (digest, size) = hash_file(&path)
            .map_err(|error| io::Error::new(error.kind(), format!("cannot read {}: {error}", path.display())))?;
        self.write().blobs.insert(digest, Blob::File { path: path.into(), size });
        Ok(describe(media_type, digest, size))
    }

    /// Takes a blob away: what a registry looks like that lost it, or never got it.
    pub fn remove_blob(&self, digest: &Digest) {
        self.write().blobs.remove(digest);
    }

    /// Adds a manifest or an image index to `repository`, under its SHA-256 digest and under `tag` if there is one, and
    /// describes it.
    ///
    /// The bytes are not looked at: what they refer to may be missing, and they may be nonsense.
    pub fn add_manifest(
        &self,
        repository: &str,
        tag: Option<&str>,
        media_type: &str,
        bytes: impl Into<Bytes>,
    ) -> Descriptor {
        self.add_manifest_as(Algorithm::Sha256, repository, tag, media_type, bytes)
    }

    /// Like [`Self::add_manifest`], under a digest of `algorithm`.
    pub fn add_manifest_as(
        &self,
        algorithm: Algorithm,
        repository: &str,
        tag: Option<&str>,
        media_type: &str,
        bytes: impl Into<Bytes>,
    ) -> Descriptor {
        let bytes = bytes.into();
        let descriptor = describe(media_type, Digest::of(algorithm, &bytes), bytes.len() as u64);
        let manifest = Manifest { media_type: media_type.to_owned(), digest: descriptor.digest, bytes };
        let mut state = self.write();
        let repository = state.repositories.entry(repository.to_owned()).or_default();
        repository.manifests.insert(descriptor.digest, manifest);
        if let Some(tag) = tag {
            repository.tags.insert(tag.to_owned(), descriptor.digest);
        }
        descriptor
    }

    /// Keeps an uploaded blob if it has this digest.
    pub(super) fn put_blob(&self, digest: Digest, bytes: Bytes) -> bool {
        let matches = digest.matches(&bytes);
        if matches {
            self.write().blobs.insert(digest, Blob::Memory(bytes));
        }
        matches
    }

    /// Takes a manifest away, and the tags that name it; false if it was not there.
    pub(super) fn remove_manifest(&self, repository: &str, digest: &Digest) -> bool {
        let mut state = self.write();
        let Some(repository) = state.repositories.get_mut(repository) else { return false };
        repository.tags.retain(|_, named| named != digest);
        repository.manifests.remove(digest).is_some()
    }

    /// All manifests of a repository, by digest.
    pub(super) fn manifests(&self, repository: &str) -> BTreeMap<String, Manifest> {
        let state = self.read();
        let manifests = state.repositories.get(repository).into_iter().flat_map(|found| found.manifests.values());
        manifests.map(|manifest| (manifest.digest.to_string(), manifest.clone())).collect()
    }

    pub(super) fn has_repository(&self, repository: &str) -> bool {
        self.read().repositories.contains_key(repository)
    }

    pub(super) fn blob(&self, digest: &Digest) -> Option<Blob> {
        self.read().blobs.get(digest).cloned()
    }

    pub(super) fn manifest(&self, repository: &str, digest: &Digest) -> Option<Manifest> {
        self.read().repositories.get(repository)?.manifests.get(digest).cloned()
    }

    pub(super) fn tagged(&self, repository: &str, tag: &str) -> Option<Manifest> {
        let state = self.read();
        let repository = state.repositories.get(repository)?;
        repository.manifests.get(repository.tags.get(tag)?).cloned()
    }

    /// The tags of a repository in the order of the specification: alphanumeric, letters in either case alike.
    pub(super) fn tags(&self, repository: &str) -> Vec<String> {
        let state = self.read();
        let mut tags: Vec<String> =
            state.repositories.get(repository).map(|found| found.tags.keys().cloned().collect()).unwrap_or_default();
        tags.sort_by(|left, right| tag_order(left).cmp(&tag_order(right)));
        tags
    }

    /// Writers only insert and remove whole values, so what a panic left behind is as good as any other state.
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The key by which tags are listed; the tag itself breaks ties.
pub(super) fn tag_order(tag: &str) -> (String, &str) {
    (tag.to_ascii_lowercase(), tag)
}

fn describe(media_type: &str, digest: Digest, size: u64) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest,
        size,
        urls: Vec::new(),
        data: None,
        annotations: BTreeMap::new(),
    }
}

fn hash_file(path: &Path) -> io::Result<(Digest, u64)> {
    let mut file = File::open(path)?;
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; 256 << 10];
    let mut size = 0_u64;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((hasher.finish(), size)),
            count => {
                hasher.update(&buffer[..count]);
                size += count as u64;
            }
        }
    }
}
