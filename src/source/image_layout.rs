//! The OCI image layout, in a directory or in a tar file (image-spec, image-layout.md).
//!
//! A layout lists its images in `index.json` and names them by annotation, in more than one way: the specification's
//! `org.opencontainers.image.ref.name` holds a tag or a whole name, containerd adds `io.containerd.image.name` (B-014).
//! [`ImageLayout`] validates the layout, chooses one image by a [`LocalSelector`] and serves it from [`Files`].

use std::sync::Arc;

use serde::Deserialize;

use super::files::{Files, LocalBlob, blob_path, read_document, read_manifest};
use super::section::blocking;
use super::{BlobReader, BoxFuture, Document, Error, ErrorKind};
use crate::limits;
use crate::oci::{
    Descriptor, Digest, ImageIndex, IndexEntry, LocalSelector, Manifest, MediaKind, Printable, RegistryName,
};

/// The annotation of the specification.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The annotation of containerd, BuildKit and Docker: the full name of the image.
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// Most images listed in an error.
const LISTED: usize = 20;

/// One image of a layout.
#[derive(Debug)]
pub(super) struct ImageLayout {
    files: Arc<dyn Files>,
    selected: Selected,
}

/// What the selector led to.
#[derive(Debug)]
enum Selected {
    /// An entry of `index.json`.
    Entry(Box<Descriptor>),
    /// A digest that `index.json` does not list; its blob may be there all the same, as a child of a nested index.
    Digest(Digest),
}

/// The file `oci-layout`.
#[derive(Debug, Deserialize)]
struct WireMarker {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

impl ImageLayout {
    /// Validates the layout and chooses an image; blocks.
    pub(super) fn open(files: Arc<dyn Files>, selector: Option<&LocalSelector>) -> Result<Self, Error> {
        check_marker(&*files)?;
        if !files.has_directory("blobs") {
            return Err(invalid(&*files, "it has no blobs directory"));
        }
        let index = read_index(&*files)?;
        let selected = select(&*files, &index, selector)?;
        Ok(Self { files, selected })
    }

    /// True if `files` claim to be a layout.
    pub(super) fn is_in(files: &dyn Files) -> bool {
        files.open("oci-layout").is_ok()
    }

    pub(super) fn name(&self) -> String {
        self.files.name().to_owned()
    }

    pub(super) fn resolve(&self) -> BoxFuture<'_, Result<Document, Error>> {
        match &self.selected {
            Selected::Entry(descriptor) => self.manifest(descriptor),
            Selected::Digest(digest) => {
                let (files, digest) = (self.files.clone(), *digest);
                Box::pin(blocking(move || read_document(&files.open(&blob_path(&digest))?, &digest, None, "")))
            }
        }
    }

    pub(super) fn manifest<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<Document, Error>> {
        read_manifest(&self.files, descriptor)
    }

    pub(super) fn blob(&self, descriptor: &Descriptor) -> Arc<dyn BlobReader> {
        Arc::new(LocalBlob::new(self.files.clone(), blob_path(&descriptor.digest), descriptor))
    }
}

fn invalid(files: &dyn Files, problem: &str) -> Error {
    Error::new(ErrorKind::Invalid, format!("{} is not an OCI image layout: {problem}", files.name()))
}

fn check_marker(files: &dyn Files) -> Result<(), Error> {
    let marker = files.open("oci-layout").map_err(|error| match error.kind() {
        ErrorKind::NotFound => invalid(files, "it has no file oci-layout"),
        _ => error,
    })?;
    let bytes = marker.read_document(limits::LAYOUT_MARKER_BYTES)?;
    let marker: WireMarker = serde_json::from_slice(&bytes)
        .map_err(|error| invalid(files, "its file oci-layout is malformed").because(error))?;
    if marker.version == "1.0.0" {
        return Ok(());
    }
    let version = Printable::of(&marker.version);
    let message = format!("{} has the image layout version {version:.40}, only 1.0.0 is known", files.name());
    Err(Error::new(ErrorKind::Unsupported, message))
}

