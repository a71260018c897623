//! Claims: what another tool's index says of a layer, made into a [`LayerIndex`].
//!
//! A TOC or a zTOC comes from whoever made the image or can write to its repository. Its reader turns it into a [`Claim`];
//! [`LayerIndex::claimed`] checks everything in it that can be checked without the layer's bytes, so that nothing that uses
//! the index afterwards has to look again. Whether it speaks the truth is found out by [`super::compare`].
//!
//! The offsets in a claim are those of a *stream*: the layer's own, where the tool knows it, or any other that its reader
//! makes up, such as the chunks of all files one after the other. Nothing else knows the difference.

use std::ops::Range;

use bytes::Bytes;

use super::entries::{EntryWriter, is_clean};
use super::format::{self, Content, Form, Spans};
use super::spans::{COMPRESSED, ClaimedRecord, DECODED, FRESH, ZEROS};
use super::windows::WindowWriter;
use super::{Compression, Expected, LayerIndex};
use crate::codec::WINDOW;
use crate::limits;
use crate::oci::{Digest, Printable};
use crate::tar::{Entry, Kind, Xattr};

/// What another tool's index of a layer says.
#[derive(Debug, Clone)]
pub struct Claim {
    /// How the blob is compressed.
    pub compression: Compression,
    /// The entries in tar order. Segments of regular files refer to the claim's own stream and ascend in it, from file to
    /// file as well. The content digest is the SHA-256 of the file where the tool gives one.
    pub entries: Vec<Entry>,
    /// The spans in stream order, without gaps from 0 to `uncompressed_size`.
    pub spans: Vec<ClaimedSpan>,
    /// Length of the claim's stream.
    pub uncompressed_size: u64,
    /// How the times of entries compare with those of the layer.
    pub fidelity: Times,
    /// Where the part of the blob ends that whoever made the layer wants to be fetched first, if it has one.
    pub prefetch_end: Option<u64>,
}

/// How the times that an index has compare with those of the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    /// They are the same.
    Exact,
    /// Whole seconds are the same; what the tool kept of a second's parts means nothing.
    Seconds,
}

/// One span of a claim.
#[derive(Debug, Clone)]
pub struct ClaimedSpan {
    /// The bytes of the blob that decode to it; need not be in blob order, and spans may share bytes.
    pub compressed: Range<u64>,
    /// gzip only: how many bits (0 to 7) of the first byte belong to what comes before. 0 for a member, a frame and tar.
    pub bit: u8,
    /// Decoded bytes to drop before the span's own; what follows the span's own bytes is not decoded.
    pub skip: u64,
    /// Length in the stream.
    pub length: u64,
    /// What decoding begins with.
    pub start: Start,
    /// What its bytes are compared with.
    pub digest: SpanDigest,
}

/// What decoding a claimed span begins with.
#[derive(Debug, Clone)]
pub enum Start {
    /// A gzip member's header, a zstd frame, or tar.
    Fresh,
    /// Deflate data after these bytes of history, at most 32 KiB, oldest first.
    Window(Vec<u8>),
}

/// What the bytes of a claimed span are compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanDigest {
    /// SHA-256 of the span's own decoded bytes.
    Decoded([u8; 32]),
    /// SHA-256 of exactly the bytes of [`ClaimedSpan::compressed`].
    Compressed([u8; 32]),
}

/// Why a claim is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// An entry is not one that a layer can have.
    #[error("what is said of \"{path}\" in layer {layer} is refused: {what}")]
    Entry {
        /// The layer.
        layer: Digest,
        /// The path, escaped and shortened.
        path: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The spans, or the claim as a whole, are not those of any layer.
    #[error("what is said of layer {layer} is refused: {what}")]
    Claim {
        /// The layer.
        layer: Digest,
        /// What is wrong.
        what: &'static str,
    },
}

