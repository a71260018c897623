//! The I/O modes: what the kernel asks in each, that passthrough is really used, and what is done where it cannot be.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use memmap2::Mmap;
use rustix::fs::{Advice, fadvise};
use rustix::mount::{MountFlags, mount};
use serde_json::Value;

use super::{Mounted, PAGE, is_known};
use crate::support::{
    BIG, Image, Layer, Mount, Ocifs, big, noise, output_of, require, require_fuse, require_root, rich, run, walk,
};

impl Mounted {
    /// Makes the kernel forget what it has read of a file that nobody maps.
    pub(super) fn forget_pages(&self, path: &str) {
        forget(&File::open(self.path(path)).expect("a file"));
    }
}

fn forget(file: &File) {
    fadvise(file, 0, None, Advice::DontNeed).expect("every file system takes advice");
}

/// An image of many small files and some others, in which nothing has an attribute.
fn plain() -> Image {
    let mut layer = Layer::new().dir("").dir("d").file("d/big", big()).symlink("d/link", "big");
    layer = layer.hardlink("d/hard", "d/big").symlink("dangling", "nowhere").file("empty", "");
    for dir in 0..20 {
        layer = layer.dir(format!("many/{dir}"));
        for number in 0..150 {
            let name = format!("many/{dir}/a-name-that-fills-the-listing-{number:04}");
            layer = layer.file(name, noise(number * 40, number as u64));
        }
    }
    Image::new().layer(layer)
}

/// Requests by kind.
type Counts = Vec<(String, u64)>;

/// Looks until a look needed no request of the kinds that are `kept`; returns the counters before that. The kernel may
/// drop what it keeps at any time (for want of memory, or because somebody on this machine tells it to), but not always.
fn warm(mounted: &Mounted, kept: impl Fn(&str) -> bool, look: impl Fn()) -> Counts {
    let of = |counts: &Counts| counts.iter().filter(|(kind, _)| kept(kind)).cloned().collect::<Vec<_>>();
    let mut before = asked(mounted);
    for _ in 0..5 {
        look();
        let after = asked(mounted);
        if of(&after) == of(&before) {
            return before;
        }
        eprintln!("not silent: {before:?}, then {after:?}");
        before = after;
    }
    panic!("each look asks again");
}

/// The counters of a mount's requests, without those that a look does not decide: the kernel forgets inodes when it
/// wants to, and programs that look at all mounts of the machine, ours among them, ask each for its size.
fn asked(mounted: &Mounted) -> Counts {
    let counts = mounted.status()["kernel_requests"].as_object().expect("an object").clone();
    let number = |count: &Value| count.as_u64().expect("a number");
    counts
        .iter()
        .filter(|(kind, _)| !["forget", "statfs"].contains(&kind.as_str()))
        .map(|(kind, count)| (kind.clone(), number(count)))
        .collect()
}

#[test]
fn a_warm_mount_is_silent() {
    let Some(mounted) = Mounted::with(&plain(), "auto") else { return };
    assert_eq!(mounted.status()["io"], "cached");
    mounted.remount_lazily();
    let look = || {
        for absent in ["none", "d/none", "many/3/none"] {
            assert!(!mounted.path(absent).exists());
        }
        // Everything stat, readlink, getxattr, readdir and read say; then what other programs do about it.
        let tree = walk(mounted.point.path()).expect("a tree");
        output_of(Command::new("ls").args(["-lR", "--color=always"]).arg(mounted.point.path()));
        output_of(Command::new("cp").arg("-a").arg(mounted.path("d")).arg(mounted.ocifs.home().join("copy")));
        fs::remove_dir_all(mounted.ocifs.home().join("copy")).expect("it was just made");
        tree
    };
    let first = look();
    let before = warm(&mounted, |_| true, || assert_eq!(look(), first));
    let count = |kind: &str| before.iter().find(|(name, _)| name == kind).map_or(0, |(_, count)| *count);
    // Processes may have asked together, before the first answer came.
    for once in ["open", "opendir", "getxattr", "listxattr", "refused"] {
        assert!(count(once) <= 8, "{once}: {}", count(once));
    }
    assert_eq!(count("release"), 0);
}

#[test]
fn a_warm_mount_is_asked_for_nothing_but_attributes_if_there_are_any() {
    let Some(mounted) = Mounted::with(&rich(20), "cached") else { return };
    let look = || walk(mounted.point.path()).expect("a tree");
    let first = look();
    // The kernel keeps no values of extended attributes.
    let is_kept = |kind: &str| !kind.ends_with("xattr");
    let before = warm(&mounted, is_kept, || assert_eq!(look(), first));
    let attributes = |counts: Counts| counts.into_iter().filter(|(kind, _)| !is_kept(kind)).collect::<Vec<_>>();
    assert_ne!(attributes(asked(&mounted)), attributes(before));
}

