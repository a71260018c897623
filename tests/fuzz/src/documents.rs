//! What registries and users say in text: manifests, configurations, artifacts, references, profiles.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use ocifs::oci::{Descriptor, Digest, ImageConfig, Manifest, Platform, Reference, Wanted, no_match, ranked};
use ocifs::profile::{Access, Origin, Profile};
use ocifs::share::{Artifact, Bundle, SociIndex};
use ocifs::signature::{Key, Keys, Signature};
use serde_json::json;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const LIST: &str = "application/vnd.oci.image.index.v1+json";

fn subject() -> Descriptor {
    Descriptor::new(MANIFEST, Digest::sha256(b"image"), 5)
}

/// SOCI's index of an image.
pub(crate) fn soci_index(data: &[u8]) {
    let Ok(index) = SociIndex::parse(data, &subject().digest) else { return };
    for layer in &index.layers {
        assert_eq!(index.layer(&layer.layer), Some(layer), "each layer is listed once");
    }
    // What is written of it is read again, apart from what others have put into it.
    let again = SociIndex::parse(&index.to_bytes(), &subject().digest).expect("what is written can be read");
    assert_eq!(again.layers.len(), index.layers.len());
}

/// An artifact of ours.
pub(crate) fn artifact(data: &[u8]) {
    let Ok(artifact) = Artifact::parse(data, &subject().digest) else { return };
    for layer in &artifact.layers {
        assert_eq!(artifact.layer(&layer.layer), Some(layer), "each layer is listed once");
        std::hint::black_box(layer.claim());
    }
    let again = Artifact::parse(&artifact.to_bytes(), &subject().digest).expect("what is written can be read");
    assert_eq!(again.layers.len(), artifact.layers.len());
}

const KEY: &str = "\
-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAzyDoUuJTz0zoca5AlvWg9eaetYTODrbbup/6+Hy+pWY=
-----END PUBLIC KEY-----
";

/// A bundle, a payload, or a signature as it is kept.
pub(crate) fn signature(data: &[u8]) {
    let keys = [Key::parse("fuzz", KEY.as_bytes()).expect("a key")].into_iter().collect::<Keys>();
    let mut found: Vec<_> = Signature::of_bundle(data).ok().flatten().into_iter().collect();
    found.extend(Signature::simple(data, "AAAA"));
    found.extend(serde_json::from_slice::<Signature>(data));
    for signature in found {
        let artifact = subject().digest;
        std::hint::black_box(signature.is_about(&artifact));
        assert_eq!(signature.signer(&artifact, &keys), None, "the key never signed anything");
        let kept = serde_json::to_vec(&signature).expect("JSON");
        assert_eq!(serde_json::from_slice::<Signature>(&kept).expect("what was written"), signature);
    }
}

/// A public key.
pub(crate) fn key(data: &[u8]) {
    if let Err(error) = Key::parse("fuzz", data) {
        drop(error.to_string());
    }
}

/// A manifest or an image index, whatever it is called.
pub(crate) fn manifest(data: &[u8]) {
    for hint in ["", MANIFEST, LIST] {
        match Manifest::parse(data, hint) {
            Ok(Manifest::Image(image)) => {
                drop(image.check_runnable());
                std::hint::black_box(ocifs::image::soci_pin(&image));
            }
            Ok(Manifest::Index(index)) => {
                for wanted in
                    [Wanted::Host(Platform::host()), Wanted::Exactly(Platform::new("linux", "arm", Some("v7")))]
                {
                    if ranked(&index.entries, &wanted).is_empty() {
                        std::hint::black_box(no_match(&index.entries, &wanted).to_string());
                    }
                }
            }
            Err(error) => drop(error.to_string()),
        }
    }
}

/// The configuration of an image.
pub(crate) fn config(data: &[u8]) {
    match ImageConfig::parse(data) {
        Ok(config) => drop(config.platform.to_string()),
        Err(error) => drop(error.to_string()),
    }
}

/// What a user calls an image.
pub(crate) fn reference(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match text.parse::<Reference>() {
        Ok(reference) => {
            let again: Reference = reference.to_string().parse().expect("what is shown can be given");
            assert_eq!(again, reference);
            if let Reference::Registry(name) = &reference {
                std::hint::black_box((name.familiar(), name.advice()));
            }
            drop(reference.against(std::path::Path::new("/here")));
        }
        Err(error) => drop(error.to_string()),
    }
    drop(text.parse::<Platform>());
    drop(text.parse::<Digest>());
}

/// A recorded start.
pub(crate) fn profile(data: &[u8]) {
    let Ok(profile) = Profile::parse(data) else { return };
    let text = profile.to_text();
    assert_eq!(Profile::parse(text.as_bytes()).expect("what is written can be read"), profile);
}

fn ztocs() -> Vec<(Descriptor, Bytes)> {
    let layer = |name: &'static str| {
        let layer = Descriptor::new("application/vnd.oci.image.layer.v1.tar+gzip", Digest::sha256(name.as_bytes()), 9);
        (layer, Bytes::from_static(name.as_bytes()))
    };
    vec![layer("one"), layer("two")]
}

