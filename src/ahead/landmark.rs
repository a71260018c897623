//! What the maker of an eStargz layer has found to be read by a start: the files before its landmark.
//!
//! `ctr-remote image optimize` runs the image, and writes what was read first, a landmark behind it, and the rest. It is a hint
//! like a profile, by whoever made the image, and is used where there is no profile of a start here.

use super::{Session, Spans};

/// The spans before the landmarks of all layers, the topmost layer first: it is what the image is made for, and the budget may
/// not suffice for all.
pub(super) fn plan(session: &Session<'_>) -> Spans {
    let layers = session.files.layers.iter().rev();
    layers
        .filter_map(|layer| Some(session.budget().take_before(layer, layer.index.prefetch_end()?)))
        .flatten()
        .collect()
}
