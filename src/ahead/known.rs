//! What the indexes of an image say about the dependencies of its files.

use std::collections::HashMap;
use std::sync::Arc;

use crate::dependencies::Dependencies;
use crate::fetch::Layer;
use crate::index::DependencyTable;
use crate::limits::AHEAD_KNOWN_BYTES;
use crate::oci::Digest;

/// The decoded tables of an image, by layer.
#[derive(Debug, Default)]
pub(super) struct Known(HashMap<Digest, DependencyTable>);

impl Known {
    /// Reads what the indexes of `layers` have, as far as there is room: the last layers are what the image is for. One that
    /// cannot be read says nothing: what is not known is looked for in the files.
    pub(super) async fn of(layers: &[Arc<Layer>]) -> Self {
        let layers = layers.to_vec();
        let read = move || {
            let (mut tables, mut left) = (HashMap::new(), AHEAD_KNOWN_BYTES);
            for layer in layers.iter().rev() {
                let table = match layer.index.dependencies() {
                    Ok(table) => table,
                    Err(error) => {
                        tracing::debug!(%error, "dependencies are not known");
                        continue;
                    }
                };
                match left.checked_sub(table.size()) {
                    Some(rest) => {
                        left = rest;
                        tables.insert(layer.index.layer(), table);
                    }
                    None => tracing::debug!("more is known of dependencies than is held"),
                }
            }
            Self(tables)
        };
        tokio::task::spawn_blocking(read).await.unwrap_or_default()
    }

    /// Bytes to be decoded to know what the file says whose bytes begin at `place` of the stream of `layer`; none if that is not
    /// known.
    pub(super) fn length_of(&self, layer: &Layer, place: u64) -> Option<u64> {
        self.0.get(&layer.index.layer())?.length_of(place)
    }

    /// What the file says whose bytes begin at `place` of the stream of `layer`; none if that is not known.
    pub(super) fn of_file(&self, layer: &Layer, place: u64) -> Option<Dependencies> {
        self.0.get(&layer.index.layer())?.of(place)
    }
}
