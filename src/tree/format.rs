//! The stored form of a tree: fixed-size little-endian records, mapped into memory and used where they lie.
//!
//! ```text
//! ┌────────┬───────┬────────┬────────┬─────────┬────────────┬────────┬─────────┬──────────┐
//! │ header │ nodes │ names  │ name   │ link    │ attribute  │ attri- │ extents │ digests  │
//! │        │       │ in dirs│ bytes  │ targets │ set bounds │ butes  │         │ of files │
//! └────────┴───────┴────────┴────────┴─────────┴────────────┴────────┴─────────┴──────────┘
//!    112      48 ×     9 ×                           8 ×                28 ×       32 ×    bytes
//! ```
//!
//! The header names format and version, the length of each section, and a BLAKE3 digest of everything after itself.
//! Sections follow one another without gaps. Nodes are numbered breadth first from the root, by sorted names, a hard
//! link at its first name: children have greater numbers than their directory, and equal trees have equal bytes. The
//! names of a directory are neighbours, sorted. Equal names, and equal sets of attributes, are kept once.
//!
//! A node's last two fields hold what its type needs:
//!
//! | type | `first` | `second` |
//! |---|---|---|
//! | directory | first entry, number of entries | parent |
//! | regular file | size | offset in the layer `layer`; if that is [`IN_RUNS`], first extent and number of extents |
//! | symbolic link | start and length of the target | |
//! | device | major, minor | |
//!
//! A file with a name of 15 bytes that no other has takes 104 bytes, its digest included.

use std::ops::Range;

use bytes::Bytes;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::NodeKind;
use crate::tar::Timestamp;

/// The first bytes of a stored tree.
pub(super) const MAGIC: [u8; 8] = *b"ocifsTRE";

/// Of the format and of the rules of merging: a change of either makes stored trees useless.
pub(super) const VERSION: u32 = 1;

/// In [`NodeRecord::layer`]: the file is not one run, see its extents. Above every layer number.
pub(super) const IN_RUNS: u16 = u16::MAX;

const _: () = assert!(crate::limits::LAYERS < IN_RUNS as usize);

/// Number of sections.
const SECTIONS: usize = 8;

/// The start of a stored tree.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    pub(super) magic: [u8; 8],
    /// BLAKE3 of everything after this field.
    pub(super) digest: [u8; 32],
    pub(super) version: U32,
    pub(super) sections: U32,
    pub(super) lengths: [U64; SECTIONS],
}

/// Where the digested part begins.
pub(super) const DIGESTED: usize = 40;

const _: () = assert!(size_of::<Header>() == 112);

/// One inode.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct NodeRecord {
    /// Type in the upper four bits, permission bits below.
    pub(super) kind_mode: U16,
    pub(super) layer: U16,
    pub(super) uid: U32,
    pub(super) gid: U32,
    /// 0 for none, else the number of a set plus one.
    pub(super) xattrs: U32,
    pub(super) nlink: U32,
    /// 0 for none, else the number of a digest plus one.
    pub(super) content: U32,
    /// Seconds in the upper 34 bits, nanoseconds below.
    pub(super) mtime: U64,
    pub(super) first: U64,
    pub(super) second: U64,
}

const _: () = assert!(size_of::<NodeRecord>() == 48);

/// One name in a directory.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct DentryRecord {
    pub(super) name: U32,
    pub(super) node: U32,
    pub(super) name_length: u8,
}

const _: () = assert!(size_of::<DentryRecord>() == 9);

/// Where a set of attributes is in its section.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct SetRecord {
    pub(super) start: U32,
    pub(super) length: U32,
}

/// One run of a fragmented file.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct ExtentRecord {
    pub(super) file_offset: U64,
    pub(super) length: U64,
    pub(super) layer_offset: U64,
    pub(super) layer: U32,
}

const _: () = assert!(size_of::<ExtentRecord>() == 28);

/// Type and mode in one field.
pub(super) fn pack_kind(kind: NodeKind, mode: u16) -> u16 {
    let number = match kind {
        NodeKind::Directory => 0,
        NodeKind::Regular => 1,
        NodeKind::Symlink => 2,
        NodeKind::CharDevice => 3,
        NodeKind::BlockDevice => 4,
        NodeKind::Fifo => 5,
    };
    number << 12 | mode & 0o7777
}

/// A moment in one field. One that does not fit is 0, as for times that Go cannot hold (A-121, A-122).
pub(super) fn pack_time(time: Timestamp) -> u64 {
    match u64::try_from(time.seconds) {
        Ok(seconds) if seconds < 1 << 34 && time.nanos < 1_000_000_000 => seconds << 30 | u64::from(time.nanos),
        _ => 0,
    }
}

