//! What the kernel is given before it asks: its requests are counted.

use std::fs::{self, File};
use std::io::IsTerminal;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use memmap2::Mmap;
use ocifs::oci::Digest;
use rustix::fs::{Advice, fadvise};

use super::{Mounted, PAGE, is_known};
use crate::support::{Image, Layer, big, eventually, noise};

/// Where the profile says that the large file is read.
const PARTS: [u64; 3] = [0, 1 << 20, 3 << 20];

const MINUTE: Duration = Duration::from_secs(60);

fn image() -> Image {
    let small = |number: u64| noise(9000, number);
    let layer = Layer::new().file("a", small(1)).file("b", small(2)).file("c", small(3)).file("z", big());
    Image::new().layer(layer)
}

#[test]
fn who_asks_whether_a_file_is_a_terminal_need_not_ask_for_its_bytes() {
    let Some(mounted) = Mounted::with(&image(), "cached") else { return };
    // The bytes of all three come with one.
    assert!(fs::read(mounted.path("a")).expect("it is readable") == noise(9000, 1));
    let before = mounted.requests("read");
    let opened = File::open(mounted.path("b")).expect("a file");
    assert!(!opened.is_terminal());
    assert!(fs::read(mounted.path("b")).expect("it is readable") == noise(9000, 2));
    assert_eq!(mounted.requests("read"), before);
    assert!(fs::read(mounted.path("c")).expect("it is readable") == noise(9000, 3));
    assert!(mounted.requests("read") > before, "nobody has said anything about it");
}

#[test]
fn what_a_profile_says_of_a_file_follows_its_first_bytes() {
    let Some(mounted) = Mounted::with(&image(), "cached") else { return };
    // All bytes are here, and the kernel knows none of them.
    assert!(fs::read(mounted.path("z")).expect("it is readable") == big());
    mounted.ocifs.umount(&mounted.point);
    assert!(mounted.ocifs.end_daemon(), "it ends when it is told to");
    let accesses = PARTS.map(|offset| format!("{offset} {PAGE} z\n")).concat();
    let image = Digest::sha256(b"of another image");
    let text = format!("ocifs-profile 1\nimage {image}\nrecorded 1764000000\nmount /m\naccesses 3\n{accesses}");
    let file = mounted.ocifs.home().join("profile");
    fs::write(&file, text).expect("a writable directory");
    let reference = mounted.registry.name("it:latest");
    mounted.ocifs.run(["profile", "import", &reference, file.to_str().expect("a simple path")]).ok();
    mounted.mount();

    // The profile is read beside the mount, so a reader may be too early.
    eventually(MINUTE, "all is fetched ahead", || mounted.status()["profile"]["ahead_done"] == true);
    let opened = File::open(mounted.path("z")).expect("a file");
    fadvise(&opened, 0, None, Advice::Random).expect("every file system takes advice");
    let read = |offset: u64| {
        let mut bytes = vec![0; PAGE];
        opened.read_exact_at(&mut bytes, offset).expect("it is readable");
        assert!(bytes == big()[offset as usize..offset as usize + PAGE]);
    };
    read(PARTS[0]);
    // What is given is given beside the reader.
    // SAFETY: nothing changes or truncates a file of a read-only mount.
    let map = unsafe { Mmap::map(&opened) }.expect("it can be mapped");
    eventually(MINUTE, "the kernel has all parts", || PARTS.into_iter().all(|offset| is_known(&map, offset)));
    let before = mounted.requests("read");
    PARTS.into_iter().for_each(read);
    assert_eq!(mounted.requests("read"), before);
    read(2 << 20);
    assert!(mounted.requests("read") > before, "the profile does not know of it");
}
