//! Whole mounts from servers that other people wrote, as Debian packages them: docker-registry behind all that stands in
//! front of one in production.
//!
//! The scripted servers of the other tests do what we think that registries do. These do what they do: a registry that wants
//! tokens signed by somebody else (`tokens`), nginx with TLS of a private authority (`tls`), a registry that fills itself from
//! another (`pull_through`), blobs in a store behind signed URLs that run out (`store`), and a proxy that is the only way out
//! (`proxy`); and what the user's files say of hosts: client certificates, a cache as a mirror (`hosts`). The other way round, real
//! clients pull from the embedded registry (`clients`). Each test starts its own servers on free ports and ends them; [`Shown`]
//! says what every one must serve.

mod certificates;
mod clients;
mod hosts;
mod machine;
mod proxy;
mod pull_through;
mod servers;
mod store;
mod tls;
mod tokens;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::support::{
    DockerRegistry, Image, Layer, Tree, assert_same, noise, require, require_fuse, require_root, temp_dir,
    umoci_unpack, walk,
};

/// By what the image is known in the registry of a test.
const NAME: &str = "team/app:v1";

/// True if these programs and what every test here needs are there.
fn ready(programs: &[&str]) -> bool {
    require(&["docker-registry", "skopeo", "umoci"]) && require(programs) && require_fuse() && require_root()
}

/// An image, and what a mount of it has to show.
struct Shown {
    directory: TempDir,
    tree: Tree,
}

impl Shown {
    fn new() -> Self {
        let directory = temp_dir();
        Self::image().to_layout(&directory.path().join("layout"), "v1");
        let unpacked = umoci_unpack(&directory.path().join("layout"), "v1", &directory.path().join("bundle"));
        Self { tree: walk(&unpacked).expect("a tree"), directory }
    }

    /// Two layers, of which the second changes the first.
    fn image() -> Image {
        let base = (0..7).fold(Layer::new().dir("").dir("usr"), |layer, number| {
            layer.file(format!("usr/file{number}"), noise(700_000, number))
        });
        let changes = Layer::new().file("usr/file0", noise(90_000, 9)).whiteout("usr/file1").dir("etc");
        let changes = changes.file("etc/conf", "a = b\n").symlink("etc/link", "conf");
        Image::new().layer(base).layer(changes)
    }

    fn layout(&self) -> PathBuf {
        self.directory.path().join("layout")
    }

    /// A docker-registry without any demands that has the image.
    fn registry(&self) -> DockerRegistry {
        let registry = DockerRegistry::start().expect("the test asked whether it is here");
        registry.push(&self.layout(), "v1", NAME);
        registry
    }

    /// Reads the start of one file, and leaves most of the others unread.
    fn touch(&self, root: &Path) {
        let mut start = [0; 4096];
        let file = File::open(root.join("usr/file2")).expect("it is there");
        file.read_exact_at(&mut start, 0).expect("it can be read");
        assert_eq!(start, noise(4096, 2)[..]);
    }

    /// Fails unless every byte and attribute below `root` is as it should be.
    #[track_caller]
    fn assert_shown(&self, root: &Path) {
        // umoci leaves the time of unpacking where it changed a directory afterwards.
        let touched: [&[u8]; 2] = [b"usr", b""];
        let ignored = |path: &[u8], field| field == crate::support::Field::Mtime && touched.contains(&path);
        assert_same(&walk(root).expect("a tree"), &self.tree, ignored);
    }
}
