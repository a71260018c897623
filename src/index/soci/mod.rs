//! SOCI's index of a layer, the zTOC 0.9: read into a [`Claim`], and written from an index of ours.
//!
//! A zTOC is a flatbuffer of three things: sizes, the members of the archive with the places of their payloads, and the
//! checkpoints at which decoding can start, with a SHA-256 of the compressed bytes of each span between them. It speaks of
//! the layer's own stream. Nothing in it ties it to the layer's digest: whoever writes one can say anything, so it
//! is a claim like any other, believed by the rule for what is found in registries.
//!
//! | file | concern |
//! |---|---|
//! | `flat` | flatbuffers: reading with every offset checked, writing |
//! | `checkpoints` | the places where decoding can start: gzip in two versions, plain |
//! | `members` | members of the archive to entries |
//! | `write` | the other direction |
//!
//! What the format leaves open is settled so: a zTOC whose members do not follow each other as headers and payloads in a
//! tar stream do is refused, because tools that do not know sparse files wrote such ones; so is one that maps a long layer
//! of several gzip members to one span, as SOCI did until 2026. The layer is then treated as plain.

mod checkpoints;
mod flat;
mod members;
#[cfg(test)]
mod tests;
mod write;

pub use write::{SPAN_SIZE, Unwritable, write};

use self::checkpoints::Checkpoints;
use self::flat::{Buffer, Malformed as MalformedBuffer, Table};
use super::{Claim, Compression, Expected, Times};
use crate::limits::ZTOC_BYTES;
use crate::oci::Digest;
use crate::tar;

/// The version of zTOCs that is read and written.
const VERSION: &[u8] = b"0.9";

/// `compression_algorithm` of a gzip stream, which is also the default.
const GZIP: u8 = 1;

/// `compression_algorithm` of a plain tar stream.
const UNCOMPRESSED: u8 = 2;

/// Why a zTOC is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the zTOC of layer {layer} is refused: {fault}")]
pub struct Refused {
    /// The layer.
    pub layer: Digest,
    /// What is wrong with it.
    pub fault: Fault,
}

/// What is wrong with a zTOC.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It is longer than [`ZTOC_BYTES`].
    #[error("it is too long")]
    TooLong,
    /// It is no flatbuffer, or one that is larger on the inside.
    #[error("it is malformed")]
    Flatbuffer,
    /// It is of another version.
    #[error("it has a version other than 0.9")]
    Version,
    /// The compression is none that it can describe.
    #[error("its compression is not known")]
    Compression,
    /// Its sizes are not those of the layer.
    #[error("it speaks of a layer of another size")]
    Size,
    /// Its checkpoints cannot be those of the layer.
    #[error("{0}")]
    Checkpoints(&'static str),
    /// A member is not one that the layer can have there.
    #[error("\"{name}\": {what}")]
    Member {
        /// Its name, escaped and shortened.
        name: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A member is malformed or not acceptable in a layer.
    #[error("\"{name}\": {fault}")]
    Tar {
        /// Its name, escaped and shortened.
        name: String,
        /// What is wrong with it.
        fault: tar::Fault,
    },
}

impl From<MalformedBuffer> for Fault {
    fn from(_: MalformedBuffer) -> Self {
        Self::Flatbuffer
    }
}

/// What the zTOC `bytes` says of the layer that `expected` names.
pub fn claim(expected: &Expected, bytes: &[u8]) -> Result<Claim, Refused> {
    read(expected, bytes).map_err(|fault| Refused { layer: expected.layer, fault })
}

fn read(expected: &Expected, bytes: &[u8]) -> Result<Claim, Fault> {
    if bytes.len() as u64 > ZTOC_BYTES {
        return Err(Fault::TooLong);
    }
    let buffer = Buffer::new(bytes);
    let ztoc = buffer.root()?;
    if ztoc.bytes(4)? != VERSION {
        return Err(Fault::Version);
    }
    let size = |offset| ztoc.i64(offset).map(u64::try_from);
    let (Ok(compressed), Ok(uncompressed)) = (size(8)?, size(10)?) else { return Err(Fault::Size) };
    if compressed != expected.size || uncompressed == 0 {
        return Err(Fault::Size);
    }
    let info = ztoc.table(14)?.ok_or(Fault::Flatbuffer)?;
    let compression = match info.byte(4, GZIP)? {
        GZIP => Compression::Gzip,
        UNCOMPRESSED => Compression::None,
        _ => return Err(Fault::Compression),
    };
    let spans = spans(&info, compression, compressed, uncompressed)?;
    let members = ztoc.table(12)?.ok_or(Fault::Flatbuffer)?.tables(4)?;
    let entries = members::entries(&members, uncompressed)?;
    let uncompressed_size = uncompressed;
    Ok(Claim { compression, entries, spans, uncompressed_size, fidelity: Times::Exact, prefetch_end: None })
}

fn spans(
    info: &Table<'_>,
    compression: Compression,
    compressed: u64,
    uncompressed: u64,
) -> Result<Vec<super::ClaimedSpan>, Fault> {
    let mut digests = Vec::new();
    for text in info.strings(8)? {
        let digest = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
        let Some(Digest::Sha256(digest)) = digest else {
            return Err(Fault::Checkpoints("a span's digest is no SHA-256"));
        };
        digests.push(digest);
    }
    let count = i64::from(info.i32(6)?) + 1;
    if count != digests.len() as i64 {
        return Err(Fault::Checkpoints("it has not as many digests as spans"));
    }
    let bytes = info.bytes(10)?;
    let checkpoints = match compression {
        Compression::None => Checkpoints::plain(bytes, digests.len())?,
        _ => Checkpoints::gzip(bytes, digests.len())?,
    };
    checkpoints.spans(&digests, compressed, uncompressed)
}
