//! Who is not believed, and what is refused: the layer is then streamed as if nobody had made an index of it.

use std::fs;
use std::process::Command;

use ocifs::demo::registry::{Endpoint, Fault};
use ocifs::oci::Digest;
use serde_json::{Value, json};

use super::{Machine, image, origins, ready, served};
use crate::support::{Built, Embedded, output_of};

#[test]
fn a_digest_binds_no_index_unless_the_user_says_so() {
    if !ready() {
        return;
    }
    let (registry, built) = served(&image());
    let (tagged, pinned) = (registry.name("it:latest"), registry.name(&format!("it@{}", built.manifest.digest)));
    Machine::new().push(&tagged);
    for (options, reference, origin, reason) in [
        (&[][..], &pinned, "first-contact", "pinned by its digest"),
        (&["--trust-index=registry"], &pinned, "shared", "--trust-index registry was given"),
        (&["--trust-index=none"], &tagged, "first-contact", "--trust-index none was given"),
        (&["--trust-index=registry"], &tagged, "shared", "--trust-index registry was given"),
    ] {
        registry.forget_requests();
        let machine = Machine::new();
        let report = machine.mount(options, reference);
        assert_eq!(origins(&report), [origin; 2], "{options:?} {reference}");
        let told = report["layers"][0]["index_reason"].as_str().unwrap_or_default();
        assert!(told.contains(reason), "{told}");
        let asked =
            registry.requests().iter().any(|record| matches!(record.request.endpoint, Endpoint::Referrers { .. }));
        assert_eq!(asked, origin == "shared", "who is not believed is not asked");
        let shown = machine.ocifs.run(["status".as_ref(), machine.point.path().as_os_str()]).ok().stdout;
        assert!(shown.contains(reason), "{shown}");
    }
}

#[test]
fn who_believed_an_index_does_not_make_others_believe_it() {
    if !ready() {
        return;
    }
    let (registry, built) = served(&image());
    let (tagged, pinned) = (registry.name("it:latest"), registry.name(&format!("it@{}", built.manifest.digest)));
    Machine::new().push(&tagged);
    let machine = Machine::new();
    assert_eq!(origins(&machine.mount(&[], &tagged)), ["shared"; 2]);
    machine.ocifs.umount(&machine.point);
    assert_eq!(origins(&machine.mount(&[], &pinned)), ["first-contact"; 2], "D-025");
}

/// Mounts an image whose artifact is `change`d, or whose blobs are served with `fault`, and expects its true tree.
fn streamed(change: impl Fn(&mut Value), fault: Option<Fault>) {
    let (registry, built) = served(&image());
    let reference = registry.name("it:latest");
    let maker = Machine::new();
    let made = maker.push(&reference);
    forge(&registry, &built, made["artifact"].as_str().expect("a digest"), change);
    let layers: Vec<String> = built.layers.iter().chain([&built.config]).map(|blob| blob.digest.to_string()).collect();
    registry.set_faults(move |request| match &request.endpoint {
        Endpoint::Blob { digest, .. } if !layers.contains(digest) => fault.clone(),
        _ => None,
    });
    let machine = Machine::new();
    let report = machine.mount(&[], &reference);
    assert!(origins(&report).contains(&"first-contact"), "{report}");
    assert_eq!(fs::read(machine.point.path().join("usr/text0")).expect("here"), super::prose(4 << 20, 0));
    assert_eq!(fs::read(machine.point.path().join("etc/conf")).expect("here"), b"a = b\n");
}

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// Where the registry has an artifact of the image, and what that says.
fn artifact_of(registry: &Embedded, built: &Built, artifact: &str) -> (String, Value) {
    let url = format!("http://{}/v2/it/manifests/{artifact}", registry.addr());
    let text = output_of(Command::new("curl").args(["-s", &url]));
    let document: Value = serde_json::from_str(&text).expect("a manifest");
    assert_eq!(document["subject"]["digest"], built.manifest.digest.to_string());
    (url, document)
}

/// Puts a changed artifact in the place of the honest one.
fn forge(registry: &Embedded, built: &Built, artifact: &str, change: impl Fn(&mut Value)) {
    let (url, mut document) = artifact_of(registry, built, artifact);
    change(&mut document);
    output_of(Command::new("curl").args(["-sf", "-X", "DELETE", &url]));
    registry.content().add_manifest("it", None, MANIFEST_TYPE, document.to_string());
}

