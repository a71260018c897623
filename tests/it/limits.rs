//! Bad input through the program: names that lead nowhere, servers that refuse, places that cannot be used, layers made
//! to harm. Each ends with one clear failure and its exit code, and leaves nothing behind; or it works, in bounded memory.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::write::GzEncoder;
use ocifs::demo::registry::{Bearer, Content, Credentials, Fault};
use ocifs::oci::{Algorithm, Descriptor, Digest, Hasher};
use rustix::fs::{Mode, OFlags, openat};
use serde_json::{Value, json};
use tar::{EntryType, Header};

use crate::damage::{files_below, image, read_all};
use crate::support::{
    Built, Compression, Embedded, Image, Layer, Ocifs, Ran, require, require_fuse, require_root, run,
};

/// Most memory that the daemon may have used after it met a hostile layer.
const MEMORY: u64 = 300 << 20;

/// An installation and a registry.
struct Bench {
    ocifs: Ocifs,
    registry: Embedded,
}

impl Bench {
    /// None where file systems cannot be mounted.
    fn new() -> Option<Self> {
        let ready = require_fuse() && require_root();
        ready.then(|| Self { ocifs: Ocifs::new(), registry: Embedded::start(Content::new()) })
    }

    /// Adds an image as `team/app` with a tag.
    fn add(&self, image: &Image, tag: &str) -> Built {
        image.to_content(self.registry.content(), "team/app", tag)
    }

    fn reference(&self, tag: &str) -> String {
        self.registry.name(&format!("team/app:{tag}"))
    }

    /// Mounts, which must fail with `code` and tell all of `parts`, and leave nothing behind.
    #[track_caller]
    fn refuses(&self, args: &[&str], code: i32, parts: &[&str]) -> Ran {
        let point = self.ocifs.mount_point("refused");
        let dir = point.path().to_str().expect("a simple path");
        let ran = self.ocifs.run([&["mount", "--fill=off"], args, &[dir]].concat());
        self.assert_refused(&ran, code, parts);
        assert!(!point.is_mounted());
        ran
    }

    #[track_caller]
    fn assert_refused(&self, ran: &Ran, code: i32, parts: &[&str]) {
        assert_failure(ran, code, parts);
        assert_eq!(self.ocifs.run(["list", "--json"]).ok().stdout, "[]\n");
        self.ocifs.await_no_temporary("it was refused");
    }

    /// The most memory that the daemon has used so far.
    fn memory(&self) -> u64 {
        let pid = self.ocifs.daemon().expect("a daemon is running").as_raw_nonzero();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("the kernel tells it");
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
        kib << 10
    }
}

/// Panics unless it ended with this exit code and one `error:`, with these parts, in printable text.
#[track_caller]
fn assert_failure(ran: &Ran, code: i32, parts: &[&str]) {
    let text = &ran.stderr;
    assert_eq!((ran.code(), ran.stdout.as_str()), (code, ""), "{text}");
    assert!(text.starts_with("error: ") && text.matches("error: ").count() == 1, "{text}");
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    assert!(text.chars().all(|character| character == '\n' || !character.is_control()), "{text:?}");
    let known = |line: &str| ["error: ", "cause: ", "hint: "].iter().any(|start| line.starts_with(start));
    assert!(text.lines().all(known), "{text}");
}

fn manifest_json(config: &Descriptor, extra: &Value) -> Vec<u8> {
    let config = json!({ "mediaType": config.media_type, "digest": config.digest.to_string(), "size": config.size });
    let mut manifest = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": [] });
    for (key, value) in extra.as_object().expect("an object") {
        manifest[key] = value.clone();
    }
    manifest.to_string().into_bytes()
}

