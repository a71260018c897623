use proptest::prelude::*;

use super::*;

const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn descriptor(media_type: &str) -> String {
    format!(r#"{{"mediaType":"{media_type}","digest":"{EMPTY}","size":0}}"#)
}

fn image(layers: &[&str]) -> String {
    let layers: Vec<String> = layers.iter().map(|layer| descriptor(layer)).collect();
    format!(r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#, descriptor(CONFIG), layers.join(","))
}

fn parse(text: &str) -> Result<Manifest, ManifestError> {
    Manifest::parse(text.as_bytes(), "")
}

fn parse_image(text: &str) -> ImageManifest {
    match parse(text) {
        Ok(Manifest::Image(image)) => image,
        other => panic!("{text} reads as {other:?}"),
    }
}

fn parse_index(text: &str) -> ImageIndex {
    match parse(text) {
        Ok(Manifest::Index(index)) => index,
        other => panic!("{text} reads as {other:?}"),
    }
}

#[test]
fn b_041_b_043_media_types_label_but_the_bytes_decide() {
    let text = image(&[LAYER]);
    for hint in ["", IMAGE, "application/vnd.oci.image.manifest.v1+json; charset=utf-8", "text/plain"] {
        assert!(matches!(Manifest::parse(text.as_bytes(), hint), Ok(Manifest::Image(_))), "{hint}");
    }
    let mislabelled = Manifest::parse(text.as_bytes(), INDEX);
    assert!(matches!(mislabelled, Err(ManifestError::Mislabelled { .. })));
    let inside = format!(r#"{{"mediaType":"{INDEX}","config":{},"layers":[]}}"#, descriptor(CONFIG));
    assert!(matches!(parse(&inside), Err(ManifestError::Mislabelled { .. })));
    assert!(matches!(parse(r#"{"mediaType":"x/y","layers":[]}"#), Err(ManifestError::Type(_))));
}

#[test]
fn b_042_schema_1_is_unsupported_and_says_so() {
    for text in [
        r#"{"schemaVersion":1,"name":"x","fsLayers":[],"history":[]}"#,
        r#"{"fsLayers":[]}"#,
        r#"{"schemaVersion":1,"layers":[]}"#,
        r#"{"mediaType":"application/vnd.docker.distribution.manifest.v1+prettyjws"}"#,
    ] {
        let error = parse(text).expect_err(text);
        assert!(error.is_unsupported() && error.to_string().contains("schema 1"), "{text}");
    }
}

#[test]
fn b_044_d_040_a_document_that_reads_two_ways_is_refused() {
    let config = descriptor(CONFIG);
    for text in [
        r#"{"manifests":[],"layers":[]}"#.to_owned(),
        r#"{"manifests":null,"layers":null}"#.to_owned(),
        format!(r#"{{"manifests":[],"config":{config}}}"#),
        r#"{"manifests":[],"fsLayers":[]}"#.to_owned(),
        r#"{"layers":[],"fsLayers":[]}"#.to_owned(),
    ] {
        for hint in ["", IMAGE, INDEX] {
            let error = Manifest::parse(text.as_bytes(), hint).expect_err(&text);
            assert!(matches!(error, ManifestError::Confused { .. }), "{text}");
        }
    }
    for key in ["Manifests", "MANIFESTS", "manifest\u{17f}", "fslayers", "mediatype", "Config"] {
        let text = image(&[]).replacen('{', &format!("{{\"{key}\":[],"), 1);
        assert!(matches!(parse(&text), Err(ManifestError::Json(_))), "{key}");
    }
}

#[test]
fn b_045_the_kind_is_inferred_without_a_media_type() {
    assert_eq!(parse_image(&image(&[LAYER, LAYER])).layers.len(), 2);
    let index = parse_index(&format!(r#"{{"manifests":[{}]}}"#, descriptor(IMAGE)));
    assert_eq!(index.entries[0].descriptor.digest.to_string(), EMPTY);
    assert_eq!(parse("{}"), Err(ManifestError::Shapeless));
    assert_eq!(parse(r#"{"schemaVersion":2}"#), Err(ManifestError::Shapeless));
    assert!(matches!(parse("[]"), Err(ManifestError::Json(_))));
}

#[test]
fn b_047_an_index_may_be_empty() {
    assert!(parse_index(r#"{"manifests":[]}"#).entries.is_empty());
    assert!(parse_index(r#"{"manifests":null}"#).entries.is_empty());
}

#[test]
fn b_056_platforms_of_entries_are_read_and_may_be_missing() {
    let with = |platform: &str| {
        let entry = descriptor(IMAGE).replacen('{', &format!("{{\"platform\":{platform},"), 1);
        parse_index(&format!(r#"{{"manifests":[{entry}]}}"#)).entries[0].platform.clone()
    };
    assert_eq!(with("null"), None);
    assert_eq!(with("{}"), None);
    assert_eq!(with(r#"{"os":"","architecture":""}"#), None);
    assert_eq!(with(r#"{"os":"linux","architecture":"aarch64","variant":"v8"}"#), "linux/arm64".parse().ok());
    assert!(with(r#"{"os":"unknown","architecture":"unknown"}"#).is_some_and(|platform| platform.is_unknown()));
    let windows = with(r#"{"os":"windows","architecture":"amd64","os.version":"10","os.features":["win32k"]}"#);
    assert_eq!(windows.as_ref().and_then(Platform::os_version), Some("10"));
}

#[test]
fn b_057_embedded_data_is_used_only_if_it_is_right() {
    let with = |data: &str, size: u64, digest: Digest| {
        let layer = format!(r#"{{"mediaType":"{LAYER}","digest":"{digest}","size":{size},"data":"{data}"}}"#);
        let text = format!(r#"{{"config":{},"layers":[{layer}]}}"#, descriptor(CONFIG));
        parse_image(&text).layers[0].data.clone()
    };
    let digest = Digest::sha256(b"hi");
    assert_eq!(with("aGk=", 2, digest).as_deref(), Some(&b"hi"[..]));
    assert_eq!(with("aGk=", 3, digest), None);
    assert_eq!(with("aGk=", 2, Digest::sha256(b"ho")), None);
    assert_eq!(with("!", 2, digest), None);
}

#[test]
fn b_058_d_016_long_documents_are_refused_unread() {
    let padded = |length: usize| {
        let mut bytes = image(&[LAYER]).into_bytes();
        bytes.resize(length, b' ');
        Manifest::parse(&bytes, "")
    };
    let limit = usize::try_from(limits::MANIFEST_BYTES).expect("fits");
    padded(5 << 20).expect("registries accept 4 MiB and more");
    padded(limit).expect("the limit itself");
    assert_eq!(padded(limit + 1), Err(ManifestError::TooLong(limit + 1)));
}

#[test]
fn b_059_sizes_out_of_range_are_refused() {
    let with = |size: &str| parse(&image(&[LAYER]).replace("\"size\":0", &format!("\"size\":{size}")));
    for size in ["-1", "9007199254740993", "9223372036854775807"] {
        let error = with(size).expect_err(size);
        assert!(matches!(error, ManifestError::Descriptor { problem: DescriptorError::Size(_), .. }), "{size}");
    }
    for size in ["99999999999999999999", "1.5", "\"1\"", "null"] {
        assert!(matches!(with(size), Err(ManifestError::Json(_))), "{size}");
    }
    with("9007199254740992").expect("2^53 is exact");
}

#[test]
fn b_060_unknown_fields_are_ignored() {
    let text = image(&[LAYER]).replacen('{', r#"{"x":[{"y":null}],"annotations":{"Layers":"a","n":null},"#, 1);
    let image = parse_image(&text);
    assert_eq!(image.annotations["Layers"], "a");
    assert_eq!(image.annotations["n"], "");
}

#[test]
fn b_061_artifacts_parse_but_do_not_run() {
    let empty = "application/vnd.oci.empty.v1+json";
    let artifact = parse_image(&image(&["text/plain"]).replace(CONFIG, empty));
    let error = artifact.check_runnable().expect_err("an artifact");
    assert_eq!(error.to_string(), format!("not a runnable image: its configuration has the type {empty}"));
    let escaped = parse_image(&image(&[]).replace(CONFIG, r"\u001b[2J")).check_runnable().expect_err("no type");
    assert!(escaped.to_string().ends_with("\\x1b[2J"));
}

#[test]
fn b_062_an_image_may_have_no_layers() {
    let image = parse_image(&image(&[]));
    image.check_runnable().expect("an empty root file system");
    assert!(parse_image(&format!(r#"{{"config":{},"layers":null}}"#, descriptor(CONFIG))).layers.is_empty());
}

#[test]
fn b_064_unknown_digest_algorithms_fail_where_they_are_used() {
    let blake3 = descriptor(IMAGE).replace("sha256", "blake3");
    let index = parse_index(&format!(r#"{{"manifests":[{blake3},{}]}}"#, descriptor(IMAGE)));
    assert_eq!((index.entries.len(), index.unverifiable.len()), (1, 1));
    let error = parse(&image(&[LAYER]).replacen("sha256", "blake3", 1)).expect_err("the configuration is used");
    assert!(error.is_unsupported() && error.to_string().starts_with("config: cannot verify"));
    let long = Digest::of(crate::oci::Algorithm::Sha512, b"");
    assert_eq!(parse_image(&image(&[LAYER]).replacen(EMPTY, &long.to_string(), 1)).config.digest, long);
}

#[test]
fn d_005_malformed_digests_are_refused_everywhere() {
    for digest in ["sha256:../../etc/passwd", "sha256:", "", ":", "../x"] {
        let index = format!(r#"{{"manifests":[{}]}}"#, descriptor(IMAGE).replace(EMPTY, digest));
        for text in [image(&[LAYER]).replacen(EMPTY, digest, 1), index] {
            assert!(matches!(parse(&text), Err(ManifestError::Descriptor { .. })), "{text}");
        }
    }
}

#[test]
fn a_189_a_190_layer_types_are_checked_before_anything_is_fetched() {
    for media_type in [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    ] {
        parse_image(&image(&[media_type])).check_runnable().expect(media_type);
    }
    for media_type in [
        "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
        "application/vnd.oci.image.layer.v1.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar+gzip",
        "application/vnd.erofs.layer.v1",
        "application/wasm",
        "",
    ] {
        let error = parse_image(&image(&[LAYER, media_type])).check_runnable().expect_err(media_type);
        assert!(matches!(&error, ManifestError::Layer { .. }) && error.to_string().contains(media_type));
    }
}

#[test]
fn a_192_layers_and_diff_ids_correspond() {
    let config = |count: usize| {
        let ids = vec![format!("\"{EMPTY}\""); count].join(",");
        let text = format!(r#"{{"os":"linux","rootfs":{{"type":"layers","diff_ids":[{ids}]}}}}"#);
        ImageConfig::parse(text.as_bytes()).expect("a configuration")
    };
    let image = parse_image(&image(&[LAYER, LAYER]));
    assert_eq!(image.check(&config(1)), Err(ManifestError::DiffIds { layers: 2, diff_ids: 1 }));
    image.check(&config(2)).expect("a_193: the same layer twice is two layers");
}

#[test]
fn layers_and_entries_are_bounded() {
    let layers = vec![LAYER; limits::LAYERS + 1];
    assert!(matches!(parse(&image(&layers)), Err(ManifestError::TooMany { .. })));
    parse_image(&image(&layers[1..]));
    let entries = vec![descriptor(IMAGE); limits::INDEX_ENTRIES + 1].join(",");
    assert!(matches!(parse(&format!(r#"{{"manifests":[{entries}]}}"#)), Err(ManifestError::TooMany { .. })));
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic_and_errors_are_printable(
        bytes in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..200).boxed(),
            (0..400_usize, any::<u8>()).prop_map(|(at, byte)| {
                let mut bytes = image(&[LAYER]).into_bytes();
                let length = bytes.len();
                bytes[at % length] = byte;
                bytes
            }).boxed(),
        ]
    ) {
        if let Err(error) = Manifest::parse(&bytes, IMAGE) {
            prop_assert!(!error.to_string().chars().any(char::is_control));
        }
    }
}
