//! One image with everything in it that a root file system can have, in three layers that change each other.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use super::{EntryContent, Image, Layer, temp_dir};

/// Length of `/data/big`.
pub(crate) const BIG: usize = 5 << 20;

/// Length of `/sparse/holes`, which has data at [`SPARSE_DATA`] and at its very end.
pub(crate) const SPARSE: u64 = 8 << 20;

/// Where `/sparse/holes` has its first data.
pub(crate) const SPARSE_DATA: u64 = 1 << 20;

/// `length` bytes that compress to about half and repeat nowhere; another `seed` gives others.
pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 16);
    while bytes.len() < length {
        // Marsaglia's xorshift64.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes().iter().flat_map(|byte| [b'a' + (byte & 15), b'a' + (byte >> 4)]));
    }
    bytes.truncate(length);
    bytes
}

/// What `/data/big` holds. Made once, because without optimisation that takes as long as mounting it.
pub(crate) fn big() -> &'static [u8] {
    static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| noise(BIG, 1));
    &BYTES
}

/// A name of 255 bytes, the longest there is.
pub(crate) fn long_name() -> String {
    "n".repeat(255)
}

/// The image, with `many` files in `/many`.
pub(crate) fn rich(many: usize) -> Image {
    Image::new().layer(base(many)).layer(changes()).layer(sparse())
}

fn base(many: usize) -> Layer {
    let layer = Layer::new().dir("").dir("etc").file("etc/passwd", "root:x:0:0::/:/bin/sh\n").file("etc/empty", "");
    let layer = special(owned(layer.dir("data").file("data/big", big()).file("data/page", noise(4096, 2))));
    let layer = linked(layer).dir("gone").file("gone/file", "hidden").file("etc/gone", "hidden");
    let layer = layer.dir("opaque").file("opaque/hidden", "hidden").dir("opaque/below").file("opaque/below/hidden", "");
    let layer = layer.file("replaced", "short").dir("becomes-file").file("becomes-file/x", "").file("becomes-dir", "");
    let layer = names(layer).dir("times").mtime(1_500_000_000, 1).file("times/nanos", "").mtime(1_234_567_890, 987);
    let layer = layer.file("times/far", "").mtime(4_102_444_800, 0).file("times/epoch", "").mtime(0, 0);
    (0..many).fold(layer.dir("many"), |layer, number| layer.file(format!("many/{number:05}"), format!("{number}\n")))
}

/// Owners, modes and extended attributes.
fn owned(layer: Layer) -> Layer {
    // A capability of version 2: CAP_NET_RAW, permitted and effective.
    let capability = [0x0200_0001_u32, 1 << 13, 0, 0, 0].map(u32::to_le_bytes).concat();
    let layer = layer.dir("bin").file("bin/su", noise(9000, 3)).mode(0o4755).file("bin/wall", "w").mode(0o2755);
    let layer = layer.owner(0, 5).file("bin/ping", "p").mode(0o755).xattr("security.capability", capability);
    let layer = layer.dir("tmp").mode(0o1777).dir("home/user").mode(0o700).owner(1000, 1000);
    let layer = layer.file("home/user/inner", "inner").owner(1000, 1000).dir("srv").mode(0o2775).owner(0, 50);
    let layer = layer.file("etc/secret", "secret").mode(0o600).owner(1000, 1000).file("etc/none", "none").mode(0);
    let layer = layer.file("etc/far-owner", "x").owner(3_000_000_000, 4_000_000_000);
    layer
        .dir("etc/attrs")
        .xattr("user.dir", "d")
        .file("etc/attrs/file", "")
        .xattr("user.a", b"\0\n=")
        .xattr("user.b", "b")
}

/// What is neither file nor directory.
fn special(layer: Layer) -> Layer {
    let layer = layer.dir("dev").add("dev/null", EntryContent::CharDevice(1, 3)).mode(0o666);
    let layer = layer.add("dev/sda", EntryContent::BlockDevice(8, 0)).mode(0o660).owner(0, 6);
    let layer = layer.add("dev/large", EntryContent::BlockDevice(300, 70_000)).add("dev/pipe", EntryContent::Fifo);
    let layer = layer.symlink("dev/fd", "/proc/self/fd").symlink("dangling", "no/where").symlink("to-dir", "etc");
    layer.symlink("to-file", "etc/passwd").owner(7, 8).symlink("loop", "loop").symlink("long", "../".repeat(1365))
}

/// Groups of hard links, which the second layer changes.
fn linked(layer: Layer) -> Layer {
    let layer = layer.dir("links").file("links/a", noise(3000, 4)).xattr("user.group", "one");
    let layer = layer.hardlink("links/b", "links/a").hardlink("links/c", "links/a");
    let layer = layer.file("links/x", "both").hardlink("links/y", "links/x");
    layer.symlink("links/s", "a").hardlink("links/t", "links/s").file("links/alone", "alone")
}

/// Names that are hard to get right, and a path of 2,400 bytes.
fn names(layer: Layer) -> Layer {
    let layer = layer.dir("names").file(format!("names/{}", long_name()), "long").file(b"names/\xff\xfe", "not text");
    let layer = layer.file("names/with blank", "").file("names/line\nbreak", "").file("names/back\\slash", "");
    let layer = layer.file("names/ü", "").file("names/..hidden", "").file("names/-rf", "").file("names/\x1b[2J", "");
    layer.file(["deep directory of forty bytes, more or less"; 55].join("/"), "deep")
}

fn changes() -> Layer {
    let layer = Layer::new().whiteout("gone").whiteout("etc/gone").opaque("opaque").file("opaque/new", "new");
    let layer = layer.file("replaced", "something longer").file("becomes-file", "f").dir("becomes-dir");
    let layer = layer.file("becomes-dir/inner", "i").whiteout("links/b").dir("other").hardlink("other/d", "links/a");
    // One name of a group gets a file of its own, which leaves the other alone.
    layer.file("links/x", "only x").hardlink("links/alone-too", "links/alone")
}

/// A sparse file as GNU tar writes it in PAX format.
fn sparse() -> Layer {
    let dir = temp_dir();
    fs::create_dir(dir.path().join("sparse")).expect("a directory");
    let holes = File::create(dir.path().join("sparse/holes")).expect("a file");
    holes.write_all_at(&noise(70_000, 5), SPARSE_DATA).expect("data in the middle");
    holes.write_all_at(b"end", SPARSE - 3).expect("data at the end");
    File::create(dir.path().join("sparse/only")).and_then(|file| file.set_len(1 << 20)).expect("a hole");
    let mut command = Command::new("tar");
    command.args(["--format=pax", "--sparse", "--sort=name", "--owner=0", "--group=0", "--numeric-owner"]);
    command.args(["--mode=u=rwX,go=rX", "--mtime=@1600000000", "--pax-option=delete=atime,delete=ctime", "-cf-", "-C"]);
    let output = command.arg(dir.path()).arg("sparse").stderr(Stdio::inherit()).output().expect("tar can be run");
    assert!(output.status.success(), "{command:?} failed");
    assert!(output.stdout.len() < 1 << 20, "tar did not see the holes");
    Layer::from_stream(output.stdout)
}
