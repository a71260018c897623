//! Numbers, types and times: stat(2), readdir(3), statfs(2), extended attributes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{
    Dir, FileType, StatVfsMountFlags, lgetxattr, lgetxattr_query, llistxattr, llistxattr_query, major, minor, statvfs,
};
use rustix::io::Errno;

use super::Mounted;
use crate::support::{Image, Layer, SPARSE, long_name, output_of, require, rich};

/// Every path below `root`, with its metadata.
fn everything(root: &Path) -> BTreeMap<PathBuf, fs::Metadata> {
    let mut found = BTreeMap::from([(root.to_owned(), fs::symlink_metadata(root).expect("it is mounted"))]);
    let mut waiting = vec![root.to_owned()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(&dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            let metadata = fs::symlink_metadata(&path).expect("it was listed");
            if metadata.is_dir() {
                waiting.push(path.clone());
            }
            found.insert(path, metadata);
        }
    }
    found
}

#[test]
fn a_200_links_are_counted_in_the_merged_tree() {
    let Some(mounted) = Mounted::new(&rich(0)) else { return };
    let links = |path: &str| fs::symlink_metadata(mounted.path(path)).expect("it is there").nlink();
    // Three names in the first layer; the second takes one away and adds one.
    assert_eq!(["links/a", "links/c", "other/d"].map(links), [3, 3, 3]);
    assert_eq!(["links/x", "links/y"].map(links), [1, 1], "a replaced name leaves its group");
    assert_eq!(["links/s", "links/t", "links/alone", "links/alone-too"].map(links), [2, 2, 2, 2]);
    assert_eq!(["etc/passwd", "dev/pipe", "to-file"].map(links), [1, 1, 1]);
    assert_eq!(fs::read(mounted.path("links/x")).expect("a file"), b"only x");
    assert_eq!(fs::read(mounted.path("links/y")).expect("a file"), b"both");
}

#[test]
fn a_201_hard_links_are_one_inode_with_one_set_of_attributes() {
    let Some(mounted) = Mounted::new(&rich(0)) else { return };
    let all = |path: &str| {
        let path = mounted.path(path);
        let stat = fs::symlink_metadata(&path).expect("it is there");
        let mut value = [0; 16];
        let length = lgetxattr(&path, "user.group", &mut value[..]).unwrap_or(0);
        let times = (stat.mtime(), stat.mtime_nsec(), stat.ctime(), stat.atime());
        let numbers = (stat.dev(), stat.ino(), stat.mode(), stat.uid(), stat.gid(), stat.size(), stat.blocks());
        (numbers, times, value[..length].to_vec())
    };
    let first = all("links/a");
    assert_eq!(first.2, b"one");
    for other in ["links/c", "other/d"] {
        assert_eq!(all(other), first, "{other}");
        assert_eq!(fs::read(mounted.path(other)).ok(), fs::read(mounted.path("links/a")).ok());
    }
    assert_eq!(all("links/s").0, all("links/t").0, "symbolic links can be hard links too");
    assert_ne!(all("links/x").0.1, all("links/y").0.1);
}

#[test]
fn a_202_inode_numbers_are_unique_and_stay() {
    let Some(mounted) = Mounted::new(&rich(5000)) else { return };
    let numbers = || -> BTreeMap<PathBuf, u64> {
        everything(mounted.point.path()).into_iter().map(|(path, stat)| (path, stat.ino())).collect()
    };
    let first = numbers();
    let distinct: BTreeSet<u64> = first.values().copied().collect();
    // Three names, two names and two names lead to one inode each.
    assert_eq!(distinct.len(), first.len() - 2 - 1 - 1);
    assert!(!distinct.contains(&0) && first.len() > 5100);
    assert_eq!(first[mounted.point.path()], 1, "the root is inode 1");
    assert_eq!(numbers(), first);
    mounted.remount_lazily();
    assert_eq!(numbers(), first, "a mount of the same tree numbers it alike");
}

