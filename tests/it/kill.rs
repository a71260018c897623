//! SIGKILL: the daemon dies at any instant, and the next `ocifs mount` on the same directory serves the right tree and
//! asks for nothing again that was recorded before.
//!
//! Which bytes were recorded is read from the cache between death and resurrection; what is asked for afterwards, from
//! the registry's log.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use ocifs::demo::registry::Fault;
use ocifs::oci::{Digest, Hasher};
use ocifs::store::Store;
use rustix::process::{Signal, kill_process};

use crate::damage::{Dice, Files, copy_below, files_below, prose, published, read_all, wait_for_end};
use crate::support::{Built, Embedded, Mount, Ocifs, Tree, assert_same, require_fuse, require_root, temp_dir, walk};

/// What was answered this long before the kill must have been recorded.
const SETTLED: Duration = Duration::from_millis(400);

/// The image in a registry, how it looks, and a cache that was in use for a while.
struct Bench {
    registry: Embedded,
    built: Built,
    files: Files,
    tree: Tree,
    /// A cache with everything in it.
    cache: tempfile::TempDir,
}

/// What a cache has of each layer, and which documents.
struct Recorded {
    layers: BTreeMap<Digest, Vec<Range<u64>>>,
    documents: HashSet<String>,
}

impl Bench {
    fn new() -> Option<Self> {
        if !require_fuse() || !require_root() {
            return None;
        }
        let (content, built, files) = published();
        let registry = Embedded::start(content);
        let (ocifs, cache) = (Ocifs::new(), temp_dir());
        let point = ocifs.mount_point("m");
        ocifs.mount(&registry.name("team/app:1.0"), &point);
        read_all(point.path(), &files).expect("nothing is wrong yet");
        let tree = walk(point.path()).expect("nothing is wrong yet");
        ocifs.umount(&point);
        crate::damage::end_daemon(&ocifs);
        copy_below(&ocifs.cache(), cache.path());
        Some(Self { registry, built, files, tree, cache })
    }

    fn reference(&self) -> String {
        self.registry.name("team/app:1.0")
    }

    /// A new installation whose cache is a copy.
    fn with_cache(&self, drop_blobs: bool) -> Ocifs {
        let ocifs = Ocifs::new();
        copy_below(self.cache.path(), &ocifs.cache());
        fs::set_permissions(ocifs.cache(), fs::Permissions::from_mode(0o700)).expect("it is ours");
        if drop_blobs {
            let store = Store::open(&ocifs.cache()).expect("nobody else has it");
            store.drop_blobs(&HashSet::new()).expect("it can be emptied");
            store.drop_files().expect("it can be emptied");
        }
        ocifs
    }

    /// What the cache of a dead daemon holds.
    fn recorded(&self, cache: &Path) -> Recorded {
        let store = Store::open(cache).expect("the dead daemon's lock is gone");
        let mut layers = BTreeMap::new();
        for layer in &self.built.layers {
            let blob = store.blob(&layer.digest, layer.size).expect("it can be looked at");
            layers.insert(layer.digest, crate::damage::present(&blob.missing(0..layer.size), layer.size));
        }
        let documents = files_below(&cache.join("manifests")).into_iter();
        let name = |path: std::path::PathBuf| path.file_name().expect("it has one").to_string_lossy().replace('-', ":");
        Recorded { layers, documents: documents.map(name).collect() }
    }

    /// The byte ranges of layers that were asked for, and whether each was answered to its end before `deadline`.
    fn asked(&self, deadline: Option<Instant>) -> Vec<(Digest, Range<u64>, bool)> {
        let now = Instant::now();
        let requests = self.registry.requests();
        // The log counts from the start of the registry; the newest record gives a point both clocks know.
        let age = |ended: Duration| requests.iter().filter_map(|record| record.ended).max().map(|last| last - ended);
        let mut asked = Vec::new();
        for record in &requests {
            for layer in &self.built.layers {
                if record.request.path.ends_with(&layer.digest.to_string()) {
                    let range = record.request.range().map_or(0..layer.size, parse_range);
                    let long_ago = record
                        .ended
                        .and_then(age)
                        .is_some_and(|age| deadline.is_some_and(|deadline| age > SETTLED && now - age < deadline));
                    let whole = record.sent == range.end - range.start;
                    asked.push((layer.digest, range, long_ago && whole));
                }
            }
        }
        asked
    }

