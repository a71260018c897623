//! Reading files: every way to read gives the same bytes, and bytes that cannot be had give EIO until they can.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use memmap2::{Mmap, MmapMut};
use ocifs::demo::registry::Fault;
use rustix::fs::{OFlags, sendfile};
use rustix::io::Errno;

use super::{MODES, Mounted};
use crate::support::{BIG, Compression, Image, Layer, SPARSE, SPARSE_DATA, big, noise, output_of, rich};

fn map(path: &Path) -> Mmap {
    let file = File::open(path).expect("a file");
    // SAFETY: nothing changes or truncates a file of a read-only mount.
    unsafe { Mmap::map(&file) }.expect("it can be mapped")
}

/// Memory in whole pages: file systems on disks, whose rules passthrough brings, read no other directly.
fn aligned(size: usize) -> MmapMut {
    MmapMut::map_anon(size).expect("memory")
}

#[test]
fn a_207_reads_end_at_the_end() {
    MODES.into_iter().for_each(reads_end);
}

fn reads_end(io: &'static str) {
    let Some(mounted) = Mounted::with(&rich(0), io) else { return };
    let expected = big();
    // Once through what first contact left in the cache, once with every byte fetched anew, once from the decoded file.
    for round in 0..3 {
        match round {
            0 => {}
            1 => mounted.remount_lazily(),
            _ => mounted.publish(&["data/big"], 1),
        }
        // Closed at the end of each round: an open file would keep the mount busy.
        let file = File::open(mounted.path("data/big")).expect("a file");
        let at = |offset: u64, size: usize| {
            let mut buffer = vec![0xff; size];
            let count = file.read_at(&mut buffer, offset).expect("it is readable");
            assert!(buffer[count..].iter().all(|byte| *byte == 0xff), "nothing is written beyond what was read");
            buffer.truncate(count);
            buffer
        };
        let end = BIG as u64;
        assert_eq!(at(end - 10, 100), expected[BIG - 10..]);
        assert!([end, end + 1, end + 4096, 1 << 40].into_iter().all(|offset| at(offset, 100).is_empty()));
        assert_eq!(at(1_234_567, 3_000_001), expected[1_234_567..4_234_568]);
        assert!(at(0, 0).is_empty());
        let mut seeking = &file;
        assert_eq!(seeking.seek(SeekFrom::End(-3)).ok(), Some(end - 3));
        let mut rest = Vec::new();
        assert_eq!(seeking.read_to_end(&mut rest).ok(), Some(3));
        assert_eq!(seeking.read(&mut [0; 8]).ok(), Some(0), "and again");
        assert_eq!(File::open(mounted.path("etc/empty")).and_then(|file| file.read_at(&mut [0; 8], 0)).ok(), Some(0));
    }
}

#[test]
fn a_207_every_way_to_read_gives_the_same_bytes() {
    MODES.into_iter().for_each(every_way_to_read);
}

fn every_way_to_read(io: &'static str) {
    let Some(mounted) = Mounted::with(&rich(0), io) else { return };
    let (path, expected) = (mounted.path("data/big"), big());
    type Way = fn(&Path) -> Vec<u8>;
    let ways: [(&str, Way); 5] = [
        ("read", |path| fs::read(path).expect("it is readable")),
        ("mmap", |path| map(path).to_vec()),
        ("mmap from the back", |path| {
            let map = map(path);
            let mut bytes = vec![0; map.len()];
            for start in (0..map.len()).step_by(100_000).rev() {
                let end = map.len().min(start + 100_000);
                bytes[start..end].copy_from_slice(&map[start..end]);
            }
            bytes
        }),
        ("O_DIRECT", |path| {
            let flags = OFlags::DIRECT.bits().cast_signed();
            let mut file = OpenOptions::new().read(true).custom_flags(flags).open(path).expect("it opens");
            let (mut bytes, mut buffer) = (Vec::new(), aligned(300 << 10));
            loop {
                match file.read(&mut buffer).expect("it is readable") {
                    0 => return bytes,
                    count => bytes.extend_from_slice(&buffer[..count]),
                }
            }
        }),
        ("sendfile", |path| {
            let (from, mut to) = (File::open(path).expect("a file"), tempfile::tempfile().expect("a file"));
            while sendfile(&to, &from, None, 1 << 20).expect("it is readable") > 0 {}
            to.rewind().expect("it is a file");
            let mut bytes = Vec::new();
            to.read_to_end(&mut bytes).expect("it is readable");
            bytes
        }),
    ];
    for (name, way) in ways {
        mounted.remount_lazily();
        assert!(way(&path) == expected, "{name}, lazily");
        assert!(way(&path) == expected, "{name}, again");
    }
    mounted.publish(&["data/big"], 1);
    for (name, way) in ways {
        mounted.forget_pages("data/big");
        assert!(way(&path) == expected, "{name}, decoded");
    }
    let copy = mounted.ocifs.home().join("copy");
    output_of(Command::new("cp").arg("--reflink=auto").arg(&path).arg(&copy));
    assert!(fs::read(copy).expect("a copy") == expected, "copy_file_range");
}

