//! Damage: a byte that is wrong anywhere, at rest or on the wire, is fetched again, made again or an error, and is never
//! read.
//!
//! Most of it runs in this process, through [`Images`] and [`FileSystem`], because thousands of images are opened; a few
//! tests at the end go through the program and the kernel.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ocifs::demo::registry::{Answer, Content, Fault, Registry, Request as Asked};
use ocifs::fetch::{Fetcher, Options};
use ocifs::fs::{Attr, Chain, Errno, FileSystem, FileType, Ino, Read};
use ocifs::image::{Images, Progress, Request};
use ocifs::index::LayerIndex;
use ocifs::oci::{Digest, Platform, Wanted};
use ocifs::store::{self, Store};
use ocifs::tree::Tree;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::support::{Built, Compression, Embedded, Image, Layer, Ocifs, require_fuse, require_root, temp_dir};

/// Numbers that look random and are the same in every run (splitmix64).
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// Bytes that compress to about two thirds of their length, with matches far behind, so that gzip spans need their windows.
pub(crate) fn prose(seed: u64, size: usize) -> Vec<u8> {
    let mut dice = Dice::new(seed);
    let mut text: Vec<u8> = (0..size.min(4096)).map(|_| dice.below(256) as u8).collect();
    while text.len() < size {
        let length = 8 + dice.below(16) as usize;
        let start = text.len() - 1 - dice.below(text.len().min(30_000) as u64 - 1) as usize;
        let end = (start + length).min(text.len());
        text.extend_from_within(start..end);
        text.extend((0..24).map(|_| dice.below(256) as u8));
    }
    text.truncate(size);
    text
}

/// The contents of the image's files by path.
pub(crate) type Files = BTreeMap<Vec<u8>, Vec<u8>>;

/// An image of about twenty files in layers of every kind, and what its files must hold.
pub(crate) fn image() -> (Image, Files) {
    let mut files = Files::new();
    let mut number = 0;
    let mut layer = |name: &str, sizes: &[usize], compression| {
        let mut layer = Layer::new().dir(name);
        for size in sizes {
            number += 1;
            let (path, bytes) = (format!("{name}/file-{number}"), prose(number, *size));
            layer = layer.file(&path, &bytes).mode(0o640 + u32::try_from(number % 8).expect("a small number"));
            files.insert(path.into_bytes(), bytes);
        }
        layer.compressed(compression)
    };
    let image = Image::new()
        .layer(layer("gzip", &[0, 1, 511, 512, 30_000, 1_900_000, 7000], Compression::Gzip))
        .layer(layer("members", &[600, 90_000, 5], Compression::GzipMembers(40_000)))
        .layer(layer("zstd", &[100, 4096, 200_000, 300_000], Compression::ZstdFrames(100_000)))
        .layer(layer("frame", &[3, 260_000], Compression::Zstd))
        .layer(layer("tar", &[513, 10_000, 280_000], Compression::None))
        .layer(
            Layer::new()
                .whiteout("gzip/file-1")
                .symlink("link", "tar/file-17")
                .hardlink("members/linked", "members/file-9")
                .file("gzip/replaced", "once more")
                .xattr("user.note", "kept"),
        );
    files.remove(&b"gzip/file-1"[..]);
    files.insert(b"members/linked".to_vec(), files[&b"members/file-9"[..]].clone());
    files.insert(b"gzip/replaced".to_vec(), b"once more".to_vec());
    (image, files)
}

/// What a reader sees of one path.
#[derive(Debug, PartialEq)]
struct Seen {
    attr: Attr,
    target: Vec<u8>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    bytes: Result<Vec<u8>, (Errno, String)>,
}

type View = BTreeMap<Vec<u8>, Seen>;

/// The image in an embedded registry, and how it looks undamaged.
struct Served {
    runtime: Runtime,
    registry: Registry,
    built: Built,
    blobs: BTreeMap<Digest, Vec<u8>>,
    view: View,
}

