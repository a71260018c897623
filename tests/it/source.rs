//! Images written by umoci and skopeo, read as a layout and as both kinds of archive: the same image every time.

use std::path::Path;
use std::process::Command;

use futures_util::future::join_all;
use ocifs::oci::{Digest, ImageConfig, ImageManifest, LocalSelector, Manifest};
use ocifs::source::{DockerArchive, Layout, OciArchive, Source, read_all};

/// True if the tools are here. Where tests are meant to be complete, their absence is a failure.
fn has_tools() -> bool {
    let is_there = |tool: &&str| Command::new(tool).arg("--version").output().is_ok_and(|run| run.status.success());
    let missing: Vec<&str> = ["umoci", "skopeo", "gzip"].into_iter().filter(|tool| !is_there(tool)).collect();
    assert!(missing.is_empty() || std::env::var_os("CI").is_none(), "missing tools: {missing:?}");
    if !missing.is_empty() {
        eprintln!("SKIPPED: {missing:?} not installed");
    }
    missing.is_empty()
}

fn run(directory: &Path, command: &str) {
    let words: Vec<&str> = command.split(' ').collect();
    let run = Command::new(words[0]).args(&words[1..]).current_dir(directory).output().expect(command);
    assert!(run.status.success(), "{command}: {}", String::from_utf8_lossy(&run.stderr));
}

/// What a source serves: manifest and configuration, and of every layer the digest and first bytes, all verified.
async fn read_image(source: &dyn Source) -> (ImageManifest, ImageConfig, Vec<Vec<u8>>) {
    let document = source.resolve().await.expect("the image");
    assert_eq!(Digest::sha256(&document.bytes), document.digest);
    let Ok(Manifest::Image(manifest)) = Manifest::parse(&document.bytes, &document.media_type) else {
        panic!("{} is an image", source.name());
    };
    manifest.check_runnable().expect("an image");
    let whole = |blob: std::sync::Arc<dyn ocifs::source::BlobReader>| async move {
        read_all(&*blob, 0..blob.size()).await.expect("a blob")
    };
    let config = whole(source.blob(&manifest.config)).await;
    assert!(manifest.config.digest.matches(&config));
    let layers = join_all(manifest.layers.iter().map(|layer| whole(source.blob(layer)))).await;
    for (descriptor, layer) in manifest.layers.iter().zip(&layers) {
        assert!(descriptor.digest.matches(layer));
    }
    let config = ImageConfig::parse(&config).expect("a configuration");
    manifest.check(&config).expect("a_192: as many diff ids as layers");
    (manifest, config, layers.into_iter().map(|layer| layer.to_vec()).collect())
}

/// The digests of the layers' tar streams: what the same image has in common, however it is packed.
fn unpacked(layers: &[Vec<u8>]) -> Vec<Digest> {
    let unpack = |layer: &Vec<u8>| {
        let mut stream = Vec::new();
        match layer.starts_with(&[0x1f, 0x8b]) {
            true => std::io::copy(&mut flate2::read::MultiGzDecoder::new(&layer[..]), &mut stream).expect("gzip"),
            false => std::io::copy(&mut &layer[..], &mut stream).expect("memory"),
        };
        Digest::sha256(&stream)
    };
    layers.iter().map(unpack).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_of_umoci_and_skopeo_are_the_same_in_every_kind_of_source() {
    if !has_tools() {
        return;
    }
    let scratch = tempfile::TempDir::new().expect("a directory");
    let dir = scratch.path();
    let large: Vec<u8> =
        (0..3_000_000_u32).flat_map(|at| (at.wrapping_mul(at) >> 7).to_le_bytes()).take(3_000_000).collect();
    std::fs::write(dir.join("large"), large).expect("written");
    for command in [
        "umoci init --layout layout",
        "umoci new --image layout:base",
        "umoci insert --image layout:base large /data/large",
        "umoci insert --image layout:base large /data/again",
        "umoci config --image layout:base --config.env A=1 --config.entrypoint /bin/sh --architecture arm64",
        "skopeo copy -q oci:layout:base oci-archive:oci.tar:base",
        "skopeo copy -q oci:layout:base docker-archive:docker.tar:debian:12",
        "gzip -k oci.tar docker.tar",
    ] {
        run(dir, command);
    }
    let name = |text: &str| Some(LocalSelector::Name(text.to_owned()));
    let sources: Vec<Box<dyn Source>> = vec![
        Box::new(Layout::open(&dir.join("layout"), name("base").as_ref()).expect("the layout")),
        Box::new(OciArchive::open(&dir.join("oci.tar"), name("base").as_ref(), dir).expect("the OCI archive")),
        Box::new(OciArchive::open(&dir.join("oci.tar.gz"), None, dir).expect("compressed")),
        Box::new(DockerArchive::open(&dir.join("oci.tar"), None, dir).expect("b_024")),
        Box::new(DockerArchive::open(&dir.join("docker.tar"), name("debian:12").as_ref(), dir).expect("Docker's")),
        Box::new(DockerArchive::open(&dir.join("docker.tar.gz"), None, dir).expect("compressed")),
    ];
    let (first, config, layers) = read_image(&*sources[0]).await;
    assert_eq!((config.platform.to_string().as_str(), layers.len()), ("linux/arm64", 2));
    assert_eq!((&config.entrypoint[..], &config.env[..]), (&["/bin/sh".to_owned()][..], &["A=1".to_owned()][..]));
    for source in &sources[1..] {
        let (manifest, same_config, same_layers) = read_image(&**source).await;
        assert_eq!(same_config, config, "{}", source.name());
        assert_eq!(manifest.config.digest, first.config.digest);
        assert_eq!(unpacked(&same_layers), config.diff_ids, "{}", source.name());
    }
    assert_eq!(unpacked(&layers), config.diff_ids);
}
