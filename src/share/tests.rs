//! Artifacts: written in one way only, and read with suspicion.

use std::fs;

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::oci::Descriptor;
use crate::profile::{Access, Origin, Profile};

fn subject() -> Descriptor {
    Descriptor::new("application/vnd.oci.image.manifest.v1+json", Digest::sha256(b"image"), 5)
}

fn profile(mount: &str, recorded: u64) -> Profile {
    let origin = Origin { image: Digest::sha256(b"elsewhere"), recorded, mount: mount.into() };
    Profile::new(origin, Access::new(b"bin/sh".to_vec(), 0, 100))
}

fn bundle() -> Bundle {
    let index = |text: &'static str| (Digest::sha256(text.as_bytes()), Bytes::from(format!("index of {text}")), 8);
    Bundle::new(&subject(), &[index("one"), index("two")], Some(&profile("/mnt", 7)))
}

#[test]
fn an_artifact_is_read_as_it_was_written() {
    let bundle = bundle();
    let read = Artifact::parse(&bundle.manifest, &subject().digest).expect("ours");
    assert_eq!(read.layers.len(), 2);
    assert_eq!(read.layers[0].layer, Digest::sha256(b"one"));
    assert_eq!(read.layers[0].blob.digest, Digest::sha256(b"index of one"));
    assert_eq!(read.layers[0].metadata, Metadata { size: 8, digest: Digest::sha256(b"index of") });
    assert_eq!(read.profile.as_ref().map(|blob| blob.digest), bundle.artifact.profile.as_ref().map(|blob| blob.digest));
    assert_eq!(read.to_bytes(), bundle.manifest);
    assert_eq!(bundle.blobs.len(), 4, "configuration, two indexes and a profile");
    assert!(bundle.blobs.iter().all(|(digest, bytes)| digest.matches(bytes)));
}

#[test]
fn where_and_when_a_profile_was_recorded_does_not_travel() {
    let bundle = |mount, recorded| Bundle::new(&subject(), &[], Some(&profile(mount, recorded)));
    assert_eq!(bundle("/home/me", 1).digest(), bundle("/mnt", 2).digest());
    let text = String::from_utf8(bundle("/home/me", 1).blobs[1].1.to_vec()).expect("text");
    assert!(!text.contains("/home/me") && text.contains("bin/sh"), "{text}");
    assert!(!bundle("/mnt", 1).manifest.windows(4).any(|part| part == b"time"), "no time stamps");
}

#[test]
fn artifacts_that_say_what_they_may_not_are_refused() {
    let honest: Value = serde_json::from_slice(&bundle().manifest).expect("JSON");
    let lie = |pointer: &str, value: Value| {
        let mut lie = honest.clone();
        *lie.pointer_mut(pointer).expect("it is there") = value;
        let error = Artifact::parse(lie.to_string().as_bytes(), &subject().digest).expect_err(pointer);
        assert!(matches!(error, Error::Artifact { .. } | Error::Manifest { .. }), "{pointer}: {error}");
    };
    lie("/artifactType", json!("application/vnd.other"));
    lie("/subject/digest", json!(Digest::sha256(b"other").to_string()));
    lie("/subject", Value::Null);
    lie("/layers/0/size", json!(1_u64 << 40));
    lie("/layers/0/size", json!(-1));
    lie("/layers/0/annotations/dev.ocifs.index.metadata.size", json!("999"));
    lie("/layers/0/annotations/dev.ocifs.index.metadata.size", json!("-1"));
    lie("/layers/0/annotations/dev.ocifs.index.metadata.digest", json!("sha256:0"));
    lie("/layers/0/annotations/dev.ocifs.layer.digest", json!(Digest::sha256(b"two").to_string()));
    lie("/layers/0/annotations", json!({}));
    lie("/layers/0/digest", json!("md5:0"));
}

