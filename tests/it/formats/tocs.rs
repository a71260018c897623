//! Images whose layers bring their own index: eStargz, stargz, eStargz with the TOC in another image, and zstd:chunked as both
//! of its writers write it. Lazy at once, and the same tree as ever.

use std::fs;
use std::path::Path;

use ocifs::oci::Digest;
use serde_json::{Value, json};

use super::forms::{Blob, compressed, write_image};
use super::writer::{Form, How, Written, write, write_changed};
use super::{Bench, oci, places};
use crate::support::{
    BIG, Compression, Embedded, Field, Layer, Mount, Ocifs, Tree, assert_same, big, noise, rich, walk,
};

/// What `status` calls the way to an index.
fn indexed(form: Form) -> &'static str {
    match form {
        Form::Estargz | Form::Stargz | Form::External => "estargz",
        Form::ZstdStargz | Form::ZstdStorage => "zstd:chunked",
    }
}

fn blob(form: Form, written: &Written) -> Blob {
    let blob = Blob::new(&written.stream, written.blob.clone(), form.media_type());
    Blob { annotations: written.annotations.clone(), ..blob }
}

/// The manifest of an image with the TOCs that layers have outside, and its blobs.
fn toc_image(written: &[Written]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let mut blobs = vec![b"{}".to_vec()];
    let mut layers = Vec::new();
    for written in written {
        let archive = written.archive.clone().expect("a TOC outside");
        let annotations =
            json!({ "containerd.io/snapshot/stargz/layer.digest": Digest::sha256(&written.blob).to_string() });
        layers.push(described(&archive, "application/vnd.oci.image.layer.v1.tar+gzip", annotations));
        blobs.push(archive);
    }
    let config = described(b"{}", "application/vnd.oci.image.config.v1+json", json!({}));
    let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers });
    (manifest.to_string().into_bytes(), blobs)
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn described(bytes: &[u8], media_type: &str, annotations: Value) -> Value {
    let digest = Digest::sha256(bytes).to_string();
    json!({ "mediaType": media_type, "digest": digest, "size": bytes.len(), "annotations": annotations })
}

/// Adds the image of TOCs to a layout and, under the same name, to a registry.
fn add_toc_image(layout: &Path, registry: &Embedded, written: &[Written]) {
    let (manifest, blobs) = toc_image(written);
    for bytes in blobs.iter().chain([&manifest]) {
        fs::write(layout.join("blobs/sha256").join(Digest::sha256(bytes).hex()), bytes).expect("a blob can be written");
        registry.content().add_blob("application/octet-stream", bytes.clone());
    }
    let path = layout.join("index.json");
    let mut index: Value = serde_json::from_slice(&fs::read(&path).expect("an index")).expect("JSON");
    let name = json!({ "org.opencontainers.image.ref.name": "latest-esgztoc" });
    index["manifests"].as_array_mut().expect("a list").push(described(&manifest, MANIFEST, name));
    fs::write(path, index.to_string()).expect("an index can be written");
    registry.content().add_manifest("it", Some("latest-esgztoc"), MANIFEST, manifest);
}

/// An image mounted with nothing in the cache: what `status` tells of its layers before anything is read, and its tree.
fn mounted(bench: &Bench, reference: &str) -> (Vec<Value>, Tree) {
    bench.ocifs.drop_all();
    mounted_again(bench, reference)
}

fn mounted_again(bench: &Bench, reference: &str) -> (Vec<Value>, Tree) {
    bench.ocifs.mount(reference, &bench.point);
    let layers = bench.layers();
    let tree = walk(bench.point.path()).expect("a tree");
    bench.ocifs.umount(&bench.point);
    (layers, tree)
}

/// Whole seconds are all that most of these formats keep.
fn is_lost(form: Form) -> impl Fn(&[u8], Field) -> bool {
    move |_, field| form != Form::ZstdStorage && field == Field::Mtime
}

/// True for the whole seconds of two trees.
fn assert_same_seconds(left: &Tree, right: &Tree) {
    for (path, left) in left {
        assert_eq!(left.mtime.0, right[path].mtime.0, "/{}", path.escape_ascii());
    }
}

