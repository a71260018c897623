//! A registry that is away, through the program and real mounts: readers outlast it as long as their mount says, everything
//! goes on by itself when it is back, and what the cache has needs no registry.
//!
//! The registry really goes: its port refuses connections, until another one listens there.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use ocifs::demo::registry::{Content, Endpoint, Fault, Registry};
use rustix::fs::{Advice, fadvise};
use rustix::io::Errno;
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::damage::{Files, published, read_all};
use crate::support::{Built, Mount, Ocifs, Ran, require_fuse, require_root};

/// A registry that comes and goes at one address, and mounts of its image whose indexes are in the cache.
struct Bench {
    ocifs: Ocifs,
    point: Mount,
    content: Content,
    addr: SocketAddr,
    registry: Option<Registry>,
    runtime: Runtime,
    files: Files,
    built: Built,
}

/// Longest that what ought to happen by itself may take on a busy machine: a try every four seconds, and what it does.
const SOON: Duration = Duration::from_secs(60);

impl Bench {
    /// None, loudly, where nothing can be mounted.
    fn new() -> Option<Self> {
        if !require_fuse() || !require_root() {
            return None;
        }
        let (content, built, files) = published();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a thread can be started");
        let registry = runtime.block_on(Registry::start_at(address(), content.clone())).expect("a port is free");
        let (addr, ocifs) = (registry.addr(), Ocifs::new());
        let point = ocifs.mount_point("m");
        let bench = Self { ocifs, point, content, addr, registry: Some(registry), runtime, files, built };
        bench.ocifs.mount(&bench.reference(), &bench.point);
        bench.ocifs.umount(&bench.point);
        bench.ocifs.drop_bytes();
        assert!(bench.ocifs.end_daemon(), "it ends when it is told to");
        Some(bench)
    }

    fn reference(&self) -> String {
        format!("{}/team/app:1.0", self.addr)
    }

    fn mount_at(&self, options: &[&str], point: &Mount) -> Ran {
        let fixed = ["mount", "--profile-until=0"];
        let reference = self.reference();
        let all = fixed.iter().chain(options).copied().chain([reference.as_str()]).map(OsStr::new);
        self.ocifs.run(all.chain([point.path().as_os_str()]))
    }

    fn mount(&self, options: &[&str]) -> Ran {
        self.mount_at(options, &self.point)
    }

    fn goes(&mut self) {
        let registry = self.registry.take().expect("it is there");
        self.runtime.block_on(registry.stop());
    }

    fn comes_back(&mut self) -> Instant {
        let registry = self.runtime.block_on(Registry::start_at(self.addr, self.content.clone()));
        self.registry = Some(registry.expect("the port is free again"));
        Instant::now()
    }

    fn status(&self) -> Value {
        self.ocifs.status(&self.point)["mounts"][0].clone()
    }

