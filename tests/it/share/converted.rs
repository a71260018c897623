//! Images that name SOCI's index, version 2, as this program writes them.

use std::process::Command;

use ocifs::oci::Digest;
use serde_json::json;

use super::*;
use crate::support::{DockerRegistry, assert_same, output_of, temp_dir};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const LIST: &str = "application/vnd.oci.image.index.v1+json";
const V2: &str = "application/vnd.amazon.soci.index.v2+json";
const PIN: &str = "com.amazon.soci.index-digest";

/// The manifest or image index that `reference` of the repository `it` names, with its digest.
fn document(addr: &str, reference: &str) -> (Digest, Value) {
    let url = format!("http://{addr}/v2/it/manifests/{reference}");
    let text = output_of(Command::new("curl").args(["-sf", "-H", &format!("Accept: {MANIFEST}, {LIST}"), &url]));
    (Digest::sha256(text.as_bytes()), serde_json::from_str(&text).expect("JSON"))
}

/// Converts on a machine of its own; what the program tells of it.
#[track_caller]
fn convert(reference: &str, tag: &str, options: &[&str]) -> Value {
    let arguments = ["index", "--json", "--format", "soci-v2", "--push", "--tag", tag];
    Machine::new().ocifs.json([&arguments[..], options, &[reference]].concat())
}

/// Converts `it:latest` of a registry and mounts what came out on machines that have nothing.
fn travels(addr: &str) {
    let reference = format!("{addr}/it:latest");
    let (original, before) = document(addr, "latest");
    let made = &convert(&reference, "soci", &[])[0];
    assert_eq!(made["pushed"]["listed"], "image");
    assert_eq!(made["converted"]["reference"], format!("{addr}/it:soci"));
    assert_eq!(document(addr, "latest").0, original, "the image stays what it is");

    let (digest, list) = document(addr, "soci");
    assert_eq!(made["converted"]["digest"], digest.to_string());
    assert_eq!(list["mediaType"], LIST);
    let entries = list["manifests"].as_array().expect("a list");
    let [image, beside] = &entries[..] else { panic!("an image and its index: {list}") };
    let (manifest, index) = (image["digest"].as_str().expect("text"), beside["digest"].as_str().expect("text"));
    assert_eq!((&made["converted"]["manifest"], &made["artifact"]), (&image["digest"], &beside["digest"]));
    assert_eq!(image["annotations"], json!({ PIN: index }));
    assert_eq!(beside["artifactType"], V2);
    assert_eq!(beside["annotations"], json!({ "com.amazon.soci.image-manifest-digest": manifest }));
    assert_eq!(beside["platform"], image["platform"]);
    assert_eq!(image["platform"], json!({ "architecture": "amd64", "os": "linux" }));

    let (_, mut after) = document(addr, manifest);
    assert_eq!(after["annotations"].take(), json!({ PIN: index }));
    let mut before = before;
    before["annotations"] = Value::Null;
    assert_eq!(after, before, "the same configuration and layers");
    let (_, index) = document(addr, index);
    assert_eq!((&index["config"]["mediaType"], index.get("subject")), (&json!(V2), None));
    assert_eq!(index["layers"].as_array().map(Vec::len), Some(2));

    let truth = Machine::new();
    truth.mount(&[], &reference);
    for reference in [format!("{addr}/it:soci"), format!("{addr}/it@{digest}"), format!("{addr}/it@{manifest}")] {
        let machine = Machine::new();
        let report = machine.mount(&[], &reference);
        assert_eq!(origins(&report), ["shared"; 2], "{reference}");
        assert_eq!(report["layers"][0]["index_artifact"], made["artifact"]);
        assert_eq!(report["layers"][0]["index_reason"], "the image's manifest pins it");
        assert_same(&machine.tree(), &truth.tree(), |_, _| false);
    }
    let again = [convert(&reference, "again", &[]), convert(&format!("{addr}/it:soci"), "twice", &[])];
    for again in again {
        assert_eq!(again[0]["converted"]["digest"], made["converted"]["digest"], "the same bytes whoever writes them");
    }
}