#[test]
fn a_232_layers_with_a_toc_give_the_same_tree_and_are_lazy_at_once() {
    let Some(bench) = Bench::new() else { return };
    let home = bench.ocifs.home();
    // A document in JSON cannot say a name that is not UTF-8; sparse members are none that these tools write.
    let streams = rich(50).without(b"names/\xff\xfe").streams();
    let plain = home.join("plain");
    write_image(&plain, &compressed(&streams, Compression::None));
    let expected = bench.first_contact(&oci(&plain));
    for form in Form::ALL {
        let how = How { chunk: 1 << 20, ..How::new(form) };
        let written: Vec<Written> = streams[..2].iter().map(|stream| write(stream, how)).collect();
        let mut blobs: Vec<Blob> = written.iter().map(|written| blob(form, written)).collect();
        blobs.extend(compressed(&streams[2..], Compression::Gzip));
        let layout = home.join(format!("{form:?}"));
        write_image(&layout, &blobs);
        let registry = places::embedded(&layout);
        if form == Form::External {
            add_toc_image(&layout, &registry, &written);
        }
        for reference in [oci(&layout), registry.name("it:latest")] {
            eprintln!("{reference}");
            let (layers, tree) = mounted(&bench, &reference);
            for (layer, written) in layers.iter().zip(&written) {
                assert_eq!(layer["indexed"], indexed(form), "{layer}");
                let toc = written.toc.len().max(written.archive.as_ref().map_or(0, Vec::len)) as u64;
                let fetched = layer["fetched"].as_u64().expect("a number");
                assert!(
                    fetched > 0 && fetched <= toc + written.blob.len() as u64 / 128 + (32 << 10),
                    "{fetched} of {toc}"
                );
                assert!(layer["requests"].as_u64().expect("a number") <= 2, "{layer}");
            }
            assert_eq!(layers[2]["indexed"], "first-contact");
            assert_same(&tree, &expected, is_lost(form));
            assert_same_seconds(&tree, &expected);

            // The claim is in the cache now, and the layers' bytes go: nothing is read to mount it again.
            bench.ocifs.drop_bytes();
            assert!(bench.ocifs.end_daemon(), "it ends when it is told to");
            let (layers, tree) = mounted_again(&bench, &reference);
            for layer in &layers[..2] {
                assert_eq!((&layer["indexed"], &layer["fetched"]), (&indexed(form).into(), &0.into()));
            }
            assert_same(&tree, &expected, is_lost(form));
        }
    }
}

/// A layer with one long file, and another file.
fn long() -> Vec<u8> {
    Layer::new().file("long", big()).file("other", noise(5000, 9)).stream()
}

fn read(point: &Mount, name: &str) -> std::io::Result<Vec<u8>> {
    fs::read(point.path().join(name))
}

#[test]
fn a_read_fetches_the_chunks_it_needs_and_no_more() {
    let Some(bench) = Bench::new() else { return };
    for form in Form::ALL.into_iter().filter(|form| *form != Form::External) {
        let written = write(&long(), How { chunk: 64 << 10, ..How::new(form) });
        let layout = bench.ocifs.home().join(format!("{form:?}"));
        write_image(&layout, &[blob(form, &written)]);
        bench.ocifs.drop_all();
        bench.ocifs.mount(&oci(&layout), &bench.point);
        let before = bench.layers()[0]["fetched"].as_u64().expect("a number");
        assert_eq!(read(&bench.point, "other").expect("bytes"), noise(5000, 9));
        let moved = bench.layers()[0]["fetched"].as_u64().expect("a number") - before;
        assert!(moved < BIG as u64 / 8, "{form:?}: a file of 5,000 bytes took {moved}");
        assert_eq!(read(&bench.point, "long").expect("bytes"), big());
        bench.ocifs.umount(&bench.point);
    }
}

#[test]
fn a_226_chunks_that_share_a_member_are_read_each_by_itself_and_all_together() {
    let Some(bench) = Bench::new() else { return };
    let contents: Vec<Vec<u8>> = (0..60).map(|number| noise(number * 700 + 1, number as u64)).collect();
    let layer =
        contents.iter().enumerate().fold(Layer::new(), |layer, (number, bytes)| layer.file(format!("{number}"), bytes));
    let stream = layer.file("long", big()).stream();
    for form in [Form::Estargz, Form::Stargz, Form::ZstdStargz] {
        let written = write(&stream, How { chunk: 64 << 10, member: 256 << 10, ..How::new(form) });
        assert!(String::from_utf8_lossy(&written.document).matches("innerOffset").count() > 100);
        let layout = bench.ocifs.home().join(format!("{form:?}"));
        write_image(&layout, &[blob(form, &written)]);
        bench.ocifs.drop_all();
        bench.ocifs.mount(&oci(&layout), &bench.point);
        for number in [59, 0, 30, 31, 1] {
            assert_eq!(read(&bench.point, &number.to_string()).expect("bytes"), contents[number], "{form:?} {number}");
        }
        assert_eq!(read(&bench.point, "long").expect("bytes"), big());
        for (number, bytes) in contents.iter().enumerate() {
            assert_eq!(read(&bench.point, &number.to_string()).expect("bytes"), *bytes, "{form:?} {number}");
        }
        let fetched = bench.layers()[0]["fetched"].as_u64().expect("a number");
        assert!(
            fetched < written.blob.len() as u64 * 5 / 4 + (64 << 10),
            "{form:?}: shared bytes came once: {fetched}"
        );
        bench.ocifs.umount(&bench.point);
    }
}