/// An image opened in this process.
struct Opened {
    fs: FileSystem,
    images: Images,
}

/// How a look at the image ended; a wrong byte is a panic.
type Looked = Result<(), String>;

impl Served {
    fn new() -> Self {
        let (image, files) = image();
        let content = Content::new();
        let built = image.to_content(&content, "team/app", "1.0");
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("threads can be started");
        let registry = runtime.block_on(Registry::start(content)).expect("a port is free");
        let blobs = built.layers.iter().map(|layer| layer.digest).zip(image.blobs()).collect();
        let mut served = Self { runtime, registry, built, blobs, view: View::new() };
        let cache = temp_dir();
        let view = served.runtime.block_on(async {
            let opened = served.open(cache.path(), &served.tagged(), false).await.expect("nothing is damaged yet");
            view_of(&opened.fs, &|_| true).await
        });
        let held: Files = view
            .iter()
            .filter(|(_, seen)| seen.attr.file_type == FileType::Regular)
            .map(|(path, seen)| (path.clone(), seen.bytes.clone().expect("nothing is damaged yet")))
            .collect();
        assert!(held == files, "the files are not what was put into the image");
        served.view = view;
        served
    }

    fn tagged(&self) -> String {
        format!("{}/team/app:1.0", self.registry.addr())
    }

    fn pinned(&self) -> String {
        format!("{}/team/app@{}", self.registry.addr(), self.built.manifest.digest)
    }

    async fn open(&self, cache: &Path, reference: &str, offline: bool) -> Result<Opened, String> {
        let store = Arc::new(store_at(cache).await);
        let images = Images::new(store, Fetcher::new(Options::default()));
        let request = Request {
            reference: reference.parse().expect("a reference"),
            wanted: Wanted::Host(Platform::host()),
            offline,
            plain_http: false,
            auth_files: Vec::new(),
        };
        let image = images.open(&request, &Arc::new(Progress::default())).await;
        let image = image.map_err(|error| Chain(&error).to_string())?;
        let layers = image.layers.iter().map(|layer| Arc::clone(&layer.layer)).collect();
        let fs = FileSystem::new(image.tree, layers, images.fetcher().clone(), Arc::clone(images.store()));
        Ok(Opened { fs, images })
    }

    /// Opens the image and reads everything in it. Panics if anything is not as it should be; an error is an error.
    #[track_caller]
    fn look(&self, cache: &Path, reference: &str, offline: bool) -> Looked {
        self.runtime.block_on(async {
            let opened = self.open(cache, reference, offline).await?;
            self.compare(&view_of(&opened.fs, &|_| true).await)
        })
    }