#[test]
fn a_203_a_directory_counts_its_subdirectories() {
    let Some(mounted) = Mounted::new(&rich(3)) else { return };
    let all = everything(mounted.point.path());
    let directories = all.iter().filter(|(_, stat)| stat.is_dir());
    for (path, stat) in directories.clone() {
        let children = directories.clone().filter(|(child, _)| child.parent() == Some(path)).count();
        assert_eq!(stat.nlink(), 2 + children as u64, "{}", path.display());
    }
    // What find leaves out when it believes a wrong count of links.
    let leaves = output_of(Command::new("find").arg(mounted.path("names")).args(["-type", "d"]));
    assert_eq!(leaves.lines().count(), 1);
}

#[test]
fn a_204_sizes_and_blocks_tell_how_much_there_is() {
    let Some(mounted) = Mounted::new(&rich(3)) else { return };
    for (path, stat) in everything(mounted.point.path()) {
        if stat.is_symlink() {
            let target = fs::read_link(&path).expect("a symbolic link");
            assert_eq!(stat.size(), target.as_os_str().len() as u64, "{}", path.display());
        } else if stat.is_file() {
            assert_eq!(stat.blocks(), stat.size().div_ceil(512), "{}", path.display());
        }
        assert_eq!(stat.blksize(), 4096);
    }
    assert_eq!(fs::symlink_metadata(mounted.path("long")).expect("it is there").size(), 4095);
    assert_eq!(fs::metadata(mounted.path("sparse/holes")).expect("it is there").size(), SPARSE);
    let du = output_of(Command::new("du").arg("-sk").arg(mounted.path("data")));
    let kib: usize = du.split_whitespace().next().and_then(|text| text.parse().ok()).expect("a number");
    assert_eq!(kib, (crate::support::BIG >> 10) + 4);
}

#[test]
fn types_devices_and_times_are_those_of_the_image() {
    let Some(mounted) = Mounted::new(&rich(0)) else { return };
    let stat = |path: &str| fs::symlink_metadata(mounted.path(path)).expect("it is there");
    let device = |path: &str| (major(stat(path).rdev()), minor(stat(path).rdev()));
    assert!(stat("dev/null").file_type().is_char_device() && stat("dev/sda").file_type().is_block_device());
    assert_eq!([device("dev/null"), device("dev/sda"), device("dev/large")], [(1, 3), (8, 0), (300, 70_000)]);
    assert!(stat("dev/pipe").file_type().is_fifo());
    for (path, seconds, nanos) in
        [("times/nanos", 1_234_567_890, 987), ("times/far", 4_102_444_800, 0), ("times/epoch", 0, 0)]
    {
        let stat = stat(path);
        assert_eq!((stat.mtime(), stat.mtime_nsec()), (seconds, nanos), "{path}");
        assert_eq!((stat.ctime(), stat.atime()), (seconds, seconds), "{path}");
    }
    assert_eq!(stat("bin/su").mode() & 0o7777, 0o4755);
    assert_eq!(stat("tmp").mode() & 0o7777, 0o1777);
    assert_eq!((stat("etc/far-owner").uid(), stat("etc/far-owner").gid()), (3_000_000_000, 4_000_000_000));
}

/// One directory as getdents64(2) lists it from `position`: name, position after it, inode number, type.
fn list(path: &Path, position: i64) -> Vec<(Vec<u8>, i64, u64, FileType)> {
    let mut dir = Dir::new(File::open(path).expect("a directory")).expect("a directory");
    if position != 0 {
        dir.seek(position).expect("a position that was given out");
    }
    let entry = |entry: rustix::io::Result<rustix::fs::DirEntry>| {
        let entry = entry.expect("an entry");
        (entry.file_name().to_bytes().to_vec(), entry.offset(), entry.ino(), entry.file_type())
    };
    std::iter::from_fn(|| dir.read()).map(entry).collect()
}

