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

// The embedded registry and the demo image (`demo`): clients on the loopback interface and the host's own programs.

/// Most requests the embedded registry remembers; the oldest are forgotten first. A soak of ten minutes fits.
pub const DEMO_REQUESTS: usize = 1 << 16;

/// Most connections the embedded registry serves at once; more wait in the listener's queue.
pub const DEMO_CONNECTIONS: usize = 256;

/// Longest request body the embedded registry reads: a token request is a short form.
pub const DEMO_REQUEST_BODY: usize = 64 << 10;

/// Most tokens the embedded registry keeps valid at once; beyond it the whole set is forgotten, as in a restart.
pub const DEMO_TOKENS: usize = 1 << 12;

/// Most program headers of a host program put into the demo image: real ones have about a dozen.
pub const ELF_PROGRAM_HEADERS: u16 = 256;

/// Longest dynamic section read, in bytes: 4,096 entries, where real programs have about thirty.
pub const ELF_DYNAMIC_BYTES: u64 = 64 << 10;

/// Longest string taken from a program (an interpreter, a library name, a search path): PATH_MAX.
pub const ELF_STRING_BYTES: u64 = 4096;

/// Most libraries the programs of the demo image may need together.
pub const ELF_LIBRARIES: usize = 256;
