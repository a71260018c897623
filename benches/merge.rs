//! Merging and opening a tree of a million entries, and finding names in it.
//!
//! The tree is what a large image looks like: 50,000 directories four deep, 20 files each, one name in three used in many
//! directories. Beside each number of ours stands what the same data costs otherwise: hashing the stored tree with BLAKE3
//! alone (the least that opening can cost), and the same paths in a standard `HashMap`.

use std::collections::HashMap;
use std::convert::Infallible;
use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ocifs::tar::{Entry, Kind, Segment, Timestamp};
use ocifs::tree::{Merger, Tree};

const DIRECTORIES: u64 = 50_000;
const FILES: u64 = 20;

fn entry(path: String, kind: Kind) -> Result<Entry, Infallible> {
    let mtime = Timestamp { seconds: 1_700_000_000, nanos: 0 };
    Ok(Entry { path: path.into_bytes(), kind, mode: 0o644, uid: 0, gid: 0, mtime, xattrs: Vec::new() })
}

fn directory(number: u64) -> String {
    format!("usr/lib{}/package-{}/module{}", number % 7, number / 50, number % 50)
}

fn file(number: u64, file: u64) -> String {
    let name = if file.is_multiple_of(3) { format!("common_{file}.py") } else { format!("source_{number}_{file}.py") };
    format!("{}/{name}", directory(number))
}

/// A layer in tar order.
fn layer() -> impl Iterator<Item = Result<Entry, Infallible>> {
    (0..DIRECTORIES).flat_map(|number| {
        let files = (0..FILES).map(move |index| {
            let place = number * FILES + index;
            let mut digest = [7; 32];
            digest[..8].copy_from_slice(&place.to_le_bytes());
            let segments = vec![Segment { file_offset: 0, layer_offset: place * 1024 + 512, length: 300 }];
            entry(file(number, index), Kind::Regular { size: 300, segments, content: Some(digest) })
        });
        std::iter::once(entry(directory(number), Kind::Directory)).chain(files)
    })
}

fn merged() -> Vec<u8> {
    let mut merger = Merger::new();
    merger.layer(None, layer()).expect("the layer is fine");
    merger.finish()
}

fn benches(criterion: &mut Criterion) {
    let encoded = bytes::Bytes::from(merged());
    let tree = Tree::open(encoded.clone()).expect("just made");
    let mut group = criterion.benchmark_group("tree of a million entries");
    group.sample_size(10).throughput(Throughput::Elements(tree.node_count().into()));
    group.bench_function("make the entries only", |bench| bench.iter(|| layer().map(black_box).count()));
    group.bench_function("make the entries and merge", |bench| bench.iter(merged));
    group.bench_function("open", |bench| bench.iter(|| Tree::open(encoded.clone()).expect("just made")));
    group.bench_function("blake3 of the same bytes", |bench| bench.iter(|| blake3::hash(&encoded)));
    group.finish();

    let paths: Vec<String> = (0..10_000).map(|i| file(i * 7919 % DIRECTORIES, i % FILES)).collect();
    let all: HashMap<Vec<u8>, u64> =
        layer().enumerate().map(|(i, entry)| (entry.expect("infallible").path, i as u64)).collect();
    let mut group = criterion.benchmark_group("find 10,000 random paths of five names");
    group.throughput(Throughput::Elements(paths.len() as u64));
    group.bench_function("tree", |bench| {
        bench.iter(|| paths.iter().filter(|path| tree.resolve(path.as_bytes(), true).is_some()).count());
    });
    group.bench_function("hash map of whole paths", |bench| {
        bench.iter(|| paths.iter().filter(|path| all.contains_key(path.as_bytes())).count());
    });
    group.finish();
}

criterion_group!(merge, benches);
criterion_main!(merge);
