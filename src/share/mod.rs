//! Layer indexes in registries: made once, found by every machine.
//!
//! What travels is an [`Artifact`]: an OCI manifest beside the image, which it names as its subject. It lists one blob
//! for each distinct layer, the encoded index as it is, so that images that have a layer in common share the blob too,
//! and a profile if there is one. Nothing in it tells when or where it was made, so that two machines that
//! index the same image push the same bytes.
//!
//! | file | concern |
//! |---|---|
//! | `artifact` | the manifest: building and reading it |
//! | `discover` | finding the artifacts of an image: referrers API and tag schema at the same time |
//! | `signed` | finding the signatures of an artifact |
//! | `push` | sending what is not there, listing and removing |
//! | `soci` | SOCI's index of an image, which is another artifact of another form |
//! | `convert` | the image that names such an index, where SOCI believes no other |
//! | `layout` | writing the artifact into an image layout instead |
//!
//! Nothing here decides whether an index is believed; [`Shared`] says what somebody put beside an image, [`signature`] which key
//! of the user signed it, and no more.

mod artifact;
mod convert;
mod discover;
mod layout;
mod push;
mod signed;
mod soci;
#[cfg(test)]
mod tests;
mod wire;

pub use artifact::{Artifact, LayerBlob, Metadata};
pub use convert::{Bound, Converted, convert};
pub use discover::{Shared, discover, read_blob, read_metadata};
pub use layout::write_layout;
pub use push::{Bundle, Listed, Places, Progress, Pushing, Sent, push, remove};
pub use signed::signature;
pub use soci::{SOCI_PIN, SOCI_TYPE, SociIndex, SociLayer, discover_soci, pinned_soci};

use crate::oci::{Digest, ManifestError, Printable};
use crate::source;

/// The type of the artifact.
pub const ARTIFACT_TYPE: &str = "application/vnd.ocifs.index.v1";

/// The type of an encoded layer index.
pub const LAYER_INDEX_TYPE: &str = "application/vnd.ocifs.layer-index.v1";

/// The type of a profile.
pub const PROFILE_TYPE: &str = "application/vnd.ocifs.profile.v1";

/// What an artifact can be written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// This program.
    Ocifs,
    /// The SOCI snapshotter up to 0.9, and later ones that are told to: an index beside the image.
    Soci,
    /// The SOCI snapshotter from 0.10 on: an index that the image's manifest names.
    SociV2,
}

impl Format {
    /// How it is named to people and programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ocifs => "ocifs",
            Self::Soci => "soci",
            Self::SociV2 => "soci-v2",
        }
    }

    /// The type by which the artifact is found.
    pub fn artifact_type(self) -> &'static str {
        match self {
            Self::Ocifs => ARTIFACT_TYPE,
            Self::Soci => SOCI_TYPE,
            Self::SociV2 => soci::SOCI_V2_TYPE,
        }
    }
}

/// Why indexes cannot be shared or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The registry, or what it sent.
    #[error(transparent)]
    Source(#[from] source::Error),
    /// An artifact's manifest cannot be read.
    #[error("index artifact {digest} cannot be used")]
    Manifest {
        /// The artifact.
        digest: Digest,
        /// What is wrong with it.
        #[source]
        source: Box<ManifestError>,
    },
    /// An artifact says something that it may not.
    #[error("index artifact {digest} cannot be used: {why}")]
    Artifact {
        /// The artifact.
        digest: Digest,
        /// What is wrong with it.
        why: String,
    },
    /// An image cannot be converted.
    #[error("image {image} cannot be converted: {why}")]
    Convert {
        /// The image.
        image: Digest,
        /// What is in the way.
        why: String,
    },
    /// A layout cannot be written.
    #[error("cannot write the layout {}", Printable::path(.path))]
    Layout {
        /// Where.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}
