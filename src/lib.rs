//! ocifs mounts any container image now and fetches its bytes when they are read.

pub mod codec;
pub mod daemon;
pub mod demo;
pub mod fetch;
pub mod fs;
pub mod fuse;
pub mod image;
pub mod index;
pub mod limits;
pub mod oci;
pub mod registry;
pub mod source;
pub mod store;
pub mod tar;
pub mod tree;
