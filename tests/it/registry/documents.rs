//! Manifests and indexes: what is asked, what is believed, and what is said when there is none.

use std::time::{Duration, Instant};

use ocifs::oci::{Algorithm, Digest};
use ocifs::registry::{Options, Selector};
use ocifs::source::{Document, Error, ErrorKind, Source};

use super::scripted::{Fate, Reply, Request, Server};
use super::{client, descriptor, quick, repository, shown};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const BODY: &[u8] = br#"{"schemaVersion":2}"#;

async fn resolve(
    script: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static,
) -> (Result<Document, Error>, Server) {
    let server = Server::start(script).await;
    (repository(&server).resolve().await, server)
}

async fn resolve_digest(
    digest: Digest,
    script: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static,
) -> Result<Document, Error> {
    let server = Server::start(script).await;
    client(quick()).repository(&server.host(), "team/app", Selector::Digest(digest)).resolve().await
}

#[tokio::test]
async fn b_040_b_041_a_manifest_costs_one_request_that_says_what_is_understood() {
    let (document, server) =
        resolve(|_, _| Reply::new(200, BODY).with("Content-Type", format!("{MANIFEST}; charset=utf-8"))).await;
    let document = document.expect("served");
    assert_eq!((document.media_type.as_str(), &document.bytes[..]), (MANIFEST, BODY));
    assert_eq!(document.digest, Digest::sha256(BODY));
    let log = server.log();
    assert_eq!(log.len(), 1);
    assert_eq!((log[0].method.as_str(), log[0].target.as_str()), ("GET", "/v2/team/app/manifests/v1"));
    let accept = log[0].header("accept").expect("an Accept header");
    for wanted in [
        MANIFEST,
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "*/*",
    ] {
        assert!(accept.contains(wanted), "{accept}");
    }
}

#[tokio::test]
async fn b_042_schema_1_is_unsupported_and_says_so() {
    let kind = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    let (document, _server) = resolve(move |_, _| Reply::new(200, "{}").with("Content-Type", kind)).await;
    let error = document.expect_err("schema 1");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(shown(&error).contains("schema 1"), "{}", shown(&error));
}

#[tokio::test]
async fn b_064_b_067_a_digest_decides_and_no_header_does() {
    for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
        let digest = Digest::of(algorithm, BODY);
        let document = resolve_digest(digest, |_, _| Reply::new(200, BODY)).await.expect("the right bytes");
        assert_eq!(document.digest, digest);
        let header = digest.to_string();
        let wrong =
            resolve_digest(digest, move |_, _| Reply::new(200, "{}").with("Docker-Content-Digest", header.clone()));
        assert_eq!(wrong.await.expect_err("other bytes").kind(), ErrorKind::Corrupt);
    }
}

#[tokio::test]
async fn b_066_a_wrong_digest_header_is_ignored_for_a_tag() {
    let header = Digest::sha256(b"something else").to_string();
    let (document, _server) =
        resolve(move |_, _| Reply::new(200, BODY).with("Docker-Content-Digest", header.clone())).await;
    assert_eq!(document.expect("served").digest, Digest::sha256(BODY));
}

#[tokio::test]
async fn b_059_a_child_is_checked_against_size_and_digest() {
    let server = Server::start(|_, _| Reply::new(200, BODY).with("Content-Type", MANIFEST)).await;
    let repository = repository(&server);
    let right = descriptor(BODY);
    assert_eq!(repository.manifest(&right).await.expect("the right bytes").bytes, BODY);
    assert_eq!(server.paths(), [format!("/v2/team/app/manifests/{}", right.digest)]);
    let mut longer = right.clone();
    longer.size += 1;
    assert_eq!(repository.manifest(&longer).await.expect_err("size").kind(), ErrorKind::Corrupt);
    let mut other = right.clone();
    other.digest = Digest::sha256(b"");
    assert_eq!(repository.manifest(&other).await.expect_err("digest").kind(), ErrorKind::Corrupt);
    let before = server.log().len();
    let mut huge = right.clone();
    huge.size = 1 << 40;
    assert_eq!(repository.manifest(&huge).await.expect_err("size").kind(), ErrorKind::Invalid);
    let mut embedded = right;
    embedded.data = Some(bytes::Bytes::from_static(BODY));
    assert_eq!(repository.manifest(&embedded).await.expect("embedded").bytes, BODY);
    assert_eq!(server.log().len(), before);
}

