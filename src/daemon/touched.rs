//! What was read of images, kept for parcels: of each manifest the parts of its layers that readers have touched, in all mounts
//! of this cache so far.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::fetch::{Ranges, Touched, join_ranges};
use crate::oci::Digest;
use crate::store::Store;

/// The stored form: by layer, ranges of compressed bytes.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record(BTreeMap<String, Vec<(u64, u64)>>);

/// What is known to have been touched of an image.
pub(super) fn load(store: &Store, manifest: &Digest) -> Ranges {
    let text = store.touched(manifest).unwrap_or_else(|error| {
        tracing::debug!(%manifest, %error, "what was touched cannot be read");
        None
    });
    let record = text.and_then(|text| serde_json::from_slice::<Record>(&text).ok()).unwrap_or_default();
    let layer = |(layer, ranges): (String, Vec<(u64, u64)>)| {
        let mut ranges = ranges.into_iter().filter(|(start, end)| start < end).map(|(start, end)| start..end).collect();
        join_ranges(&mut ranges);
        Some((layer.parse().ok()?, ranges))
    };
    record.0.into_iter().filter_map(layer).collect()
}

/// Adds what a mount of the image has touched. Blocks.
pub(super) fn keep(store: &Store, manifest: &Digest, touched: &Touched) {
    let before = load(store, manifest);
    let mut all = before.clone();
    for (layer, ranges) in touched.ranges() {
        let known = all.entry(layer).or_default();
        known.extend(ranges);
        join_ranges(known);
    }
    if all == before {
        return;
    }
    let pairs = |ranges: Vec<Range<u64>>| ranges.into_iter().map(|range| (range.start, range.end)).collect();
    let record = Record(all.into_iter().map(|(layer, ranges)| (layer.to_string(), pairs(ranges))).collect());
    // Texts and numbers are JSON.
    let text = serde_json::to_vec(&record).unwrap_or_default();
    if let Err(error) = store.put_touched(manifest, &text) {
        tracing::debug!(%manifest, %error, "what was touched is not kept");
    }
}
