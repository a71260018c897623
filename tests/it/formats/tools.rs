//! Lazy formats as other people's tools write them: `ctr-remote` of stargz-snapshotter (eStargz, zstd:chunked) and skopeo
//! (zstd:chunked of containers/storage).

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::forms::{compressed, write_image};
use super::{Bench, oci};
use crate::support::{Compression, Field, assert_same, eventually, output_of, require, rich, skopeo_copy, walk};

/// How long containerd may take to listen.
const PATIENCE: Duration = Duration::from_secs(120);

/// What an image is called that a recorded start was given for.
const RECORDED: &str = "recorded";

/// A containerd of our own; dropping it kills it.
#[derive(Debug)]
struct Containerd {
    child: Child,
    socket: PathBuf,
}

impl Containerd {
    /// Starts one with its root and its socket below `home`.
    fn start(home: &Path) -> Self {
        let root = home.join("containerd");
        fs::create_dir_all(&root).expect("a directory");
        let (socket, config) = (root.join("s.sock"), root.join("config.toml"));
        // Only its content store is needed; the others look for kernel features that are not here.
        let disabled = ["aufs", "btrfs", "devmapper", "zfs", "overlayfs"]
            .map(|name| format!("\"io.containerd.snapshotter.v1.{name}\""))
            .join(", ");
        let text = format!(
            "version = 2\nroot = {root:?}\nstate = {:?}\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\", {disabled}]\n\
             [grpc]\naddress = {socket:?}\n[ttrpc]\naddress = {:?}\n",
            root.join("state"),
            root.join("t.sock"),
        );
        fs::write(&config, text).expect("a file");
        let log = || File::create(root.join("log")).expect("a file");
        let mut command = Command::new("containerd");
        command.arg("--config").arg(&config).stdin(Stdio::null()).stdout(log()).stderr(log());
        let child = command.spawn().expect("containerd can be started");
        let started = Instant::now();
        let daemon = Self { child, socket };
        while !daemon.socket.exists() {
            let said = || fs::read_to_string(root.join("log")).unwrap_or_default();
            assert!(started.elapsed() < PATIENCE, "containerd does not listen: {}", said());
            std::thread::sleep(Duration::from_millis(50));
        }
        daemon
    }

    fn run(&self, args: &[&str]) {
        output_of(Command::new("ctr-remote").arg("--address").arg(&self.socket).args(args));
    }

    /// Converts the image `latest` of a layout; the result is a layout below `home`.
    fn convert(&self, layout: &Path, home: &Path, name: &str, flags: &[&str]) -> PathBuf {
        let (archive, image) = (home.join("source.tar"), "docker.io/it/source:latest");
        if !archive.exists() {
            skopeo_copy(
                &format!("oci:{}:latest", layout.display()),
                &format!("oci-archive:{}:{image}", archive.display()),
            );
            self.run(&["images", "import", "--no-unpack", &archive.to_string_lossy()]);
        }
        let target = format!("docker.io/it/{name}:latest");
        self.run(&[&["images", "convert", "--oci"], flags, &[image, &target]].concat());
        let (exported, converted) = (home.join(format!("{name}.tar")), home.join(name));
        self.run(&["images", "export", &exported.to_string_lossy(), &target]);
        fs::create_dir_all(&converted).expect("a directory");
        output_of(Command::new("tar").arg("-xf").arg(&exported).arg("-C").arg(&converted));
        converted
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // It may have ended by itself, which is no news here.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn a_232_what_ctr_remote_and_skopeo_write_gives_the_same_tree_and_is_lazy_at_once() {
    if !require(&["containerd", "ctr-remote", "skopeo", "tar"]) {
        return;
    }
    let Some(bench) = Bench::new() else { return };
    let home = bench.ocifs.home();
    // What these tools cannot carry: a name that is not UTF-8, and holes, which come out as zeros.
    let streams = rich(50).without(b"names/\xff\xfe").streams();
    let plain = home.join("plain");
    write_image(&plain, &compressed(&streams[..2], Compression::Gzip));
    let expected = bench.first_contact(&oci(&plain));
    let containerd = Containerd::start(home);
    // What a start is said to read lies before the landmark.
    let record = home.join("record");
    fs::write(&record, "{\"path\":\"data/big\"}\n").expect("a file");
    let record = format!("--estargz-record-in={}", record.display());
    let converted = [
        ("estargz", containerd.convert(&plain, home, RECORDED, &["--estargz", &record])),
        ("estargz", containerd.convert(&plain, home, "estargz", &["--estargz"])),
        ("estargz", containerd.convert(&plain, home, "small", &["--estargz", "--estargz-chunk-size=100000"])),
        ("zstd:chunked", containerd.convert(&plain, home, "chunked", &["--zstdchunked"])),
        ("zstd:chunked", {
            let copied = home.join("copied");
            let mut skopeo = Command::new("skopeo");
            skopeo.args(["--insecure-policy", "copy", "--quiet", "--dest-compress-format", "zstd:chunked"]);
            output_of(skopeo.args([oci(&plain), oci(&copied)]));
            copied
        }),
    ];
    for (indexed, layout) in converted {
        bench.ocifs.drop_all();
        let reference = format!("oci:{}", layout.display());
        eprintln!("{reference}");
        let said = bench.ocifs.mount(&reference, &bench.point).stderr;
        for layer in bench.layers() {
            assert_eq!(layer["indexed"], indexed, "{layer} {said}");
            let (fetched, size) = (layer["fetched"].as_u64().expect("a number"), layer["size"].as_u64());
            let is_recorded = layout.ends_with(RECORDED);
            assert!(is_recorded || fetched < 80 << 10 || fetched < size.expect("a number") / 8, "{layer}");
        }
        if layout.ends_with(RECORDED) {
            let ahead = || bench.ocifs.status(&bench.point)["mounts"][0]["profile"].clone();
            eventually(PATIENCE, "it is fetched ahead", || ahead()["ahead_done"] == true);
            assert_eq!(ahead()["ahead"], "landmark", "{}", ahead());
        }
        let tree = walk(bench.point.path()).expect("a tree");
        bench.ocifs.umount(&bench.point);
        assert_same(&tree, &expected, |_, field| field == Field::Mtime);
        for (path, stat) in &tree {
            assert_eq!(stat.mtime.0, expected[path].mtime.0, "/{}", path.escape_ascii());
        }
    }
}