#[test]
fn an_index_is_found_among_many_that_make_no_sense() {
    if !ready() {
        return;
    }
    for page in [100, 0] {
        let (registry, built) = served(&image());
        registry.set_referrers(page);
        let reference = registry.name("it:latest");
        let maker = Machine::new();
        let made = maker.push(&reference);
        let (url, mut document) = artifact_of(&registry, &built, made["artifact"].as_str().expect("a digest"));
        let place =
            url.strip_suffix(made["artifact"].as_str().expect("a digest")).expect("it ends with that").to_owned();
        let content_type = format!("content-type: {MANIFEST_TYPE}");
        for number in 0..40 {
            document["layers"][0]["annotations"] = json!({ "number": number.to_string() });
            let text = document.to_string();
            let url = format!("{place}{}", Digest::sha256(text.as_bytes()));
            let put = ["-sf", "-X", "PUT", "-H", &content_type, "--data-binary", &text, &url];
            output_of(Command::new("curl").args(put));
        }
        assert_eq!(origins(&Machine::new().mount(&[], &reference)), ["shared"; 2], "{page}");
    }
}

#[test]
fn an_index_with_a_wrong_byte_is_refused() {
    if !ready() {
        return;
    }
    streamed(|_| {}, Some(Fault::Corrupt { offset: 20 }));
}

#[test]
fn an_index_that_ends_early_is_refused() {
    if !ready() {
        return;
    }
    streamed(|_| {}, Some(Fault::OtherRange(0..100)));
}

#[test]
fn an_index_that_is_not_there_is_no_reason_to_fail() {
    if !ready() {
        return;
    }
    streamed(|_| {}, Some(Fault::status(404)));
}

#[test]
fn an_index_of_another_layer_is_refused() {
    if !ready() {
        return;
    }
    let swap = |document: &mut Value| {
        let key = "dev.ocifs.layer.digest";
        let one = document["layers"][0]["annotations"][key].clone();
        let two = std::mem::replace(&mut document["layers"][1]["annotations"][key], one);
        document["layers"][0]["annotations"][key] = two;
    };
    streamed(swap, None);
}

#[test]
fn an_artifact_that_makes_no_sense_is_refused() {
    if !ready() {
        return;
    }
    streamed(|document| document["layers"][0]["annotations"] = json!({}), None);
    streamed(|document| document["layers"][0]["size"] = json!(1_u64 << 50), None);
}

#[test]
fn an_index_of_another_content_is_refused() {
    if !ready() {
        return;
    }
    let (registry, built) = served(&image());
    let made = Machine::new().push(&registry.name("it:latest"));
    let (url, mut artifact) = artifact_of(&registry, &built, made["artifact"].as_str().expect("a digest"));
    let place = url.split_once("/v2/").expect("a path").0.to_owned();
    let get = |path: &str| -> Value {
        let text = output_of(Command::new("curl").args(["-sf", &format!("{place}/v2/it/{path}")]));
        serde_json::from_str(&text).expect("JSON")
    };
    // An image of the same layers that says of one that it holds something else. The honest index is put beside it.
    let mut config = get(&format!("blobs/{}", built.config.digest));
    config["rootfs"]["diff_ids"][1] = Digest::sha256(b"something else").to_string().into();
    let config = registry.content().add_blob("", config.to_string().into_bytes());
    let mut manifest = get(&format!("manifests/{}", built.manifest.digest));
    manifest["config"]["digest"] = config.digest.to_string().into();
    manifest["config"]["size"] = config.size.into();
    let manifest = registry.content().add_manifest("it", Some("other"), MANIFEST_TYPE, manifest.to_string());
    artifact["subject"]["digest"] = manifest.digest.to_string().into();
    artifact["subject"]["size"] = manifest.size.into();
    registry.content().add_manifest("it", None, MANIFEST_TYPE, artifact.to_string());
    let machine = Machine::new();
    let dir = machine.point.path().to_string_lossy().into_owned();
    let ran = machine.ocifs.run(["mount", "--fill=off", &registry.name("it:other"), &dir]);
    assert_ne!(ran.code(), 0, "the layer itself is not what the image says");
    assert!(ran.stderr.contains(&Digest::sha256(b"something else").to_string()), "{}", ran.stderr);
    assert!(machine.ocifs.log().contains("the shared index is of another content"), "{}", machine.ocifs.log());
}
