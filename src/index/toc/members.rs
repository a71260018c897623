//! From the entries of a TOC to those of a layer.
//!
//! The order of a TOC is that of the tar stream, and its entries are held to the rules of tar members ([`Described`]). A
//! regular file is followed by its other chunks, so it is kept open until something else comes.

use std::collections::{HashMap, HashSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::chunks::{Chunks, Part};
use super::json::Listed;
use super::{Error, Fault, Format, is_own_file};
use crate::index::{Claim, Times, rfc3339};
use crate::limits::{SHOWN_CHARACTERS, TOC_ENTRIES};
use crate::oci::{Digest, Printable};
use crate::tar::{Described, DescribedKind, Entry, Kind};

/// What JSON encoders write where a name is not UTF-8: what stood there is lost.
const REPLACEMENT: char = '\u{fffd}';

/// The file that follows those which the maker of the layer has found to be read by a start.
const LANDMARK: &[u8] = b".prefetch.landmark";

/// Collects the entries of one TOC.
#[derive(Debug)]
pub(super) struct Members {
    format: Format,
    listed: usize,
    entries: Vec<Entry>,
    chunks: Chunks,
    open: Option<Open>,
    /// Names seen, where each may come once.
    names: HashSet<Vec<u8>>,
    /// Hard links and what they link to.
    links: HashMap<Vec<u8>, Vec<u8>>,
    /// Whether any time has parts of a second.
    is_exact: bool,
    /// Where the landmark begins that follows what is to be fetched first.
    landmark: Option<u64>,
}

/// A regular file whose chunks are still coming.
#[derive(Debug)]
struct Open {
    /// Its name as listed.
    name: String,
    /// None if it is no part of the image.
    entry: Option<Entry>,
    size: u64,
    digest: Option<[u8; 32]>,
    end: Option<u64>,
    parts: Vec<Part>,
}

impl Members {
    pub(super) fn new(format: Format) -> Self {
        Self {
            format,
            listed: 0,
            entries: Vec::new(),
            chunks: Chunks::default(),
            open: None,
            names: HashSet::new(),
            links: HashMap::new(),
            is_exact: false,
            landmark: None,
        }
    }

    /// Takes the next entry.
    pub(super) fn push(&mut self, listed: &Listed) -> Result<(), Error> {
        self.listed += 1;
        if self.listed > TOC_ENTRIES {
            return Err(Error::Entries);
        }
        if listed.kind.as_deref() == Some("chunk") {
            return self.chunk(listed).map_err(|fault| refused(listed.name.as_deref().unwrap_or_default(), fault));
        }
        self.close()?;
        self.member(listed).map_err(|fault| refused(listed.name.as_deref().unwrap_or_default(), fault))
    }

    /// The claim that all entries make; the bytes of files end at `payload_end` in the blob.
    pub(super) fn finish(mut self, payload_end: u64) -> Result<Claim, Error> {
        self.close()?;
        self.check_links()?;
        let (spans, uncompressed_size) = self.chunks.spans(payload_end).map_err(|(owner, fault)| {
            let path = owner.and_then(|owner| self.entries.get(owner)).map_or(&b""[..], |entry| &entry.path);
            refused(&String::from_utf8_lossy(path), fault)
        })?;
        // Writers either keep parts of seconds or they do not. Where none is said, none were kept.
        let fidelity = if self.is_exact { Times::Exact } else { Times::Seconds };
        let (compression, prefetch_end) = (self.format.compression(), self.landmark.filter(|at| *at < payload_end));
        Ok(Claim { compression, entries: self.entries, spans, uncompressed_size, fidelity, prefetch_end })
    }

    fn member(&mut self, listed: &Listed) -> Result<(), Fault> {
        let name = listed.name.as_deref().unwrap_or_default();
        let described = self.describe(listed)?;
        let xattrs = xattrs(listed)?;
        let pairs = xattrs.iter().map(|(name, value)| (name.as_bytes(), &value[..]));
        let entry = described.entry(name.as_bytes(), pairs)?;
        if entry.as_ref().is_some_and(|entry| is_own_file(entry) && entry.path == LANDMARK) {
            self.landmark = listed.offset.map(unsigned).transpose()?;
        }
        let entry = entry.filter(|entry| !is_own_file(entry));
        if let Some(entry) = &entry {
            self.note(entry)?;
        }
        match described.kind {
            DescribedKind::Regular { size } => {
                let digest = digest(listed.digest.as_deref())?;
                let end = listed.end_offset.filter(|end| *end != 0).map(unsigned).transpose()?;
                let parts = if size == 0 { Vec::new() } else { vec![part(listed)?] };
                self.open = Some(Open { name: name.to_owned(), entry, size, digest, end, parts });
            }
            _ => self.entries.extend(entry),
        }
        Ok(())
    }

    fn describe<'a>(&mut self, listed: &'a Listed) -> Result<Described<'a>, Fault> {
        let texts = [&listed.name, &listed.link_name].into_iter().flatten();
        if texts.chain(listed.xattrs.iter().flatten().map(|(name, _)| name)).any(|text| text.contains(REPLACEMENT)) {
            return Err(Fault::Name);
        }
        let mtime = match listed.modtime.as_deref() {
            None | Some("") => (0, 0),
            Some(text) => rfc3339::parse(text).ok_or(Fault::Time)?,
        };
        self.is_exact |= mtime.1 != 0;
        let target = listed.link_name.as_deref().unwrap_or_default().as_bytes();
        let (major, minor) = (listed.dev_major.unwrap_or(0), listed.dev_minor.unwrap_or(0));
        let kind = match listed.kind.as_deref().unwrap_or_default() {
            "dir" => DescribedKind::Directory,
            "reg" => DescribedKind::Regular { size: unsigned(listed.size.unwrap_or(0))? },
            "symlink" => DescribedKind::Symlink { target },
            "hardlink" => DescribedKind::HardLink { target },
            "char" => DescribedKind::CharDevice { major, minor },
            "block" => DescribedKind::BlockDevice { major, minor },
            "fifo" => DescribedKind::Fifo,
            _ => return Err(Fault::Type),
        };
        let (uid, gid) = (listed.uid.unwrap_or(0), listed.gid.unwrap_or(0));
        Ok(Described { kind, mode: listed.mode.unwrap_or(0), uid, gid, mtime })
    }

    /// Remembers what later entries are checked against.
    fn note(&mut self, entry: &Entry) -> Result<(), Fault> {
        if self.format == Format::ZstdChunked {
            // A NUL is in no path, so a marker is told from what it hides.
            let mark: &[u8] = match entry.kind {
                Kind::Whiteout => b"\0whiteout",
                Kind::Opaque => b"\0opaque",
                _ => b"",
            };
            if !self.names.insert([&entry.path, mark].concat()) {
                return Err(Fault::Twice);
            }
        }
        match &entry.kind {
            Kind::HardLink { target } => drop(self.links.insert(entry.path.clone(), target.clone())),
            // In eStargz the last entry of a name is the one that counts, as in tar.
            _ => drop(self.links.remove(&entry.path)),
        }
        Ok(())
    }

    fn chunk(&mut self, listed: &Listed) -> Result<(), Fault> {
        let open = self.open.as_mut().ok_or(Fault::Stray)?;
        if listed.name.as_deref().is_some_and(|name| !name.is_empty() && name != open.name) {
            return Err(Fault::Stray);
        }
        open.parts.push(part(listed)?);
        Ok(())
    }

    /// Ends the open file.
    fn close(&mut self) -> Result<(), Error> {
        let Some(Open { name, entry, size, digest, end, parts }) = self.open.take() else { return Ok(()) };
        // Bytes of what is no file of the image are in the blob all the same, between those of others.
        let owner =
            entry.as_ref().filter(|entry| matches!(entry.kind, Kind::Regular { .. })).map(|_| self.entries.len());
        let held = self.chunks.file(owner, size, (digest, end), &parts).map_err(|fault| refused(&name, fault))?;
        if let Some(mut entry) = entry {
            if let Kind::Regular { segments, content, .. } = &mut entry.kind {
                (*segments, *content) = (held.segments, held.content);
            }
            self.entries.push(entry);
        }
        Ok(())
    }

    /// Makes sure that every hard link leads somewhere. A circle is nothing that a tar stream could have come from.
    fn check_links(&self) -> Result<(), Error> {
        let mut seen: HashMap<&[u8], usize> = HashMap::new();
        for (walk, start) in self.links.keys().enumerate() {
            let mut at: &[u8] = start;
            while let Some(target) = self.links.get(at) {
                match seen.insert(at, walk) {
                    Some(earlier) if earlier == walk => {
                        return Err(refused(&String::from_utf8_lossy(at), Fault::Circle));
                    }
                    Some(_) => break,
                    None => at = target,
                }
            }
        }
        Ok(())
    }
}

