//! Where things are in the cache directory, and which thing a name found there stands for.
//!
//! Names are made from [`Digest`]s only, which are valid by construction (D-005), and a name read back from the disk
//! goes through the same parser, so what somebody else put into the directory is never taken for an object.
//! [`Part`] names the subdirectories, [`Layout`] makes paths, [`Layout::walk`] visits what a part holds.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use super::{Context as _, Error, Usage};
use crate::oci::Digest;

/// A subdirectory of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    References,
    Documents,
    Blobs,
    Indexes,
    Claims,
    Trees,
    Files,
    Profiles,
    Temporary,
}

impl Part {
    pub(super) const ALL: [Self; 9] = [
        Self::References,
        Self::Documents,
        Self::Blobs,
        Self::Indexes,
        Self::Claims,
        Self::Trees,
        Self::Files,
        Self::Profiles,
        Self::Temporary,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::References => "refs",
            Self::Documents => "manifests",
            Self::Blobs => "blobs",
            Self::Indexes => "indexes",
            Self::Claims => "claims",
            Self::Trees => "trees",
            Self::Files => "files",
            Self::Profiles => "profiles",
            Self::Temporary => "tmp",
        }
    }
}

/// The three files that a blob of one size may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BlobFile {
    /// All bytes, under the bare digest.
    Complete,
    /// Some bytes of a sparse file of this length, `.SIZE.partial`. Before a blob is complete nobody knows its size, and two
    /// manifests may say different things.
    Partial(u64),
    /// Which bytes those are, `.SIZE.map`.
    Map(u64),
}

/// The paths of one cache directory.
#[derive(Debug)]
pub(super) struct Layout {
    root: PathBuf,
    temporaries: AtomicU64,
}

/// A regular file met on a walk.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) name: String,
    metadata: Metadata,
}

impl Layout {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, temporaries: AtomicU64::new(0) }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn part(&self, part: Part) -> PathBuf {
        self.root.join(part.name())
    }

    /// The path of an object that is one file named by a digest.
    pub(super) fn object(&self, part: Part, digest: &Digest) -> PathBuf {
        self.part(part).join(object_name(digest))
    }

    /// The path of what `claim` says of `layer`.
    pub(super) fn claim(&self, layer: &Digest, claim: &Digest) -> PathBuf {
        // Two names of SHA-512 would be longer than a file name may be.
        let claim = match claim {
            Digest::Sha256(_) => *claim,
            Digest::Sha512(_) => Digest::sha256(claim.to_string().as_bytes()),
        };
        self.part(Part::Claims).join(format!("{}.{}", object_name(layer), object_name(&claim)))
    }

    pub(super) fn blob(&self, digest: &Digest, file: BlobFile) -> PathBuf {
        let suffix = match file {
            BlobFile::Complete => String::new(),
            BlobFile::Partial(size) => format!(".{size}.partial"),
            BlobFile::Map(size) => format!(".{size}.map"),
        };
        self.part(Part::Blobs).join(object_name(digest) + &suffix)
    }

    /// The path of a decoded file; 256 subdirectories keep each of them small.
    pub(super) fn file(&self, content: &[u8; 32]) -> PathBuf {
        let hex = Digest::Sha256(*content).hex();
        self.part(Part::Files).join(&hex[..2]).join(hex)
    }

    /// A path in `tmp/` that nobody else in this process gets; other processes are kept out by the lock.
    pub(super) fn temporary(&self) -> PathBuf {
        let number = self.temporaries.fetch_add(1, Ordering::Relaxed);
        self.part(Part::Temporary).join(number.to_string())
    }

    /// `path` relative to the cache directory, for people and reports.
    pub(super) fn relative(&self, path: &Path) -> String {
        path.strip_prefix(&self.root).unwrap_or(path).to_string_lossy().into_owned()
    }

    /// Visits the regular files of `part`. Entries that vanish meanwhile are skipped, names that are not text ignored.
    pub(super) fn walk(&self, part: Part, visit: &mut dyn FnMut(Found) -> Result<(), Error>) -> Result<(), Error> {
        let dir = self.part(part);
        if part != Part::Files {
            return walk_dir(&dir, visit);
        }
        for entry in fs::read_dir(&dir).context("read", &dir)? {
            let entry = entry.context("read", &dir)?;
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                walk_dir(&entry.path(), visit)?;
            }
        }
        Ok(())
    }
}

impl Found {
    /// This file as one object.
    pub(super) fn usage(&self) -> Usage {
        Usage { count: 1, bytes: allocated(&self.metadata) }
    }

    /// When it was last used: read (the store sets the access time itself, see [`super::object::touch`]) or written.
    pub(super) fn used(&self) -> SystemTime {
        used(&self.metadata)
    }
}

