//! Profiles: what a container start read, in order, so that the next one finds it fetched.
//!
//! Three difficulties. *What is worth keeping*: an order of first accesses, each byte once, whatever a program rereads
//! ([`Order`]). *Which recording to believe*: every mount is recorded, but not every mount is a start ([`Profile::update`]).
//! *Strangers*: profiles are exchanged as text and applied to whatever image somebody names, so nothing in one is more
//! than a hint. A path is looked up in the image's tree and never opened; one that is not there is passed over.
//!
//! # Which recording is kept
//!
//! - A recording of more than half of the image's bytes *and* more than half of its files is a scan (`tar`, `grep -r`, a
//!   virus scanner), not a start, unless the image is small ([`SMALL_IMAGE`]), where it does no harm. Either half alone
//!   is not enough: an image may be one large program, or a program and a thousand files of time zones. So is one with
//!   as many accesses as a profile can hold. A scan is dropped.
//! - A recording with at least half the bytes of the stored profile replaces it: it is the newer start.
//! - Anything smaller (somebody ran `cat` on a file), or a recording that did not see all reads because the kernel
//!   answered some itself, adds what it has that the profile has not, at the end. Nothing is added that would make the
//!   profile a scan.
//!
//! # The text form
//!
//! It is the stored form, the exported one, and self-contained. Lines end in a line feed; one blank separates fields:
//!
//! ```text
//! ocifs-profile 1
//! image sha256:8a1b…                           the manifest it was recorded of
//! recorded 1764000000                          seconds since 1970
//! mount /mnt/python                            where, escaped
//! accesses 2                                   how many lines follow
//! 0 131072 usr/bin/python3                     offset, length, path
//! 4096 65536 usr/lib/caf\xc3\xa9/with\x20blank
//! ```
//!
//! In paths and mount points every byte that is no printable ASCII character, the blank and the backslash are written
//! `\xNN`, so any name survives and every line is plain text. Paths are relative to the image's root, without `.`, `..`
//! or empty components.

mod order;
mod text;

use std::path::PathBuf;

pub use order::{Noted, Order};
pub use text::ParseError;

use crate::limits::{PROFILE_ACCESSES, PROFILE_OFFSET, PROFILE_PATH_BYTES, PROFILE_TEXT_BYTES};
use crate::oci::Digest;

/// Sum of file sizes up to which an image may be read as a whole by its start: 16 MiB cost less than to think about.
pub const SMALL_IMAGE: u64 = 16 << 20;

/// The first access to one range of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    path: Vec<u8>,
    start: u64,
    end: u64,
}

/// Where a profile comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The manifest of the image that was mounted.
    pub image: Digest,
    /// When the recording ended, in seconds since 1970.
    pub recorded: u64,
    /// Where the image was mounted.
    pub mount: PathBuf,
}

/// First accesses in order; no byte of a path twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    origin: Origin,
    accesses: Vec<Access>,
    text_bytes: usize,
}

/// How large an image is, to tell a start from a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageSize {
    /// Sum of the sizes of its files.
    pub bytes: u64,
    /// Files that are not empty.
    pub files: u64,
}

/// What became of a recording.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update {
    /// The profile to store from now on.
    Store(Profile),
    /// Nothing changes: nothing new was read.
    Keep,
    /// The recording was a scan, or would make the profile one.
    Scan,
}

impl Access {
    /// An access to `start..end` of the file at `path`; none if it is empty, or the path is not plain: relative, with
    /// components of one to 255 bytes that are neither `.` nor `..`, without NUL.
    pub fn new(path: Vec<u8>, start: u64, end: u64) -> Option<Self> {
        let is_plain = !path.is_empty()
            && path.len() <= PROFILE_PATH_BYTES
            && !path.contains(&0)
            && path.split(|byte| *byte == b'/').all(|name| {
                !name.is_empty() && name != b"." && name != b".." && name.len() <= crate::limits::NAME_BYTES
            });
        (is_plain && start < end && end <= PROFILE_OFFSET).then_some(Self { path, start, end })
    }

    /// The path below the image's root.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// The first byte.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The end.
    pub fn end(&self) -> u64 {
        self.end
    }
}

impl Profile {
    /// A profile of these accesses, each byte once, as many as fit.
    pub fn new(origin: Origin, accesses: impl IntoIterator<Item = Access>) -> Self {
        let mut order = Order::default();
        let mut profile = Self { text_bytes: text::header_bytes(&origin), origin, accesses: Vec::new() };
        for access in accesses {
            if order.note(access.path, access.start, access.end) == Noted::Full {
                break;
            }
        }
        for (path, range) in order.into_entries() {
            let access = Access { path, start: range.start, end: range.end };
            let length = text::line_bytes(&access);
            if profile.text_bytes + length > PROFILE_TEXT_BYTES {
                break;
            }
            profile.text_bytes += length;
            profile.accesses.push(access);
        }
        profile
    }

    /// Where it comes from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The accesses in order.
    pub fn accesses(&self) -> &[Access] {
        &self.accesses
    }

    /// Bytes of all accesses.
    pub fn bytes(&self) -> u64 {
        self.accesses.iter().map(|access| access.end - access.start).fold(0, u64::saturating_add)
    }

    /// Number of distinct paths.
    pub fn files(&self) -> u64 {
        let paths: std::collections::HashSet<&[u8]> = self.accesses.iter().map(Access::path).collect();
        paths.len() as u64
    }

    /// The text form.
    pub fn to_text(&self) -> String {
        text::write(self)
    }

    /// Reads the text form.
    pub fn parse(text: &[u8]) -> Result<Self, ParseError> {
        text::parse(text)
    }

    /// What is to be stored after this recording was made of an image that is as large as `image`, where `stored` is what
    /// is stored now. `saw_all` is false if reads may have been answered without the recorder's knowledge.
    pub fn update(self, stored: Option<&Self>, image: ImageSize, saw_all: bool) -> Update {
        if self.is_scan(image) {
            return Update::Scan;
        }
        if self.accesses.is_empty() {
            return Update::Keep;
        }
        let Some(stored) = stored.filter(|stored| !stored.accesses.is_empty()) else { return Update::Store(self) };
        if saw_all && self.bytes() >= stored.bytes() / 2 {
            return Update::Store(self);
        }
        let both = Self::new(self.origin, stored.accesses.iter().cloned().chain(self.accesses));
        if both.accesses == stored.accesses {
            return Update::Keep;
        }
        if both.is_scan(image) { Update::Scan } else { Update::Store(both) }
    }

    fn is_scan(&self, image: ImageSize) -> bool {
        let is_most = self.bytes() > image.bytes / 2 && self.files() > image.files / 2;
        let is_full =
            self.accesses.len() >= PROFILE_ACCESSES || self.text_bytes + 4 * PROFILE_PATH_BYTES > PROFILE_TEXT_BYTES;
        is_full || (image.bytes > SMALL_IMAGE && is_most)
    }
}

#[cfg(test)]
mod tests;