#[tokio::test]
async fn b_070_a_digest_unknown_as_a_manifest_is_looked_for_among_blobs_after_a_404_only() {
    let unknown = || Reply::error(404, "MANIFEST_UNKNOWN", "manifest unknown");
    let found = resolve_digest(Digest::sha256(BODY), move |request, _| {
        if request.path().contains("/blobs/") { Reply::new(200, BODY) } else { unknown() }
    });
    assert_eq!(found.await.expect("a manifest among the blobs").bytes, BODY);
    let server = Server::start(|_, _| Reply::new(500, "")).await;
    let selector = Selector::Digest(Digest::sha256(BODY));
    let error = client(quick()).repository(&server.host(), "a", selector).resolve().await.expect_err("an outage");
    assert!(error.is_transient());
    assert!(server.paths().iter().all(|path| path.contains("/manifests/")));
    let missing = resolve_digest(Digest::sha256(BODY), move |_, _| unknown()).await.expect_err("nowhere");
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    assert!(missing.to_string().contains("has no manifest sha256:"), "{missing}");
}

#[tokio::test]
async fn an_unknown_tag_names_tags_that_exist() {
    let (document, _server) = resolve(|request, _| match request.path() {
        "/v2/team/app/tags/list" => Reply::new(200, r#"{"name":"team/app","tags":["zz","v2","v10"]}"#),
        _ => Reply::error(404, "MANIFEST_UNKNOWN", "manifest unknown"),
    })
    .await;
    let error = document.expect_err("there is no v1");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let text = shown(&error);
    assert!(text.contains("team/app has no tag v1") && text.contains("404 Not Found: MANIFEST_UNKNOWN"), "{text}");
    assert_eq!(error.advice(), Some("tags that exist: v10, v2, zz"));
}

#[tokio::test]
async fn b_092_an_encoded_document_is_decoded_and_no_longer_than_a_document() {
    let encoded = zstd::encode_all(BODY, 3).expect("written to memory");
    let (document, _server) =
        resolve(move |_, _| Reply::new(200, encoded.clone()).with("Content-Encoding", "zstd")).await;
    let document = document.expect("decoded");
    assert_eq!((document.digest, &document.bytes[..]), (Digest::sha256(BODY), BODY));
    let bomb = zstd::encode_all(&vec![b' '; 64 << 20][..], 3).expect("written to memory");
    assert!(bomb.len() < 100_000);
    let (document, _server) = resolve(move |_, _| Reply::new(200, bomb.clone()).with("Content-Encoding", "zstd")).await;
    let error = document.expect_err("it is too long");
    assert!(error.kind() == ErrorKind::Invalid && shown(&error).contains("and has more than"), "{}", shown(&error));
}

#[tokio::test]
async fn b_068_b_069_a_document_is_never_asked_for_by_head() {
    let (document, server) = resolve(|request, _| match request.method.as_str() {
        "HEAD" => Reply::new(405, ""),
        _ => Reply::error(403, "DENIED", "your plan has ended"),
    })
    .await;
    let error = document.expect_err("denied");
    assert!(shown(&error).contains("DENIED: your plan has ended"), "{}", shown(&error));
    assert!(server.log().iter().all(|request| request.method == "GET"));
}

#[tokio::test]
async fn b_160_all_pages_of_tags_are_read_at_the_same_server_and_each_once() {
    let elsewhere = Server::start(|_, _| Reply::new(200, r#"{"tags":["stolen"]}"#)).await;
    let other = elsewhere.url("/v2/team/app/tags/list");
    let (document, server) = resolve(move |request, _| {
        let page = |tags: &str, next: &str| {
            Reply::new(200, format!(r#"{{"name":"team/app","tags":{tags}}}"#))
                .with("Link", format!("<{next}>; rel=\"next\""))
        };
        let absolute = format!("http://{}/v2/team/app/tags/list?page=3", request.header("host").unwrap_or_default());
        match request.target.as_str() {
            "/v2/team/app/tags/list" => page(r#"["zz"]"#, "/v2/team/app/tags/list?page=2"),
            "/v2/team/app/tags/list?page=2" => page("null", &absolute),
            "/v2/team/app/tags/list?page=3" => page(r#"["b","v2"]"#, "list?page=4"),
            "/v2/team/app/tags/list?page=4" => page(r#"["c"]"#, &other),
            _ => Reply::error(404, "MANIFEST_UNKNOWN", "manifest unknown"),
        }
    })
    .await;
    let error = document.expect_err("there is no v1");
    assert_eq!(error.advice(), Some("tags that exist: v2, b, c, zz"), "empty pages do not end the list");
    assert_eq!(server.log().len(), 5);
    assert!(elsewhere.log().is_empty(), "the list is not continued by somebody else");
}

#[tokio::test]
async fn b_160_d_072_a_list_of_tags_that_leads_in_circles_ends() {
    for again in ["list", "list?n=1&last=a", "list?page=2"] {
        let (document, server) = resolve(move |request, _| match request.path() {
            "/v2/team/app/tags/list" => {
                let other = if request.target.contains("page=2") { "list?page=3" } else { again };
                Reply::new(200, r#"{"tags":["a"]}"#).with("Link", format!("<{other}>; rel=\"next\""))
            }
            _ => Reply::error(404, "MANIFEST_UNKNOWN", "manifest unknown"),
        })
        .await;
        assert_eq!(document.expect_err("there is no v1").kind(), ErrorKind::NotFound);
        assert!(server.log().len() <= 11, "{again}: {}", server.log().len());
    }
}

#[tokio::test]
async fn an_unknown_repository_is_told_from_an_unknown_tag() {
    let (document, _server) = resolve(|request, _| match request.path() {
        "/v2/team/app/tags/list" => Reply::error(404, "NAME_UNKNOWN", "repository name not known to registry"),
        _ => Reply::error(404, "MANIFEST_UNKNOWN", "manifest unknown"),
    })
    .await;
    let error = document.expect_err("no such repository");
    assert!(error.to_string().contains("has no repository team/app"), "{error}");
}

#[tokio::test]
async fn b_102_error_answers_of_any_kind_give_one_clear_line() {
    let bodies: [(&[u8], &str); 4] = [
        (b"<html><h1>Forbidden by proxy</h1></html>", "answered 418 I'm a teapot"),
        (b"", "answered 418 I'm a teapot"),
        (br#"{"errors":[{"code":"X","message":"bad\u001b]0;title"}]}"#, r"I'm a teapot: X: bad\u{1b}]0;title"),
        (&[b'x'; 10 << 20], "xxx…"),
    ];
    for (body, expected) in bodies {
        let (document, server) = resolve(move |_, _| Reply::new(418, body)).await;
        let error = document.expect_err("an error answer");
        let text = error.to_string();
        assert!(text.ends_with(expected) && text.contains(&server.host()) && text.contains("team/app:v1"), "{text}");
        assert!(text.len() < 1000 && !text.contains(char::is_control));
    }
}

#[tokio::test]
async fn d_016_an_endless_manifest_is_cut_off() {
    let (document, _server) = resolve(|_, _| Reply::new(200, vec![b' '; 1 << 16]).fated(Fate::Endless)).await;
    let error = document.expect_err("it never ends");
    assert_eq!(error.kind(), ErrorKind::Invalid, "{}", shown(&error));
}

#[tokio::test]
async fn d_072_a_manifest_that_drips_is_given_up() {
    let drip = Fate::Drip(Duration::from_millis(40));
    let server = Server::start(move |_, _| Reply::new(200, vec![b' '; 100_000]).fated(drip)).await;
    let options = Options { stall_timeout: Duration::from_millis(200), attempts: 2, ..quick() };
    let begun = Instant::now();
    let repository = client(options).repository(&server.host(), "a", Selector::Tag("v1".to_owned()));
    let error = repository.resolve().await.expect_err("this would take an hour");
    assert!(error.is_transient() && begun.elapsed() < Duration::from_secs(60), "{}", shown(&error));
}

#[tokio::test]
async fn b_094_a_manifest_cut_short_is_asked_for_again() {
    let (document, server) = resolve(|_, count| {
        let reply = Reply::new(200, BODY);
        if count == 0 { reply.fated(Fate::Cut(5)) } else { reply }
    })
    .await;
    assert_eq!(document.expect("the second answer is whole").bytes, BODY);
    assert_eq!(server.log().len(), 2);
}

#[tokio::test]
async fn d_006_names_that_would_leave_their_place_are_never_sent() {
    let server = Server::start(|_, _| Reply::new(200, BODY)).await;
    for repository in ["../../admin", "a/../../x", ""] {
        let source = client(quick()).repository(&server.host(), repository, Selector::Tag("v1".to_owned()));
        assert_eq!(source.resolve().await.expect_err(repository).kind(), ErrorKind::Invalid);
    }
    assert!(server.log().is_empty());
}