#[test]
fn blobs_of_types_of_later_versions_are_passed_over() {
    let mut later: Value = serde_json::from_slice(&bundle().manifest).expect("JSON");
    later["layers"][1]["mediaType"] = json!("application/vnd.ocifs.layer-index.v2");
    let read = Artifact::parse(later.to_string().as_bytes(), &subject().digest).expect("the rest is known");
    assert_eq!(read.layers.len(), 1);
    assert!(read.layer(&Digest::sha256(b"two")).is_none());
}

#[test]
fn a_layout_lists_the_artifact_once_beside_what_it_had() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("new/layout");
    fs::create_dir_all(&path).expect("a directory");
    let before = json!({ "schemaVersion": 2, "manifests": [{ "digest": "sha256:x" }], "annotations": { "a": "b" } });
    fs::write(path.join("index.json"), before.to_string()).expect("written");
    let bundle = bundle();
    for _ in 0..2 {
        write_layout(&path, &bundle).expect("written");
    }
    let after: Value = serde_json::from_slice(&fs::read(path.join("index.json")).expect("there")).expect("JSON");
    assert_eq!(after["annotations"], before["annotations"]);
    let entries = after["manifests"].as_array().expect("a list");
    assert_eq!(entries.len(), 2);
    assert_eq!(entries[1]["digest"], bundle.digest().to_string());
    assert_eq!(fs::read_to_string(path.join("oci-layout")).expect("there"), r#"{"imageLayoutVersion":"1.0.0"}"#);
    for (digest, bytes) in &bundle.blobs {
        assert_eq!(fs::read(path.join("blobs/sha256").join(digest.hex())).expect("there"), bytes[..]);
    }
    fs::write(path.join("index.json"), "[]").expect("written");
    assert!(write_layout(&path, &bundle).is_err(), "what is no list is not replaced");
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), at in 0_usize..900) {
        drop(Artifact::parse(&bytes, &subject().digest));
        let mut damaged = bundle().manifest.to_vec();
        let at = at % damaged.len();
        damaged.splice(at..at + 1, bytes);
        drop(Artifact::parse(&damaged, &subject().digest));
    }
}

#[test]
fn d_025_what_an_artifact_says_is_kept_by_what_is_checked_and_not_by_what_it_claims_to_be() {
    let layer = Digest::sha256(b"one");
    let honest = LayerBlob::new(layer, b"index of one", 8);
    // It names the blob of the honest one, or what a user imports, and has other bytes.
    let evil = LayerBlob::new(layer, b"INDEX of one", 8);
    for name in [honest.blob.digest, crate::store::IMPORTED] {
        let mut lying = evil.clone();
        lying.blob.digest = name;
        assert!(![honest.claim(), honest.blob.digest, crate::store::IMPORTED].contains(&lying.claim()));
        assert_eq!(lying.claim(), evil.claim(), "by its bytes alone");
    }
}

#[test]
fn b_173_what_is_pushed_has_no_byte_of_a_layer() {
    // Whether a layer may be distributed at all is its owner's business: only what was made of it travels.
    let layer =
        Descriptor::new("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", Digest::sha256(b"one"), 3);
    let soci = Bundle::soci(&subject(), &[(layer, Bytes::from_static(b"zTOC of one"))]);
    for (bundle, made) in [(bundle(), &b"index of one"[..]), (soci, b"zTOC of one")] {
        let is_pushed = |bytes: &[u8]| bundle.blobs.iter().any(|(digest, _)| *digest == Digest::sha256(bytes));
        assert!(is_pushed(made) && !is_pushed(b"one"));
        let manifest: Value = serde_json::from_slice(&bundle.manifest).expect("JSON");
        let listed = manifest["layers"].as_array().expect("a list").iter().chain([&manifest["config"]]);
        let digests: Vec<_> = listed.map(|blob| blob["digest"].as_str().expect("a digest").to_owned()).collect();
        assert!(bundle.blobs.iter().all(|(digest, _)| digests.contains(&digest.to_string())));
    }
}
