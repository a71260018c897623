//! Members of a tar file, found without unpacking it.
//!
//! An archive is scanned once, from header to header; afterwards every member is a section of the one open file. Only
//! what image archives need is understood: regular files, links, long names. All that the scan holds is bounded: the
//! `tar` crate's own iterator reads extended headers of any length into memory, so the headers are read one by one here
//! and the crate only decodes them.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;

use super::files::Files;
use super::section::Section;
use super::{Error, ErrorKind};
use crate::limits;
use crate::oci::Printable;

const BLOCK: u64 = 512;

/// The members of one archive, by normalised name; of several with one name the last counts, as when unpacking.
#[derive(Debug)]
pub(super) struct Members {
    file: Arc<File>,
    name: String,
    members: HashMap<String, Member>,
}

#[derive(Debug, Clone)]
enum Member {
    File { start: u64, length: u64 },
    Link(String),
}

impl Members {
    /// Scans `file`, a plain tar file; blocks. `name` is how messages name it, escaped.
    pub(super) fn scan(file: File, name: String) -> Result<Self, Error> {
        let length = file
            .metadata()
            .map_err(|error| Error::new(ErrorKind::Io, format!("cannot examine {name}")).because(error))?
            .len();
        let file = Arc::new(file);
        let whole = Section::new(file.clone(), 0, length, &name);
        let mut members = Self { file, name, members: HashMap::new() };
        let mut scan = Scan { archive: whole, offset: 0, extensions: Extensions::default() };
        for headers in 0.. {
            if headers == limits::ARCHIVE_MEMBERS {
                let message = format!("{} has more than {headers} members", members.name);
                return Err(Error::new(ErrorKind::Invalid, message));
            }
            match scan.next()? {
                Step::End => break,
                Step::Nothing => {}
                Step::Member(name, member) => {
                    members.members.insert(name, member);
                }
            }
        }
        Ok(members)
    }

    /// The name under which the content of `name` is stored: a link is followed once (B-025).
    pub(super) fn follow<'a>(&'a self, name: &'a str) -> &'a str {
        match self.members.get(name) {
            Some(Member::Link(target)) => target,
            _ => name,
        }
    }
}

impl Files for Members {
    fn name(&self) -> &str {
        &self.name
    }

    fn open(&self, name: &str) -> Result<Section, Error> {
        let label = format!("{} member {:.200}", self.name, Printable::of(name));
        match self.members.get(self.follow(name)) {
            Some(Member::File { start, length }) => Ok(Section::new(self.file.clone(), *start, *length, &label)),
            Some(Member::Link(_)) => Err(Error::new(ErrorKind::Invalid, format!("{label} is a link to a link"))),
            None if self.members.contains_key(name) => {
                Err(Error::new(ErrorKind::NotFound, format!("{label} is a link to a member that does not exist")))
            }
            None => Err(Error::new(ErrorKind::NotFound, format!("{label} does not exist"))),
        }
    }

    fn has_directory(&self, name: &str) -> bool {
        self.members.keys().any(|member| member.strip_prefix(name).is_some_and(|rest| rest.starts_with('/')))
    }
}

/// What one header was.
enum Step {
    End,
    Nothing,
    Member(String, Member),
}

/// What extended headers say about the next member.
#[derive(Debug, Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    sparse: bool,
}

struct Scan {
    archive: Section,
    offset: u64,
    extensions: Extensions,
}

impl Scan {
    fn corrupt(&self, problem: &str) -> Error {
        let message = format!("{}: {problem} at byte {}", self.archive.label(), self.offset);
        Error::new(ErrorKind::Corrupt, message)
    }

    /// Reads the header at the current offset and steps over what belongs to it.
    fn next(&mut self) -> Result<Step, Error> {
        if self.offset == self.archive.length() {
            return Ok(Step::End);
        }
        if self.archive.length() - self.offset < BLOCK {
            return Err(self.corrupt("truncated tar header"));
        }
        let mut block = [0; BLOCK as usize];
        self.archive.read_exact_at(&mut block, self.offset)?;
        if block == [0; BLOCK as usize] {
            return Ok(Step::End);
        }
        let header = tar::Header::from_byte_slice(&block);
        if header.cksum().ok() != Some(checksum(&block)) {
            return Err(self.corrupt("no valid tar header"));
        }
        let kind = header.entry_type();
        let is_extension = kind.is_gnu_longname()
            || kind.is_gnu_longlink()
            || kind.is_pax_local_extensions()
            || kind.is_pax_global_extensions();
        let stated = header.entry_size().map_err(|_| self.corrupt("malformed tar size"))?;
        let size = if is_extension { stated } else { self.extensions.size.unwrap_or(stated) };
        let start = self.offset + BLOCK;
        let end = start.checked_add(size).filter(|end| *end <= self.archive.length());
        let end = end.ok_or_else(|| self.corrupt("truncated tar member"))?;
        if is_extension {
            self.extend(kind, start, size)?;
            self.step_over(end);
            return Ok(Step::Nothing);
        }
        let extensions = std::mem::take(&mut self.extensions);
        let step = self.member(header, extensions, start, size)?;
        self.step_over(end);
        Ok(step)
    }

