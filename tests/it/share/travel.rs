//! From one machine to another.

use std::fs;
use std::time::Duration;

use ocifs::demo::registry::{Bearer, Endpoint, Fault};
use ocifs::oci::Digest;
use serde_json::{Value, json};

use super::{Machine, image, layer_bytes, origins, ready, served};
use crate::support::{DockerRegistry, Embedded, Image, Layer, assert_same, platform, round_trips, temp_dir};

/// Pushes from one machine and mounts on another; returns the second with its report.
fn travel(reference: &str, listed: &str) -> (Machine, Value) {
    let (maker, taker) = (Machine::new(), Machine::new());
    let made = maker.push(reference);
    assert_eq!(made["pushed"]["listed"], listed, "{made}");
    assert_eq!(made["layers"].as_array().map(Vec::len), Some(2));
    maker.mount(&[], reference);
    let report = taker.mount(&[], reference);
    assert_eq!(origins(&report), ["shared", "shared"]);
    for layer in report["layers"].as_array().expect("layers") {
        assert_eq!(layer["index_artifact"], made["artifact"]);
        assert!(layer["index_reason"].as_str().is_some_and(|reason| reason.contains("is a tag")), "{layer}");
    }
    assert_same(&taker.tree(), &maker.tree(), |_, _| false);
    (taker, report)
}

#[test]
fn the_first_mount_is_lazy_where_the_registry_lists_referrers() {
    if !ready() {
        return;
    }
    let (registry, built) = served(&image());
    let maker = Machine::new();
    let reference = registry.name("it:latest");
    maker.push(&reference);
    registry.forget_requests();
    let taker = Machine::new();
    let report = taker.mount(&[], &reference);
    assert_eq!(origins(&report), ["shared", "shared"]);
    assert_eq!(layer_bytes(&registry, &built), 0, "no byte of a layer was needed");
    // A read brings what it needs, and no more than a part.
    let text = fs::read(taker.point.path().join("usr/text3")).expect("it can be read");
    assert_eq!(text, super::prose(4 << 20, 3));
    let moved = layer_bytes(&registry, &built);
    assert!(moved > 0 && moved < built.layers[0].size / 2, "{moved} of {}", built.layers[0].size);
    travel(&reference, "api");
}

#[test]
fn the_first_mount_is_lazy_where_a_tag_lists_referrers() {
    if !ready() {
        return;
    }
    let (registry, _) = served(&image());
    registry.set_referrers(0);
    let (_, report) = travel(&registry.name("it:latest"), "tag");
    // The list has the artifact in it, which spares a round trip.
    let artifact = report["layers"][0]["index_artifact"].as_str().expect("a digest").to_owned();
    let asks = |endpoint: &Endpoint| matches!(endpoint, Endpoint::Manifest { reference, .. } if *reference == artifact);
    let fetched =
        |record: &ocifs::demo::registry::Record| record.request.method == "GET" && asks(&record.request.endpoint);
    assert!(!registry.requests().iter().any(fetched), "nobody asked for {artifact}");
}

#[test]
fn the_first_mount_is_lazy_with_a_real_registry() {
    if !ready() {
        return;
    }
    let Some(registry) = DockerRegistry::start() else { return };
    let layout = temp_dir();
    image().to_layout(layout.path(), "v1");
    registry.push(layout.path(), "v1", "team/app:v1");
    registry.push(layout.path(), "v1", "team/other:v1");
    let reference = format!("{}/team/app:v1", registry.addr());
    let (taker, report) = travel(&reference, "tag");
    assert_eq!(report["bytes_fetched"], 0);

    // The layers are in another repository too; their indexes need not be sent again, nor made, also by another daemon.
    let maker = Machine::new();
    maker.push(&reference);
    assert!(maker.ocifs.end_daemon());
    let other = maker.push(&format!("{}/team/other:v1", registry.addr()));
    assert_eq!((&other["pushed"]["sent"], &other["pushed"]["mounted"]), (&json!(0), &json!(3)), "{other}");
    assert!(other["layers"].as_array().expect("layers").iter().all(|layer| layer["was_streamed"] == false));

    // So is one layer of an image that is another.
    let third = Image::new().layer(super::programs()).layer(Layer::new().file("third", "x"));
    third.to_layout(layout.path(), "third");
    registry.push(layout.path(), "third", "team/third:v1");
    let third = maker.push(&format!("{}/team/third:v1", registry.addr()));
    assert_eq!((&third["pushed"]["sent"], &third["pushed"]["mounted"]), (&json!(1), &json!(2)), "{third}");

    // Nobody finds it any more once it was taken off the list, although this registry deletes nothing.
    let ran = maker.ocifs.run(["index", "rm", &reference]).ok();
    assert!(ran.stderr.contains("does not delete"), "{}", ran.stderr);
    assert_eq!(maker.ocifs.json(["index", "list", "--json", &reference]), json!([]));
    drop(taker);
    assert_eq!(origins(&Machine::new().mount(&[], &reference)), ["first-contact", "first-contact"]);
}

