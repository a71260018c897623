//! Parcels through the program: what one machine touched starts on another without asking anybody.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use ocifs::demo::registry::Content;

use crate::support::{Embedded, Image, Layer, Mount, Ocifs, Ran, noise, require_fuse, require_root};

const FILE: usize = 2 << 20;

/// Six files that do not compress, `a` to `f`, in two layers.
fn image() -> Image {
    let layer = |names: std::ops::RangeInclusive<char>| {
        names.fold(Layer::new().dir("data"), |layer, name| layer.file(format!("data/{name}"), noise(FILE, name as u64)))
    };
    Image::new().layer(layer('a'..='c')).layer(layer('d'..='f'))
}

/// A registry, a machine that has used the image, and one that has not.
struct Scene {
    registry: Embedded,
    used: Ocifs,
    fresh: Ocifs,
    from: Mount,
    to: Mount,
}

impl Scene {
    /// None, loudly, where nothing can be mounted.
    fn new() -> Option<Self> {
        if !require_fuse() || !require_root() {
            return None;
        }
        let content = Content::new();
        image().to_content(&content, "it", "latest");
        let (used, fresh) = (Ocifs::new(), Ocifs::new());
        let scene = Self {
            registry: Embedded::start(content),
            from: used.mount_point("m"),
            to: fresh.mount_point("m"),
            used,
            fresh,
        };
        scene.used.mount(&scene.reference(), &scene.from);
        scene.used.umount(&scene.from);
        scene.used.drop_bytes();
        Some(scene)
    }

    fn reference(&self) -> String {
        self.registry.name("it:latest")
    }

    fn parcel(&self) -> PathBuf {
        self.used.home().join("it.parcel")
    }

    fn export(&self, options: &[&str]) -> Ran {
        let parcel = self.parcel();
        let parcel = parcel.to_str().expect("a plain path");
        self.used.run([&["cache", "export", &self.reference(), parcel], options].concat())
    }

    fn import(&self) -> Ran {
        self.fresh.run(["cache".as_ref(), "import".as_ref(), self.parcel().as_os_str()])
    }

    fn mount_offline(&self) {
        let dir = self.to.path().to_str().expect("a plain path");
        self.fresh.run(["mount", "--offline", "--fill=off", &self.reference(), dir]).ok();
    }

    fn reads(&self, file: char) -> bool {
        fs::read(self.to.path().join(format!("data/{file}"))).is_ok_and(|bytes| bytes == noise(FILE, file as u64))
    }
}

#[test]
fn what_one_machine_read_is_read_on_another_without_any_request() {
    let Some(scene) = Scene::new() else { return };
    scene.used.mount(&scene.reference(), &scene.from);
    for file in ["b", "e"] {
        fs::read(scene.from.path().join("data").join(file)).expect("it can be read");
    }
    scene.registry.forget_requests();
    scene.export(&[]).ok();
    let length = fs::metadata(scene.parcel()).expect("it was written").len();
    // Two of six files, which compress to half, and what shares a span with them.
    assert!(length > FILE as u64 && length < 7 * FILE as u64 / 4, "{length}");
    let told = scene.import().ok().stdout;
    assert!(told.starts_with(&format!("imported {}: ", scene.reference())), "{told}");
    scene.mount_offline();
    assert!(scene.reads('b') && scene.reads('e') && !scene.reads('f'));
    assert_eq!(scene.registry.requests().len(), 0, "nobody was asked");

    scene.used.umount(&scene.from);
    let first = fs::read(scene.parcel()).expect("readable");
    scene.export(&[]).ok();
    assert!(fs::read(scene.parcel()).expect("readable") == first, "equal contents make equal files");
}

#[test]
fn what_fill_brought_is_exported_only_if_that_is_asked_for() {
    let Some(scene) = Scene::new() else { return };
    let dir = scene.from.path().to_str().expect("a plain path").to_owned();
    scene.used.run(["mount", "--wait", "--profile-until=0", &scene.reference(), &dir]).ok();
    let none = scene.export(&[]).ok();
    assert!(none.stderr.contains("warning: nothing was read of the image"), "{}", none.stderr);
    let length = || fs::metadata(scene.parcel()).expect("it was written").len();
    assert!(length() < FILE as u64 / 4, "{}", length());
    fs::read(scene.from.path().join("data/e")).expect("it can be read");
    // Also of a mount that lives, and of one whose daemon has ended since.
    for ends in [false, true] {
        if ends {
            scene.used.umount(&scene.from);
            assert!(scene.used.end_daemon(), "it ends when it is told to");
        }
        assert_eq!(scene.export(&[]).ok().stderr, "");
        assert!(length() > FILE as u64 / 2 && length() < FILE as u64, "{}", length());
    }
    scene.export(&["--all"]).ok();
    assert!(length() > 3 * FILE as u64, "{}", length());
    assert_eq!(scene.export(&["--all", "--profile"]).code(), 2, "one or the other");
}