#[test]
fn names_that_lead_to_nothing_usable_say_what_there_is() {
    let Some(bench) = Bench::new() else { return };
    let built = bench.add(&Image::new().layer(Layer::new().file("f", "x")), "1.0");
    bench.add(&Image::new().layer(Layer::new().file("f", "y")), "1.1");
    let content = bench.registry.content();
    let entry = |architecture: &str| {
        json!({
            "mediaType": built.manifest.media_type,
            "digest": built.manifest.digest.to_string(),
            "size": built.manifest.size,
            "platform": { "os": "linux", "architecture": architecture },
        })
    };
    let index = json!({ "schemaVersion": 2, "manifests": [entry("s390x"), entry("riscv64")] });
    let index_type = "application/vnd.oci.image.index.v1+json";
    content.add_manifest("team/app", Some("many"), index_type, index.to_string());
    let empty = content.add_blob("application/vnd.oci.empty.v1+json", "{}");
    let artifact = manifest_json(&empty, &json!({ "artifactType": "application/vnd.example.chart" }));
    content.add_manifest("team/app", Some("chart"), &built.manifest.media_type, artifact);
    let old = json!({ "schemaVersion": 1, "name": "team/app", "tag": "old", "fsLayers": [], "history": [] });
    let old_type = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    content.add_manifest("team/app", Some("old"), old_type, old.to_string());

    bench.refuses(&[&bench.registry.name("team/none:1.0")], 3, &["team/none"]);
    bench.refuses(&[&bench.reference("2.0")], 3, &["team/app:2.0", "\nhint: ", "1.0", "1.1"]);
    bench.refuses(&[&format!("{}@{}", bench.registry.name("team/app"), Digest::sha256(b"none"))], 3, &["sha256:"]);
    let none = bench.reference("many");
    bench.refuses(
        &["--platform", "windows/amd64", &none],
        3,
        &["windows/amd64", "linux/s390x", "linux/riscv64", "--platform"],
    );
    bench.refuses(&[&bench.reference("chart")], 6, &["\nhint: this is an artifact, not a container image\n"]);
    bench.refuses(&[&bench.reference("old")], 6, &["schema 1"]);
    for args in [["inspect", &none, "--platform=windows/amd64"], ["ls", &none, "--platform=windows/amd64"]] {
        bench.assert_refused(&bench.ocifs.run(args), 3, &["linux/s390x"]);
    }
    assert_failure(&bench.ocifs.run(["mount", "a\x1b[2Jb", "/nowhere"]), 2, &["a\\x1b[2Jb"]);
}

#[test]
fn registries_that_refuse_or_are_not_there_are_told_apart() {
    let Some(bench) = Bench::new() else { return };
    bench.add(&Image::new().layer(Layer::new().file("f", "x")), "1.0");
    let reference = bench.reference("1.0");
    let host = bench.registry.addr().to_string();
    let login = |user: &str, password: &str| {
        let file = bench.ocifs.home().join(format!("{user}-{password}.json"));
        let auth = STANDARD.encode(format!("{user}:{password}"));
        let host = host.as_str();
        fs::write(&file, json!({ "auths": { host: { "auth": auth } } }).to_string()).expect("a file");
        format!("--authfile={}", file.display())
    };
    let credentials = Credentials::new("anna", "right");
    let bearer = Bearer { credentials: Some(credentials.clone()), ..Bearer::default() };
    for fault in [Fault::Basic(credentials), Fault::Bearer(bearer)] {
        let this = fault.clone();
        bench.registry.set_faults(move |_| Some(this.clone()));
        let ran = bench.refuses(&[&reference], 4, &["\ncause: ", "\nhint: "]);
        assert!(!ran.stderr.contains("right"), "{}", ran.stderr);
        let ran = bench.refuses(&[&login("anna", "wrong"), &reference], 4, &["\ncause: ", "\nhint: "]);
        assert!(!ran.stderr.contains("wrong\n") && !ran.stderr.contains("anna:"), "{}", ran.stderr);
        bench.ocifs.run(["inspect", &login("anna", "right"), &reference]).ok();
    }
    bench.registry.clear_faults();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    bench.refuses(&[&format!("{closed}/team/app:1.0")], 5, &[&closed.to_string(), "\ncause: "]);
    bench.refuses(&["--offline", &bench.reference("9")], 5, &["\nhint: leave out --offline to fetch it\n"]);
}

#[test]
fn only_who_could_use_the_cache_is_told_of_it_when_a_registry_is_away() {
    let Some(bench) = Bench::new() else { return };
    let closed = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let reference = format!("{closed}/team/app:1.0");
    let hint = |args: &[&str]| {
        let ran = bench.ocifs.run([args, &[&reference]].concat());
        assert_eq!(ran.code(), 5, "{args:?}: {}", ran.stderr);
        ran.stderr.lines().last().map(str::to_owned)
    };
    for args in [&["index", "--push"][..], &["index", "list"], &["index", "show"], &["index", "rm"]] {
        assert_eq!(hint(args).as_deref(), Some("hint: check the name and the network"), "{args:?}");
    }
    for args in [&["index"][..], &["inspect"], &["ls"]] {
        assert!(hint(args).is_some_and(|hint| hint.contains("--offline")), "{args:?}");
    }
}

