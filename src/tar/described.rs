//! Members as something other than a tar header describes them: an index that another tool made of the layer.
//!
//! What such an index says is held to the rules of tar members, by the same code, so that it makes the same entries as the
//! stream it was made from.

use super::name::{self, Name};
use super::{Entry, Fault, Kind, Timestamp, xattr};
use crate::limits;

/// A member by the fields that its tar header has, as they are: nothing is checked or normalised yet.
#[derive(Debug, Clone, Copy)]
pub struct Described<'a> {
    /// What it is.
    pub kind: DescribedKind<'a>,
    /// The mode; bits other than those of permissions mean nothing.
    pub mode: i64,
    /// Owner.
    pub uid: i64,
    /// Group.
    pub gid: i64,
    /// Time of last modification, in seconds since the epoch and nanoseconds after that.
    pub mtime: (i64, u32),
}

/// The type of a described member, with what only this type has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DescribedKind<'a> {
    /// A directory.
    Directory,
    /// A regular file of so many bytes.
    Regular {
        /// Its length.
        size: u64,
    },
    /// A symbolic link.
    Symlink {
        /// Its target.
        target: &'a [u8],
    },
    /// A hard link.
    HardLink {
        /// What it links to.
        target: &'a [u8],
    },
    /// A character device.
    CharDevice {
        /// Major number.
        major: i64,
        /// Minor number.
        minor: i64,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: i64,
        /// Minor number.
        minor: i64,
    },
    /// A named pipe.
    Fifo,
}

impl Described<'_> {
    /// The entry that a member of this name makes; none if it makes nothing. `xattrs` are names, without the prefix that
    /// PAX records put before them, and values. The segments of a regular file are left to the caller.
    pub fn entry<'x>(
        &self,
        name: &[u8],
        xattrs: impl Iterator<Item = (&'x [u8], &'x [u8])>,
    ) -> Result<Option<Entry>, Fault> {
        let is_file = matches!(self.kind, DescribedKind::Regular { .. });
        named(name, is_file, |path| self.at(path, xattrs))
    }

    /// The entry at a path that is cleaned and no whiteout.
    pub(super) fn at<'x>(
        &self,
        path: Vec<u8>,
        xattrs: impl Iterator<Item = (&'x [u8], &'x [u8])>,
    ) -> Result<Entry, Fault> {
        let kind = self.kind()?;
        if path.is_empty() && kind != Kind::Directory {
            return Err(Fault::Root);
        }
        let mode = if matches!(kind, Kind::Symlink { .. }) { 0o777 } else { (self.mode & 0o7777) as u16 };
        let uid = u32::try_from(self.uid).map_err(|_| Fault::Range("uid"))?;
        let gid = u32::try_from(self.gid).map_err(|_| Fault::Range("gid"))?;
        let mtime = Timestamp::bounded(self.mtime.0, self.mtime.1);
        Ok(Entry { mode, uid, gid, mtime, xattrs: xattr::served(&kind, xattrs)?, path, kind })
    }

    fn kind(&self) -> Result<Kind, Fault> {
        let device = |number| u32::try_from(number).map_err(|_| Fault::Range("device number"));
        Ok(match self.kind {
            DescribedKind::Regular { size } if size > i64::MAX as u64 => return Err(Fault::Range("size")),
            DescribedKind::Regular { size } => Kind::Regular { size, segments: Vec::new(), content: None },
            DescribedKind::HardLink { target } => Kind::HardLink { target: name::link_target(target)? },
            DescribedKind::Symlink { target } => Kind::Symlink { target: symlink_target(target)? },
            DescribedKind::CharDevice { major, minor } => {
                Kind::CharDevice { major: device(major)?, minor: device(minor)? }
            }
            DescribedKind::BlockDevice { major, minor } => {
                Kind::BlockDevice { major: device(major)?, minor: device(minor)? }
            }
            DescribedKind::Directory => Kind::Directory,
            DescribedKind::Fifo => Kind::Fifo,
        })
    }
}

/// What a member called `raw` makes: what `make` says for the cleaned path, or a marker, or nothing.
pub(super) fn named(
    raw: &[u8],
    is_file: bool,
    make: impl FnOnce(Vec<u8>) -> Result<Entry, Fault>,
) -> Result<Option<Entry>, Fault> {
    match Name::new(raw)? {
        Name::Plain(path) => make(path).map(Some),
        Name::AufsLink(path) if is_file => make(path).map(Some),
        Name::AufsLink(_) | Name::Hidden => Ok(None),
        // Whatever a whiteout is made of, it is a whiteout.
        Name::Whiteout(path) => Ok(Some(marker(path, Kind::Whiteout))),
        Name::Opaque(path) => Ok(Some(marker(path, Kind::Opaque))),
    }
}

fn symlink_target(raw: &[u8]) -> Result<Vec<u8>, Fault> {
    match raw.len() {
        0 => Err(Fault::NoTarget),
        _ if raw.contains(&0) => Err(Fault::Nul),
        1..=limits::SYMLINK_BYTES => Ok(raw.to_vec()),
        _ => Err(Fault::TargetTooLong),
    }
}

/// An entry that only hides.
fn marker(path: Vec<u8>, kind: Kind) -> Entry {
    Entry { path, kind, mode: 0, uid: 0, gid: 0, mtime: Timestamp::default(), xattrs: Vec::new() }
}
