//! Tar files as `docker save` writes them: `docker-archive:FILE`.
//!
//! Docker's format names files, not digests: `manifest.json` lists for each image a configuration, layer files and tags.
//! To the rest of the program every image has a manifest with digests, so one is made here: each layer file is hashed
//! once when the archive is opened. Since version 25 Docker writes an OCI image layout into the same file; then that is
//! what counts, as it does for containerd (B-024).

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::archive::{Compression, MAGIC_BYTES, open_members};
use super::files::{Files, LocalBlob, blob_path};
use super::image_layout::ImageLayout;
use super::members::Members;
use super::section::Section;
use super::{BlobReader, BoxFuture, Document, Error, ErrorKind, Source};
use crate::limits;
use crate::oci::{Algorithm, Descriptor, Digest, Hasher, ImageConfig, LocalSelector, Printable, RegistryName};

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

/// Most images listed in an error.
const LISTED: usize = 20;

/// One image of a tar file in Docker's format.
#[derive(Debug)]
pub struct DockerArchive(Content);

#[derive(Debug)]
enum Content {
    Oci(ImageLayout),
    Docker(DockerImage),
}

/// One image in Docker's format, with the manifest made for it.
#[derive(Debug)]
struct DockerImage {
    files: Arc<dyn Files>,
    manifest: Document,
    /// The members that hold the configuration and the layers.
    blobs: HashMap<Digest, String>,
}

impl DockerArchive {
    /// Opens the archive `file` and chooses an image of it.
    ///
    /// Blocks while the image's layers are read once to be hashed, and before that, for a compressed archive, as long
    /// as it takes to decompress it into `scratch`. Without a selector the archive has to hold exactly one image. A
    /// selector by digest means the digest of the manifest that is made here, which depends on the content only.
    pub fn open(file: &Path, selector: Option<&LocalSelector>, scratch: &Path) -> Result<Self, Error> {
        let members = open_members(file, "docker-archive", scratch)?;
        if ImageLayout::is_in(&members) {
            return ImageLayout::open(Arc::new(members), selector).map(|layout| Self(Content::Oci(layout)));
        }
        DockerImage::open(members, selector).map(|image| Self(Content::Docker(image)))
    }
}

impl Source for DockerArchive {
    fn name(&self) -> String {
        match &self.0 {
            Content::Oci(layout) => layout.name(),
            Content::Docker(image) => image.files.name().to_owned(),
        }
    }

    fn resolve(&self) -> BoxFuture<'_, Result<Document, Error>> {
        match &self.0 {
            Content::Oci(layout) => layout.resolve(),
            Content::Docker(image) => Box::pin(async { Ok(image.manifest.clone()) }),
        }
    }

    fn manifest<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<Document, Error>> {
        match &self.0 {
            Content::Oci(layout) => layout.manifest(descriptor),
            Content::Docker(image) => Box::pin(async { image.manifest(descriptor) }),
        }
    }

    fn blob(&self, descriptor: &Descriptor) -> Arc<dyn BlobReader> {
        match &self.0 {
            Content::Oci(layout) => layout.blob(descriptor),
            Content::Docker(image) => Arc::new(image.blob(descriptor)),
        }
    }
}

/// One image of `manifest.json`.
#[derive(Debug, Deserialize)]
struct WireImage {
    #[serde(rename = "Config")]
    config: String,
    #[serde(rename = "RepoTags")]
    repo_tags: Option<Vec<String>>,
    #[serde(rename = "Layers")]
    layers: Option<Vec<String>>,
}

/// The manifest that is made, in the order in which it is written.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct WireManifest {
    schema_version: u8,
    media_type: &'static str,
    config: WireDescriptor,
    layers: Vec<WireDescriptor>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct WireDescriptor {
    media_type: String,
    digest: String,
    size: u64,
}

impl WireDescriptor {
    fn new(media_type: &str, digest: &Digest, size: u64) -> Self {
        Self { media_type: media_type.to_owned(), digest: digest.to_string(), size }
    }
}

impl DockerImage {
    fn open(members: Members, selector: Option<&LocalSelector>) -> Result<Self, Error> {
        let images = read_images(&members)?;
        let mut parts = Parts { members: &members, hashed: HashMap::new() };
        let (manifest, blobs) = match selector {
            Some(LocalSelector::Digest(digest)) => by_digest(&mut parts, &images, digest)?,
            Some(LocalSelector::Name(name)) => parts.image(by_name(&members, &images, name)?)?,
            Some(LocalSelector::Index(position)) => parts.image(by_position(&members, &images, *position)?)?,
            None => parts.image(only(&members, &images)?)?,
        };
        Ok(Self { files: Arc::new(members), manifest, blobs })
    }

