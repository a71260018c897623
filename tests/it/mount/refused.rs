//! What fails, and with which error: changes, names that are not there, users without permission.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use rustix::fs::{
    Access, AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, access, chmodat, chownat,
    linkat, mkdirat, mknodat, open, removexattr, renameat, setxattr, symlinkat, unlinkat, utimensat,
};
use rustix::io::{Errno, Result};

use super::Mounted;
use crate::support::{long_name, output_of, require, rich};

#[test]
fn a_208_every_change_is_refused_as_on_a_read_only_file_system() {
    let Some(mounted) = Mounted::new(&rich(0)) else { return };
    let (file, dir, new) = (mounted.path("etc/passwd"), mounted.path("becomes-dir"), mounted.path("etc/new"));
    let inner = mounted.path("becomes-dir/inner");
    let (r, w, rw) = (OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR);
    let opened = |path: &Path, flags: OFlags| open(path, flags, Mode::RWXU).map(drop);
    let now = Timespec { tv_sec: 1, tv_nsec: 0 };
    let times = Timestamps { last_access: now, last_modification: now };
    let outcomes: [(&str, Result<()>); 24] = [
        ("open to write", opened(&file, w)),
        ("open to read and write", opened(&file, rw)),
        ("open to append", opened(&file, w | OFlags::APPEND)),
        ("open and truncate", opened(&file, r | OFlags::TRUNC)),
        ("create", opened(&new, w | OFlags::CREATE)),
        ("create to read", opened(&new, r | OFlags::CREATE | OFlags::EXCL)),
        ("make a temporary file", opened(&dir, rw | OFlags::TMPFILE)),
        ("truncate", truncate(&file)),
        ("unlink", unlinkat(CWD, &file, AtFlags::empty())),
        ("unlink a link", unlinkat(CWD, mounted.path("to-file"), AtFlags::empty())),
        ("mkdir", mkdirat(CWD, &new, Mode::RWXU)),
        ("rmdir", unlinkat(CWD, mounted.path("tmp"), AtFlags::REMOVEDIR)),
        ("mknod", mknodat(CWD, &new, FileType::Fifo, Mode::RWXU, 0)),
        ("symlink", symlinkat("target", CWD, &new)),
        ("link", linkat(CWD, &file, CWD, &new, AtFlags::empty())),
        ("rename", renameat(CWD, &file, CWD, &new)),
        ("rename over another", renameat(CWD, &file, CWD, &inner)),
        ("chmod", chmodat(CWD, &file, Mode::RWXU, AtFlags::empty())),
        ("chown", chownat(CWD, &file, Some(Uid::from_raw(1)), Some(Gid::from_raw(1)), AtFlags::empty())),
        ("chown a link", chownat(CWD, mounted.path("to-file"), Some(Uid::ROOT), None, AtFlags::SYMLINK_NOFOLLOW)),
        ("utimens", utimensat(CWD, &file, &times, AtFlags::empty())),
        ("setxattr", setxattr(&file, "user.new", b"value", XattrFlags::empty())),
        ("removexattr", removexattr(mounted.path("etc/attrs"), "user.dir")),
        ("ask whether it is writable", access(&file, Access::WRITE_OK)),
    ];
    for (what, outcome) in outcomes {
        assert_eq!(outcome, Err(Errno::ROFS), "{what}");
    }
    assert_eq!(fs::read(&file).expect("it is as it was"), b"root:x:0:0::/:/bin/sh\n");
    assert!(!new.exists() && inner.exists());
}

fn truncate(path: &Path) -> Result<()> {
    let output = Command::new("truncate").args(["-s", "0"]).arg(path).output().expect("truncate can be run");
    let message = String::from_utf8_lossy(&output.stderr);
    if message.contains("Read-only file system") { Err(Errno::ROFS) } else { panic!("{message}") }
}

