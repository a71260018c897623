//! Reference to manifest to configuration, from the source or from the cache.
//!
//! Documents named by digest never change, so a cached one is as good as the source's and costs no round trip. Only a
//! tag must be asked for; where that is impossible, the digest it had last stands in, and the user is told.

use bytes::Bytes;

use super::shared::Search;
use super::{Error, Images, Request, Resolved};
use crate::limits;
use crate::oci::{self, Descriptor, ImageConfig, ImageIndex, ImageManifest, Manifest, Reference};
use crate::source::{self, Document, ErrorKind, Source};

impl Images {
    /// Follows the reference through image indexes to the manifest of the wanted platform, and reads its configuration.
    ///
    /// Entries that state no platform come last, and only their configuration tells whether they fit (B-049). `search`
    /// begins as soon as there is a manifest, beside the configuration.
    pub(super) async fn documents(
        &self,
        request: &Request,
        source: Option<&dyn Source>,
        search: &Search,
    ) -> Result<Resolved, Error> {
        let mut warnings = Vec::new();
        let top = self.top(request, source, &mut warnings).await?;
        // Nothing else is told so early.
        let is_remembered = !warnings.is_empty();
        let mut documents = vec![top.digest];
        let mut index: Option<ImageIndex> = None;
        let mut candidates = vec![Candidate { document: Found::Here(top), is_certain: true, depth: 0 }];
        while let Some(Candidate { document, is_certain, depth }) = candidates.pop() {
            let document = match document {
                Found::Here(document) => document,
                Found::Listed(descriptor) => self.child(&descriptor, source).await?,
            };
            let digest = document.digest;
            if depth > limits::INDEX_DEPTH || documents.len() > limits::DOCUMENTS {
                return Err(Error::Depth(digest));
            }
            documents.push(digest);
            let parsed = Manifest::parse(&document.bytes, &document.media_type)
                .map_err(|source| Error::Manifest { digest, source: Box::new(source) })?;
            let manifest = match parsed {
                Manifest::Image(manifest) => manifest,
                Manifest::Index(children) => {
                    let fitting = oci::ranked(&children.entries, &request.wanted);
                    candidates.extend(fitting.into_iter().rev().map(|entry| Candidate {
                        document: Found::Listed(entry.descriptor.clone()),
                        is_certain: entry.platform.is_some(),
                        depth: depth + 1,
                    }));
                    index.get_or_insert(children);
                    continue;
                }
            };
            manifest.check_runnable().map_err(|source| Error::Manifest { digest, source: Box::new(source) })?;
            search.begin(digest, &manifest);
            let (config, config_bytes) = self.config(&manifest, source).await?;
            if !is_certain && !request.wanted.accepts(&config.platform) {
                continue;
            }
            documents.push(manifest.config.digest);
            manifest.check(&config).map_err(|source| Error::Manifest { digest, source: Box::new(source) })?;
            note_platform(request, &config, index.is_some(), &mut warnings);
            let manifest_size = document.bytes.len() as u64;
            let media_type = stated_type(&document);
            return Ok(Resolved {
                index,
                digest,
                media_type,
                manifest_size,
                manifest,
                config,
                config_bytes,
                warnings,
                is_remembered,
                documents,
            });
        }
        let entries = index.map_or_else(Vec::new, |index| index.entries);
        Err(Error::Platform(oci::no_match(&entries, &request.wanted)))
    }

    /// The image index that the reference names, if it names one.
    pub(super) async fn index_of(
        &self,
        request: &Request,
        source: Option<&dyn Source>,
    ) -> Result<Option<ImageIndex>, Error> {
        let top = self.top(request, source, &mut Vec::new()).await?;
        let digest = top.digest;
        match Manifest::parse(&top.bytes, &top.media_type) {
            Ok(Manifest::Index(index)) => Ok(Some(index)),
            Ok(Manifest::Image(_)) => Ok(None),
            Err(source) => Err(Error::Manifest { digest, source: Box::new(source) }),
        }
    }

