//! What refers to a manifest (distribution-spec, "Listing Referrers"): found by looking at all manifests there are.

use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, LINK};
use serde_json::{Value, json};

use super::answer::Reply;
use super::content::Content;
use super::request::Request;
use crate::oci::{Digest, Manifest};

/// The digest of the manifest that a document is about.
pub(super) fn subject_of(bytes: &[u8], media_type: &str) -> Option<Digest> {
    match Manifest::parse(bytes, media_type).ok()? {
        Manifest::Image(manifest) => Some(manifest.subject?.digest),
        Manifest::Index(_) => None,
    }
}

/// Lists the referrers of a manifest, `page` at a time, in the order of their digests.
pub(super) fn list(content: &Content, repository: &str, digest: &str, request: &Request, page: usize) -> Reply {
    let subject = match digest.parse::<Digest>() {
        Ok(digest) => digest,
        Err(error) => return Reply::error(StatusCode::BAD_REQUEST, "DIGEST_INVALID", &error.to_string()),
    };
    let wanted = request.parameters("artifactType").pop();
    let last = request.parameters("last").pop().unwrap_or_default();
    let mut entries = Vec::new();
    for (digest, manifest) in content.manifests(repository) {
        let parsed = Manifest::parse(&manifest.bytes, &manifest.media_type);
        let Ok(Manifest::Image(image)) = parsed else { continue };
        if digest <= last || image.subject.is_none_or(|named| named.digest != subject) {
            continue;
        }
        let artifact_type = image.artifact_type.unwrap_or(image.config.media_type);
        if wanted.as_ref().is_some_and(|wanted| *wanted != artifact_type) {
            continue;
        }
        entries.push((
            digest.clone(),
            json!({
                "mediaType": manifest.media_type,
                "digest": digest,
                "size": manifest.bytes.len(),
                "artifactType": artifact_type,
                "annotations": image.annotations,
            }),
        ));
    }
    let more = entries.len() > page;
    entries.truncate(page);
    let next = entries.last().filter(|_| more).map(|(digest, _)| digest.clone());
    answer(repository, &subject, entries.into_iter().map(|(_, entry)| entry).collect(), wanted, next)
}

fn answer(
    repository: &str,
    subject: &Digest,
    entries: Vec<Value>,
    filter: Option<String>,
    next: Option<String>,
) -> Reply {
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    let body = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries });
    let mut reply = Reply::new(StatusCode::OK, HeaderMap::new(), body.to_string());
    reply.set(CONTENT_TYPE, INDEX);
    if let Some(next) = next {
        let filter = filter.as_ref().map_or_else(String::new, |filter| format!("&artifactType={filter}"));
        reply.set(LINK, &format!("</v2/{repository}/referrers/{subject}?last={next}{filter}>; rel=\"next\""));
    }
    if filter.is_some() {
        reply.set(HeaderName::from_static("oci-filters-applied"), "artifactType");
    }
    reply
}