    fn compare(&self, view: &View) -> Looked {
        let names = |view: &View| view.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(view), names(&self.view));
        let mut looked = Ok(());
        for ((path, seen), expected) in view.iter().zip(self.view.values()) {
            let path = path.escape_ascii();
            assert_eq!(
                (seen.attr, &seen.target, &seen.xattrs),
                (expected.attr, &expected.target, &expected.xattrs),
                "{path}"
            );
            match &seen.bytes {
                Ok(_) => assert!(seen.bytes == expected.bytes, "{path} has wrong bytes"),
                Err((errno, error)) => {
                    assert_eq!(*errno, Errno::Io, "{path}: {error}");
                    looked = Err(error.clone());
                }
            }
        }
        looked
    }

    /// A cache that has every layer, and no decoded file.
    fn complete(&self) -> TempDir {
        let cache = temp_dir();
        self.look(cache.path(), &self.tagged(), false).expect("nothing is damaged yet");
        self.runtime.block_on(async { store_at(cache.path()).await.drop_files().expect("it can be emptied") });
        cache
    }

    /// A cache that has every file decoded, and no layer.
    fn published(&self) -> TempDir {
        let cache = self.complete();
        self.runtime.block_on(async {
            let opened = self.open(cache.path(), &self.tagged(), false).await.expect("nothing is damaged yet");
            self.compare(&view_of(&opened.fs, &|_| true).await).expect("nothing is damaged yet");
            let contents: std::collections::BTreeSet<_> = self
                .view
                .values()
                .filter(|seen| seen.attr.size > 0)
                .map(|seen| seen.bytes.clone().expect("it is right"))
                .collect();
            let deadline = Instant::now() + Duration::from_secs(20);
            // Symbolic links have bytes too here: none.
            let wanted = contents.iter().filter(|bytes| !bytes.is_empty()).count() as u64;
            while opened.images.store().usage().expect("it can be read").files.count < wanted {
                assert!(Instant::now() < deadline, "files are not published");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        self.runtime.block_on(async {
            store_at(cache.path()).await.drop_blobs(&Default::default()).expect("it can be emptied")
        });
        cache
    }

    /// A cache that knows the image and has none of its bytes.
    fn lazy(&self) -> TempDir {
        let cache = self.complete();
        self.runtime.block_on(async {
            store_at(cache.path()).await.drop_blobs(&Default::default()).expect("it can be emptied")
        });
        cache
    }

    /// A cache that has some spans of every layer.
    fn partial(&self) -> TempDir {
        let cache = self.lazy();
        self.runtime.block_on(async {
            let opened = self.open(cache.path(), &self.tagged(), false).await.expect("nothing is damaged yet");
            view_of(&opened.fs, &|path| path.iter().map(|byte| usize::from(*byte)).sum::<usize>() % 3 != 0).await;
        });
        self.runtime.block_on(async { store_at(cache.path()).await.drop_files().expect("it can be emptied") });
        cache
    }

    /// Panics if the cache holds a wrong byte, whatever it is called.
    #[track_caller]
    fn assert_nothing_wrong_is_kept(&self, cache: &Path) {
        self.runtime.block_on(async {
            let store = store_at(cache).await;
            for (digest, bytes) in &self.blobs {
                let size = bytes.len() as u64;
                let blob = store.blob(digest, size).expect("it can be looked at");
                for range in present(&blob.missing(0..size), size) {
                    let kept = blob.read(range.clone()).expect("it can be read").expect("it is there");
                    let right = &bytes[range.start as usize..range.end as usize];
                    assert!(kept == right, "bytes {range:?} of {digest} are kept and wrong");
                }
            }
            let verified = store.verify(&|path, name, bytes| {
                let bytes = Bytes::copy_from_slice(bytes);
                if path.starts_with("trees/") {
                    return Tree::open(bytes).is_ok();
                }
                LayerIndex::open(bytes).is_ok_and(|index| index.layer() == *name && index.check().is_ok())
            });
            assert_eq!(verified.expect("it can be checked").removed, Vec::<String>::new());
        });
    }
}

/// What lies between the gaps.
pub(crate) fn present(missing: &[Range<u64>], size: u64) -> Vec<Range<u64>> {
    let starts = std::iter::once(0).chain(missing.iter().map(|gap| gap.end));
    let ends = missing.iter().map(|gap| gap.start).chain(std::iter::once(size));
    starts.zip(ends).map(|(start, end)| start..end).filter(|range| !range.is_empty()).collect()
}

/// Opens the cache, waiting for what the last one to have it still does in the background.
async fn store_at(cache: &Path) -> Store {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match Store::open(cache) {
            Ok(store) => return store,
            Err(store::Error::Busy(_)) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(2)).await
            }
            Err(error) => panic!("the cache cannot be opened: {}", Chain(&error)),
        }
    }
}

