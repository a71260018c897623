//! Trees as values: everything stat, readlink, getxattr and read say, so that two trees can be compared.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use ocifs::oci::{Algorithm, Digest, Hasher};
use rustix::fs::{lgetxattr, llistxattr, major, minor};

/// A tree: what is at each path, relative to the root, which is the empty path.
pub(crate) type Tree = BTreeMap<Vec<u8>, Stat>;

/// What a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) kind: Kind,
    /// The permission bits, with set-user-ID, set-group-ID and sticky.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds and nanoseconds.
    pub(crate) mtime: (i64, i64),
    /// In bytes; 0 for what is neither file nor symbolic link, since file systems count directories as they like.
    pub(crate) size: u64,
    /// Number of links; 0 for directories, for the same reason.
    pub(crate) links: u64,
    /// The first of the paths that lead to the same file, if there are several in the tree.
    pub(crate) group: Option<Vec<u8>>,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What kind of thing it is, with what only that kind has.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File(Digest),
    Symlink(Vec<u8>),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
    Socket,
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory => f.write_str("directory"),
            Self::File(digest) => write!(f, "file {}", digest.short()),
            Self::Symlink(target) => write!(f, "symbolic link to {}", target.escape_ascii()),
            Self::CharDevice(major, minor) => write!(f, "character device {major}:{minor}"),
            Self::BlockDevice(major, minor) => write!(f, "block device {major}:{minor}"),
            Self::Fifo => f.write_str("fifo"),
            Self::Socket => f.write_str("socket"),
        }
    }
}

/// A part of a [`Stat`], or the presence of a path, for leaving it out of a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field {
    Presence,
    Kind,
    Mode,
    Owner,
    Mtime,
    Size,
    Links,
    Group,
    Xattrs,
}

/// Reads the whole tree below `root`, file contents included.
///
/// SELinux labels are left out: they say how this host is set up, not what the tree is.
pub(crate) fn walk(root: &Path) -> io::Result<Tree> {
    let mut tree = Tree::new();
    let mut groups: HashMap<(u64, u64), BTreeSet<Vec<u8>>> = HashMap::new();
    let mut waiting = vec![Vec::new()];
    while let Some(relative) = waiting.pop() {
        let path = place(root, &relative);
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let metadata = fs::symlink_metadata(&path).map_err(named)?;
        if metadata.is_dir() {
            for entry in fs::read_dir(&path).map_err(named)? {
                let name = entry.map_err(named)?.file_name().into_vec();
                waiting.push(if relative.is_empty() { name } else { [&relative[..], b"/", &name].concat() });
            }
        } else if metadata.nlink() > 1 {
            groups.entry((metadata.dev(), metadata.ino())).or_default().insert(relative.clone());
        }
        tree.insert(relative, stat(&path, &metadata).map_err(named)?);
    }
    for group in groups.into_values().filter(|group| group.len() > 1) {
        for path in &group {
            tree.get_mut(path).expect("it was just inserted").group = group.first().cloned();
        }
    }
    Ok(tree)
}

/// The path itself for the root, without a trailing slash, which would follow a symbolic link.
fn place(root: &Path, relative: &[u8]) -> PathBuf {
    if relative.is_empty() { root.to_owned() } else { root.join(std::ffi::OsStr::from_bytes(relative)) }
}

fn stat(path: &Path, metadata: &Metadata) -> io::Result<Stat> {
    let device = || (major(metadata.rdev()), minor(metadata.rdev()));
    let kind = match metadata.file_type() {
        kind if kind.is_dir() => Kind::Directory,
        kind if kind.is_file() => Kind::File(hash(path)?),
        kind if kind.is_symlink() => Kind::Symlink(fs::read_link(path)?.into_os_string().into_vec()),
        kind if kind.is_char_device() => Kind::CharDevice(device().0, device().1),
        kind if kind.is_block_device() => Kind::BlockDevice(device().0, device().1),
        kind if kind.is_fifo() => Kind::Fifo,
        _ => Kind::Socket,
    };
    Ok(Stat {
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime: (metadata.mtime(), metadata.mtime_nsec()),
        size: if matches!(kind, Kind::File(_) | Kind::Symlink(_)) { metadata.len() } else { 0 },
        links: if kind == Kind::Directory { 0 } else { metadata.nlink() },
        group: None,
        xattrs: xattrs(path)?,
        kind,
    })
}

