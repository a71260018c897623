//! The size of the cache through the program: where it is set, where it is shown, and what goes when it is reached.

use std::time::{Duration, Instant};

use ocifs::demo::registry::Content;
use serde_json::Value;

use crate::damage::files_below;
use crate::support::{
    Compression, Embedded, Image, Layer, Mount, Ocifs, eventually, noise, require_fuse, require_root, run,
};

const MINUTE: Duration = Duration::from_secs(60);

/// Length of the one file of each image, which compresses to little more than a MiB.
const FILE: usize = 2 << 20;

/// An installation and a registry with the images `a`, `b` and `c`.
struct Bench {
    ocifs: Ocifs,
    registry: Embedded,
}

impl Bench {
    fn new() -> Option<Self> {
        if !require_fuse() || !require_root() {
            return None;
        }
        let content = Content::new();
        for tag in ["a", "b", "c"] {
            let layer = Layer::new().file(tag, noise(FILE, u64::from(tag.as_bytes()[0])));
            Image::new().layer(layer).to_content(&content, "team/app", tag);
        }
        Some(Self { ocifs: Ocifs::new(), registry: Embedded::start(content) })
    }

    fn mount(&self, size: &str, tag: &str) -> Mount {
        let point = self.ocifs.mount_point(tag);
        let reference = self.registry.name(&format!("team/app:{tag}"));
        let dir = point.path().to_str().expect("a plain path");
        self.ocifs.run(["mount", "--cache-size", size, "--wait", "--profile-until=0", &reference, dir]).ok();
        point
    }

    fn usage(&self) -> Value {
        self.ocifs.json(["cache", "du", "--json"])
    }

    /// Waits until the cache holds so many layers; eviction runs in the background.
    fn await_layers(&self, count: u64) {
        let begun = Instant::now();
        while self.usage()["blobs"]["count"] != count {
            assert!(begun.elapsed() < Duration::from_secs(60), "{}", self.usage());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn a_cache_that_is_full_loses_what_was_used_longest_ago_and_nothing_that_is_mounted() {
    let Some(bench) = Bench::new() else { return };
    // Room for two of the three images.
    let a = bench.mount("3M", "a");
    bench.ocifs.umount(&a);
    let b = bench.mount("3M", "b");
    assert_eq!(bench.usage()["blobs"]["count"], 2, "there is room for two");
    let c = bench.mount("3M", "c");
    bench.await_layers(2);
    let usage = bench.usage();
    assert!(usage["used"].as_u64() <= usage["limit"].as_u64(), "{usage}");
    assert_eq!(usage["limit"], 3 << 20);
    for (point, tag) in [(&b, "b"), (&c, "c")] {
        assert_eq!(std::fs::read(point.path().join(tag)).expect("it is here").len(), FILE);
        let status = bench.ocifs.status(point);
        assert_eq!(status["mounts"][0]["bytes_local"], status["mounts"][0]["bytes_needed"], "{tag} is mounted");
    }
    bench.ocifs.umount(&b);
    bench.ocifs.umount(&c);
    let text = bench.ocifs.run(["cache", "du"]).ok().stdout;
    assert!(text.lines().last().is_some_and(|line| line.ends_with(" of 3.0 MiB used")), "{text}");
}

#[test]
fn what_is_decoded_as_a_whole_counts_as_long_as_it_is_held() {
    let Some(bench) = Bench::new() else { return };
    let content = Content::new();
    // One frame that is too long for memory.
    let frame = Layer::new().file("f", crate::damage::prose(7, 40 << 20)).compressed(Compression::Zstd);
    Image::new().layer(frame).to_content(&content, "team/app", "frame");
    let registry = Embedded::start(content);
    let point = bench.ocifs.mount_point("m");
    let dir = point.path().to_str().expect("a plain path");
    bench.ocifs.run(["mount", "--profile-until=0", "--fill=off", &registry.name("team/app:frame"), dir]).ok();
    assert_eq!(bench.usage()["decoded"]["count"], 0, "nobody has read of it");
    let mut file = std::fs::File::open(point.path().join("f")).expect("a file");
    std::io::Read::read_exact(&mut file, &mut [0; 10]).expect("it is readable");
    let usage = bench.usage();
    let bytes = |part: &str| usage[part]["bytes"].as_u64().expect("a number");
    assert!(bytes("decoded") > 40 << 20 && bytes("decoded") < 41 << 20, "{usage}");
    assert!(usage["used"].as_u64() >= Some(bytes("decoded") + bytes("blobs")), "{usage}");
    drop(file);
    bench.ocifs.umount(&point);
    // A mount that comes soon would still find it, unless somebody wants the room.
    bench.ocifs.drop_bytes();
    eventually(MINUTE, "it is given up", || bench.usage()["decoded"]["bytes"] == 0);
}

#[test]
fn mounts_may_exceed_the_cache_and_what_is_too_much_goes_with_them() {
    let Some(bench) = Bench::new() else { return };
    let points = ["a", "b", "c"].map(|tag| bench.mount("1M", tag));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(bench.usage()["blobs"]["count"], 3, "a mount keeps what it uses");
    for point in &points {
        bench.ocifs.umount(point);
    }
    bench.await_layers(0);
}

#[test]
fn a_daemon_that_ends_soon_leaves_a_cache_within_its_size() {
    let Some(bench) = Bench::new() else { return };
    for tag in ["a", "b", "c"] {
        let _point = bench.mount("1M", tag);
        // With the mount, and before it would have come to it by itself.
        assert!(bench.ocifs.end_daemon(), "it ends when it is told to");
        let kept = files_below(&bench.ocifs.cache().join("blobs"));
        assert!(kept.is_empty(), "{tag}: {kept:?}");
    }
}

#[test]
fn a_daemon_of_another_size_is_told_once_a_command_and_an_unreadable_size_is_exit_code_2() {
    let Some(bench) = Bench::new() else { return };
    let point = bench.mount("64M", "a");
    let warning = "warning: the cache may grow to 64.0 MiB, not 1.0 GiB: its daemon was started so, and keeps that until \
                   it ends\n";
    let other = bench.ocifs.mount_point("other");
    let (reference, dir) = (bench.registry.name("team/app:b"), other.path().to_str().expect("a plain path"));
    let mut command = bench.ocifs.command(["mount", &reference, dir]);
    assert_eq!(run(command.env("OCIFS_CACHE_SIZE", "1G")).ok().stderr, warning);
    assert_eq!(bench.ocifs.run(["cache", "du", "--cache-size=1G"]).ok().stderr, warning);
    assert_eq!(bench.ocifs.run(["cache", "du", "--cache-size=64M"]).ok().stderr, "");
    assert_eq!(bench.ocifs.run(["cache", "du"]).ok().stderr, "", "who names no size gets the daemon's");
    bench.ocifs.umount(&other);
    bench.ocifs.umount(&point);

    let ran = bench.ocifs.run(["list", "--cache-size=20GB"]);
    assert!(ran.code() == 2 && ran.stderr.contains("write it as 500M or 20G"), "{}", ran.stderr);
    let ran = run(bench.ocifs.command(["list"]).env("OCIFS_CACHE_SIZE", "much"));
    let expected =
        "error: cannot use the value of $OCIFS_CACHE_SIZE\ncause: write it as 500M or 20G, in units of 1024\n";
    assert_eq!((ran.code(), ran.stderr.as_str()), (2, expected));
}
