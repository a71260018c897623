//! An index that lies: served because it was believed, found out by fill, and then nothing is served any more.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use ocifs::index::{self, Claim, ClaimedSpan, Compression as Form, Expected, LayerIndex, SpanDigest, Start, Times};
use ocifs::oci::Digest;
use ocifs::share::Bundle;

use super::{Machine, origins, ready, served};
use crate::support::{Compression, Image, Layer, noise};

/// An index of the layer in which `bin/tool` is setuid, which it is not.
fn lie(stream: &[u8]) -> LayerIndex {
    let digest = Digest::sha256(stream);
    let expected = Expected { layer: digest, size: stream.len() as u64, diff_id: digest };
    let piece = bytes::Bytes::copy_from_slice(stream);
    let truth = index::build([Ok::<_, std::io::Error>(piece)].into_iter(), expected).expect("a layer");
    let mut entries: Vec<_> = truth.entries().map(|entry| entry.expect("an entry")).collect();
    let tool = entries.iter_mut().find(|entry| entry.path.ends_with(b"tool")).expect("it is there");
    tool.mode |= 0o4000;
    let Digest::Sha256(sum) = digest else { panic!("SHA-256 was asked for") };
    let span = ClaimedSpan {
        compressed: 0..stream.len() as u64,
        bit: 0,
        skip: 0,
        length: stream.len() as u64,
        start: Start::Fresh,
        digest: SpanDigest::Decoded(sum),
    };
    let claim = Claim {
        compression: Form::None,
        entries,
        spans: vec![span],
        uncompressed_size: stream.len() as u64,
        fidelity: Times::Exact,
        prefetch_end: None,
    };
    LayerIndex::claimed(&expected, claim).expect("well formed")
}

#[test]
fn a_lie_is_found_out_when_the_layer_is_complete_and_ends_the_mount() {
    if !ready() {
        return;
    }
    let layer = Layer::new().dir("bin").file("bin/tool", noise(300_000, 1)).compressed(Compression::None);
    let stream = layer.stream();
    let (registry, built) = served(&Image::new().layer(layer));
    let index = lie(&stream);
    let indexes = [(index.layer(), index.as_bytes().clone(), index.metadata_len())];
    let bundle = Bundle::new(&built.manifest, &indexes, None);
    for (_, bytes) in &bundle.blobs {
        registry.content().add_blob("application/octet-stream", bytes.clone());
    }
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    registry.content().add_manifest("it", None, media_type, bundle.manifest.clone());

    is_found_out(&Machine::new(), &registry.name("it:latest"));
}

/// Expects that an index which calls `bin/tool` setuid is believed until all of the layer is here.
#[track_caller]
pub(super) fn is_found_out(machine: &Machine, reference: &str) {
    assert_eq!(origins(&machine.mount(&[], reference)), ["shared"]);
    let tool = machine.point.path().join("bin/tool");
    let mode = fs::metadata(&tool).expect("it is shown").permissions().mode();
    assert_eq!(mode & 0o7777, 0o4644, "the lie is believed for now");
    machine.ocifs.umount(&machine.point);

    let dir = machine.point.path().to_string_lossy().into_owned();
    let waited = machine.ocifs.run(["mount", "--wait", "--profile-until=0", reference, &dir]);
    assert_eq!(waited.code(), 6, "{}", waited.stderr);
    assert!(waited.stderr.contains("is not what its index says"), "{}", waited.stderr);
    let error = fs::read(&tool).expect_err("nothing is served any more");
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    machine.ocifs.run(["umount", "--lazy", &dir]).ok();

    assert_eq!(origins(&machine.mount(&[], reference)), ["cache"], "the truth is known now");
    let mode = fs::metadata(&tool).expect("it is shown").permissions().mode();
    assert_eq!(mode & 0o7777, 0o644);
}