/// Everything in the file system, the bytes of `wanted` files only.
async fn view_of(fs: &FileSystem, wanted: &(impl Fn(&[u8]) -> bool + Sync)) -> View {
    let mut view = View::new();
    let mut waiting = vec![(Vec::new(), Ino(1))];
    while let Some((path, ino)) = waiting.pop() {
        let attr = fs.getattr(ino).expect("the tree has it");
        let mut target = Vec::new();
        let mut bytes = Ok(Vec::new());
        match attr.file_type {
            FileType::Directory => {
                let directory = fs.directory(ino).expect("it is one");
                for entry in directory.entries(2) {
                    let name =
                        if path.is_empty() { entry.name.to_vec() } else { [&path, &b"/"[..], entry.name].concat() };
                    waiting.push((name, entry.ino));
                }
            }
            FileType::Symlink => target = fs.readlink(ino).expect("it is one").to_vec(),
            _ if wanted(&path) => bytes = read(fs, ino, attr.size).await,
            _ => {}
        }
        let names = fs.listxattr(ino).expect("the tree has it");
        let xattrs = names
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
            .map(|name| (name.to_vec(), fs.getxattr(ino, name).expect("it was listed").to_vec()))
            .collect();
        view.insert(path, Seen { attr, target, xattrs, bytes });
    }
    view
}

/// Reads a file as the kernel would.
async fn read(fs: &FileSystem, ino: Ino, size: u64) -> Result<Vec<u8>, (Errno, String)> {
    const PIECE: u32 = 128 << 10;
    let failed = |error: ocifs::fs::Error| (error.errno(), Chain(&error).to_string());
    fs.open(ino).map_err(failed)?;
    let mut bytes = Vec::new();
    let mut failure = None;
    while (bytes.len() as u64) < size && failure.is_none() {
        let piece = match fs.read(ino, bytes.len() as u64, PIECE) {
            Ok(Read::Ready(piece)) => Ok(piece),
            Ok(Read::Later(pending)) => pending.await,
            Err(error) => Err(error),
        };
        match piece {
            Ok(piece) => {
                assert!(!piece.is_empty(), "a read before the end gave nothing");
                bytes.extend_from_slice(&piece);
            }
            Err(error) => failure = Some(failed(error)),
        }
    }
    fs.release(ino);
    failure.map_or(Ok(bytes), Err)
}

/// What a look without the registry must be after damage.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Alone {
    /// The cache has all that it takes to make the damaged object again.
    Right,
    /// Only the registry has it.
    Error,
    /// It depends on the byte.
    Either,
}

/// Damages every object below `part` of copies of the cache, one byte at a time, `count` bytes each, and looks.
fn damage(served: &Served, cache: &Path, part: &str, count: u64, alone: Alone) {
    let mut dice = Dice::new(0x5eed);
    let objects = files_below(&cache.join(part));
    assert!(!objects.is_empty(), "the cache has no {part}");
    let mut errors = 0;
    for object in objects {
        let name = object.strip_prefix(cache).expect("it is below");
        let size = fs::metadata(&object).expect("it is there").len();
        for number in 0..count.min(size) {
            // The first and the last byte, and in between one somewhere in each of equal stretches.
            let stretch = size / count.max(1);
            let place = match number {
                0 => 0,
                1 => size - 1,
                _ => (number * stretch + dice.below(stretch.max(1))).min(size - 1),
            };
            let mask = if dice.below(4) == 0 { 0xff } else { 1 << dice.below(8) };
            let copy = temp_dir();
            copy_below(cache, copy.path());
            flip(&copy.path().join(name), place, mask);
            let what = format!("{} with byte {place} of {size} changed by {mask:#04x}", name.display());
            let looks = if number % 2 == 0 { [true, false] } else { [false, true] };
            for (turn, offline) in looks.into_iter().enumerate() {
                let looked = served.look(copy.path(), &served.tagged(), offline);
                match (offline, &looked) {
                    (false, Err(error)) => panic!("{what}: {error}"),
                    // What was read with the registry at hand has been healed.
                    (true, Err(error)) if turn == 1 || alone == Alone::Right => panic!("{what}, offline: {error}"),
                    (true, Ok(())) if turn == 0 && alone == Alone::Error => {
                        panic!("{what}: offline nothing was missed")
                    }
                    (true, Err(_)) => errors += 1,
                    (_, Ok(())) => {}
                }
            }
        }
    }
    assert!(alone == Alone::Right || errors > 0, "no byte of {part} was ever missed");
}

