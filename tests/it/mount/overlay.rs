//! The mount as the lower layer of a kernel overlay, which is how containers write.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::process::Command;

use super::{MODES, Mounted};
use crate::support::{Field, Overlay, assert_same, big, output_of, rich, walk};

#[test]
fn a_211_an_overlay_shows_the_mount_as_it_is() {
    MODES.into_iter().for_each(shows_the_mount);
}

fn shows_the_mount(io: &'static str) {
    let Some(mounted) = Mounted::with(&rich(200), io) else { return };
    mounted.remount_lazily();
    mounted.publish(&["data/big", "bin/su"], 2);
    let overlay = Overlay::over(mounted.point.path(), mounted.ocifs.home());
    let merged = walk(overlay.root()).expect("a tree");
    // The root of an overlay is that of its upper layer.
    let ignored = |path: &[u8], field| path.is_empty() && field == Field::Mtime;
    assert_same(&walk(mounted.point.path()).expect("a tree"), &merged, ignored);
    assert_eq!(fs::read_dir(overlay.upper()).expect("a directory").count(), 0, "reading copies nothing up");
}

#[test]
fn a_211_an_overlay_on_the_mount_takes_changes() {
    MODES.into_iter().for_each(takes_changes);
}

fn takes_changes(io: &'static str) {
    let Some(mounted) = Mounted::with(&rich(20), io) else { return };
    mounted.remount_lazily();
    mounted.publish(&["data/big", "bin/su"], 2);
    assert_eq!(mounted.status()["io"], io);
    let before = walk(mounted.point.path()).expect("a tree");
    let overlay = Overlay::over(mounted.point.path(), mounted.ocifs.home());

    fs::write(overlay.path("etc/new"), "new").expect("a new file");
    fs::write(overlay.path("etc/passwd"), "replaced").expect("a file of the image, truncated");
    let mut file = File::options().append(true).open(overlay.path("data/big")).expect("a file of the image");
    file.write_all(b"more").expect("it is copied up");
    fs::remove_file(overlay.path("replaced")).expect("a file of the image");
    fs::remove_dir_all(overlay.path("many")).expect("a directory of the image");
    fs::create_dir(overlay.path("many")).expect("another directory in its place");
    fs::rename(overlay.path("bin/su"), overlay.path("bin/moved")).expect("a file of the image, renamed");
    fs::hard_link(overlay.path("links/x"), overlay.path("links/new")).expect("a link to a file of the image");
    std::os::unix::fs::chown(overlay.path("bin/ping"), Some(5), None).expect("another owner");

    assert_eq!(fs::read(overlay.path("etc/new")).expect("a file"), b"new");
    assert_eq!(fs::read(overlay.path("etc/passwd")).expect("a file"), b"replaced");
    assert!(fs::read(overlay.path("data/big")).expect("a file") == [big(), b"more"].concat());
    assert!(!overlay.path("replaced").exists() && !overlay.path("bin/su").exists());
    assert_eq!(fs::read_dir(overlay.path("many")).expect("a directory").count(), 0);
    let moved = fs::metadata(overlay.path("bin/moved")).expect("a file");
    assert_eq!((moved.mode() & 0o7777, moved.size()), (0o4755, 9000));
    assert_eq!(fs::metadata(overlay.path("links/new")).expect("a file").nlink(), 2);
    assert_eq!(fs::metadata(overlay.path("bin/ping")).expect("a file").uid(), 5);

    let whiteout = fs::symlink_metadata(overlay.upper().join("replaced")).expect("the upper layer says so");
    assert!(whiteout.file_type().is_char_device() && whiteout.rdev() == 0);
    let listed = output_of(Command::new("ls").arg("-A").arg(overlay.path("etc")));
    assert!(listed.lines().any(|name| name == "new") && listed.lines().any(|name| name == "secret"), "{listed}");
    assert_same(&walk(mounted.point.path()).expect("a tree"), &before, |_, _| false);
}
