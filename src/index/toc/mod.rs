//! Tables of contents: images whose layers bring their own index.
//!
//! eStargz (and stargz before it) and zstd:chunked put a member or frame boundary before every payload, and a JSON document,
//! the TOC, near the end of the blob: what tar says of each member, where its bytes begin in the blob, and their digests.
//! A TOC says whatever its writer wanted, so it is only looked at where the manifest pins its digest: a [`Pin`]. From there
//! it goes
//!
//! ```text
//! Pin ─► Place: which bytes of the blob ─► open: digest, decompression, digest ─► JSON ─► Claim
//!  └─ says where, or a Footer at the blob's end does
//! ```
//!
//! `pin` reads annotations; `estargz` and `zstd_chunked` know what frames a TOC; `json` reads the document entry by entry;
//! `members` makes of each what the tar reader makes of a member, `chunks` finds which bytes of the blob hold which bytes of
//! a file. Nothing here does I/O.
//!
//! A TOC has no offsets of the tar stream, so the stream of its claim is one of its own: the chunks of all files, one after
//! the other. What is not a file's content (headers, padding, the TOC) is not in it. Nor is the tar-split document that
//! containers/storage appends to zstd:chunked looked at: it is for writing the same tar again, which nobody does here.

mod chunks;
mod estargz;
mod json;
mod members;
mod pin;
#[cfg(test)]
mod tests;
mod zstd_chunked;

use std::ops::Range;

use super::{Claim, Compression, FORMAT_FILES};
use crate::limits::{TOC_BYTES, TOC_ENTRIES};
use crate::oci::Digest;
use crate::tar::{self, Entry, Kind};

pub use pin::Pin;

/// A format that has a TOC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// gzip members: eStargz, and stargz, whose last bytes are others.
    Estargz,
    /// zstd frames, in the dialects of containers/storage and of stargz-snapshotter.
    ZstdChunked,
}

impl Format {
    /// The name that people use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Estargz => "estargz",
            Self::ZstdChunked => "zstd:chunked",
        }
    }

    /// The format of a TOC of a blob with this compression.
    pub fn of(compression: Compression) -> Self {
        match compression {
            Compression::Zstd => Self::ZstdChunked,
            Compression::None | Compression::Gzip => Self::Estargz,
        }
    }

    fn compression(self) -> Compression {
        match self {
            Self::Estargz => Compression::Gzip,
            Self::ZstdChunked => Compression::Zstd,
        }
    }
}

/// True for what is in a layer only because it brings its TOC along: the TOC itself and landmarks.
pub fn is_own_file(entry: &Entry) -> bool {
    matches!(entry.kind, Kind::Regular { .. }) && FORMAT_FILES.contains(&&entry.path[..])
}

/// Where in its blob a TOC is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    format: Format,
    /// Its compressed bytes.
    bytes: Range<u64>,
    /// Its length when decompressed, if that is said.
    length: Option<u64>,
    /// Where the bytes of files end in the blob.
    payload_end: u64,
}

impl Place {
    /// The bytes of the blob to give to [`open`]; their number is bounded by [`TOC_BYTES`].
    pub fn bytes(&self) -> Range<u64> {
        self.bytes.clone()
    }

    /// What kind of TOC it is.
    pub fn format(&self) -> Format {
        self.format
    }
}

/// What the last bytes of a blob say about its TOC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Footer {
    /// It is in the blob.
    Within(Place),
    /// It is in an image of its own, [`Outside`] of the blob.
    Outside(Outside),
}

/// A layer in eStargz whose TOC is somewhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outside {
    payload_end: u64,
}

impl Footer {
    /// The longest footer of any kind.
    pub const BYTES: u64 = zstd_chunked::FOOTER_BYTES as u64;

    /// Reads the footer of a blob of `size` bytes, of which `tail` are the last: [`Self::BYTES`] or more, or all of them.
    /// None if it is no footer of a known kind.
    pub fn find(tail: &[u8], size: u64) -> Result<Option<Self>, Error> {
        if let Some(footer) = estargz::footer(tail, size)? {
            return Ok(Some(footer));
        }
        Ok(zstd_chunked::footer(tail, size)?.map(Self::Within))
    }
}

/// Reads the TOC that is at `place`, from exactly those bytes of the blob, if it is the one that `pin` names.
pub fn open(place: &Place, bytes: &[u8], pin: &Pin) -> Result<Claim, Error> {
    pin.check_compressed(bytes)?;
    let document = match place.format {
        Format::Estargz => estargz::document(bytes)?,
        Format::ZstdChunked => zstd_chunked::document(bytes, place.length)?,
    };
    pin.check_document(&document)?;
    read(place.format, &document, place.payload_end)
}

