//! SOCI's indexes: what is pushed for its snapshotter is found by this program as well, by the same rule of trust.

use std::io::{Read, Write};

use ocifs::profile::{Access, Origin, Profile};

use super::*;
use crate::support::{Compression, assert_same, rich};

/// What the registry of `reference` has at `path`.
fn get(reference: &str, path: &str) -> String {
    let host = reference.split('/').next().expect("a host");
    let mut stream = std::net::TcpStream::connect(host).expect("it listens");
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).expect("it takes requests");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    answer.split_once("\r\n\r\n").expect("a head and a body").1.to_owned()
}

/// Pushes SOCI's index of the image.
pub(super) fn push_soci(machine: &Machine, reference: &str) -> Value {
    machine.ocifs.json(["index", "--json", "--format", "soci", "--push", reference])[0].take()
}

#[test]
fn a_soci_index_makes_the_first_mount_elsewhere_lazy() {
    if !ready() {
        return;
    }
    let (registry, built) = served(&image());
    let reference = registry.name("it:latest");
    let (maker, other) = (Machine::new(), Machine::new());
    let made = push_soci(&maker, &reference);
    assert_eq!(push_soci(&maker, &reference)["artifact"], made["artifact"], "equal images make equal indexes");
    maker.mount(&[], &reference);
    let tree = maker.tree();

    registry.forget_requests();
    let report = other.mount(&[], &reference);
    assert_eq!(origins(&report), ["shared", "shared"]);
    assert_eq!(report["layers"][0]["index_artifact"], made["artifact"]);
    assert_eq!(layer_bytes(&registry, &built), 0, "no byte of a layer was needed");
    let text = std::fs::read(other.point.path().join("usr/text3")).expect("it can be read");
    assert!(text == prose(4 << 20, 3));
    let size: u64 = built.layers.iter().map(|layer| layer.size).sum();
    assert!(layer_bytes(&registry, &built) < size, "one of six files was read");
    assert!(tree == other.tree(), "the same tree");

    // What it says is kept.
    other.ocifs.umount(&other.point);
    registry.forget_requests();
    let offline = other.mount(&["--offline"], &reference);
    assert_eq!(origins(&offline), ["shared", "shared"]);
    assert_eq!(registry.requests().len(), 0);
    other.ocifs.umount(&other.point);

    // Fill has all bytes of the layers, and finds that it was the truth.
    other.ocifs.run(["mount", "--wait", &reference, &other.point.path().to_string_lossy()]).ok();
    other.ocifs.umount(&other.point);
    let proven = other.mount(&["--offline"], &reference);
    assert_eq!(origins(&proven), ["cache", "cache"]);
}