impl LayerIndex {
    /// An index of the layer that `expected` names, from what another tool says of it.
    ///
    /// Everything is checked but the truth: that spans lie in the blob, make up the stream and are within bounds, that
    /// windows are there only where they can be used, that entries are such as a layer can have and that their bytes lie in
    /// the stream. Content digests of files too short to have one ([`limits::CONTENT_DIGEST_BYTES`]), or so long that a sparse
    /// one would have none ([`limits::SPARSE_HASH_BYTES`]), are dropped, and symbolic links get the mode that they all have.
    pub fn claimed(expected: &Expected, claim: Claim) -> Result<Self, Malformed> {
        let layer = expected.layer;
        let refuse = |what| Malformed::Claim { layer, what };
        let mut windows = WindowWriter::default();
        let mut records = Vec::new();
        let mut end = 0_u64;
        for span in &claim.spans {
            records.push(record(span, end, &mut windows).map_err(refuse)?);
            end = end.checked_add(span.length).ok_or_else(|| refuse("its stream is too long"))?;
            let size = records.len() as u64 * size_of::<ClaimedRecord>() as u64 + windows.estimate();
            if size > limits::INDEX_BYTES {
                return Err(refuse("it is too long"));
            }
        }
        if end != claim.uncompressed_size {
            return Err(refuse("its spans do not make up its stream"));
        }
        let entries = write_entries(&layer, claim.entries, end)?;
        let (groups, windows) = windows.finish();
        let content = Content {
            compression: claim.compression,
            uncompressed_size: end,
            payload_end: claim.prefetch_end.unwrap_or(expected.size).min(expected.size),
            spans: Spans::Claimed(records, claim.fidelity),
            groups,
            windows,
            entries,
            dependencies: Vec::new(),
        };
        let encoded = format::assemble(expected, &content);
        Self::open_claim(Bytes::from(encoded)).map_err(|error| match error {
            super::Error::Damaged(_, what) => refuse(what),
            _ => refuse("it cannot be used"),
        })
    }
}

impl LayerIndex {
    /// Where the part of the blob ends that whoever made the layer wants to be fetched first; none if it has no such part,
    /// or the index is ours.
    pub fn prefetch_end(&self) -> Option<u64> {
        let is_claim = matches!(self.parts.form, Form::Claimed(_));
        (is_claim && self.parts.payload_end < self.parts.compressed_size).then_some(self.parts.payload_end)
    }

    /// Reads all entries and checks them by the rules for claims: for an index of ours that comes from elsewhere, before it is
    /// believed. Those of [`Self::claimed`] are checked already.
    pub fn check_entries(&self) -> Result<(), Malformed> {
        let refuse = |path: &[u8], what| Malformed::Entry { layer: self.layer(), path: shown(path), what };
        let mut place = 0;
        for entry in self.entries() {
            let entry = entry.map_err(|_| refuse(b"", "the entries cannot be read"))?;
            check(&entry, &mut place, self.uncompressed_size()).map_err(|what| refuse(&entry.path, what))?;
        }
        Ok(())
    }
}

/// A path for people.
fn shown(path: &[u8]) -> String {
    Printable::of(&path[..path.len().min(limits::SHOWN_CHARACTERS)]).to_string()
}

/// The record of a span that begins at `offset` of the stream. What a record can say at all is checked here, the rest
/// where records are read.
fn record(span: &ClaimedSpan, offset: u64, windows: &mut WindowWriter) -> Result<ClaimedRecord, &'static str> {
    let length = span.compressed.end.checked_sub(span.compressed.start).ok_or("a span ends before it begins")?;
    let skip = u32::try_from(span.skip).map_err(|_| "a span begins too far inside what has to be decoded for it")?;
    let window = match &span.start {
        Start::Fresh => FRESH,
        Start::Window(history) => {
            let mut window = Box::new([0; WINDOW]);
            let start = WINDOW.checked_sub(history.len()).ok_or("a window is too long")?;
            window[start..].copy_from_slice(history);
            windows.push(&window).unwrap_or(ZEROS)
        }
    };
    let (kind, digest) = match span.digest {
        SpanDigest::Decoded(digest) => (DECODED, digest),
        SpanDigest::Compressed(digest) => (COMPRESSED, digest),
    };
    Ok(ClaimedRecord {
        start: span.compressed.start.into(),
        length: length.into(),
        offset: offset.into(),
        skip: skip.into(),
        window: window.into(),
        bit: span.bit,
        kind,
        digest,
    })
}

