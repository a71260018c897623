//! What frames the TOC of an eStargz layer (stargz-snapshotter, docs/estargz.md): a footer, and an archive around the
//! document.
//!
//! The footer is an empty gzip member whose extra field holds text: where the TOC begins, or that it is not in this blob.
//! Stargz, the older format, wrote the same text without the subfield header that RFC 1952 asks for.

use std::io::{BufReader, Read};

use flate2::bufread::GzDecoder;

use super::{Error, Footer, Format, Outside, Place};
use crate::limits::{TAR_SPECIAL_BYTES, TOC_BYTES};
use crate::tar::{self, Entry, Kind, Parser, Sink};

/// Name of the document in its archive.
const NAME: &[u8] = b"stargz.index.json";

/// A kind of footer: how long it is, and where in it the text is.
struct Form {
    bytes: usize,
    /// What its extra field begins with.
    field: &'static [u8],
    /// What stands behind the offset, or instead of it.
    magic: &'static [u8],
    has_offset: bool,
}

/// eStargz, stargz, and eStargz with the TOC outside.
const FORMS: [Form; 3] = [
    Form { bytes: 51, field: &[26, 0, b'S', b'G', 22, 0], magic: b"STARGZ", has_offset: true },
    Form { bytes: 47, field: &[22, 0], magic: b"STARGZ", has_offset: true },
    Form { bytes: 46, field: &[21, 0, b'S', b'G', 17, 0], magic: b"STARGZEXTERNALTOC", has_offset: false },
];

/// The header of a gzip member up to its extra field; what lies between the first four bytes and that means nothing.
const HEADER: [u8; 4] = [0x1f, 0x8b, 8, 4];

/// Reads the footer at the end of `tail`, the last bytes of a blob of `size` bytes.
pub(super) fn footer(tail: &[u8], size: u64) -> Result<Option<Footer>, Error> {
    for form in &FORMS {
        let Some(start) = tail.len().checked_sub(form.bytes) else { continue };
        let Some(text) = tail[start..].strip_prefix(&HEADER).and_then(|rest| rest.get(6..)) else { continue };
        let Some(text) = text.strip_prefix(form.field) else { continue };
        let end = size.checked_sub(form.bytes as u64).ok_or(Error::Place)?;
        if !form.has_offset {
            if text.starts_with(form.magic) {
                return Ok(Some(Footer::Outside(Outside { payload_end: end })));
            }
            continue;
        }
        let Some((offset, rest)) = text.split_at_checked(16) else { continue };
        if rest.starts_with(form.magic) {
            let offset = hexadecimal(offset).filter(|offset| *offset < end).ok_or(Error::Place)?;
            if end - offset > TOC_BYTES {
                return Err(Error::Length);
            }
            let place = Place { format: Format::Estargz, bytes: offset..end, length: None, payload_end: offset };
            return Ok(Some(Footer::Within(place)));
        }
    }
    Ok(None)
}

fn hexadecimal(text: &[u8]) -> Option<u64> {
    // `from_str_radix` would take a sign.
    let text = str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
    u64::from_str_radix(text, 16).ok()
}

/// Takes the document out of its compressed archive. Only the first gzip member counts, as for every reader of the format.
pub(super) fn document(archive: &[u8]) -> Result<Vec<u8>, Error> {
    let mut stream = BufReader::new(GzDecoder::new(archive));
    let mut parser = Parser::new();
    let mut found = Found { document: None, is_open: false, is_too_long: false };
    let mut buffer = vec![0; 64 << 10];
    // Headers and padding around the document.
    let mut left = TOC_BYTES + TAR_SPECIAL_BYTES;
    loop {
        let read = stream.read(&mut buffer).map_err(|_| Error::Compressed)?;
        if read == 0 {
            break;
        }
        left = left.checked_sub(read as u64).ok_or(Error::Length)?;
        parser.push(&buffer[..read], &mut found).map_err(archive_error)?;
        if found.is_too_long {
            return Err(Error::Length);
        }
    }
    parser.finish().map_err(archive_error)?;
    found.document.ok_or(Error::Missing)
}

fn archive_error(error: tar::Error) -> Error {
    Error::Archive(Box::new(error))
}

/// Keeps the content of the document.
struct Found {
    document: Option<Vec<u8>>,
    /// Whether the bytes that come are the document's.
    is_open: bool,
    is_too_long: bool,
}

impl Sink for Found {
    fn entry(&mut self, entry: Entry) {
        self.is_open = self.document.is_none() && entry.path == NAME && matches!(entry.kind, Kind::Regular { .. });
        if self.is_open {
            self.document = Some(Vec::new());
        }
    }

    fn data(&mut self, bytes: &[u8]) {
        if let (true, Some(document)) = (self.is_open, &mut self.document) {
            self.is_too_long |= (document.len() + bytes.len()) as u64 > TOC_BYTES;
            if !self.is_too_long {
                document.extend_from_slice(bytes);
            }
        }
    }
}