fn flip(path: &Path, place: u64, mask: u8) {
    let file = fs::File::options().read(true).write(true).open(path);
    let file = file.or_else(|_| {
        // Decoded files are read-only; root may write them anyway.
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        fs::File::options().read(true).write(true).open(path)
    });
    let file = file.expect("it can be opened");
    let mut byte = [0];
    file.read_exact_at(&mut byte, place).expect("it can be read");
    file.write_all_at(&[byte[0] ^ mask], place).expect("it can be written");
}

/// The regular files below a directory, in order.
pub(crate) fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() { waiting.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    files
}

pub(crate) fn copy_below(from: &Path, to: &Path) {
    for file in files_below(from) {
        let target = to.join(file.strip_prefix(from).expect("it is below"));
        fs::create_dir_all(target.parent().expect("it has one")).expect("a directory");
        fs::copy(&file, &target).expect("a copy");
    }
}

#[test]
fn a_damaged_document_or_reference_is_fetched_again_or_missed() {
    let served = Served::new();
    let cache = served.complete();
    damage(&served, cache.path(), "manifests", 10, Alone::Error);
    damage(&served, cache.path(), "refs", 10, Alone::Error);
}

#[test]
fn a_damaged_index_or_tree_is_made_again_from_the_layers() {
    let served = Served::new();
    let cache = served.complete();
    damage(&served, cache.path(), "indexes", 7, Alone::Right);
    damage(&served, cache.path(), "trees", 20, Alone::Right);
}

#[test]
fn a_damaged_index_is_made_again_by_fetching_the_layer_if_that_is_not_here() {
    let served = Served::new();
    let cache = served.lazy();
    damage(&served, cache.path(), "indexes", 2, Alone::Error);
}

#[test]
fn a_damaged_byte_of_a_complete_layer_is_never_read() {
    let served = Served::new();
    let cache = served.complete();
    damage(&served, cache.path(), "blobs", 10, Alone::Either);
}

#[test]
fn a_damaged_byte_of_a_partial_layer_or_its_map_is_never_read() {
    let served = Served::new();
    let cache = served.partial();
    let names = files_below(&cache.path().join("blobs"));
    let with = |suffix: &str| names.iter().filter(|name| name.to_string_lossy().ends_with(suffix)).count();
    assert!(with(".partial") > 3 && with(".partial") == with(".map"), "{names:?}");
    damage(&served, cache.path(), "blobs", 7, Alone::Either);
}

#[test]
fn a_damaged_decoded_file_is_never_read() {
    let served = Served::new();
    let cache = served.published();
    damage(&served, cache.path(), "files", 4, Alone::Error);
}

/// What a lie of the server may lead to. A wrong byte it never may.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Outcome {
    /// The client notices and gets the right bytes in the end.
    Right,
    /// There is nothing right to be had.
    Error,
    /// An error if a part of the blob is asked for; asking for the whole of it gets it.
    ErrorOfRange,
}

impl Outcome {
    fn fits(self, looked: &Looked) -> bool {
        match self {
            Self::Right => looked.is_ok(),
            Self::Error => looked.is_err(),
            Self::ErrorOfRange => true,
        }
    }
}

/// Decides how one kind of answer goes wrong.
type Lie = Box<dyn Fn(&Asked) -> Option<Fault> + Send + Sync>;

fn lie(lie: impl Fn(&Asked) -> Option<Fault> + Send + Sync + 'static) -> Lie {
    Box::new(lie)
}