#[test]
fn a_206_listings_are_complete_typed_and_can_be_continued_anywhere() {
    let Some(mounted) = Mounted::new(&rich(5000)) else { return };
    for path in ["", "dev", "names", "opaque", "links", "many"] {
        let path = mounted.path(path);
        for (name, _, ino, file_type) in list(&path, 0) {
            let stat = rustix::fs::lstat(path.join(std::ffi::OsStr::from_bytes(&name))).expect("it was listed");
            assert_eq!(FileType::from_raw_mode(stat.st_mode), file_type, "{}", name.escape_ascii());
            // Above the root of a mount there is what it is mounted on, which the mount does not know.
            assert!(stat.st_ino == ino || (path == mounted.path("") && name == b".."), "{}", name.escape_ascii());
        }
    }
    let many = list(&mounted.path("many"), 0);
    let names: BTreeSet<&[u8]> = many.iter().map(|(name, ..)| &name[..]).collect();
    let expected: Vec<String> =
        [".", ".."].map(str::to_owned).into_iter().chain((0..5000).map(|n| format!("{n:05}"))).collect();
    assert_eq!(names, expected.iter().map(|name| name.as_bytes()).collect());
    assert_eq!(many.len(), 5002, "nothing twice");
    for number in [0, 1, 2, 77, 2500, 4999, 5000, 5001] {
        let rest = list(&mounted.path("many"), many[number].1);
        assert_eq!(rest.len(), many.len() - number - 1, "after {number}");
        assert_eq!(rest.first(), many.get(number + 1));
    }
    let names: BTreeSet<Vec<u8>> = list(&mounted.path("names"), 0).into_iter().map(|(name, ..)| name).collect();
    assert!(
        names.contains(long_name().as_bytes())
            && names.contains(&b"\xff\xfe"[..])
            && names.contains(&b"line\nbreak"[..])
    );
}

#[test]
fn a_206_a_listing_goes_on_where_it_was_while_others_read() {
    let Some(mounted) = Mounted::new(&rich(5000)) else { return };
    let mut first = Dir::new(File::open(mounted.path("many")).expect("a directory")).expect("a directory");
    let begun: Vec<_> = std::iter::from_fn(|| first.read()).take(10).collect();
    assert_eq!(list(&mounted.path("many"), 0).len(), 5002);
    assert_eq!(begun.len() + std::iter::from_fn(|| first.read()).count(), 5002);
    first.rewind();
    assert_eq!(std::iter::from_fn(|| first.read()).count(), 5002);
}

#[test]
fn a_212_statfs_tells_a_full_read_only_file_system() {
    let Some(mounted) = Mounted::new(&rich(10)) else { return };
    for path in ["", "etc/passwd", "many"] {
        let stat = statvfs(mounted.path(path)).expect("it is mounted");
        assert!(stat.f_flag.contains(StatVfsMountFlags::RDONLY | StatVfsMountFlags::NODEV));
        assert_eq!((stat.f_namemax, stat.f_bsize, stat.f_bfree, stat.f_bavail, stat.f_ffree), (255, 4096, 0, 0, 0));
        let bytes =
            everything(mounted.point.path()).values().filter(|stat| stat.is_file()).map(fs::Metadata::len).sum::<u64>();
        assert!(stat.f_blocks * stat.f_frsize >= bytes - 2 * 3000 && stat.f_files > 70);
    }
    let df = output_of(Command::new("df").args(["--output=avail,fstype,source"]).arg(mounted.point.path()));
    let line: Vec<&str> = df.lines().nth(1).expect("a line").split_whitespace().collect();
    assert_eq!(line[..2], ["0", "fuse.ocifs"], "{df}");
}