    /// Moves to the next header: members are padded to whole blocks, except that the last padding may be missing.
    fn step_over(&mut self, end: u64) {
        self.offset = end.next_multiple_of(BLOCK).min(self.archive.length());
    }

    fn extend(&mut self, kind: tar::EntryType, start: u64, size: u64) -> Result<(), Error> {
        if kind.is_pax_global_extensions() {
            return Ok(());
        }
        if size > limits::ARCHIVE_EXTENSION_BYTES {
            return Err(self.corrupt("extended tar header too long"));
        }
        let mut text = vec![0; usize::try_from(size).map_err(|_| self.corrupt("extended tar header too long"))?];
        self.archive.read_exact_at(&mut text, start)?;
        if kind.is_pax_local_extensions() {
            return self.extend_pax(&text);
        }
        let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
        text.truncate(end);
        let field = if kind.is_gnu_longname() { &mut self.extensions.path } else { &mut self.extensions.link };
        *field = Some(text);
        Ok(())
    }

    fn extend_pax(&mut self, text: &[u8]) -> Result<(), Error> {
        for record in tar::PaxExtensions::new(text) {
            let record = record.map_err(|_| self.corrupt("malformed PAX header"))?;
            let value = record.value_bytes();
            match record.key_bytes() {
                b"path" => self.extensions.path = Some(value.to_vec()),
                b"linkpath" => self.extensions.link = Some(value.to_vec()),
                b"size" => {
                    let size = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                    self.extensions.size = Some(size.ok_or_else(|| self.corrupt("malformed PAX size"))?);
                }
                key if key.starts_with(b"GNU.sparse.") => self.extensions.sparse = true,
                _ => {}
            }
        }
        Ok(())
    }

    fn member(&self, header: &tar::Header, extensions: Extensions, start: u64, length: u64) -> Result<Step, Error> {
        let kind = header.entry_type();
        if kind.is_gnu_sparse() || extensions.sparse {
            let message = format!("{}: sparse member at byte {}", self.archive.label(), self.offset);
            return Err(Error::new(ErrorKind::Unsupported, message).hint("pack the archive again without --sparse"));
        }
        let path = extensions.path.unwrap_or_else(|| header.path_bytes().into_owned());
        // Image archives have short ASCII names below their root; whatever else there is, is never asked for.
        let Some(name) = normalise("", &path) else { return Ok(Step::Nothing) };
        let link = extensions.link.or_else(|| header.link_name_bytes().map(|link| link.into_owned()));
        let directory = name.rsplit_once('/').map_or("", |(directory, _)| directory);
        let target = match () {
            () if kind.is_file() || kind.is_contiguous() => {
                return Ok(Step::Member(name, Member::File { start, length }));
            }
            () if kind.is_symlink() => link.and_then(|link| normalise(directory, &link)),
            () if kind.is_hard_link() => link.and_then(|link| normalise("", &link)),
            () => None,
        };
        Ok(target.map_or(Step::Nothing, |target| Step::Member(name, Member::Link(target))))
    }
}

/// The sum of all bytes with the checksum's own field read as spaces.
fn checksum(block: &[u8; BLOCK as usize]) -> u32 {
    let field = 148..156;
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    sum(&block[..field.start]) + 8 * u32::from(b' ') + sum(&block[field.end..])
}

/// Writes `path`, seen from `directory`, without `.`, `..` and doubled slashes; none if it leads out of the archive,
/// is empty, too long or not UTF-8.
fn normalise(directory: &str, path: &[u8]) -> Option<String> {
    let path = std::str::from_utf8(path).ok().filter(|path| path.len() <= limits::ARCHIVE_NAME_BYTES)?;
    let mut parts: Vec<&str> = directory.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

#[cfg(test)]
mod tests;
