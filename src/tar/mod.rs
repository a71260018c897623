//! Tar streams: bytes of an uncompressed layer become [`Entry`] values, with the place of every payload byte.
//!
//! The reference is Go's archive/tar as the container tools use it (cases A7), plus old GNU sparse files and type `7`.
//! [`Parser`] does no I/O: it is pushed bytes in any pieces and calls a [`Sink`]. Names are normalised here (A5), and
//! the whiteout convention of the layer specification (image-spec layer.md) is recognised here, so that nothing above
//! ever looks at a raw name. [`Writer`] is the other direction, for what we make ourselves.
//!
//! The parts: `header` reads one block of 512 bytes, `pax` the records of an extended header, `sparse` the maps of files
//! with holes, `name` cleans names and finds whiteouts, `xattr` decides which attributes are served; `member` joins them to
//! entries ([`Described`], which indexes made by other tools go through as well), and `parser` finds all of them in the stream.

mod described;
mod header;
mod member;
mod name;
mod parser;
mod pax;
mod sparse;
#[cfg(test)]
mod tests;
mod writer;
mod xattr;

pub use described::{Described, DescribedKind};
pub use name::AUFS_LINKS;
pub use parser::Parser;
pub use writer::Writer;

/// A moment in time as stat shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Timestamp {
    /// Seconds since the epoch, never negative.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanos: u32,
}

impl Timestamp {
    /// The epoch, for whatever lies before it or beyond what 2^63 nanoseconds can say.
    fn bounded(seconds: i64, nanos: u32) -> Self {
        let total = i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        if (0..=i128::from(i64::MAX)).contains(&total) { Self { seconds, nanos } } else { Self::default() }
    }
}

/// An extended attribute that is to be served.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Xattr {
    /// The name with its namespace, without NUL: `user.origin`, `security.capability`.
    pub name: Vec<u8>,
    /// The value, may be empty.
    pub value: Vec<u8>,
}

/// A run of a regular file's bytes that the layer holds; what no segment covers reads as zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Segment {
    /// Where the run begins in the file.
    pub file_offset: u64,
    /// Where it begins in the layer's uncompressed stream.
    pub layer_offset: u64,
    /// Its length in bytes, never 0.
    pub length: u64,
}

/// What kind of thing an entry makes, or hides.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    Regular {
        /// Its length in bytes, at most `i64::MAX`.
        size: u64,
        /// Where its bytes are, ascending and disjoint in the file, inside `size`.
        segments: Vec<Segment>,
        /// SHA-256 of the whole file, holes included; none for a short file
        /// ([`crate::limits::CONTENT_DIGEST_BYTES`]), and for a sparse one too large to hash
        /// ([`crate::limits::SPARSE_HASH_BYTES`]). The parser leaves it empty, the index builder fills it in.
        content: Option<[u8; 32]>,
    },
    /// A symbolic link; the target is verbatim.
    Symlink {
        /// The target, not empty, without NUL.
        target: Vec<u8>,
    },
    /// Another name for what `target` names at this point of the layer.
    HardLink {
        /// A cleaned path like [`Entry::path`]; its parent may go through symbolic links.
        target: Vec<u8>,
    },
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// A whiteout: the path is that of the lower thing to hide; the attributes mean nothing.
    Whiteout,
    /// An opaque marker: the path is that of the directory whose lower children are hidden.
    Opaque,
}

/// One tar member after normalisation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Components joined by `/`, without leading or trailing slash, `.`, `..` or empty ones; empty for the root. Those in
    /// [`AUFS_LINKS`] are not to be seen.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// The permission bits, `07777` at most; 0777 for symbolic links.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of last modification.
    pub mtime: Timestamp,
    /// Extended attributes to serve, sorted by name, without duplicates.
    pub xattrs: Vec<Xattr>,
}

/// A member as its headers describe it, for those who describe it to others.
#[derive(Debug, Clone)]
pub struct Member<'a> {
    /// Its name, as it is.
    pub name: &'a [u8],
    /// Its other fields.
    pub described: Described<'a>,
    /// Its extended attributes, all of them, in the order of the records.
    pub xattrs: Vec<(&'a [u8], &'a [u8])>,
    /// Where in the stream its payload begins, or would begin.
    pub offset: u64,
    /// True if the payload is not the file, but holds parts of it.
    pub is_sparse: bool,
}