fn hash(path: &Path) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; 1 << 17];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            count => hasher.update(&buffer[..count]),
        }
    }
}

fn xattrs(path: &Path) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut list = vec![0; 1 << 16];
    let length = match llistxattr(path, list.as_mut_slice()) {
        Err(rustix::io::Errno::NOTSUP) => 0,
        other => other?,
    };
    let mut xattrs = BTreeMap::new();
    for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if name != b"security.selinux" {
            let mut value = vec![0; 1 << 16];
            let length = lgetxattr(path, name, value.as_mut_slice())?;
            value.truncate(length);
            xattrs.insert(name.to_vec(), value);
        }
    }
    Ok(xattrs)
}

/// What differs between two trees, one line each, without what `ignored` says of a path and a field.
pub(crate) fn diff(left: &Tree, right: &Tree, ignored: impl Fn(&[u8], Field) -> bool) -> Vec<String> {
    let mut lines = Vec::new();
    let paths: BTreeSet<&Vec<u8>> = left.keys().chain(right.keys()).collect();
    for path in paths {
        let mut say = |field: Field, text: String| {
            if !ignored(path, field) {
                lines.push(format!("/{}: {text}", path.escape_ascii()));
            }
        };
        match (left.get(path), right.get(path)) {
            (Some(left), Some(right)) => compare(left, right, &mut say),
            (Some(left), None) => say(Field::Presence, format!("only on the left: {:?}", left.kind)),
            (None, Some(right)) => say(Field::Presence, format!("only on the right: {:?}", right.kind)),
            (None, None) => {}
        }
    }
    lines
}

fn compare(left: &Stat, right: &Stat, say: &mut impl FnMut(Field, String)) {
    let mut field = |field: Field, left: String, right: String| {
        if left != right {
            say(field, format!("{field:?} is {left}, but {right} on the right"));
        }
    };
    let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
    let group = |stat: &Stat| stat.group.as_ref().map_or("alone".to_owned(), |first| format!("with /{}", text(first)));
    let xattrs = |stat: &Stat| -> String {
        stat.xattrs.iter().map(|(name, value)| format!("[{}={}]", text(name), text(value))).collect()
    };
    field(Field::Kind, kind_text(left), kind_text(right));
    field(Field::Mode, format!("{:04o}", left.mode), format!("{:04o}", right.mode));
    field(Field::Owner, format!("{}:{}", left.uid, left.gid), format!("{}:{}", right.uid, right.gid));
    let time = |(seconds, nanos): (i64, i64)| format!("{seconds}.{nanos:09}");
    field(Field::Mtime, time(left.mtime), time(right.mtime));
    field(Field::Size, left.size.to_string(), right.size.to_string());
    field(Field::Links, left.links.to_string(), right.links.to_string());
    field(Field::Group, group(left), group(right));
    field(Field::Xattrs, xattrs(left), xattrs(right));
}

/// Unlike in debug output the whole digest counts.
fn kind_text(stat: &Stat) -> String {
    match &stat.kind {
        Kind::File(digest) => format!("file {digest}"),
        other => format!("{other:?}"),
    }
}

/// Panics with the differences if there are any.
#[track_caller]
pub(crate) fn assert_same(left: &Tree, right: &Tree, ignored: impl Fn(&[u8], Field) -> bool) {
    let lines = diff(left, right, ignored);
    let shown = lines.iter().take(40).map(|line| format!("  {line}\n")).collect::<String>();
    assert!(lines.is_empty(), "{} differences:\n{shown}", lines.len());
}
