//! Profiles through the program and real mounts: what a start reads is recorded, and fetched ahead by the next mount;
//! without a profile, what the entry point needs.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use ocifs::demo::image::{self, Options};
use ocifs::demo::registry::Content;
use serde_json::{Value, json};

use crate::support::{Built, Embedded, Image, Layer, Mount, Ocifs, noise, require_fuse, require_root};

/// Length of each file of [`image`]: several spans.
const FILE: usize = 2 << 20;

/// What one access may add to what was asked for, compressed: a span on either side, and what the kernel reads ahead.
const SLACK: u64 = 1 << 20;

/// Eight files that do not compress, `a` to `h`, in one layer.
fn image() -> Image {
    let layer = ('a'..='h')
        .fold(Layer::new().dir("data"), |layer, name| layer.file(format!("data/{name}"), noise(FILE, name as u64)));
    Image::new().layer(layer)
}

/// A registry with an image, and an installation.
struct Scene {
    ocifs: Ocifs,
    point: Mount,
    registry: Embedded,
    built: Built,
}

impl Scene {
    /// None, loudly, where nothing can be mounted.
    fn new(image: &Image) -> Option<Self> {
        if !require_fuse() || !require_root() {
            return None;
        }
        let content = Content::new();
        let built = image.to_content(&content, "it", "latest");
        let ocifs = Ocifs::new();
        Some(Self { point: ocifs.mount_point("m"), ocifs, registry: Embedded::start(content), built })
    }

    fn reference(&self) -> String {
        self.registry.name("it:latest")
    }

    fn mount(&self) {
        self.ocifs.run(["mount", "--fill=off", &self.reference(), &self.dir()]).ok();
    }

    fn read(&self, file: &str) {
        fs::read(self.point.path().join("data").join(file)).expect("it can be read");
    }

    fn read_head(&self, file: &str, length: usize) {
        let mut head = vec![0; length];
        let file = File::open(self.point.path().join("data").join(file));
        file.and_then(|mut file| file.read_exact(&mut head)).expect("it can be read");
    }

    /// Ends the mount, and forgets all bytes, those in memory as well, so that the next mount has to fetch.
    fn forget_bytes(&self) {
        self.ocifs.umount(&self.point);
        self.ocifs.drop_bytes();
        assert!(self.ocifs.end_daemon(), "it ends when it is told to");
        self.registry.forget_requests();
    }

    /// Mounts for the first time, which makes the index, and starts afresh with nothing else.
    fn indexed(&self) {
        self.ocifs.mount(&self.reference(), &self.point);
        self.forget_bytes();
    }

    fn dir(&self) -> String {
        self.point.path().to_str().expect("a plain path").to_owned()
    }

    /// What status tells of the mount once nothing more is fetched ahead.
    fn settled(&self) -> Value {
        settled(&self.ocifs, &self.point)
    }

    /// Ranges of blobs asked of the registry.
    fn blob_requests(&self) -> usize {
        self.registry.requests().iter().filter(|record| record.request.is_blob()).count()
    }

    /// The paths of the stored profile, in order.
    fn recorded(&self) -> Vec<String> {
        let shown = self.ocifs.json(["profile", "show", "--json", &self.reference()]);
        let accesses = shown["accesses"].as_array().expect("a list").clone();
        let mut paths: Vec<String> =
            accesses.iter().map(|access| access["path"].as_str().expect("plain").to_owned()).collect();
        paths.dedup();
        paths
    }
}

