//! The places an image can be in, filled from an image layout.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use ocifs::demo::registry::Content;
use ocifs::oci::{Algorithm, Digest};
use serde_json::Value;

use crate::support::{DockerRegistry, Embedded, skopeo_copy};

/// A kind of place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    OciArchive,
    DockerArchive,
    CompressedDockerArchive,
    DockerRegistry,
    EmbeddedRegistry,
}

/// An image in its place, and what must live as long as it is there.
#[derive(Debug)]
pub(super) struct Put {
    pub(super) reference: String,
    _real: Option<DockerRegistry>,
    _embedded: Option<Embedded>,
}

impl Place {
    pub(super) const ALL: [Self; 5] = [
        Self::OciArchive,
        Self::DockerArchive,
        Self::CompressedDockerArchive,
        Self::DockerRegistry,
        Self::EmbeddedRegistry,
    ];

    /// Copies the image `latest` of a layout into a new place of this kind; files go into `directory`.
    pub(super) fn put(self, layout: &Path, directory: &Path) -> Put {
        let from = format!("oci:{}:latest", layout.display());
        let name = layout.file_name().expect("a layout has a name").to_string_lossy();
        let file = directory.join(format!("{name}-{self:?}"));
        let (mut real, mut served) = (None, None);
        let reference = match self {
            Self::OciArchive => {
                let reference = format!("oci-archive:{}:latest", file.display());
                skopeo_copy(&from, &reference);
                reference
            }
            Self::DockerArchive | Self::CompressedDockerArchive => {
                skopeo_copy(&from, &format!("docker-archive:{}:it:latest", file.display()));
                let mut packed = file.clone();
                if self == Self::CompressedDockerArchive {
                    packed = directory.join(format!("{name}-{self:?}.gz"));
                    let output = File::create(&packed).expect("a file");
                    let status = Command::new("gzip").arg("-c").arg(&file).stdout(output).status();
                    assert!(status.expect("gzip can be run").success());
                }
                format!("docker-archive:{}:it:latest", packed.display())
            }
            Self::DockerRegistry => {
                let registry = real.insert(DockerRegistry::start().expect("the test asked whether it is here"));
                registry.push(layout, "latest", "some/where/it:latest");
                format!("{}/some/where/it:latest", registry.addr())
            }
            Self::EmbeddedRegistry => served.insert(embedded(layout)).name("it:latest"),
        };
        Put { reference, _real: real, _embedded: served }
    }
}

/// A registry that serves the image `latest` of a layout as `it:latest`.
pub(super) fn embedded(layout: &Path) -> Embedded {
    let content = Content::new();
    for (directory, algorithm) in [("sha256", Algorithm::Sha256), ("sha512", Algorithm::Sha512)] {
        for entry in fs::read_dir(layout.join("blobs").join(directory)).into_iter().flatten() {
            let bytes = fs::read(entry.expect("an entry").path()).expect("a blob");
            content.add_blob_as(algorithm, "application/octet-stream", bytes);
        }
    }
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).expect("an index")).expect("JSON");
    let manifest = &index["manifests"][0];
    let digest: Digest = manifest["digest"].as_str().and_then(|text| text.parse().ok()).expect("a digest");
    let bytes = fs::read(layout.join("blobs/sha256").join(digest.hex())).expect("a manifest");
    content.add_manifest("it", Some("latest"), manifest["mediaType"].as_str().expect("a type"), bytes);
    Embedded::start(content)
}
