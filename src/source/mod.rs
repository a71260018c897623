//! The contract of every place blobs come from.
//!
//! A [`Source`] answers for one repository: a registry repository, a layout directory or an archive. It hands out
//! *unverified* bytes; whoever asked compares them with the digest before they go any further. Three kinds implement
//! it: [`crate::registry`], and the layout and the archives of this module.
//!
//! All methods may be called from many tasks at once and repeated without harm. Implementations retry what is worth
//! retrying; an [`Error`] that comes out is final for this call, and [`Error::is_transient`] says whether a later call
//! may fare better.

use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;

use crate::oci::{ConfigError, Descriptor, Digest, ManifestError};

mod archive;
mod docker_archive;
mod files;
mod image_layout;
mod layout;
mod members;
mod section;

pub use archive::OciArchive;
pub use docker_archive::DockerArchive;
pub use layout::Layout;

/// A future that a source hands out; boxed, because sources are chosen at run time.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Bytes in order, in pieces of whatever size they arrived in.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, Error>> + Send>>;

/// The bytes of a manifest, index or configuration, with what the source said they are.
#[derive(Debug, Clone)]
pub struct Document {
    /// The media type by which the source served or listed the document, without parameters; empty if it said nothing.
    pub media_type: String,
    /// The digest of `bytes`, computed here.
    pub digest: Digest,
    /// The exact bytes.
    pub bytes: Bytes,
}

/// A place that holds one repository's manifests and blobs.
pub trait Source: fmt::Debug + Send + Sync {
    /// How people name this source in errors and status: `registry.example.com/library/debian`, `oci:/srv/layout`.
    fn name(&self) -> String;

    /// Fetches the document that the reference selects: by digest if it has one, else by tag or by being the only one.
    ///
    /// The bytes are checked against the reference's digest if it has one. At most [`crate::limits::MANIFEST_BYTES`].
    fn resolve(&self) -> BoxFuture<'_, Result<Document, Error>>;

    /// Fetches a manifest by descriptor (a child of an image index), checked against its size and digest.
    fn manifest<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<Document, Error>>;

    /// Opens a blob for ranged reads. Needs no round trip: faults show at the first read.
    fn blob(&self, descriptor: &Descriptor) -> Arc<dyn BlobReader>;
}

/// Ranged access to one blob, unverified.
pub trait BlobReader: fmt::Debug + Send + Sync {
    /// The length that the descriptor states.
    fn size(&self) -> u64;

    /// The host that sends the bytes, if it is another machine's matter whether they can be had: what it sends of other
    /// blobs is away when this is.
    fn host(&self) -> Option<&str> {
        None
    }

    /// Streams exactly the bytes of `range` (within the size), or fails. A short or long answer is an error, never
    /// a short stream. Dropping the stream cancels the transfer.
    fn read(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, Error>>;

    /// Says that bytes of `range`, as they were read here, are wrong. True if another place has not had its turn: reading
    /// again then asks that one. Repeated for the same range, it ends.
    ///
    /// Most sources are one place, and have nothing else to ask.
    fn distrust(&self, _range: Range<u64>) -> bool {
        false
    }
}

/// Reads `range` of `blob` as one buffer; for small objects such as configurations.
pub async fn read_all(blob: &dyn BlobReader, range: Range<u64>) -> Result<Bytes, Error> {
    use futures_util::StreamExt;
    let mut stream = blob.read(range.clone()).await?;
    let mut whole = Vec::with_capacity(usize::try_from(range.end - range.start).unwrap_or(0).min(1 << 20));
    while let Some(piece) = stream.next().await {
        whole.extend_from_slice(&piece?);
    }
    Ok(whole.into())
}

/// Reads the first bytes of `blob`, as many as have the digest `digest`, and compares; none if they are wrong wherever they
/// can be had from.
pub async fn read_checked(blob: &dyn BlobReader, size: u64, digest: &Digest) -> Result<Option<Bytes>, Error> {
    loop {
        let bytes = read_all(blob, 0..size).await?;
        if bytes.len() as u64 == size && digest.matches(&bytes) {
            return Ok(Some(bytes));
        }
        if !blob.distrust(0..size) {
            return Ok(None);
        }
        tracing::warn!(%digest, "bytes are wrong, asking another host for them");
    }
}

/// What went wrong at a source, in the terms a caller decides by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The repository, tag, manifest or blob does not exist there.
    NotFound,
    /// Credentials are missing or do not suffice.
    Denied,
    /// The host cannot be reached, resets, stalls or answers 5xx or 429 beyond all retries.
    Unreachable,
    /// Bytes are not what their descriptor or digest says.
    Corrupt,
    /// The source answers with something that breaks its protocol, or a document is malformed.
    Invalid,
    /// Well-formed but nothing this program can use (schema 1, unknown algorithm).
    Unsupported,
    /// The reference fits several images, or none clearly.
    Ambiguous,
    /// A local file cannot be read.
    Io,
    /// What the user's files say about hosts is wrong.
    Misconfigured,
}

/// A failure of a source: who failed, on what, and what a user could do about it.
#[derive(Debug, Clone)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    hint: Option<String>,
    cause: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// A failure of `kind`; `message` names the object (digest, path, URL without its query) and says what happened,
    /// lower case, without a full stop, and does not repeat the cause.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None, cause: None }
    }

    /// Adds the underlying error.
    pub fn because(mut self, cause: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.cause = Some(Arc::new(cause));
        self
    }

    /// Adds advice for the user, shown as `hint:`.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds what else failed before, in a word for each.
    #[must_use]
    pub fn besides(mut self, others: &str) -> Self {
        self.message.push_str(&format!(" (besides: {others})"));
        self
    }

    /// The kind of failure.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Advice for the user, if there is any.
    pub fn advice(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// True if the same call may succeed later without anything being changed.
    pub fn is_transient(&self) -> bool {
        match self.kind {
            ErrorKind::Unreachable => true,
            ErrorKind::NotFound
            | ErrorKind::Denied
            | ErrorKind::Corrupt
            | ErrorKind::Invalid
            | ErrorKind::Unsupported
            | ErrorKind::Ambiguous
            | ErrorKind::Io
            | ErrorKind::Misconfigured => false,
        }
    }
}

impl From<ManifestError> for Error {
    fn from(error: ManifestError) -> Self {
        let kind = if error.is_unsupported() { ErrorKind::Unsupported } else { ErrorKind::Invalid };
        Self::new(kind, error.to_string())
    }
}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        let kind = if error.is_unsupported() { ErrorKind::Unsupported } else { ErrorKind::Invalid };
        Self::new(kind, error.to_string())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}

#[cfg(test)]
mod conformance;