#[test]
fn a_converted_image_is_lazy_at_once_wherever_it_lies() {
    if !ready() {
        return;
    }
    let (registry, built) = served(&image());
    travels(&registry.addr().to_string());
    let beside = Machine::new().ocifs.json(["index", "list", "--json", &registry.name("it:latest")]);
    assert_eq!(beside, json!([]), "nothing lies beside the image");
    let tag = built.manifest.digest.to_string().replace(':', "-");
    let url = format!("http://{}/v2/it/manifests/{tag}", registry.addr());
    let asked = Command::new("curl").args(["-s", "-o", "/dev/null", "-w", "%{http_code}", &url]).output();
    assert_eq!(asked.expect("curl runs").stdout, b"404", "and no list was begun");
}

#[test]
fn a_converted_image_is_taken_by_a_registry_that_looks_at_what_is_listed() {
    if !ready() {
        return;
    }
    let Some(registry) = DockerRegistry::start() else { return };
    let layout = temp_dir();
    image().to_layout(layout.path(), "latest");
    registry.push(layout.path(), "latest", "it:latest");
    travels(registry.addr());
}

/// Gives an image of Docker's types to the registry; its entry in a list.
fn docker_image(registry: &Embedded, name: &str, architecture: &str) -> Value {
    let image = Image::new().layer(Layer::new().file(name, prose(100_000, 7))).config("", "architecture", architecture);
    let built = image.to_content(registry.content(), "it", name);
    let (_, mut manifest) = document(&registry.addr().to_string(), &built.manifest.digest.to_string());
    let docker = "application/vnd.docker.distribution.manifest.v2+json";
    manifest["mediaType"] = docker.into();
    manifest["config"]["mediaType"] = "application/vnd.docker.container.image.v1+json".into();
    let manifest = registry.content().add_manifest("it", None, docker, manifest.to_string());
    json!({ "mediaType": docker, "digest": manifest.digest.to_string(), "size": manifest.size,
        "platform": { "os": "linux", "architecture": architecture } })
}

#[test]
fn an_image_of_many_platforms_is_converted_as_one() {
    if !ready() {
        return;
    }
    let (registry, _) = served(&image());
    let entries =
        [("amd", "amd64"), ("s", "s390x")].map(|(name, architecture)| docker_image(&registry, name, architecture));
    let docker = "application/vnd.docker.distribution.manifest.list.v2+json";
    let list = json!({ "schemaVersion": 2, "mediaType": docker, "manifests": entries });
    registry.content().add_manifest("it", Some("many"), docker, list.to_string());
    let addr = registry.addr().to_string();
    let types = |tag: &str| {
        let (_, list) = document(&addr, tag);
        assert_eq!(list["mediaType"], LIST);
        let entries = list["manifests"].as_array().expect("a list").clone();
        let of_soci: Vec<_> = entries.iter().map(|entry| entry["artifactType"] == V2).collect();
        assert!(
            entries.iter().all(|entry| entry["mediaType"] == MANIFEST),
            "no type of Docker's beside artifacts: {list}"
        );
        let pins = |entry: &Value| {
            let (_, manifest) = document(&addr, entry["digest"].as_str().expect("text"));
            assert_eq!(manifest["mediaType"], MANIFEST);
            manifest["annotations"].get(PIN).is_some()
        };
        (of_soci, entries.iter().map(pins).collect::<Vec<_>>())
    };

    let made = convert(&registry.name("it:many"), "one", &["--platform", "linux/s390x"]);
    assert_eq!(made.as_array().map(Vec::len), Some(1));
    assert_eq!(types("one"), (vec![false, false, true], vec![false, true, false]));
    let made = convert(&registry.name("it:many"), "all", &["--all-platforms"]);
    assert_eq!(made[0]["converted"]["digest"], made[1]["converted"]["digest"]);
    assert_eq!(types("all"), (vec![false, false, true, true], vec![true, true, false, false]));
    for platform in ["linux/amd64", "linux/s390x"] {
        let report = Machine::new().mount(&["--platform", platform], &registry.name("it:all"));
        assert_eq!(origins(&report), ["shared"], "{platform}");
    }
    convert(&registry.name("it:one"), "rest", &["--all-platforms"]);
    assert_eq!(document(&addr, "rest").1["manifests"].as_array().map(Vec::len), Some(4), "none is there twice");
}

