//! The tools are worth as much as their own tests: an image built here must be what others take it for, and a
//! comparison must see every difference.

use std::fs;
use std::process::Command;
use std::time::Duration;

use ocifs::demo::registry::Content;
use rustix::mount::{MountFlags, mount};

use super::*;

/// A layer with one of everything.
fn everything() -> Layer {
    let long = ["long"; 60].join("/");
    Layer::new()
        .dir("")
        .mode(0o751)
        .dir("d")
        .mode(0o1777)
        .owner(7, 8)
        .mtime(1_500_000_000, 123_456_789)
        .file("d/file", "some text")
        .mode(0o4755)
        .owner(3_000_000, 4_000_000)
        .xattr("user.key", b"v\0\n=")
        .hardlink("d/other", "d/file")
        .symlink("link", "/d/../nowhere")
        .add("null", EntryContent::CharDevice(1, 3))
        .add("disk", EntryContent::BlockDevice(300, 70_000))
        .add("pipe", EntryContent::Fifo)
        .file(&long, "deep")
        .symlink("far", &long)
        .file(b"not \xff text", "")
        .file("gone", "")
        .file("d2/hidden", "")
}

fn two_layers() -> Image {
    Image::new().layer(everything()).layer(Layer::new().whiteout("gone").opaque("d2").file("d2/new", "new"))
}

#[test]
fn umoci_unpacks_what_the_image_builder_wrote() {
    if !require(&["umoci"]) || !require_root() {
        return;
    }
    let dir = temp_dir();
    let layout = dir.path().join("layout");
    let built = two_layers().to_layout(&layout, "first");
    assert_eq!(
        two_layers().compressed(Compression::GzipMembers(700)).to_layout(&layout, "second").diff_ids,
        built.diff_ids
    );
    let tree = walk(&umoci_unpack(&layout, "first", &dir.path().join("a"))).expect("a tree");
    let same = walk(&umoci_unpack(&layout, "second", &dir.path().join("b"))).expect("a tree");
    // umoci makes the directories on the way when it unpacks, so their times differ.
    let implied = |path: &[u8]| path.is_empty() || path == b"d2" || path.starts_with(b"long");
    assert_same(&tree, &same, |path, field| field == Field::Mtime && implied(path));

    let directory = &tree[&b"d"[..]];
    assert_eq!((directory.mode, directory.uid, directory.gid), (0o1777, 7, 8));
    assert_eq!(directory.mtime, (1_500_000_000, 123_456_789));
    let file = &tree[&b"d/file"[..]];
    assert_eq!((file.mode, file.uid, file.gid, file.size, file.links), (0o4755, 3_000_000, 4_000_000, 9, 2));
    assert_eq!(file.xattrs[&b"user.key"[..]], b"v\0\n=");
    assert_eq!(tree[&b"d/other"[..]].group.as_deref(), Some(&b"d/file"[..]));
    assert_eq!(tree[&b"link"[..]].kind, Kind::Symlink(b"/d/../nowhere".to_vec()));
    assert_eq!(tree[&b"null"[..]].kind, Kind::CharDevice(1, 3));
    assert_eq!(tree[&b"disk"[..]].kind, Kind::BlockDevice(300, 70_000));
    assert_eq!(tree[&b"pipe"[..]].kind, Kind::Fifo);
    assert_eq!(tree[["long"; 60].join("/").as_bytes()].size, 4);
    assert!(tree.contains_key(&b"not \xff text"[..]) && tree.contains_key(&b"d2/new"[..]));
    assert!(!tree.contains_key(&b"gone"[..]) && !tree.contains_key(&b"d2/hidden"[..]));
}

#[test]
fn every_difference_between_trees_is_told_unless_it_is_ignored() {
    let dir = temp_dir();
    for side in ["left", "right"] {
        let root = dir.path().join(side);
        fs::create_dir_all(root.join("d")).expect("a directory");
        fs::write(root.join("d/f"), "text").expect("a file");
        fs::hard_link(root.join("d/f"), root.join("d/g")).expect("a link");
        std::os::unix::fs::symlink("f", root.join("d/l")).expect("a symbolic link");
    }
    let left = walk(&dir.path().join("left")).expect("a tree");
    let right = walk(&dir.path().join("right")).expect("a tree");
    let time = |_: &[u8], field: Field| field == Field::Mtime;
    assert_same(&left, &right, time);
    type Change = fn(&mut Stat);
    let changes: [(&str, Change); 8] = [
        ("Kind is file sha256:", |stat| stat.kind = Kind::File(ocifs::oci::Digest::sha256(b"x"))),
        ("Mode is 0", |stat| stat.mode ^= 0o1000),
        ("Owner is", |stat| stat.gid += 1),
        ("Mtime is", |stat| stat.mtime.1 = (stat.mtime.1 + 1) % 1_000_000_000),
        ("Size is 4, but 5", |stat| stat.size += 1),
        ("Links is 2, but 3", |stat| stat.links += 1),
        ("Group is with /d/f, but alone", |stat| stat.group = None),
        ("Xattrs is , but [user.a=\\n]", |stat| drop(stat.xattrs.insert(b"user.a".to_vec(), b"\n".to_vec()))),
    ];
    for (expected, change) in changes {
        let mut changed = left.clone();
        change(changed.get_mut(&b"d/g"[..]).expect("it is there"));
        let lines = diff(&left, &changed, |_, _| false);
        assert!(lines.len() == 1 && lines[0].starts_with("/d/g: ") && lines[0].contains(expected), "{lines:?}");
    }
    let mut less = left.clone();
    less.remove(&b"d/l"[..]);
    assert_eq!(diff(&left, &less, |_, _| false), ["/d/l: only on the left: symbolic link to f"]);
    assert_eq!(diff(&less, &left, |path, _| path == b"d/l"), [""; 0]);
}

