//! System calls around a mount: making it, finding it in the mount table, tuning it, ending it.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

/// Read-ahead of a mount of large files, in KiB. The kernel offers 128 by default.
const READ_AHEAD_KIB: u32 = 1024;

/// A mount as the kernel's table lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPoint {
    /// The mount's number, which the kernel uses again once the mount is gone.
    pub id: u64,
    /// Where it is.
    pub path: PathBuf,
    /// Device number, `major:minor`.
    pub device: String,
    /// The type, `fuse.ocifs` for ours.
    pub file_system: String,
    /// Whose it is, if it is a FUSE file system.
    pub user: Option<u32>,
}

impl MountPoint {
    /// True if a process of this program serves it, or did.
    pub fn is_ocifs(&self) -> bool {
        self.file_system == "fuse.ocifs"
    }
}

/// True if this machine has a FUSE device that this user may open; the error otherwise.
pub fn is_available() -> io::Result<()> {
    open_device().map(drop)
}

pub(super) fn open_device() -> io::Result<File> {
    File::options().read(true).write(true).open("/dev/fuse")
}

/// Makes a mount of a FUSE connection that is in no directory yet. Only for callers with CAP_SYS_ADMIN; needs Linux 5.2.
pub(super) fn make(device: &File, source: &str, everyone: bool) -> io::Result<OwnedFd> {
    let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let settings = [
        ("subtype", "ocifs".to_owned()),
        ("source", source.to_owned()),
        ("fd", device.as_raw_fd().to_string()),
        ("rootmode", "40000".to_owned()),
        ("user_id", rustix::process::getuid().as_raw().to_string()),
        ("group_id", rustix::process::getgid().as_raw().to_string()),
    ];
    for (key, value) in settings {
        fsconfig_set_string(&context, key, value)?;
    }
    for flag in ["ro", "default_permissions"].into_iter().chain(everyone.then_some("allow_other")) {
        fsconfig_set_flag(&context, flag)?;
    }
    fsconfig_create(&context)?;
    // Set-user-ID programs must work in a container's root file system; device nodes come from the runtime.
    let attributes =
        MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOATIME;
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// Another mount of the same file system, in no directory yet; none if this kernel only copies mounts that are in one
/// (before Linux 6.15).
pub(super) fn copy(mount: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    match open_tree(mount, "", flags) {
        Ok(copy) => Ok(Some(copy)),
        Err(Errno::INVAL) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Puts a mount that is in no directory into `dir`.
pub(super) fn put(mount: &OwnedFd, dir: &Path) -> io::Result<()> {
    Ok(move_mount(mount, "", rustix::fs::CWD, dir, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Calls umount2(2). `lazy` detaches a busy mount at once and lets it end with its last user.
pub(super) fn unmount(dir: &Path, lazy: bool) -> io::Result<()> {
    let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    rustix::mount::unmount(dir, flags | UnmountFlags::NOFOLLOW)?;
    Ok(())
}

/// The kernel's table of what is mounted where, for this process.
pub(super) const TABLE: &str = "/proc/self/mountinfo";

/// The mount on top at `dir`, if one is mounted there. Reads the kernel's table and so never touches the mount.
pub(super) fn find(dir: &Path) -> io::Result<Option<MountPoint>> {
    Ok(parse(&std::fs::read(TABLE)?).rfind(|mount| mount.path == dir))
}

/// The mounts of a table as it is read from [`TABLE`].
pub(super) fn parse(table: &[u8]) -> impl DoubleEndedIterator<Item = MountPoint> {
    table.split(|byte| *byte == b'\n').filter_map(parse_line)
}

/// One line of mountinfo: `id parent major:minor root point options [optional…] - type source options` (proc(5)).
fn parse_line(line: &[u8]) -> Option<MountPoint> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let device = fields.nth(1)?;
    let path = fields.nth(1)?;
    let mut fields = fields.skip_while(|field| *field != b"-");
    let file_system = fields.nth(1)?;
    let user = fields.nth(1).and_then(|options| {
        let user = options.split(|byte| *byte == b',').find_map(|option| option.strip_prefix(b"user_id="));
        std::str::from_utf8(user?).ok()?.parse().ok()
    });
    Some(MountPoint {
        id,
        path: PathBuf::from(OsString::from_vec(unescape(path))),
        device: String::from_utf8_lossy(device).into_owned(),
        file_system: String::from_utf8_lossy(file_system).into_owned(),
        user,
    })
}

/// Undoes the kernel's octal escapes of space, tab, newline and backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let digits = tail.get(..3).filter(|digits| digits.iter().all(|digit| (b'0'..=b'7').contains(digit)));
        match digits {
            Some(digits) if byte == b'\\' => {
                plain.push(digits.iter().fold(0_u8, |value, digit| value << 3 | (digit - b'0')));
                rest = &tail[3..];
            }
            _ => {
                plain.push(byte);
                rest = tail;
            }
        }
    }
    plain
}

/// Raises the kernel's read-ahead for a mount. Needs root; without it reads only become smaller.
pub(super) fn raise_read_ahead(device: &str) {
    let path = format!("/sys/class/bdi/{device}/read_ahead_kb");
    if let Err(error) = std::fs::write(&path, READ_AHEAD_KIB.to_string()) {
        tracing::debug!(path, %error, "read-ahead stays at the default");
    }
}

/// Names of processes that hold files below `dir`: working directory, root, program, open file or mapping.
///
/// Reads link texts only, so it never touches the mount; processes that may not be looked into are left out.
pub(super) fn holders(dir: &Path) -> Vec<(u32, String)> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let mut found: Vec<_> = processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| holds(*pid, dir))
        .map(|pid| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            (pid, name.trim_end().to_owned())
        })
        .collect();
    found.sort_unstable();
    found
}

fn holds(pid: u32, dir: &Path) -> bool {
    let base = PathBuf::from(format!("/proc/{pid}"));
    let is_below = |link: &Path| std::fs::read_link(link).is_ok_and(|target| target.starts_with(dir));
    if ["cwd", "root", "exe"].iter().any(|name| is_below(&base.join(name))) {
        return true;
    }
    let descriptors = std::fs::read_dir(base.join("fd")).into_iter().flatten();
    if descriptors.flatten().any(|entry| is_below(&entry.path())) {
        return true;
    }
    let maps = std::fs::read(base.join("maps")).unwrap_or_default();
    maps.split(|byte| *byte == b'\n').any(|line| {
        let path = line.iter().position(|byte| *byte == b'/').map_or(&[][..], |start| &line[start..]);
        Path::new(std::ffi::OsStr::from_bytes(path)).starts_with(dir)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_lines_parse_with_escapes_and_optional_fields() {
        let line = b"36 35 0:45 / /mnt/a\\040b ro,nodev shared:1 master:2 - fuse.ocifs ocifs ro,user_id=7,group_id=8";
        let mount = parse_line(line).expect("a valid line");
        assert_eq!(mount.path, Path::new("/mnt/a b"));
        assert_eq!(mount.id, 36);
        assert_eq!((mount.device.as_str(), mount.file_system.as_str()), ("0:45", "fuse.ocifs"));
        assert_eq!((mount.user, mount.is_ocifs()), (Some(7), true));
        assert_eq!(parse_line(b""), None);
        assert_eq!(parse_line(b"36 35 0:45 / /mnt"), None);
    }

    #[test]
    fn this_process_holds_its_own_program() {
        let program = std::env::current_exe().expect("a program");
        let holders = holders(program.parent().expect("a directory"));
        assert!(holders.iter().any(|(pid, _)| *pid == std::process::id()), "{holders:?}");
    }
}
