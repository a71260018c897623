//! Extended headers (POSIX.1-2001 pax): records `LENGTH KEY=VALUE\n` that override the fields of the next header.
//!
//! [`Records`] keeps the bytes and where the interesting values are, and interprets a value only when it is used, since
//! a later record may replace an earlier one. An empty value takes the override back, except for extended
//! attributes, which may be empty.

use std::ops::Range;

use super::{Fault, Timestamp};

/// The keys that mean something here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Path,
    LinkPath,
    Uid,
    Gid,
    Size,
    Mtime,
    Atime,
    Ctime,
    SparseMajor,
    SparseMinor,
    SparseName,
    SparseSize,
    SparseRealSize,
    SparseBlocks,
    SparseMap,
}

const KEYS: [(&[u8], Key); 15] = [
    (b"path", Key::Path),
    (b"linkpath", Key::LinkPath),
    (b"uid", Key::Uid),
    (b"gid", Key::Gid),
    (b"size", Key::Size),
    (b"mtime", Key::Mtime),
    (b"atime", Key::Atime),
    (b"ctime", Key::Ctime),
    (b"GNU.sparse.major", Key::SparseMajor),
    (b"GNU.sparse.minor", Key::SparseMinor),
    (b"GNU.sparse.name", Key::SparseName),
    (b"GNU.sparse.size", Key::SparseSize),
    (b"GNU.sparse.realsize", Key::SparseRealSize),
    (b"GNU.sparse.numblocks", Key::SparseBlocks),
    (b"GNU.sparse.map", Key::SparseMap),
];

/// What starts the key of an extended attribute.
const XATTR: &[u8] = b"SCHILY.xattr.";
/// One half of a region of sparse format 0.0.
const SPARSE_OFFSET: &[u8] = b"GNU.sparse.offset";
/// The other half.
const SPARSE_NUMBYTES: &[u8] = b"GNU.sparse.numbytes";

/// The records of one extended header.
#[derive(Debug, Default)]
pub(super) struct Records {
    bytes: Vec<u8>,
    values: [Range<usize>; KEYS.len()],
    /// Names and values, in the order of the records.
    xattrs: Vec<(Range<usize>, Range<usize>)>,
    /// Offsets and lengths in turn, of sparse format 0.0.
    regions: Vec<Range<usize>>,
}

impl Records {
    /// Splits the contents of an extended header.
    pub(super) fn parse(bytes: Vec<u8>) -> Result<Self, Fault> {
        let mut records = Self::default();
        let mut at = 0;
        while at < bytes.len() {
            let (key, value, end) = record(&bytes, at).ok_or(Fault::Record)?;
            records.note(&bytes, key, value)?;
            at = end;
        }
        records.bytes = bytes;
        Ok(records)
    }

    fn note(&mut self, bytes: &[u8], key: Range<usize>, value: Range<usize>) -> Result<(), Fault> {
        let name = &bytes[key.clone()];
        let content = &bytes[value.clone()];
        // NUL is fine in a value, but not where a string of the header is replaced (Go's validPAXRecord, A-109).
        let is_string = matches!(name, b"path" | b"linkpath" | b"uname" | b"gname");
        if name.is_empty() || name.contains(&0) || (is_string && content.contains(&0)) {
            return Err(Fault::Record);
        }
        if name == SPARSE_OFFSET || name == SPARSE_NUMBYTES {
            let expected = if self.regions.len().is_multiple_of(2) { SPARSE_OFFSET } else { SPARSE_NUMBYTES };
            if name != expected {
                return Err(Fault::Record);
            }
            self.regions.push(value);
        } else if name.starts_with(XATTR) {
            self.xattrs.push((key.start + XATTR.len()..key.end, value));
        } else if let Some((_, known)) = KEYS.iter().find(|(text, _)| *text == name) {
            self.values[*known as usize] = value;
        }
        Ok(())
    }

    /// The value of `key`, if there is one and it is not empty.
    pub(super) fn get(&self, key: Key) -> Option<&[u8]> {
        Some(&self.bytes[self.values[key as usize].clone()]).filter(|value| !value.is_empty())
    }

    /// The value of `key` as a decimal number.
    pub(super) fn number(&self, key: Key) -> Result<Option<i64>, Fault> {
        self.get(key).map(|value| decimal(value).ok_or(Fault::Record)).transpose()
    }

    /// The value of `key` as a moment, within what a file can have.
    pub(super) fn time(&self, key: Key) -> Result<Option<Timestamp>, Fault> {
        self.get(key).map(|value| time(value).ok_or(Fault::Record)).transpose()
    }

    /// Names and values of extended attributes, in the order of the records.
    pub(super) fn xattrs(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.xattrs.iter().map(|(name, value)| (&self.bytes[name.clone()], &self.bytes[value.clone()]))
    }

    /// True if the records hold the regions of a sparse file (formats 0.0 and 0.1).
    pub(super) fn has_sparse_map(&self) -> bool {
        !self.regions.is_empty() || self.get(Key::SparseMap).is_some()
    }

    /// The numbers of the sparse map, offsets and lengths in turn.
    pub(super) fn sparse_numbers(&self) -> impl Iterator<Item = Result<i64, Fault>> {
        let map = if self.regions.is_empty() { self.get(Key::SparseMap) } else { None };
        let listed = map.into_iter().flat_map(|map| map.split(|&byte| byte == b','));
        let recorded = self.regions.iter().map(|region| &self.bytes[region.clone()]);
        recorded.chain(listed).map(|text| decimal(text).ok_or(Fault::SparseMap))
    }
}

/// Finds key, value and end of the record at `at`.
fn record(bytes: &[u8], at: usize) -> Option<(Range<usize>, Range<usize>, usize)> {
    let rest = &bytes[at..];
    let space = rest.iter().position(|&byte| byte == b' ')?;
    let length = usize::try_from(decimal(&rest[..space])?).ok()?;
    let body = rest.get(space + 1..length)?;
    let (b'\n', body) = body.split_last()? else { return None };
    let equals = body.iter().position(|&byte| byte == b'=')?;
    let start = at + space + 1;
    Some((start..start + equals, start + equals + 1..at + length - 1, at + length))
}

/// Reads a decimal number with an optional sign, as Go's `strconv.ParseInt`.
pub(super) fn decimal(text: &[u8]) -> Option<i64> {
    str::from_utf8(text).ok()?.parse().ok()
}

/// Reads `SECONDS[.FRACTION]`; digits beyond nanoseconds are cut off.
fn time(text: &[u8]) -> Option<Timestamp> {
    let mut parts = text.splitn(2, |&byte| byte == b'.');
    let seconds = parts.next()?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().map(|digit| u32::from(digit - b'0')).chain(std::iter::repeat(0)).take(9);
    let nanos = digits.fold(0, |nanos, digit| nanos * 10 + digit);
    let whole = decimal(seconds)?;
    // "-0.5" is before the epoch although its seconds are not negative.
    Some(if seconds.starts_with(b"-") { Timestamp::default() } else { Timestamp::bounded(whole, nanos) })
}