#[test]
fn d_022_d_024_a_damaged_chunk_is_an_error_and_never_bytes() {
    let Some(bench) = Bench::new() else { return };
    for form in Form::ALL.into_iter().filter(|form| *form != Form::External) {
        let written = write(&long(), How { chunk: 64 << 10, ..How::new(form) });
        let layout = bench.ocifs.home().join(format!("{form:?}"));
        let blob = blob(form, &written);
        write_image(&layout, std::slice::from_ref(&blob));
        // The middle of the long file's bytes; the TOC is what it should be.
        let path = layout.join("blobs/sha256").join(blob.digest().hex());
        let mut bytes = written.blob.clone();
        let middle = written.blob.len() / 2;
        bytes[middle..middle + 100].fill(0x55);
        fs::write(&path, &bytes).expect("a blob can be written");
        bench.ocifs.drop_all();
        bench.ocifs.mount(&oci(&layout), &bench.point);
        assert_eq!(bench.layers()[0]["indexed"], indexed(form));
        let error = read(&bench.point, "long").expect_err("its bytes are damaged");
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{form:?}: {error}");
        assert_eq!(read(&bench.point, "other").expect("bytes"), noise(5000, 9));
        let mut start = vec![0; 64 << 10];
        let file = fs::File::open(bench.point.path().join("long")).expect("it can be opened");
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut start, 0).expect("its beginning is sound");
        assert!(start == big()[..start.len()]);
        drop(file);
        bench.ocifs.umount(&bench.point);
    }
}

#[test]
fn a_source_that_is_away_is_not_a_toc_that_is_wrong() {
    let Some(bench) = Bench::new() else { return };
    let layout = bench.ocifs.home().join("layout");
    let blob = blob(Form::ZstdStorage, &write(&long(), How::new(Form::ZstdStorage)));
    write_image(&layout, std::slice::from_ref(&blob));
    let registry = places::embedded(&layout);
    registry.content().remove_blob(&blob.digest());
    let refused = bench.ocifs.run(["mount", &registry.name("it:latest"), &bench.point.path().to_string_lossy()]);
    assert!(refused.code() != 0 && !refused.stderr.contains("index of its own"), "{}", refused.stderr);
    let asked = registry.requests().iter().filter(|record| record.request.path.contains(&blob.digest().hex())).count();
    assert_eq!(asked, 1, "nobody tries to stream what is not there");
}

/// Mounts a layer that must be treated like any other, and returns what the command said of it.
#[track_caller]
fn refused(ocifs: &Ocifs, point: &Mount, layout: &Path, blob: &Blob) -> String {
    write_image(layout, std::slice::from_ref(blob));
    ocifs.drop_all();
    let said = ocifs.mount(&oci(layout), point).stderr;
    assert_eq!(ocifs.status(point)["mounts"][0]["layers"][0]["indexed"], "first-contact", "{said}");
    assert_eq!(read(point, "other").expect("bytes"), noise(5000, 9));
    ocifs.umount(point);
    said
}

#[test]
fn a_221_a_toc_that_the_manifest_does_not_pin_is_not_looked_at() {
    let Some(bench) = Bench::new() else { return };
    for form in Form::ALL {
        let written = write(&long(), How::new(form));
        let mut blob = blob(form, &written);
        blob.annotations.clear();
        let layout = bench.ocifs.home().join(format!("{form:?}"));
        let said = refused(&bench.ocifs, &bench.point, &layout, &blob);
        assert!(!said.contains("index of its own"), "{said}");
    }
}

