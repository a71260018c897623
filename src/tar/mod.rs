//! Tar streams: bytes of an uncompressed layer become [`Entry`] values, with the place of every payload byte.
//!
//! The reference is Go's archive/tar as the container tools use it (cases A7), plus old GNU sparse files and type `7`.
//! [`Parser`] does no I/O: it is pushed bytes in any pieces and calls a [`Sink`]. Names are normalised here (A5), and
//! the whiteout convention of the layer specification (image-spec layer.md) is recognised here, so that nothing above
//! ever looks at a raw name.

/// A moment in time as stat shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Timestamp {
    /// Seconds since the epoch, never negative.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanos: u32,
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
        /// SHA-256 of the whole file, holes included; none for an empty file, and for a sparse one too large to hash
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
    /// Components joined by `/`, without leading or trailing slash, `.`, `..` or empty ones; empty for the root.
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

/// Receives what a [`Parser`] finds, in stream order.
pub trait Sink {
    /// A member begins. If it is a regular file with segments, their bytes follow as [`Sink::data`], in the order of
    /// the segments, before the next entry.
    fn entry(&mut self, entry: Entry);

    /// The next payload bytes of the last entry.
    fn data(&mut self, bytes: &[u8]);
}