/// The ways in which a server lies about a blob of `size` bytes.
fn lies(size: u64) -> Vec<(String, Lie, Outcome)> {
    use Outcome::{Error, ErrorOfRange, Right};
    let early = |asked: &Asked| asked.attempt < 2;
    let slow = Fault::Drip { bytes: 20_000, every: Duration::from_millis(5) };
    let mut lies = vec![
        (
            "cuts answers short, twice".to_owned(),
            lie(move |asked| early(asked).then_some(Fault::Truncate { after: 70 })),
            Right,
        ),
        (
            "cuts answers without a length short, twice".to_owned(),
            lie(move |asked| early(asked).then(|| Fault::Many(vec![Fault::NoLength, Fault::Truncate { after: 70 }]))),
            Right,
        ),
        (
            "stops and resets, twice".to_owned(),
            lie(move |asked| early(asked).then(|| Fault::Many(vec![slow.clone(), Fault::Reset { after: 70 }]))),
            Right,
        ),
        ("ignores ranges".to_owned(), lie(|_| Some(Fault::IgnoreRange)), Right),
        ("states no range".to_owned(), lie(|asked| asked.range().map(|_| Fault::ContentRange(None))), ErrorOfRange),
        (
            "states another range".to_owned(),
            lie(|asked| asked.range().map(|_| Fault::ContentRange(Some("bytes 1-2/3".to_owned())))),
            ErrorOfRange,
        ),
        ("sends another range".to_owned(), lie(|_| Some(Fault::OtherRange(1..9))), Error),
        ("sends another blob".to_owned(), lie(|_| Some(Answer::new(200).body("<html>not found</html>").into())), Error),
        (
            "sends zeros".to_owned(),
            lie(move |_| Some(Answer::new(200).body(vec![0; usize::try_from(size).expect("a small blob")]).into())),
            Error,
        ),
        (
            "sends zeros and more of them".to_owned(),
            lie(move |_| Some(Answer::new(200).body(vec![0; usize::try_from(size).expect("a small blob") + 1]).into())),
            Error,
        ),
    ];
    let mut dice = Dice::new(size);
    for offset in [0, size / 2, size - 1, dice.below(size)] {
        lies.push((format!("inverts byte {offset}"), lie(move |_| Some(Fault::Corrupt { offset })), Error));
    }
    lies
}

/// Lies about `digest` only.
fn tell(served: &Served, digest: Digest, lie: Lie) {
    served.registry.set_faults(move |asked| asked.path.ends_with(&digest.to_string()).then(|| lie(asked)).flatten());
}

#[test]
fn a_server_that_lies_at_first_contact_gets_no_byte_through_and_is_believed_again_when_it_is_right() {
    let served = Served::new();
    let config = served.built.config.clone();
    let mut refused_ranges = 0;
    for blob in served.built.layers.iter().chain([&config]) {
        for (what, lie, outcome) in lies(blob.size) {
            let what = format!("blob of {} bytes: the server {what}", blob.size);
            let cache = temp_dir();
            tell(&served, blob.digest, lie);
            let looked = served.look(cache.path(), &served.tagged(), false);
            assert!(outcome.fits(&looked), "{what}: {looked:?}");
            if outcome == Outcome::ErrorOfRange && looked.is_err() {
                refused_ranges += 1;
            }
            served.assert_nothing_wrong_is_kept(cache.path());
            served.registry.clear_faults();
            let looked = served.look(cache.path(), &served.tagged(), false);
            assert_eq!(looked, Ok(()), "{what}, but no more");
        }
    }
    assert!(refused_ranges > 0, "no layer was asked for in parts: {:?}", served.built.layers);
}