pub(crate) fn signature_seeds() -> Vec<Vec<u8>> {
    let digest = subject().digest;
    let statement = json!({ "_type": "https://in-toto.io/Statement/v1", "subject": [{ "digest": { "sha256": digest.hex() } }],
        "predicateType": "https://sigstore.dev/cosign/sign/v1", "predicate": {} });
    let payload = BASE64_STANDARD.encode(statement.to_string());
    let kind = "application/vnd.in-toto+json";
    let bundle = json!({ "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json", "dsseEnvelope": {
        "payload": payload, "payloadType": kind, "signatures": [{ "sig": "AAAA" }] } });
    let simple = json!({ "critical": { "identity": { "docker-reference": "a" }, "type": "cosign container image signature",
        "image": { "docker-manifest-digest": digest.to_string() } }, "optional": null });
    let kept = json!({ "payloadType": kind, "payload": payload, "sig": "AAAA" });
    [bundle, simple, kept].map(|text| text.to_string().into_bytes()).to_vec()
}

pub(crate) fn key_seeds() -> Vec<Vec<u8>> {
    vec![KEY.into(), KEY.replace("PUBLIC", "PRIVATE").into()]
}

pub(crate) fn soci_index_seeds() -> Vec<Vec<u8>> {
    let bundles = [Bundle::soci(&subject(), &ztocs()), Bundle::soci_v2(&subject(), &ztocs())];
    bundles.into_iter().map(|bundle| bundle.manifest.to_vec()).collect()
}

fn recorded() -> Profile {
    let origin = Origin { image: Digest::sha256(b"image"), recorded: 7, mount: "/mnt/a b".into() };
    let accesses = [("bin/sh", 0, 100), ("bin/sh", 4096, 8192), ("etc/\u{e9}\n\"x", 5, 6)];
    Profile::new(origin, accesses.into_iter().filter_map(|(path, start, end)| Access::new(path.into(), start, end)))
}

pub(crate) fn artifact_seeds() -> Vec<Vec<u8>> {
    let index = |name: &'static str| (Digest::sha256(name.as_bytes()), Bytes::from_static(name.as_bytes()), 2);
    let bundles =
        [Bundle::new(&subject(), &[index("one"), index("two")], Some(&recorded())), Bundle::new(&subject(), &[], None)];
    bundles.into_iter().map(|bundle| bundle.manifest.to_vec()).collect()
}

pub(crate) fn manifest_seeds() -> Vec<Vec<u8>> {
    let blob =
        |of: &str| json!({ "mediaType": of, "digest": subject().digest.to_string(), "size": 5, "data": "aW1hZ2U=" });
    let image = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": blob("application/vnd.oci.image.config.v1+json"),
        "layers": [blob("application/vnd.oci.image.layer.v1.tar+gzip")], "subject": blob(MANIFEST),
        "annotations": { "com.amazon.soci.index-digest": subject().digest.to_string(), "a": null } });
    let mut entries: Vec<_> = [("amd64", None), ("arm", Some("v7")), ("unknown", None)]
        .into_iter()
        .map(|(architecture, variant)| {
            let mut entry = blob(MANIFEST);
            entry["platform"] = json!({ "os": "linux", "architecture": architecture, "variant": variant,
                "os.version": "10.0", "os.features": ["win32k"] });
            entry
        })
        .collect();
    entries.push(blob(LIST));
    let list = json!({ "schemaVersion": 2, "mediaType": LIST, "manifests": entries });
    let first = json!({ "schemaVersion": 1, "fsLayers": [], "history": [] });
    [image, list, first].iter().map(|document| document.to_string().into_bytes()).collect()
}

pub(crate) fn config_seeds() -> Vec<Vec<u8>> {
    let config = json!({ "architecture": "arm64", "variant": "v8", "os": "linux", "os.version": "1", "os.features": [],
        "config": { "Env": ["A=b"], "Cmd": ["x"], "Entrypoint": ["/bin/sh", "-c"], "User": "1:2", "WorkingDir": "/",
            "ExposedPorts": { "80/tcp": {} }, "Labels": { "a": "b" }, "Volumes": null, "StopSignal": "TERM" },
        "rootfs": { "type": "layers", "diff_ids": [subject().digest.to_string()] },
        "history": [{ "created_by": "x", "empty_layer": true }], "created": "2020-01-01T00:00:00Z" });
    vec![config.to_string().into_bytes(), config.to_string().to_uppercase().into_bytes()]
}

pub(crate) fn reference_seeds() -> Vec<Vec<u8>> {
    let digest = subject().digest;
    let texts = [
        "debian:12",
        "ghcr.io/a/b:c",
        "localhost:5000/x",
        "[::1]:5000/x:y",
        "docker://a",
        "oci:dir:tag",
        "oci-archive:a.tar:@3",
        "docker-archive:/x.tar:debian:12",
        "linux/arm/v7",
        "https://x/y",
        "./a",
        "dir:/x",
    ];
    let pinned = [format!("a/b@{digest}"), format!("a/b:c@{digest}"), format!("oci:x@{digest}"), digest.to_string()];
    texts.iter().map(|text| text.as_bytes().to_vec()).chain(pinned.map(String::into_bytes)).collect()
}

pub(crate) fn profile_seeds() -> Vec<Vec<u8>> {
    vec![recorded().to_text().into_bytes()]
}
