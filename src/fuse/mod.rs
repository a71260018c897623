//! The kernel's side: mounts a [`FileSystem`](crate::fs::FileSystem) and answers its requests.
//!
//! The only module that names the FUSE crate. `Adapter` turns requests into calls of the file system and its
//! answers into replies; a [`Connection`] is served by threads of its own, and a [`Mount`] is a directory in which it is
//! mounted: one of several perhaps.
//!
//! Caching is total, because the tree never changes: look-ups, attributes and negative look-ups are valid for ever,
//! directories, symbolic links and file data stay cached across opens. Permission checks are the kernel's
//! (`default_permissions`), and so is every refusal to write: the mount itself is read-only, so that the kernel answers
//! EROFS without asking. How files are opened is chosen for each mount ([`Io`]). While
//! a program starts on one, processors are kept from sleeping between its requests (`wakeful`).

mod adapter;
mod connection;
mod elsewhere;
mod io;
mod kernel;
mod killed;
mod mount;
mod places;
mod push;
mod requests;
mod wakeful;

pub use connection::{Access, Connection, MountError, Options};
pub use elsewhere::Elsewhere;
pub use io::{Chosen, Io, Mode};
pub use kernel::{MountPoint, is_available};
pub use mount::{Mount, UnmountError, abandoned, is_dead, mounted_at, unmount_stale};
pub use places::Places;
