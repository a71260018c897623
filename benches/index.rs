//! Index building against the shell pipeline that only checks what it checks first: `gzip -dc LAYER | sha256sum`.
//!
//! Both read the same file in the same run, and both are measured in bytes of uncompressed tar. The layer is made of the
//! host's `/usr`, or is the gzip blob that `OCIFS_BENCH_LAYER` names. What the index weighs is printed first.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ocifs::index::{Expected, LayerIndex, build};
use ocifs::oci::{Algorithm, Digest, Hasher};
use ocifs::tar::{Entry, Kind, Segment, Timestamp, Writer};

/// Bytes of files in the layer that is made: about 100 MB compressed.
const FILES: u64 = 300 << 20;

/// A layer blob on disk.
struct Layer {
    path: PathBuf,
    expected: Expected,
    uncompressed: u64,
}

impl Layer {
    fn open(path: PathBuf) -> io::Result<Self> {
        let size = fs::metadata(&path)?.len();
        let (layer, _) = digest(File::open(&path)?)?;
        let (diff_id, uncompressed) = digest(flate2::read::MultiGzDecoder::new(File::open(&path)?))?;
        Ok(Self { path, expected: Expected { layer, size, diff_id }, uncompressed })
    }

    /// The blob in pieces as a network would deliver them.
    fn pieces(&self) -> io::Result<impl Iterator<Item = io::Result<Bytes>> + Send + use<>> {
        let mut file = File::open(&self.path)?;
        Ok(std::iter::from_fn(move || {
            let mut piece = vec![0; 64 << 10];
            match file.read(&mut piece) {
                Ok(0) => None,
                Ok(length) => {
                    piece.truncate(length);
                    Some(Ok(Bytes::from(piece)))
                }
                Err(error) => Some(Err(error)),
            }
        }))
    }

    fn index(&self) -> LayerIndex {
        build(self.pieces().expect("the layer can be read"), self.expected).expect("the layer is valid")
    }
}

fn digest(mut input: impl Read) -> io::Result<(Digest, u64)> {
    let (mut hasher, mut length, mut piece) = (Hasher::new(Algorithm::Sha256), 0, vec![0; 1 << 20]);
    loop {
        match input.read(&mut piece)? {
            0 => return Ok((hasher.finish(), length)),
            read => {
                hasher.update(&piece[..read]);
                length += read as u64;
            }
        }
    }
}

/// Writes files of `dir` into the layer until it is large enough.
fn add(dir: &Path, writer: &mut Writer<impl Write>, left: &mut u64) -> io::Result<()> {
    let mut paths: Vec<_> =
        fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    paths.sort();
    for path in paths {
        let metadata = path.symlink_metadata()?;
        if metadata.is_dir() {
            add(&path, writer, left)?;
        } else if metadata.is_file() && metadata.len() <= *left {
            let size = metadata.len();
            let whole = Segment { file_offset: 0, layer_offset: 0, length: size };
            let entry = Entry {
                path: path.as_os_str().as_bytes()[1..].to_vec(),
                kind: Kind::Regular { size, segments: if size == 0 { vec![] } else { vec![whole] }, content: None },
                mode: 0o755,
                uid: 0,
                gid: 0,
                mtime: Timestamp::default(),
                xattrs: Vec::new(),
            };
            writer.append(&entry, File::open(&path)?)?;
            *left -= size;
        }
    }
    Ok(())
}

fn make(path: &Path) -> io::Result<()> {
    let mut gzip = Command::new("gzip").stdin(Stdio::piped()).stdout(File::create(path)?).spawn()?;
    let input = gzip.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let mut writer = Writer::new(BufWriter::new(input));
    let mut left = FILES;
    for dir in ["/usr/bin", "/usr/lib", "/usr/share"] {
        add(Path::new(dir), &mut writer, &mut left)?;
    }
    drop(writer.finish()?);
    if gzip.wait()?.success() { Ok(()) } else { Err(io::Error::other("gzip failed")) }
}

/// What anybody would do in a shell to check a diffID.
fn pipeline(layer: &Path) -> io::Result<()> {
    let mut gzip = Command::new("gzip").arg("-dc").arg(layer).stdout(Stdio::piped()).spawn()?;
    let input = gzip.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    let sum = Command::new("sha256sum").stdin(input).stdout(Stdio::null()).status()?;
    if gzip.wait()?.success() && sum.success() { Ok(()) } else { Err(io::Error::other("the pipeline failed")) }
}

fn bench(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = match std::env::var_os("OCIFS_BENCH_LAYER") {
        Some(path) => PathBuf::from(path),
        None => {
            let path = dir.path().join("layer.tar.gz");
            make(&path).expect("a layer of /usr");
            path
        }
    };
    let layer = Layer::open(path).expect("a gzip layer");
    let index = layer.index();
    let length = index.as_bytes().len();
    eprintln!(
        "layer: {} bytes, {} uncompressed, {} entries; index: {} spans, {length} bytes, {:.2} % of the layer",
        index.compressed_size(),
        index.uncompressed_size(),
        index.entry_count(),
        index.span_count(),
        100.0 * length as f64 / index.compressed_size() as f64,
    );
    let mut group = c.benchmark_group("index");
    group.throughput(Throughput::Bytes(layer.uncompressed)).sample_size(10).measurement_time(Duration::from_secs(15));
    group.bench_function("build", |b| b.iter(|| layer.index()));
    group.bench_function("gzip -dc | sha256sum", |b| b.iter(|| pipeline(&layer.path).expect("gzip and sha256sum")));
    group.bench_function("decode every span", |b| {
        let blob = fs::read(&layer.path).expect("the layer can be read");
        b.iter(|| {
            for span in index.span_ids() {
                let bytes = index.compressed(span);
                let decoded = index.decode(span, &blob[bytes.start as usize..bytes.end as usize]);
                std::hint::black_box(decoded.expect("the right bytes"));
            }
        });
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
