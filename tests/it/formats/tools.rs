//! Lazy formats as other people's tools write them: `ctr-remote` of stargz-snapshotter (eStargz, zstd:chunked), skopeo and
//! podman (zstd:chunked of containers/storage).

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::forms::{compressed, write_image};
use super::{Bench, oci};
use crate::support::{
    Compression, Field, Image, Layer, assert_same, eventually, noise, output_of, require, rich, skopeo_copy, walk,
};

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
        // These look for kernel features that are not here.
        let disabled = ["aufs", "btrfs", "devmapper", "zfs"]
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
        self.make(layout, home, name, &[&["convert", "--oci"], flags].concat())
    }

    /// The same by whatever command makes one image of another.
    fn make(&self, layout: &Path, home: &Path, name: &str, command: &[&str]) -> PathBuf {
        let (archive, image) = (home.join("source.tar"), "docker.io/it/source:latest");
        if !archive.exists() {
            skopeo_copy(
                &format!("oci:{}:latest", layout.display()),
                &format!("oci-archive:{}:{image}", archive.display()),
            );
            self.run(&["images", "import", "--no-unpack", &archive.to_string_lossy()]);
        }
        let target = format!("docker.io/it/{name}:latest");
        self.run(&[&["images"], command, &[image, &target]].concat());
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

/// podman with its storage below `home`, and without what the machine remembers of blobs that were pushed: of such podman
/// leaves the annotations out (containers/image#2189).
fn podman(home: &Path, args: &[&str]) -> String {
    let script =
        "mkdir -p /var/lib/containers/cache && mount -t tmpfs none /var/lib/containers/cache && exec podman \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "podman", "--storage-driver=vfs", "--root"]).arg(home.join("storage"));
    output_of(command.arg("--runroot").arg(home.join("storage-run")).args(args).current_dir(home))
}

/// A layout with what podman makes of the image in the layout `from`, both below `home`.
fn chunked_by_podman(home: &Path, from: &str) -> PathBuf {
    let to = format!("{from}.chunked");
    // It makes a name of the path, in which no letter may be a capital one.
    let pulled = podman(home, &["pull", "--quiet", &format!("oci:{from}:latest")]);
    podman(home, &["push", "--quiet", "--compression-format=zstd:chunked", pulled.trim(), &format!("oci:{to}:latest")]);
    home.join(to)
}

#[test]
fn a_232_what_podman_writes_gives_the_same_tree_and_is_proven() {
    if !require(&["podman", "unshare"]) {
        return;
    }
    let Some(bench) = Bench::new() else { return };
    let home = bench.ocifs.home();
    // What podman 4.3 cannot carry: holes.
    let mut streams = rich(51).without(b"names/\xff\xfe").streams();
    streams.truncate(2);
    let plain = home.join("plain");
    write_image(&plain, &compressed(&streams, Compression::Gzip));
    let expected = bench.first_contact(&oci(&plain));
    let chunked = oci(&chunked_by_podman(home, "plain"));
    bench.ocifs.drop_all();
    bench.ocifs.mount(&chunked, &bench.point);
    for layer in bench.layers() {
        assert_eq!(layer["indexed"], "zstd:chunked", "{layer}");
    }
    assert_same(&walk(bench.point.path()).expect("a tree"), &expected, |_, _| false);
    bench.ocifs.umount(&bench.point);
    let dir = bench.point.path().to_str().expect("a plain path");
    bench.ocifs.run(["mount", "--wait", "--profile-until=0", &chunked, dir]).ok();
    assert_same(&walk(bench.point.path()).expect("a tree"), &expected, |_, _| false);
    bench.ocifs.umount(&bench.point);
}

#[test]
fn what_ctr_remote_saw_a_program_read_is_fetched_ahead() {
    if !require(&["containerd", "ctr-remote", "runc", "skopeo", "tar"]) {
        return;
    }
    let Some(bench) = Bench::new() else { return };
    let home = bench.ocifs.home();
    // A program with its libraries, in a layer above what it reads.
    let libraries = output_of(Command::new("ldd").arg("/usr/bin/cat"));
    let libraries = libraries.split_whitespace().filter(|word| word.starts_with('/'));
    let files: Vec<_> = ["/usr/bin/cat"].into_iter().chain(libraries).map(|path| &path[1..]).collect();
    let above = files.iter().flat_map(|path| Path::new(path).ancestors().skip(1)).filter(|dir| *dir != Path::new(""));
    let directories: BTreeSet<_> = above.map(|dir| dir.to_str().expect("a plain path")).collect();
    let program = directories.into_iter().fold(Layer::new(), Layer::dir);
    let program = files.into_iter().fold(program, |layer, path| {
        let bytes = fs::read(Path::new("/").join(path)).expect("it is a file of this machine");
        layer.file(path, bytes).mode(0o755)
    });
    let data = Layer::new().dir("data").file("data/read", noise(200_000, 1)).file("data/unread", noise(900_000, 2));
    let plain = home.join("plain");
    Image::new().layer(data).layer(program).to_layout(&plain, "latest");
    let expected = bench.first_contact(&oci(&plain));
    let containerd = Containerd::start(home);
    let command = ["optimize", "--oci", "--period=2", "--args", "[\"/usr/bin/cat\",\"/data/read\"]"];
    let optimized = oci(&containerd.make(&plain, home, "optimized", &command));
    bench.ocifs.drop_all();
    bench.ocifs.mount(&optimized, &bench.point);
    let profile = || bench.ocifs.status(&bench.point)["mounts"][0]["profile"].clone();
    eventually(PATIENCE, "it is fetched ahead", || profile()["ahead_done"] == true);
    assert_eq!(profile()["ahead"], "landmark", "{}", profile());
    for layer in bench.layers() {
        let (local, size) = (layer["local"].as_u64().expect("a number"), layer["size"].as_u64().expect("a number"));
        assert!(layer["indexed"] == "estargz" && local > size / 10, "{layer}");
    }
    assert!(bench.layers()[0]["local"].as_u64() < Some(500_000), "and nothing else: {}", bench.layers()[0]);
    let tree = walk(bench.point.path()).expect("a tree");
    assert_same(&tree, &expected, |_, field| field == Field::Mtime);
}