#[test]
fn a_file_in_the_store_is_read_without_the_daemon_by_passthrough() {
    let Some(mounted) = Mounted::with(&rich(0), "passthrough") else { return };
    assert_eq!((&mounted.status()["io"], &mounted.status()["io_reason"]), (&"passthrough".into(), &"asked for".into()));
    mounted.remount_lazily();
    mounted.publish(&["data/big"], 1);
    let before = mounted.requests("read");
    let (path, expected) = (mounted.path("data/big"), big());
    for _ in 0..2 {
        mounted.forget_pages("data/big");
        assert!(fs::read(&path).expect("it is readable") == expected);
    }
    let file = File::open(&path).expect("a file");
    // SAFETY: nothing changes or truncates a file of a read-only mount.
    assert!(unsafe { memmap2::Mmap::map(&file) }.expect("it can be mapped")[..] == *expected);
    assert_eq!(mounted.status()["open_files"], 1);
    assert_eq!(mounted.requests("read"), before, "the kernel read the decoded file itself");
    drop(file);
    fs::read(mounted.path("links/a")).expect("it is readable");
    assert!(mounted.requests("read") > before, "what is not decoded is read through the daemon");
}

#[test]
fn an_open_file_stays_cached_until_its_last_handle_closes() {
    let Some(mounted) = Mounted::with(&rich(0), "passthrough") else { return };
    mounted.remount_lazily();
    let path = mounted.path("data/big");
    let expected = big();
    let early = File::open(&path).expect("a file");
    mounted.publish(&["data/big"], 1);
    let late = File::open(&path).expect("the same file");
    for file in [&early, &late] {
        let before = mounted.requests("read");
        forget(file);
        let mut bytes = vec![0; BIG];
        file.read_exact_at(&mut bytes, 0).expect("it is readable");
        assert!(bytes == expected);
        assert!(mounted.requests("read") > before, "both are cached, and served by the decoded file");
    }
    drop((early, late));
    // Closing tells the daemon a moment later.
    let begun = Instant::now();
    while mounted.status()["open_files"] != 0 {
        assert!(begun.elapsed() < Duration::from_secs(60), "it does not hear that they are closed");
        std::thread::sleep(Duration::from_millis(10));
    }
    let before = mounted.requests("read");
    mounted.forget_pages("data/big");
    assert!(fs::read(&path).expect("it is readable") == expected);
    assert_eq!(mounted.requests("read"), before);
}

#[test]
fn a_warm_mount_by_passthrough_is_only_asked_to_open_and_to_close() {
    let Some(mounted) = Mounted::with(&plain(), "passthrough") else { return };
    mounted.publish(&["d/big"], 1);
    let look = || walk(mounted.point.path()).expect("a tree");
    let first = look();
    warm(&mounted, |kind| !["open", "release"].contains(&kind), || assert_eq!(look(), first));
}

#[test]
fn two_images_share_a_decoded_file() {
    let Some(one) = Mounted::with(&rich(0), "passthrough") else { return };
    let other = Image::new().layer(Layer::new().file("another/name", big()).file("small", "x"));
    other.to_content(one.registry.content(), "other", "latest");
    let point = one.ocifs.mount_point("other");
    let reference = one.registry.name("other:latest");
    let dir = point.path().to_str().expect("a simple path");
    one.ocifs.run(["mount", "--fill=off", "--io=passthrough", &reference, dir]).ok();
    one.publish(&["data/big"], 1);
    assert!(fs::read(point.path().join("another/name")).expect("it is readable") == big());
    let status = one.ocifs.status(&point)["mounts"][0].clone();
    assert_eq!(status["kernel_requests"]["read"], 0, "its first open finds what the other mount made");
    // What is read of one is in memory for the other.
    let kept = walk(&one.ocifs.cache().join("files")).expect("a directory").into_keys().max_by_key(Vec::len);
    let kept = File::open(one.ocifs.cache().join("files").join(OsStr::from_bytes(&kept.expect("the file"))));
    let kept = kept.expect("a readable file");
    kept.sync_all().expect("a disk");
    let opened = File::open(point.path().join("another/name")).expect("a file");
    // SAFETY: nothing changes or truncates a file of a read-only mount.
    let map = unsafe { Mmap::map(&opened) }.expect("it can be mapped");
    let known = || (0..BIG as u64).step_by(PAGE).filter(|offset| is_known(&map, *offset)).count();
    forget(&kept);
    assert_eq!(known(), 0);
    assert!(fs::read(one.path("data/big")).expect("it is readable") == big());
    assert_eq!(known(), BIG.div_ceil(PAGE));
    drop((map, opened));
    one.ocifs.umount(&point);
}

#[test]
fn auto_takes_passthrough_for_an_image_of_large_files() {
    let image = Image::new().layer(Layer::new().file("a", big()).file("b", noise(5 << 20, 7)));
    let Some(mounted) = Mounted::with(&image, "auto") else { return };
    let status = mounted.status();
    assert_eq!(status["io"], "passthrough", "{status}");
    assert_eq!(status["io_reason"], "files are large: 3.3 MiB on average");
    assert_eq!(mounted.ocifs.json(["list", "--json"])[0]["io"], "passthrough");
}