/// Two numbers in one field.
pub(super) fn pack_pair(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

/// The two numbers of [`pack_pair`].
pub(super) fn pair(field: U64) -> (u32, u32) {
    (field.get() as u32, (field.get() >> 32) as u32)
}

impl NodeRecord {
    /// The type, if it is one.
    pub(super) fn kind(&self) -> Option<NodeKind> {
        Some(match self.kind_mode.get() >> 12 {
            0 => NodeKind::Directory,
            1 => NodeKind::Regular,
            2 => NodeKind::Symlink,
            3 => NodeKind::CharDevice,
            4 => NodeKind::BlockDevice,
            5 => NodeKind::Fifo,
            _ => return None,
        })
    }

    pub(super) fn mode(&self) -> u16 {
        self.kind_mode.get() & 0o7777
    }

    pub(super) fn mtime(&self) -> Timestamp {
        let nanos = (self.mtime.get() & ((1 << 30) - 1)) as u32;
        Timestamp { seconds: (self.mtime.get() >> 30).cast_signed(), nanos }
    }

    /// First entry and number of entries of a directory.
    pub(super) fn entries(&self) -> (u32, u32) {
        pair(self.first)
    }

    /// Parent of a directory.
    pub(super) fn parent(&self) -> u32 {
        pair(self.second).0
    }
}

/// The places of the sections in the bytes of a tree.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    ends: [usize; SECTIONS],
}

impl Layout {
    /// Reads the header of `bytes`, which must hold exactly the sections it states.
    pub(super) fn read(bytes: &[u8]) -> Result<(Header, Self), &'static str> {
        let (header, _) = Header::read_from_prefix(bytes).map_err(|_| "it is shorter than its header")?;
        if header.magic != MAGIC {
            return Err("it does not begin as one");
        }
        if header.version.get() != VERSION || header.sections.get() as usize != SECTIONS {
            return Err("it is of another version");
        }
        let mut end = size_of::<Header>();
        let mut ends = [0; SECTIONS];
        for (slot, length) in ends.iter_mut().zip(header.lengths) {
            let length = usize::try_from(length.get()).map_err(|_| "a section is too long")?;
            end = end.checked_add(length).filter(|&end| end <= bytes.len()).ok_or("a section is too long")?;
            *slot = end;
        }
        if end != bytes.len() {
            return Err("it is longer than its sections");
        }
        Ok((header, Self { ends }))
    }

    fn section(&self, number: usize) -> Range<usize> {
        let start = number.checked_sub(1).map_or(size_of::<Header>(), |before| self.ends[before]);
        start..self.ends[number]
    }

    fn records<'a, T: FromBytes + KnownLayout + Immutable + Unaligned>(
        &self,
        bytes: &'a Bytes,
        number: usize,
    ) -> &'a [T] {
        let section = &bytes[self.section(number)];
        // A length that is no multiple of the record's is refused when the tree is opened.
        <[T]>::ref_from_bytes(section).unwrap_or_default()
    }

    pub(super) fn nodes<'a>(&self, bytes: &'a Bytes) -> &'a [NodeRecord] {
        self.records(bytes, 0)
    }

    pub(super) fn dentries<'a>(&self, bytes: &'a Bytes) -> &'a [DentryRecord] {
        self.records(bytes, 1)
    }

    pub(super) fn names<'a>(&self, bytes: &'a Bytes) -> &'a [u8] {
        self.records(bytes, 2)
    }

    pub(super) fn targets<'a>(&self, bytes: &'a Bytes) -> &'a [u8] {
        self.records(bytes, 3)
    }

    pub(super) fn sets<'a>(&self, bytes: &'a Bytes) -> &'a [SetRecord] {
        self.records(bytes, 4)
    }

    pub(super) fn xattrs<'a>(&self, bytes: &'a Bytes) -> &'a [u8] {
        self.records(bytes, 5)
    }

    pub(super) fn extents<'a>(&self, bytes: &'a Bytes) -> &'a [ExtentRecord] {
        self.records(bytes, 6)
    }

    pub(super) fn digests<'a>(&self, bytes: &'a Bytes) -> &'a [[u8; 32]] {
        self.records(bytes, 7)
    }

    /// True if every section holds whole records.
    pub(super) fn is_whole(&self) -> bool {
        let sizes = [
            size_of::<NodeRecord>(),
            size_of::<DentryRecord>(),
            1,
            1,
            size_of::<SetRecord>(),
            1,
            size_of::<ExtentRecord>(),
            32,
        ];
        (0..SECTIONS).all(|number| self.section(number).len().is_multiple_of(sizes[number]))
    }
}

/// The part of `bytes` that begins at `start`, if it is there.
pub(super) fn part(bytes: &[u8], start: u32, length: u32) -> Option<&[u8]> {
    bytes.get(start as usize..)?.get(..length as usize)
}

/// Splits the first (name, value) off a serialized set of attributes.
///
/// Each is the length of the name in two bytes, the length of the value in four, the name, the value.
pub(super) fn split_xattr(set: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (name_length, rest) = U16::read_from_prefix(set).ok()?;
    let (value_length, rest) = U32::read_from_prefix(rest).ok()?;
    let (name, rest) = rest.split_at_checked(usize::from(name_length.get()))?;
    let (value, rest) = rest.split_at_checked(value_length.get() as usize)?;
    Some((name, value, rest))
}

/// Gives damaged bytes the digest that they would have if somebody had made them so.
#[cfg(fuzzing)]
pub(super) fn reseal(bytes: &mut [u8]) {
    let Some(digested) = bytes.get(DIGESTED..) else { return };
    let digest = blake3::hash(digested);
    bytes[DIGESTED - digest.as_bytes().len()..DIGESTED].copy_from_slice(digest.as_bytes());
}