    /// Mounts again on the same directory and checks everything.
    #[track_caller]
    fn assert_recovers(&self, ocifs: &Ocifs, point: &Mount, recorded: &Recorded, what: &str) {
        self.registry.clear_faults();
        self.registry.forget_requests();
        let ran =
            ocifs.run(["mount".as_ref(), "--fill=off".as_ref(), self.reference().as_ref(), point.path().as_os_str()]);
        assert!(ran.status.success(), "{what}: {}", ran.stderr);
        read_all(point.path(), &self.files).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_same(&walk(point.path()).expect(what), &self.tree, |_, _| false);
        for (layer, asked, _) in self.asked(None) {
            for have in &recorded.layers[&layer] {
                let common = asked.start.max(have.start)..asked.end.min(have.end);
                assert!(common.is_empty(), "{what}: {asked:?} of {layer} asked for, but {have:?} was recorded");
            }
        }
        for record in self.registry.requests().iter().filter(|record| record.request.is_blob()) {
            let digest = record.request.path.rsplit('/').next().expect("a path");
            assert!(!recorded.documents.contains(digest), "{what}: {digest} is fetched twice");
        }
        ocifs.umount(point);
        assert!(!point.is_mounted(), "{what}: a mount stays below");
        assert!(ocifs.run(["cache", "verify"]).ok().stdout.ends_with(" good, 0 damaged\n"), "{what}");
        assert_eq!(files_below(&ocifs.cache().join("tmp")), Vec::<std::path::PathBuf>::new(), "{what}");
    }
}

impl Recorded {
    fn bytes(&self) -> u64 {
        self.layers.values().flatten().map(|range| range.end - range.start).sum()
    }

    fn has(&self, layer: &Digest, range: &Range<u64>) -> bool {
        self.layers[layer].iter().any(|have| have.start <= range.start && range.end <= have.end)
    }
}

/// `bytes=FIRST-LAST`.
fn parse_range(text: &str) -> Range<u64> {
    let (first, last) = text.strip_prefix("bytes=").and_then(|text| text.split_once('-')).expect("one range");
    first.parse().expect("a number")..last.parse::<u64>().expect("a number") + 1
}

fn start(ocifs: &Ocifs, args: &[&std::ffi::OsStr]) -> Child {
    let mut command = ocifs.command(args);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it runs")
}

/// Kills the daemon, which must be running.
fn kill_daemon(ocifs: &Ocifs, after: Duration) -> Instant {
    let pid = ocifs.daemon().expect("a daemon is running");
    std::thread::sleep(after);
    let killed = Instant::now();
    kill_process(pid, Signal::KILL).expect("it can be killed");
    wait_for_end(pid);
    killed
}

#[test]
fn a_daemon_killed_during_first_contact_leaves_bytes_that_are_not_fetched_twice() {
    let Some(bench) = Bench::new() else { return };
    let mut dice = Dice::new(1);
    let (mut kept, mut missed, mut settled) = (0, 0, 0);
    let total: u64 = bench.built.layers.iter().map(|layer| layer.size).sum();
    let large = bench.built.layers[0].digest.to_string();
    for round in 0..10 {
        let ocifs = Ocifs::new();
        let point = ocifs.mount_point("m");
        ocifs.run(["cache", "du"]).ok();
        bench.registry.forget_requests();
        let (slow, pause) = (large.clone(), Duration::from_millis(dice.below(120)));
        bench.registry.set_faults(move |asked| {
            let drip = Fault::Drip { bytes: 50_000, every: Duration::from_millis(20) };
            Some(if asked.path.ends_with(&slow) { drip } else { Fault::Delay(pause / 4) })
        });
        let pid = ocifs.daemon().expect("a daemon is running");
        let reference = bench.reference();
        let mut mounting =
            start(&ocifs, &["mount".as_ref(), "--fill=off".as_ref(), reference.as_ref(), point.path().as_os_str()]);
        let after = Duration::from_millis(dice.below(800));
        std::thread::sleep(after);
        let killed = Instant::now();
        kill_process(pid, Signal::KILL).expect("it can be killed");
        wait_for_end(pid);
        // It fails or not, depending on how far it came.
        let _ended = mounting.wait().expect("it ends");
        let what = format!("round {round}, killed after {after:?}");
        let asked = bench.asked(Some(killed));
        let recorded = bench.recorded(&ocifs.cache());
        for (layer, range, _) in asked.iter().filter(|(_, _, long_ago)| *long_ago) {
            assert!(recorded.has(layer, range), "{what}: {range:?} of {layer} came long before and is lost");
            settled += 1;
        }
        kept += u64::from(recorded.bytes() > 0);
        missed += u64::from(recorded.bytes() < total);
        bench.assert_recovers(&ocifs, &point, &recorded, &what);
    }
    assert!(kept > 2 && missed > 2 && settled > 0, "the instants did not spread: {kept}, {missed}, {settled}");
}

