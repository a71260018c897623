//! The bytes of a parcel: records that check themselves, read and written front to back.
//!
//! ```text
//! parcel    = "ocifsprc" · version u32 · record*
//! record    = kind u8 · length u32, of the payload · payload · BLAKE3 of all these
//!
//! 1 document  = name · bytes                         the name is its digest
//! 2 layer     = name · size u64 · name · form u8     layer digest, diffID; 0 whole, 1 parts
//! 3 index     = bytes                                of the layer before, in parts
//! 4 stretch   = offset u64 · bytes                   of the layer before: all of it in order, or whole spans, ascending
//! 5 profile   = name · text                          manifest
//! 6 reference = name · name · name                   reference, document, media type
//! 7 end       = BLAKE3 of the digests of all records before
//!
//! name      = length u16 · text
//! ```
//!
//! Numbers are little-endian. The order is documents, layers with what belongs to each, profile, reference, end, and
//! nothing follows. There is no time and no machine in it: equal contents give equal bytes. Nothing is compressed: most of
//! it is already.

use std::io::{self, Read, Write};

use bytes::Bytes;

use super::{Error, Named};
use crate::limits::{
    INDEX_BYTES, PARCEL_FIELDS_BYTES, PARCEL_STRETCH_BYTES, PROFILE_TEXT_BYTES, STORED_DOCUMENT_BYTES,
};
use crate::oci::Digest;

const MAGIC: [u8; 8] = *b"ocifsprc";

/// Raised whenever the form or the meaning of any part changes.
pub(super) const VERSION: u32 = 1;

/// How much is read at once: a length that lies costs no more memory than the bytes that come.
const READ: u64 = 1 << 20;

/// Which bytes of a layer follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// All.
    Whole,
    /// Its index and some spans.
    Parts,
}

/// The head of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LayerHead {
    pub(super) layer: Digest,
    pub(super) size: u64,
    pub(super) diff_id: Digest,
    pub(super) form: Form,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    Document(Digest, Bytes),
    Layer(LayerHead),
    Index(Bytes),
    Stretch(u64, Bytes),
    Profile(Digest, Bytes),
    Reference(Named),
    End,
}

/// Writes records.
#[derive(Debug)]
pub(super) struct Writer<W> {
    out: W,
    /// Of the digests of the records so far.
    chain: blake3::Hasher,
}

impl<W: Write> Writer<W> {
    /// Begins a parcel.
    pub(super) fn new(mut out: W) -> Result<Self, Error> {
        out.write_all(&MAGIC).and_then(|()| out.write_all(&VERSION.to_le_bytes())).map_err(Error::Write)?;
        Ok(Self { out, chain: blake3::Hasher::new() })
    }

    pub(super) fn document(&mut self, digest: &Digest, bytes: &[u8]) -> Result<(), Error> {
        self.record(1, &[&name(&digest.to_string())?, bytes])
    }

    pub(super) fn layer(&mut self, head: &LayerHead) -> Result<(), Error> {
        let form = match head.form {
            Form::Whole => 0,
            Form::Parts => 1,
        };
        let names = (name(&head.layer.to_string())?, name(&head.diff_id.to_string())?);
        self.record(2, &[&names.0, &head.size.to_le_bytes(), &names.1, &[form]])
    }

    pub(super) fn index(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.record(3, &[bytes])
    }

    pub(super) fn stretch(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.record(4, &[&offset.to_le_bytes(), bytes])
    }

    pub(super) fn profile(&mut self, manifest: &Digest, text: &[u8]) -> Result<(), Error> {
        self.record(5, &[&name(&manifest.to_string())?, text])
    }

    pub(super) fn reference(&mut self, named: &Named) -> Result<(), Error> {
        let names = [name(&named.reference)?, name(&named.digest.to_string())?, name(&named.media_type)?];
        self.record(6, &[&names.concat()])
    }

    /// Ends the parcel and hands the destination back.
    pub(super) fn finish(mut self) -> Result<W, Error> {
        let chain = self.chain.finalize();
        self.record(7, &[chain.as_bytes()])?;
        self.out.flush().map_err(Error::Write)?;
        Ok(self.out)
    }

    fn record(&mut self, kind: u8, parts: &[&[u8]]) -> Result<(), Error> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let length = u32::try_from(length).map_err(|_| Error::Malformed("a part is too long"))?;
        let mut hasher = blake3::Hasher::new();
        let mut put = |bytes: &[u8]| {
            hasher.update(bytes);
            self.out.write_all(bytes).map_err(Error::Write)
        };
        put(&[kind])?;
        put(&length.to_le_bytes())?;
        parts.iter().try_for_each(|part| put(part))?;
        let digest = hasher.finalize();
        self.chain.update(digest.as_bytes());
        self.out.write_all(digest.as_bytes()).map_err(Error::Write)
    }
}

/// A short text behind its length.
fn name(text: &str) -> Result<Vec<u8>, Error> {
    let length = u16::try_from(text.len()).map_err(|_| Error::Malformed("a name is too long"))?;
    Ok([&length.to_le_bytes(), text.as_bytes()].concat())
}

