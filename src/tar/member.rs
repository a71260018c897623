//! One member: a header and the special headers before it become an [`Entry`], or nothing if it only hides or belongs to
//! nobody.
//!
//! [`Overrides`] are what the special headers said; [`Member`] is the outcome, whose payload has no place in the stream
//! yet, since a sparse map may come first.

use super::described::{self, Described, DescribedKind};
use super::header::{Block, Dialect, Header, number};
use super::pax::{Key, Records};
use super::sparse::{Lines, Map};
use super::{Entry, Fault, Timestamp};

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
        let entry =
            described::named(&identity.path, is_file, |path| entry(path, header, overrides, identity, payload))?;
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
    describe(header, overrides, identity, size)?.at(path, overrides.records.xattrs())
}

/// The fields of a member whose payload, or file, has `size` bytes.
pub(super) fn describe<'a>(
    header: &Header<'a>,
    overrides: &'a Overrides,
    identity: &Identity,
    size: u64,
) -> Result<Described<'a>, Fault> {
    let records = &overrides.records;
    let id = |key, field| records.number(key).map(|id| id.unwrap_or(field));
    // Go refuses malformed times even where it makes no use of them.
    records.time(Key::Atime)?;
    records.time(Key::Ctime)?;
    let mtime = records.time(Key::Mtime)?.unwrap_or_else(|| Timestamp::bounded(header.mtime, 0));
    Ok(Described {
        kind: kind(header, overrides, identity.typeflag, size)?,
        mode: header.mode,
        uid: id(Key::Uid, header.uid)?,
        gid: id(Key::Gid, header.gid)?,
        mtime: (mtime.seconds, mtime.nanos),
    })
}

fn kind<'a>(
    header: &Header<'a>,
    overrides: &'a Overrides,
    typeflag: u8,
    size: u64,
) -> Result<DescribedKind<'a>, Fault> {
    let (major, minor) = (header.major, header.minor);
    Ok(match typeflag {
        b'0' | b'S' => DescribedKind::Regular { size },
        b'1' => DescribedKind::HardLink { target: overrides.link(header) },
        b'2' => DescribedKind::Symlink { target: overrides.link(header) },
        b'3' => DescribedKind::CharDevice { major, minor },
        b'4' => DescribedKind::BlockDevice { major, minor },
        b'5' => DescribedKind::Directory,
        b'6' => DescribedKind::Fifo,
        other => return Err(Fault::Type(other)),
    })
}