    fn manifest(&self, descriptor: &Descriptor) -> Result<Document, Error> {
        if descriptor.digest == self.manifest.digest {
            if descriptor.size == self.manifest.bytes.len() as u64 {
                return Ok(self.manifest.clone());
            }
            let message = format!("manifest {} is not {} bytes long", descriptor.digest, descriptor.size);
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        let message = format!("{} has no manifest {}", self.files.name(), descriptor.digest);
        Err(Error::new(ErrorKind::NotFound, message))
    }

    fn blob(&self, descriptor: &Descriptor) -> LocalBlob {
        // A digest that the image does not name ends at a member that is not there, with an error that names it.
        let member = self.blobs.get(&descriptor.digest).cloned();
        let member = member.unwrap_or_else(|| blob_path(&descriptor.digest));
        LocalBlob::new(self.files.clone(), member, descriptor)
    }
}

fn read_images(members: &Members) -> Result<Vec<WireImage>, Error> {
    let name = members.name();
    let section = members.open("manifest.json").map_err(|error| match error.kind() {
        ErrorKind::NotFound if members.open("repositories").is_ok() => {
            let message = format!("{name} has the format that Docker wrote before version 1.10, without manifest.json");
            Error::new(ErrorKind::Unsupported, message).hint("load it with Docker and save it again")
        }
        ErrorKind::NotFound => {
            let message = format!("{name} is not an image archive: it has neither manifest.json nor oci-layout");
            Error::new(ErrorKind::Invalid, message)
        }
        _ => error,
    })?;
    let bytes = section.read_document(limits::MANIFEST_BYTES)?;
    let images: Vec<WireImage> = serde_json::from_slice(&bytes)
        .map_err(|error| Error::new(ErrorKind::Invalid, format!("{name}: malformed manifest.json")).because(error))?;
    if images.is_empty() {
        return Err(Error::new(ErrorKind::NotFound, format!("{name} holds no images")));
    }
    Ok(images)
}

fn only<'a>(members: &Members, images: &'a [WireImage]) -> Result<&'a WireImage, Error> {
    match images {
        [image] => Ok(image),
        _ => {
            let message = format!("{} holds more than one image ({})", members.name(), images.len());
            Err(Error::new(ErrorKind::Ambiguous, message).hint(list(images)))
        }
    }
}

fn by_position<'a>(members: &Members, images: &'a [WireImage], position: usize) -> Result<&'a WireImage, Error> {
    images.get(position).ok_or_else(|| {
        let message = format!("{} has no image @{position}", members.name());
        Error::new(ErrorKind::NotFound, message).hint(list(images))
    })
}

/// The first image with this tag, both written out in full, so that `debian:12` is `docker.io/library/debian:12`.
fn by_name<'a>(members: &Members, images: &'a [WireImage], name: &str) -> Result<&'a WireImage, Error> {
    let wanted = name.parse::<RegistryName>().ok();
    let matches = |tag: &String| tag == name || (wanted.is_some() && tag.parse::<RegistryName>().ok() == wanted);
    images.iter().find(|image| image.repo_tags.iter().flatten().any(matches)).ok_or_else(|| {
        let message = format!("{} has no image named \"{:.200}\"", members.name(), Printable::of(name));
        Error::new(ErrorKind::NotFound, message).hint(list(images))
    })
}

/// The image whose manifest has this digest; the manifests have to be made to know it.
fn by_digest(parts: &mut Parts<'_>, images: &[WireImage], digest: &Digest) -> Result<Made, Error> {
    for image in images {
        let made = parts.image(image)?;
        if made.0.digest == *digest {
            return Ok(made);
        }
    }
    let message = format!("{} has no image with the manifest {digest}", parts.members.name());
    Err(Error::new(ErrorKind::NotFound, message).hint(list(images)))
}

/// Says which images there are, and how to select them.
fn list(images: &[WireImage]) -> String {
    let name = |(position, image): (usize, &WireImage)| match image.repo_tags.iter().flatten().next() {
        Some(tag) => format!(":{:.200}", Printable::of(tag)),
        None => format!(":@{position}"),
    };
    let mut names: Vec<String> = images.iter().enumerate().take(LISTED).map(name).collect();
    if images.len() > LISTED {
        names.push("…".to_owned());
    }
    format!("it holds {}", names.join(", "))
}

/// A manifest and the members that its descriptors mean.
type Made = (Document, HashMap<Digest, String>);