#[test]
fn a_mount_of_one_platform_of_an_image_index_takes_six_round_trips_and_a_hundredth_of_the_bytes() {
    // Under a tag; by the API, where the artifact has to be asked for; and under a tag with a token.
    for (pages, most, token) in [(0, 4, false), (10, 5, false), (0, 6, true)] {
        mount_in_at_most(most, pages, token);
    }
}

fn mount_in_at_most(most: usize, pages: usize, token: bool) {
    if !ready() {
        return;
    }
    let (registry, built) = served(&image());
    let index = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [{
        "mediaType": built.manifest.media_type, "digest": built.manifest.digest.to_string(),
        "size": built.manifest.size, "platform": { "os": "linux", "architecture": platform() },
    }] });
    let media_type = "application/vnd.oci.image.index.v1+json";
    registry.content().add_manifest("it", Some("many"), media_type, index.to_string());
    let reference = registry.name("it:many");
    registry.set_referrers(pages);
    let made = Machine::new().push(&reference);
    let windows: Vec<u64> = made["layers"]
        .as_array()
        .expect("layers")
        .iter()
        .filter_map(|layer| Some(layer["index_size"].as_u64()? - layer["metadata_size"].as_u64()?))
        .collect();
    let delay = Fault::Delay(Duration::from_millis(60));
    registry.set_faults(move |_| match token {
        true => Some(Fault::Many(vec![Fault::Bearer(Bearer::default()), delay.clone()])),
        false => Some(delay.clone()),
    });
    let mount = || {
        registry.forget_requests();
        let report = Machine::new().mount(&[], &reference);
        assert_eq!(origins(&report), ["shared", "shared"]);
        // What comes in the background, the windows, is asked for from the middle of a blob.
        let is_needed = |range: Option<&str>| range.is_none_or(|range| range.starts_with("bytes=0-"));
        registry.requests().into_iter().filter(|record| is_needed(record.request.range())).collect::<Vec<_>>()
    };
    let mut needed = mount();
    for _ in 0..4 {
        // Requests that need not wait do so all the same if this machine stands still between them.
        if round_trips(&needed) <= most {
            break;
        }
        needed = mount();
    }
    let trips = round_trips(&needed);
    assert!(trips <= most, "{trips} round trips of {most}: {needed:#?}");
    let moved: u64 = needed.iter().map(|record| record.sent).sum();
    let size: u64 = built.layers.iter().map(|layer| layer.size).sum();
    assert!(moved <= size / 100, "{moved} of {size}");
    assert!(windows[0] > 4 << 10, "the test is about an index with windows: {windows:?}");
}

#[test]
fn a_claim_outlives_its_registry_and_costs_no_second_search() {
    if !ready() {
        return;
    }
    let (registry, _) = served(&image());
    let reference = registry.name("it:latest");
    Machine::new().push(&reference);
    let machine = Machine::new();
    machine.mount(&[], &reference);
    let tree = machine.tree();
    machine.ocifs.umount(&machine.point);
    registry.forget_requests();
    assert_eq!(origins(&machine.mount(&[], &reference)), ["shared", "shared"]);
    let asked = registry.requests();
    assert!(!asked.iter().any(|record| matches!(record.request.endpoint, Endpoint::Referrers { .. })), "{asked:#?}");
    machine.ocifs.umount(&machine.point);
    assert_eq!(origins(&machine.mount(&["--offline"], &reference)), ["shared", "shared"]);
    assert_same(&machine.tree(), &tree, |_, _| false);
}