fn refused(name: &str, fault: Fault) -> Error {
    Error::Entry { path: format!("{:.SHOWN_CHARACTERS$}", Printable::of(name)), fault }
}

fn unsigned(number: i64) -> Result<u64, Fault> {
    u64::try_from(number).map_err(|_| Fault::Negative)
}

fn digest(text: Option<&str>) -> Result<Option<[u8; 32]>, Fault> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    match text.parse() {
        Ok(Digest::Sha256(digest)) => Ok(Some(digest)),
        _ => Err(Fault::Digest),
    }
}

fn xattrs(listed: &Listed) -> Result<Vec<(&str, Vec<u8>)>, Fault> {
    let given = listed.xattrs.iter().flatten();
    let decode = |text: &Option<String>| STANDARD.decode(text.as_deref().unwrap_or_default()).map_err(|_| Fault::Xattr);
    given.map(|(name, value)| Ok((name.as_str(), decode(value)?))).collect()
}

fn part(listed: &Listed) -> Result<Part, Fault> {
    let number = |number: Option<i64>| unsigned(number.unwrap_or(0));
    let is_hole = match listed.chunk_type.as_deref().unwrap_or_default() {
        "" => false,
        "zeros" => true,
        _ => return Err(Fault::ChunkType),
    };
    // The end that a file's own entry has is that of its last chunk.
    let is_chunk = listed.kind.as_deref() == Some("chunk");
    let end = if is_chunk { number(listed.end_offset)? } else { 0 };
    Ok(Part {
        file_offset: number(listed.chunk_offset)?,
        length: number(listed.chunk_size)?,
        is_hole,
        offset: number(listed.offset)?,
        inner: number(listed.inner_offset)?,
        end: Some(end).filter(|end| *end != 0),
        digest: digest(listed.chunk_digest.as_deref())?,
    })
}
