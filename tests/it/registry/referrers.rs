//! Finding what refers to a manifest, and keeping the list where the registry does not.

use bytes::Bytes;
use futures_util::future::join_all;
use ocifs::demo::registry::{Content, Fault, Registry};
use ocifs::oci::{Algorithm, Digest};
use ocifs::registry::{Repository, Selector};
use ocifs::source::ErrorKind;
use serde_json::{Value, json};

use super::scripted::{Reply, Server};
use super::{client, quick, shown};
use crate::support::DockerRegistry;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const WANTED: &str = "application/vnd.test.wanted";

fn repository(host: &str) -> Repository {
    client(quick()).repository(host, "team/app", Selector::Tag("v1".to_owned())).for_pushing()
}

/// Pushes an artifact about `subject` and describes it.
async fn artifact(repository: &Repository, subject: &Digest, artifact_type: &str, note: &str) -> (Value, bool) {
    let empty = Digest::sha256(b"{}");
    let sent = Default::default();
    repository.push_blob(empty, Bytes::from_static(b"{}"), None, &sent).await.expect("pushed");
    let config = json!({ "mediaType": "application/vnd.oci.empty.v1+json", "digest": empty.to_string(), "size": 2 });
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": artifact_type, "config": config, "layers": [config],
        "subject": { "mediaType": MANIFEST, "digest": subject.to_string(), "size": 100 },
        "annotations": { "note": note },
    });
    let bytes = Bytes::from(manifest.to_string());
    let digest = Digest::sha256(&bytes);
    let size = bytes.len();
    let noted = repository.push_manifest(&Selector::Digest(digest), MANIFEST, bytes).await;
    let noted = noted.unwrap_or_else(|error| panic!("{}", shown(&error)));
    let entry = json!({
        "mediaType": MANIFEST, "digest": digest.to_string(), "size": size, "artifactType": artifact_type,
        "annotations": { "note": note },
    });
    (entry, noted)
}

#[tokio::test]
async fn b_162_the_api_lists_all_pages_and_only_what_is_wanted() {
    let registry = Registry::start(Content::new()).await.expect("a port is free");
    registry.set_referrers(2);
    let repository = repository(&registry.addr().to_string());
    let subject = Digest::sha256(b"an image");
    for number in 0..5 {
        let (_, noted) = artifact(&repository, &subject, WANTED, &number.to_string()).await;
        assert!(noted, "the registry knows subjects");
        artifact(&repository, &subject, "application/vnd.test.other", &number.to_string()).await;
    }
    artifact(&repository, &Digest::sha256(b"another image"), WANTED, "x").await;
    registry.forget_requests();
    let listed = repository.referrers(&subject, Some(WANTED)).await.expect("listed").expect("there is an API");
    assert_eq!(listed.len(), 5);
    assert!(listed.iter().all(|entry| entry.artifact_type.as_deref() == Some(WANTED)));
    assert_eq!(registry.requests().len(), 3, "five in pages of two");
}

#[tokio::test]
async fn b_163_registries_without_the_api_are_told_from_those_that_fail() {
    let registry = Registry::start(Content::new()).await.expect("a port is free");
    let repository = repository(&registry.addr().to_string());
    let subject = Digest::sha256(b"an image");
    artifact(&repository, &subject, WANTED, "x").await;
    registry.set_referrers(0);
    assert_eq!(repository.referrers(&subject, Some(WANTED)).await.expect("an answer"), None);
    assert_eq!(repository.tagged_referrers(&subject, Some(WANTED)).await.expect("an answer"), []);
    registry.set_faults(|request| {
        let page = ocifs::demo::registry::Answer::new(200).body("<html>sign in</html>");
        request.path.contains("referrers").then(|| page.into())
    });
    assert_eq!(repository.referrers(&subject, Some(WANTED)).await.expect("an answer"), None);
    registry.set_faults(|_| Some(Fault::status(418)));
    let error = repository.referrers(&subject, Some(WANTED)).await.expect_err("this is a failure");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let error = repository.tagged_referrers(&subject, Some(WANTED)).await.expect_err("this too");
    assert!(error.to_string().contains(&subject.to_string()), "{error}");
}

#[tokio::test]
async fn b_162_d_072_a_list_without_an_end_is_cut() {
    let registry = Registry::start(Content::new()).await.expect("a port is free");
    let repository = repository(&registry.addr().to_string());
    let subject = Digest::sha256(b"an image");
    artifact(&repository, &subject, WANTED, "x").await;
    registry.set_faults(|request| {
        let again = format!("<{}?again>; rel=\"next\"", request.path);
        request.path.contains("referrers").then(|| Fault::header("link", &again))
    });
    registry.forget_requests();
    let listed = repository.referrers(&subject, Some(WANTED)).await.expect("listed").expect("there is an API");
    assert_eq!((listed.len(), registry.requests().len()), (16, 16));
}

#[tokio::test]
async fn b_162_b_164_a_registry_may_filter_or_not_and_knows_types_by_configurations() {
    let subject = Digest::sha256(b"an image");
    for filters in [true, false] {
        let entry = |name: &str, artifact_type: &str| {
            json!({ "mediaType": MANIFEST, "digest": Digest::sha256(name.as_bytes()).to_string(), "size": 3,
                "artifactType": artifact_type })
        };
        let server = Server::start(move |_, _| {
            let mut entries = vec![entry("wanted", WANTED)];
            if !filters {
                entries.push(entry("other", "application/vnd.test.other"));
            }
            let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries });
            let reply = Reply::new(200, index.to_string()).with("Content-Type", INDEX);
            if filters { reply.with("OCI-Filters-Applied", "artifactType") } else { reply }
        })
        .await;
        let listed = super::repository(&server).referrers(&subject, Some(WANTED)).await.expect("listed");
        assert_eq!(listed.map(|listed| listed.len()), Some(1), "{filters}");
        assert_eq!(
            server.log()[0].target,
            format!("/v2/team/app/referrers/{subject}?artifactType={}", WANTED.replace('/', "%2F"))
        );
    }
}