#[test]
fn what_was_believed_is_exported_by_who_believes_it() {
    if !ready() {
        return;
    }
    let (registry, built) = served(&image());
    Machine::new().push(&registry.name("it:latest"));
    let (machine, other) = (Machine::new(), Machine::new());
    let pinned = registry.name(&format!("it@{}", built.manifest.digest));
    machine.mount(&["--trust-index=registry"], &pinned);
    assert_eq!(fs::read(machine.point.path().join("usr/text1")).expect("here"), super::prose(4 << 20, 1));
    let parcel = machine.ocifs.home().join("parcel").to_string_lossy().into_owned();
    let ran = machine.ocifs.run(["cache", "export", &pinned, &parcel]);
    assert!(ran.code() == 5 && ran.stderr.contains("with --trust-index, if it was mounted so"), "{}", ran.stderr);
    machine.ocifs.run(["cache", "export", "--trust-index=registry", &pinned, &parcel]).ok();
    other.ocifs.run(["cache", "import", &parcel]).ok();
    assert_eq!(origins(&other.mount(&["--offline"], &pinned)), ["imported"; 2]);
    assert_eq!(fs::read(other.point.path().join("usr/text1")).expect("here"), super::prose(4 << 20, 1));
}

#[test]
fn fill_proves_what_was_believed() {
    if !ready() {
        return;
    }
    let (registry, _) = served(&image());
    let reference = registry.name("it:latest");
    Machine::new().push(&reference);
    let machine = Machine::new();
    let dir = machine.point.path().to_string_lossy().into_owned();
    machine.ocifs.run(["mount", "--wait", "--profile-until=0", &reference, &dir]).ok();
    let tree = machine.tree();
    machine.ocifs.umount(&machine.point);
    assert_eq!(origins(&machine.mount(&[], &reference)), ["cache", "cache"], "the index is proven now");
    assert_same(&machine.tree(), &tree, |_, _| false);
}

