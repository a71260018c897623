//! The vocabulary of the OCI specifications as pure values: no I/O, no clock, no environment (only
//! [`Platform::host`] asks the processor what it can do).
//!
//! Everything here is valid by construction: outside text and bytes are parsed once, at the edge, into these types, and
//! no raw string or JSON value travels further. Wire structs (serde) are private to the files that parse them.

mod config;
mod descriptor;
mod digest;
mod json;
mod manifest;
mod platform;
mod printable;
mod reference;

pub use config::{ConfigError, ImageConfig};
pub use descriptor::{Descriptor, DescriptorError};
pub use digest::{Algorithm, Digest, DigestError, Hasher};
pub use json::JsonError;
pub use manifest::{ImageIndex, ImageManifest, IndexEntry, Manifest, ManifestError, MediaKind, check_layer_media_type};
pub use platform::{NoMatch, Platform, PlatformError, Wanted, no_match, ranked, select};
pub use printable::{Message, Printable};
pub use reference::{Local, LocalSelector, Reference, ReferenceError, RegistryName, Shown, without_password};