#[test]
fn a_start_comes_along_with_its_profile_and_nothing_else() {
    let Some(scene) = Scene::new() else { return };
    let dir = scene.from.path().to_str().expect("a plain path").to_owned();
    scene.used.run(["mount", "--fill=off", &scene.reference(), &dir]).ok();
    fs::read(scene.from.path().join("data/d")).expect("it can be read");
    scene.used.umount(&scene.from);
    scene.used.run(["mount", "--wait", &scene.reference(), &dir]).ok();
    scene.used.umount(&scene.from);
    scene.export(&["--profile"]).ok();
    let small = fs::metadata(scene.parcel()).expect("it was written").len();
    assert!(small < FILE as u64, "{small}");
    scene.registry.forget_requests();
    scene.import().ok();
    scene.mount_offline();
    assert!(scene.reads('d') && !scene.reads('a'));
    assert_eq!(scene.registry.requests().len(), 0);
    let shown = |ocifs: &Ocifs| ocifs.run(["profile", "export", "--offline", &scene.reference()]).ok().stdout;
    assert_eq!(shown(&scene.fresh), shown(&scene.used));

    // All of it, through pipes; the mount that is there serves it at once.
    let reference = scene.reference();
    let mut export = scene.used.command(["cache", "export", "--all", &reference, "-"]);
    let mut export = export.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("it runs");
    let pipe = export.stdout.take().expect("a pipe");
    let imported = scene.fresh.command(["cache", "import", "-"]).stdin(pipe).output().expect("it runs");
    assert!(export.wait().expect("it ends").success() && imported.status.success(), "{imported:?}");
    assert!(scene.reads('a') && scene.reads('f'));
    assert_eq!(scene.registry.requests().len(), 0);
}

#[test]
fn what_cannot_be_carried_is_told_and_leaves_no_file() {
    let Some(scene) = Scene::new() else { return };
    let fails = |ran: &Ran, code: i32, text: &str| {
        assert_eq!(ran.code(), code, "{}", ran.stderr);
        assert!(ran.stderr.starts_with("error: ") && ran.stderr.contains(text), "{}", ran.stderr);
    };
    let parcel = scene.parcel();
    fails(&scene.export(&["--profile"]), 3, "there is no profile of");
    assert!(!parcel.exists());
    let unknown = scene.fresh.run(["cache", "export", &scene.reference(), "x.parcel"]);
    fails(&unknown, 5, "hint: mount it first");
    fails(&scene.import(), 3, "cannot read");
    fs::write(&parcel, "something else").expect("written");
    fails(&scene.import(), 2, "this is not a parcel");
    scene.export(&[]).ok();
    let mut bytes = fs::read(&parcel).expect("readable");
    fs::write(&parcel, &bytes[..bytes.len() - 1]).expect("written");
    fails(&scene.import(), 6, "the parcel is cut short");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(&parcel, &bytes).expect("written");
    fails(&scene.import(), 6, "the parcel is damaged");
    bytes[8] = 9;
    fs::write(&parcel, &bytes).expect("written");
    fails(&scene.import(), 2, "version 9");
    let offline = scene.fresh.run(["inspect", "--offline", &scene.reference()]);
    assert_eq!(offline.code(), 5, "what a tag means comes last: {}", offline.stderr);
}

#[test]
fn an_export_that_fails_leaves_what_was_there() {
    let Some(scene) = Scene::new() else { return };
    scene.used.mount(&scene.reference(), &scene.from);
    fs::read(scene.from.path().join("data/b")).expect("it can be read");
    let small = scene.used.mount_point("small");
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("none", small.path(), "tmpfs", flags, Some(c"size=64k")).expect("root may");
    let parcel = small.path().join("it.parcel");
    fs::write(&parcel, "the last one").expect("it has room");
    let name = parcel.to_str().expect("a plain path");
    let ran = scene.used.run(["cache", "export", &scene.reference(), name]);
    assert!(ran.code() == 1 && ran.stderr.contains("No space left on device"), "{}", ran.stderr);
    assert_eq!(fs::read(&parcel).expect("it is there"), b"the last one");
    assert_eq!(fs::read_dir(small.path()).expect("a directory").count(), 1, "and nothing beside it");

    // A link stays one, and the file that it leads to keeps its permissions.
    let link = scene.used.home().join("link");
    std::os::unix::fs::symlink("it.parcel", &link).expect("a link");
    fs::write(scene.parcel(), "").expect("written");
    fs::set_permissions(scene.parcel(), fs::Permissions::from_mode(0o640)).expect("it is ours");
    scene.used.run(["cache".as_ref(), "export".as_ref(), scene.reference().as_ref(), link.as_os_str()]).ok();
    assert!(fs::symlink_metadata(&link).expect("it is there").is_symlink());
    let written = fs::metadata(scene.parcel()).expect("it is there");
    assert!(written.len() > FILE as u64 / 4 && written.permissions().mode() & 0o777 == 0o640, "{written:?}");
}

#[test]
fn d_016_an_endless_parcel_is_given_up_at_once() {
    let ocifs = Ocifs::new();
    let zero = File::open("/dev/zero").expect("it is there");
    let head = ocifs.home().join("head");
    fs::write(&head, b"ocifsprc\x01\0\0\0\x01\xff\xff\x3f\0").expect("written");
    let mut cat = Command::new("cat").arg(&head).arg("/dev/zero").stdout(Stdio::piped()).spawn().expect("it runs");
    for input in [Stdio::from(zero), cat.stdout.take().expect("a pipe").into()] {
        let mut child = ocifs.command(["cache", "import", "-"]);
        let output = child.stdin(input).output().expect("it runs");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code().is_some_and(|code| code == 2 || code == 6), "{told}");
    }
    cat.kill().and_then(|()| cat.wait()).expect("it ends");
}
