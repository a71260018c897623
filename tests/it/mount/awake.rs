//! Processors are kept from sleeping while a mount is asked for things, and only then.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use rustix::process::Pid;

use super::Mounted;
use crate::support::{Mount, eventually, rich};

const DEVICE: &str = "/dev/cpu_dma_latency";

/// Longest that something is waited for.
const LONG: Duration = Duration::from_secs(20);

/// True if this machine is one where it is done by default.
fn is_done_here() -> bool {
    let processors = fs::read_to_string("/proc/cpuinfo").expect("proc is mounted");
    let processors = processors.lines().filter(|line| line.starts_with("processor")).count();
    let is_done = processors <= 16 && File::options().write(true).open(DEVICE).is_ok();
    if !is_done {
        // Not asked for even where everything must be there (`CI`): containers lack the device.
        eprintln!("SKIPPED: needs {DEVICE} and at most 16 processors");
    }
    is_done
}

/// True if the daemon has the device open.
fn is_held_by(daemon: Pid) -> bool {
    let open = fs::read_dir(format!("/proc/{}/fd", daemon.as_raw_nonzero())).expect("it runs").filter_map(Result::ok);
    open.filter_map(|open| fs::read_link(open.path()).ok()).any(|path| path == Path::new(DEVICE))
}

/// Asks for names that nobody asked for before, which no kernel remembers.
fn look_for_names(dir: &Path, mut then: impl FnMut()) {
    for number in 0..100 {
        assert!(!dir.join(number.to_string()).exists());
        then();
    }
}

#[test]
fn the_device_is_held_for_who_reads_and_let_go_when_it_is_quiet_and_never_if_it_is_off() {
    if !is_done_here() {
        return;
    }
    let Some(mounted) = Mounted::new(&rich(0)) else { return };
    let daemon = mounted.ocifs.daemon().expect("it serves a mount");
    // For how many milliseconds `status` says that it was held for a mount.
    let held = |point: &Mount| mounted.ocifs.status(point)["mounts"][0]["low_latency_ms"].as_u64().expect("a number");
    // Whoever looks at all mounts of this machine asks that one as well. Its connection stays, and is not for the next.
    mounted.ocifs.umount(&mounted.point);
    eventually(LONG, "nobody holds it", || !is_held_by(daemon));
    let (reference, off) = (mounted.registry.name("it:latest"), mounted.ocifs.mount_point("off"));
    let as_before = ["mount", "--fill=off", "--profile-until=0", "--on-outage=eio"];
    let options = as_before.into_iter().chain(["--low-latency=off", &reference]).map(OsStr::new);
    mounted.ocifs.run(options.chain([off.path().as_os_str()])).ok();
    look_for_names(off.path(), || assert!(!is_held_by(daemon)));

    mounted.mount();
    look_for_names(mounted.point.path(), || ());
    eventually(LONG, "it was held", || held(&mounted.point) > 0);
    eventually(LONG, "it is let go", || !is_held_by(daemon));
    assert_eq!(held(&off), 0);
}