/// Bytes on disk; `st_blocks` counts 512-byte units whatever the file system's block size is (stat(2)).
pub(super) fn allocated(metadata: &Metadata) -> u64 {
    metadata.blocks().saturating_mul(512)
}

pub(super) fn used(metadata: &Metadata) -> SystemTime {
    let time = |result: io::Result<SystemTime>| result.unwrap_or(SystemTime::UNIX_EPOCH);
    time(metadata.accessed()).max(time(metadata.modified()))
}

fn object_name(digest: &Digest) -> String {
    format!("{}-{}", digest.algorithm().name(), digest.hex())
}

/// The digest an object's name stands for, `None` for a name this program does not write.
pub(super) fn parse_object(name: &str) -> Option<Digest> {
    let (algorithm, hex) = name.split_once('-')?;
    format!("{algorithm}:{hex}").parse().ok()
}

/// The layer and the claim of a name in `claims/`.
pub(super) fn parse_claim(name: &str) -> Option<(Digest, Digest)> {
    let (layer, claim) = name.split_once('.')?;
    Some((parse_object(layer)?, parse_object(claim)?))
}

/// The digest and role of a name in `blobs/`.
pub(super) fn parse_blob(name: &str) -> Option<(Digest, BlobFile)> {
    let mut parts = name.split('.');
    let digest = parse_object(parts.next()?)?;
    let file = match (parts.next(), parts.next(), parts.next()) {
        (None, None, None) => BlobFile::Complete,
        (Some(size), Some("partial"), None) => BlobFile::Partial(parse_size(size)?),
        (Some(size), Some("map"), None) => BlobFile::Map(parse_size(size)?),
        _ => return None,
    };
    Some((digest, file))
}

/// A size as it is written here, and in no other way.
fn parse_size(text: &str) -> Option<u64> {
    text.parse().ok().filter(|size: &u64| size.to_string() == text)
}

/// The content key a name in `files/` stands for.
pub(super) fn parse_file(name: &str) -> Option<[u8; 32]> {
    match format!("sha256:{name}").parse() {
        Ok(Digest::Sha256(content)) => Some(content),
        _ => None,
    }
}

fn walk_dir(dir: &Path, visit: &mut dyn FnMut(Found) -> Result<(), Error>) -> Result<(), Error> {
    for entry in fs::read_dir(dir).context("read", dir)? {
        let entry = entry.context("read", dir)?;
        let path = entry.path();
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).context("examine", &path),
        };
        match entry.file_name().into_string() {
            Ok(name) if metadata.is_file() => visit(Found { path, name, metadata })?,
            _ => tracing::debug!(path = ?path, "not one of the cache's files, left alone"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn d_005_only_names_made_here_are_read_back() {
        for digest in [Digest::sha256(b"x"), Digest::of(Algorithm::Sha512, b"x")] {
            let name = object_name(&digest);
            assert_eq!(parse_object(&name), Some(digest));
            for file in [BlobFile::Complete, BlobFile::Partial(0), BlobFile::Partial(u64::MAX), BlobFile::Map(70)] {
                let path = Layout::new("/c".into()).blob(&digest, file);
                let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
                assert!(name.len() <= 255, "{name}");
                assert_eq!(parse_blob(name), Some((digest, file)));
            }
            for suffix in ["partial", "7", "07.map", "+7.map", ".map", "7.partial.map", "7.maps", "x.partial"] {
                assert_eq!(parse_blob(&format!("{name}.{suffix}")), None, "{suffix}");
            }
            assert_eq!(parse_blob(&name.to_uppercase()), None);
            for claim in [Digest::sha256(b"y"), Digest::of(Algorithm::Sha512, b"y")] {
                let path = Layout::new("/c".into()).claim(&digest, &claim);
                let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
                assert!(name.len() <= 255, "{name}");
                assert_eq!(parse_claim(name).map(|(layer, _)| layer), Some(digest));
                assert_eq!((parse_object(name), parse_blob(name)), (None, None));
            }
        }
        for name in ["", "-", "sha256-", "sha256-..", ".map", "sha256-../../etc", "lost+found"] {
            assert_eq!(parse_blob(name), None, "{name}");
        }
        let content = [0xab; 32];
        assert_eq!(parse_file(&"ab".repeat(32)), Some(content));
        assert_eq!(parse_file(&"AB".repeat(32)), None);
    }

    #[test]
    fn a_file_is_in_the_subdirectory_of_its_first_byte() {
        let path = Layout::new("/c".into()).file(&[0x5a; 32]);
        assert_eq!(path, Path::new("/c/files/5a").join("5a".repeat(32)));
    }
}