#[test]
fn places_that_cannot_be_mounted_on_are_refused_before_anything_is_fetched() {
    let Some(bench) = Bench::new() else { return };
    bench.add(&Image::new().layer(Layer::new().file("f", "x")), "1.0");
    let home = bench.ocifs.home().canonicalize().expect("it exists");
    fs::create_dir_all(home.join("full/of")).expect("a directory");
    fs::write(home.join("file"), "").expect("a file");
    symlink("nowhere", home.join("dangling")).expect("a link");
    let at = |name: &str| home.join(name).to_str().expect("a simple path").to_owned();
    let on = |name: &str| bench.ocifs.run(["mount", "--fill=off", &bench.reference("1.0"), &at(name)]);
    bench.assert_refused(&on("missing"), 7, &[&format!("hint: make it first: mkdir -p {}\n", at("missing"))]);
    bench.assert_refused(&on("full"), 7, &["cause: the directory is not empty\n"]);
    bench.assert_refused(&on("file"), 7, &["hint: the mount point must be a directory\n"]);
    bench.assert_refused(&on("dangling"), 7, &["cause: "]);
    assert_eq!(bench.registry.requests().len(), 0, "the registry was asked for nothing");

    let point = bench.ocifs.mount_point("m");
    bench.ocifs.mount(&bench.reference("1.0"), &point);
    assert_failure(&on("mnt/m"), 7, &["cause: something is mounted there already\n", "ocifs umount"]);
    assert_eq!(bench.ocifs.json(["list", "--json"]).as_array().map(Vec::len), Some(1));
    bench.ocifs.umount(&point);
}

/// Mounts a file system of a few pages for the cache.
fn tiny_cache(ocifs: &Ocifs, options: &str) {
    fs::create_dir(ocifs.cache()).expect("a directory");
    let options = std::ffi::CString::new(format!("mode=0700,{options}")).expect("no NUL");
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("none", ocifs.cache(), "tmpfs", flags, options.as_c_str()).expect("root may mount it");
}

#[test]
fn a_disk_that_is_full_during_first_contact_costs_fetches_and_no_read() {
    let Some(bench) = Bench::new() else { return };
    let (image, files) = image();
    bench.add(&image, "1.0");
    for options in ["size=700k", "size=64k", "size=700k,nr_inodes=20"] {
        let ocifs = Ocifs::new();
        tiny_cache(&ocifs, options);
        let point = ocifs.mount_point("m");
        let told = ocifs.mount(&bench.reference("1.0"), &point).stderr;
        let indexes = files_below(&ocifs.cache().join("indexes")).len();
        let layers = ocifs.status(&point)["mounts"][0]["layers"].as_array().map_or(0, Vec::len);
        assert_eq!(told.contains(" has no room for the index of "), indexes < layers, "{options}: {told}");
        read_all(point.path(), &files).unwrap_or_else(|error| panic!("{options}: {error}"));
        ocifs.umount(&point);
        assert!(ocifs.run(["cache", "verify"]).ok().stdout.ends_with(" good, 0 damaged\n"), "{options}");
        ocifs.await_no_temporary(options);
    }
}

#[test]
fn an_index_that_is_not_kept_for_another_reason_than_room_is_told_with_that_reason() {
    let Some(bench) = Bench::new() else { return };
    bench.add(&Image::new().layer(Layer::new().file("f", "x")), "1.0");
    bench.ocifs.run(["ls", &bench.reference("1.0")]).ok();
    bench.ocifs.run(["cache", "drop", "--indexes"]).ok();
    let temporary = bench.ocifs.cache().join("tmp");
    fs::remove_dir_all(&temporary).expect("nobody writes");
    fs::write(&temporary, "").expect("a file");
    let point = bench.ocifs.mount_point("m");
    let told = bench.ocifs.mount(&bench.reference("1.0"), &point).stderr;
    assert!(told.contains(" does not keep the index of 1 of 1 layers (cannot write "), "{told}");
    assert!(told.contains(": Not a directory (os error 20)): they are streamed again next time"), "{told}");
    assert_eq!(fs::read(point.path().join("f")).expect("it is served"), b"x");
    bench.ocifs.umount(&point);
}

