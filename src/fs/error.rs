//! What an operation can fail with, and the one table that turns it into an errno.

use super::Ino;
use crate::fetch;

/// A failed operation.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// There is no such name.
    #[error("no such entry")]
    NotFound,
    /// The name is longer than statfs says names are.
    #[error("name too long")]
    NameTooLong,
    /// The inode number is not one of this tree.
    #[error("inode {0:?} is unknown")]
    Stale(Ino),
    /// A directory was expected.
    #[error("not a directory")]
    NotDirectory,
    /// A regular file was expected, or a symbolic link.
    #[error("wrong type of file")]
    WrongType,
    /// There is no such attribute.
    #[error("no such attribute")]
    NoAttribute,
    /// The caller's buffer is too small for the attribute.
    #[error("buffer too small")]
    Range,
    /// The file system cannot be changed.
    #[error("read-only file system")]
    ReadOnly,
    /// The bytes could not be had or are wrong.
    #[error(transparent)]
    Fetch(#[from] fetch::Error),
}

/// The errno values that this file system answers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Errno {
    /// `ENOENT`
    NoEntry,
    /// `ENAMETOOLONG`
    NameTooLong,
    /// `ESTALE`
    Stale,
    /// `ENOTDIR`
    NotDirectory,
    /// `EINVAL`
    Invalid,
    /// `ENODATA`
    NoData,
    /// `ERANGE`
    Range,
    /// `EROFS`
    ReadOnly,
    /// `EIO`
    Io,
}

impl Error {
    /// The errno for this failure. `ENOENT` never comes from the network: a missing blob is a failed read.
    pub fn errno(&self) -> Errno {
        match self {
            Self::NotFound => Errno::NoEntry,
            Self::NameTooLong => Errno::NameTooLong,
            Self::Stale(_) => Errno::Stale,
            Self::NotDirectory => Errno::NotDirectory,
            Self::WrongType => Errno::Invalid,
            Self::NoAttribute => Errno::NoData,
            Self::Range => Errno::Range,
            Self::ReadOnly => Errno::ReadOnly,
            // A retry may succeed, but no errno says so to programs that do not expect it from a local file.
            Self::Fetch(_) => Errno::Io,
        }
    }
}

/// An error with all its causes on one line, for logs.
#[derive(Debug)]
pub struct Chain<'a>(pub &'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
