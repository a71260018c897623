//! From the accesses of a profile to the spans of this image.
//!
//! A profile may be of another image, of another spacing of spans, or hostile. It is only ever compared with the tree:
//! paths that are not there, or are no regular files, are passed over; ranges are cut to the file; the budget bounds
//! the rest.

use std::collections::HashSet;
use std::ops::Range;

use super::{Session, Spans};
use crate::profile::Profile;
use crate::tree::{NodeId, NodeKind, Tree};

/// The spans to fetch in the profile's order, and the files that it names.
pub(super) async fn plan(session: &Session<'_>, profile: &Profile) -> (Spans, HashSet<NodeId>) {
    let (mut spans, mut nodes) = (Vec::new(), HashSet::new());
    for (node, range) in places(&session.files.tree, profile) {
        // A long one computes for a while, beside which others must come to their turn.
        tokio::task::consume_budget().await;
        nodes.insert(node);
        spans.append(&mut session.take(node, range));
    }
    (spans, nodes)
}

/// The accesses of `profile` that are to files of `tree`, in the profile's order. They may reach beyond the files.
pub fn places(tree: &Tree, profile: &Profile) -> impl Iterator<Item = (NodeId, Range<u64>)> {
    profile.accesses().iter().filter_map(|access| {
        let node = tree.resolve(access.path(), false)?;
        let is_file = tree.node(node).kind() == NodeKind::Regular;
        is_file.then(|| (node, access.start()..access.end()))
    })
}
