//! Every bound on bytes that come from outside, each with its reason.
//!
//! A registry, a layer or a cache directory may be hostile or damaged. Nothing read from them sizes an allocation, a
//! loop or a recursion without first being compared with a constant of this module; passing one of these bounds is an
//! error that names the object. The modules below take the constants by name, so that a limit is found and argued
//! about in one place.

/// Longest manifest or image index accepted, in bytes.
///
/// Registries must accept pushes of 4 MiB (distribution-spec, "Pushing manifests"); clients accept 4 to 8 MiB (B-058).
pub const MANIFEST_BYTES: u64 = 8 << 20;

/// Longest image configuration accepted, in bytes (B-058).
pub const CONFIG_BYTES: u64 = 8 << 20;

/// Deepest nesting of image indexes followed before giving up (B-046): two is common, ten is absurd.
pub const INDEX_DEPTH: usize = 8;

/// Most layers in one image. Docker stops at 127; overlayfs at 500.
pub const LAYERS: usize = 1024;

/// Largest blob size a descriptor may state: 2^53, the largest integer JSON carries exactly (B-059).
pub const BLOB_BYTES: u64 = 1 << 53;

/// Deepest nesting of a JSON document. Manifests and configurations need 5; the parser recurses, so this bounds its stack.
pub const JSON_DEPTH: usize = 32;

/// Most keys in one JSON object. Labels and annotations come in tens; every key is held while its object is read.
pub const JSON_KEYS: usize = 10_000;

/// Most entries of an image index. Indexes of many platforms have tens; a layout's `index.json` may list a whole mirror.
pub const INDEX_ENTRIES: usize = 10_000;

/// Most headers scanned of an archive. An image of [`LAYERS`] layers needs nine per layer, and an archive may hold several.
pub const ARCHIVE_MEMBERS: usize = 200_000;

/// Longest member name of an archive that is remembered, in bytes. Names in image archives have at most 150; with
/// [`ARCHIVE_MEMBERS`] this bounds the list of members.
pub const ARCHIVE_NAME_BYTES: usize = 512;

/// Longest `oci-layout` file, in bytes; it holds one version number.
pub const LAYOUT_MARKER_BYTES: u64 = 4096;

/// Longest PAX or GNU extended header of an archive member, in bytes (D-011).
pub const ARCHIVE_EXTENSION_BYTES: u64 = 1 << 20;

/// Most bytes that a compressed archive may decompress to: the disk would fill long before, but not every disk is small.
pub const ARCHIVE_UNPACKED_BYTES: u64 = 1 << 40;