#[test]
fn the_profile_of_one_machine_is_replayed_on_another() {
    if !ready() {
        return;
    }
    let (registry, built) = served(&image());
    let reference = registry.name("it:latest");
    let maker = Machine::new();
    let profile = format!(
        "ocifs-profile 1\nimage {}\nrecorded 1764000000\nmount /secret/place\naccesses 1\n0 4194304 usr/text1\n",
        Digest::sha256(b"any")
    );
    let file = maker.ocifs.home().join("start.profile");
    fs::write(&file, profile).expect("written");
    let file = file.to_string_lossy().into_owned();
    let made = maker.ocifs.json(["index", "--json", "--push", "--profile", &file, &reference]);
    assert!(made[0]["profile_size"].as_u64().is_some_and(|size| size > 0), "{made}");
    let pulled = registry.requests();
    let leaked = pulled.iter().any(|record| format!("{record:?}").contains("/secret/place"));
    assert!(!leaked, "where it was recorded stays at home");

    let taker = Machine::new();
    taker.mount(&[], &reference);
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    let status = loop {
        let status = taker.ocifs.status(&taker.point);
        if status["mounts"][0]["profile"]["ahead_done"] == true {
            break status;
        }
        assert!(std::time::Instant::now() < deadline, "{status}");
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(status["mounts"][0]["profile"]["ahead"], "profile");
    registry.forget_requests();
    assert_eq!(fs::read(taker.point.path().join("usr/text1")).expect("here"), super::prose(4 << 20, 1));
    assert_eq!(layer_bytes(&registry, &built), 0, "it was fetched ahead");
}

#[test]
fn a_recorded_start_travels_unless_it_is_to_stay() {
    if !ready() {
        return;
    }
    let (registry, _) = served(&image());
    let reference = registry.name("it:latest");
    let machine = Machine::new();
    let dir = machine.point.path().to_string_lossy().into_owned();
    machine.ocifs.run(["mount", "--fill=off", &reference, &dir]).ok();
    fs::read(machine.point.path().join("usr/text1")).expect("here");
    machine.ocifs.umount(&machine.point);
    let push = |options: &[&str]| {
        let made = machine.ocifs.json([&["index", "--json", "--push"][..], options, &[&reference]].concat());
        made[0]["profile_size"].clone()
    };
    assert_eq!(push(&["--profile=none"]), Value::Null, "it stays here");
    let size = push(&["--profile=auto"]);
    assert!(size.as_u64().is_some_and(|size| size > 0), "it travels: {size}");
    assert_eq!(push(&[]), size, "as it does when nothing is said");

    let taker = Machine::new();
    taker.mount(&[], &reference);
    assert_eq!(taker.ocifs.status(&taker.point)["mounts"][0]["profile"]["ahead"], "profile");
}

#[test]
fn two_machines_push_the_same_bytes_and_the_second_sends_none() {
    let (registry, _) = served(&image());
    let reference = registry.name("it:latest");
    let (one, two) = (Machine::new(), Machine::new());
    let (first, second) = (one.push(&reference), two.push(&reference));
    assert_eq!(first["artifact"], second["artifact"]);
    assert_eq!((&first["pushed"]["sent"], &second["pushed"]["sent"]), (&json!(3), &json!(0)));
    assert_eq!(one.ocifs.json(["index", "list", "--json", &reference]).as_array().map(Vec::len), Some(1));
}

#[test]
fn two_machines_that_push_at_once_lose_nothing() {
    let (registry, _) = served(&image());
    registry.set_referrers(0);
    push_at_once(&registry);
}

/// Two pushers with different profiles, so that there are two artifacts.
fn push_at_once(registry: &Embedded) {
    let reference = registry.name("it:latest");
    let machines = [Machine::new(), Machine::new()];
    let threads = machines.iter().enumerate().map(|(number, machine)| {
        let profile = machine.ocifs.home().join("start.profile");
        let text = format!(
            "ocifs-profile 1\nimage {}\nrecorded 1\nmount /m\naccesses 1\n0 {} usr/text1\n",
            Digest::sha256(b"any"),
            100 + number
        );
        fs::write(&profile, text).expect("written");
        let profile = profile.to_string_lossy().into_owned();
        let mut command = machine.ocifs.command(["index", "--push", "--profile", &profile, &reference]);
        command.spawn().expect("the program starts")
    });
    for mut child in threads.collect::<Vec<_>>() {
        assert!(child.wait().expect("it ends").success());
    }
    let listed = machines[0].ocifs.json(["index", "list", "--json", &reference]);
    assert_eq!(listed.as_array().map(Vec::len), Some(2), "{listed}");

    // Who wants only the latest says so.
    machines[0].ocifs.run(["index", "--push", "--replace", "--profile=none", &reference]).ok();
    let listed = machines[0].ocifs.json(["index", "list", "--json", &reference]);
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
    assert_eq!(listed[0]["profile_size"], Value::Null);
}

#[test]
fn an_interrupted_push_goes_on() {
    let (registry, _) = served(&image());
    registry.set_faults(|request| {
        let is_upload = matches!(request.endpoint, Endpoint::Upload { session: Some(_), .. });
        (is_upload && request.method == "PUT" && request.attempt == 0).then_some(Fault::HangUp { after: 10_000 })
    });
    let reference = registry.name("it:latest");
    let made = Machine::new().push(&reference);
    let puts: Vec<_> = registry.requests().into_iter().filter(|record| record.request.method == "PUT").collect();
    assert!(puts.iter().any(|record| record.request.attempt > 0), "an upload went on");
    registry.clear_faults();
    assert_eq!(Machine::new().ocifs.json(["index", "list", "--json", &reference])[0]["digest"], made["artifact"]);
}