#[test]
fn a_layout_a_real_registry_and_the_embedded_one_hold_the_same_image() {
    let Some(real) = DockerRegistry::start() else { return };
    let dir = temp_dir();
    let layout = dir.path().join("layout");
    let image = Image::new()
        .layer(everything().compressed(Compression::None))
        .layer(everything().compressed(Compression::Zstd))
        .layer(everything().compressed(Compression::ZstdFrames(1000)))
        .config("/config", "User", "1000");
    let built = image.to_layout(&layout, "tag");
    real.push(&layout, "tag", "a/b:v1");
    let content = Content::new();
    assert_eq!(image.to_content(&content, "a/b", "v1").manifest, built.manifest);
    let embedded = Embedded::start(content);
    for addr in [real.addr().to_owned(), embedded.addr().to_string()] {
        let name = format!("docker://{addr}/a/b:v1");
        let options = ["--insecure-policy", "inspect", "--raw", "--tls-verify=false"];
        let manifest = output_of(Command::new("skopeo").args(options).arg(&name));
        assert!(built.manifest.digest.matches(manifest.as_bytes()), "{addr}: {manifest}");
        let archive = dir.path().join(addr.replace(':', "-"));
        super::skopeo_copy(&name, &format!("oci-archive:{}:v1", archive.display()));
        assert!(archive.exists());
        assert!(built.layers.iter().all(|layer| manifest.contains(&layer.digest.to_string())));
    }
}

#[test]
fn a_dropped_mount_is_gone_even_if_it_hangs() {
    if !require_root() || !require_fuse() {
        return;
    }
    let dir = temp_dir();
    let plain = Mount::new(dir.path().join("with blank"));
    mount("none", plain.path(), "tmpfs", MountFlags::empty(), None).expect("root may mount");
    assert!(plain.is_mounted());
    let place = plain.path().to_owned();
    drop(plain);
    assert!(!mount::is_listed(&place));

    let hung = Mount::new(dir.path().join("hung"));
    let device = fs::File::options().read(true).write(true).open("/dev/fuse").expect("there is FUSE");
    let fd = std::os::fd::AsRawFd::as_raw_fd(&device);
    let options = std::ffi::CString::new(format!("fd={fd},rootmode=40000,user_id=0,group_id=0")).expect("no NUL");
    mount("none", hung.path(), "fuse", MountFlags::empty(), Some(options.as_c_str())).expect("root may mount");
    let place = hung.path().to_owned();
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || send.send(fs::read_dir(place).map(|_| ()).map_err(|error| error.kind())));
    assert!(receive.recv_timeout(Duration::from_millis(300)).is_err(), "nobody answers, so the reader waits");
    drop(hung);
    let answer = receive.recv_timeout(Duration::from_secs(60)).expect("the reader is free");
    assert!(answer.is_err());
    drop(device);
}

#[test]
fn the_program_runs_with_directories_of_its_own() {
    let ocifs = Ocifs::new();
    let ran = ocifs.run(["--version"]);
    assert_eq!(ran.code(), 0, "{ran:?}");
    let seen = run(Command::new("sh").args(["-c", "echo out; echo err >&2; sleep 60 & exit 3"]));
    assert_eq!((seen.code(), seen.stdout.as_str(), seen.stderr.as_str()), (3, "out\n", "err\n"));
    assert!(seen.took < Duration::from_secs(50), "what was left behind is not waited for");
    let environment = ocifs.command::<&str>([]).get_envs().count();
    assert!(ocifs.mount_point("a").path().starts_with(ocifs.home().canonicalize().expect("it exists")));
    assert!(environment >= 3 && ocifs.cache() != ocifs.runtime());
}