#[test]
fn a_207_o_direct_reads_what_is_asked_for_up_to_the_end() {
    for io in MODES {
        let Some(mounted) = Mounted::with(&rich(0), io) else { return };
        mounted.remount_lazily();
        direct_reads(&mounted);
        mounted.publish(&["bin/su"], 1);
        direct_reads(&mounted);
    }
}

fn direct_reads(mounted: &Mounted) {
    let flags = OFlags::DIRECT.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(mounted.path("bin/su")).expect("it opens");
    let expected = noise(9000, 3);
    let mut buffer = aligned(8192);
    assert_eq!(file.read_at(&mut buffer, 4096).ok(), Some(9000 - 4096));
    assert_eq!(buffer[..9000 - 4096], expected[4096..]);
    assert_eq!(file.read_at(&mut buffer, 12288).ok(), Some(0));
}

#[test]
fn a_207_hard_links_share_their_pages() {
    let Some(mounted) = Mounted::new(&rich(0)) else { return };
    mounted.remount_lazily();
    let expected = noise(3000, 4);
    assert!(fs::read(mounted.path("links/a")).expect("a file") == expected);
    // With the registry away only what is here already can answer.
    mounted.registry.set_faults(|request| request.is_blob().then(|| Fault::status(404)));
    assert!(fs::read(mounted.path("other/d")).expect("the same file") == expected);
    assert!(map(&mounted.path("links/c"))[..] == expected);
}

#[test]
fn holes_are_zeros_and_data_is_in_its_place() {
    let Some(mounted) = Mounted::new(&rich(0)) else { return };
    let mut expected = vec![0; SPARSE as usize];
    expected[SPARSE_DATA as usize..][..70_000].copy_from_slice(&noise(70_000, 5));
    expected[SPARSE as usize - 3..].copy_from_slice(b"end");
    for _ in 0..2 {
        assert!(fs::read(mounted.path("sparse/holes")).expect("a file") == expected);
        assert!(fs::read(mounted.path("sparse/only")).expect("a file") == vec![0; 1 << 20]);
        let file = File::open(mounted.path("sparse/holes")).expect("a file");
        let mut across = [1; 100];
        file.read_exact_at(&mut across, SPARSE_DATA - 50).expect("it is readable");
        assert_eq!(across[..], expected[SPARSE_DATA as usize - 50..][..100]);
        drop(file);
        mounted.remount_lazily();
    }
}

/// An image of one layer with a file of several spans, mounted lazily.
fn lazy(compression: Compression) -> Option<Mounted> {
    let image = Image::new().layer(Layer::new().file("small", "s").file("file", big()).compressed(compression));
    let mounted = Mounted::new(&image)?;
    mounted.remount_lazily();
    Some(mounted)
}

fn read_error(path: &Path, offset: u64) -> Option<Errno> {
    let file = File::open(path).expect("opening needs no byte");
    file.read_at(&mut [0; 4096], offset).err().and_then(|error| Errno::from_io_error(&error))
}

