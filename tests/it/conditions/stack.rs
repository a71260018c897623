//! Random images with enough bytes in them that a layer has many spans.
//!
//! Every layer changes those below it: files of up to a megabyte or two, most of them small, hard links, symbolic links,
//! attributes, whiteouts, opaque directories, and a sparse file that GNU tar wrote. The forms of layers are mixed.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use crate::support::{Compression, Image, Layer, noise, temp_dir};

/// A small random generator, so that a seed gives the same image and the same reads everywhere.
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        // Near seeds begin alike.
        for _ in 0..8 {
            random.next();
        }
        random
    }

    pub(super) fn next(&mut self) -> u64 {
        // Marsaglia's xorshift64, multiplied: its low bits alone are poor.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// Below `end`, which is not 0.
    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub(super) fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        for end in (1..items.len()).rev() {
            items.swap(end, self.below(end + 1));
        }
    }
}

const LAYERS: usize = 4;
const FILES: usize = 32;

/// Bytes to cut contents from: without optimisation, making them takes longer than reading them.
static POOL: LazyLock<Vec<u8>> = LazyLock::new(|| noise(4 << 20, 99));

const FORMS: [Compression; 5] = [
    Compression::Gzip,
    Compression::ZstdFrames(150_000),
    Compression::None,
    Compression::GzipMembers(250_000),
    Compression::Zstd,
];

/// The image of a seed.
pub(super) fn image(seed: u64) -> Image {
    let mut random = Random::new(seed);
    let mut state = State { random: random.clone(), files: Vec::new(), count: 0 };
    let first = random.below(FORMS.len());
    (0..LAYERS).fold(Image::new().layer(sparse(&mut random)), |image, number| {
        let layer = state.layer(number == 0);
        image.layer(layer.compressed(FORMS[(first + number) % FORMS.len()]))
    })
}

struct State {
    random: Random,
    /// Paths of files that the layers so far show.
    files: Vec<String>,
    /// For names that occur once.
    count: usize,
}

impl State {
    fn layer(&mut self, lowest: bool) -> Layer {
        let mut layer = Layer::new();
        if lowest {
            layer = (0..6).fold(layer.dir(""), |layer, number| layer.dir(directory(number)));
        } else {
            layer = self.hide(layer);
        }
        for _ in 0..FILES {
            let path = if !self.files.is_empty() && self.random.one_in(6) {
                let place = self.random.below(self.files.len());
                self.files.remove(place)
            } else {
                let name = directory(self.random.below(6));
                self.count += 1;
                format!("{name}/f{}", self.count)
            };
            layer = match self.random.below(8) {
                0 if !self.files.is_empty() => {
                    let target = &self.files[self.random.below(self.files.len())];
                    layer.hardlink(&path, target)
                }
                1 => layer.symlink(&path, format!("../d{}/f", self.random.below(6))),
                _ => self.file(layer, &path),
            };
            self.files.push(path);
        }
        layer
    }

    /// Hides some of what the layers below show, before anything is added to it.
    fn hide(&mut self, mut layer: Layer) -> Layer {
        for _ in 0..4 {
            let place = self.random.below(self.files.len());
            layer = layer.whiteout(self.files.swap_remove(place));
        }
        if self.random.one_in(2) {
            let name = directory(self.random.below(6));
            self.files.retain(|path| !path.starts_with(&format!("{name}/")));
            layer = layer.opaque(&name);
        }
        layer
    }

    fn file(&mut self, layer: Layer, path: &str) -> Layer {
        let random = &mut self.random;
        let most = [1, 5000, 40_000, 40_000, 300_000, 300_000, 1_500_000][random.below(7)];
        let length = random.below(most);
        let start = random.below(POOL.len() - length);
        let layer = layer.file(path, &POOL[start..start + length]).mode(0o400 + random.below(0o400) as u32);
        let layer = layer.owner(random.below(70_000) as u64, random.below(10) as u64);
        let layer = layer.mtime(1 + random.below(1_500_000_000) as i64, random.below(1_000_000_000) as u32);
        if random.one_in(4) { layer.xattr("user.number", random.next().to_string()) } else { layer }
    }
}

fn directory(number: usize) -> String {
    match number {
        0..4 => format!("d{number}"),
        _ => format!("d0/d{number}"),
    }
}

/// A layer with a sparse file, its data in a few places.
fn sparse(random: &mut Random) -> Layer {
    let dir = temp_dir();
    fs::create_dir(dir.path().join("sparse")).expect("a directory");
    let file = File::create(dir.path().join("sparse/file")).expect("a file");
    for number in 0..5 {
        let (start, length) = (random.below(POOL.len() / 2), 1 + random.below(200_000));
        let at = number * 1_000_000 + random.below(500_000) as u64;
        file.write_all_at(&POOL[start..start + length], at).expect("there is room");
    }
    let mut command = Command::new("tar");
    command.args(["--format=pax", "--sparse", "--sort=name", "--owner=0", "--group=0", "--numeric-owner"]);
    command.args(["--mode=u=rwX,go=rX", "--mtime=@1500000000", "--pax-option=delete=atime,delete=ctime", "-cf-", "-C"]);
    let output = command.arg(dir.path()).arg("sparse").stderr(Stdio::inherit()).output().expect("tar can be run");
    assert!(output.status.success(), "{command:?} failed");
    Layer::from_stream(output.stdout)
}
