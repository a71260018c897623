//! SOCI's index version 2: named by the image's manifest, and so believed whoever the reference leaves out.

use std::fs;
use std::process::Command;

use ocifs::demo::registry::Fault;
use ocifs::oci::{Descriptor, Digest};

use super::lies::is_found_out;
use super::soci::push_soci;
use super::*;
use crate::support::{Compression, output_of};
use serde_json::json;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const LIST: &str = "application/vnd.oci.image.index.v1+json";
const V2: &str = "application/vnd.amazon.soci.index.v2+json";

/// An image whose manifest pins a SOCI index, as `it:second`, with its original as `it:latest`.
struct Second {
    registry: Embedded,
    built: Built,
    /// The manifest that has the annotation.
    manifest: Descriptor,
    /// The image index that lists the image and the SOCI index.
    list: Descriptor,
    /// The SOCI index.
    index: Descriptor,
}

impl Second {
    /// Writes what `soci convert` writes of an image.
    fn of(image: &Image) -> Self {
        Self::spoilt(image, |_, _| {})
    }

    /// The same with another index, for which blobs can be added.
    fn spoilt(image: &Image, spoil: impl Fn(&mut Value, &Embedded)) -> Self {
        let (registry, built) = served(image);
        let mut index = second(&registry, &built);
        spoil(&mut index, &registry);
        let index = registry.content().add_manifest("it", None, MANIFEST, index.to_string());
        Self::pinning(registry, built, index)
    }

    fn pinning(registry: Embedded, built: Built, index: Descriptor) -> Self {
        let mut manifest = document(&registry, &built.manifest.digest.to_string());
        manifest["annotations"] = json!({ "com.amazon.soci.index-digest": index.digest.to_string() });
        let manifest = registry.content().add_manifest("it", None, MANIFEST, manifest.to_string());
        let entry = |of: &Descriptor| {
            json!({ "mediaType": MANIFEST, "digest": of.digest.to_string(), "size": of.size,
                "platform": { "os": "linux", "architecture": "amd64" } })
        };
        let mut beside = entry(&index);
        beside["artifactType"] = V2.into();
        beside["annotations"] = json!({ "com.amazon.soci.image-manifest-digest": manifest.digest.to_string() });
        let list = json!({ "schemaVersion": 2, "mediaType": LIST, "manifests": [entry(&manifest), beside] });
        let list = registry.content().add_manifest("it", Some("second"), LIST, list.to_string());
        registry.forget_requests();
        Self { registry, built, manifest, list, index }
    }

    fn tag(&self) -> String {
        self.registry.name("it:second")
    }

    fn pinned(&self, digest: &Digest) -> String {
        self.registry.name(&format!("it@{digest}"))
    }

    /// Whether somebody looked for what lies beside the image.
    fn was_searched(&self) -> bool {
        let is_search = |endpoint: &Endpoint| matches!(endpoint, Endpoint::Referrers { .. });
        self.registry.requests().iter().any(|record| is_search(&record.request.endpoint))
    }
}

/// A document of the repository.
fn document(registry: &Embedded, digest: &str) -> Value {
    let url = format!("http://{}/v2/it/manifests/{digest}", registry.addr());
    let text = output_of(Command::new("curl").args(["-sf", &url]));
    serde_json::from_str(&text).expect("JSON")
}