#[test]
fn a_disk_that_is_full_costs_fetches_and_no_read_of_a_layer_too_large_for_memory() {
    let Some(bench) = Bench::new() else { return };
    // More than one window of it, so that reads cross from one to the next.
    let large = crate::damage::prose(7, 40 << 20);
    let frame = Layer::new().file("large", &large).compressed(Compression::Zstd);
    bench.add(&Image::new().layer(frame).layer(Layer::new().file("small", "here")), "1.0");
    tiny_cache(&bench.ocifs, "size=1m");
    let point = bench.ocifs.mount_point("m");
    bench.ocifs.mount(&bench.reference("1.0"), &point);
    assert_eq!(fs::read(point.path().join("small")).expect("it fits into memory"), b"here");
    let before = bench.registry.requests().len();
    assert!(fs::read(point.path().join("large")).expect("a full disk fails no read") == large);
    assert!(bench.registry.requests().len() > before, "there was no room to keep it");
    assert!(bench.memory() < MEMORY, "{} bytes", bench.memory());
    bench.ocifs.umount(&point);
}

#[test]
fn a_disk_without_room_for_the_cache_directory_itself_is_exit_code_9() {
    let Some(bench) = Bench::new() else { return };
    bench.add(&Image::new().layer(Layer::new().file("f", "x")), "1.0");
    tiny_cache(&bench.ocifs, "size=4k,nr_inodes=5");
    let point = bench.ocifs.mount_point("m");
    let dir = point.path().to_str().expect("a simple path");
    let ran = bench.ocifs.run(["mount", &bench.reference("1.0"), dir]);
    assert_failure(&ran, 9, &["cause: No space left on device", "hint: free some space"]);
    assert!(!point.is_mounted());
}

#[test]
fn a_cache_directory_of_somebody_else_is_exit_code_9() {
    let Some(bench) = Bench::new() else { return };
    if !require(&["setpriv"]) {
        return;
    }
    let (ocifs, home) = (&bench.ocifs, bench.ocifs.home());
    let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is ours");
    set(home, 0o755);
    for name in ["cache", "run"] {
        fs::create_dir(home.join(name)).expect("a directory");
        set(&home.join(name), 0o700);
    }
    std::os::unix::fs::chown(ocifs.runtime(), Some(65534), Some(65534)).expect("root may");
    // The program may lie where other users cannot go.
    let program = home.join("ocifs");
    let built = env!("CARGO_BIN_EXE_ocifs");
    fs::hard_link(built, &program).or_else(|_| fs::copy(built, &program).map(drop)).expect("a copy");
    let point = ocifs.mount_point("m");
    // A directory of root's, and one that would have to be made where only root may.
    for cache in [ocifs.cache(), home.join("below")] {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program).arg("mount");
        command.arg(bench.reference("1.0")).arg(point.path());
        command.env("HOME", home).env("OCIFS_CACHE_DIR", &cache).env("OCIFS_RUNTIME_DIR", ocifs.runtime());
        let ran = run(&mut command);
        assert_failure(&ran, 9, &[cache.to_str().expect("a simple path"), "\nhint: choose ", "--cache-dir"]);
    }
    assert!(files_below(&ocifs.cache()).is_empty() && !home.join("below").exists() && !point.is_mounted());
}

/// One tar member, with a PAX header before it if there are records.
fn member(tar: &mut Vec<u8>, name: &str, kind: EntryType, data: &[u8], records: &[(&str, &[u8])]) {
    let mut builder = tar::Builder::new(&mut *tar);
    if !records.is_empty() {
        builder.append_pax_extensions(records.iter().copied()).expect("memory can be written");
    }
    let mut header = Header::new_ustar();
    header.set_path(name).expect("a short name");
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(data.len() as u64);
    header.set_cksum();
    builder.append(&header, data).expect("memory can be written");
    // The end marker comes once, at the end of the layer.
    std::mem::forget(builder);
}

/// A layer of hand-made members.
fn layer(mut tar: Vec<u8>) -> Layer {
    tar.resize(tar.len() + 1024, 0);
    Layer::from_stream(tar)
}

