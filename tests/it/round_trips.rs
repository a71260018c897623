//! How often a mount waits for its registry, counted in the log of an embedded one.
//!
//! Whoever mounts over a line with 80 ms pays each round trip that has to wait for another: they are the budget of a cold
//! mount, beside the bytes. Every answer is late by more than it takes to send what can be sent at once, so that requests
//! which need not wait for each other overlap in the log, however slow the machine.

use std::fs;
use std::time::Duration;

use ocifs::demo::registry::{Bearer, Content, Fault, Record};
use serde_json::json;

use crate::support::{Embedded, Image, Layer, Ocifs, noise, platform, require_fuse, require_root, round_trips};

/// How late every answer is.
const LATE: Duration = Duration::from_millis(150);

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A registry with an image of three layers for this platform, by way of an image index, as most public images are.
fn registry() -> Embedded {
    let content = Content::new();
    let layer = |number: u64| Layer::new().dir("usr").file(format!("usr/file{number}"), noise(300_000, number));
    let built = Image::new().layer(layer(1)).layer(layer(2)).layer(layer(3)).to_content(&content, "it", "single");
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [{
        "mediaType": built.manifest.media_type, "digest": built.manifest.digest.to_string(),
        "size": built.manifest.size, "platform": { "os": "linux", "architecture": platform() },
    }] });
    content.add_manifest("it", Some("latest"), INDEX, index.to_string());
    Embedded::start(content)
}

/// Mounts with nothing in the cache, and reads nothing: what was asked, in the order of arrival.
fn cold_mount(registry: &Embedded) -> Vec<Record> {
    let ocifs = Ocifs::new();
    let point = ocifs.mount_point("m");
    registry.forget_requests();
    ocifs.mount(&registry.name("it:latest"), &point);
    let requests = registry.requests();
    assert_eq!(fs::read(point.path().join("usr/file2")).expect("it is there"), noise(300_000, 2));
    requests
}

/// Mounts, and fails if more requests than `most` waited for each other. Those that need not wait do so all the same if
/// this machine stands still between them, so the best of a few mounts counts.
#[track_caller]
fn mount_in_at_most(most: usize, registry: &Embedded) -> Vec<Record> {
    let mut requests = cold_mount(registry);
    for _ in 0..4 {
        if round_trips(&requests) <= most {
            break;
        }
        requests = cold_mount(registry);
    }
    let trips = round_trips(&requests);
    let told: String = requests
        .iter()
        .map(|record| {
            let (from, to) = (record.arrived.as_millis(), record.ended.map(|ended| ended.as_millis()));
            let range = record.request.range().unwrap_or_default();
            format!(
                "{from} to {to:?} ms: {} {} {range} {}\n",
                record.request.method, record.request.path, record.status
            )
        })
        .collect();
    assert!(trips <= most, "{trips} round trips:\n{told}");
    // Index, manifest and one layer have to wait for each other: with fewer the counting would be wrong.
    assert!(trips >= 3, "{trips} round trips:\n{told}");
    requests
}

#[test]
fn a_cold_mount_takes_four_round_trips_where_nobody_asks_who_we_are() {
    if !require_fuse() || !require_root() {
        return;
    }
    let registry = registry();
    registry.set_faults(|_| Some(Fault::Delay(LATE)));
    mount_in_at_most(4, &registry);
}

#[test]
fn a_cold_mount_takes_six_round_trips_with_a_token() {
    if !require_fuse() || !require_root() {
        return;
    }
    let registry = registry();
    registry.set_faults(|_| Some(Fault::Many(vec![Fault::Bearer(Bearer::default()), Fault::Delay(LATE)])));
    let requests = mount_in_at_most(6, &registry);
    let refused = requests.iter().filter(|record| record.status == 401).count();
    assert_eq!(refused, 1, "the first request learns that a token is needed, and no other");
}