#[test]
fn a_server_that_lies_to_lazy_reads_gets_no_byte_through_and_is_believed_again_when_it_is_right() {
    let served = Served::new();
    let cache = served.lazy();
    for (number, blob) in served.built.layers.iter().enumerate() {
        for (what, lie, outcome) in lies(blob.size) {
            let what = format!("layer {number} of {} bytes: the server {what}", blob.size);
            let copy = temp_dir();
            copy_below(cache.path(), copy.path());
            served.registry.forget_requests();
            tell(&served, blob.digest, lie);
            let (first, second) = served.runtime.block_on(async {
                let opened = served.open(copy.path(), &served.tagged(), false).await.expect("it needs no layer");
                let first = served.compare(&view_of(&opened.fs, &|_| true).await);
                served.registry.clear_faults();
                (first, served.compare(&view_of(&opened.fs, &|_| true).await))
            });
            // Bytes that no file needs, such as the end of the archive, may be wrong as they like.
            let may_be_right = what.contains("inverts byte") || number + 1 == served.built.layers.len();
            assert!(outcome.fits(&first) || (first.is_ok() && may_be_right), "{what}: {first:?}");
            assert_eq!(second, Ok(()), "{what}, but no more");
            served.assert_nothing_wrong_is_kept(copy.path());
        }
    }
}

#[test]
fn a_span_that_is_wrong_once_is_fetched_again_within_the_same_read() {
    let served = Served::new();
    let cache = served.lazy();
    served.registry.set_faults(|asked| {
        let range = asked.is_blob().then(|| asked.range()).flatten()?;
        let start: u64 = range.strip_prefix("bytes=")?.split('-').next()?.parse().ok()?;
        // Requests for one blob are numbered together; the same range twice is what matters here.
        (asked.attempt % 2 == 0).then_some(Fault::Corrupt { offset: start + 20 })
    });
    let looked = served.look(cache.path(), &served.tagged(), false);
    served.registry.clear_faults();
    served.assert_nothing_wrong_is_kept(cache.path());
    if let Err(error) = looked {
        assert!(error.contains("are wrong"), "{error}");
        assert_eq!(served.look(cache.path(), &served.tagged(), false), Ok(()));
    }
}

#[test]
fn a_manifest_with_a_wrong_byte_is_refused_by_digest_and_leads_to_no_wrong_tree_by_tag() {
    let served = Served::new();
    let size = served.built.manifest.size;
    let mut refused = 0;
    for offset in (0..size).step_by(usize::try_from(size / 60).expect("a short document").max(1)) {
        served.registry.set_faults(move |asked| asked.is_manifest().then_some(Fault::Corrupt { offset }));
        let cache = temp_dir();
        let pinned = served.look(cache.path(), &served.pinned(), false);
        assert!(pinned.is_err(), "byte {offset} is wrong");
        // A tag may lead anywhere, even to another manifest, but what layers hold is pinned by their digests.
        refused += u64::from(served.look(cache.path(), &served.tagged(), false).is_err());
        served.assert_nothing_wrong_is_kept(cache.path());
        served.registry.clear_faults();
        assert_eq!(served.look(cache.path(), &served.tagged(), false), Ok(()));
        assert_eq!(served.look(cache.path(), &served.pinned(), true), Ok(()));
    }
    assert!(refused > 0);
}

/// The server of the tests that go through the program, and its image.
fn program() -> (Ocifs, Embedded, Files, Built) {
    let (image, files) = image();
    let content = Content::new();
    let built = image.to_content(&content, "team/app", "1.0");
    (Ocifs::new(), Embedded::start(content), files, built)
}

/// Tells the daemon to end and waits until it has.
pub(crate) fn end_daemon(ocifs: &Ocifs) {
    let pid = ocifs.daemon().expect("a daemon is running");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it can be told to end");
    wait_for_end(pid);
}

/// Waits until a process has ended, with all of its threads.
pub(crate) fn wait_for_end(pid: Pid) {
    let patience = Timespec { tv_sec: 20, tv_nsec: 0 };
    // If it cannot be opened it is gone already.
    if let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) {
        let ended = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&patience)).expect("it can be waited for");
        assert!(ended > 0, "process {pid:?} does not end");
    }
}

/// Reads all files through the kernel; the first error ends it. Panics at a wrong byte.
#[track_caller]
pub(crate) fn read_all(root: &Path, files: &Files) -> std::io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    for (path, expected) in files {
        let bytes = fs::read(root.join(std::ffi::OsStr::from_bytes(path)))?;
        assert!(bytes == *expected, "{} has wrong bytes", path.escape_ascii());
    }
    Ok(())
}

