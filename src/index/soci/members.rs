//! Members of a zTOC to entries of a layer.
//!
//! Members come in the order of the archive. Where a member's header begins is not said, but follows: at the end of the
//! payload before, padded. So members that leave no room for a header between them are lies, or the work of a tool that did
//! not understand a sparse file.

use super::Fault;
use super::flat::{Table, Tables};
use crate::index::rfc3339;
use crate::limits::{LAYER_ENTRIES, SHOWN_CHARACTERS};
use crate::oci::Printable;
use crate::tar::{Described, DescribedKind, Entry, Kind, Segment};

/// Bytes of a header, and of the grid in which headers and payloads lie.
const BLOCK: u64 = 512;

/// What a key begins with that carries an extended attribute.
const XATTR: &[u8] = b"SCHILY.xattr.";

/// What the keys begin with that tell of holes.
const SPARSE: &[u8] = b"GNU.sparse.";

/// The entries of `members`, in an archive of `length` bytes.
pub(super) fn entries(members: &Tables<'_>, length: u64) -> Result<Vec<Entry>, Fault> {
    if members.len() as u64 > LAYER_ENTRIES {
        return Err(Fault::Checkpoints("it has too many members"));
    }
    let (mut entries, mut end) = (Vec::new(), 0);
    for member in members.iter() {
        let member = member?;
        let name = member.bytes(4)?;
        let payload = payload(&member, &mut end, length)?;
        let Some(payload) = payload else { return Err(refused(name, "its bytes are not where a member's can be")) };
        entries.extend(entry(&member, name, payload)?);
    }
    Ok(entries)
}

/// Where the payload of `member` begins and how long it is; none if it cannot be there. `end` moves behind it.
fn payload(member: &Table<'_>, end: &mut u64, length: u64) -> Result<Option<(u64, u64)>, Fault> {
    let (offset, size) = (u64::try_from(member.i64(8)?), u64::try_from(member.i64(10)?));
    let (Ok(offset), Ok(size)) = (offset, size) else { return Ok(None) };
    let has_header = offset % BLOCK == 0 && offset >= end.saturating_add(BLOCK);
    let Some(after) = offset.checked_add(size).filter(|after| has_header && *after <= length) else {
        return Ok(None);
    };
    *end = after.div_ceil(BLOCK).saturating_mul(BLOCK);
    Ok(Some((offset, size)))
}

fn entry(member: &Table<'_>, name: &[u8], (offset, size): (u64, u64)) -> Result<Option<Entry>, Fault> {
    let target = member.bytes(12)?;
    let (major, minor) = (member.i64(26)?, member.i64(28)?);
    let kind = match member.bytes(6)? {
        b"reg" => DescribedKind::Regular { size },
        _ if size != 0 => return Err(refused(name, "it has bytes, and is no file")),
        b"dir" => DescribedKind::Directory,
        b"symlink" => DescribedKind::Symlink { target },
        b"hardlink" => DescribedKind::HardLink { target },
        b"char" => DescribedKind::CharDevice { major, minor },
        b"block" => DescribedKind::BlockDevice { major, minor },
        b"fifo" => DescribedKind::Fifo,
        _ => return Err(refused(name, "it is of no known type")),
    };
    let time = std::str::from_utf8(member.bytes(24)?).ok().and_then(rfc3339::parse);
    let Some(mtime) = time else { return Err(refused(name, "its time is malformed")) };
    let mut xattrs = Vec::new();
    for pair in member.tables(30)?.iter() {
        let pair = pair?;
        let (key, value) = (pair.bytes(4)?, pair.bytes(6)?);
        if key.starts_with(SPARSE) {
            return Err(refused(name, "it is a sparse file, whose holes are not described"));
        }
        if let Some(key) = key.strip_prefix(XATTR) {
            xattrs.push((key, value));
        }
    }
    let described = Described {
        kind,
        mode: member.i64(14)?,
        uid: i64::from(member.u32(16)?),
        gid: i64::from(member.u32(18)?),
        mtime,
    };
    let entry = described.entry(name, xattrs.into_iter());
    let mut entry = entry.map_err(|fault| Fault::Tar { name: shown(name), fault })?;
    if let Some(Entry { kind: Kind::Regular { segments, .. }, .. }) = &mut entry
        && size > 0
    {
        segments.push(Segment { file_offset: 0, layer_offset: offset, length: size });
    }
    Ok(entry)
}

fn refused(name: &[u8], what: &'static str) -> Fault {
    Fault::Member { name: shown(name), what }
}

fn shown(name: &[u8]) -> String {
    Printable::of(&name[..name.len().min(SHOWN_CHARACTERS)]).to_string()
}
