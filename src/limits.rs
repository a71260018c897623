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

// The cache directory (`store`): its files are ours, but a disk may rot and a crash may tear.

/// Longest document the cache keeps or reads back: the larger of [`MANIFEST_BYTES`] and [`CONFIG_BYTES`].
pub const STORED_DOCUMENT_BYTES: u64 = 8 << 20;

/// Longest record of what a reference resolved to: a reference and a media type are each far below 4 KiB.
pub const STORED_REFERENCE_BYTES: u64 = 16 << 10;

/// Most separate pieces of one partial blob that are remembered: 8 MiB of memory. A piece beyond is fetched again.
pub const BLOB_PIECES: usize = 1 << 18;

/// Most records in the map of one partial blob: 32 MiB of disk. What comes later is known until the blob is closed.
pub const BLOB_MAP_RECORDS: u64 = 1 << 20;

/// Most descriptors the store keeps open for partial and complete blobs; an image has tens of layers, rarely hundreds.
pub const OPEN_BLOBS: usize = 256;

/// Most decoded files the store itself keeps open, beside those its callers hold.
pub const OPEN_FILES: usize = 256;

/// Most decoded files remembered as verified in this process: 5 MiB of memory. A file forgotten is hashed again.
pub const VERIFIED_FILES: usize = 1 << 16;

/// Most candidates for eviction collected in one walk of the cache, so that a million files cost no more memory.
pub const EVICTION_BATCH: usize = 1 << 14;
