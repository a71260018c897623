//! What the cache keeps and what registries send: encoded indexes and trees.

use bytes::Bytes;
use ocifs::fuzzing::{reseal_index, reseal_tree};
use ocifs::index::{Expected, LayerIndex};
use ocifs::tree::{self, Tree};

use crate::layers::{build, expected, gzip, merge, stream, walk};
use crate::tables;

fn resealed(data: &[u8], reseal: fn(&mut [u8])) -> Bytes {
    let mut bytes = data.to_vec();
    reseal(&mut bytes);
    bytes.into()
}

/// An index of the cache.
pub(crate) fn index(data: &[u8]) {
    if let Ok(index) = LayerIndex::open(resealed(data, reseal_index)) {
        ask(&index);
    }
}

/// An index of somebody else, whole and without its windows.
pub(crate) fn claim(data: &[u8]) {
    let bytes = resealed(data, reseal_index);
    let Ok(index) = LayerIndex::open_claim(bytes.clone()) else { return };
    if index.check_entries().is_ok() {
        ask(&index);
    }
    let Some(start) = bytes.get(..usize::try_from(index.metadata_len()).unwrap_or(usize::MAX)) else { return };
    let first = LayerIndex::open_claim(bytes.slice_ref(start)).expect("the first part is an index as well");
    if first.set_windows(bytes.slice(start.len()..)).is_ok() {
        ask(&first);
    }
}

/// Asks an index for all that it knows.
pub(crate) fn ask(index: &LayerIndex) {
    let is_sound = index.check().is_ok();
    std::hint::black_box((index.encoded_len(), index.not_lazy(), index.times(), index.prefetch_end()));
    assert!(index.is_of(&Expected { layer: index.layer(), size: index.compressed_size(), diff_id: index.diff_id() }));
    let mut end = 0;
    for span in index.span_ids() {
        let (decoded, compressed) = (index.decoded(span), index.compressed(span));
        assert_eq!(decoded.start, end, "spans follow each other");
        assert!(compressed.start <= compressed.end && compressed.end <= index.compressed_size());
        end = decoded.end;
        let length = compressed.end - compressed.start;
        // Bytes that are not the layer's: what matters is that they are not taken for it.
        if is_sound && length < 1 << 20 && decoded.end - decoded.start < 1 << 20 {
            drop(index.decode(span, &vec![0x55; length as usize]));
        }
    }
    assert_eq!(end, index.uncompressed_size());
    let entries = index.entries().map_while(Result::ok).count() as u64;
    assert!(entries <= index.entry_count());
    std::hint::black_box(index.spans(0..index.uncompressed_size()).count());
    if let Ok(dependencies) = index.dependencies() {
        dependencies.places().for_each(|place| drop(dependencies.of(place)));
    }
    merge(index);
}

/// A tree of the cache.
pub(crate) fn tree(data: &[u8]) {
    if let Ok(tree) = Tree::open(resealed(data, reseal_tree)) {
        walk(&tree);
    }
}

fn indexes() -> Vec<LayerIndex> {
    let stream = stream();
    let blobs = [stream.clone(), gzip(&stream, 6), zstd::encode_all(&stream[..], 1).expect("it is compressed")];
    let indexes: Vec<_> = blobs.iter().filter_map(|blob| build(blob, &stream)).collect();
    assert_eq!(indexes.len(), blobs.len(), "every seed is a layer");
    indexes
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    indexes().iter().map(|index| index.as_bytes().to_vec()).collect()
}

pub(crate) fn claim_seeds() -> Vec<Vec<u8>> {
    let stream = stream();
    let claims = tables::claims(&stream).into_iter().map(|(blob, claim)| {
        let claimed = LayerIndex::claimed(&expected(&blob, &stream), claim).expect("a claim");
        claimed.as_bytes().to_vec()
    });
    seeds().into_iter().chain(claims).collect()
}

pub(crate) fn tree_seeds() -> Vec<Vec<u8>> {
    let indexes = indexes();
    let merged = |layers: &[&LayerIndex]| tree::merge(layers).expect("they can be merged");
    vec![merged(&[]), merged(&[&indexes[0]]), merged(&[&indexes[0], &indexes[1]])]
}
