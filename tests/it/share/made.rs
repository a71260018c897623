//! `ocifs index` as a user meets it.

use std::fs;
use std::process::Stdio;

use ocifs::oci::Digest;
use serde_json::{Value, json};

use super::{Machine, image, served};
use crate::support::{Image, Layer, temp_dir};

#[test]
fn an_index_is_made_once_and_nothing_leaves_the_machine_without_push() {
    let (registry, built) = served(&image());
    let machine = Machine::new();
    let reference = registry.name("it:latest");
    let first = machine.ocifs.run(["index", &reference]).ok();
    assert!(first.stdout.contains("2 streamed now"), "{}", first.stdout);
    assert!(first.stderr.is_empty(), "a pipe gets no progress: {}", first.stderr);
    let second = machine.ocifs.json(["index", "--json", &reference]);
    assert!(second[0]["layers"].as_array().expect("layers").iter().all(|layer| layer["was_streamed"] == false));
    assert!(registry.requests().iter().all(|record| !record.request.is_write()));
    let share = second[0]["layers"][0]["index_size"].as_u64().unwrap_or(u64::MAX);
    assert!(share < built.layers[0].size / 20, "{second}");
}

#[test]
fn indexes_are_listed_shown_and_removed() {
    for page in [100, 0] {
        let (registry, _) = served(&image());
        registry.set_referrers(page);
        let machine = Machine::new();
        let reference = registry.name("it:latest");
        assert!(machine.ocifs.run(["index", "list", &reference]).ok().stdout.contains("has no index"));
        let made = machine.push(&reference);
        let artifact = made["artifact"].as_str().expect("a digest");
        let listed = machine.ocifs.run(["index", "list", &reference]).ok().stdout;
        assert!(
            listed.contains(artifact) && listed.contains("2 of 2") && listed.contains("a mount believes"),
            "{listed}"
        );
        let shown = machine.ocifs.run(["index", "show", &reference]).ok().stdout;
        assert!(shown.contains("BEFORE MOUNT"), "{shown}");
        let wrong = machine.ocifs.run(["index", "rm", "--artifact", &Digest::sha256(b"x").to_string(), &reference]);
        assert_eq!(wrong.code(), 3, "{}", wrong.stderr);
        machine.ocifs.run(["index", "rm", &reference]).ok();
        assert_eq!(machine.ocifs.json(["index", "list", "--json", &reference]), json!([]));
        assert_eq!(machine.ocifs.run(["index", "rm", &reference]).code(), 3);
    }
}

#[test]
fn all_platforms_get_an_index() {
    let (registry, first) = served(&image());
    let second = Image::new().layer(Layer::new().file("other", "x")).config("", "architecture", "s390x");
    let second = second.to_content(registry.content(), "it", "second");
    let entry = |manifest: &ocifs::oci::Descriptor, architecture: &str| {
        json!({ "mediaType": manifest.media_type, "digest": manifest.digest.to_string(), "size": manifest.size,
            "platform": { "os": "linux", "architecture": architecture } })
    };
    let list = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry(&first.manifest, "amd64"), entry(&second.manifest, "s390x")] });
    registry.content().add_manifest("it", Some("many"), "application/vnd.oci.image.index.v1+json", list.to_string());
    let machine = Machine::new();
    let reference = registry.name("it:many");
    let made = machine.ocifs.json(["index", "--json", "--push", "--all-platforms", &reference]);
    let digests: Vec<_> = made.as_array().expect("images").iter().map(|image| image["digest"].clone()).collect();
    assert_eq!(digests, [first.manifest.digest.to_string(), second.manifest.digest.to_string()]);
    for platform in ["linux/amd64", "linux/s390x"] {
        let listed = machine.ocifs.json(["index", "list", "--json", "--platform", platform, &reference]);
        assert_eq!(listed.as_array().map(Vec::len), Some(1), "{platform}");
    }

    // All of them fit into one layout.
    let dir = temp_dir();
    let output = format!("oci:{}", dir.path().display());
    machine.ocifs.run(["index", "--all-platforms", "--output", &output, &reference]).ok();
    let index: Value = serde_json::from_slice(&fs::read(dir.path().join("index.json")).expect("there")).expect("JSON");
    let written = index["manifests"].as_array().expect("entries").iter().map(|entry| entry["digest"].clone());
    let artifacts: Vec<_> = made.as_array().expect("images").iter().map(|image| image["artifact"].clone()).collect();
    assert_eq!(written.collect::<Vec<_>>(), artifacts);
}