/// Receives what a [`Parser`] finds, in stream order.
pub trait Sink {
    /// True if [`Sink::member`] and [`Sink::global`] are to be told.
    const MEMBERS: bool = false;

    /// What the headers say of the member that begins, before [`Sink::entry`], also if it makes no entry.
    fn member(&mut self, _: Member<'_>) {}

    /// A header with records for all that follows is passed over.
    fn global(&mut self) {}

    /// A member begins. If it is a regular file with segments, their bytes follow as [`Sink::data`], in the order of
    /// the segments, before the next entry.
    fn entry(&mut self, entry: Entry);

    /// The next payload bytes of the last entry.
    fn data(&mut self, bytes: &[u8]);
}

/// Why a stream is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A block that should be a header, or the contents of a special header, cannot be read.
    #[error("tar header at offset {offset}: {fault}")]
    Header {
        /// Where in the uncompressed stream the block begins.
        offset: u64,
        /// What is wrong with it.
        fault: Fault,
    },
    /// A member is malformed, not supported or not acceptable in a layer.
    #[error("tar entry \"{path}\" at offset {offset}: {fault}")]
    Entry {
        /// The name as the archive gives it, escaped and shortened for printing.
        path: String,
        /// Where in the uncompressed stream the member's header begins.
        offset: u64,
        /// What is wrong with it.
        fault: Fault,
    },
}

/// What is wrong with a header or an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The stream ends inside the header or the payload.
    #[error("the stream ends in the middle of it")]
    Truncated,
    /// Neither the unsigned nor the signed sum of the block is the recorded one.
    #[error("wrong checksum, not a tar header")]
    Checksum,
    /// One zero block is the end of the archive, so a header cannot follow it.
    #[error("a header follows a zero block")]
    AfterZeroBlock,
    /// A numeric field is neither octal nor base-256, or does not fit.
    #[error("malformed {0}")]
    Number(&'static str),
    /// A number is well formed, but no file can have it.
    #[error("{0} out of range")]
    Range(&'static str),
    /// A record of an extended header is malformed.
    #[error("malformed PAX record")]
    Record,
    /// A special header is longer than [`crate::limits::TAR_SPECIAL_BYTES`].
    #[error("special header longer than {} bytes", crate::limits::TAR_SPECIAL_BYTES)]
    SpecialTooLong,
    /// The type is none that a layer can hold.
    #[error("unsupported entry type '{}'", .0.escape_ascii())]
    Type(u8),
    /// The map of a sparse file is malformed, out of order, or does not fit the file or the payload.
    #[error("invalid sparse map")]
    SparseMap,
    /// A sparse file has more than [`crate::limits::SPARSE_REGIONS`] regions (D-012).
    #[error("more than {} sparse regions", crate::limits::SPARSE_REGIONS)]
    SparseRegions,
    /// The payload would end beyond what a file offset can say (D-060).
    #[error("size too large")]
    Size,
    /// A name holds a NUL byte.
    #[error("NUL byte in a name")]
    Nul,
    /// A component of a name is longer than [`crate::limits::NAME_BYTES`].
    #[error("name component longer than {} bytes", crate::limits::NAME_BYTES)]
    NameTooLong,
    /// A whiteout of nothing, of the directory itself or of its parent.
    #[error("whiteout without a valid name")]
    Whiteout,
    /// The root of the tree is not a directory.
    #[error("the root is not a directory")]
    Root,
    /// A link names nothing, or a hard link the root.
    #[error("link without a target")]
    NoTarget,
    /// A symbolic link's target is longer than [`crate::limits::SYMLINK_BYTES`].
    #[error("symbolic link target longer than {} bytes", crate::limits::SYMLINK_BYTES)]
    TargetTooLong,
    /// An extended attribute's name or value, or all names together, exceed what the kernel can carry.
    #[error("extended attributes exceed the kernel's limits")]
    Xattr,
}
