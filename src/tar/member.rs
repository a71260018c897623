//! One member: a header and the special headers before it become an [`Entry`], or nothing if it only hides or belongs to
//! nobody.
//!
//! [`Overrides`] are what the special headers said; [`Member`] is the outcome, whose payload has no place in the stream
//! yet, since a sparse map may come first.

use super::header::{Block, Dialect, Header, number};
use super::name::{self, Name};
use super::pax::{Key, Records};
use super::sparse::{Lines, Map};
use super::{Entry, Fault, Kind, Timestamp, xattr};
use crate::limits;

/// What special headers say about the next member.
#[derive(Debug, Default)]
pub(super) struct Overrides {
    /// The last `x` header; a later one replaces an earlier one whole.
    pub(super) records: Records,
    /// The last `L` header, empty if there is none.
    pub(super) long_name: Vec<u8>,
    /// The last `K` header, empty if there is none.
    pub(super) long_link: Vec<u8>,
}

impl Overrides {
    /// The raw name of the member; a GNU long name beats a PAX path.
    fn path(&self, header: &Header<'_>) -> Vec<u8> {
        match self.records.get(Key::Path) {
            _ if !self.long_name.is_empty() => self.long_name.clone(),
            Some(path) => path.to_vec(),
            None => header.path(),
        }
    }

    fn link<'a>(&'a self, header: &Header<'a>) -> &'a [u8] {
        if self.long_link.is_empty() { self.records.get(Key::LinkPath).unwrap_or(header.link) } else { &self.long_link }
    }
}

/// How the payload lies in the file.
#[derive(Debug)]
pub(super) enum Layout {
    /// It is the file.
    Whole,
    /// It is the regions of a map.
    Sparse(Map),
    /// So it is, but the map continues in extension blocks.
    Extended(Map),
    /// It begins with a map, the regions follow.
    Lines(Lines),
}

/// A member whose header is known.
#[derive(Debug)]
pub(super) struct Member {
    /// What it makes; none if it makes nothing. The segments of a regular file are still missing.
    pub(super) entry: Option<Entry>,
    /// Bytes of the stream that follow the header and its extension blocks, without padding.
    pub(super) payload: u64,
    /// How they lie in the file.
    pub(super) layout: Layout,
}

/// The name and the type of a member, which must be known before anything can be said about it.
#[derive(Debug)]
pub(super) struct Identity {
    /// As the archive gives it.
    pub(super) path: Vec<u8>,
    typeflag: u8,
    sparse: Sparse,
}

/// What the records say about holes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sparse {
    No,
    /// Formats 0.0 and 0.1.
    Records,
    /// Format 1.0.
    Lines,
}

impl Identity {
    /// Works out the name and the type.
    pub(super) fn new(header: &Header<'_>, overrides: &Overrides) -> Self {
        let mut path = overrides.path(header);
        let typeflag = match header.typeflag {
            // Directories had no type of their own in v7.
            0 if path.ends_with(b"/") => b'5',
            0 | b'7' => b'0',
            other => other,
        };
        let sparse = if typeflag == b'S' { Sparse::No } else { sparse(&overrides.records) };
        if sparse != Sparse::No
            && let Some(name) = overrides.records.get(Key::SparseName)
        {
            path = name.to_vec();
        }
        Self { path, typeflag, sparse }
    }
}

/// Finds out whether, and how, the records describe a sparse file. Unknown versions are read as plain files, as Go does.
fn sparse(records: &Records) -> Sparse {
    match (records.get(Key::SparseMajor), records.get(Key::SparseMinor)) {
        (Some(b"0"), Some(b"0" | b"1")) => Sparse::Records,
        (Some(b"1"), Some(b"0")) => Sparse::Lines,
        // Versions 0.0 and 0.1 did not state themselves at first.
        (None, None) if records.has_sparse_map() => Sparse::Records,
        _ => Sparse::No,
    }
}