#[test]
fn the_index_that_an_image_names_is_listed_and_stays() {
    if !ready() {
        return;
    }
    let (registry, _) = served(&image());
    convert(&registry.name("it:latest"), "soci", &[]);
    let machine = Machine::new();
    let reference = registry.name("it:soci");
    machine.push(&reference);
    let listed = machine.ocifs.json(["index", "list", "--json", &reference]);
    let formats: Vec<_> = listed.as_array().expect("a list").iter().map(|shared| &shared["format"]).collect();
    assert_eq!(formats, ["soci-v2", "ocifs"], "in the order in which a mount asks them");
    assert!(machine.ocifs.run(["index", "show", &reference]).ok().stdout.contains("BEFORE MOUNT"));
    let (digest, _) = document(&registry.addr().to_string(), "soci");
    let pinned = machine.ocifs.run(["index", "list", &registry.name(&format!("it@{digest}"))]).ok().stdout;
    assert!(pinned.contains("a mount believes soci-v2: the image's manifest pins it"), "{pinned}");
    assert!(pinned.contains("a mount does not believe ocifs: the reference is pinned"), "{pinned}");

    let ran = machine.ocifs.run(["index", "rm", "--format", "soci-v2", &reference]);
    assert!(ran.code() == 2 && ran.stderr.contains("itself names that index"), "{}", ran.stderr);
    machine.ocifs.run(["index", "rm", &reference]).ok();
    let listed = machine.ocifs.json(["index", "list", "--json", &reference]);
    assert_eq!(listed.as_array().map(Vec::len), Some(1));
}

#[test]
fn what_a_conversion_lacks_is_told_before_anything_is_read() {
    let (registry, _) = served(&image());
    let reference = registry.name("it:latest");
    let machine = Machine::new();
    let told = |options: &[&str], why: &str| {
        let ran = machine.ocifs.run([&["index"][..], options, &[&reference]].concat());
        assert!(ran.code() == 2 && ran.stderr.contains(why), "{options:?}: {}", ran.stderr);
    };
    let second = ["--format", "soci-v2"];
    told(&[&second[..], &["--push"]].concat(), "say which with --tag");
    told(&[&second[..], &["--push", "--tag", "x", "--replace"]].concat(), "leave out --replace");
    told(&[&second[..], &["--output", "oci:/nonexistent"]].concat(), "without its layers");
    told(&[&second[..], &["--tag", "x"]].concat(), "--tag goes with --push");
    told(&[&second[..], &["--push", "--tag", "latest"]].concat(), "such as --tag latest-soci");
    told(&["--push", "--tag", "x"], "--tag goes with --push and --format soci-v2");
    assert!(registry.requests().is_empty());
}

#[test]
fn a_conversion_that_breaks_off_leaves_no_tag_and_goes_on_where_it_broke() {
    if !ready() {
        return;
    }
    let (registry, _) = served(&image());
    registry.set_faults(|request| {
        let is_manifest = matches!(&request.endpoint, Endpoint::Manifest { .. });
        let answer = ocifs::demo::registry::Answer::new(403).body(r#"{"errors":[{"code":"DENIED"}]}"#);
        (request.is_write() && is_manifest).then(|| answer.into())
    });
    let machine = Machine::new();
    let arguments = ["index", "--json", "--format", "soci-v2", "--push", "--tag", "soci", &registry.name("it:latest")];
    assert_eq!(machine.ocifs.run(arguments).code(), 4);
    assert_eq!(machine.ocifs.run(["index", "list", &registry.name("it:soci")]).code(), 3, "there is no such tag");
    registry.set_faults(|_| None);
    let made = machine.ocifs.json(arguments);
    assert_eq!(made[0]["pushed"]["sent"], 0, "every blob is there already");
    assert_eq!(origins(&Machine::new().mount(&[], &registry.name("it:soci"))), ["shared"; 2]);
}
