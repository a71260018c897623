//! Real images, through a real registry, file by file against umoci and program by program against the unpacked tree.
//!
//! Debian's base system is built once by mmdebstrap, which takes a minute and a Debian mirror, and kept below the target
//! directory. `OCIFS_TEST_LARGE=1` adds the image `python` of the layout that `OCIFS_TEST_LAYOUT` names: several layers with
//! whiteouts that apt made.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use crate::support::{
    DockerRegistry, Ocifs, assert_same, output_of, require, require_fuse, require_root, umoci_unpack, walk,
};

/// The layout with Debian's base system as `base`; made if it is not there yet.
fn debian() -> PathBuf {
    /// Tests of this process build it once.
    static BUILDING: Mutex<()> = Mutex::new(());
    let _building = BUILDING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let layout = Path::new(env!("CARGO_TARGET_TMPDIR")).join("debian-bookworm");
    if layout.join("index.json").exists() {
        return layout;
    }
    // Under another name until it is complete: another process may build it at the same time.
    let work = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory");
    let (tar, new) = (work.path().join("base.tar"), work.path().join("layout"));
    let mut build = Command::new("mmdebstrap");
    build.args(["--quiet", "--variant=minbase", "--include=ca-certificates", "bookworm"]).arg(&tar);
    output_of(&mut build);
    let image = |tag: &str| format!("{}:{tag}", new.display());
    output_of(Command::new("umoci").args(["init", "--layout"]).arg(&new));
    output_of(Command::new("umoci").args(["new", "--image", &image("scratch")]));
    let add = ["raw", "add-layer", "--image", &image("scratch"), "--tag", "base"];
    output_of(Command::new("umoci").args(add).arg(&tar));
    if let Err(error) = fs::rename(&new, &layout) {
        assert!(layout.join("index.json").exists(), "{error}, and no other process was faster");
    }
    layout
}

/// Lists a tree with everything but the sizes and link counts of directories, which file systems count as they like.
fn find(root: &Path) -> String {
    let all = r"%P\t%y\t%m\t%U\t%G\t%T@";
    let (directory, other) = (format!(r"{all}\n"), format!(r"{all}\t%s\t%n\t%l\n"));
    let mut command = Command::new("find");
    command.args([
        ".",
        "-mindepth",
        "1",
        "-type",
        "d",
        "-printf",
        &directory,
        "-o",
        "-mindepth",
        "1",
        "-printf",
        &other,
    ]);
    let listing = output_of(command.current_dir(root));
    let mut lines: Vec<&str> = listing.lines().collect();
    lines.sort_unstable();
    lines.join("\n")
}

/// The digest of everything as tar reads it.
fn tar_digest(root: &Path) -> String {
    let script = "tar --sort=name --format=pax --pax-option=exthdr.name=%d/%f,delete=atime,delete=ctime --numeric-owner \
                  --xattrs --xattrs-include='*' -cf - . | sha256sum";
    output_of(Command::new("bash").args(["-o", "pipefail", "-c", script]).current_dir(root))
}

/// Mounts an image of a layout through a registry and compares it with what umoci unpacks, first as the layers stream in
/// and then with nothing here but their indexes.
fn assert_is_what_umoci_unpacks(layout: &Path, tag: &str) {
    let Some(registry) = DockerRegistry::start() else { return };
    registry.push(layout, tag, "it/image:latest");
    let reference = format!("{}/it/image:latest", registry.addr());
    let ocifs = Ocifs::new();
    let unpacked = umoci_unpack(layout, tag, &ocifs.home().join("bundle"));
    let expected = walk(&unpacked).expect("a tree");
    let point = ocifs.mount_point("m");
    ocifs.mount(&reference, &point);
    assert_same(&walk(point.path()).expect("a tree"), &expected, |_, _| false);
    ocifs.umount(&point);

    ocifs.drop_bytes();
    assert!(ocifs.end_daemon(), "it ends when it is told to");
    ocifs.mount(&reference, &point);
    let (ours, theirs) = (find(point.path()), find(&unpacked));
    let different = ours.lines().zip(theirs.lines()).find(|(ours, theirs)| ours != theirs);
    assert!(
        ours == theirs,
        "find lists {different:?} first, {} and {} lines",
        ours.lines().count(),
        theirs.lines().count()
    );
    let fetched = |field: &str| ocifs.status(&point)["mounts"][0][field].as_u64().expect("a number");
    assert_eq!(fetched("bytes_fetched"), 0, "metadata needs no byte of a layer");
    assert_eq!(tar_digest(point.path()), tar_digest(&unpacked), "tar reads other bytes");
    assert!(fetched("bytes_fetched") > 0 && fetched("bytes_fetched") <= fetched("bytes_needed") * 11 / 10);
    ocifs.umount(&point);
    ocifs.run(["cache", "verify"]).ok();
}

#[test]
fn debian_is_what_umoci_unpacks() {
    if !require(&["mmdebstrap", "umoci", "docker-registry", "skopeo", "bash", "tar"])
        || !require_fuse()
        || !require_root()
    {
        return;
    }
    assert_is_what_umoci_unpacks(&debian(), "base");
}

#[test]
fn the_python_image_is_what_umoci_unpacks() {
    if std::env::var_os("OCIFS_TEST_LARGE").is_none_or(|value| value != "1") {
        eprintln!("SKIPPED: the python image, without OCIFS_TEST_LARGE=1");
        return;
    }
    if !require(&["umoci", "docker-registry", "skopeo", "bash", "tar"]) || !require_fuse() || !require_root() {
        return;
    }
    let layout = std::env::var_os("OCIFS_TEST_LAYOUT").expect("OCIFS_TEST_LAYOUT names a layout with the tag python");
    assert_is_what_umoci_unpacks(Path::new(&layout), "python");
}