#[test]
fn a_210_a_failed_fetch_is_eio_and_the_next_read_asks_again() {
    type Cause = fn() -> Fault;
    let faults: [(&str, Cause); 5] = [
        ("is gone", || Fault::status(404)),
        ("refuses", || Fault::status(403)),
        ("lies about its bytes", || Fault::Corrupt { offset: 100_000 }),
        ("has other bytes", || Fault::OtherRange(0..10)),
        // Worth five attempts, with seconds between them.
        ("fails", || Fault::status(500)),
    ];
    for (compression, faults) in [
        (Compression::None, &faults[..4]),
        (Compression::Gzip, &faults),
        (Compression::ZstdFrames(200_000), &faults[..4]),
    ] {
        let Some(mounted) = lazy(compression) else { return };
        let path = mounted.path("file");
        let expected = big();
        for (what, fault) in faults.iter().copied() {
            mounted.remount_lazily();
            mounted.registry.set_faults(move |request| request.is_blob().then(fault));
            assert_eq!(read_error(&path, 50_000), Some(Errno::IO), "{compression:?}: the registry {what}");
            mounted.registry.clear_faults();
            let started = Instant::now();
            assert!(fs::read(&path).expect("the registry is well again") == expected, "{compression:?}: {what}");
            assert!(started.elapsed() < Duration::from_secs(50), "{compression:?}: {what}: {:?}", started.elapsed());
        }
        // The directory and what it says were there all the time.
        mounted.remount_lazily();
        mounted.registry.set_faults(|request| request.is_blob().then(|| Fault::status(404)));
        assert_eq!(fs::metadata(&path).expect("metadata needs no registry").len(), BIG as u64);
        let cat = Command::new("cat").arg(&path).output().expect("cat can be run");
        assert!(!cat.status.success() && String::from_utf8_lossy(&cat.stderr).contains("Input/output error"));
        assert!(cat.stdout.is_empty(), "never zeros, never other bytes");
    }
}

#[test]
fn a_210_only_what_was_fetched_can_be_read_while_the_registry_is_away() {
    let Some(mounted) = lazy(Compression::GzipMembers(300_000)) else { return };
    let (path, expected) = (mounted.path("file"), big());
    let file = File::open(&path).expect("a file");
    let mut buffer = vec![0; 4096];
    file.read_exact_at(&mut buffer, 0).expect("the registry is there");
    assert!(buffer == expected[..4096]);
    mounted.registry.set_faults(|request| request.is_blob().then(|| Fault::status(404)));
    buffer.fill(0);
    file.read_exact_at(&mut buffer, 0).expect("it was fetched");
    assert!(buffer == expected[..4096]);
    let far = BIG as u64 - 4096;
    assert_eq!(read_error(&path, far), Some(Errno::IO));
    mounted.registry.clear_faults();
    file.read_exact_at(&mut buffer, far).expect("the same handle works again");
    assert!(buffer == expected[far as usize..]);
}

#[test]
fn a_210_a_transfer_that_breaks_off_is_taken_up_again() {
    let Some(mounted) = lazy(Compression::None) else { return };
    let count = std::sync::Arc::new(AtomicUsize::new(0));
    let counted = std::sync::Arc::clone(&count);
    mounted.registry.set_faults(move |request| {
        let broken = request.is_blob() && counted.fetch_add(1, Ordering::Relaxed) < 3;
        broken.then_some(Fault::Truncate { after: 10_000 })
    });
    assert!(fs::read(mounted.path("file")).expect("attempts are repeated") == big());
    assert!(count.load(Ordering::Relaxed) > 3, "it took more than one");
}

#[test]
fn d_022_a_wrong_byte_is_never_served_nor_kept() {
    for compression in [Compression::None, Compression::Gzip, Compression::GzipMembers(100_000)] {
        let Some(mounted) = lazy(compression) else { return };
        let (path, expected) = (mounted.path("file"), big());
        // Somewhere in the second half of the layer, whatever its length.
        let offset = mounted.status_size() * 3 / 5;
        mounted.registry.set_faults(move |request| request.is_blob().then_some(Fault::Corrupt { offset }));
        let file = File::open(&path).expect("a file");
        let (mut failed, mut buffer) = (0, vec![0; 65_536]);
        for start in (0..BIG).step_by(buffer.len()) {
            match file.read_exact_at(&mut buffer, start as u64) {
                Ok(()) => assert!(buffer == expected[start..start + buffer.len()], "{compression:?}: wrong at {start}"),
                Err(error) => failed += usize::from(Errno::from_io_error(&error) == Some(Errno::IO)),
            }
        }
        assert!(failed > 0, "{compression:?}: the wrong byte was somewhere");
        mounted.registry.clear_faults();
        assert!(fs::read(&path).expect("it was fetched again") == expected);
        assert_eq!(mounted.ocifs.run(["cache", "verify"]).code(), 0, "nothing wrong was kept");
    }
}

impl Mounted {
    /// Bytes of all layers.
    fn status_size(&self) -> u64 {
        self.ocifs.status(&self.point)["mounts"][0]["bytes_needed"].as_u64().expect("a number")
    }
}