#[test]
fn a_soci_index_tells_what_there_is_in_a_tar_but_for_sparse_files() {
    if !ready() {
        return;
    }
    let (registry, _) = served(&rich(20));
    let reference = registry.name("it:latest");
    let (maker, other) = (Machine::new(), Machine::new());
    let ran = maker.ocifs.run(["index", "--format", "soci", "--push", &reference]).ok();
    maker.mount(&[], &reference);
    let report = other.mount(&[], &reference);
    assert!(ran.stderr.contains(r#"is left out: SOCI has no form for "sparse/holes""#), "{}", ran.stderr);
    assert_eq!(origins(&report), ["shared", "shared", "first-contact"]);
    assert_same(&other.tree(), &maker.tree(), |_, _| false);
}

#[test]
fn d_025_a_soci_index_is_not_believed_for_a_digest() {
    if !ready() {
        return;
    }
    let (registry, built) = served(&image());
    let (maker, other) = (Machine::new(), Machine::new());
    push_soci(&maker, &registry.name("it:latest"));
    let pinned = registry.name(&format!("it@{}", built.manifest.digest));
    let report = other.mount(&[], &pinned);
    assert_eq!(origins(&report), ["first-contact", "first-contact"]);
    let trusting = Machine::new();
    let report = trusting.mount(&["--trust-index", "registry"], &pinned);
    assert_eq!(origins(&report), ["shared", "shared"]);
}

#[test]
fn what_soci_has_no_form_for_is_told_and_left_out() {
    if !ready() {
        return;
    }
    let image = Image::new()
        .layer(Layer::new().file("a", noise(100_000, 1)))
        .layer(Layer::new().file("b", noise(100_000, 2)).compressed(Compression::Zstd));
    let (registry, _) = served(&image);
    let machine = Machine::new();
    let ran = machine.ocifs.run(["index", "--format", "soci", "--push", &registry.name("it:latest")]).ok();
    assert!(ran.stderr.contains("is left out: SOCI has no form for zstd layers"), "{}", ran.stderr);
    let other = Machine::new();
    assert_eq!(origins(&other.mount(&[], &registry.name("it:latest"))), ["shared", "first-contact"]);
}

#[test]
fn who_names_a_profile_for_soci_is_told_that_it_has_no_place_there() {
    if !ready() {
        return;
    }
    let (registry, built) = served(&image());
    let reference = registry.name("it:latest");
    let machine = Machine::new();
    let file = machine.ocifs.home().join("start.profile");
    let digest = built.manifest.digest;
    let text = format!("ocifs-profile 1\nimage {digest}\nrecorded 1\nmount /m\naccesses 1\n0 9 usr/text1\n");
    std::fs::write(&file, text).expect("written");
    let file = file.to_string_lossy().into_owned();
    let ran = machine.ocifs.run(["index", "--format=soci", "--profile", &file, &reference]).ok();
    assert!(ran.stderr.contains("warning: SOCI's form of an index has no place for a profile"), "{}", ran.stderr);
}

#[test]
fn soci_indexes_are_listed_beside_ours_and_removed_only_when_they_are_meant() {
    if !ready() {
        return;
    }
    let (registry, _) = served(&image());
    let reference = registry.name("it:latest");
    let machine = Machine::new();
    let soci = push_soci(&machine, &reference)["artifact"].clone();
    let ours = machine.ocifs.json(["index", "--json", "--push", &reference])[0]["artifact"].clone();
    let listed = || {
        let listed = machine.ocifs.json(["index", "list", "--json", &reference]);
        let listed = listed.as_array().expect("a list").iter();
        listed.map(|shared| (shared["format"].clone(), shared["digest"].clone())).collect::<Vec<_>>()
    };
    assert_eq!(listed(), [("ocifs".into(), ours), ("soci".into(), soci.clone())]);
    let shown = machine.ocifs.run(["index", "show", &reference]).ok();
    assert!(shown.stdout.contains(soci.as_str().expect("a digest")), "{}", shown.stdout);
    machine.ocifs.run(["index", "rm", &reference]).ok();
    assert_eq!(listed(), [("soci".into(), soci)]);
    machine.ocifs.run(["index", "rm", "--format", "soci", &reference]).ok();
    assert_eq!(listed(), []);
}

#[test]
fn b_164_b_172_the_list_under_a_tag_says_what_the_registry_would_say() {
    if !ready() {
        return;
    }
    let (registry, built) = served(&image());
    registry.set_referrers(0);
    let reference = registry.name("it:latest");
    let machine = Machine::new();
    let artifact = push_soci(&machine, &reference)["artifact"].clone();
    let tag = built.manifest.digest.to_string().replace(':', "-");
    let list = get(&reference, &format!("/v2/it/manifests/{tag}"));
    let list: Value = serde_json::from_str(&list).expect("JSON");
    let entry = &list["manifests"][0];
    assert_eq!(entry["digest"], artifact);
    // SOCI writes no type; it is that of the configuration.
    assert_eq!(entry["artifactType"], "application/vnd.amazon.soci.index.v1+json");
    assert_eq!(entry["annotations"]["com.amazon.soci.build-tool-identifier"], "ocifs");
    assert_eq!(origins(&Machine::new().mount(&[], &reference)), ["shared", "shared"]);
}

#[test]
fn the_size_of_an_image_is_known_whoever_made_the_indexes_of_its_mount() {
    if !ready() {
        return;
    }
    let (registry, built) = served(&image());
    let reference = registry.name("it:latest");
    let (maker, other) = (Machine::new(), Machine::new());
    push_soci(&maker, &reference);
    let origin = Origin { image: built.manifest.digest, recorded: 0, mount: "/".into() };
    let profile = Profile::new(origin, Access::new(b"usr/text3".to_vec(), 0, 100));
    let sizes = [("cache", &maker), ("shared", &other)].map(|(origin, machine)| {
        let file = machine.ocifs.home().join("start.profile");
        std::fs::write(&file, profile.to_text()).expect("it can be written");
        machine.ocifs.run(["profile", "import", &reference, &file.to_string_lossy()]).ok();
        let shown = || machine.ocifs.json(["profile", "show", "--json", &reference])["image_bytes"].as_u64();
        assert_eq!(shown(), None, "nothing is fetched to know it");
        assert_eq!(origins(&machine.mount(&[], &reference)), [origin, origin]);
        shown()
    });
    assert!(sizes[0].is_some_and(|size| size > 100) && sizes[0] == sizes[1], "{sizes:?}");
}
