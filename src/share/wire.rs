//! A descriptor as artifacts of any form list it (OCI image-spec, "Content Descriptors").

use std::collections::BTreeMap;

use serde::Serialize;

use crate::oci::Digest;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WireDescriptor<'a> {
    pub(super) media_type: &'a str,
    pub(super) digest: String,
    pub(super) size: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) annotations: BTreeMap<&'a str, String>,
}

impl<'a> WireDescriptor<'a> {
    pub(super) fn of(media_type: &'a str, digest: &Digest, size: u64) -> Self {
        Self { media_type, digest: digest.to_string(), size, annotations: BTreeMap::new() }
    }
}