#[test]
fn names_that_are_not_there_are_refused_again_and_again() {
    let Some(mounted) = Mounted::new(&rich(0)) else { return };
    let look = |path: &str| rustix::fs::lstat(mounted.path(path)).map(drop);
    for _ in 0..3 {
        for path in ["none", "etc/none/", "etc/Passwd", "gone", "gone/file", "etc/gone", "opaque/hidden", "links/b"] {
            let expected = if path == "etc/none/" { Errno::NOTDIR } else { Errno::NOENT };
            assert_eq!(look(path), Err(expected), "{path}");
        }
        for path in ["etc/.wh.gone", ".wh.gone", "opaque/.wh..wh..opq"] {
            assert_eq!(look(path), Err(Errno::NOENT), "{path}: what hides is hidden");
        }
    }
    assert_eq!(look("etc/passwd/inner"), Err(Errno::NOTDIR));
    assert_eq!(look(&format!("names/{}n", long_name())), Err(Errno::NAMETOOLONG));
    assert_eq!(look(&format!("names/{}", long_name().replace('n', "m"))), Err(Errno::NOENT));
    assert_eq!(fs::read(mounted.path("loop")).map_err(|error| Errno::from_io_error(&error)), Err(Some(Errno::LOOP)));
    assert_eq!(look("dangling"), Ok(()));
    assert!(!mounted.path("dangling").exists());
    // A miss must not hide what is there.
    assert_eq!([look("etc/passwd"), look("opaque/new"), look("becomes-dir/inner")], [Ok(()); 3]);
    assert_eq!(open(mounted.path("dev/sda"), OFlags::RDONLY, Mode::empty()).map(drop), Err(Errno::ACCESS), "nodev");
    assert_eq!(fs::read(mounted.path("etc")).map_err(|error| Errno::from_io_error(&error)), Err(Some(Errno::ISDIR)));
}

/// Runs a command in the mount as another user, without any privilege.
fn as_user(mounted: &Mounted, uid: u32, args: &[&str]) -> Output {
    let mut command = Command::new("setpriv");
    command.args([&format!("--reuid={uid}"), &format!("--regid={uid}"), "--clear-groups", "--"]).args(args);
    command.current_dir("/").env("M", mounted.point.path()).output().expect("setpriv can be run")
}

#[test]
fn a_209_other_users_may_do_what_the_image_says() {
    if !require(&["setpriv"]) {
        return;
    }
    let Some(mounted) = Mounted::new(&rich(0)) else { return };
    fs::set_permissions(mounted.ocifs.home(), fs::Permissions::from_mode(0o755)).expect("it is ours");
    let run = |uid: u32, script: &str| -> (bool, String, String) {
        let output = as_user(&mounted, uid, &["sh", "-c", &format!("cd \"$M\" && {script}")]);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    };
    let denied = |uid: u32, script: &str| {
        let (succeeded, _, stderr) = run(uid, script);
        assert!(!succeeded && stderr.contains("Permission denied"), "{uid}: {script}: {stderr}");
    };
    let allowed = |uid: u32, script: &str, expected: &str| {
        let (succeeded, stdout, stderr) = run(uid, script);
        assert!(succeeded && stdout == expected, "{uid}: {script}: {stdout}{stderr}");
    };
    allowed(65_534, "cat etc/passwd", "root:x:0:0::/:/bin/sh\n");
    allowed(65_534, "cat to-file", "root:x:0:0::/:/bin/sh\n");
    allowed(65_534, "test -x bin/ping && test ! -x etc/passwd && test ! -r etc/secret && echo yes", "yes\n");
    denied(65_534, "cat etc/secret");
    denied(65_534, "cat etc/none");
    denied(65_534, "ls home/user");
    denied(65_534, "cat home/user/inner");
    denied(65_534, "./etc/passwd");
    allowed(1000, "cat etc/secret home/user/inner", "secretinner");
    denied(1000, "cat etc/none");
    allowed(0, "cat etc/secret etc/none", "secretnone");
}

#[test]
fn a_209_set_user_id_programs_work() {
    if !require(&["setpriv"]) {
        return;
    }
    // A program without libraries to look for: the mount has none.
    let id = fs::read("/usr/bin/id").expect("every system has id");
    let image = rich(0).layer(crate::support::Layer::new().file("bin/id", id).mode(0o4755).owner(4321, 0));
    let Some(mounted) = Mounted::new(&image) else { return };
    fs::set_permissions(mounted.ocifs.home(), fs::Permissions::from_mode(0o755)).expect("it is ours");
    // The temporary directory may itself be mounted nosuid, which goes for programs on it but not for another mount.
    let said = as_user(&mounted, 65_534, &["sh", "-c", "\"$M\"/bin/id -u; \"$M\"/bin/id -ru"]);
    assert_eq!(String::from_utf8_lossy(&said.stdout), "4321\n65534\n", "{}", String::from_utf8_lossy(&said.stderr));
    let plain = output_of(Command::new(mounted.path("bin/id")).arg("-u"));
    assert_eq!(plain, "4321\n");
}