#[test]
fn a_223_a_layer_with_annotations_of_two_formats_is_plain() {
    let Some(bench) = Bench::new() else { return };
    let mut blob = blob(Form::ZstdStorage, &write(&long(), How::new(Form::ZstdStorage)));
    let other = write(&long(), How::new(Form::Estargz)).annotations;
    blob.annotations.extend(other);
    let said = refused(&bench.ocifs, &bench.point, &bench.ocifs.home().join("two"), &blob);
    assert!(said.contains("two tables of contents") && said.contains(&blob.digest().to_string()), "{said}");
}

#[test]
fn d_018_d_019_d_020_a_toc_that_lies_about_itself_is_refused_and_its_layer_plain() {
    type Change = fn(&mut Value);
    let Some(bench) = Bench::new() else { return };
    let lies: [(&str, Change); 6] = [
        ("do not make up", |toc| toc["entries"][1]["chunkSize"] = 2.into()),
        ("cannot be where", |toc| toc["entries"][1]["offset"] = (1_u64 << 40).into()),
        ("in a circle", |toc| {
            let link = |name: &str, to: &str| json!({ "name": name, "type": "hardlink", "linkName": to });
            toc["entries"].as_array_mut().expect("a list").extend([link("a", "b"), link("b", "a")]);
        }),
        ("NUL byte", |toc| toc["entries"][1]["name"] = "a\0b".into()),
        ("malformed", |toc| toc["entries"] = "none".into()),
        ("no digest", |toc| {
            for key in ["digest", "chunkDigest"] {
                toc["entries"][1][key] = "".into();
            }
        }),
    ];
    for form in [Form::Estargz, Form::ZstdStargz, Form::ZstdStorage] {
        for (number, (words, lie)) in lies.iter().enumerate() {
            let how = How { has_landmark: false, ..How::new(form) };
            let written =
                write_changed(&Layer::new().dir("d").file("f", "f").file("other", noise(5000, 9)).stream(), how, lie);
            let layout = bench.ocifs.home().join(format!("{form:?}-{number}"));
            let said = refused(&bench.ocifs, &bench.point, &layout, &blob(form, &written));
            assert!(said.contains(words), "{form:?}: {words}: {said}");
        }
    }
}

#[test]
fn d_020_a_parent_that_is_a_file_is_settled_as_in_tar() {
    let Some(bench) = Bench::new() else { return };
    let stream = Layer::new().file("a", "a file").dir("a/b").file("other", noise(5000, 9)).stream();
    for form in [Form::Estargz, Form::ZstdStargz, Form::ZstdStorage] {
        let pinned = blob(form, &write(&stream, How { has_landmark: false, ..How::new(form) }));
        let plain = Blob { annotations: Default::default(), ..pinned.clone() };
        let [lazy, mut truth] = [(pinned, indexed(form)), (plain, "first-contact")].map(|(blob, origin)| {
            let layout = bench.ocifs.home().join(format!("{form:?}-{}", blob.annotations.len()));
            write_image(&layout, &[blob]);
            let (layers, tree) = mounted(&bench, &oci(&layout));
            assert_eq!(layers[0]["indexed"], origin);
            tree
        });
        truth.remove(&b"stargz.index.json"[..]);
        assert_same(&lazy, &truth, |_, _| false);
        assert!(lazy.contains_key(&b"a/b"[..]), "{form:?}");
    }
}

#[test]
fn a_222_what_the_manifest_pins_is_believed_until_the_layer_is_here() {
    let Some(bench) = Bench::new() else { return };
    for form in [Form::Estargz, Form::ZstdStargz, Form::ZstdStorage] {
        let written = write_changed(&long(), How { has_landmark: false, ..How::new(form) }, |toc| {
            let entries = toc["entries"].as_array_mut().expect("a list");
            entries.last_mut().expect("an entry")["mode"] = 0o600.into();
        });
        let layout = bench.ocifs.home().join(format!("{form:?}"));
        write_image(&layout, &[blob(form, &written)]);
        let (layers, tree) = mounted(&bench, &oci(&layout));
        assert_eq!((&layers[0]["indexed"], tree[&b"other"[..]].mode), (&indexed(form).into(), 0o600));
    }
}