    /// The document that the reference itself names.
    async fn top(
        &self,
        request: &Request,
        source: Option<&dyn Source>,
        warnings: &mut Vec<String>,
    ) -> Result<Document, Error> {
        let key = request.reference.to_string();
        // A local place may have been written anew, but nobody looks there offline.
        let is_settled = request.offline || matches!(request.reference, Reference::Registry(_));
        if let Some(digest) = request.reference.digest().filter(|_| is_settled)
            && let Some(bytes) = self.store.document(digest)?
        {
            return Ok(Document { media_type: String::new(), digest: *digest, bytes });
        }
        let Some(source) = source else {
            return self.remembered(&key)?.ok_or(Error::Offline(key));
        };
        match source.resolve().await {
            Ok(document) => {
                self.remember(&document);
                if matches!(request.reference, Reference::Registry(_))
                    && let Err(error) = self.store.put_reference(&key, &document.digest, &document.media_type)
                {
                    tracing::debug!(%error, "the reference is not remembered for an outage");
                }
                Ok(document)
            }
            Err(error) if error.kind() == ErrorKind::Unreachable => match self.remembered(&key)? {
                Some(document) => {
                    warnings.push(format!("{error}; using {key} as it was last seen ({})", document.digest));
                    Ok(document)
                }
                None => Err(error.into()),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// What `key` resolved to last, if the cache still has it.
    fn remembered(&self, key: &str) -> Result<Option<Document>, Error> {
        let Some((digest, media_type)) = self.store.reference(key)? else { return Ok(None) };
        Ok(self.store.document(&digest)?.map(|bytes| Document { media_type, digest, bytes }))
    }

    /// A manifest that an index lists.
    async fn child(&self, descriptor: &Descriptor, source: Option<&dyn Source>) -> Result<Document, Error> {
        let cached = match &descriptor.data {
            Some(data) => Some(data.clone()),
            None => self.store.document(&descriptor.digest)?,
        };
        if let Some(bytes) = cached {
            return Ok(Document { media_type: descriptor.media_type.clone(), digest: descriptor.digest, bytes });
        }
        let source = source.ok_or_else(|| Error::Offline(format!("manifest {}", descriptor.digest)))?;
        let document = source.manifest(descriptor).await?;
        self.remember(&document);
        Ok(document)
    }

    async fn config(
        &self,
        manifest: &ImageManifest,
        source: Option<&dyn Source>,
    ) -> Result<(ImageConfig, Bytes), Error> {
        let descriptor = &manifest.config;
        let digest = descriptor.digest;
        let cached = match &descriptor.data {
            Some(data) => Some(data.clone()),
            None => self.store.document(&digest)?,
        };
        let bytes = match cached {
            Some(bytes) => bytes,
            None => {
                let source = source.ok_or_else(|| Error::Offline(format!("configuration {digest}")))?;
                let bytes = read_config(source, descriptor).await?;
                self.remember(&Document { media_type: String::new(), digest, bytes: bytes.clone() });
                bytes
            }
        };
        let config = ImageConfig::parse(&bytes).map_err(|source| Error::Config { digest, source: Box::new(source) })?;
        Ok((config, bytes))
    }

    /// Keeps a document. Failing to is harmless: it would only have saved a request.
    fn remember(&self, document: &Document) {
        if let Err(error) = self.store.put_document(&document.digest, &document.bytes) {
            tracing::debug!(%error, "document is not kept");
        }
    }
}

/// A manifest or index that may lead to the image.
struct Candidate {
    document: Found,
    /// False if only its configuration can tell whether it fits.
    is_certain: bool,
    /// Indexes above it.
    depth: usize,
}

enum Found {
    Here(Document),
    Listed(Descriptor),
}

/// The media type of a manifest: what it says of itself, which is the same wherever it lies, or else what its source says.
fn stated_type(document: &Document) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Stated {
        #[serde(rename = "mediaType")]
        media_type: Option<String>,
    }
    let itself = serde_json::from_slice(&document.bytes).ok().and_then(|stated: Stated| stated.media_type);
    itself.or_else(|| (!document.media_type.is_empty()).then(|| document.media_type.clone()))
}

/// Tells the user when an image that offered no choice is for another platform (B-048).
fn note_platform(request: &Request, config: &ImageConfig, chosen: bool, warnings: &mut Vec<String>) {
    if !chosen && !request.wanted.accepts(&config.platform) {
        warnings.push(format!("the image is for {}, not for {}", config.platform, request.wanted));
    }
}

/// Reads and checks a configuration, whose length is bounded before anything is asked for.
async fn read_config(source: &dyn Source, descriptor: &Descriptor) -> Result<Bytes, source::Error> {
    let Descriptor { digest, size, .. } = descriptor;
    if *size > limits::CONFIG_BYTES {
        let message = format!("configuration {digest} has {size} bytes, more than {}", limits::CONFIG_BYTES);
        return Err(source::Error::new(ErrorKind::Unsupported, message));
    }
    let bytes = source::read_checked(source.blob(descriptor).as_ref(), *size, digest).await?;
    bytes.ok_or_else(|| {
        let message = format!("{} sent bytes for {digest} that do not have this digest and size", source.name());
        source::Error::new(ErrorKind::Corrupt, message)
    })
}