#[test]
fn a_cache_on_an_overlay_is_cached_and_says_so() {
    if !require_fuse() || !require_root() {
        return;
    }
    let Some(mounted) = Mounted::with(&rich(0), "cached") else { return };
    let ocifs = Ocifs::new();
    let made = ["upper", "work", "lower", "cache"].map(|name| ocifs.home().join("parts").join(name));
    let memory = Mount::new(ocifs.home().join("parts"));
    mount("tmpfs", memory.path(), "tmpfs", MountFlags::empty(), Some(c"size=256m")).expect("root may mount");
    made.iter().try_for_each(fs::create_dir).expect("directories");
    let [upper, work, lower, cache] = made;
    let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    let overlay = Mount::new(cache);
    let options = std::ffi::CString::new(options).expect("no NUL");
    mount("overlay", overlay.path(), "overlay", MountFlags::empty(), Some(options.as_c_str())).expect("an overlay");
    let point = ocifs.mount_point("m");
    let reference = mounted.registry.name("it:latest");
    let cache = format!("--cache-dir={}", overlay.path().join("here").display());
    let dir = point.path().to_str().expect("a simple path");
    let ran = ocifs.run([&cache, "mount", "--fill=off", "--io=passthrough", &reference, dir]).ok();
    assert!(ran.stderr.contains("the cache is on a stacked file system"), "{}", ran.stderr);
    let status = &ocifs.json([&cache, "status", "--json", dir])["mounts"][0];
    assert_eq!((&status["io"], &status["open_files"]), (&"cached".into(), &Value::Null));
    assert!(fs::read(point.path().join("data/big")).expect("it is readable") == big());
    ocifs.run([&cache, "umount", dir]).ok();
    end_daemon_of(&ocifs, &cache);
}

/// Ends the daemon of another cache directory than the usual.
fn end_daemon_of(ocifs: &Ocifs, cache: &str) {
    let status = ocifs.json([cache, "status", "--json"]);
    let pid = status["pid"].as_i64().and_then(|pid| rustix::process::Pid::from_raw(i32::try_from(pid).ok()?));
    rustix::process::kill_process(pid.expect("it is running"), rustix::process::Signal::TERM).expect("it is ours");
    crate::support::wait_for_end(pid.expect("it is running"));
}

#[test]
fn a_user_gets_the_cached_mode_and_a_warning_if_it_was_not_asked_for() {
    if !require(&["setpriv", "fusermount3"]) || !require_fuse() {
        return;
    }
    if fs::metadata("/dev/fuse").expect("it is there").permissions().mode() & 0o006 != 0o006 {
        eprintln!("skipped: only root may open /dev/fuse here");
        return;
    }
    let Some(mounted) = Mounted::with(&rich(0), "cached") else { return };
    let user = crate::support::temp_dir();
    let home = user.path();
    fs::set_permissions(home, fs::Permissions::from_mode(0o755)).expect("it is ours");
    let program = home.join("ocifs");
    // A copy could not be run while a process that another test forks has it open to write.
    let built = env!("CARGO_BIN_EXE_ocifs");
    fs::hard_link(built, &program).or_else(|_| fs::copy(built, &program).map(drop)).expect("a copy");
    for dir in ["m", "cache", "run"] {
        fs::create_dir(home.join(dir)).expect("a directory");
        std::os::unix::fs::chown(home.join(dir), Some(65_534), Some(65_534)).expect("root may");
    }
    let as_user = |args: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]).arg(&program).args(args);
        command.env("HOME", home).env("OCIFS_CACHE_DIR", home.join("cache"));
        run(command.env("OCIFS_RUNTIME_DIR", home.join("run")).current_dir("/"))
    };
    let point = Mount::new(home.join("m"));
    let dir = point.path().to_str().expect("a simple path");
    let ran = as_user(&["mount", "--fill=off", "--io=passthrough", &mounted.registry.name("it:latest"), dir]).ok();
    assert!(ran.stderr.contains("passthrough needs root"), "{}", ran.stderr);
    let status: Value = serde_json::from_str(&as_user(&["status", "--json"]).ok().stdout).expect("JSON");
    assert_eq!(status["mounts"][0]["io"], "cached", "{status}");
    let cat = |path: &Path| {
        let mut command = Command::new("setpriv");
        output_of(command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--", "cat"]).arg(path))
    };
    assert_eq!(cat(&point.path().join("etc/passwd")), "root:x:0:0::/:/bin/sh\n");
    as_user(&["umount", dir]).ok();
    let pid = status["pid"].as_i64().and_then(|pid| rustix::process::Pid::from_raw(i32::try_from(pid).ok()?));
    rustix::process::kill_process(pid.expect("it is running"), rustix::process::Signal::TERM).expect("it is ours");
    crate::support::wait_for_end(pid.expect("it is running"));
}
