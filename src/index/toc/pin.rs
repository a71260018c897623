//! What a manifest says about the TOC of a layer.
//!
//! Three families of annotations are in use. stargz-snapshotter writes the digest of the document for both formats, and for
//! zstd:chunked also digest and position of the compressed document, under names that containers/storage used first and then
//! left to it. So two of the families may come together, as long as they name one TOC; the document's digest beside the
//! present names of containers/storage cannot be the work of one tool, and two readers would see two images.

use std::collections::BTreeMap;

use super::zstd_chunked::Position;
use super::{Error, Place};
use crate::oci::Digest;

const DOCUMENT: &str = "containerd.io/snapshot/stargz/toc.digest";

/// Names of annotations for zstd:chunked.
struct Family {
    checksum: &'static str,
    position: &'static str,
}

/// What containers/storage writes.
const STORAGE: Family = Family {
    checksum: "io.github.containers.zstd-chunked.manifest-checksum",
    position: "io.github.containers.zstd-chunked.manifest-position",
};

/// What stargz-snapshotter writes, and containers/storage once did.
const STARGZ: Family = Family {
    checksum: "io.containers.zstd-chunked.manifest-checksum",
    position: "io.containers.zstd-chunked.manifest-position",
};

/// The digests that a manifest pins the TOC of a layer by, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    /// Of the document.
    document: Option<Digest>,
    /// Of the document as it is compressed in the blob (zstd:chunked).
    compressed: Option<Digest>,
    position: Option<Position>,
}

impl Pin {
    /// What the annotations of a layer pin; none if they pin no TOC.
    pub fn of(annotations: &BTreeMap<String, String>) -> Result<Option<Self>, Error> {
        let digest = |key: &'static str| {
            let text = annotations.get(key).filter(|text| !text.is_empty());
            text.map(|text| text.parse::<Digest>().map_err(|_| Error::Annotation(key))).transpose()
        };
        let document = digest(DOCUMENT)?;
        let mut pinned: Option<Self> = None;
        for family in [&STORAGE, &STARGZ] {
            // A position alone pins nothing.
            let Some(checksum) = digest(family.checksum)? else { continue };
            let position = annotations.get(family.position);
            let position = position.map(|text| Position::parse(text).ok_or(Error::Annotation(family.position)));
            let found = Self { document, compressed: Some(checksum), position: position.transpose()? };
            if document.is_some() && family.checksum == STORAGE.checksum
                || pinned.as_ref().is_some_and(|pinned| *pinned != found)
            {
                return Err(Error::Two);
            }
            pinned = Some(found);
        }
        let alone = || document.map(|digest| Self { document: Some(digest), compressed: None, position: None });
        Ok(pinned.or_else(alone))
    }

    /// The digest that names what this pins.
    pub fn digest(&self) -> Digest {
        // One of the two is always there.
        self.compressed.or(self.document).unwrap_or_else(|| Digest::sha256(b""))
    }

    /// Where in a blob of `size` bytes the TOC is, if the manifest says so; else the blob's footer does.
    pub fn place(&self, size: u64) -> Result<Option<Place>, Error> {
        self.position.as_ref().map(|position| position.place(size).ok_or(Error::Place)).transpose()
    }

    /// Compares the bytes of the TOC as they are in the blob.
    pub(super) fn check_compressed(&self, bytes: &[u8]) -> Result<bool, Error> {
        check(self.compressed.as_ref(), bytes)
    }

    /// Compares the document. False if there is nothing to compare it with.
    pub(super) fn check_document(&self, bytes: &[u8]) -> Result<bool, Error> {
        check(self.document.as_ref(), bytes)
    }
}

fn check(expected: Option<&Digest>, bytes: &[u8]) -> Result<bool, Error> {
    let Some(expected) = expected else { return Ok(false) };
    match Digest::of(expected.algorithm(), bytes) {
        found if found == *expected => Ok(true),
        found => Err(Error::Digest { expected: Box::new(*expected), found: Box::new(found) }),
    }
}
