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

// Codecs and layer indexes.

/// Largest zstd window accepted, as a power of two: what `zstd --ultra -22` makes; `--long=31` asks for 2 GiB (D-010).
pub const ZSTD_WINDOW_LOG: u32 = 27;

/// Largest zstd window accepted, in bytes.
pub const ZSTD_WINDOW_BYTES: u64 = 1 << ZSTD_WINDOW_LOG;

/// Bytes that any layer may decode to, however small it is; up to here a bomb costs a minute of one core (D-010).
pub const DECODED_FREE_BYTES: u64 = 16 << 30;

/// How many times its compressed bytes a layer larger than [`DECODED_FREE_BYTES`] may decode to. Deflate reaches 1032,
/// layers of programs 2 to 10.
pub const DECODED_RATIO: u64 = 128;

/// Most bytes one span may decode to: 16 GiB, because a zstd layer is commonly one frame and must mount, whatever its size.
/// Readers look at a span's length before they decode it to memory.
pub const SPAN_BYTES: u64 = 16 << 30;

/// Most entries in one layer: eight million, eight times what the largest known images have.
pub const LAYER_ENTRIES: u64 = 8 << 20;

/// Largest encoded layer index. At 1.4 % of the layer, far above any layer that registries take.
pub const INDEX_BYTES: u64 = 512 << 20;

/// Longest encoded entry inside an index: PAX records (paths, attributes) and sparse maps are bounded to a few MiB each
/// where they are parsed.
pub const INDEX_ENTRY_BYTES: usize = 16 << 20;

/// Largest sparse file that is hashed with its holes; larger ones have no content digest. A header of a few hundred
/// bytes can declare exabytes of zeros (D-010).
pub const SPARSE_HASH_BYTES: u64 = 1 << 30;

/// Hole bytes hashed in one layer, after which sparse files have no content digest: ten seconds of one core.
pub const SPARSE_HASH_LAYER_BYTES: u64 = 16 << 30;
// Tar streams.

/// Longest extended header (`x`, `g`) or GNU long name (`L`, `K`) in a tar stream, in bytes.
///
/// The bound of Go's archive/tar and of libarchive; what one entry can make a parser keep follows from it.
pub const TAR_SPECIAL_BYTES: u64 = 1 << 20;

/// Most regions in the map of a sparse file (D-012, CVE-2025-58183).
///
/// A region costs an archive a dozen bytes that compress well, and an index 24. A 64 GiB disk image written in 512 KiB
/// pieces stays below.
pub const SPARSE_REGIONS: usize = 1 << 17;

/// Longest name of a file, in bytes: Linux's `NAME_MAX`.
pub const NAME_BYTES: usize = 255;

/// Longest target of a symbolic link, in bytes: `symlink(2)` takes no longer one, and FUSE answers in one page (D-061).
pub const SYMLINK_BYTES: usize = 4095;

/// Longest name of an extended attribute, in bytes: Linux's `XATTR_NAME_MAX`.
pub const XATTR_NAME_BYTES: usize = 255;

/// Longest value of an extended attribute, in bytes: Linux's `XATTR_SIZE_MAX`.
pub const XATTR_VALUE_BYTES: usize = 1 << 16;

/// Longest list of a file's extended attribute names, each with its NUL, in bytes: Linux's `XATTR_LIST_MAX`.
pub const XATTR_LIST_BYTES: usize = 1 << 16;

/// Decoded length from which on a span makes a layer that it mostly fills not lazy: below, it is quicker fetched than
/// talked about.
pub const LAZY_SPAN_BYTES: u64 = 8 << 20;
