//! What `ocifs demo` needs besides ocifs itself: something to mount, and somewhere to mount it from.
//!
//! A first look at ocifs must not depend on a network, an account or another package. [`image`] makes a small image of
//! several layers from the host's own files; [`registry`] serves it on the loopback interface as any registry would,
//! so that the demo goes through the ordinary code path, and keeps a log of what was asked, so that the demo can say
//! what was never fetched. The same registry, with faults, is the one the tests run against.

pub mod image;
pub mod registry;
mod run;

pub use run::{Demo, run};
