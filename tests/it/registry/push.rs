//! Pushing: what reaches the registry is the blob, whatever happens on the way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use ocifs::demo::registry::{Answer, Bearer, Content, Endpoint, Fault, Registry, Request};
use ocifs::oci::{Algorithm, Digest};
use ocifs::registry::{Options, Pushed, Repository, Selector};
use ocifs::source::{Error, ErrorKind};

use super::redirects::login;
use super::scripted::{Fate, Reply, Server};
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
async fn b_165_b_166_a_large_blob_is_pushed_in_chunks_and_a_small_one_at_once() {
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
async fn b_167_an_interrupted_chunk_goes_on_where_the_registry_is() {
    let (registry, repository, bytes) = target().await;
    registry.set_faults(|request| nth_patch(request, 1).then_some(Fault::HangUp { after: 3 << 20 }));
    assert_eq!(push(&repository, &bytes, None).await.expect("resumed"), Pushed::Sent);
    let asked = uploads(&registry);
    assert_eq!(asked[..5], ["POST", "PATCH 0-8388607", "PATCH 8388608-16777215", "GET", "PATCH 11534336-19922943"]);
    assert_eq!(held(&registry, &repository, &bytes).await, bytes);
}

#[tokio::test]
async fn b_167_an_answer_that_is_lost_after_the_work_was_done_costs_nothing() {
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
async fn b_169_a_blob_of_another_repository_is_mounted_and_one_that_cannot_be_is_sent_in_the_session_that_is_open() {
    let (registry, repository, bytes) = target().await;
    registry.content().add_blob("application/octet-stream", bytes.clone());
    registry.content().add_manifest("other", Some("v1"), "application/json", "{}");
    assert_eq!(push(&repository, &bytes, Some("other")).await.expect("mounted"), Pushed::Mounted);
    assert_eq!(uploads(&registry), ["POST"]);
    registry.forget_requests();
    assert_eq!(push(&repository, &bytes, Some("unknown")).await.expect("sent"), Pushed::Sent);
    assert_eq!(uploads(&registry).iter().filter(|request| *request == "POST").count(), 1);
}

#[tokio::test]
async fn b_169_a_mount_that_is_denied_is_not_asked_for_again() {
    for status in [401, 403] {
        let (registry, repository, bytes) = target().await;
        registry.set_faults(move |request| request.query.contains("from=").then(|| Fault::status(status)));
        assert_eq!(push(&repository, &bytes, Some("secret")).await.expect("sent"), Pushed::Sent, "{status}");
        let begun: Vec<_> = registry.requests().into_iter().filter(|record| record.request.method == "POST").collect();
        assert_eq!(begun.last().map(|record| record.request.query.clone()), Some(String::new()), "{status}");
        assert_eq!(held(&registry, &repository, &bytes).await, bytes);
    }
}

#[tokio::test]
async fn b_169_a_token_server_that_does_not_let_read_there_does_not_forbid_to_push() {
    let (registry, repository, bytes) = target().await;
    registry.set_faults(|request| match request.endpoint {
        Endpoint::Token if request.query.contains("repository%3Asecret") => Some(Fault::status(403)),
        _ => Some(Fault::Bearer(Bearer::default())),
    });
    let small = bytes.slice(..100);
    assert_eq!(push(&repository, &small, Some("secret")).await.expect("pushed"), Pushed::Sent);
}

#[tokio::test]
async fn b_169_pushing_asks_for_a_token_that_may_push_and_mounting_for_one_that_may_read_there() {
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
async fn b_168_what_a_registry_refuses_is_told_with_all_that_is_known_and_given_up() {
    for deletes in [true, false] {
        let (registry, repository, bytes) = target().await;
        let refusal = Answer::new(413).body(r#"{"errors":[{"code":"SIZE_INVALID","message":"quota exceeded"}]}"#);
        registry.set_faults(move |request| match request.method.as_str() {
            "PATCH" => Some(refusal.clone().into()),
            "DELETE" if !deletes => Some(Fault::status(405)),
            _ => None,
        });
        let error = push(&repository, &bytes, None).await.expect_err("refused");
        let text = shown(&error);
        let digest = Digest::sha256(&bytes).to_string();
        let host = registry.addr().to_string();
        for part in ["cannot push blob", &host, "team/app", &digest, "413", "SIZE_INVALID: quota exceeded"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert_eq!(uploads(&registry), ["POST", "PATCH 0-8388607", "DELETE"]);
    }
}

#[tokio::test]
async fn whatever_is_in_the_way_of_a_push_is_told_of_a_push() {
    let realm =
        |request: &super::scripted::Request| format!("http://{}/token", request.header("host").unwrap_or_default());
    type Script = Box<dyn Fn(&super::scripted::Request) -> Reply + Send + Sync>;
    let cases: [(&str, Script); 4] = [
        ("cannot push manifest", Box::new(|_| Reply::new(200, "").fated(Fate::Silence))),
        ("cannot push manifest", Box::new(|_| Reply::new(401, ""))),
        ("cannot push manifest", Box::new(|request| Reply::redirect(request.target.clone()))),
        (
            "cannot get a token to push manifest",
            Box::new(move |request| match request.path() {
                "/token" => Reply::new(200, "no token"),
                _ => Reply::bearer(&realm(request), ""),
            }),
        ),
    ];
    for (number, (expected, script)) in cases.into_iter().enumerate() {
        let server = Server::start(move |request, _| script(request)).await;
        let mut options = Options { attempts: 1, ..quick() };
        if number == 0 {
            let short = std::time::Duration::from_millis(300);
            (options.stall_timeout, options.connect_timeout) = (short, short);
        }
        let tag = Selector::Tag("v1".to_owned());
        let repository = client(options).repository(&server.host(), "team/app", tag.clone()).for_pushing();
        let pushed = repository.push_manifest(&tag, "application/json", Bytes::from_static(b"{}")).await;
        let text = shown(&pushed.expect_err("it is not taken"));
        assert!(text.starts_with(expected) && !text.contains("leave to"), "{number}: {text}");
    }
}

#[tokio::test]
async fn b_167_a_chunk_that_is_out_of_place_is_asked_about() {
    let (registry, repository, bytes) = target().await;
    registry.set_faults(|request| nth_patch(request, 1).then(|| Fault::status(416)));
    assert_eq!(push(&repository, &bytes, None).await.expect("resumed"), Pushed::Sent);
    let asked = uploads(&registry);
    // It had taken the chunk all the same.
    assert_eq!(asked[..5], ["POST", "PATCH 0-8388607", "PATCH 8388608-16777215", "GET", "PATCH 16777216-20971519"]);
    assert_eq!(held(&registry, &repository, &bytes).await, bytes);
}

#[tokio::test]
async fn b_166_chunks_are_as_long_as_the_registry_wants_them_at_least() {
    let (registry, repository, bytes) = target().await;
    registry
        .set_faults(|request| (request.method == "POST").then(|| Fault::header("oci-chunk-min-length", "10485760")));
    assert_eq!(push(&repository, &bytes, None).await.expect("pushed"), Pushed::Sent);
    assert_eq!(uploads(&registry), ["POST", "PATCH 0-10485759", "PATCH 10485760-20971519", "PUT"]);
}

#[tokio::test]
async fn b_165_b_170_a_place_elsewhere_gets_the_blob_without_credentials_and_with_its_own_query() {
    let store = Server::start(|_, _| Reply::new(201, "")).await;
    let place = store.url("/up?state=a%2Fb&Signature=s");
    let registry = Server::start(move |request, _| match request.header("authorization") {
        Some(_) => Reply::new(202, "").with("Location", place.clone()),
        None => Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"x\""),
    })
    .await;
    let directory = tempfile::tempdir().expect("a temporary directory");
    // Credentials are on file for the store, too, but it is not the registry that was asked.
    let auth_files = vec![login(&directory, &[registry.host(), store.host()])];
    let client = client(Options { auth_files, ..quick() });
    let repository = client.repository(&registry.host(), "team/app", Selector::Tag("v1".to_owned())).for_pushing();
    let bytes = Bytes::from_static(b"a small blob");
    assert_eq!(push(&repository, &bytes, None).await.expect("pushed"), Pushed::Sent);
    let log = store.log();
    let digest = Digest::sha256(&bytes).to_string().replace(':', "%3A");
    assert_eq!(log.len(), 1);
    assert_eq!((log[0].method.as_str(), log[0].body.as_bytes()), ("PUT", &bytes[..]));
    assert_eq!(log[0].target, format!("/up?state=a%2Fb&Signature=s&digest={digest}"));
    assert_eq!(log[0].header("authorization"), None);
}

#[tokio::test]
async fn b_171_a_manifest_is_sent_as_it_is_and_must_be_taken_as_it_is() {
    let (manifest, kind) = ("{ \"schemaVersion\" : 2 }", "application/vnd.test+json");
    let put = async |reply: Reply| {
        let server = Server::start(move |_, _| reply.clone()).await;
        let named = Selector::Tag("v1".to_owned());
        let pushed = super::repository(&server).push_manifest(&named, kind, manifest.into()).await;
        let log = server.log();
        assert_eq!((log[0].method.as_str(), log[0].path()), ("PUT", "/v2/team/app/manifests/v1"));
        assert_eq!((log[0].body.as_str(), log[0].header("content-type")), (manifest, Some(kind)));
        pushed
    };
    let digest = Digest::sha256(manifest.as_bytes());
    let subject = Digest::sha256(b"x").to_string();
    assert!(!put(Reply::new(201, "").with("Docker-Content-Digest", digest.to_string())).await.expect("taken"));
    assert!(put(Reply::new(201, "").with("OCI-Subject", subject.clone())).await.expect("taken"));
    let error = put(Reply::new(201, "").with("Docker-Content-Digest", subject)).await.expect_err("something else");
    assert!(error.kind() == ErrorKind::Corrupt && shown(&error).contains("cannot push manifest"), "{}", shown(&error));
    let error = put(Reply::error(413, "SIZE_INVALID", "too long")).await.expect_err("refused");
    assert!(shown(&error).contains("413 Payload Too Large: SIZE_INVALID: too long"), "{}", shown(&error));
}

#[tokio::test]
async fn b_174_a_digest_of_another_algorithm_is_announced() {
    let (registry, repository, bytes) = target().await;
    let digest = Digest::of(Algorithm::Sha512, &bytes);
    let sent = AtomicU64::new(0);
    let pushed = repository.push_blob(digest, bytes.clone(), None, &sent).await;
    assert_eq!(pushed.unwrap_or_else(|error| panic!("{}", shown(&error))), Pushed::Sent);
    let begun = registry.requests().into_iter().find(|record| record.request.method == "POST");
    assert_eq!(begun.map(|record| record.request.query), Some("digest-algorithm=sha512".to_owned()));
    // A repository without a manifest does not exist.
    registry.content().add_manifest("team/app", None, "application/json", "{}");
    assert!(repository.has_blob(&digest).await.expect("an answer"));
}

#[tokio::test]
async fn b_068_b_069_a_registry_that_does_not_answer_head_is_asked_by_pushing() {
    let (registry, repository, bytes) = target().await;
    let small = bytes.slice(..100);
    registry.set_faults(|request| (request.method == "HEAD").then(|| Fault::status(405)));
    assert!(!repository.has_blob(&Digest::sha256(&small)).await.expect("it may be there"));
    let refusal = Answer::new(403).body(r#"{"errors":[{"code":"DENIED","message":"your plan has ended"}]}"#);
    registry.set_faults(move |request| match request.method.as_str() {
        "HEAD" => Some(Fault::status(403)),
        "POST" => Some(refusal.clone().into()),
        _ => None,
    });
    assert!(!repository.has_blob(&Digest::sha256(&small)).await.expect("nobody knows"));
    let error = push(&repository, &small, None).await.expect_err("denied");
    assert!(shown(&error).contains("DENIED: your plan has ended"), "{}", shown(&error));
}

#[tokio::test]
async fn a_registry_that_nobody_may_push_to_denies_it() {
    let (registry, repository, bytes) = target().await;
    registry.set_faults(|request| (request.method == "POST").then(|| Fault::status(405)));
    let error = push(&repository, &bytes.slice(..100), None).await.expect_err("it is read-only");
    assert_eq!(error.kind(), ErrorKind::Denied, "{}", shown(&error));
    assert_eq!(error.advice(), Some("the registry does not allow pushing; ask whoever runs it"));
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

#[tokio::test]
async fn d_030_a_place_inside_the_network_gets_nothing() {
    let registry =
        Server::start(|_, _| Reply::new(202, "").with("Location", "http://169.254.169.254/latest/meta-data")).await;
    let repository = super::repository(&registry).for_pushing();
    let error = push(&repository, &Bytes::from_static(b"x"), None).await.expect_err("refused");
    assert!(error.kind() == ErrorKind::Invalid && shown(&error).contains("link-local"), "{}", shown(&error));
}