impl Member {
    /// Joins a header, given in parsed form and as the block it came from, with what the special headers said.
    pub(super) fn new(
        header: &Header<'_>,
        block: &Block,
        overrides: &Overrides,
        identity: &Identity,
    ) -> Result<Self, Fault> {
        let records = &overrides.records;
        let size = records.number(Key::Size)?.unwrap_or(header.size);
        let (payload, layout) = match identity.typeflag {
            b'0' | b'S' => {
                let payload = u64::try_from(size).map_err(|_| Fault::Range("size"))?;
                (payload, layout(header, block, records, identity, size)?)
            }
            // Go knows no sparse file of these types, and no payload either, whatever their size says.
            b'1'..=b'6' if identity.sparse != Sparse::No => return Err(Fault::SparseMap),
            b'1'..=b'6' => (0, Layout::Whole),
            other => return Err(Fault::Type(other)),
        };
        let is_file = matches!(identity.typeflag, b'0' | b'S');
        let entry = match Name::new(&identity.path)? {
            Name::Plain(path) => Some(entry(path, header, overrides, identity, payload)?),
            Name::AufsLink(path) if is_file => Some(entry(path, header, overrides, identity, payload)?),
            Name::AufsLink(_) | Name::Hidden => None,
            // Whatever a whiteout is made of, it is a whiteout.
            Name::Whiteout(path) => Some(marker(path, Kind::Whiteout)),
            Name::Opaque(path) => Some(marker(path, Kind::Opaque)),
        };
        Ok(Self { entry, payload, layout })
    }
}

fn layout(
    header: &Header<'_>,
    block: &Block,
    records: &Records,
    identity: &Identity,
    size: i64,
) -> Result<Layout, Fault> {
    if identity.typeflag == b'S' {
        if header.dialect != Dialect::Gnu {
            return Err(Fault::SparseMap);
        }
        let mut map = Map::new(number(&block[483..495], "real size")?)?;
        let is_extended = map.gnu_header(block)?;
        return Ok(if is_extended { Layout::Extended(map) } else { Layout::Sparse(map) });
    }
    if identity.sparse == Sparse::No {
        return Ok(Layout::Whole);
    }
    let stated = records.number(Key::SparseSize)?;
    let real_size = stated.or(records.number(Key::SparseRealSize)?).unwrap_or(size);
    Ok(match identity.sparse {
        Sparse::Lines => Layout::Lines(Lines::new(real_size)?),
        Sparse::Records | Sparse::No => Layout::Sparse(Map::from_records(records, real_size)?),
    })
}

fn entry(
    path: Vec<u8>,
    header: &Header<'_>,
    overrides: &Overrides,
    identity: &Identity,
    size: u64,
) -> Result<Entry, Fault> {
    let records = &overrides.records;
    let kind = kind(header, overrides, identity.typeflag, size)?;
    if path.is_empty() && kind != Kind::Directory {
        return Err(Fault::Root);
    }
    let id = |key, field, what| {
        let id = records.number(key)?.unwrap_or(field);
        u32::try_from(id).map_err(|_| Fault::Range(what))
    };
    // Go refuses malformed times even where it makes no use of them.
    records.time(Key::Atime)?;
    records.time(Key::Ctime)?;
    let mtime = records.time(Key::Mtime)?.unwrap_or_else(|| Timestamp::bounded(header.mtime, 0));
    let mode = if matches!(kind, Kind::Symlink { .. }) { 0o777 } else { (header.mode & 0o7777) as u16 };
    Ok(Entry {
        mode,
        uid: id(Key::Uid, header.uid, "uid")?,
        gid: id(Key::Gid, header.gid, "gid")?,
        mtime,
        xattrs: xattr::served(&kind, records.xattrs())?,
        path,
        kind,
    })
}

fn kind(header: &Header<'_>, overrides: &Overrides, typeflag: u8, size: u64) -> Result<Kind, Fault> {
    let device = |number| u32::try_from(number).map_err(|_| Fault::Range("device number"));
    Ok(match typeflag {
        b'0' | b'S' => Kind::Regular { size, segments: Vec::new(), content: None },
        b'1' => Kind::HardLink { target: name::link_target(overrides.link(header))? },
        b'2' => Kind::Symlink { target: symlink_target(overrides.link(header))? },
        b'3' => Kind::CharDevice { major: device(header.major)?, minor: device(header.minor)? },
        b'4' => Kind::BlockDevice { major: device(header.major)?, minor: device(header.minor)? },
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        other => return Err(Fault::Type(other)),
    })
}

fn symlink_target(raw: &[u8]) -> Result<Vec<u8>, Fault> {
    match raw.len() {
        0 => Err(Fault::NoTarget),
        1..=limits::SYMLINK_BYTES => Ok(raw.to_vec()),
        _ => Err(Fault::TargetTooLong),
    }
}

/// An entry that only hides.
fn marker(path: Vec<u8>, kind: Kind) -> Entry {
    Entry { path, kind, mode: 0, uid: 0, gid: 0, mtime: Timestamp::default(), xattrs: Vec::new() }
}