#[tokio::test]
async fn b_163_the_tag_is_the_digest_cut_to_what_a_tag_may_have() {
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let subject = Digest::of(algorithm, b"an image");
        let tag = format!("{}-{}", algorithm.name(), &subject.hex()[..64]);
        let server = Server::start(|_, _| Reply::new(404, "")).await;
        assert_eq!(super::repository(&server).tagged_referrers(&subject, Some(WANTED)).await.expect("nothing"), []);
        assert_eq!(server.paths(), [format!("/v2/team/app/manifests/{tag}")]);
    }
}

#[tokio::test]
async fn b_163_something_else_under_the_tag_lists_nothing_and_is_left_alone() {
    let subject = Digest::sha256(b"an image");
    let config = json!({ "mediaType": "x/y", "digest": Digest::sha256(b"{}").to_string(), "size": 2 });
    let image = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [] }).to_string();
    for other in [image, "<html>hello</html>".to_owned()] {
        let server = Server::start(move |_, _| Reply::new(200, other.clone())).await;
        let repository = super::repository(&server);
        assert_eq!(repository.tagged_referrers(&subject, Some(WANTED)).await.expect("nothing"), []);
        let entry = json!({ "mediaType": MANIFEST, "digest": Digest::sha256(b"x").to_string(), "size": 1 });
        let error = repository.add_tagged_referrer(&subject, &entry).await.expect_err("it is somebody's");
        assert_eq!(error.kind(), ErrorKind::Invalid, "{}", shown(&error));
        assert!(server.log().iter().all(|request| request.method == "GET"));
    }
}

/// Sixteen pushers of one list, all at once; then one entry is removed.
async fn many_write_one_list(host: &str) {
    let subject = Digest::sha256(b"an image");
    let pushers: Vec<Repository> = (0..16).map(|_| repository(host)).collect();
    let pushing = pushers.iter().enumerate().map(|(number, repository)| async move {
        let (entry, _) = artifact(repository, &subject, WANTED, &number.to_string()).await;
        repository.add_tagged_referrer(&subject, &entry).await.unwrap_or_else(|error| panic!("{}", shown(&error)));
        entry
    });
    let pushed = join_all(pushing).await;
    let reader = &pushers[0];
    let listed = reader.tagged_referrers(&subject, Some(WANTED)).await.expect("listed");
    let mut digests: Vec<String> = listed.iter().map(|entry| entry.descriptor.digest.to_string()).collect();
    let mut wanted: Vec<&str> = pushed.iter().filter_map(|entry| entry["digest"].as_str()).collect();
    digests.sort();
    wanted.sort_unstable();
    assert_eq!(digests, wanted, "every entry is there once");

    let gone = listed[3].descriptor.digest;
    assert!(reader.remove_tagged_referrer(&subject, &gone).await.expect("removed"));
    assert!(!reader.remove_tagged_referrer(&subject, &gone).await.expect("it is gone already"));
    let left = reader.tagged_referrers(&subject, Some(WANTED)).await.expect("listed");
    assert_eq!(left.len(), 15);
    assert!(left.iter().all(|entry| entry.descriptor.digest != gone));
}

#[tokio::test]
async fn b_172_pushers_of_one_list_lose_nothing_where_writes_are_conditional() {
    let registry = Registry::start(Content::new()).await.expect("a port is free");
    registry.set_referrers(0);
    many_write_one_list(&registry.addr().to_string()).await;
}

#[tokio::test]
async fn b_172_pushers_of_one_list_lose_nothing_at_a_real_registry() {
    let Some(real) = DockerRegistry::start() else { return };
    many_write_one_list(real.addr()).await;
}

#[tokio::test]
async fn b_172_what_others_wrote_into_the_list_stays() {
    let registry = Registry::start(Content::new()).await.expect("a port is free");
    registry.set_referrers(0);
    let repository = repository(&registry.addr().to_string());
    let subject = Digest::sha256(b"an image");
    let tag = subject.to_string().replace(':', "-");
    let other = json!({
        "mediaType": MANIFEST, "digest": Digest::sha256(b"sig").to_string(), "size": 3, "artifactType": "sig",
        "platform": { "os": "linux", "architecture": "x" }, "unknown": [1, 2],
    });
    let list = json!({ "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [other], "annotations": { "a": "b" }, "later": true });
    let named = Selector::Tag(tag.clone());
    repository
        .push_manifest(&named, "application/vnd.oci.image.index.v1+json", list.to_string().into())
        .await
        .expect("put");
    let (entry, _) = artifact(&repository, &subject, WANTED, "x").await;
    repository.add_tagged_referrer(&subject, &entry).await.expect("added");
    let reader = client(quick()).repository(&registry.addr().to_string(), "team/app", Selector::Tag(tag));
    let document = ocifs::source::Source::resolve(&reader).await.expect("there").bytes;
    let written: Value = serde_json::from_slice(&document).expect("JSON");
    let mut wanted = list;
    wanted["manifests"].as_array_mut().expect("entries").push(entry);
    assert_eq!(written, wanted);
}
