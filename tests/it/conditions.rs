//! Random images, mounted by the program, are what umoci unpacks: whatever is in the cache, however they are read, whatever
//! goes on beside, and whatever the registry does.
//!
//! `stack` makes the images, `readers` reads them. Each test takes images of its own, compares every name, attribute and
//! byte with what umoci unpacked, and lets many threads read in random order under one condition.
//!
//! `OCIFS_TEST_ROUNDS=N` takes N images for each test, other ones from run to run.

mod readers;
mod single;
mod stack;

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use ocifs::demo::registry::{Content, Endpoint, Fault, Request};
use ocifs::limits::CONTENT_DIGEST_BYTES;
use serde_json::Value;

use crate::support::{
    Compression, Embedded, Field, Image, Kind, Layer, Mount, Ocifs, Tree, assert_same, eventually, noise, require,
    require_fuse, require_root, umoci_unpack, walk,
};
use readers::{ALL, Expected, Plan, Way, read_all};
use stack::image;

/// Length of the one file of another image, which does not compress.
const FILLER: usize = 1_500_000;

/// An image in a registry, mounted, and umoci's idea of it.
struct Scene {
    ocifs: Ocifs,
    point: Mount,
    registry: Embedded,
    io: &'static str,
    seed: u64,
    tree: Tree,
    files: Vec<Expected>,
}

/// The images and modes of one test, numbered so that no two tests have the same.
fn scenes(test: u64) -> impl Iterator<Item = Scene> {
    let here = require(&["umoci", "tar"]) && require_fuse() && require_root();
    let rounds = std::env::var("OCIFS_TEST_ROUNDS").ok().and_then(|text| text.parse::<u64>().ok());
    let base = match rounds {
        Some(_) => SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        None => 0,
    };
    let count = if here { rounds.unwrap_or(1) } else { 0 };
    let modes = ["cached", "passthrough"].into_iter();
    (0..count).flat_map(move |round| modes.clone().map(move |io| (round, io))).map(move |(round, io)| {
        let seed = base * 1000 + test * 100 + round * 2 + u64::from(io == "cached");
        Scene::new(seed, io)
    })
}

impl Scene {
    /// Mounts the image of `seed` for the first time.
    fn new(seed: u64, io: &'static str) -> Self {
        eprintln!("image {seed}, {io}");
        let image = image(seed);
        let content = Content::new();
        image.to_content(&content, "it", "latest");
        Image::new().layer(Layer::new().file("other", noise(FILLER, seed))).to_content(&content, "it", "other");
        let ocifs = Ocifs::new();
        let (layout, bundle) = (ocifs.home().join("layout"), ocifs.home().join("bundle"));
        // umoci 0.4.7 knows no zstd.
        image.clone().compressed(Compression::None).to_layout(&layout, "latest");
        let root = umoci_unpack(&layout, "latest", &bundle);
        let tree = walk(&root).expect("a tree");
        let is_file = |path: &&Vec<u8>| matches!(tree[*path].kind, Kind::File(_));
        let text = |path: &Vec<u8>| String::from_utf8(path.clone()).expect("names are letters");
        let expected = |path: String| Expected { bytes: fs::read(root.join(&path)).expect("we are root"), path };
        let files = tree.keys().filter(is_file).map(text).map(expected).collect();
        let scene =
            Self { point: ocifs.mount_point("m"), ocifs, registry: Embedded::start(content), io, seed, tree, files };
        scene.mount(&["--fill=off"]);
        scene
    }

    fn mount(&self, options: &[&str]) {
        let (reference, io) = (self.registry.name("it:latest"), format!("--io={}", self.io));
        let fixed = ["mount", "--profile-until=0", &io];
        let all = fixed.iter().chain(options).copied().chain([reference.as_str()]).map(OsStr::new);
        self.ocifs.run(all.chain([self.point.path().as_os_str()])).ok();
    }

    /// Mounts again with nothing in the cache but indexes, and nothing in the memory of kernel and daemon.
    fn remount_cold(&self, options: &[&str]) {
        self.ocifs.umount(&self.point);
        self.ocifs.drop_bytes();
        assert!(self.ocifs.end_daemon(), "it ends when it is told to");
        self.mount(options);
    }

    fn root(&self) -> PathBuf {
        self.point.path().to_owned()
    }

    fn status(&self) -> Value {
        self.ocifs.status(&self.point)["mounts"][0].clone()
    }

    /// Bytes in the cache and bytes of all layers.
    fn bytes(&self) -> (u64, u64) {
        let status = self.status();
        let number = |name: &str| status[name].as_u64().expect("a number");
        (number("bytes_local"), number("bytes_needed"))
    }

    /// What the cache takes.
    fn usage(&self) -> Value {
        self.ocifs.json(["cache", "du", "--json"])
    }

    /// Compares everything with what umoci unpacked.
    fn compare(&self) {
        // umoci leaves the time of unpacking where no entry gave one, and where something was changed afterwards.
        let untimed = |path: &[u8]| {
            let stat = self.tree.get(path);
            stat.is_some_and(|stat| stat.kind == Kind::Directory && !(1..=1_600_000_000).contains(&stat.mtime.0))
        };
        let ignored = |path: &[u8], field| field == Field::Mtime && untimed(path);
        assert_same(&walk(&self.root()).expect("a tree"), &self.tree, ignored);
    }