/// SOCI's index version 2 of the image, with the zTOCs that this program made for version 1.
fn second(registry: &Embedded, built: &Built) -> Value {
    let first = push_soci(&Machine::new(), &registry.name("it:latest"));
    let first = document(registry, first["artifact"].as_str().expect("a digest"));
    let layer = |name: &str, layer: &Descriptor| json!({ name: layer.digest.to_string() });
    let mut ztocs = Vec::new();
    for (ztoc, of) in first["layers"].as_array().expect("zTOCs").iter().zip(&built.layers) {
        let mut annotations = layer("com.amazon.soci.image-layer-digest", of);
        annotations["com.amazon.soci.image-layer-mediaType"] = of.media_type.clone().into();
        annotations["com.amazon.soci.span-size"] = "4194304".into();
        ztocs.push(json!({ "mediaType": "application/octet-stream", "digest": ztoc["digest"], "size": ztoc["size"],
            "annotations": annotations }));
    }
    let spans = registry.content().add_blob("", &br#"{"version":"1.0","prefetch_spans":[]}"#[..]);
    ztocs.push(json!({ "mediaType": "application/vnd.amazon.soci.prefetch.v1+json",
        "digest": spans.digest.to_string(), "size": spans.size,
        "annotations": layer("com.amazon.soci.image-layer-digest", &built.layers[0]) }));
    json!({ "schemaVersion": 2, "mediaType": MANIFEST,
        "config": { "mediaType": V2, "digest": Digest::sha256(b"{}").to_string(), "size": 2 },
        "layers": ztocs,
        "annotations": { "com.amazon.soci.build-tool-identifier": "AWS SOCI CLI v0.2" } })
}

#[test]
fn a_pinned_soci_index_makes_the_first_mount_lazy_by_tag_and_by_digest() {
    if !ready() {
        return;
    }
    let image = Second::of(&image());
    let truth = Machine::new();
    truth.mount(&["--trust-index", "none"], &image.registry.name("it:latest"));
    let truth = truth.tree();
    for reference in [image.tag(), image.pinned(&image.list.digest), image.pinned(&image.manifest.digest)] {
        image.registry.forget_requests();
        let machine = Machine::new();
        let report = machine.mount(&[], &reference);
        assert_eq!(origins(&report), ["shared"; 2], "{reference}");
        assert_eq!(report["layers"][0]["index_artifact"], image.index.digest.to_string());
        assert_eq!(report["layers"][0]["index_reason"], "the image's manifest pins it");
        let shown = machine.ocifs.run(["status".as_ref(), machine.point.path().as_os_str()]).ok().stdout;
        assert!(shown.contains("the image's manifest pins it"), "{shown}");
        assert_eq!(layer_bytes(&image.registry, &image.built), 0, "no byte of a layer was needed");
        assert!(!image.was_searched(), "nothing else was looked for");
        assert!(truth == machine.tree(), "the same tree");

        // What it says is kept.
        machine.ocifs.umount(&machine.point);
        image.registry.forget_requests();
        assert_eq!(origins(&machine.mount(&["--offline"], &reference)), ["shared"; 2]);
        assert_eq!(image.registry.requests().len(), 0);
        machine.ocifs.umount(&machine.point);
    }
}

#[test]
fn a_pinned_soci_index_is_proven_by_fill() {
    if !ready() {
        return;
    }
    let image = Second::of(&image());
    let machine = Machine::new();
    let reference = image.pinned(&image.manifest.digest);
    assert_eq!(origins(&machine.mount(&[], &reference)), ["shared"; 2]);
    machine.ocifs.umount(&machine.point);
    machine.ocifs.run(["mount", "--wait", &reference, &machine.point.path().to_string_lossy()]).ok();
    machine.ocifs.umount(&machine.point);
    assert_eq!(origins(&machine.mount(&["--offline"], &reference)), ["cache"; 2]);
}

#[test]
fn d_025_who_believes_nobody_does_not_ask_for_a_pinned_soci_index() {
    if !ready() {
        return;
    }
    let image = Second::of(&image());
    let report = Machine::new().mount(&["--trust-index", "none"], &image.tag());
    assert_eq!(origins(&report), ["first-contact"; 2]);
    let reason = report["layers"][0]["index_reason"].as_str().unwrap_or_default();
    assert!(reason.contains("--trust-index none"), "{reason}");
    let digest = image.index.digest.to_string();
    let requests = image.registry.requests();
    let is_of_index =
        |endpoint: &Endpoint| matches!(endpoint, Endpoint::Manifest { reference, .. } if *reference == digest);
    assert!(!requests.iter().any(|record| is_of_index(&record.request.endpoint)));
}

#[test]
fn layers_that_a_pinned_soci_index_does_not_list_are_treated_as_before() {
    if !ready() {
        return;
    }
    let image = Second::spoilt(&image(), |index, _| {
        index["layers"].as_array_mut().expect("zTOCs").remove(1);
    });
    let report = Machine::new().mount(&[], &image.pinned(&image.manifest.digest));
    assert_eq!(origins(&report), ["shared", "first-contact"]);
    assert!(!image.was_searched(), "a digest binds nothing that lies beside the image");
    Machine::new().push(&image.tag());
    let report = Machine::new().mount(&[], &image.tag());
    assert_eq!(origins(&report), ["shared"; 2]);
    assert_eq!(report["layers"][0]["index_artifact"], image.index.digest.to_string());
    assert_ne!(report["layers"][1]["index_artifact"], image.index.digest.to_string());
}

/// Mounts an image whose index cannot be used for its first layer, and expects its true tree: streamed where nothing lies
/// beside it, and by an index of ours where one does.
#[track_caller]
fn refused(image: &Second) {
    let is_true = |machine: &Machine| {
        assert_eq!(fs::read(machine.point.path().join("usr/text0")).expect("here"), prose(4 << 20, 0));
        assert_eq!(fs::read(machine.point.path().join("etc/conf")).expect("here"), b"a = b\n");
    };
    for reference in [image.tag(), image.pinned(&image.manifest.digest)] {
        let machine = Machine::new();
        assert_eq!(origins(&machine.mount(&[], &reference))[0], "first-contact", "{reference}");
        is_true(&machine);
    }
    let made = Machine::new().push(&image.tag());
    let machine = Machine::new();
    let report = machine.mount(&[], &image.tag());
    assert_eq!(origins(&report), ["shared"; 2]);
    assert_eq!(report["layers"][0]["index_artifact"], made["artifact"]);
    is_true(&machine);
}

#[test]
fn a_pinned_soci_index_that_is_not_there_is_no_reason_to_fail() {
    if !ready() {
        return;
    }
    let (registry, built) = served(&image());
    refused(&Second::pinning(registry, built, Descriptor::new(MANIFEST, Digest::sha256(b"nothing"), 7)));
}

#[test]
fn a_pinned_soci_index_with_a_wrong_byte_is_refused() {
    if !ready() {
        return;
    }
    let image = Second::of(&image());
    let digest = image.index.digest.to_string();
    image.registry.set_faults(move |request| match &request.endpoint {
        Endpoint::Manifest { reference, .. } if *reference == digest => Some(Fault::Corrupt { offset: 20 }),
        _ => None,
    });
    refused(&image);
}

#[test]
fn a_pinned_soci_index_that_makes_no_sense_or_is_of_another_image_is_refused() {
    if !ready() {
        return;
    }
    let other = Digest::sha256(b"another layer").to_string();
    refused(&Second::spoilt(&image(), |index, _| index["layers"][0]["annotations"] = json!({})));
    refused(&Second::spoilt(&image(), |index, _| {
        index["layers"].as_array_mut().expect("zTOCs").truncate(1);
        index["layers"][0]["annotations"]["com.amazon.soci.image-layer-digest"] = other.clone().into();
    }));
    refused(&Second::spoilt(&image(), |index, _| {
        index["subject"] = json!({ "mediaType": MANIFEST, "digest": other.clone(), "size": 7 });
    }));
}

#[test]
fn a_pinned_ztoc_that_is_no_ztoc_or_is_not_there_is_refused() {
    if !ready() {
        return;
    }
    let put = |index: &mut Value, blob: &Descriptor| {
        index["layers"][0]["digest"] = blob.digest.to_string().into();
        index["layers"][0]["size"] = blob.size.into();
    };
    refused(&Second::spoilt(&image(), |index, registry| {
        put(index, &registry.content().add_blob("", noise(10_000, 1)));
    }));
    let missing = Descriptor::new("", Digest::sha256(b"nothing"), 7);
    refused(&Second::spoilt(&image(), |index, _| put(index, &missing)));
    // The zTOC of the other layer.
    refused(&Second::spoilt(&image(), |index, _| {
        let other = index["layers"][1].clone();
        index["layers"][0]["digest"] = other["digest"].clone();
        index["layers"][0]["size"] = other["size"].clone();
    }));
}

#[test]
fn a_pinned_ztoc_that_lies_is_found_out_when_the_layer_is_complete() {
    if !ready() {
        return;
    }
    let layer = Layer::new().dir("bin").file("bin/tool", noise(300_000, 1)).compressed(Compression::None);
    let image = Second::spoilt(&Image::new().layer(layer), |index, registry| {
        let digest = index["layers"][0]["digest"].as_str().expect("a digest");
        let url = format!("http://{}/v2/it/blobs/{digest}", registry.addr());
        let mut ztoc = Command::new("curl").args(["-sf", &url]).output().expect("curl runs").stdout;
        // The mode of the only file.
        let [mode, lie] = [0o644_i64, 0o4644].map(i64::to_le_bytes);
        let places: Vec<usize> = (0..ztoc.len()).filter(|place| ztoc[*place..].starts_with(&mode)).collect();
        let [place] = places[..] else { panic!("it is in one place, not in {places:?}") };
        ztoc[place..place + 8].copy_from_slice(&lie);
        index["layers"][0]["digest"] = registry.content().add_blob("", ztoc).digest.to_string().into();
    });
    is_found_out(&Machine::new(), &image.pinned(&image.manifest.digest));
}