#[test]
fn an_index_is_written_into_a_layout() {
    let dir = temp_dir();
    let (images, out) = (dir.path().join("images"), dir.path().join("out"));
    let built = image().to_layout(&images, "v1");
    let machine = Machine::new();
    let output = format!("oci:{}", out.display());
    let made = machine.ocifs.json(["index", "--json", "--output", &output, &format!("oci:{}:v1", images.display())]);
    let index: Value = serde_json::from_slice(&fs::read(out.join("index.json")).expect("there")).expect("JSON");
    assert_eq!(index["manifests"][0]["digest"], made[0]["artifact"]);
    let blob = |digest: &str| fs::read(out.join("blobs/sha256").join(&digest[7..])).expect("a blob");
    let manifest = blob(made[0]["artifact"].as_str().expect("a digest"));
    let manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
    assert_eq!(manifest["subject"]["digest"], built.manifest.digest.to_string());
    for layer in manifest["layers"].as_array().expect("blobs").iter().chain([&manifest["config"]]) {
        let digest = layer["digest"].as_str().expect("a digest");
        assert_eq!(Digest::sha256(&blob(digest)).to_string(), digest);
    }
}

#[test]
fn a_layout_that_holds_its_own_index_still_holds_one_image() {
    let dir = temp_dir();
    image().to_layout(dir.path(), "v1");
    let machine = Machine::new();
    let (name, named) = (format!("oci:{}", dir.path().display()), format!("oci:{}:v1", dir.path().display()));
    machine.ocifs.run(["index", "--output", &name, &name]).ok();
    machine.ocifs.run(["index", "--format", "soci", "--output", &name, &name]).ok();
    let digest = |reference: &str| machine.ocifs.json(["inspect", "--json", reference])["digest"].clone();
    assert_eq!(digest(&name), digest(&named));
}

#[test]
fn two_that_write_into_one_layout_lose_nothing() {
    let dir = temp_dir();
    let output = format!("oci:{}", dir.path().join("out").display());
    let machines: Vec<_> = (0..4).map(|_| Machine::new()).collect();
    let writing = machines.iter().enumerate().map(|(number, machine)| {
        let images = machine.ocifs.home().join("images");
        Image::new().layer(Layer::new().file("f", number.to_string())).to_layout(&images, "v1");
        let mut command = machine.ocifs.command(["index", "--output", &output, &format!("oci:{}", images.display())]);
        command.stdout(Stdio::null()).spawn().expect("it runs")
    });
    for mut child in writing.collect::<Vec<_>>() {
        assert!(child.wait().expect("it ends").success());
    }
    let index = fs::read(dir.path().join("out/index.json")).expect("there");
    let index: Value = serde_json::from_slice(&index).expect("JSON");
    assert_eq!(index["manifests"].as_array().map(Vec::len), Some(4), "{index}");
}

#[test]
fn what_cannot_be_done_is_told_with_what_could() {
    let dir = temp_dir();
    image().to_layout(dir.path(), "v1");
    let machine = Machine::new();
    let local = format!("oci:{}:v1", dir.path().display());
    let ran = machine.ocifs.run(["index", "--push", &local]);
    assert_eq!(ran.code(), 2, "{}", ran.stderr);
    assert!(ran.stderr.contains("is not in a registry") && ran.stderr.contains("--output"), "{}", ran.stderr);
    for (word, verb) in [("list", "list"), ("show", "list"), ("rm", "remove")] {
        let ran = machine.ocifs.run(["index", word, &local]);
        assert!(ran.code() == 2 && ran.stderr.starts_with(&format!("error: cannot {verb} the indexes of ")), "{word}");
        assert!(ran.stderr.ends_with("\nhint: indexes lie beside an image in its registry: name it there\n"), "{word}");
    }
    let ran = machine.ocifs.run(["index", "--profile", "/nonexistent", &local]);
    assert!(ran.code() == 2 && ran.stderr.contains("auto, none or a file"), "{}", ran.stderr);

    let (registry, _) = served(&image());
    registry.set_faults(|request| {
        let body = r#"{"errors":[{"code":"DENIED","message":"read only"}]}"#;
        request.is_write().then(|| ocifs::demo::registry::Answer::new(403).body(body).into())
    });
    let ran = machine.ocifs.run(["index", "--push", &registry.name("it:latest")]);
    assert_eq!(ran.code(), 4, "{}", ran.stderr);
    for part in ["error: cannot index", "DENIED: read only", "hint:"] {
        assert!(ran.stderr.contains(part), "{part}: {}", ran.stderr);
    }
}