    /// Lets threads read all files in random order; nothing may fail.
    fn read(&self, threads: usize, ways: &[Way]) {
        let plan = Plan { threads, rounds: 1, ways, forgets: false, patience: Duration::ZERO };
        read_all(&self.root(), &self.files, self.seed, plan);
    }
}

#[test]
fn a_cold_mount_is_what_umoci_unpacks_for_any_number_of_readers() {
    for scene in scenes(1) {
        scene.compare();
        scene.remount_cold(&["--fill=off"]);
        scene.read(16, &ALL);
        scene.compare();
        scene.remount_cold(&["--fill=idle"]);
        scene.read(4, &ALL);
        scene.compare();
    }
}

#[test]
fn a_cold_mount_is_what_umoci_unpacks_for_one_kind_of_reader() {
    for scene in scenes(2) {
        for way in [Way::Map, Way::Direct] {
            scene.remount_cold(&["--fill=off"]);
            scene.read(8, &[way]);
            // Once more, from what is in memory and decoded by now.
            scene.read(8, &[way]);
            scene.compare();
        }
    }
}

#[test]
fn a_partly_filled_mount_is_what_umoci_unpacks() {
    for scene in scenes(3) {
        scene.remount_cold(&["--fill=off"]);
        let half: Vec<_> = scene.files.iter().step_by(2).collect();
        for file in &half {
            // Some of them only in part.
            let mut bytes = vec![0; file.bytes.len().div_ceil(1 + half.len() % 3)];
            let opened = fs::File::open(scene.root().join(&file.path)).expect("it opens");
            std::os::unix::fs::FileExt::read_exact_at(&opened, &mut bytes, 0).expect("it is readable");
            assert!(bytes == file.bytes[..bytes.len()], "{}", file.path);
        }
        let (local, needed) = scene.bytes();
        assert!(0 < local && local < needed, "{local} of {needed}");
        scene.ocifs.umount(&scene.point);
        assert!(scene.ocifs.end_daemon(), "it ends when it is told to");
        scene.mount(&["--fill=off"]);
        scene.read(8, &ALL);
        scene.compare();
    }
}

#[test]
fn a_complete_mount_is_what_umoci_unpacks_without_a_registry() {
    for scene in scenes(4) {
        scene.remount_cold(&["--fill=now"]);
        let deadline = Instant::now() + Duration::from_secs(120);
        while scene.bytes().0 < scene.bytes().1 {
            assert!(Instant::now() < deadline, "{}", scene.status());
            std::thread::sleep(Duration::from_millis(20));
        }
        scene.registry.set_faults(|_| Some(Fault::status(503)));
        scene.read(8, &ALL);
        scene.compare();
        scene.ocifs.umount(&scene.point);
        assert!(scene.ocifs.end_daemon(), "it ends when it is told to");
        let asked = scene.registry.requests().len();
        scene.mount(&["--offline"]);
        scene.read(8, &ALL);
        scene.compare();
        assert_eq!(scene.registry.requests().len(), asked, "offline is offline");
    }
}

#[test]
fn readers_do_not_notice_that_the_cache_is_emptied() {
    for scene in scenes(5) {
        scene.remount_cold(&["--fill=off"]);
        // What a mount uses stays: decoded copies are what there is to be removed, and nobody has them open yet.
        let long = |file: &&Expected| file.bytes.len() as u64 > CONTENT_DIGEST_BYTES;
        let decoded = scene.files.iter().filter(long).map(|file| &file.bytes).collect::<HashSet<_>>().len() as u64;
        scene.read(4, &[Way::Whole]);
        eventually(Duration::from_secs(120), "all are decoded", || scene.usage()["files"]["count"] == decoded);
        let (done, drops) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let emptying = scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    scene.ocifs.drop_bytes();
                    drops.fetch_add(1, Ordering::Relaxed);
                }
            });
            let plan = Plan { threads: 8, rounds: 3, ways: &ALL, forgets: true, patience: Duration::ZERO };
            read_all(&scene.root(), &scene.files, scene.seed, plan);
            // Until it was emptied a few times, however long that takes.
            while drops.load(Ordering::Relaxed) < 3 && !emptying.is_finished() {
                read_all(&scene.root(), &scene.files, scene.seed, Plan { rounds: 1, ..plan });
            }
            done.store(true, Ordering::Relaxed);
            emptying.join().expect("the cache can be emptied");
        });
        assert!(scene.usage()["files"]["count"].as_u64() < Some(decoded), "nothing was removed: {}", scene.usage());
        scene.compare();
    }
}