#[test]
fn extended_attributes_follow_the_size_and_erange_protocol() {
    let Some(mounted) = Mounted::new(&rich(0)) else { return };
    let path = mounted.path("etc/attrs/file");
    let get = |name: &str, size: usize| {
        let mut buffer = vec![0; size];
        lgetxattr(&path, name, buffer.as_mut_slice()).map(|length| (length, buffer))
    };
    assert_eq!(lgetxattr_query(&path, "user.a"), Ok(3), "nothing asked for: the length");
    assert_eq!(get("user.a", 2), Err(Errno::RANGE));
    assert_eq!(get("user.a", 3), Ok((3, b"\0\n=".to_vec())));
    assert_eq!(get("user.a", 100).map(|(length, buffer)| buffer[..length].to_vec()), Ok(b"\0\n=".to_vec()));
    assert_eq!(get("user.none", 100), Err(Errno::NODATA));
    assert_eq!(get("trusted.overlay.opaque", 100), Err(Errno::NODATA));
    assert_eq!(get("system.posix_acl_access", 100).expect_err("there is none"), Errno::NODATA);
    let names = b"user.a\0user.b\0";
    assert_eq!(llistxattr_query(&path), Ok(names.len()));
    assert_eq!(llistxattr(&path, [0_u8; 5].as_mut_slice()), Err(Errno::RANGE));
    let mut list = [0_u8; 64];
    let length = llistxattr(&path, list.as_mut_slice()).expect("a list");
    assert_eq!(&list[..length], names);
    assert_eq!(llistxattr(mounted.path("etc/passwd"), [0_u8; 64].as_mut_slice()), Ok(0));
}

#[test]
fn getfattr_and_getcap_read_what_the_image_says() {
    if !require(&["getfattr"]) {
        return;
    }
    let Some(mounted) = Mounted::new(&rich(0)) else { return };
    let dump = output_of(
        Command::new("getfattr")
            .args(["-R", "-d", "-m-", "--encoding=hex"])
            .arg("etc/attrs")
            .current_dir(mounted.point.path()),
    );
    let expected = "# file: etc/attrs\nuser.dir=0x64\n\n# file: etc/attrs/file\nuser.a=0x000a3d\nuser.b=0x62\n\n";
    assert_eq!(dump, expected);
    let mut command = Command::new("getfattr");
    command.args(["-d", "-m^security.capability", "--encoding=hex", "bin/ping"]).current_dir(mounted.point.path());
    let capability = "security.capability=0x0100000200200000000000000000000000000000";
    assert!(output_of(&mut command).contains(capability));
}

#[test]
fn d_061_the_largest_link_target_and_attributes_are_served_whole() {
    let value = vec![b'v'; 60_000];
    let mut layer = Layer::new().file("large", "").xattr("user.large", &value).file("many", "");
    for number in 0..1000 {
        layer = layer.xattr(format!("user.{number:0>40}"), "");
    }
    let name = format!("user.{}", "n".repeat(250));
    let layer = layer.file("named", "").xattr(&name, "x").symlink("link", "t".repeat(4095));
    let Some(mounted) = Mounted::new(&Image::new().layer(layer)) else { return };
    let mut buffer = vec![0; 1 << 16];
    assert_eq!(lgetxattr(mounted.path("large"), "user.large", buffer.as_mut_slice()), Ok(60_000));
    assert_eq!(buffer[..60_000], value);
    assert_eq!(lgetxattr(mounted.path("large"), "user.large", vec![0; 59_999].as_mut_slice()), Err(Errno::RANGE));
    assert_eq!(llistxattr(mounted.path("many"), buffer.as_mut_slice()), Ok(1000 * 46));
    assert_eq!(buffer[..1000 * 46].split(|byte| *byte == 0).filter(|name| name.len() == 45).count(), 1000);
    assert_eq!(lgetxattr(mounted.path("many"), format!("user.{:0>40}", 7), buffer.as_mut_slice()), Ok(0));
    assert_eq!(lgetxattr(mounted.path("named"), name, buffer.as_mut_slice()), Ok(1));
    assert_eq!(fs::read_link(mounted.path("link")).expect("a link").as_os_str().len(), 4095);
    // The file descriptor keeps the mount busy, which must not matter for what it shows.
    let open = File::open(mounted.path("large")).expect("a file");
    assert_eq!(rustix::fs::fgetxattr(open.as_fd(), "user.large", buffer.as_mut_slice()), Ok(60_000));
}