fn write_entries(layer: &Digest, entries: Vec<Entry>, stream: u64) -> Result<super::entries::Written, Malformed> {
    if entries.len() as u64 > limits::LAYER_ENTRIES {
        return Err(Malformed::Claim { layer: *layer, what: "it has too many entries" });
    }
    let mut writer = EntryWriter::new();
    let mut place = 0;
    for mut entry in entries {
        if matches!(entry.kind, Kind::Symlink { .. }) {
            // The tar reader gives all of them this mode, whatever their headers say.
            entry.mode = 0o777;
        }
        let checked = check(&entry, &mut place, stream);
        if let Kind::Regular { size, content, .. } = &mut entry.kind
            && !(limits::CONTENT_DIGEST_BYTES..=limits::SPARSE_HASH_BYTES).contains(size)
        {
            *content = None;
        }
        let written = checked.and_then(|()| if writer.push(&entry) { Ok(()) } else { Err("it is too long") });
        written.map_err(|what| Malformed::Entry { layer: *layer, path: shown(&entry.path), what })?;
    }
    Ok(writer.finish())
}

/// Checks one entry by the rules that the tar reader has for its own. Segments must lie between `place` and the end of the
/// `stream`; `place` moves behind them.
fn check(entry: &Entry, place: &mut u64, stream: u64) -> Result<(), &'static str> {
    if !is_clean(&entry.path) {
        return Err("its path is not clean");
    }
    if entry.path.split(|byte| *byte == b'/').any(|name| name.len() > limits::NAME_BYTES) {
        return Err("a name is too long");
    }
    if entry.mode > 0o7777 {
        return Err("its mode has more than permission bits");
    }
    // As the tar reader bounds them: what 2^63 nanoseconds can say.
    let total = i128::from(entry.mtime.seconds) * 1_000_000_000 + i128::from(entry.mtime.nanos);
    if entry.mtime.nanos >= 1_000_000_000 || !(0..=i128::from(i64::MAX)).contains(&total) {
        return Err("its time is out of range");
    }
    check_xattrs(&entry.kind, &entry.xattrs)?;
    match &entry.kind {
        Kind::Regular { size, segments, .. } => check_segments(*size, segments, place, stream),
        Kind::Symlink { target } if target.is_empty() || target.contains(&0) => Err("its target is not a path"),
        Kind::Symlink { target } if target.len() > limits::SYMLINK_BYTES => Err("its target is too long"),
        Kind::HardLink { target } if target.is_empty() || !is_clean(target) => Err("its target is not a clean path"),
        Kind::HardLink { target } if *target == entry.path => Err("it is a link to itself"),
        _ => Ok(()),
    }
}

fn check_xattrs(kind: &Kind, xattrs: &[Xattr]) -> Result<(), &'static str> {
    let mut list = 0;
    for (number, xattr) in xattrs.iter().enumerate() {
        let sorted = number == 0 || xattrs[number - 1].name < xattr.name;
        if !sorted || xattr.name.is_empty() || xattr.name.contains(&0) {
            return Err("its extended attributes are not in order");
        }
        if !xattr.is_served(kind) {
            return Err("it has an extended attribute that is not to be served");
        }
        list += xattr.name.len() + 1;
        if xattr.name.len() > limits::XATTR_NAME_BYTES
            || xattr.value.len() > limits::XATTR_VALUE_BYTES
            || list > limits::XATTR_LIST_BYTES
        {
            return Err("its extended attributes are too long");
        }
    }
    Ok(())
}

fn check_segments(
    size: u64,
    segments: &[crate::tar::Segment],
    place: &mut u64,
    stream: u64,
) -> Result<(), &'static str> {
    if size > i64::MAX as u64 {
        return Err("its size is out of range");
    }
    if segments.len() > limits::SPARSE_REGIONS {
        return Err("it is in too many pieces");
    }
    let mut file_end = 0;
    for segment in segments {
        if segment.length == 0 || segment.file_offset < file_end || segment.layer_offset < *place {
            return Err("its pieces are not in order");
        }
        file_end =
            segment.file_offset.checked_add(segment.length).filter(|end| *end <= size).ok_or("its pieces exceed it")?;
        *place = segment
            .layer_offset
            .checked_add(segment.length)
            .filter(|end| *end <= stream)
            .ok_or("its bytes are not in the stream")?;
    }
    Ok(())
}
