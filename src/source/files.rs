//! Blobs kept as local files, whatever holds the files.
//!
//! [`Files`] is what a layout directory and an archive have in common: sections by name. [`LocalBlob`] and
//! [`read_manifest`] turn that into blobs and manifests by descriptor.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures_util::stream;

use super::section::{PIECE, Section, blocking};
use super::{BlobReader, BoxFuture, ByteStream, Document, Error, ErrorKind};
use crate::limits;
use crate::oci::{Descriptor, Digest};

/// Files by their name relative to a directory or archive. Calls block on local file I/O.
pub(super) trait Files: fmt::Debug + Send + Sync {
    /// How messages name the whole: `oci:/srv/layout`, escaped.
    fn name(&self) -> &str;

    /// Opens the regular file `name`; [`ErrorKind::NotFound`] if there is none.
    fn open(&self, name: &str) -> Result<Section, Error>;

    /// True if there is something below the directory `name`.
    fn has_directory(&self, name: &str) -> bool;
}

/// Where an image layout keeps a blob (image-layout.md).
pub(super) fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

/// Reads and checks a document of the given digest, and of the given size if that is known; blocks.
pub(super) fn read_document(
    section: &Section,
    digest: &Digest,
    size: Option<u64>,
    media_type: &str,
) -> Result<Document, Error> {
    check_size(section, size.unwrap_or(section.length()))?;
    let bytes = section.read_document(limits::MANIFEST_BYTES)?;
    if !digest.matches(&bytes) {
        let message = format!("{} does not have the digest {digest}", section.label());
        return Err(Error::new(ErrorKind::Corrupt, message));
    }
    Ok(Document { media_type: essence(media_type), digest: *digest, bytes })
}

fn essence(media_type: &str) -> String {
    media_type.split(';').next().unwrap_or_default().trim().to_owned()
}

fn check_size(section: &Section, size: u64) -> Result<(), Error> {
    if section.length() == size {
        return Ok(());
    }
    let message = format!("{} has {} bytes instead of {size}", section.label(), section.length());
    Err(Error::new(ErrorKind::Corrupt, message))
}

/// Answers [`super::Source::manifest`] from `files`; the embedded copy is used if there is one (B-057).
pub(super) fn read_manifest<'a>(
    files: &Arc<dyn Files>,
    descriptor: &'a Descriptor,
) -> BoxFuture<'a, Result<Document, Error>> {
    let files = files.clone();
    Box::pin(async move {
        let Descriptor { media_type, digest, size, data, .. } = descriptor.clone();
        if let Some(bytes) = data {
            return Ok(Document { media_type: essence(&media_type), digest, bytes });
        }
        blocking(move || read_document(&files.open(&blob_path(&digest))?, &digest, Some(size), &media_type)).await
    })
}

/// One blob among [`Files`]. The file is opened by the first read and stays open.
#[derive(Debug)]
pub(super) struct LocalBlob {
    files: Arc<dyn Files>,
    /// The name of its file.
    path: String,
    size: u64,
    data: Option<Bytes>,
    section: OnceLock<Section>,
}

impl LocalBlob {
    /// The blob of `descriptor`, kept in the file `path`.
    pub(super) fn new(files: Arc<dyn Files>, path: String, descriptor: &Descriptor) -> Self {
        Self { files, path, size: descriptor.size, data: descriptor.data.clone(), section: OnceLock::new() }
    }

    async fn section(&self) -> Result<Section, Error> {
        if let Some(section) = self.section.get() {
            return Ok(section.clone());
        }
        let (files, path, size) = (self.files.clone(), self.path.clone(), self.size);
        let section = blocking(move || {
            let section = files.open(&path)?;
            check_size(&section, size)?;
            Ok(section)
        })
        .await?;
        Ok(self.section.get_or_init(|| section).clone())
    }
}

impl BlobReader for LocalBlob {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, Error>> {
        Box::pin(async move {
            if range.start > range.end || range.end > self.size {
                let message = format!("bytes {}..{} are outside of {}", range.start, range.end, self.path);
                return Err(Error::new(ErrorKind::Invalid, message));
            }
            match &self.data {
                Some(data) => Ok(stream_of(data, range)),
                None => Ok(self.section().await?.stream(range)),
            }
        })
    }
}

/// [`PIECE`] for slices.
const PIECE_LEN: usize = PIECE as usize;

/// Streams embedded content; the descriptor's size was checked against it when it was parsed.
fn stream_of(data: &Bytes, range: Range<u64>) -> ByteStream {
    let index = |offset: u64| usize::try_from(offset).map_or(data.len(), |offset| offset.min(data.len()));
    let mut rest = data.slice(index(range.start)..index(range.end));
    let mut pieces = Vec::new();
    while !rest.is_empty() {
        pieces.push(Ok(rest.split_to(rest.len().min(PIECE_LEN))));
    }
    Box::pin(stream::iter(pieces))
}