#[test]
fn layers_made_to_harm_are_rejected_with_exit_code_6() {
    let Some(bench) = Bench::new() else { return };
    let value = vec![b'x'; 2 << 20];
    let mut pax = Vec::new();
    member(&mut pax, "f", EntryType::Regular, b"", &[("comment", &value)]);
    let mut regions = Vec::new();
    let map = [b"200000\n".as_slice(), &b"0\n0\n".repeat(200_000)].concat();
    let sparse: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"f"),
        ("GNU.sparse.realsize", b"10"),
    ];
    member(&mut regions, "f", EntryType::Regular, &map, &sparse);
    let mut cut = Vec::new();
    member(&mut cut, "f", EntryType::Regular, &value, &[]);
    cut.truncate(1 << 20);
    let hostile = [
        ("d_011_pax", layer(pax)),
        ("d_012_regions", layer(regions)),
        ("a_155_cut", Layer::from_stream(cut)),
        ("a_032_dot", Layer::new().dir("etc").file("etc/.wh..", "")),
        ("a_032_dots", Layer::new().dir("etc").file("etc/.wh...", "")),
        ("a_032_root", Layer::new().file(".wh..", "")),
        ("link", Layer::new().hardlink("a\x1b[2J\nb", "gone\x1b]0;x\x07")),
        ("noise", Layer::from_stream(crate::damage::prose(5, 100_000))),
    ];
    for (tag, layer) in hostile {
        let below = Layer::new().dir("etc").file("etc/passwd", "root");
        bench.add(&Image::new().layer(below).layer(layer), tag);
        let ran = bench.refuses(&[&bench.reference(tag)], 6, &["\ncause: "]);
        if tag == "link" {
            assert!(ran.stderr.contains("\\x1b"), "the name is shown, escaped: {}", ran.stderr);
        }
        // Nor does another way in show anything of it.
        bench.assert_refused(&bench.ocifs.run(["ls", &bench.reference(tag)]), 6, &["\ncause: "]);
    }
    assert!(bench.memory() < MEMORY, "{} bytes", bench.memory());
}

#[test]
fn d_013_a_sparse_file_of_exabytes_is_served_as_the_hole_it_is() {
    let Some(bench) = Bench::new() else { return };
    let size = 1_u64 << 62;
    let text = size.to_string();
    let records: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"huge"),
        ("GNU.sparse.realsize", text.as_bytes()),
    ];
    let mut data = format!("1\n{}\n3\n", size - 3).into_bytes();
    data.resize(512, 0);
    data.extend_from_slice(b"end");
    let mut tar = Vec::new();
    member(&mut tar, "huge", EntryType::Regular, &data, &records);
    bench.add(&Image::new().layer(layer(tar)), "sparse");
    let point = bench.ocifs.mount_point("m");
    bench.ocifs.mount(&bench.reference("sparse"), &point);
    let file = File::open(point.path().join("huge")).expect("it opens");
    assert_eq!(file.metadata().expect("it has one").len(), size);
    for offset in [0, 1 << 40, size - (1 << 20)] {
        let mut buffer = [1; 4096];
        file.read_exact_at(&mut buffer, offset).expect("zeros");
        assert_eq!(buffer, [0; 4096]);
    }
    let mut end = [1; 8];
    assert_eq!(file.read_at(&mut end, size - 5).expect("the end"), 5);
    assert_eq!(&end[..5], b"\0\0end");
    drop(file);
    bench.ocifs.umount(&point);
    assert!(bench.memory() < MEMORY, "{} bytes", bench.memory());
}

#[test]
fn d_015_a_path_ten_thousand_directories_deep_can_be_walked_and_read() {
    let Some(bench) = Bench::new() else { return };
    const DEPTH: usize = 10_000;
    let path = [b"d/".repeat(DEPTH), b"leaf".to_vec()].concat();
    bench.add(&Image::new().layer(Layer::new().file(&path, "deep down")), "deep");
    let point = bench.ocifs.mount_point("m");
    bench.ocifs.mount(&bench.reference("deep"), &point);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let mut directory: OwnedFd = File::open(point.path()).expect("a directory").into();
    for _ in 0..DEPTH {
        directory = openat(&directory, "d", flags | OFlags::DIRECTORY, Mode::empty()).expect("one deeper");
    }
    let leaf = File::from(openat(&directory, "leaf", flags, Mode::empty()).expect("the leaf"));
    assert_eq!(std::io::read_to_string(&leaf).expect("it can be read"), "deep down");
    drop((leaf, directory));
    bench.ocifs.umount(&point);
    let name = String::from_utf8(path).expect("ASCII");
    assert_eq!(bench.ocifs.run(["cat", &bench.reference("deep"), &name]).ok().stdout, "deep down");
    assert!(bench.memory() < MEMORY, "{} bytes", bench.memory());
}

