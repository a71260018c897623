//! Blobs that live elsewhere: redirects, signed URLs that expire, foreign layers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ocifs::registry::{Options, Selector};
use ocifs::source::{ErrorKind, Source, read_checked};

use super::scripted::{Fate, Reply, Server};
use super::{client, descriptor, noise, quick, read, repository, shown};

/// A file with user and password for every server of the test.
pub(super) fn login(directory: &tempfile::TempDir, hosts: &[String]) -> std::path::PathBuf {
    let entries: Vec<_> =
        hosts.iter().map(|host| format!(r#""{host}":{{"username":"me","password":"hunter2"}}"#)).collect();
    let path = directory.path().join("auth.json");
    std::fs::write(&path, format!(r#"{{"auths":{{{}}}}}"#, entries.join(","))).expect("the directory is writable");
    path
}

#[tokio::test]
async fn b_080_b_081_a_redirect_is_followed_without_credentials_and_remembered() {
    for status in [301, 302, 303, 307, 308] {
        let bytes = noise(3000);
        let stored = bytes.clone();
        let store = Server::start(move |request, _| Reply::blob(request, &stored)).await;
        let target = store.url("/bucket/x?Signature=s3cret");
        let registry = Server::start(move |request, _| match request.header("authorization") {
            Some("Basic bWU6aHVudGVyMg==") => Reply::new(status, "").with("Location", target.clone()),
            _ => Reply::new(401, "").with("WWW-Authenticate", "Basic realm=\"x\""),
        })
        .await;
        let directory = tempfile::tempdir().expect("a temporary directory");
        // Credentials are on file for the store, too, but it is not the registry that was asked.
        let auth_files = vec![login(&directory, &[registry.host(), store.host()])];
        let client = client(Options { auth_files, ..quick() });
        let repository = client.repository(&registry.host(), "team/app", Selector::Tag("v1".to_owned()));
        let blob = repository.blob(&descriptor(&bytes));
        for start in [0, 1000, 2000] {
            assert_eq!(
                read(&blob, start..start + 500).await.expect("served"),
                bytes[start as usize..start as usize + 500]
            );
        }
        assert_eq!(registry.log().len(), 2, "a challenge and a redirect, once");
        assert_eq!(store.log().len(), 3);
        assert!(store.log().iter().all(|request| request.header("authorization").is_none()));
        assert!(
            store.log().iter().all(|request| request.header("cookie").is_none() && request.header("referer").is_none())
        );
        let again = repository.blob(&descriptor(&bytes));
        read(&again, 5..10).await.expect("served");
        assert_eq!(registry.log().len(), 2, "another reader of the blob knows the place as well");
    }
}

#[tokio::test]
async fn b_083_a_place_that_sent_wrong_bytes_is_not_remembered() {
    let bytes = noise(3000);
    let right = bytes.clone();
    let mut wrong = bytes.clone();
    wrong[1500] ^= 1;
    let store = Server::start(move |request, _| match request.path() {
        "/broken" => Reply::blob(request, &wrong),
        _ => Reply::blob(request, &right),
    })
    .await;
    let targets = [store.url("/broken"), store.url("/sound")];
    let registry = Server::start(move |_, before| Reply::redirect(targets[before.min(1)].clone())).await;
    let blob = repository(&registry).blob(&descriptor(&bytes));
    let digest = descriptor(&bytes).digest;
    assert_eq!(read_checked(blob.as_ref(), 3000, &digest).await.expect("an answer"), None, "there is nobody else");
    let again = read_checked(blob.as_ref(), 3000, &digest).await.expect("an answer");
    assert_eq!(again, Some(bytes.into()), "the registry is asked where else it is");
}

#[tokio::test]
async fn b_080_d_072_redirects_in_circles_end() {
    let server = Server::start(|request, _| Reply::redirect(format!("{}x", request.target))).await;
    let blob = repository(&server).blob(&descriptor(b"0123456789"));
    let error = read(&blob, 0..5).await.expect_err("it never arrives");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert_eq!(server.log().len(), 11);
}

#[tokio::test]
async fn b_082_a_challenge_of_the_redirect_target_is_not_answered() {
    let store = Server::start(|_, _| Reply::bearer("http://127.0.0.1:9/token", "")).await;
    let target = store.url("/x");
    let registry = Server::start(move |_, _| Reply::redirect(target.clone())).await;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let auth_files = vec![login(&directory, &[registry.host(), store.host()])];
    let client = client(Options { auth_files, ..quick() });
    let repository = client.repository(&registry.host(), "a", Selector::Tag("v1".to_owned()));
    let error = read(&repository.blob(&descriptor(b"0123456789")), 0..5).await.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert_eq!(store.log().len(), 2, "the place is resolved once more, and then it is final");
    assert!(store.log().iter().all(|request| request.header("authorization").is_none()));
}

#[tokio::test]
async fn b_083_an_expired_url_is_resolved_again_once() {
    for status in [400, 401, 403, 410, 404] {
        let bytes = noise(3000);
        let stored = bytes.clone();
        let store = Server::start(move |request, _| match request.target.as_str() {
            "/x?key=2" => Reply::blob(request, &stored),
            "/x?key=1" if request.range() == Some((0, 99)) => Reply::blob(request, &stored),
            _ => Reply::new(status, "<Error>expired</Error>"),
        })
        .await;
        let (target, keys) = (store.url("/x"), AtomicUsize::new(1));
        let registry =
            Server::start(move |_, _| Reply::redirect(format!("{target}?key={}", keys.fetch_add(1, Ordering::SeqCst))))
                .await;
        let blob = repository(&registry).blob(&descriptor(&bytes));
        assert_eq!(read(&blob, 0..100).await.expect("fresh"), bytes[..100]);
        assert_eq!(read(&blob, 100..200).await.expect("renewed"), bytes[100..200], "{status}");
        assert_eq!(read(&blob, 200..300).await.expect("known again"), bytes[200..300]);
        assert_eq!((registry.log().len(), store.log().len()), (2, 4), "{status}");
    }
}

#[tokio::test]
async fn b_105_a_refusing_store_is_named_without_the_signature() {
    let store = Server::start(|_, _| Reply::new(403, "no")).await;
    let target = store.url("/x?X-Amz-Signature=s3cret");
    let registry = Server::start(move |_, _| Reply::redirect(target.clone())).await;
    let error = read(&repository(&registry).blob(&descriptor(b"0123456789")), 0..5).await.expect_err("refused");
    let text = format!("{} {error:?}", shown(&error));
    assert!(text.contains(&store.url("")) && !text.contains("s3cret"), "{text}");
    assert_eq!((registry.log().len(), store.log().len()), (2, 2));
}

#[tokio::test]
async fn a_store_that_is_gone_sends_the_next_attempt_back_to_the_registry() {
    let bytes = noise(1000);
    let stored = bytes.clone();
    let gone = Server::start(|_, _| Reply::new(200, "")).await.url("/x");
    let store = Server::start(move |request, _| Reply::blob(request, &stored)).await;
    let target = store.url("/x");
    let registry =
        Server::start(move |_, count| Reply::redirect(if count == 0 { gone.clone() } else { target.clone() })).await;
    let blob = repository(&registry).blob(&descriptor(&bytes));
    assert_eq!(read(&blob, 10..20).await.expect("the second store is there"), bytes[10..20]);
}

#[tokio::test]
async fn b_094_a_break_at_the_store_is_resumed_at_the_store() {
    let bytes = noise(3000);
    let stored = bytes.clone();
    let store = Server::start(move |request, count| {
        let reply = Reply::blob(request, &stored);
        if count == 0 { reply.fated(Fate::Cut(1000)) } else { reply }
    })
    .await;
    let target = store.url("/x");
    let registry = Server::start(move |_, _| Reply::redirect(target.clone())).await;
    let blob = repository(&registry).blob(&descriptor(&bytes));
    assert_eq!(read(&blob, 0..3000).await.expect("resumed"), bytes);
    assert_eq!((registry.log().len(), store.log().len()), (1, 2));
}

#[tokio::test]
async fn d_030_a_redirect_to_the_metadata_service_is_refused() {
    let server = Server::start(|_, _| Reply::redirect("http://169.254.169.254/latest/meta-data")).await;
    let error = read(&repository(&server).blob(&descriptor(b"0123456789")), 0..5).await.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().contains("link-local"), "{error}");
}

#[tokio::test]
async fn b_071_d_031_foreign_layers_come_from_their_urls_without_credentials_then_from_the_registry() {
    let bytes = noise(2000);
    let stored = bytes.clone();
    let up = Arc::new(AtomicBool::new(true));
    let is_up = Arc::clone(&up);
    let elsewhere =
        Server::start(
            move |request, _| {
                if is_up.load(Ordering::SeqCst) { Reply::blob(request, &stored) } else { Reply::new(404, "") }
            },
        )
        .await;
    let stored = bytes.clone();
    let registry = Server::start(move |request, _| Reply::blob(request, &stored)).await;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let auth_files = vec![login(&directory, &[registry.host(), elsewhere.host()])];
    let mut foreign = descriptor(&bytes);
    foreign.urls = vec!["file:///etc/passwd".to_owned(), "nonsense".to_owned(), elsewhere.url("/layer")];

    let options = Options { auth_files, private_urls: true, ..quick() };
    let repository = client(options.clone()).repository(&registry.host(), "a", Selector::Tag("v1".to_owned()));
    let blob = repository.blob(&foreign);
    assert_eq!(read(&blob, 10..20).await.expect("served elsewhere"), bytes[10..20]);
    assert_eq!((registry.log().len(), elsewhere.log().len()), (0, 1));
    assert_eq!(elsewhere.log()[0].header("authorization"), None);
    up.store(false, Ordering::SeqCst);
    assert_eq!(read(&blob, 10..20).await.expect("served by the registry"), bytes[10..20]);
    assert_eq!((registry.log().len(), elsewhere.log().len()), (1, 2));

    let options = Options { private_urls: false, ..options };
    let repository = client(options).repository(&registry.host(), "a", Selector::Tag("v1".to_owned()));
    assert_eq!(read(&repository.blob(&foreign), 10..20).await.expect("served by the registry"), bytes[10..20]);
    assert_eq!(elsewhere.log().len(), 2, "an internal address is not asked");
}
