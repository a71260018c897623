//! Fill through the program and real mounts: `mount --wait` returns when the image is complete, a complete image needs no
//! registry, and what cannot be completed is told.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ocifs::demo::registry::{Content, Fault};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::damage::{Files, files_below, flip, image, read_all};
use crate::support::{
    Built, Embedded, Image, Layer, Mount, Ocifs, Ran, noise, require, require_fuse, require_root, run,
};

/// A registry with an image whose indexes the cache has, and nothing else of it.
struct Bench {
    ocifs: Ocifs,
    point: Mount,
    registry: Embedded,
    files: Files,
    built: Built,
}

impl Bench {
    /// None, loudly, where nothing can be mounted.
    fn new() -> Option<Self> {
        let (image, files) = image();
        Self::with(&image, files)
    }

    fn with(image: &Image, files: Files) -> Option<Self> {
        if !require_fuse() || !require_root() {
            return None;
        }
        let content = Content::new();
        let built = image.to_content(&content, "team/app", "1.0");
        let ocifs = Ocifs::new();
        let bench = Self { point: ocifs.mount_point("m"), ocifs, registry: Embedded::start(content), files, built };
        bench.ocifs.mount(&bench.reference(), &bench.point);
        bench.ocifs.umount(&bench.point);
        bench.ocifs.drop_bytes();
        assert!(bench.ocifs.end_daemon(), "it ends when it is told to");
        bench.registry.forget_requests();
        Some(bench)
    }

    fn reference(&self) -> String {
        self.registry.name("team/app:1.0")
    }

    fn pinned(&self) -> String {
        format!("{}@{}", self.registry.name("team/app"), self.built.manifest.digest)
    }

    fn mount(&self, args: &[&str]) -> Ran {
        self.ocifs.run([&["mount", "--profile-until=0"], args, &[&self.dir()]].concat())
    }

    fn dir(&self) -> String {
        self.point.path().to_str().expect("a plain path").to_owned()
    }

    fn status(&self) -> Value {
        self.ocifs.status(&self.point)["mounts"][0].clone()
    }

    fn read_all(&self) {
        read_all(self.point.path(), &self.files).expect("everything is there");
    }

