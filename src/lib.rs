//! ocifs mounts any container image now and fetches its bytes when they are read.
//!
//! This page is the architecture: what happens, in which module, and what always holds. The modules stand below in
//! reading order.
//!
//! # The life of a mount
//!
//! ```text
//! reference ─► source ─► manifest (platform chosen) ─► config
//!                           │ for every layer, all at once
//!                           ▼
//!             layer index: in the cache ─ else in the layer (TOC, pinned by the manifest)
//!                          ─ else beside the image in its registry ─ else first contact: streamed once
//!                           ▼
//!             merge ─► tree (stored, memory-mapped) ─► FUSE mount ─► fill, at lower priority than any read
//!                           └─► profile of an earlier start, or what the entry point needs, fetched ahead
//! ```
//!
//! [`cli`] parses a command line and sends one request to the [`daemon`], starting it if there is none. The daemon asks
//! [`image`] for the image: a [`source`] (a [`registry`] repository, a layout, an archive) gives manifest and
//! configuration; every layer needs an [`index`]. The layer may bring one along ([`index::toc`]), a user may have imported
//! one ([`parcel`]), or somebody may have put one beside the image ([`share`], [`index::soci`]): it is looked for while the
//! image is resolved, and believed by one rule ([`image::verdict`]). A layer without one is streamed by
//! [`fetch::first_contact`]: ranged reads run ahead, their bytes land in the [`store`], and the index builder decodes
//! them ([`codec`]), reads the tar stream ([`mod@tar`]), cuts seek points and hashes everything. Only if layer digest
//! and diffID are right is the index kept. [`tree::merge`] joins the layers; [`fuse`] attaches the tree to the kernel
//! through [`fs`]. As soon as the tree is known, [`ahead`] fetches what an earlier start read ([`profile`]), or what
//! the entry point needs ([`elf`]) and its script imports ([`python`]).
//!
//! # The life of a read
//!
//! ```text
//! kernel: in the page cache, or open for passthrough? ── yes ─► nobody is asked
//!    │ no
//!    ▼
//! fuse ─► fs: verified decoded file in the store? ── yes ─► pread
//!           │ no
//!           ▼
//!         extents ─► spans ─► in memory? ─ no ─► bytes in the blob store? ─ no ─► planner ─► ranged GET
//!           ▼
//!         decode (bounded) ─► digest of the span ─► answer; the bytes are kept, the span stays in memory a while
//! ```
//!
//! A FUSE thread answers from memory or hands the request to the runtime; it never waits for the network. One download
//! and one decoding per span, however many readers ([`fetch::OnceMap`]). A file that was read is decoded as a whole once
//! readers are quiet, checked against its digest and published in the file store; all reads that come later are served
//! from there.
//!
//! The planner of [`fetch`] keeps what is wanted in four strict priorities: what a reader waits for, what it may want next,
//! what a profile or a reader on its way through the tree foretells, and the rest of the image. It cuts ranges of
//! neighbouring spans, keeps as many bytes on their way as the line was measured to hold, and asks again when an answer
//! stalls. What comes before it is read is put into the blob store; what a start will read is also decoded ahead, as far as
//! readers keep up. Whatever is decoded is verified, each time.
//!
//! A source that does not answer is waited for as long as the mount says ([`fetch::Patience`]): one reader tries every few
//! seconds for all of them, background work rests, and the first answer lets everything go on. How a registry is treated
//! meanwhile, which host is passed over and how fast one is asked, is the client's affair ([`registry`]).
//!
//! The kernel keeps what it was told: names, attributes, listings, links and pages. How files are opened is chosen for each
//! mount ([`fuse::Io`]): in the cached mode the kernel opens files by itself, so that a warm mount sends no request at all
//! but for extended attributes; in the passthrough mode each open asks, and reads of a decoded file go past the daemon.
//! What it keeps belongs to a connection ([`fuse::Connection`]), not to a directory: mounts of one image share one, and it
//! stays a while after the last of them, so that an image that is mounted again begins warm. Small files that a reader of
//! a directory will ask for next are put into its pages unasked.
//!
//! # Invariants
//!
//! - No byte reaches a reader that did not match a digest after it was last on a disk or a wire.
//! - An index that was not made here is a claim. It serves only who believes that very claim, and is compared with the truth
//!   when the layer is complete; a mount whose claim was wrong answers nothing any more.
//! - A module uses only modules of lower levels; `tests/it/layering.rs` enforces the table below.
//! - [`fuse`] is the only module that names the FUSE crate, [`registry`] the only one that names the HTTP client, [`cli`]
//!   the only one that reads environment, home or this program's configuration files; [`registry`] reads other programs'
//!   files about hosts and credentials, from the paths that [`cli`] hands down.
//! - Index, tree and image are immutable after construction. Look-ups in the tree take no lock; no lock is held across
//!   I/O or an await.
//! - One process owns a cache directory; what is in it appears by rename, or is checked before it is used.
//! - Everything from outside is bounded by [`limits`].
//!
//! | level | modules |
//! |---|---|
//! | 0 | [`limits`] |
//! | 1 | [`oci`] [`codec`] [`mod@tar`] [`elf`] [`python`] [`javascript`] |
//! | 2 | [`source`] [`profile`] [`dependencies`] [`signature`] |
//! | 3 | [`registry`] [`index`] [`store`] |
//! | 4 | [`tree`] [`share`] [`fetch`] |
//! | 5 | [`image`] [`ahead`] [`parcel`] |
//! | 6 | [`fs`] |
//! | 7 | [`fuse`] |
//! | 8 | [`daemon`] |
//! | 9 | [`demo`] |
//! | 10 | [`cli`] |
//!
//! # Threads and tasks
//!
//! | name | count | does | may block on |
//! |---|---|---|---|
//! | `runtime` | 2 | network, decisions, replies to cold reads | nothing |
//! | blocking pool (also named `runtime`) | ≤ 32, decoders ≤ CPUs | decoding, files of the cache | disk |
//! | `fuse-session`, `fuser-N` | 1 + 4 a connection | requests of the kernel | `/dev/fuse`, short `pread`s of the cache |
//! | `fuse-push` | 1 a connection | puts small files into the kernel's pages | the kernel, decoding |
//! | `index-*` | a few for each layer in first contact | decoding, hashing, tar parsing | each other, by bounded channels |
//!
//! Tasks on the runtime: one a client of the control socket, one a mount that waits for its end, one a mount that
//! publishes files, one a mount that fills, one a mount that fetches ahead, one a mount that waits for the end of its
//! recording, one a connection that keeps processors awake, one an image that is looked up for indexes beside it, and one
//! for each span, layer, window section or read in flight, or file that is fetched ahead.

pub mod limits;

pub mod oci;

pub mod codec;
pub mod elf;
pub mod javascript;
pub mod python;
pub mod tar;

pub mod dependencies;
pub mod profile;
pub mod signature;
pub mod source;

pub mod index;
pub mod registry;
pub mod store;

pub mod fetch;
pub mod share;
pub mod tree;

pub mod ahead;
pub mod image;
pub mod parcel;

pub mod fs;

pub mod fuse;

pub mod daemon;

pub mod demo;

pub mod cli;

/// What tests/fuzz needs and nobody else may use.
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::index::reseal as reseal_index;
    pub use crate::registry::fuzzing::{challenge, content_range, next_page, plan};
    pub use crate::tree::reseal as reseal_tree;
}
