//! Pushing: what reaches the registry is the blob, whatever happens on the way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use ocifs::demo::registry::{Answer, Bearer, Content, Endpoint, Fault, Registry, Request};
use ocifs::oci::Digest;
use ocifs::registry::{Pushed, Repository, Selector};
use ocifs::source::{Error, ErrorKind};

use super::{client, descriptor, noise, quick, read, shown};
use crate::support::DockerRegistry;

const CHUNK: usize = 8 << 20;

/// A repository to push to, and a blob of two and a half chunks.
async fn target() -> (Registry, Repository, Bytes) {
    let registry = Registry::start(Content::new()).await.expect("a port is free");
    let host = registry.addr().to_string();
    let repository = client(quick()).repository(&host, "team/app", Selector::Tag("v1".to_owned())).for_pushing();
    (registry, repository, Bytes::from(noise(20 << 20)))
}

async fn push(repository: &Repository, bytes: &Bytes, from: Option<&str>) -> Result<Pushed, Error> {
    let sent = AtomicU64::new(0);
    let pushed = repository.push_blob(Digest::sha256(bytes), bytes.clone(), from, &sent).await?;
    assert_eq!(sent.load(Ordering::Relaxed), bytes.len() as u64);
    Ok(pushed)
}

/// The blob as the registry has it now.
async fn held(registry: &Registry, repository: &Repository, bytes: &Bytes) -> Bytes {
    registry.clear_faults();
    // A repository without a manifest does not exist.
    registry.content().add_manifest("team/app", None, "application/json", "{}");
    use ocifs::source::Source;
    let blob = repository.blob(&descriptor(bytes));
    read(&blob, 0..bytes.len() as u64).await.unwrap_or_else(|error| panic!("{}", shown(&error)))
}

/// Methods and ranges of the uploads' requests.
fn uploads(registry: &Registry) -> Vec<String> {
    let requests = registry.requests();
    let uploads = requests.iter().filter(|record| matches!(record.request.endpoint, Endpoint::Upload { .. }));
    uploads
        .map(|record| match record.request.header("content-range") {
            Some(range) => format!("{} {range}", record.request.method),
            None => record.request.method.to_string(),
        })
        .collect()
}

fn nth_patch(request: &Request, attempt: u64) -> bool {
    request.method == "PATCH" && request.attempt == attempt
}

#[tokio::test]
async fn a_large_blob_is_pushed_in_chunks_and_a_small_one_at_once() {
    let (registry, repository, bytes) = target().await;
    assert!(!repository.has_blob(&Digest::sha256(&bytes)).await.expect("an answer"));
    assert_eq!(push(&repository, &bytes, None).await.expect("pushed"), Pushed::Sent);
    assert_eq!(
        uploads(&registry),
        ["POST", "PATCH 0-8388607", "PATCH 8388608-16777215", "PATCH 16777216-20971519", "PUT"]
    );
    assert_eq!(held(&registry, &repository, &bytes).await, bytes);
    assert!(repository.has_blob(&Digest::sha256(&bytes)).await.expect("an answer"));

    registry.forget_requests();
    for small in [Bytes::from_static(b"{}"), Bytes::new(), bytes.slice(..CHUNK)] {
        assert_eq!(push(&repository, &small, None).await.expect("pushed"), Pushed::Sent);
        assert_eq!(held(&registry, &repository, &small).await, small);
    }
    assert_eq!(uploads(&registry), ["POST", "PUT", "POST", "PUT", "POST", "PUT"]);
}

#[tokio::test]
async fn an_interrupted_chunk_goes_on_where_the_registry_is() {
    let (registry, repository, bytes) = target().await;
    registry.set_faults(|request| nth_patch(request, 1).then_some(Fault::HangUp { after: 3 << 20 }));
    assert_eq!(push(&repository, &bytes, None).await.expect("resumed"), Pushed::Sent);
    let asked = uploads(&registry);
    assert_eq!(asked[..5], ["POST", "PATCH 0-8388607", "PATCH 8388608-16777215", "GET", "PATCH 11534336-19922943"]);
    assert_eq!(held(&registry, &repository, &bytes).await, bytes);
}