    /// Waits until status shows, or does not show, an outage; returns it.
    fn await_outage(&self, is_away: bool) -> Value {
        let begun = Instant::now();
        loop {
            let outage = self.status()["outage"].clone();
            if outage.is_object() == is_away {
                return outage;
            }
            assert!(begun.elapsed() < SOON, "{outage}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A file of several spans, what it holds, and processes that read it.
    fn path(&self, point: &Mount) -> (PathBuf, &[u8]) {
        let (path, bytes) = self.files.iter().max_by_key(|(_, bytes)| bytes.len()).expect("there are files");
        (point.path().join(OsStr::new(std::str::from_utf8(path).expect("a plain name"))), bytes)
    }

    fn cat(&self, point: &Mount) -> Child {
        let mut cat = Command::new("cat");
        cat.arg(self.path(point).0).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("cat can be run")
    }
}

/// A place on loopback that no other test or program takes while the registry is away from it: an address of its own.
fn address() -> SocketAddr {
    static GIVEN: AtomicU8 = AtomicU8::new(2);
    let [.., high, low] = std::process::id().to_be_bytes();
    (Ipv4Addr::new(127, high, low, GIVEN.fetch_add(1, Ordering::Relaxed)), 0).into()
}

/// Waits for the end of `child`; panics if it takes longer.
#[track_caller]
fn ends_within(child: &mut Child, patience: Duration) {
    let begun = Instant::now();
    while child.try_wait().expect("it can be waited for").is_none() {
        assert!(begun.elapsed() < patience, "it goes on for {:?}", begun.elapsed());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn an_answer_that_stalls_is_asked_for_again_long_before_its_time_is_over() {
    let Some(bench) = Bench::new() else { return };
    let layers: Vec<_> = bench.built.layers.iter().map(|layer| layer.digest.to_string()).collect();
    bench.mount(&["--fill=off", "--on-outage=eio"]).ok();
    let registry = bench.registry.as_ref().expect("it is there");
    let stalled = Arc::new(AtomicU8::new(0));
    let count = Arc::clone(&stalled);
    registry.set_faults(move |request| {
        let Endpoint::Blob { digest, .. } = &request.endpoint else { return None };
        let is_first = layers.contains(digest) && count.fetch_add(1, Ordering::Relaxed) == 0;
        is_first.then_some(Fault::Stall { after: 1000 })
    });
    let (path, expected) = bench.path(&bench.point);
    let begun = Instant::now();
    assert!(fs::read(path).expect("the second answer has it") == expected);
    // A connection counts as dead after half a minute.
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert!(stalled.load(Ordering::Relaxed) > 1);
    registry.clear_faults();
}

#[test]
fn readers_outlast_an_outage_and_go_on_by_themselves() {
    let Some(mut bench) = Bench::new() else { return };
    bench.mount(&["--fill=off"]).ok();
    assert_eq!((&bench.status()["on_outage"], &bench.status()["outage"]), (&"wait:5m".into(), &Value::Null));
    bench.goes();
    let mut readers: Vec<_> = (0..8).map(|_| bench.cat(&bench.point)).collect();
    let number = |outage: &Value, name: &str| outage[name].as_u64().expect("a number");
    let begun = Instant::now();
    let outage = loop {
        let outage = bench.await_outage(true);
        if number(&outage, "seconds") >= 2 && number(&outage, "waiting") >= 2 {
            break outage;
        }
        assert!(begun.elapsed() < SOON, "{outage}");
        std::thread::sleep(Duration::from_millis(100));
    };
    assert_eq!(outage["host"], bench.addr.to_string());
    assert!(outage["error"].as_str().is_some_and(|error| error.contains("connection refused")), "{outage}");
    assert!((150..300).contains(&number(&outage, "fails_in")), "{outage}");
    let text = bench.ocifs.run([OsStr::new("status"), bench.point.path().as_os_str()]).ok().stdout;
    assert!(text.contains(&format!("  outage     {} has not answered for ", bench.addr)), "{text}");
    assert!(readers.iter_mut().all(|reader| reader.try_wait().expect("it is ours").is_none()), "all of them wait");
    let back = bench.comes_back();
    for reader in readers {
        let output = reader.wait_with_output().expect("it ends");
        assert!(output.status.success() && output.stdout == bench.path(&bench.point).1, "{output:?}");
    }
    assert!(back.elapsed() < SOON, "{:?}", back.elapsed());
    bench.await_outage(false);
    read_all(bench.point.path(), &bench.files).expect("nothing is wrong");
    let log = bench.ocifs.log();
    let count = |text: &str| log.lines().filter(|line| line.contains(text)).count();
    assert_eq!((count("an outage"), count("the outage is over"), count("read failed")), (1, 1, 0), "{log}");
    bench.ocifs.umount(&bench.point);
}

#[test]
fn who_waits_in_an_outage_can_be_killed_and_the_mount_ended() {
    let Some(mut bench) = Bench::new() else { return };
    bench.mount(&["--fill=off", "--on-outage=wait"]).ok();
    bench.goes();
    let mut reader = bench.cat(&bench.point);
    let outage = bench.await_outage(true);
    assert_eq!((&outage["fails_in"], &bench.status()["on_outage"]), (&Value::Null, &"wait".into()));
    reader.kill().expect("it is ours");
    ends_within(&mut reader, SOON);
    bench.ocifs.umount(&bench.point);
    // A daemon that is told to end does not wait either: who reads gets an error.
    bench.mount(&["--fill=off", "--on-outage=wait", "--offline"]).ok();
    bench.ocifs.umount(&bench.point);
    bench.comes_back();
    // What was read for the one that was killed may have come meanwhile, to the cache, to memory and to the kernel.
    bench.ocifs.drop_bytes();
    assert!(bench.ocifs.end_daemon(), "it ends when it is told to");
    bench.mount(&["--fill=off", "--on-outage=wait"]).ok();
    bench.goes();
    let mut reader = bench.cat(&bench.point);
    bench.await_outage(true);
    assert!(bench.ocifs.end_daemon(), "it ends when it is told to");
    ends_within(&mut reader, SOON);
    assert!(!reader.wait().expect("it has ended").success());
}

#[test]
fn who_reads_directly_in_an_outage_can_be_killed() {
    let Some(mut bench) = Bench::new() else { return };
    bench.mount(&["--fill=off", "--on-outage=wait"]).ok();
    bench.goes();
    let mut dd = Command::new("dd");
    dd.arg(format!("if={}", bench.path(&bench.point).0.display())).args(["of=/dev/null", "bs=4096", "count=1"]);
    let mut reader = dd.arg("iflag=direct").stderr(Stdio::null()).spawn().expect("dd can be run");
    bench.await_outage(true);
    reader.kill().expect("it is ours");
    ends_within(&mut reader, SOON);
    assert_eq!(reader.wait().expect("it has ended").signal(), Some(9), "it was not the read that failed");
    bench.ocifs.umount(&bench.point);
}

#[test]
fn what_is_here_is_read_however_many_wait_for_what_is_not() {
    const READERS: u64 = 300;
    let Some(mut bench) = Bench::new() else { return };
    let local = "tar/file-17";
    let other = bench.ocifs.mount_point("other");
    bench.mount_at(&["--fill=off", "--io=passthrough"], &other).ok();
    let bytes = fs::read(other.path().join(local)).expect("the registry is there");
    bench.mount(&["--fill=off", "--on-outage=wait"]).ok();
    bench.goes();
    // Each for a page of its own, since those who want the same wait for one request.
    let path = bench.path(&bench.point).0;
    let readers: Vec<_> = (0..READERS)
        .map(|number| {
            let file = File::open(&path).expect("it is there");
            fadvise(&file, 0, None, Advice::Random).expect("it is a file");
            std::thread::spawn(move || file.read_exact_at(&mut [0; 4096], number * 4096))
        })
        .collect();
    bench.await_outage(true);
    std::thread::sleep(Duration::from_secs(1));
    let path = bench.point.path().join(local);
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(fs::read(path)));
    let read = receiver.recv_timeout(SOON);
    let waiting = readers.iter().filter(|reader| !reader.is_finished()).count();
    bench.comes_back();
    assert!(readers.into_iter().all(|reader| reader.join().expect("it does not panic").is_ok()));
    assert!(read.expect("it waits for nobody").expect("it is here") == bytes);
    assert!(waiting > 200, "{waiting}");
    bench.ocifs.umount(&bench.point);
    bench.ocifs.umount(&other);
}

#[test]
fn each_mount_of_an_image_waits_as_it_was_told() {
    let Some(mut bench) = Bench::new() else { return };
    let points = ["eio", "two-seconds", "long"].map(|name| bench.ocifs.mount_point(name));
    for (point, policy) in points.iter().zip(["eio", "wait:2s", "wait:1h"]) {
        bench.mount_at(&["--fill=off", &format!("--on-outage={policy}")], point).ok();
    }
    bench.goes();
    let [eio, short, long] = &points;
    let mut patient = bench.cat(long);
    for (point, least, most) in [(eio, 0.1, 60.0), (short, 2.0, 60.0)] {
        let begun = Instant::now();
        let error = fs::read(bench.path(point).0).expect_err("nobody answers");
        assert_eq!(Errno::from_io_error(&error), Some(Errno::IO), "{error}");
        let took = begun.elapsed().as_secs_f64();
        assert!((least..most).contains(&took), "{} took {took} s", point.path().display());
    }
    assert!(patient.try_wait().expect("it is ours").is_none(), "it waits");
    bench.comes_back();
    let output = patient.wait_with_output().expect("it ends");
    assert!(output.status.success() && output.stdout == bench.path(long).1);
    for point in &points {
        read_all(point.path(), &bench.files).expect("what failed once is asked for again");
        bench.ocifs.umount(point);
    }
}

#[test]
fn what_runs_in_the_background_rests_in_an_outage_and_is_finished_afterwards() {
    let Some(mut bench) = Bench::new() else { return };
    // It begins when nobody has read for a moment, and may do so before the registry is gone.
    let never = Fault::Delay(Duration::from_secs(3600));
    let registry = bench.registry.as_ref().expect("it is there");
    registry.set_faults(move |asked| asked.is_blob().then(|| never.clone()));
    bench.mount(&["--fill=idle"]).ok();
    bench.goes();
    let begun = Instant::now();
    while bench.status()["filling"]["state"] != "waiting" {
        assert!(begun.elapsed() < 2 * SOON, "{}", bench.status());
        std::thread::sleep(Duration::from_millis(20));
    }
    let reader = bench.cat(&bench.point);
    let back = bench.comes_back();
    let output = reader.wait_with_output().expect("it ends");
    assert!(output.status.success() && back.elapsed() < SOON, "{:?}: {output:?}", back.elapsed());
    let begun = Instant::now();
    while bench.status()["filling"]["state"] != "complete" {
        assert!(begun.elapsed() < 2 * SOON, "the reader's answer wakes it: {}", bench.status());
        std::thread::sleep(Duration::from_millis(20));
    }
    bench.ocifs.umount(&bench.point);
}

#[test]
fn a_mount_that_needs_the_registry_now_is_under_no_policy() {
    let Some(mut bench) = Bench::new() else { return };
    bench.ocifs.drop_all();
    bench.goes();
    let ran = bench.mount(&["--on-outage=wait"]);
    assert_eq!(ran.code(), 5, "{}", ran.stderr);
    assert!(ran.took < SOON && ran.stderr.contains("connection refused"), "{ran:?}");
    let ran = bench.mount(&["--on-outage=for-ever"]);
    assert!(ran.code() == 2 && ran.stderr.contains("write it as eio, wait, or wait:DURATION"), "{}", ran.stderr);
}

#[test]
fn a_complete_image_mounts_offline_without_a_request_and_by_tag_without_a_registry() {
    let Some(mut bench) = Bench::new() else { return };
    bench
        .ocifs
        .run([OsStr::new("mount"), "--wait".as_ref(), bench.reference().as_ref(), bench.point.as_ref().as_ref()])
        .ok();
    bench.ocifs.umount(&bench.point);
    assert!(bench.ocifs.end_daemon(), "it ends when it is told to");
    let registry = bench.registry.as_ref().expect("it is there");
    registry.forget_requests();
    let ran = bench.mount(&["--offline"]).ok();
    assert_eq!(ran.stderr, "", "nothing is missing");
    read_all(bench.point.path(), &bench.files).expect("all of it is here");
    bench.ocifs.umount(&bench.point);
    assert_eq!(bench.registry.as_ref().expect("it is there").requests().len(), 0);
    bench.goes();
    let ran = bench.mount(&[]).ok();
    let told = format!("using {} as it was last seen ({})", bench.reference(), bench.built.manifest.digest);
    assert!(ran.stderr.contains(&told) && ran.stderr.contains("connection refused"), "{}", ran.stderr);
    assert_eq!(ran.stderr.matches("warning:").count(), 1, "nothing is missing: {}", ran.stderr);
    read_all(bench.point.path(), &bench.files).expect("all of it is here");
    bench.ocifs.umount(&bench.point);
}

#[test]
fn a_partial_image_says_exactly_what_is_missing() {
    let Some(mut bench) = Bench::new() else { return };
    let count = bench.built.layers.len();
    let ran = bench.mount(&["--offline"]).ok();
    let missing = |ran: &Ran| ran.stderr.lines().find(|line| line.contains("not in the cache")).map(str::to_owned);
    let told = missing(&ran).expect("it is told");
    assert!(
        told.contains(&format!(" of {count} of {count} layers ")) && told.ends_with("reading them fails"),
        "{told}"
    );
    let begun = Instant::now();
    let error = fs::read(bench.path(&bench.point).0).expect_err("it is not here, and nobody may be asked");
    assert_eq!(Errno::from_io_error(&error), Some(Errno::IO));
    assert!(begun.elapsed() < SOON, "nothing is waited for offline: {:?}", begun.elapsed());
    bench.ocifs.umount(&bench.point);
    bench.goes();
    let told = missing(&bench.mount(&["--fill=off"]).ok()).expect("it is told");
    assert!(told.ends_with("reading them has to wait for the registry"), "{told}");
    bench.ocifs.umount(&bench.point);
    // Without an index there is no tree.
    bench.ocifs.run(["cache", "drop", "--indexes"]).ok();
    let ran = bench.mount(&["--offline"]);
    assert_eq!(ran.code(), 5, "{}", ran.stderr);
    for layer in &bench.built.layers {
        let told = format!("cause: layer {} lacks ", layer.digest);
        assert!(ran.stderr.contains(&told), "{told}: {}", ran.stderr);
    }
    assert!(ran.stderr.contains(&format!(" of {count} of {count} layers are not in the cache")), "{}", ran.stderr);
    assert!(ran.stderr.contains("\nhint: leave out --offline to fetch them\n"), "{}", ran.stderr);
}

#[test]
fn what_is_remembered_is_told_to_be_whoever_asks() {
    let Some(mut bench) = Bench::new() else { return };
    bench.goes();
    let reference = bench.reference();
    for args in [&["inspect"][..], &["ls"], &["cat"]] {
        let path: &[&str] = if args == ["cat"] { &["no/such"] } else { &[] };
        let ran = bench.ocifs.run([args, &[&reference], path].concat());
        assert!(ran.stderr.starts_with("warning: "), "{args:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(&format!("; using {reference} as it was last seen (")), "{args:?}: {}", ran.stderr);
    }
    let ran = bench.mount(&["--fill=off", "--on-outage=eio"]).ok();
    assert!(ran.stderr.contains(": reading them fails until the registry is back\n"), "{}", ran.stderr);
}