/// Adds an image of one gzip layer whose stream is written piece by piece, so that it never is in memory.
fn add_streamed(bench: &Bench, tag: &str, write: impl FnOnce(&mut dyn FnMut(&[u8]))) -> u64 {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::new(6));
    write(&mut |piece| {
        hasher.update(piece);
        encoder.write_all(piece).expect("memory can be written");
    });
    let content = bench.registry.content();
    let layer = content.add_blob("application/vnd.oci.image.layer.v1.tar+gzip", encoder.finish().expect("memory"));
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({
        "architecture": architecture, "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": [hasher.finish().to_string()] },
    });
    let config = content.add_blob("application/vnd.oci.image.config.v1+json", config.to_string());
    let layers = json!([{ "mediaType": layer.media_type, "digest": layer.digest.to_string(), "size": layer.size }]);
    let manifest = manifest_json(&config, &json!({ "layers": layers }));
    content.add_manifest("team/app", Some(tag), "application/vnd.oci.image.manifest.v1+json", manifest);
    layer.size
}

#[test]
fn d_010_a_layer_of_a_gigabyte_of_zeros_takes_no_gigabyte_of_memory() {
    let Some(bench) = Bench::new() else { return };
    const SIZE: u64 = 1 << 30;
    let zeros = vec![0; 1 << 20];
    let compressed = add_streamed(&bench, "bomb", |write| {
        let mut header = Header::new_ustar();
        header.set_path("zeros").expect("a short name");
        header.set_mode(0o644);
        header.set_size(SIZE);
        header.set_cksum();
        write(header.as_bytes());
        (0..SIZE >> 20).for_each(|_| write(&zeros));
        write(&[0; 1024]);
    });
    assert!(compressed < SIZE / 200, "{compressed}");
    let point = bench.ocifs.mount_point("m");
    bench.ocifs.mount(&bench.reference("bomb"), &point);
    let file = File::open(point.path().join("zeros")).expect("it opens");
    assert_eq!(file.metadata().expect("it has one").len(), SIZE);
    for offset in [0, SIZE / 3, SIZE - 4096] {
        let mut buffer = [1; 4096];
        file.read_exact_at(&mut buffer, offset).expect("zeros");
        assert_eq!(buffer, [0; 4096]);
    }
    drop(file);
    bench.ocifs.umount(&point);
    assert!(bench.memory() < MEMORY, "{} bytes", bench.memory());
}

#[test]
fn a_171_a_layer_of_three_hundred_thousand_entries_is_mounted_in_bounded_memory() {
    let Some(bench) = Bench::new() else { return };
    const ENTRIES: usize = 300_000;
    add_streamed(&bench, "many", |write| {
        for number in 0..ENTRIES {
            let mut header = Header::new_ustar();
            header.set_path(format!("d{}/file-{number}", number / 1000)).expect("a short name");
            header.set_mode(0o644);
            header.set_size(0);
            header.set_cksum();
            write(header.as_bytes());
        }
        write(&[0; 1024]);
    });
    let point = bench.ocifs.mount_point("m");
    bench.ocifs.mount(&bench.reference("many"), &point);
    assert_eq!(fs::read_dir(point.path()).expect("a directory").count(), ENTRIES / 1000);
    assert_eq!(fs::read_dir(point.path().join("d299")).expect("a directory").count(), 1000);
    assert!(point.path().join(format!("d299/file-{}", ENTRIES - 1)).is_file());
    bench.ocifs.umount(&point);
    assert!(bench.memory() < MEMORY, "{} bytes", bench.memory());
}

#[test]
fn a_112_names_with_escapes_and_line_breaks_are_served_as_they_are_and_printed_escaped() {
    let Some(bench) = Bench::new() else { return };
    let names = ["new\nline", "esc\x1b[31m", "tab\tbackslash\\", "bidi\u{202e}txt"];
    let layer = names.iter().fold(Layer::new(), |layer, name| layer.file(name, name));
    bench.add(&Image::new().layer(layer), "names");
    let reference = bench.reference("names");
    let point = bench.ocifs.mount_point("m");
    bench.ocifs.mount(&reference, &point);
    for name in names {
        assert_eq!(fs::read_to_string(point.path().join(name)).expect(name), name);
    }
    bench.ocifs.umount(&point);
    let listed = bench.ocifs.run(["ls", &reference]).ok().stdout;
    assert_eq!(listed.lines().count(), names.len(), "{listed:?}");
    let harmless = |character: char| character == '\n' || (!character.is_control() && character != '\u{202e}');
    assert!(listed.chars().all(harmless), "{listed:?}");
    let ran = bench.ocifs.run(["cat", &reference, "not\x1b[0m\nthere"]);
    assert_failure(&ran, 3, &["the image has no not\\x1b[0m\\nthere\n"]);
}