/// Reads records.
#[derive(Debug)]
pub(super) struct Reader<R> {
    input: R,
    chain: blake3::Hasher,
}

impl<R: Read> Reader<R> {
    /// Checks that a parcel of this version begins here.
    pub(super) fn new(mut input: R) -> Result<Self, Error> {
        let mut head = [0; 12];
        let mut have = 0;
        while have < head.len() {
            match input.read(&mut head[have..]) {
                // What is something else is named so, however short it is.
                Ok(0) if have > 0 && MAGIC.starts_with(&head[..have.min(8)]) => return Err(Error::Truncated),
                Ok(0) => return Err(Error::Foreign),
                Ok(count) => have += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::Read(error)),
            }
        }
        let (magic, version) = head.split_at(8);
        if magic != MAGIC {
            return Err(Error::Foreign);
        }
        match version.try_into().map(u32::from_le_bytes) {
            Ok(VERSION) => Ok(Self { input, chain: blake3::Hasher::new() }),
            found => Err(Error::Version { found: found.unwrap_or_default() }),
        }
    }

    /// The next record. After [`Record::End`] nothing is to be read.
    pub(super) fn next(&mut self) -> Result<Record, Error> {
        let mut head = [0; 5];
        self.fill(&mut head)?;
        let [kind, length @ ..] = head;
        let length = u64::from(u32::from_le_bytes(length));
        let limit = match kind {
            1 => STORED_DOCUMENT_BYTES + PARCEL_FIELDS_BYTES,
            2 | 6 | 7 => PARCEL_FIELDS_BYTES,
            3 => INDEX_BYTES,
            4 => PARCEL_STRETCH_BYTES + 8,
            5 => PROFILE_TEXT_BYTES as u64 + PARCEL_FIELDS_BYTES,
            _ => return Err(Error::Damaged("a record is of no known kind")),
        };
        if length > limit {
            return Err(Error::Damaged("a record is too long"));
        }
        let payload = self.take(length)?;
        let mut stored = [0; 32];
        self.fill(&mut stored)?;
        let mut hasher = blake3::Hasher::new();
        let digest = hasher.update(&head).update(&payload).finalize();
        if digest != blake3::Hash::from(stored) {
            return Err(Error::Damaged("a record does not have its digest"));
        }
        let chain = self.chain.finalize();
        self.chain.update(&stored);
        let record = parse(kind, payload, &chain).ok_or(Error::Malformed("a record cannot be read"))?;
        if record == Record::End {
            self.check_end()?;
        }
        Ok(record)
    }

    fn check_end(&mut self) -> Result<(), Error> {
        loop {
            match self.input.read(&mut [0]) {
                Ok(0) => return Ok(()),
                Ok(_) => return Err(Error::Malformed("something follows its end")),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::Read(error)),
            }
        }
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Error> {
        self.input.read_exact(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::Truncated,
            _ => Error::Read(error),
        })
    }

    fn take(&mut self, length: u64) -> Result<Bytes, Error> {
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < length {
            let piece = (length - bytes.len() as u64).min(READ);
            let read = (&mut self.input).take(piece).read_to_end(&mut bytes).map_err(Error::Read)?;
            if (read as u64) < piece {
                return Err(Error::Truncated);
            }
        }
        Ok(bytes.into())
    }
}

/// The record in `payload`, none if it is malformed.
fn parse(kind: u8, payload: Bytes, chain: &blake3::Hash) -> Option<Record> {
    let mut rest = &payload[..];
    let rest = &mut rest;
    Some(match kind {
        1 => Record::Document(take_digest(rest)?, payload.slice_ref(rest)),
        2 => {
            let (layer, size, diff_id) = (take_digest(rest)?, take_u64(rest)?, take_digest(rest)?);
            let form = match **rest {
                [0] => Form::Whole,
                [1] => Form::Parts,
                _ => return None,
            };
            Record::Layer(LayerHead { layer, size, diff_id, form })
        }
        3 => Record::Index(payload),
        4 => Record::Stretch(take_u64(rest)?, payload.slice_ref(rest)),
        5 => Record::Profile(take_digest(rest)?, payload.slice_ref(rest)),
        6 => {
            let reference = take_name(rest)?.to_owned();
            let (digest, media_type) = (take_digest(rest)?, take_name(rest)?.to_owned());
            rest.is_empty().then_some(Record::Reference(Named { reference, digest, media_type }))?
        }
        7 => (payload == chain.as_bytes()[..]).then_some(Record::End)?,
        _ => return None,
    })
}

fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    let (bytes, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(u64::from_le_bytes(*bytes))
}

fn take_name<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    let (length, after) = rest.split_first_chunk()?;
    let (text, after) = after.split_at_checked(u16::from_le_bytes(*length).into())?;
    *rest = after;
    std::str::from_utf8(text).ok()
}

fn take_digest(rest: &mut &[u8]) -> Option<Digest> {
    take_name(rest)?.parse().ok()
}