#[test]
fn a_daemon_killed_during_lazy_reads_leaves_spans_that_are_not_fetched_twice() {
    let Some(bench) = Bench::new() else { return };
    let mut dice = Dice::new(2);
    let (mut kept, mut missed) = (0, 0);
    for round in 0..10 {
        let ocifs = bench.with_cache(true);
        let point = ocifs.mount_point("m");
        bench.registry.clear_faults();
        bench.registry.forget_requests();
        ocifs.mount(&bench.reference(), &point);
        assert!(bench.asked(None).is_empty(), "a known image is mounted without its layers");
        let pause = Duration::from_millis(dice.below(25));
        bench.registry.set_faults(move |asked| {
            let drip = Fault::Drip { bytes: 60_000, every: Duration::from_millis(3) };
            asked.is_blob().then(|| Fault::Many(vec![Fault::Delay(pause), drip]))
        });
        let mut paths: Vec<_> = bench.files.keys().cloned().collect();
        for place in (1..paths.len()).rev() {
            paths.swap(place, usize::try_from(dice.below(place as u64 + 1)).expect("a small number"));
        }
        let (root, files) = (point.path().to_owned(), bench.files.clone());
        let reader = std::thread::spawn(move || {
            for path in paths {
                match fs::read(root.join(std::ffi::OsStr::from_bytes(&path))) {
                    Ok(bytes) => assert!(bytes == files[&path], "{} has wrong bytes", path.escape_ascii()),
                    Err(error) => return Some(error),
                }
            }
            None
        });
        let after = Duration::from_millis(dice.below(500));
        kill_daemon(&ocifs, after);
        let what = format!("round {round}, killed after {after:?}");
        let failed = reader.join().expect("no wrong byte was read, and no reader hangs");
        let codes = [rustix::io::Errno::NOTCONN, rustix::io::Errno::CONNABORTED, rustix::io::Errno::IO];
        let codes = codes.map(|errno| Some(errno.raw_os_error()));
        assert!(failed.as_ref().is_none_or(|error| codes.contains(&error.raw_os_error())), "{what}: {failed:?}");
        let recorded = bench.recorded(&ocifs.cache());
        kept += u64::from(recorded.bytes() > 0);
        missed += u64::from(failed.is_some());
        assert!(point.is_mounted(), "the dead mount is left to `ocifs mount`");
        bench.assert_recovers(&ocifs, &point, &recorded, &what);
    }
    assert!(kept > 2 && missed > 2, "the instants did not spread: {kept}, {missed}");
}

#[test]
fn a_daemon_killed_while_it_drops_the_cache_leaves_what_is_left_usable() {
    let Some(bench) = Bench::new() else { return };
    let mut dice = Dice::new(3);
    let (mut some, mut none) = (0, 0);
    {
        // Many files, so that dropping them takes a while.
        let store = Store::open(bench.cache.path()).expect("nobody else has it");
        for number in 0..1000 {
            let bytes = prose(number, 100);
            let mut hasher = Hasher::new(ocifs::oci::Algorithm::Sha256);
            hasher.update(&bytes);
            let Digest::Sha256(content) = hasher.finish() else { panic!("it is SHA-256") };
            let file = store.new_file(&content, bytes.len() as u64).expect("a file");
            file.write(0, &bytes).expect("it can be written");
            file.publish().expect("it is what it says");
        }
    }
    for round in 0..5 {
        let ocifs = bench.with_cache(false);
        let point = ocifs.mount_point("m");
        ocifs.run(["cache", "du"]).ok();
        let pid = ocifs.daemon().expect("a daemon is running");
        let mut dropping = start(&ocifs, &["cache".as_ref(), "drop".as_ref(), "--all".as_ref()]);
        let after = Duration::from_millis(dice.below(60));
        std::thread::sleep(after);
        kill_process(pid, Signal::KILL).expect("it can be killed");
        wait_for_end(pid);
        // It fails or not, depending on how far it came.
        let _ended = dropping.wait().expect("it ends");
        // A command that only got to its request after the kill has started another daemon.
        assert!(ocifs.end_daemon(), "it ends when it is told to");
        let left = files_below(&ocifs.cache().join("files")).len() + files_below(&ocifs.cache().join("trees")).len();
        some += u64::from(left > 0);
        none += u64::from(left < 1001);
        let recorded = bench.recorded(&ocifs.cache());
        bench.assert_recovers(
            &ocifs,
            &point,
            &recorded,
            &format!("round {round}, killed after {after:?}, {left} left"),
        );
    }
    assert!(some > 0 && none > 0, "the instants did not spread: {some}, {none}");
}
