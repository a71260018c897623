//! Windows of an index that come after its metadata, come late, or never.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use ocifs::demo::registry::{Endpoint, Fault};

use super::{Machine, image, layer_bytes, origins, prose, ready, served};
use crate::support::{Built, Embedded};

/// Answers requests for windows with the fault that `fault` makes of where they begin in their blob.
fn spoil(registry: &Embedded, built: &Built, fault: impl Fn(u64) -> Fault + Send + Sync + 'static) {
    let layers: Vec<String> = built.layers.iter().map(|layer| layer.digest.to_string()).collect();
    registry.set_faults(move |request| {
        let Endpoint::Blob { digest, .. } = &request.endpoint else { return None };
        let at = request.range()?.strip_prefix("bytes=")?.split('-').next()?.parse().ok()?;
        (at > 0 && !layers.contains(digest)).then(|| fault(at))
    });
}

/// A file that cannot be read without a window.
fn text(machine: &Machine) -> PathBuf {
    machine.point.path().join("usr/text2")
}

#[track_caller]
fn assert_served(machine: &Machine) {
    assert!(fs::read(text(machine)).expect("it can be read") == prose(4 << 20, 2));
}

#[test]
fn a_read_waits_for_windows_that_are_late() {
    if !ready() {
        return;
    }
    let (registry, built) = served(&image());
    let reference = registry.name("it:latest");
    Machine::new().push(&reference);
    spoil(&registry, &built, |_| Fault::Delay(Duration::from_millis(700)));
    let machine = Machine::new();
    assert_eq!(origins(&machine.mount(&[], &reference)), ["shared", "shared"]);
    assert_eq!(fs::read(text(&machine)).expect("it can be read"), prose(4 << 20, 2));
}

#[test]
fn windows_that_are_wrong_serve_nobody_and_cost_what_the_layer_costs() {
    if !ready() {
        return;
    }
    for wrong in [|at| Fault::Corrupt { offset: at + 1000 }, |_| Fault::status(404)] {
        let (registry, built) = served(&image());
        let reference = registry.name("it:latest");
        Machine::new().push(&reference);
        spoil(&registry, &built, wrong);
        let machine = Machine::new();
        assert_eq!(origins(&machine.mount(&["--on-outage=eio"], &reference)), ["shared", "shared"]);
        // What begins with the layer needs none.
        registry.forget_requests();
        let conf = fs::read(machine.point.path().join("etc/conf")).expect("it can be read");
        assert_eq!(conf, b"a = b\n");
        assert_served(&machine);
        let (sent, size) = (layer_bytes(&registry, &built), built.layers.iter().map(|layer| layer.size).sum::<u64>());
        // Two spans may share a byte.
        assert!(sent < size + 100, "{sent} bytes of {size}: {:#?}", registry.requests());
        let log = machine.ocifs.log();
        assert!(log.contains("the windows of an index cannot be had, completing the layer for them"), "{log}");
        machine.ocifs.umount(&machine.point);
        let report = machine.mount(&[], &reference);
        assert_eq!(origins(&report)[0], "cache", "what was made of the layer is its index");
    }
}

#[test]
fn windows_that_do_not_come_are_made_by_fill() {
    if !ready() {
        return;
    }
    let (registry, built) = served(&image());
    let reference = registry.name("it:latest");
    Machine::new().push(&reference);
    spoil(&registry, &built, |_| Fault::status(503));
    let machine = Machine::new();
    let dir = machine.point.path().to_string_lossy().into_owned();
    machine.ocifs.run(["mount", "--wait", "--profile-until=0", "--on-outage=eio", &reference, &dir]).ok();
    assert_served(&machine);
}

#[test]
fn a_cache_that_takes_nothing_keeps_no_index_from_serving() {
    if !ready() {
        return;
    }
    let (registry, _) = served(&image());
    let reference = registry.name("it:latest");
    Machine::new().push(&reference);
    let machine = Machine::new();
    machine.ocifs.run(["inspect", &reference]).ok();
    // Nothing can be written any more, for root as well.
    fs::remove_dir_all(machine.ocifs.cache().join("tmp")).expect("it is there");
    assert_eq!(origins(&machine.mount(&[], &reference)), ["shared", "shared"]);
    assert_eq!(fs::read(text(&machine)).expect("it can be read"), prose(4 << 20, 2));
}
