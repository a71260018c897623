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

use crate::damage::{Dice, Files, copy_below, files_below, prose, published, read_all};
use crate::support::{
    Built, Embedded, Mount, Ocifs, Tree, assert_same, require_fuse, require_root, temp_dir, wait_for_end, walk,
};

/// Longest that anything here may take on a busy machine.
const LONG: Duration = Duration::from_secs(60);

/// Rounds until the instants have spread, whatever the machine does meanwhile.
const ROUNDS: usize = 60;

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

    /// What a living daemon has recorded so far, as a copy of its files tells.
    fn recorded_so_far(&self, cache: &Path) -> Recorded {
        let begun = Instant::now();
        loop {
            let copy = temp_dir();
            let mut files = files_below(&cache.join("blobs"));
            files.extend(["version", "CACHEDIR.TAG"].map(|name| cache.join(name)));
            // The map of a blob before its bytes: it may tell of fewer than there are.
            files.sort_by_key(|path| path.extension().is_none_or(|kind| kind != "map"));
            let copies = files.iter().try_for_each(|path| {
                let target = copy.path().join(path.strip_prefix(cache).expect("it is below"));
                fs::create_dir_all(target.parent().expect("it has one"))?;
                fs::copy(path, target).map(drop)
            });
            match copies {
                Ok(()) => {
                    fs::create_dir_all(copy.path().join("manifests")).expect("a directory");
                    return self.recorded(copy.path());
                }
                // It was renamed meanwhile.
                Err(error) => assert!(begun.elapsed() < LONG, "the cache cannot be copied: {error}"),
            }
        }
    }

    /// Waits until everything that was answered to its end is recorded; what that is.
    #[track_caller]
    fn settle(&self, ocifs: &Ocifs) -> Vec<(Digest, Range<u64>)> {
        let answered: Vec<_> = self.asked().into_iter().filter(|(_, _, whole)| *whole).collect();
        let answered: Vec<_> = answered.into_iter().map(|(layer, range, _)| (layer, range)).collect();
        let begun = Instant::now();
        loop {
            let recorded = self.recorded_so_far(&ocifs.cache());
            let Some((layer, range)) = answered.iter().find(|(layer, range)| !recorded.has(layer, range)) else {
                return answered;
            };
            assert!(begun.elapsed() < LONG, "{range:?} of {layer} came long ago and is not recorded");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The byte ranges of layers that were asked for, and whether each was answered to its end.
    fn asked(&self) -> Vec<(Digest, Range<u64>, bool)> {
        let mut asked = Vec::new();
        for record in &self.registry.requests() {
            for layer in &self.built.layers {
                if record.request.path.ends_with(&layer.digest.to_string()) {
                    let range = record.request.range().map_or(0..layer.size, parse_range);
                    let whole = record.ended.is_some() && record.sent == range.end - range.start;
                    asked.push((layer.digest, range, whole));
                }
            }
        }
        asked
    }

    /// Bytes of layers that were sent.
    fn sent(&self) -> u64 {
        self.registry.requests().iter().filter(|record| record.request.is_blob()).map(|record| record.sent).sum()
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
        for (layer, asked, _) in self.asked() {
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
        ocifs.await_no_temporary(what);
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

/// Waits for an instant to kill at: so far has something come, or it is over.
#[track_caller]
fn await_instant(mut is_there: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_there() {
        assert!(begun.elapsed() < LONG, "it does not come so far");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// How many files are below a directory that somebody empties.
fn count_below(directory: &Path) -> usize {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { count_below(&entry.path()) } else { 1 }).sum()
}

#[test]
fn a_daemon_killed_during_first_contact_leaves_bytes_that_are_not_fetched_twice() {
    let Some(bench) = Bench::new() else { return };
    let mut dice = Dice::new(1);
    let (mut kept, mut missed, mut settled) = (0, 0, 0);
    let total: u64 = bench.built.layers.iter().map(|layer| layer.size).sum();
    let large = bench.built.layers[0].digest.to_string();
    let mut round = 0;
    while round < 10 || (round < ROUNDS && (kept < 3 || missed < 3 || settled == 0)) {
        round += 1;
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
        let after = 1 + dice.below(total);
        await_instant(|| bench.sent() >= after || mounting.try_wait().expect("it is ours").is_some());
        let answered = if round % 2 == 0 { bench.settle(&ocifs) } else { Vec::new() };
        kill_process(pid, Signal::KILL).expect("it can be killed");
        wait_for_end(pid);
        // It fails or not, depending on how far it came.
        let _ended = mounting.wait().expect("it ends");
        let what = format!("round {round}, killed after {after} bytes");
        let recorded = bench.recorded(&ocifs.cache());
        for (layer, range) in &answered {
            assert!(recorded.has(layer, range), "{what}: {range:?} of {layer} was recorded before and is lost");
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
    let mut round = 0;
    while round < 10 || (round < ROUNDS && (kept < 3 || missed < 3)) {
        round += 1;
        let ocifs = bench.with_cache(true);
        let point = ocifs.mount_point("m");
        bench.registry.clear_faults();
        bench.registry.forget_requests();
        ocifs.mount(&bench.reference(), &point);
        assert!(bench.asked().is_empty(), "a known image is mounted without its layers");
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
        let pid = ocifs.daemon().expect("a daemon is running");
        let after = usize::try_from(dice.below(12)).expect("a small number");
        await_instant(|| bench.asked().len() >= after || reader.is_finished());
        std::thread::sleep(Duration::from_millis(dice.below(30)));
        kill_process(pid, Signal::KILL).expect("it can be killed");
        wait_for_end(pid);
        let what = format!("round {round}, killed after {after} requests");
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
    let mut round = 0;
    while round < 5 || (round < ROUNDS && (some == 0 || none == 0)) {
        round += 1;
        let ocifs = bench.with_cache(false);
        let left = || count_below(&ocifs.cache().join("files")) + count_below(&ocifs.cache().join("trees"));
        let all = left();
        let point = ocifs.mount_point("m");
        ocifs.run(["cache", "du"]).ok();
        let pid = ocifs.daemon().expect("a daemon is running");
        let mut dropping = start(&ocifs, &["cache".as_ref(), "drop".as_ref(), "--all".as_ref()]);
        let after = usize::try_from(dice.below(all as u64 / 2)).expect("a small number");
        await_instant(|| left() < all - after || dropping.try_wait().expect("it is ours").is_some());
        kill_process(pid, Signal::KILL).expect("it can be killed");
        wait_for_end(pid);
        // It fails or not, depending on how far it came.
        let _ended = dropping.wait().expect("it ends");
        // A command that only got to its request after the kill has started another daemon.
        assert!(ocifs.end_daemon(), "it ends when it is told to");
        let left = left();
        some += u64::from(left > 0);
        none += u64::from(left < all);
        let recorded = bench.recorded(&ocifs.cache());
        bench.assert_recovers(
            &ocifs,
            &point,
            &recorded,
            &format!("round {round}, killed after {after} files, {left} left"),
        );
    }
    assert!(some > 0 && none > 0, "the instants did not spread: {some}, {none}");
}
