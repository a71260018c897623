//! The vocabulary of the OCI specifications as pure values: no I/O, no clock, no environment.
//!
//! Everything here is valid by construction: outside text and bytes are parsed once, at the edge, into these types, and
//! no raw string or JSON value travels further. Wire structs (serde) are private to the files that parse them.

mod descriptor;
mod digest;

pub use descriptor::Descriptor;
pub use digest::{Algorithm, Digest, DigestError, Hasher};