fn read_index(files: &dyn Files) -> Result<ImageIndex, Error> {
    let section = files.open("index.json").map_err(|error| match error.kind() {
        ErrorKind::NotFound => invalid(files, "it has no file index.json"),
        _ => error,
    })?;
    let bytes = section.read_document(limits::MANIFEST_BYTES)?;
    match Manifest::parse(&bytes, "") {
        Ok(Manifest::Index(index)) => Ok(index),
        Ok(Manifest::Image(_)) => Err(invalid(files, "its index.json is no index")),
        Err(error) => {
            let kind = if error.is_unsupported() { ErrorKind::Unsupported } else { ErrorKind::Invalid };
            Err(Error::new(kind, format!("{}: index.json cannot be used", files.name())).because(error))
        }
    }
}

fn select(files: &dyn Files, index: &ImageIndex, selector: Option<&LocalSelector>) -> Result<Selected, Error> {
    let entry = match selector {
        None => only(files, &index.entries)?,
        Some(LocalSelector::Name(name)) => find_name(&index.entries, name).ok_or_else(|| {
            let message = format!("{} has no image named \"{:.200}\"", files.name(), Printable::of(name));
            Error::new(ErrorKind::NotFound, message).hint(list(&index.entries))
        })?,
        Some(LocalSelector::Digest(digest)) => {
            match index.entries.iter().find(|entry| entry.descriptor.digest == *digest) {
                Some(entry) => entry,
                None => return Ok(Selected::Digest(*digest)),
            }
        }
        Some(LocalSelector::Index(_)) if !index.unverifiable.is_empty() => {
            let message = format!("{} lists digests that cannot be verified here", files.name());
            return Err(Error::new(ErrorKind::Unsupported, message).hint("select the image by name or digest"));
        }
        Some(LocalSelector::Index(position)) => index.entries.get(*position).ok_or_else(|| {
            let message = format!("{} has no image @{position}", files.name());
            Error::new(ErrorKind::NotFound, message).hint(list(&index.entries))
        })?,
    };
    let media_type = &entry.descriptor.media_type;
    if !media_type.is_empty() && !MediaKind::of(media_type).is_some_and(MediaKind::is_supported) {
        let media_type = Printable::of(media_type);
        let message = format!("{}: the selected entry has the unsupported type {media_type:.200}", files.name());
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    Ok(Selected::Entry(Box::new(entry.descriptor.clone())))
}

/// The one image there is; several names of one digest are one image, and what lies beside images is none.
fn only<'a>(files: &dyn Files, entries: &'a [IndexEntry]) -> Result<&'a IndexEntry, Error> {
    let (artifacts, images): (Vec<_>, Vec<_>) = entries.iter().partition(|entry| entry.is_artifact());
    let candidates = if images.is_empty() { artifacts } else { images };
    let Some((first, others)) = candidates.split_first() else {
        return Err(Error::new(ErrorKind::NotFound, format!("{} holds no images", files.name())));
    };
    if others.iter().all(|other| other.descriptor.digest == first.descriptor.digest) {
        return Ok(first);
    }
    let message = format!("{} holds more than one image ({})", files.name(), candidates.len());
    Err(Error::new(ErrorKind::Ambiguous, message).hint(list(entries)))
}

/// The first entry of this name: exactly as the specification names it, else by containerd's annotation, else the same
/// full name once Docker's short forms are written out.
fn find_name<'a>(entries: &'a [IndexEntry], name: &str) -> Option<&'a IndexEntry> {
    let annotated = |key: &'static str| {
        entries.iter().find(|entry| entry.descriptor.annotations.get(key).is_some_and(|text| text == name))
    };
    annotated(REF_NAME).or_else(|| annotated(CONTAINERD_NAME)).or_else(|| {
        let wanted: RegistryName = name.parse().ok()?;
        entries.iter().find(|entry| names(entry).any(|text| text.parse::<RegistryName>().as_ref() == Ok(&wanted)))
    })
}

fn names(entry: &IndexEntry) -> impl Iterator<Item = &String> {
    let annotations = &entry.descriptor.annotations;
    [CONTAINERD_NAME, REF_NAME].into_iter().filter_map(|key| annotations.get(key))
}

/// Says which images there are, and how to select them.
fn list(entries: &[IndexEntry]) -> String {
    let mut images: Vec<String> = entries
        .iter()
        .enumerate()
        .take(LISTED)
        .map(|(position, entry)| match names(entry).next() {
            Some(name) => format!(":{:.200}", Printable::of(name)),
            None => format!(":@{position}"),
        })
        .collect();
    if entries.len() > LISTED {
        images.push("…".to_owned());
    }
    if images.is_empty() { "it holds no images".to_owned() } else { format!("it holds {}", images.join(", ")) }
}