/// Reads the TOC of a layer that has it [`Outside`], from the whole blob of the layer that holds it.
pub fn open_outside(outside: Outside, archive: &[u8], pin: &Pin) -> Result<Claim, Error> {
    let document = estargz::document(archive)?;
    if !pin.check_document(&document)? {
        return Err(Error::Unpinned);
    }
    read(Format::Estargz, &document, outside.payload_end)
}

/// Reads a TOC's document. The bytes of files end at `payload_end` in the blob.
fn read(format: Format, document: &[u8], payload_end: u64) -> Result<Claim, Error> {
    let mut members = members::Members::new(format);
    json::read(document, &mut members)?;
    members.finish(payload_end)
}

/// Why a TOC is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// An annotation of the layer cannot be read.
    #[error("annotation {0} is malformed")]
    Annotation(&'static str),
    /// The annotations name two TOCs, and which one is meant nobody knows (A-223).
    #[error("its annotations name two tables of contents")]
    Two,
    /// No annotation has a digest of this TOC.
    #[error("its table of contents is not pinned by a digest")]
    Unpinned,
    /// The footer, or the annotation in its place, names bytes that cannot be a TOC (D-017, D-021).
    #[error("its table of contents cannot be where it is said to be")]
    Place,
    /// It is longer than [`TOC_BYTES`], or not as long as it is said to be.
    #[error("its table of contents is longer than {TOC_BYTES} bytes or than it is said to be")]
    Length,
    /// It is another one than the manifest names (A-221).
    #[error("its table of contents should have digest {expected}, but has {found}")]
    Digest {
        /// What the manifest says.
        expected: Box<Digest>,
        /// What it has.
        found: Box<Digest>,
    },
    /// It cannot be decompressed.
    #[error("its table of contents cannot be decompressed")]
    Compressed,
    /// The archive around it cannot be read.
    #[error("the archive that holds its table of contents is malformed")]
    Archive(#[source] Box<tar::Error>),
    /// The archive around it does not have it.
    #[error("the archive that should hold its table of contents has no stargz.index.json")]
    Missing,
    /// It is not JSON of the right shape.
    #[error("its table of contents is malformed: {0}")]
    Json(String),
    /// It has more entries than [`TOC_ENTRIES`].
    #[error("its table of contents has more than {TOC_ENTRIES} entries")]
    Entries,
    /// An entry is none that a layer can have.
    #[error("its table of contents says of \"{path}\": {fault}")]
    Entry {
        /// Its name, escaped and shortened.
        path: String,
        /// What is wrong.
        fault: Fault,
    },
}

/// What is wrong with an entry of a TOC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The same rules as for a member of a tar stream.
    #[error(transparent)]
    Member(#[from] tar::Fault),
    /// The type is unknown.
    #[error("its type is unknown")]
    Type,
    /// A number is negative where none can be.
    #[error("a number is negative")]
    Negative,
    /// Its time is none.
    #[error("its time cannot be read")]
    Time,
    /// A digest is malformed or not SHA-256.
    #[error("a digest is not one of SHA-256")]
    Digest,
    /// An extended attribute is not in base64.
    #[error("an extended attribute is not in base64")]
    Xattr,
    /// A name has a character that stands for bytes which JSON cannot say.
    #[error("a name is not UTF-8, which JSON cannot say")]
    Name,
    /// A name is given twice where that is not allowed.
    #[error("it is listed twice")]
    Twice,
    /// A chunk does not follow the file that it belongs to.
    #[error("a chunk does not follow its file")]
    Stray,
    /// Chunks have gaps, overlap, exceed the file or do not fill it (D-018).
    #[error("its chunks do not make up the file")]
    Chunks,
    /// A chunk has no digest (A-228).
    #[error("a chunk of it has no digest")]
    Unverifiable,
    /// The type of a chunk is unknown.
    #[error("a chunk of it is of an unknown type")]
    ChunkType,
    /// The bytes of a chunk cannot be where they are said to be (D-018).
    #[error("the bytes of a chunk cannot be where they are said to be")]
    Offset,
    /// Two chunks begin at the same place, or one inside another (A-229).
    #[error("its bytes are said to be where those of another are")]
    Shared,
    /// Hard links lead in a circle (D-019).
    #[error("its hard links lead in a circle")]
    Circle,
}