/// Makes manifests, hashing every member once.
struct Parts<'a> {
    members: &'a Members,
    hashed: HashMap<String, Layer>,
}

#[derive(Clone)]
struct Layer {
    digest: Digest,
    size: u64,
    media_type: String,
}

impl Parts<'_> {
    fn image(&mut self, image: &WireImage) -> Result<Made, Error> {
        let (config_digest, config_size, config) = self.config(&image.config)?;
        let layers = image.layers.as_deref().unwrap_or_default();
        self.check_layers(layers, &config)?;
        let mut blobs = HashMap::from([(config_digest, image.config.clone())]);
        let mut descriptors = Vec::with_capacity(layers.len());
        for name in layers {
            let layer = self.layer(name)?;
            descriptors.push(WireDescriptor::new(&layer.media_type, &layer.digest, layer.size));
            blobs.insert(layer.digest, name.clone());
        }
        let manifest = WireManifest {
            schema_version: 2,
            media_type: MANIFEST_TYPE,
            config: WireDescriptor::new(CONFIG_TYPE, &config_digest, config_size),
            layers: descriptors,
        };
        let bytes: Bytes = serde_json::to_vec(&manifest)
            .map_err(|error| Error::new(ErrorKind::Invalid, "cannot write a manifest").because(error))?
            .into();
        let digest = Digest::sha256(&bytes);
        Ok((Document { media_type: MANIFEST_TYPE.to_owned(), digest, bytes }, blobs))
    }

    fn config(&self, name: &str) -> Result<(Digest, u64, ImageConfig), Error> {
        let section = self.members.open(name)?;
        let bytes = section.read_document(limits::CONFIG_BYTES)?;
        let digest = Digest::sha256(&bytes);
        check_name(&section, name, &digest)?;
        let config = ImageConfig::parse(&bytes).map_err(|error| {
            Error::new(ErrorKind::Invalid, format!("{}: no image configuration", section.label())).because(error)
        })?;
        Ok((digest, section.length(), config))
    }

    /// Makes sure that the layers fit the configuration: as many, and no file standing for two (B-026).
    fn check_layers(&self, layers: &[String], config: &ImageConfig) -> Result<(), Error> {
        if layers.len() != config.diff_ids.len() {
            let (layers, ids) = (layers.len(), config.diff_ids.len());
            let message = format!("{}: {layers} layers but {ids} diff ids in the configuration", self.members.name());
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        let mut diff_ids = HashMap::new();
        for (name, diff_id) in layers.iter().zip(&config.diff_ids) {
            let known = *diff_ids.entry(self.members.follow(name)).or_insert(diff_id);
            if known != diff_id {
                let label = Printable::of(name);
                let message = format!("{}: {label:.200} stands for two different layers", self.members.name());
                return Err(Error::new(ErrorKind::Invalid, message));
            }
        }
        Ok(())
    }

    fn layer(&mut self, name: &str) -> Result<Layer, Error> {
        let member = self.members.follow(name).to_owned();
        if let Some(layer) = self.hashed.get(&member) {
            return Ok(layer.clone());
        }
        let section = self.members.open(name)?;
        let mut hasher = Hasher::new(Algorithm::Sha256);
        let mut start = Vec::new();
        section.for_each_piece(|piece| {
            hasher.update(piece);
            start.extend_from_slice(&piece[..piece.len().min(MAGIC_BYTES.saturating_sub(start.len()))]);
        })?;
        let digest = hasher.finish();
        check_name(&section, name, &digest)?;
        let suffix = match Compression::from_start(&start) {
            Compression::None => "",
            Compression::Gzip => "+gzip",
            Compression::Zstd => "+zstd",
            Compression::Other(kind) => {
                let message = format!("{} is compressed with {kind}, which is not supported", section.label());
                return Err(Error::new(ErrorKind::Unsupported, message));
            }
        };
        let layer = Layer { digest, size: section.length(), media_type: format!("{LAYER_TYPE}{suffix}") };
        self.hashed.insert(member, layer.clone());
        Ok(layer)
    }
}

/// Compares content with the digest that its member is named by, if it is: `<hex>.json` or `blobs/sha256/<hex>`.
fn check_name(section: &Section, name: &str, digest: &Digest) -> Result<(), Error> {
    let hex = name.strip_prefix("blobs/sha256/").or_else(|| name.strip_suffix(".json"));
    match hex.and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok()) {
        Some(named) if named != *digest => {
            Err(Error::new(ErrorKind::Corrupt, format!("{} does not have the digest {named}", section.label())))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