#[tokio::test]
async fn an_answer_that_is_lost_after_the_work_was_done_costs_nothing() {
    let (registry, repository, bytes) = target().await;
    registry.content().add_manifest("team/app", None, "application/json", "{}");
    registry.set_faults(|request| {
        let lost = request.attempt == 0 && (request.method == "PATCH" || request.method == "PUT");
        lost.then_some(Fault::HangUp { after: u64::MAX })
    });
    assert_eq!(push(&repository, &bytes, None).await.expect("it is there"), Pushed::Sent);
    // The first chunk was not sent twice, and neither was the end.
    assert_eq!(uploads(&registry)[..4], ["POST", "PATCH 0-8388607", "GET", "PATCH 8388608-16777215"]);
    assert_eq!(uploads(&registry).iter().filter(|request| *request == "PUT").count(), 1);
    assert_eq!(held(&registry, &repository, &bytes).await, bytes);
}

#[tokio::test]
async fn a_registry_that_takes_no_chunks_gets_the_whole() {
    for status in [400, 404, 405, 411, 416, 501] {
        let (registry, repository, bytes) = target().await;
        registry.set_faults(move |request| (request.method == "PATCH").then(|| Fault::status(status)));
        assert_eq!(push(&repository, &bytes, None).await.expect("whole"), Pushed::Sent, "{status}");
        assert_eq!(uploads(&registry), ["POST", "PATCH 0-8388607", "POST", "PUT"], "{status}");
        assert_eq!(held(&registry, &repository, &bytes).await, bytes);
    }
}

