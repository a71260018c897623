//! One connection for all mounts of an image: what is remembered, who ends what, and what is kept apart.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use ocifs::demo::registry::Content;
use serde_json::Value;

use crate::support::{
    Embedded, Image, Layer, Mount, Ocifs, eventually, has_ended, noise, output_of, require_fuse, require_root, rich,
    walk,
};

const LONG: Duration = Duration::from_secs(60);

/// An installation and a registry with one image.
struct Setting {
    ocifs: Ocifs,
    registry: Embedded,
}

impl Setting {
    fn new(image: &Image) -> Option<Self> {
        if !require_fuse() || !require_root() {
            return None;
        }
        let content = Content::new();
        image.to_content(&content, "it", "latest");
        Some(Self { ocifs: Ocifs::new(), registry: Embedded::start(content) })
    }

    fn mount(&self, name: &str) -> Mount {
        let point = self.ocifs.mount_point(name);
        self.ocifs.mount(&self.registry.name("it:latest"), &point);
        point
    }

    fn mounted(&self) -> usize {
        self.ocifs.json(["list", "--json"]).as_array().map_or(0, Vec::len)
    }

    /// How often the kernel asked about the mount for names, listings and bytes.
    fn asked(&self, point: &Mount) -> u64 {
        let counts = self.ocifs.status(point)["mounts"][0]["kernel_requests"].clone();
        ["lookup", "readdirplus", "readdir", "read"].iter().filter_map(|kind| counts[kind].as_u64()).sum()
    }
}

fn device(point: &Mount) -> u64 {
    fs::metadata(point.path()).expect("it is mounted").dev()
}

#[test]
fn a_second_mount_and_one_made_again_find_everything_remembered() {
    let Some(setting) = Setting::new(&rich(40)) else { return };
    let first = setting.mount("first");
    let tree = walk(first.path()).expect("a tree");
    let cold = setting.asked(&first);
    assert!(cold > 40, "the first look asks: {cold}");

    let second = setting.mount("second");
    assert_eq!(device(&first), device(&second));
    assert!(walk(second.path()).expect("a tree") == tree);
    // The kernel may have dropped something for want of memory.
    assert!(setting.asked(&second) < cold / 4, "{} of {cold}", setting.asked(&second));

    setting.ocifs.umount(&first);
    assert!(!first.is_mounted() && second.is_mounted() && setting.mounted() == 1);
    assert!(walk(second.path()).expect("the other one goes on") == tree);
    setting.ocifs.umount(&second);
    assert_eq!(setting.mounted(), 0);

    let again = setting.mount("first");
    assert!(walk(again.path()).expect("a tree") == tree);
    assert!(setting.asked(&again) < cold / 4, "{} of {cold}", setting.asked(&again));
    assert_eq!(setting.ocifs.status(&again)["mounts"][0]["bytes_fetched"], 0, "what others fetched is not counted");
}

#[test]
fn mounts_that_are_asked_for_otherwise_are_kept_apart() {
    let Some(setting) = Setting::new(&rich(0)) else { return };
    let cached = setting.mount("cached");
    let passed = setting.ocifs.mount_point("passed");
    let name = setting.registry.name("it:latest");
    let options = ["mount", "--fill=off", "--io=passthrough", &name].map(std::ffi::OsStr::new);
    setting.ocifs.run(options.into_iter().chain([passed.path().as_os_str()])).ok();
    assert_ne!(device(&cached), device(&passed));
    let io = |point: &Mount| setting.ocifs.status(point)["mounts"][0]["io"].clone();
    assert_eq!((io(&cached), io(&passed)), (Value::from("cached"), Value::from("passthrough")));
}