#[test]
fn a_mount_of_decoded_files_is_what_umoci_unpacks_while_they_are_evicted() {
    for scene in scenes(7) {
        scene.remount_cold(&["--fill=now"]);
        scene.read(4, &[Way::Whole]);
        let (decoded, short): (Vec<_>, Vec<_>) =
            scene.files.iter().cloned().partition(|file| file.bytes.len() as u64 > CONTENT_DIGEST_BYTES);
        let count = decoded.iter().map(|file| &file.bytes).collect::<HashSet<_>>().len() as u64;
        assert!(count > 5 && !short.is_empty());
        eventually(Duration::from_secs(120), "all are decoded", || scene.usage()["files"]["count"] == count);

        // Whatever the kernel and the daemon remember is gone; copies may be evicted as soon as anything is added.
        scene.ocifs.umount(&scene.point);
        assert!(scene.ocifs.end_daemon(), "it ends when it is told to");
        let room = scene.usage()["used"].as_u64().expect("a number") + FILLER as u64 / 2;
        assert!(scene.ocifs.end_daemon(), "it ends when it is told to");
        scene.mount(&["--fill=off", &format!("--cache-size={room}")]);
        let asked = || scene.status()["kernel_requests"]["read"].as_u64().expect("a number");
        let plan = Plan { threads: 8, rounds: 1, ways: &ALL, forgets: true, patience: Duration::ZERO };
        // Long copies are verified beside their first readers.
        eventually(Duration::from_secs(60), "the kernel reads the copies itself", || {
            let before = asked();
            read_all(&scene.root(), &decoded, scene.seed, plan);
            scene.io == "cached" || asked() == before
        });

        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                let (point, began) = (scene.ocifs.mount_point("other"), Instant::now());
                while scene.usage()["files"]["count"] == count {
                    assert!(began.elapsed() < Duration::from_secs(120), "nothing is evicted: {}", scene.usage());
                    let (name, dir) = (scene.registry.name("it:other"), point.path().to_str().expect("a plain path"));
                    scene.ocifs.run(["mount", "--wait", "--profile-until=0", &name, dir]).ok();
                    scene.ocifs.umount(&point);
                }
            });
            while !other.is_finished() {
                read_all(&scene.root(), &scene.files, scene.seed, plan);
            }
            read_all(&scene.root(), &scene.files, scene.seed, plan);
            other.join().expect("another image can be mounted");
        });
        assert!(scene.usage()["files"]["count"].as_u64() < Some(count), "{}", scene.usage());
        scene.compare();
        assert_eq!(scene.ocifs.run(["cache", "verify"]).code(), 0);
    }
}

/// Lets one request for a blob in `count` fail, each in one of several ways; returns how many did.
fn fail(scene: &Scene, count: u64) -> Arc<AtomicU64> {
    let (asked, failed) = (AtomicU64::new(0), Arc::new(AtomicU64::new(0)));
    let counted = Arc::clone(&failed);
    let seed = scene.seed;
    scene.registry.set_faults(move |request: &Request| {
        if !matches!(request.endpoint, Endpoint::Blob { .. }) {
            return None;
        }
        // One in every `count` in a row, somewhere: never so many together that attempts run out.
        let number = asked.fetch_add(1, Ordering::Relaxed);
        if number % count != (seed + number / count) % count {
            return None;
        }
        Some(match counted.fetch_add(1, Ordering::Relaxed) % 4 {
            0 => Fault::status(500),
            1 => Fault::Reset { after: 3000 },
            2 => Fault::Truncate { after: 20_000 },
            _ => {
                let range = request.headers.get("range").and_then(|range| range.to_str().ok());
                let first = range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-')?.0.parse().ok());
                Fault::Corrupt { offset: first.unwrap_or(0) + 1000 }
            }
        })
    });
    failed
}

#[test]
fn a_registry_that_fails_one_request_in_ten_fails_no_reader() {
    for mut scene in scenes(6) {
        // Several times, because requests are few when ranges are long.
        let mut failed = 0;
        for round in 0..3 {
            let faults = fail(&scene, 10);
            scene.remount_cold(&["--fill=off"]);
            // Whatever failed would be read again, so that a wrong byte is found behind it; but nothing should.
            let plan = Plan {
                threads: 8,
                rounds: 1,
                ways: &[Way::Whole, Way::Parts, Way::Direct],
                forgets: false,
                patience: Duration::from_secs(60),
            };
            let errors = read_all(&scene.root(), &scene.files, scene.seed + round, plan);
            scene.compare();
            assert_eq!(errors, 0, "one fault at a time is made good");
            failed += faults.load(Ordering::Relaxed);
        }
        assert!(failed > 0, "no request failed");

        // The same on a machine that has no index yet, with maps, to which a failure would be a signal, and with fill beside them.
        scene.ocifs.umount(&scene.point);
        scene.ocifs = Ocifs::new();
        scene.point = scene.ocifs.mount_point("m");
        let faults = fail(&scene, 10);
        scene.mount(&["--fill=idle"]);
        assert!(faults.load(Ordering::Relaxed) > 0, "no request of the first contact failed");
        scene.compare();
        scene.remount_cold(&["--fill=idle"]);
        scene.read(8, &ALL);
        scene.compare();
        scene.registry.clear_faults();
        assert_eq!(scene.ocifs.run(["cache", "verify"]).code(), 0, "nothing wrong was kept");
    }
}