    /// Waits until status tells of this state of filling.
    fn await_state(&self, state: &str) {
        let begun = Instant::now();
        while self.status()["filling"]["state"] != state {
            assert!(begun.elapsed() < Duration::from_secs(60), "it does not become {state}: {}", self.status());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Panics unless the command failed with this code, and told this error, this cause, and that the mount stays.
#[track_caller]
fn assert_incomplete(bench: &Bench, ran: &Ran, code: i32, cause: &str) {
    assert_eq!((ran.code(), ran.stdout.as_str()), (code, ""), "{}", ran.stderr);
    let mut lines = ran.stderr.lines().skip_while(|line| line.starts_with("warning: "));
    assert!(lines.next().is_some_and(|line| line.starts_with("error: cannot complete 127.0.0.1:")), "{}", ran.stderr);
    assert!(ran.stderr.lines().any(|line| line.starts_with("cause: ") && line.contains(cause)), "{}", ran.stderr);
    let stays = format!("{} stays mounted; `ocifs status ", bench.dir());
    assert!(ran.stderr.lines().any(|line| line.starts_with("hint: ") && line.contains(&stays)), "{}", ran.stderr);
    assert!(bench.point.is_mounted());
}

#[test]
fn a_mount_that_was_waited_for_is_complete_and_needs_its_registry_never_again() {
    let Some(bench) = Bench::new() else { return };
    let ran = bench.mount(&["--wait", &bench.reference()]).ok();
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("", ""), "nothing is written to a pipe");
    let status = bench.status();
    assert_eq!(status["filling"], json!({ "state": "complete", "error": null }));
    assert_eq!((&status["fill"], &status["bytes_local"]), (&json!("now"), &status["bytes_needed"]));
    let partial = files_below(&bench.ocifs.cache().join("blobs"));
    let partial: Vec<_> = partial.iter().filter(|path| path.extension().is_some()).collect();
    assert!(partial.is_empty(), "a blob was not verified as a whole: {partial:?}");
    bench.ocifs.umount(&bench.point);
    assert!(bench.ocifs.end_daemon(), "nothing of it stays in memory");

    let (pinned, registry) = (bench.pinned(), bench.registry.addr());
    let Bench { ocifs, point, registry: server, files, .. } = bench;
    drop(server);
    assert!(std::net::TcpStream::connect(registry).is_err(), "the registry is gone");
    for args in [&["mount"][..], &["mount", "--offline"], &["mount", "--wait"], &["mount", "--wait", "--offline"]] {
        ocifs.run([args, &[&pinned, point.path().to_str().expect("a plain path")]].concat()).ok();
        read_all(point.path(), &files).expect("everything is there");
        assert_eq!(ocifs.status(&point)["mounts"][0]["bytes_fetched"], 0);
        ocifs.umount(&point);
    }
}

#[test]
fn waiting_without_filling_or_in_the_foreground_is_a_usage_error() {
    let ocifs = Ocifs::new();
    let ran = ocifs.run(["mount", "--wait", "--fill=off", "debian", "/nowhere"]);
    assert_eq!(ran.code(), 2);
    assert_eq!(
        ran.stderr,
        "error: cannot use --wait with --fill off\ncause: a mount that is not filled is never complete\n\
         hint: leave out one of them\n"
    );
    let ran = ocifs.run(["mount", "--wait", "--foreground", "debian", "/nowhere"]);
    assert!(ran.code() == 2 && ran.stderr.contains("--foreground"), "{}", ran.stderr);
    assert!(!ocifs.cache().exists(), "no daemon was started for it");
}

#[test]
fn an_offline_mount_that_is_waited_for_names_what_is_missing() {
    let Some(bench) = Bench::new() else { return };
    let ran = bench.mount(&["--wait", "--offline", &bench.reference()]);
    assert_incomplete(&bench, &ran, 5, "of 6 layers are not in the cache");
    let missing: u64 = bench.built.layers.iter().map(|layer| layer.size).sum();
    assert_eq!(bench.registry.requests().len(), 0);
    for layer in &bench.built.layers {
        assert!(ran.stderr.contains(&format!("cause: layer {} lacks ", layer.digest)), "{}", ran.stderr);
    }
    let status = bench.status();
    assert_eq!((&status["filling"]["state"], &status["bytes_needed"]), (&json!("failed"), &json!(missing)));
    bench.ocifs.umount(&bench.point);
}

#[test]
fn a_layer_that_its_source_has_lost_fails_the_waiting_and_status_says_so() {
    let Some(bench) = Bench::new() else { return };
    let lost = bench.built.layers[1].digest;
    bench.registry.content().remove_blob(&lost);
    let ran = bench.mount(&["--wait", &bench.reference()]);
    assert_incomplete(&bench, &ran, 3, &lost.to_string());
    bench.await_state("failed");
    let status = bench.status();
    assert!(status["filling"]["error"].as_str().expect("a text").contains(&lost.to_string()), "{status}");
    let text = bench.ocifs.run(["status", &bench.dir()]).ok().stdout;
    assert!(text.contains("  fill       now, failed: "), "{text}");
    let whole = status["layers"].as_array().expect("layers").iter().filter(|layer| layer["local"] == layer["size"]);
    assert_eq!(whole.count(), bench.built.layers.len() - 1, "the other layers are completed all the same: {status}");
    bench.ocifs.umount(&bench.point);
}

#[test]
fn a_registry_that_is_away_fails_the_waiting_but_not_the_fill() {
    let Some(bench) = Bench::new() else { return };
    bench.registry.set_faults(|asked| asked.is_blob().then(|| Fault::status(503)));
    let ran = bench.mount(&["--wait", &bench.reference()]);
    assert_incomplete(&bench, &ran, 5, "503");
    let state = bench.status()["filling"]["state"].clone();
    assert!(state == "waiting" || state == "running", "{state}");
    bench.registry.clear_faults();
    bench.read_all();
    bench.ocifs.umount(&bench.point);
}

#[test]
fn a_layer_with_a_wrong_digest_is_fetched_again_once() {
    let Some(bench) = Bench::new() else { return };
    let layer = bench.built.layers[0].clone();
    let lied = std::sync::atomic::AtomicBool::new(false);
    let name = layer.digest.to_string();
    bench.registry.set_faults(move |asked| {
        let lies = asked.path.ends_with(&name) && !lied.swap(true, std::sync::atomic::Ordering::SeqCst);
        // The answer that has them is one of several.
        lies.then(|| Fault::Many((0..3_000_000).step_by(1000).map(|offset| Fault::Corrupt { offset }).collect()))
    });
    bench.mount(&["--wait", &bench.reference()]).ok();
    assert!(bench.status()["layers"][0]["fetched"].as_u64() > Some(layer.size), "{}", bench.status());
    bench.read_all();
    bench.ocifs.umount(&bench.point);
}

#[test]
fn a_layer_that_is_wrong_at_its_source_is_given_up_and_told() {
    let Some(bench) = Bench::new() else { return };
    let name = bench.built.layers[0].digest.to_string();
    let cause = format!("layer {name}: the bytes 0-");
    bench.registry.set_faults(move |asked| asked.path.ends_with(&name).then_some(Fault::Corrupt { offset: 50 }));
    let ran = bench.mount(&["--wait", &bench.reference()]);
    assert_incomplete(&bench, &ran, 6, &cause);
    bench.await_state("failed");
    bench.registry.clear_faults();
    bench.read_all();
    bench.ocifs.umount(&bench.point);
}

#[test]
fn bytes_that_rotted_in_the_cache_are_replaced_before_a_layer_counts_as_complete() {
    let Some(bench) = Bench::new() else { return };
    bench.mount(&["--fill=off", &bench.reference()]).ok();
    bench.read_all();
    bench.ocifs.umount(&bench.point);
    assert!(bench.ocifs.end_daemon(), "it ends when it is told to");
    let partial = files_below(&bench.ocifs.cache().join("blobs"));
    let partial: Vec<_> =
        partial.iter().filter(|path| path.extension().is_some_and(|kind| kind == "partial")).collect();
    assert!(!partial.is_empty(), "reading alone completes nothing");
    for path in partial {
        flip(path, 40, 1);
    }
    bench.mount(&["--wait", &bench.reference()]).ok();
    bench.read_all();
    bench.ocifs.umount(&bench.point);
    assert!(bench.ocifs.run(["cache", "verify"]).ok().stdout.ends_with(" good, 0 damaged\n"));
}

#[test]
fn ctrl_c_while_it_waits_leaves_the_mount_in_place() {
    let image = Image::new().layer(Layer::new().file("large", noise(4 << 20, 1)));
    let Some(bench) = Bench::with(&image, Files::new()) else { return };
    let drip = Fault::Drip { bytes: 1000, every: Duration::from_millis(50) };
    bench.registry.set_faults(move |asked| asked.is_blob().then(|| drip.clone()));
    let mut command = bench.ocifs.command(["mount", "--wait", &bench.reference(), &bench.dir()]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it runs");
    let begun = Instant::now();
    while !bench.point.is_mounted() || bench.ocifs.json(["list", "--json"])[0]["filling"]["state"] != "running" {
        assert!(begun.elapsed() < Duration::from_secs(60), "it is not mounted after a minute");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(200));
    assert!(child.try_wait().expect("it can be asked").is_none(), "it waits");
    kill_process(Pid::from_child(&child), Signal::INT).expect("it can be interrupted");
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
    assert_eq!(bench.status()["filling"]["state"], "running");
    bench.registry.clear_faults();
    assert_eq!(fs::read_dir(bench.point.path()).expect("it is served").count(), 1);
    bench.ocifs.umount(&bench.point);
}

#[test]
fn who_waits_at_a_terminal_sees_how_far_it_is_and_no_more_of_it_afterwards() {
    if !require(&["script"]) {
        return;
    }
    let image = Image::new().layer(Layer::new().file("large", noise(2 << 20, 1)));
    let Some(bench) = Bench::with(&image, Files::new()) else { return };
    let drip = Fault::Drip { bytes: 100_000, every: Duration::from_millis(100) };
    bench.registry.set_faults(move |asked| asked.is_blob().then(|| drip.clone()));
    let mount = bench.ocifs.command(["mount", "--wait", &bench.reference(), &bench.dir()]);
    let words: Vec<_> = [mount.get_program()].into_iter().chain(mount.get_args()).map(OsStr::to_string_lossy).collect();
    let mut terminal = Command::new("script");
    terminal.env_clear().envs(mount.get_envs().filter_map(|(name, value)| Some((name, value?))));
    terminal.args(["-q", "-e", "-c", &format!("stty cols 120; exec {}", words.join(" ")), "/dev/null"]);
    let shown = run(terminal.env("TERM", "xterm").stdin(Stdio::null())).ok().stdout;
    let states: Vec<_> = shown.split('\r').filter(|state| state.contains(" of 1 layer")).collect();
    assert!(states.len() > 2 && states[0] != states[states.len() - 1], "it moves: {shown:?}");
    assert!(states.iter().any(|state| state.contains("B/s")), "{shown:?}");
    let last = shown.trim_end_matches(['\n', '\r']).rsplit("\u{1b}[2K").next();
    assert!(last.is_some_and(|last| !last.contains(" of 1 layer")), "the line is taken away: {shown:?}");
    assert_eq!(bench.status()["filling"]["state"], "complete");
    bench.ocifs.umount(&bench.point);
}

/// How often the byte of a blob was asked for that was asked for most, and all that was asked for.
fn most_asked_for(registry: &Embedded) -> (usize, Vec<(u64, u64)>) {
    let range = |text: &str| {
        let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    };
    let requests = registry.requests();
    let asked = requests.iter().filter_map(|record| range(record.request.headers.get("range")?.to_str().ok()?));
    let ranges: Vec<(u64, u64)> = asked.collect();
    let count = |at: u64| ranges.iter().filter(|(first, last)| (*first..=*last).contains(&at)).count();
    // Neighbouring spans share the bytes at their ends.
    (ranges.iter().map(|(first, last)| count(first.midpoint(*last))).max().unwrap_or(0), ranges)
}

#[test]
fn a_fill_without_room_in_the_cache_says_so_and_goes_on_when_there_is_some() {
    if !require_fuse() || !require_root() {
        return;
    }
    let content = Content::new();
    // It compresses to half.
    let bytes = noise(8 << 20, 1);
    Image::new().layer(Layer::new().file("noise", bytes.clone())).to_content(&content, "team/app", "1.0");
    let registry = Embedded::start(content);
    let ocifs = Ocifs::new();
    fs::create_dir(ocifs.cache()).expect("a directory");
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("none", ocifs.cache(), "tmpfs", flags, Some(c"size=7m,mode=0700")).expect("root may");
    ocifs.run(["cache", "du"]).ok();
    let ballast = ocifs.cache().join("ballast");
    fs::write(&ballast, vec![1; 4 << 20]).expect("it has room");
    let point = ocifs.mount_point("m");
    let dir = point.path().to_str().expect("a plain path");
    let args = ["mount", "--profile-until=0", "--wait", &registry.name("team/app:1.0"), dir];
    let ran = ocifs.run(args);
    assert_eq!(ran.code(), 9, "{}", ran.stderr);
    assert!(ran.stderr.contains("cause: the cache has no room for the rest of layer sha256:"), "{}", ran.stderr);
    assert!(ran.stderr.contains(" are free on the file system of "), "{}", ran.stderr);
    let status = || ocifs.status(&point)["mounts"][0]["filling"].clone();
    assert_eq!(status()["state"], "waiting", "{}", status());
    let (most, ranges) = most_asked_for(&registry);
    assert!(most <= 2, "for the index, and to find out that there is no room: {ranges:?}");

    fs::remove_file(ballast).expect("it is there");
    let begun = Instant::now();
    while status() != json!({ "state": "complete", "error": null }) {
        assert!(begun.elapsed() < Duration::from_secs(60), "it does not go on: {}", status());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(fs::read(point.path().join("noise")).expect("it is there") == bytes);
}

/// A directory that takes nothing, until this is dropped.
struct ReadOnly<'a>(&'a Path);

impl<'a> ReadOnly<'a> {
    fn new(dir: &'a Path) -> Self {
        rustix::mount::mount_bind(dir, dir).expect("root may");
        let read_only = Self(dir);
        let flags = rustix::mount::MountFlags::BIND | rustix::mount::MountFlags::RDONLY;
        rustix::mount::mount_remount(dir, flags, c"").expect("root may");
        read_only
    }
}

impl Drop for ReadOnly<'_> {
    fn drop(&mut self) {
        rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH).expect("it is ours");
    }
}

#[test]
fn a_fill_whose_bytes_the_cache_did_not_take_though_it_has_room_goes_on_when_it_takes_them() {
    let Some(bench) = Bench::new() else { return };
    // What another mount has open needs nothing of the directory before it is written to.
    let other = bench.ocifs.mount_point("other");
    let dir = other.path().to_str().expect("a plain path");
    bench.ocifs.run(["mount", "--fill=off", "--profile-until=0", &bench.reference(), dir]).ok();
    let blobs = bench.ocifs.cache().join("blobs");
    let refusing = ReadOnly::new(&blobs);
    let ran = bench.mount(&["--wait", &bench.reference()]);
    assert_incomplete(&bench, &ran, 9, "cannot ");
    assert_eq!(bench.status()["filling"]["state"], "waiting", "{}", bench.status());
    drop(refusing);
    bench.await_state("complete");
    bench.read_all();
    bench.ocifs.umount(&bench.point);
    bench.ocifs.umount(&other);
}

#[test]
fn a_mount_whose_cache_directory_was_removed_is_filled_again() {
    let Some(bench) = Bench::new() else { return };
    bench.mount(&["--wait", &bench.reference()]).ok();
    let local = || bench.status()["bytes_local"].clone();
    assert_eq!(local(), bench.status()["bytes_needed"]);
    fs::rename(bench.ocifs.cache(), bench.ocifs.home().join("gone")).expect("its user may");
    bench.ocifs.run(["cache", "du"]).ok();
    let begun = Instant::now();
    while local() != bench.status()["bytes_needed"] || files_below(&bench.ocifs.cache().join("blobs")).is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it is not filled: {}", bench.status());
        std::thread::sleep(Duration::from_millis(20));
    }
    bench.read_all();
    bench.ocifs.umount(&bench.point);
}
