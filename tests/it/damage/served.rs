//! The image opened in this process, looked at as a whole, and caches of it in several states.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ocifs::demo::registry::{Content, Registry};
use ocifs::fetch::{Fetcher, Options};
use ocifs::fs::{Attr, Chain, Errno, FileSystem, FileType, Ino, Open, Read};
use ocifs::image::{Images, Progress, Request};
use ocifs::index::LayerIndex;
use ocifs::oci::{Digest, Platform, Wanted};
use ocifs::store::{self, Store};
use ocifs::tree::Tree;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::{Files, image, present};
use crate::support::{Built, temp_dir};

/// What a reader sees of one path.
#[derive(Debug, PartialEq)]
pub(super) struct Seen {
    pub(super) attr: Attr,
    pub(super) target: Vec<u8>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) bytes: Result<Vec<u8>, (Errno, String)>,
}

pub(super) type View = BTreeMap<Vec<u8>, Seen>;

/// The image in an embedded registry, and how it looks undamaged.
pub(super) struct Served {
    pub(super) runtime: Runtime,
    pub(super) registry: Registry,
    pub(super) built: Built,
    blobs: BTreeMap<Digest, Vec<u8>>,
    view: View,
}

/// An image opened in this process.
pub(super) struct Opened {
    pub(super) fs: Arc<FileSystem>,
    images: Images,
}

/// How the kernel opens files.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Opening {
    /// It tells when it opens and closes them, as it does in the passthrough mode.
    Told,
    /// It only reads, as in the cached mode.
    Untold,
}

/// How a look at the image ended; a wrong byte is a panic.
pub(super) type Looked = Result<(), String>;

impl Served {
    pub(super) fn new() -> Self {
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

    pub(super) fn tagged(&self) -> String {
        format!("{}/team/app:1.0", self.registry.addr())
    }

    pub(super) fn pinned(&self) -> String {
        format!("{}/team/app@{}", self.registry.addr(), self.built.manifest.digest)
    }

    pub(super) async fn open(&self, cache: &Path, reference: &str, offline: bool) -> Result<Opened, String> {
        let store = Arc::new(store_at(cache).await);
        let images = Images::new(store, Fetcher::new(Options::default()));
        let request = Request {
            reference: reference.parse().expect("a reference"),
            wanted: Wanted::Host(Platform::host()),
            offline,
            plain_http: false,
            auth_files: Vec::new(),
            hosts: Default::default(),
            trust: ocifs::image::Trust::default(),
            keys: ocifs::signature::Keys::default(),
        };
        let image = images.open(&request, &Arc::new(Progress::default())).await;
        let image = image.map_err(|error| Chain(&error).to_string())?;
        let layers = image.layers.iter().map(|layer| Arc::clone(&layer.layer)).collect();
        let fs = FileSystem::new(image.tree, layers, images.fetcher().clone(), Arc::clone(images.store()));
        let fs = Arc::new(fs);
        Ok(Opened { fs, images })
    }

    /// Opens the image and reads everything in it. Panics if anything is not as it should be; an error is an error.
    #[track_caller]
    pub(super) fn look(&self, cache: &Path, reference: &str, offline: bool) -> Looked {
        self.look_as(cache, reference, offline, Opening::Told)
    }

    /// Likewise, as a kernel does that opens files in its way.
    #[track_caller]
    pub(super) fn look_as(&self, cache: &Path, reference: &str, offline: bool, opening: Opening) -> Looked {
        self.runtime.block_on(async {
            let opened = self.open(cache, reference, offline).await?;
            self.compare(&view_with(&opened.fs, &|_| true, opening).await)
        })
    }

    pub(super) fn compare(&self, view: &View) -> Looked {
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
    pub(super) fn complete(&self) -> TempDir {
        let cache = temp_dir();
        self.look(cache.path(), &self.tagged(), false).expect("nothing is damaged yet");
        self.runtime.block_on(async { store_at(cache.path()).await.drop_files().expect("it can be emptied") });
        cache
    }

    /// A cache that has every file decoded, and no layer.
    pub(super) fn published(&self) -> TempDir {
        let cache = self.complete();
        self.runtime.block_on(async {
            let opened = self.open(cache.path(), &self.tagged(), false).await.expect("nothing is damaged yet");
            self.compare(&view_of(&opened.fs, &|_| true).await).expect("nothing is damaged yet");
            let tree = opened.fs.tree();
            let nodes = (0..tree.node_count()).filter_map(|number| tree.id(number));
            // Short files have no digest, are never published and are read from their layers.
            let contents: HashSet<_> = nodes.filter_map(|id| tree.node(id).content().copied()).collect();
            assert!(contents.len() > 5, "files are known by their contents");
            let (wanted, deadline) = (contents.len() as u64, Instant::now() + Duration::from_secs(60));
            while opened.images.store().usage().expect("it can be read").files.count < wanted {
                assert!(Instant::now() < deadline, "files are not published");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        self.runtime
            .block_on(async { store_at(cache.path()).await.drop_blobs(&HashSet::new()).expect("it can be emptied") });
        cache
    }

    /// A cache that knows the image and has none of its bytes.
    pub(super) fn lazy(&self) -> TempDir {
        let cache = self.complete();
        self.runtime
            .block_on(async { store_at(cache.path()).await.drop_blobs(&HashSet::new()).expect("it can be emptied") });
        cache
    }

    /// A cache that has some spans of every layer.
    pub(super) fn partial(&self) -> TempDir {
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
    pub(super) fn assert_nothing_wrong_is_kept(&self, cache: &Path) {
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

/// Opens the cache, waiting for what the last one to have it still does in the background.
async fn store_at(cache: &Path) -> Store {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match Store::open(cache) {
            Ok(store) => return store,
            Err(store::Error::Busy(_)) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Err(error) => panic!("the cache cannot be opened: {}", Chain(&error)),
        }
    }
}

/// Everything in the file system, the bytes of `wanted` files only.
pub(super) async fn view_of(fs: &Arc<FileSystem>, wanted: &(impl Fn(&[u8]) -> bool + Sync)) -> View {
    view_with(fs, wanted, Opening::Told).await
}

async fn view_with(fs: &Arc<FileSystem>, wanted: &(impl Fn(&[u8]) -> bool + Sync), opening: Opening) -> View {
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
            _ if wanted(&path) => bytes = read(fs, ino, attr.size, opening).await,
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
async fn read(fs: &Arc<FileSystem>, ino: Ino, size: u64, opening: Opening) -> Result<Vec<u8>, (Errno, String)> {
    const PIECE: u32 = 128 << 10;
    let failed = |error: ocifs::fs::Error| (error.errno(), Chain(&error).to_string());
    if opening == Opening::Told
        && let Open::Later(backing) = fs.open(ino).map_err(failed)?
    {
        backing.await;
    }
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
    if opening == Opening::Told {
        fs.release(ino);
    }
    failure.map_or(Ok(bytes), Err)
}