fn settled(ocifs: &Ocifs, point: &Mount) -> Value {
    let begun = Instant::now();
    loop {
        let mount = ocifs.status(point)["mounts"][0].clone();
        if mount["profile"]["ahead_done"] == true {
            return mount;
        }
        assert!(begun.elapsed() < Duration::from_secs(90), "fetching ahead does not end: {mount}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn what_one_start_read_is_fetched_before_anybody_reads_in_the_next() {
    let Some(scene) = Scene::new(&image()) else { return };
    scene.indexed();
    scene.mount();
    assert_eq!(scene.settled()["profile"]["state"], "recording");
    scene.read("f");
    scene.read_head("b", 100_000);
    scene.read("d");
    scene.read("f");
    scene.forget_bytes();
    assert_eq!(scene.recorded(), ["data/f", "data/b", "data/d"]);

    scene.mount();
    let status = scene.settled();
    assert_eq!((&status["profile"]["ahead"], &status["profile"]["entry_point_spans"]), (&json!("profile"), &json!(0)));
    assert!(status["profile"]["replayed_spans"].as_u64().expect("a number") >= 6, "{status}");
    let fetched = status["bytes_fetched"].as_u64().expect("a number");
    // The files compress to half.
    let least = 2 * FILE as u64 / 2;
    assert!(fetched > least - least / 10 && fetched < least + 3 * SLACK, "{status}");
    scene.registry.forget_requests();
    scene.read("d");
    scene.read("f");
    scene.read_head("b", 100_000);
    assert_eq!(scene.blob_requests(), 0, "all of it was here");
    scene.read("h");
    assert!(scene.blob_requests() > 0, "and nothing else");

    scene.forget_bytes();
    let offline = ["mount", "--offline", "--fill=off", &scene.reference(), &scene.dir()];
    scene.ocifs.run(offline).ok();
    assert_eq!(scene.settled()["profile"]["ahead"], Value::Null);
    assert_eq!(scene.blob_requests(), 0, "an offline mount asks nobody");
}

#[test]
fn only_starts_become_profiles_and_small_recordings_add_to_them() {
    let Some(scene) = Scene::new(&image().layer(Layer::new().file("data/i", noise(FILE, 9)))) else { return };
    scene.indexed();
    scene.mount();
    scene.read("c");
    scene.read("a");
    scene.forget_bytes();
    scene.mount();
    scene.read_head("h", 10);
    scene.forget_bytes();
    assert_eq!(scene.recorded(), ["data/c", "data/a", "data/h"], "somebody looked at a file");
    scene.mount();
    ["a", "b", "c", "d", "e", "f", "g", "h", "i"].iter().for_each(|file| scene.read(file));
    scene.forget_bytes();
    assert_eq!(scene.recorded(), ["data/c", "data/a", "data/h"], "a scan is no start");
    scene.mount();
    scene.read("e");
    scene.read("d");
    scene.forget_bytes();
    assert_eq!(scene.recorded(), ["data/e", "data/d"], "a newer start");
}

#[test]
fn a_recording_ends_when_it_was_told_to_and_is_stored_while_mounted() {
    let Some(scene) = Scene::new(&image()) else { return };
    scene.indexed();
    // The time counts from the mount on, and on a machine that stands still it may be over before anything is read.
    for until in ["2s", "8s", "30s"] {
        let until = format!("--profile-until={until}");
        scene.ocifs.run(["mount", "--fill=off", &until, &scene.reference(), &scene.dir()]).ok();
        scene.read("b");
        if scene.settled()["profile"]["state"] == "recording" {
            break;
        }
        // The kernel would not ask again for what it has read.
        scene.forget_bytes();
        scene.ocifs.run(["profile", "rm", &scene.reference()]);
    }
    let begun = Instant::now();
    while scene.settled()["profile"]["state"] != "stored" {
        assert!(begun.elapsed() < Duration::from_secs(90), "the recording does not end");
        std::thread::sleep(Duration::from_millis(50));
    }
    scene.read("c");
    scene.ocifs.umount(&scene.point);
    assert_eq!(scene.recorded(), ["data/b"], "what was read later belongs to no start");
    scene.ocifs.run(["profile", "rm", &scene.reference()]).ok();
    scene.ocifs.run(["mount", "--fill=off", "--profile-until=0", &scene.reference(), &scene.dir()]).ok();
    scene.read("d");
    assert_eq!(scene.settled()["profile"]["state"], "none");
    scene.ocifs.umount(&scene.point);
    let ran = scene.ocifs.run(["profile", "show", &scene.reference()]);
    assert_eq!(ran.code(), 3, "{ran:?}");
    assert!(ran.stderr.contains("there is no profile of") && ran.stderr.contains("hint: "), "{}", ran.stderr);
}

#[test]
fn a_profile_is_carried_to_another_cache() {
    let Some(scene) = Scene::new(&image()) else { return };
    scene.indexed();
    scene.mount();
    scene.read("g");
    scene.ocifs.umount(&scene.point);
    let file = scene.ocifs.home().join("start.profile");
    scene.ocifs.run([OsStr::new("profile"), "export".as_ref(), scene.reference().as_ref(), file.as_ref()]).ok();
    let text = fs::read_to_string(&file).expect("it was written");
    assert_eq!(scene.ocifs.run(["profile", "export", &scene.reference()]).ok().stdout, text);
    assert!(text.starts_with(&format!("ocifs-profile 1\nimage {}\n", scene.built.manifest.digest)), "{text}");

    let other = Ocifs::new();
    let point = other.mount_point("m");
    other.mount(&scene.reference(), &point);
    other.umount(&point);
    other.drop_bytes();
    assert!(other.end_daemon(), "it ends when it is told to");
    other.run([OsStr::new("profile"), "import".as_ref(), scene.reference().as_ref(), file.as_ref()]).ok();
    assert_eq!(other.run(["profile", "export", &scene.reference()]).ok().stdout, text);
    other.mount(&scene.reference(), &point);
    let status = settled(&other, &point);
    assert_eq!(status["profile"]["ahead"], "profile");
    assert!(status["profile"]["replayed_spans"].as_u64().expect("a number") >= 3, "{status}");
    other.umount(&point);
}

#[test]
fn a_profile_of_another_image_or_of_an_enemy_does_no_harm() {
    let layer = Layer::new().dir("dir").symlink("link", "/data/a").symlink("loop", "loop").file("empty", "");
    let layer = layer.add("disk", crate::support::EntryContent::BlockDevice(8, 0)).file(b"caf\xe9", noise(FILE, 1));
    let Some(scene) = Scene::new(&image().layer(layer)) else { return };
    scene.indexed();
    let head = format!("ocifs-profile 1\nimage {}\nrecorded 1\nmount /m\n", scene.built.config.digest);
    let huge = i64::MAX;
    let accesses = [
        "0 4096 no/such/file".to_owned(),
        "0 4096 dir".to_owned(),
        "0 4096 link".to_owned(),
        "0 4096 loop/x".to_owned(),
        "0 4096 disk".to_owned(),
        "0 4096 empty".to_owned(),
        "0 4096 data/a/b".to_owned(),
        format!("{} 1 data/a", huge - 1),
        format!("{FILE} {} data/b", 1_u64 << 60),
        format!("1000000 {} caf\\xe9", huge - 1_000_000),
    ];
    let text = format!("{head}accesses {}\n{}\n", accesses.len(), accesses.join("\n"));
    let file = scene.ocifs.home().join("foreign.profile");
    fs::write(&file, &text).expect("it can be written");
    let import = |file: &Path| {
        scene.ocifs.run([OsStr::new("profile"), "import".as_ref(), scene.reference().as_ref(), file.as_ref()])
    };
    import(&file).ok();
    scene.mount();
    let status = scene.settled();
    let spans = status["profile"]["replayed_spans"].as_u64().expect("a number");
    assert!((1..=4).contains(&spans), "only the end of one file: {status}");
    assert_eq!(fs::read(scene.point.path().join("data/c")).expect("it serves").len(), FILE);
    scene.ocifs.umount(&scene.point);

    // What is no profile replaces nothing.
    let before = scene.ocifs.run(["profile", "export", &scene.reference()]).ok().stdout;
    for (line, problem) in [
        ("0 1 ../../etc/passwd", "line 6: the path is not one below the image's root"),
        ("0 1 /etc/passwd", "line 6: the path is not one below the image's root"),
        ("18446744073709551615 18446744073709551615 a", "line 6: no file has such a range"),
        ("0 1 a\\xzz", "line 6: the path is not escaped as it should be"),
    ] {
        fs::write(&file, format!("{head}accesses 1\n{line}\n")).expect("it can be written");
        let ran = import(&file);
        assert_eq!(ran.code(), 2, "{ran:?}");
        assert!(ran.stderr.contains(&format!("cause: {problem}")), "{}", ran.stderr);
    }
    fs::write(&file, format!("{head}accesses 1000000\n")).expect("it can be written");
    assert_eq!(import(&file).code(), 2);
    assert_eq!(scene.ocifs.run(["profile", "export", &scene.reference()]).ok().stdout, before);
}

#[test]
fn the_entry_point_its_interpreter_and_its_libraries_are_fetched_without_a_profile() {
    if !require_fuse() || !require_root() {
        return;
    }
    let content = Content::new();
    let options = Options { large_bytes: 2 << 20, ..Options::default() };
    image::build(&content, "demo", "latest", &options).expect("this host has a shell");
    let ocifs = Ocifs::new();
    let point = ocifs.mount_point("m");
    let registry = Embedded::start(content);
    let name = registry.name("demo:latest");
    let dir = point.path().to_str().expect("a plain path").to_owned();
    ocifs.mount(&name, &point);
    ocifs.umount(&point);
    ocifs.drop_bytes();
    assert!(ocifs.end_daemon(), "it ends when it is told to");
    ocifs.mount(&name, &point);
    let status = settled(&ocifs, &point);
    assert_eq!((&status["profile"]["ahead"], &status["profile"]["replayed_spans"]), (&json!("entry point"), &json!(0)));
    assert!(status["profile"]["entry_point_spans"].as_u64().expect("a number") >= 1, "{status}");
    let whole = status["bytes_needed"].as_u64().expect("a number");
    let fetched = status["bytes_fetched"].as_u64().expect("a number");
    assert!(fetched > 0 && fetched < whole, "{status}");
    drop(registry);
    let shell =
        std::process::Command::new("timeout").args(["60", "chroot", &dir, "/bin/sh", "-c", "echo ready"]).output();
    let shell = shell.expect("there are timeout and chroot");
    assert_eq!(String::from_utf8_lossy(&shell.stdout), "ready\n", "the shell runs without the registry: {shell:?}");
    ocifs.umount(&point);
}

#[test]
fn profiles_are_counted_checked_and_dropped_with_everything() {
    let Some(scene) = Scene::new(&image()) else { return };
    scene.indexed();
    scene.mount();
    scene.read("a");
    scene.ocifs.umount(&scene.point);
    let profiles = || scene.ocifs.json(["cache", "du", "--json"])["profiles"]["count"].clone();
    assert_eq!(profiles(), 2, "what the start read, and what was read at all");
    scene.ocifs.run(["cache", "drop", "--indexes"]).ok();
    assert_eq!(profiles(), 2, "indexes are something else");
    let stored = fs::read_dir(scene.ocifs.cache().join("profiles")).expect("it is there").flatten().next();
    let stored = stored.expect("one profile").path();
    let mut bytes = fs::read(&stored).expect("it can be read");
    let last = bytes.len() - 2;
    bytes[last] ^= 1;
    fs::write(&stored, bytes).expect("it can be written");
    assert_eq!(scene.ocifs.run(["cache", "verify"]).code(), 9);
    assert_eq!(profiles(), 1, "a damaged one is removed");
    scene.mount();
    scene.read("a");
    scene.ocifs.umount(&scene.point);
    assert_eq!(profiles(), 2);
    scene.ocifs.run(["cache", "drop", "--all"]).ok();
    assert_eq!(profiles(), 0);
}