/// Mounts with fill and waits until that has come to `state`.
fn filled(bench: &Bench, reference: &str, state: &str) -> Value {
    let point = bench.point.path().to_string_lossy().into_owned();
    bench.ocifs.run(["mount", "--profile-until=0", "--fill=now", reference, &point]).ok();
    let begun = std::time::Instant::now();
    loop {
        let mount = bench.ocifs.status(&bench.point)["mounts"][0].clone();
        if mount["filling"]["state"] == state {
            return mount;
        }
        assert!(begun.elapsed().as_secs() < 60, "it does not become {state}: {mount}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

#[test]
fn a_layer_with_a_toc_is_proven_by_fill_and_stays_the_same_tree() {
    let Some(bench) = Bench::new() else { return };
    let streams = rich(50).without(b"names/\xff\xfe").streams();
    for form in Form::ALL.into_iter().filter(|form| *form != Form::External) {
        let written: Vec<Written> = streams[..2].iter().map(|stream| write(stream, How::new(form))).collect();
        let layout = bench.ocifs.home().join(format!("{form:?}"));
        write_image(&layout, &written.iter().map(|written| blob(form, written)).collect::<Vec<_>>());
        let (_, lazy) = mounted(&bench, &oci(&layout));
        filled(&bench, &oci(&layout), "complete");
        let tree = walk(bench.point.path()).expect("a tree");
        assert_same(&tree, &lazy, |_, _| false);
        bench.ocifs.umount(&bench.point);
        let (layers, tree) = mounted_again(&bench, &oci(&layout));
        assert!(layers.iter().all(|layer| layer["indexed"] == "cache"), "the proven index is in the cache: {layers:?}");
        assert_same(&tree, &lazy, is_lost(form));
    }
}

#[test]
fn d_026_a_toc_that_is_not_what_the_layer_is_stops_the_mount_once_that_is_known() {
    let Some(bench) = Bench::new() else { return };
    for form in [Form::Estargz, Form::ZstdStargz, Form::ZstdStorage] {
        let written = write_changed(&long(), How { has_landmark: false, ..How::new(form) }, |toc| {
            let entries = toc["entries"].as_array_mut().expect("a list");
            entries.last_mut().expect("an entry")["mode"] = 0o4755.into();
        });
        let layout = bench.ocifs.home().join(format!("{form:?}"));
        write_image(&layout, &[blob(form, &written)]);
        bench.ocifs.drop_all();
        let mount = filled(&bench, &oci(&layout), "failed");
        assert!(mount.to_string().contains("has mode 0644"), "{mount}");
        let error = read(&bench.point, "other").expect_err("nothing is served any more");
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{form:?}: {error}");
        bench.ocifs.umount(&bench.point);
        // Whoever mounts it next begins with the truth.
        let (layers, tree) = mounted_again(&bench, &oci(&layout));
        assert_eq!((&layers[0]["indexed"], tree[&b"other"[..]].mode), (&"cache".into(), 0o644));
    }
}

#[test]
fn d_023_a_layer_whose_chunks_are_right_and_whose_digest_is_not_stops_the_mount_once_that_is_known() {
    let Some(bench) = Bench::new() else { return };
    for form in [Form::Estargz, Form::ZstdStargz, Form::ZstdStorage] {
        let written = write(&long(), How::new(form));
        let layout = bench.ocifs.home().join(format!("{form:?}"));
        let blob = blob(form, &written);
        write_image(&layout, std::slice::from_ref(&blob));
        // A byte of the first header, which is in no chunk.
        let mut bytes = written.blob.clone();
        bytes[20] ^= 0x55;
        fs::write(layout.join("blobs/sha256").join(blob.digest().hex()), &bytes).expect("a blob can be written");
        let (layers, tree) = mounted(&bench, &oci(&layout));
        assert_eq!((&layers[0]["indexed"], tree[&b"other"[..]].size), (&indexed(form).into(), 5000));
        let mount = filled(&bench, &oci(&layout), "failed");
        assert!(mount["filling"]["error"].to_string().contains(&blob.digest().to_string()), "{mount}");
        let error = read(&bench.point, "other").expect_err("nothing is served any more");
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{form:?}: {error}");
        bench.ocifs.umount(&bench.point);
    }
}

#[test]
fn d_025_what_one_image_pins_of_a_layer_is_not_served_to_another() {
    let Some(bench) = Bench::new() else { return };
    let images = [0o600, 0o644, 0o400].map(|mode| {
        let written = write_changed(&long(), How { has_landmark: false, ..How::new(Form::External) }, |toc| {
            let entries = toc["entries"].as_array_mut().expect("a list");
            entries.last_mut().expect("an entry")["mode"] = mode.into();
        });
        let layout = bench.ocifs.home().join(format!("{mode:o}"));
        write_image(&layout, &[blob(Form::External, &written)]);
        add_toc_image(&layout, &places::embedded(&layout), std::slice::from_ref(&written));
        (Digest::sha256(&written.blob), oci(&layout), mode)
    });
    assert!(images.iter().all(|(layer, ..)| *layer == images[0].0), "it is one layer");
    for _ in 0..2 {
        for (_, reference, mode) in &images {
            let (layers, tree) = mounted_again(&bench, reference);
            assert_eq!((&layers[0]["indexed"], tree[&b"other"[..]].mode), (&"estargz".into(), *mode));
        }
    }
}

#[test]
fn a_toc_whose_entries_do_not_merge_makes_a_layer_plain() {
    let Some(bench) = Bench::new() else { return };
    let written = write_changed(&long(), How::new(Form::Estargz), |toc| {
        let link = json!({ "name": "link", "type": "hardlink", "linkName": "missing" });
        toc["entries"].as_array_mut().expect("a list").push(link);
    });
    let layout = bench.ocifs.home().join("layout");
    let said = refused(&bench.ocifs, &bench.point, &layout, &blob(Form::Estargz, &written));
    assert!(said.contains("missing"), "{said}");
}

#[test]
fn names_that_a_toc_cannot_say_make_a_layer_plain() {
    let Some(bench) = Bench::new() else { return };
    let stream = Layer::new().file(b"\xff", "not text").file("other", noise(5000, 9)).stream();
    let written = write(&stream, How::new(Form::Estargz));
    let layout = bench.ocifs.home().join("names");
    let said = refused(&bench.ocifs, &bench.point, &layout, &blob(Form::Estargz, &written));
    assert!(said.contains("not UTF-8"), "{said}");
}

#[test]
fn a_225_an_image_apart_that_is_not_there_or_has_another_toc_makes_a_layer_plain() {
    let Some(bench) = Bench::new() else { return };
    let written = write(&long(), How::new(Form::External));
    let blob = blob(Form::External, &written);
    let layout = bench.ocifs.home().join("alone");
    let said = refused(&bench.ocifs, &bench.point, &layout, &blob);
    assert!(said.contains("another image, which cannot be found"), "{said}");

    let other = write(&Layer::new().file("other", "something else").stream(), How::new(Form::External));
    let wrong = Written { archive: other.archive, ..written };
    let layout = bench.ocifs.home().join("wrong");
    write_image(&layout, std::slice::from_ref(&blob));
    let registry = places::embedded(&layout);
    add_toc_image(&layout, &registry, std::slice::from_ref(&wrong));
    bench.ocifs.drop_all();
    let said = bench.ocifs.mount(&registry.name("it:latest"), &bench.point).stderr;
    assert!(said.contains("should have digest"), "{said}");
    assert_eq!(bench.layers()[0]["indexed"], "first-contact");
    assert_eq!(read(&bench.point, "other").expect("bytes"), noise(5000, 9));
    bench.ocifs.umount(&bench.point);
}

#[test]
fn a_231_files_that_are_only_there_for_the_toc_stay_hidden_once_the_layer_is_proven() {
    let Some(bench) = Bench::new() else { return };
    let written = write(&long(), How::new(Form::Estargz));
    let layout = bench.ocifs.home().join("layout");
    let pinned = blob(Form::Estargz, &written);
    let plain = Blob { annotations: Default::default(), ..pinned.clone() };
    let unpinned = bench.ocifs.home().join("unpinned");
    write_image(&layout, std::slice::from_ref(&pinned));
    write_image(&unpinned, std::slice::from_ref(&plain));
    let names = |tree: &Tree| tree.keys().map(|path| String::from_utf8_lossy(path).into_owned()).collect::<Vec<_>>();
    // The same layer in an image that pins nothing is what it is: its first contact leaves a proven index.
    let (_, tree) = mounted(&bench, &oci(&unpinned));
    assert_eq!(names(&tree), ["", ".no.prefetch.landmark", "long", "other", "stargz.index.json"]);
    let (layers, tree) = mounted_again(&bench, &oci(&layout));
    assert_eq!(
        (&layers[0]["indexed"], names(&tree)),
        (&"cache".into(), vec!["".into(), "long".into(), "other".into()])
    );
    let (layers, tree) = mounted(&bench, &oci(&layout));
    assert_eq!(
        (&layers[0]["indexed"], names(&tree)),
        (&"estargz".into(), vec!["".into(), "long".into(), "other".into()])
    );
}