#[test]
fn a_mount_from_a_server_that_always_lies_is_exit_code_6_and_works_when_it_is_right_again() {
    if !require_fuse() || !require_root() {
        return;
    }
    let (ocifs, registry, files, built) = program();
    let point = ocifs.mount_point("m");
    let lying = built.layers[0].digest.to_string();
    registry.set_faults(move |asked| asked.path.ends_with(&lying).then_some(Fault::Corrupt { offset: 5000 }));
    let reference = registry.name("team/app:1.0");
    let dir = point.path().to_str().expect("a simple path");
    let ran = ocifs.run(["mount", "--fill=off", &reference, dir]);
    assert_eq!((ran.code(), ran.stdout.as_str()), (6, ""), "{}", ran.stderr);
    let start =
        format!("error: cannot mount {reference}\ncause: layer {} is rejected\ncause: ", built.layers[0].digest);
    assert!(ran.stderr.starts_with(&start), "{}", ran.stderr);
    assert!(!point.is_mounted());
    assert_eq!(ocifs.run(["list", "--json"]).ok().stdout, "[]\n");
    assert!(ocifs.run(["cache", "verify"]).ok().stdout.ends_with(" good, 0 damaged\n"));
    registry.clear_faults();
    ocifs.mount(&reference, &point);
    read_all(point.path(), &files).expect("it is right now");

    ocifs.umount(&point);
    ocifs.drop_bytes();
    // What the daemon has decoded and verified stays in its memory.
    end_daemon(&ocifs);
    ocifs.mount(&reference, &point);
    registry.set_faults(|asked| {
        // Every byte of every range, as far as one can tell from outside.
        asked
            .is_blob()
            .then(|| Fault::Many((0..2_000_000).step_by(50).map(|offset| Fault::Corrupt { offset }).collect()))
    });
    let error = read_all(point.path(), &files).expect_err("all of it is wrong");
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{error}");
    assert!(ocifs.run(["cache", "verify"]).ok().stdout.ends_with(" good, 0 damaged\n"));
    registry.clear_faults();
    read_all(point.path(), &files).expect("the same mount serves what is right now");
}

#[test]
fn a_mount_over_a_damaged_cache_is_right_with_the_registry_and_an_error_without() {
    if !require_fuse() || !require_root() {
        return;
    }
    let (ocifs, registry, files, _) = program();
    let point = ocifs.mount_point("m");
    let reference = registry.name("team/app:1.0");
    ocifs.mount(&reference, &point);
    ocifs.umount(&point);
    let damage = |part: &str| {
        for object in files_below(&ocifs.cache().join(part)) {
            let size = fs::metadata(&object).expect("it is there").len();
            for place in (0..size).step_by(997) {
                flip(&object, place, 0x10);
            }
        }
    };
    damage("blobs");
    let dir = point.path().to_str().expect("a simple path");
    ocifs.run(["mount", "--offline", &reference, dir]).ok();
    let error = read_all(point.path(), &files).expect_err("nothing is right, and nobody may be asked");
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{error}");
    ocifs.umount(&point);
    for part in ["blobs", "indexes", "trees", "refs", "manifests"] {
        damage(part);
    }
    ocifs.mount(&reference, &point);
    read_all(point.path(), &files).expect("the registry has it all");
    ocifs.umount(&point);
    assert!(ocifs.run(["cache", "verify"]).ok().stdout.ends_with(" good, 0 damaged\n"));
    damage("manifests");
    let ran = ocifs.run(["mount", "--offline", &reference, dir]);
    assert_eq!(ran.code(), 5, "{}", ran.stderr);
    assert!(ran.stderr.contains("\nhint: leave out --offline to fetch it\n") && !point.is_mounted(), "{}", ran.stderr);
}