#[test]
fn b_137_who_has_logged_in_as_somebody_else_is_not_served_by_the_login_of_who_came_first() {
    let Some(setting) = Setting::new(&rich(0)) else { return };
    let login = setting.ocifs.home().join("auth.json");
    let log_in = |user: &str| {
        let entry =
            format!(r#"{{"auths":{{"{}":{{"username":"{user}","password":"p"}}}}}}"#, setting.registry.name(""));
        fs::write(&login, entry).expect("a writable directory");
    };
    let mount_with = |name: &str, option: &str| {
        let point = setting.ocifs.mount_point(name);
        let (file, name) = (format!("--authfile={}", login.display()), setting.registry.name("it:latest"));
        let options = ["mount", option, &file, &name].map(std::ffi::OsStr::new);
        setting.ocifs.run(options.into_iter().chain([point.path().as_os_str()])).ok();
        point
    };
    let mount = |name: &str| mount_with(name, "--fill=off");
    log_in("alice");
    setting.ocifs.umount(&mount("indexing"));
    setting.ocifs.drop_bytes();
    assert!(setting.ocifs.end_daemon(), "it ends when it is told to");
    let (alice, again) = (mount("alice"), mount("again"));
    assert_eq!(device(&alice), device(&again));
    log_in("bob-the-other");
    let (bob, again) = (mount("bob"), mount("bob-again"));
    assert_ne!(device(&alice), device(&bob));
    assert_eq!(device(&bob), device(&again));
    let complete = mount_with("complete", "--wait");
    log_in("carol-the-third");
    let carol = mount("carol");
    assert!([&alice, &bob].map(device).contains(&device(&carol)), "nobody is asked for what is here");
    assert_eq!(device(&bob), device(&complete));
}

#[test]
fn a_mount_that_somebody_else_ends_is_noticed() {
    let Some(setting) = Setting::new(&rich(0)) else { return };
    let (first, second) = (setting.mount("first"), setting.mount("second"));
    assert_eq!(setting.mounted(), 2);
    output_of(Command::new("umount").arg(first.path()));
    eventually(LONG, "the mount is listed no more", || setting.mounted() == 1);
    assert_eq!(setting.ocifs.run(["status".as_ref(), first.path().as_os_str()]).code(), 3);
    walk(second.path()).expect("the other one goes on");
    // The directory is free again.
    setting.ocifs.mount(&setting.registry.name("it:latest"), &first);
    walk(first.path()).expect("a tree");
}

#[test]
fn what_a_dropped_cache_held_is_not_kept_for_mounts_to_come() {
    let Some(setting) = Setting::new(&rich(10)) else { return };
    let point = setting.mount("m");
    walk(point.path()).expect("a tree");
    setting.ocifs.umount(&point);
    setting.ocifs.drop_all();
    let blobs = setting.ocifs.json(["cache", "du", "--json"])["blobs"]["count"].clone();
    assert_eq!(blobs, 0);
    setting.ocifs.mount(&setting.registry.name("it:latest"), &point);
    walk(point.path()).expect("a tree");
    assert!(setting.asked(&point) > 10, "the kernel remembers nothing of it");
}

#[test]
fn what_is_in_use_is_not_dropped_and_that_is_told_with_the_reason() {
    let Some(setting) = Setting::new(&rich(10)) else { return };
    let point = setting.mount("m");
    walk(point.path()).expect("a tree");
    let used_by = || {
        let dropped = setting.ocifs.json(["cache", "drop", "--blobs", "--json"]);
        let kept = dropped["kept"].as_array().expect("a list").iter().find(|kept| kept["part"] == "layers").cloned();
        kept.map(|kept| {
            assert!(kept["count"].as_u64() > Some(0) && kept["bytes"].as_u64() > Some(0), "{kept}");
            kept["used_by"].as_str().expect("a word").to_owned()
        })
    };
    assert_eq!(used_by().as_deref(), Some("mount"));
    // What the runtime of a container does: from here on the namespace has a mount of its own.
    let mut other = Command::new("unshare");
    other.args(["--mount", "--propagation=private", "sh", "-c", "echo ready; exec sleep 600"]);
    let mut other = other.stdout(Stdio::piped()).spawn().expect("unshare can be run");
    let mut ready = [0; 6];
    other.stdout.take().expect("a pipe").read_exact(&mut ready).expect("it is ready");
    setting.ocifs.umount(&point);
    let told = used_by();
    let text = setting.ocifs.run(["cache", "drop"]).ok().stdout;
    other.kill().and_then(|()| other.wait()).expect("it is ours");
    assert_eq!(told.as_deref(), Some("ended-mount"));
    assert!(text.contains(": unmounted, but a process or another mount namespace still has it\n"), "{text}");
    eventually(LONG, "nothing has it any more", || used_by().is_none());
    assert_eq!(setting.ocifs.json(["cache", "du", "--json"])["blobs"]["count"], 0);
}

/// Reads a byte of a file where it was left.
fn byte(file: &mut File) -> u8 {
    let mut byte = [0];
    file.read_exact(&mut byte).expect("the file is served");
    byte[0]
}

#[test]
fn a_user_of_a_mount_that_was_detached_is_served_to_the_end() {
    let content = noise(8 << 20, 1);
    let image = Image::new().layer(Layer::new().dir("").file("file", &content));
    let Some(setting) = Setting::new(&image) else { return };
    let point = setting.ocifs.mount_point("m");
    let name = setting.registry.name("it:latest");
    let settings = setting.ocifs.home().join(".config/ocifs");
    fs::create_dir_all(&settings).expect("a directory");
    fs::write(settings.join("config.toml"), "idle-seconds = 1\n").expect("a file");
    setting.ocifs.mount(&name, &point);
    let mut file = File::open(point.path().join("file")).expect("it is there");
    assert_eq!(byte(&mut file), content[0]);
    setting.ocifs.run(["umount".as_ref(), "--lazy".as_ref(), point.path().as_os_str()]).ok();
    assert!(!point.is_mounted() && setting.mounted() == 0);
    // Longer than a daemon with nothing to do lives.
    std::thread::sleep(Duration::from_secs(3));
    let mut rest = Vec::new();
    file.read_to_end(&mut rest).expect("the file is served");
    assert!(rest == content[1..], "other bytes");
    let daemon = setting.ocifs.daemon().expect("it serves");
    drop(file);
    // Asking it would keep it.
    eventually(LONG, "the daemon ends", || has_ended(daemon));
}