#[tokio::test]
async fn an_upload_that_the_registry_forgot_begins_anew() {
    let (registry, repository, bytes) = target().await;
    let forgotten = Answer::new(404).body(r#"{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN"}]}"#);
    registry.set_faults(move |request| {
        (nth_patch(request, 1) && request.path.ends_with("upload-1")).then(|| forgotten.clone().into())
    });
    assert_eq!(push(&repository, &bytes, None).await.expect("again"), Pushed::Sent);
    assert_eq!(uploads(&registry).iter().filter(|request| *request == "POST").count(), 2);
    assert_eq!(held(&registry, &repository, &bytes).await, bytes);
}

#[tokio::test]
async fn a_blob_of_another_repository_is_mounted_and_one_that_cannot_be_is_sent() {
    let (registry, repository, bytes) = target().await;
    registry.content().add_blob("application/octet-stream", bytes.clone());
    registry.content().add_manifest("other", Some("v1"), "application/json", "{}");
    assert_eq!(push(&repository, &bytes, Some("other")).await.expect("mounted"), Pushed::Mounted);
    assert_eq!(uploads(&registry), ["POST"]);
    assert_eq!(push(&repository, &bytes, Some("unknown")).await.expect("sent"), Pushed::Sent);
}

#[tokio::test]
async fn pushing_asks_for_a_token_that_may_push_and_mounting_for_one_that_may_read_there() {
    let (registry, repository, bytes) = target().await;
    registry.set_faults(|_| Some(Fault::Bearer(Bearer::default())));
    let small = bytes.slice(..100);
    assert_eq!(push(&repository, &small, Some("other")).await.expect("pushed"), Pushed::Sent);
    let requests = registry.requests();
    let token =
        requests.iter().find(|record| record.request.endpoint == Endpoint::Token).expect("a token was asked for");
    let query = &token.request.query;
    assert!(query.contains("repository%3Ateam%2Fapp%3Apull%2Cpush"), "{query}");
    assert!(query.contains("repository%3Aother%3Apull"), "{query}");
    assert!(repository.has_blob(&Digest::sha256(&small)).await.is_ok());
}

#[tokio::test]
async fn what_a_registry_refuses_is_told_with_all_that_is_known() {
    let (registry, repository, bytes) = target().await;
    let refusal = Answer::new(413).body(r#"{"errors":[{"code":"SIZE_INVALID","message":"quota exceeded"}]}"#);
    registry.set_faults(move |request| nth_patch(request, 0).then(|| refusal.clone().into()));
    let error = push(&repository, &bytes, None).await.expect_err("refused");
    let text = shown(&error);
    let digest = Digest::sha256(&bytes).to_string();
    for part in [&registry.addr().to_string(), "team/app", &digest, "413", "SIZE_INVALID: quota exceeded"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

#[tokio::test]
async fn a_registry_that_never_keeps_a_byte_is_given_up() {
    let (registry, repository, bytes) = target().await;
    registry.set_faults(|request| {
        let answer = Answer::new(202).header("location", "/v2/team/app/blobs/uploads/upload-1").header("range", "0-0");
        (request.method == "PATCH" || request.method == "GET").then(|| answer.into())
    });
    let error = push(&repository, &bytes, None).await.expect_err("it makes no progress");
    assert_eq!(error.kind(), ErrorKind::Invalid, "{}", shown(&error));
    assert!(registry.requests().len() < 20, "{:?}", uploads(&registry));
}

#[tokio::test]
async fn a_real_registry_takes_chunks_and_a_broken_connection_does_not_matter() {
    let Some(real) = DockerRegistry::start() else { return };
    let repository = client(quick()).repository(real.addr(), "team/app", Selector::Tag("v1".to_owned())).for_pushing();
    let bytes = Bytes::from(noise(20 << 20));
    assert_eq!(push(&repository, &bytes, None).await.expect("pushed"), Pushed::Sent);
    assert!(repository.has_blob(&Digest::sha256(&bytes)).await.expect("an answer"));
    use ocifs::source::Source;
    assert_eq!(read(&repository.blob(&descriptor(&bytes)), 0..bytes.len() as u64).await.expect("served"), bytes);

    // The second repository takes it from the first one without a byte sent.
    let other = client(quick()).repository(real.addr(), "team/other", Selector::Tag("v1".to_owned())).for_pushing();
    assert_eq!(push(&other, &bytes, Some("team/app")).await.expect("mounted"), Pushed::Mounted);

    // A proxy that breaks the connection in the middle of the second chunk.
    let proxy = Breaking::start(real.addr().to_owned(), 12 << 20).await;
    let behind = client(quick()).repository(&proxy.addr, "team/app", Selector::Tag("v1".to_owned())).for_pushing();
    let bytes = Bytes::from(bytes.iter().map(|byte| !byte).collect::<Vec<u8>>());
    assert_eq!(push(&behind, &bytes, None).await.expect("resumed"), Pushed::Sent);
    assert!(proxy.broken.load(Ordering::Relaxed) > 0, "the connection was broken");
    assert_eq!(read(&repository.blob(&descriptor(&bytes)), 0..bytes.len() as u64).await.expect("served"), bytes);
}

/// Passes connections on to a server, and breaks the first one that has sent it so many bytes.
struct Breaking {
    addr: String,
    broken: Arc<AtomicU64>,
}

impl Breaking {
    async fn start(to: String, after: usize) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let addr = listener.local_addr().expect("a bound socket has an address").to_string();
        let broken = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&broken);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (to, count) = (to.clone(), Arc::clone(&count));
                tokio::spawn(async move {
                    let server = tokio::net::TcpStream::connect(to).await.expect("the registry listens");
                    let (mut from_client, mut to_client) = client.into_split();
                    let (mut from_server, mut to_server) = server.into_split();
                    let back = tokio::spawn(async move {
                        // How the connection ends is what this is about.
                        tokio::io::copy(&mut from_server, &mut to_client).await.ok();
                    });
                    use tokio::io::AsyncReadExt;
                    let limit = if count.load(Ordering::Relaxed) == 0 { after as u64 } else { u64::MAX };
                    let passed = tokio::io::copy(&mut (&mut from_client).take(limit), &mut to_server).await;
                    if passed.is_ok_and(|passed| passed == limit) {
                        count.fetch_add(1, Ordering::Relaxed);
                        back.abort();
                    }
                });
            }
        });
        Self { addr, broken }
    }
}
