//! From the accesses of a profile to the spans of this image.
//!
//! A profile may be of another image, of another spacing of spans, or hostile. It is only ever compared with the tree:
//! paths that are not there, or are no regular files, are passed over; ranges are cut to the file; the budget bounds
//! the rest.

use std::collections::HashSet;
use std::sync::Arc;

use super::Session;
use crate::fetch::Layer;
use crate::index::SpanId;
use crate::profile::Profile;
use crate::tree::{NodeId, NodeKind};

/// The spans to fetch in the profile's order, and the files that it names.
pub(super) fn plan(session: &Session<'_>, profile: &Profile) -> (Vec<(Arc<Layer>, SpanId)>, HashSet<NodeId>) {
    let tree = &session.files.tree;
    let (mut spans, mut nodes) = (Vec::new(), HashSet::new());
    for access in profile.accesses() {
        let Some(node) = tree.resolve(access.path(), false) else { continue };
        if tree.node(node).kind() == NodeKind::Regular {
            nodes.insert(node);
            spans.append(&mut session.take(node, access.start()..access.end()));
        }
    }
    (spans, nodes)
}
