//! Logins, challenges and tokens.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ocifs::demo::registry::{Bearer, Content, Fault, Registry};
use ocifs::registry::{Options, Repository, Selector};
use ocifs::source::{ErrorKind, Source};

use super::scripted::{Reply, Request, Server};
use super::{client, descriptor, noise, quick, read, shown};

const BODY: &str = "{}";

/// Credential files of a test.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    fn store(&self, host: &str, entry: &str) -> Vec<PathBuf> {
        let path = self.0.path().join("auth.json");
        std::fs::write(&path, format!(r#"{{"auths":{{"{host}":{entry}}}}}"#)).expect("the directory is writable");
        vec![path]
    }
}

const LOGIN: &str = r#"{"username":"me","password":"hunter2"}"#;
const LOGIN_HEADER: &str = "Basic bWU6aHVudGVyMg==";

fn repository(server: &Server, options: Options) -> Repository {
    client(options).repository(&server.host(), "team/app", Selector::Tag("v1".to_owned()))
}

/// A registry that takes the tokens that `accept` takes, and is its own token server with the answers of `token`.
async fn tokens(
    accept: impl Fn(&str, usize) -> bool + Send + Sync + 'static,
    token: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static,
) -> Server {
    let fetched = AtomicUsize::new(0);
    Server::start(move |request, count| {
        if request.path() == "/token" {
            return token(request, fetched.fetch_add(1, Ordering::SeqCst));
        }
        let header = request.header("authorization").unwrap_or_default();
        match header.strip_prefix("Bearer ") {
            Some(token) if accept(token, count) => Reply::new(200, BODY),
            Some(_) => Reply::bearer(&realm(request), r#",error="invalid_token""#),
            None => Reply::bearer(&realm(request), ""),
        }
    })
    .await
}

fn realm(request: &Request) -> String {
    format!("http://{}/token?x=y", request.header("host").unwrap_or_default())
}

fn numbered(count: usize) -> Reply {
    Reply::new(200, format!(r#"{{"token":"t{count}","expires_in":300}}"#))
}

#[tokio::test]
async fn b_112_b_113_an_anonymous_token_costs_two_more_requests_once_per_host() {
    let server = tokens(|token, _| token.starts_with('t'), |_, count| numbered(count)).await;
    let shared = client(quick());
    let first = shared.repository(&server.host(), "team/app", Selector::Tag("v1".to_owned()));
    first.resolve().await.expect("the token is good");
    let log = server.log();
    assert_eq!(server.paths(), ["/v2/team/app/manifests/v1", "/token", "/v2/team/app/manifests/v1"]);
    assert_eq!(log[1].target, "/token?x=y&service=reg&scope=repository%3Ateam%2Fapp%3Apull");
    assert_eq!((log[1].method.as_str(), log[1].header("authorization")), ("GET", None));
    assert_eq!(log[2].header("authorization"), Some("Bearer t0"));
    let second = shared.repository(&server.host(), "other", Selector::Tag("v1".to_owned()));
    second.resolve().await.expect("another token is good");
    assert_eq!(server.paths()[3..], ["/token", "/v2/other/manifests/v1"], "the host is known");
    first.resolve().await.expect("the token is kept");
    assert_eq!(server.log().len(), 6);
}

#[tokio::test]
async fn b_118_one_fetch_serves_all_who_wait() {
    let bytes = noise(1000);
    let stored = bytes.clone();
    let server = Server::start(move |request, _| match (request.path(), request.header("authorization")) {
        ("/token", _) => numbered(0),
        (_, Some("Bearer t0")) => Reply::blob(request, &stored),
        _ => Reply::bearer(&realm(request), ""),
    })
    .await;
    let blob = repository(&server, quick()).blob(&descriptor(&bytes));
    let reads = futures_util::future::join_all((0..32_u64).map(|start| read(&blob, start..start + 100))).await;
    assert!(reads.iter().all(Result::is_ok));
    assert_eq!(server.paths().iter().filter(|path| *path == "/token").count(), 1);
}

#[tokio::test]
async fn b_114_b_123_a_password_goes_to_the_token_server_and_nowhere_else() {
    let server = tokens(
        |token, _| token == "t0",
        |request, count| match request.header("authorization") {
            Some(LOGIN_HEADER) => numbered(count),
            _ => Reply::new(401, r#"{"details":"incorrect username or password"}"#),
        },
    )
    .await;
    let files = Files::new();
    let options = Options { auth_files: files.store(&server.host(), LOGIN), ..quick() };
    repository(&server, options).resolve().await.expect("the password is good");
    for request in server.log().iter().filter(|request| request.path() != "/token") {
        assert_ne!(request.header("authorization"), Some(LOGIN_HEADER));
    }

    let wrong = files.store(&server.host(), r#"{"username":"me","password":"s3cret"}"#);
    let error =
        repository(&server, Options { auth_files: wrong, ..quick() }).resolve().await.expect_err("a wrong password");
    assert_eq!(error.kind(), ErrorKind::Denied);
    let text = format!("{} {error:?}", shown(&error));
    for part in ["incorrect username or password", "auth.json", "podman login 127.0.0.1:"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(!text.contains("s3cret"), "{text}");
}

#[tokio::test]
async fn b_115_b_139_an_identity_token_is_posted_and_falls_back_to_get() {
    // What the server answers to POST, if it does not know that form.
    for refusal in [None, Some(404), Some(405)] {
        let posts = refusal.is_none();
        let server = tokens(
            |token, _| token == "t0",
            move |request, _| match request.method.as_str() {
                "POST" if posts => {
                    assert!(request.target == "/token?x=y", "{}", request.target);
                    assert_eq!(request.header("authorization"), None);
                    for part in ["grant_type=refresh_token", "refresh_token=id3ntity", "client_id=ocifs", "service=reg"]
                    {
                        assert!(request.body.contains(part), "{}", request.body);
                    }
                    Reply::new(200, r#"{"access_token":"t0"}"#)
                }
                "POST" => Reply::new(refusal.unwrap_or_default(), ""),
                _ => numbered(0),
            },
        )
        .await;
        let files = Files::new();
        let options = Options { auth_files: files.store(&server.host(), r#"{"identitytoken":"id3ntity"}"#), ..quick() };
        repository(&server, options).resolve().await.unwrap_or_else(|error| panic!("{}", shown(&error)));
        let gets = server.log().iter().filter(|request| request.path() == "/token" && request.method == "GET").count();
        assert_eq!(gets, usize::from(!posts));
    }
}

#[tokio::test]
async fn b_125_a_refresh_token_brings_the_next_token_and_the_login_if_it_is_revoked() {
    for revoked in [false, true] {
        let good = Arc::new(AtomicUsize::new(0));
        let current = Arc::clone(&good);
        let server = tokens(
            move |token, _| token == format!("t{}", current.load(Ordering::SeqCst)),
            move |request, count| match (request.method.as_str(), request.header("authorization")) {
                ("GET", Some(LOGIN_HEADER)) => {
                    let token = count.min(1);
                    Reply::new(200, format!(r#"{{"token":"t{token}","refresh_token":"r{token}"}}"#))
                }
                ("POST", None) if !revoked && request.body.contains("refresh_token=r0") => numbered(1),
                _ => Reply::error(401, "UNAUTHORIZED", "revoked"),
            },
        )
        .await;
        let files = Files::new();
        let auth_files = files.store(&server.host(), LOGIN);
        let repository = repository(&server, Options { auth_files, ..quick() });
        repository.resolve().await.expect("the first token is good");
        good.store(1, Ordering::SeqCst);
        repository.resolve().await.unwrap_or_else(|error| panic!("{}", shown(&error)));
        let log = server.log();
        let asked: Vec<_> =
            log.iter().filter(|request| request.path() == "/token").map(|request| request.method.as_str()).collect();
        assert_eq!(asked, if revoked { vec!["GET", "POST", "GET"] } else { vec!["GET", "POST"] });
    }
}

#[tokio::test]
async fn b_123_a_token_server_elsewhere_gets_the_login_and_the_registry_gets_the_token() {
    let elsewhere = Server::start(|request, _| match request.header("authorization") {
        Some(LOGIN_HEADER) => numbered(0),
        _ => Reply::new(401, ""),
    })
    .await;
    let realm = elsewhere.url("/token");
    let registry = Server::start(move |request, _| match request.header("authorization") {
        Some("Bearer t0") => Reply::new(200, BODY),
        _ => Reply::bearer(&realm, ""),
    })
    .await;
    let files = Files::new();
    // A login for the token server's own name is not what the registry asks for.
    let auth_files = files.store(&registry.host(), LOGIN);
    repository(&registry, Options { auth_files, ..quick() }).resolve().await.expect("the login is good");
    let sent: Vec<_> =
        registry.log().iter().map(|request| request.header("authorization").map(str::to_owned)).collect();
    assert_eq!(sent, [None, Some("Bearer t0".to_owned())]);
    assert_eq!(elsewhere.log().len(), 1);

    // Anonymous first: nothing is sent before it is asked for.
    let auth_files = files.store("elsewhere.example", LOGIN);
    let error = repository(&registry, Options { auth_files, ..quick() }).resolve().await.expect_err("no login for it");
    assert_eq!(error.kind(), ErrorKind::Denied, "{}", shown(&error));
    assert!(elsewhere.log()[1..].iter().all(|request| request.header("authorization").is_none()));
}

#[tokio::test]
async fn b_099_b_120_an_expired_token_is_replaced_once_however_many_notice() {
    let bytes = noise(1000);
    let stored = bytes.clone();
    let good = Arc::new(AtomicUsize::new(0));
    let current = Arc::clone(&good);
    let fetched = AtomicUsize::new(0);
    let server = Server::start(move |request, _| {
        if request.path() == "/token" {
            return numbered(fetched.fetch_add(1, Ordering::SeqCst));
        }
        let wanted = format!("Bearer t{}", current.load(Ordering::SeqCst));
        if request.header("authorization") == Some(wanted.as_str()) {
            Reply::blob(request, &stored)
        } else {
            Reply::bearer(&realm(request), r#",error="invalid_token""#)
        }
    })
    .await;
    let blob = repository(&server, quick()).blob(&descriptor(&bytes));
    read(&blob, 0..10).await.expect("the first token");
    good.store(1, Ordering::SeqCst);
    let reads = futures_util::future::join_all((0..16_u64).map(|start| read(&blob, start..start + 100))).await;
    for result in reads {
        result.unwrap_or_else(|error| panic!("{}", shown(&error)));
    }
    assert_eq!(server.paths().iter().filter(|path| *path == "/token").count(), 2);
}

#[tokio::test]
async fn b_120_tokens_that_are_never_accepted_end_in_a_denial() {
    let server = tokens(|_, _| false, |_, count| numbered(count)).await;
    let error = repository(&server, quick()).resolve().await.expect_err("no token is good");
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(shown(&error).contains("401 Unauthorized: UNAUTHORIZED"), "{}", shown(&error));
    assert_eq!(server.paths().iter().filter(|path| *path == "/token").count(), 2, "fetched again once");
    assert_eq!(server.log().len(), 5);
}

#[tokio::test]
async fn b_119_a_wider_scope_is_asked_for_with_the_new_one_first() {
    let server = Server::start(|request, _| {
        let scopes: Vec<_> = request.target.split("scope=").skip(1).collect();
        match (request.path(), request.header("authorization")) {
            ("/token", _) => Reply::new(200, format!(r#"{{"token":"scopes{}"}}"#, scopes.len())),
            (_, Some("Bearer scopes2")) => Reply::new(200, BODY),
            (_, Some(_)) => {
                let more = r#",scope="repository:base:pull repository:team/app:pull",error="insufficient_scope""#;
                Reply::bearer(&realm(request), more)
            }
            (_, None) => Reply::bearer(&realm(request), ""),
        }
    })
    .await;
    repository(&server, quick()).resolve().await.expect("the wider token is good");
    let last = server.log().iter().rfind(|request| request.path() == "/token").cloned().expect("a token was fetched");
    let order = (last.target.find("base"), last.target.find("team"));
    assert!(matches!(order, (Some(new), Some(old)) if new < old), "{}", last.target);
}

#[tokio::test]
async fn b_121_a_forbidden_answer_is_final_unless_the_login_changed() {
    let server = tokens(|_, _| true, |_, count| numbered(count)).await;
    let script_host = server.host();
    let forbidding = Server::start(|request, _| match (request.path(), request.header("authorization")) {
        ("/token", _) => numbered(usize::from(request.header("authorization") == Some(LOGIN_HEADER))),
        (_, Some("Bearer t1")) => Reply::new(200, BODY),
        (_, Some(_)) => Reply::error(403, "DENIED", "requested access is denied"),
        (_, None) => Reply::bearer(&realm(request), ""),
    })
    .await;
    let files = Files::new();
    let auth_files = files.store(&script_host, LOGIN);
    let repository = repository(&forbidding, Options { auth_files, ..quick() });
    let error = repository.resolve().await.expect_err("anonymous is not enough");
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(shown(&error).contains("DENIED: requested access is denied"), "{}", shown(&error));
    assert_eq!(forbidding.log().len(), 3);
    files.store(&forbidding.host(), LOGIN);
    repository.resolve().await.expect("the new login is found without a new client");
}

#[tokio::test]
async fn b_122_basic_without_a_login_is_denied_with_advice() {
    let server = Server::start(|request, _| match request.header("authorization") {
        Some(LOGIN_HEADER) => Reply::new(200, BODY),
        _ => Reply::new(401, "").with("WWW-Authenticate", r#"Basic realm="registry""#),
    })
    .await;
    let files = Files::new();
    let auth_files = files.store("elsewhere.example", LOGIN);
    let repository = repository(&server, Options { auth_files, ..quick() });
    let error = repository.resolve().await.expect_err("a login is needed");
    assert_eq!(error.kind(), ErrorKind::Denied);
    let advice = error.advice().unwrap_or_default();
    assert!(
        advice.contains("no credentials") && advice.contains(&format!("podman login {}", server.host())),
        "{advice}"
    );

    files.store(&server.host(), r#"{"username":"me","password":"old"}"#);
    let error = repository.resolve().await.expect_err("a wrong login");
    assert!(error.advice().unwrap_or_default().contains("auth.json"), "{}", shown(&error));

    files.store(&server.host(), LOGIN);
    repository.resolve().await.expect("the right login");
    let before = server.log().len();
    repository.resolve().await.expect("again");
    assert_eq!(server.log().len(), before + 1, "the login is sent at once from now on");
}

#[tokio::test]
async fn b_136_a_denial_tells_of_a_broken_entry_without_its_secret() {
    let basic = |_: &Request| Reply::new(401, "").with("WWW-Authenticate", "Basic");
    let bearer = |request: &Request| match (request.path(), request.header("authorization")) {
        ("/token", _) => numbered(0),
        (_, Some(_)) => Reply::error(403, "DENIED", "requested access is denied"),
        (_, None) => Reply::bearer(&realm(request), ""),
    };
    for answer in [basic as fn(&Request) -> Reply, bearer] {
        let server = Server::start(move |request, _| answer(request)).await;
        let files = Files::new();
        let auth_files = files.store(&server.host(), r#"{"auth":"!!hunter2!!"}"#);
        let repository = repository(&server, Options { auth_files, ..quick() });
        let error = repository.resolve().await.expect_err("there is no login");
        let text = shown(&error);
        assert!(text.contains(&format!("the entry \"{}\" in ", server.host())) && text.contains("auth.json"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
}

#[tokio::test]
async fn a_login_demanded_elsewhere_does_not_close_public_repositories() {
    let server = Server::start(|request, _| {
        if request.path().contains("/public/") {
            Reply::new(200, BODY)
        } else {
            Reply::new(401, "").with("WWW-Authenticate", "Basic")
        }
    })
    .await;
    let shared = client(quick());
    let private = shared.repository(&server.host(), "private/x", Selector::Tag("v1".to_owned()));
    private.resolve().await.expect_err("a login is needed");
    let public = shared.repository(&server.host(), "public/x", Selector::Tag("v1".to_owned()));
    public.resolve().await.expect("no login is needed");
}

#[tokio::test]
async fn b_124_a_token_server_out_of_order_gives_a_clear_error() {
    for (reply, kind) in [
        (Reply::new(500, "<html>"), ErrorKind::Unreachable),
        (Reply::new(200, "<html>"), ErrorKind::Invalid),
        (Reply::new(200, r#"{"expires_in":60}"#), ErrorKind::Invalid),
        (Reply::new(200, vec![b' '; 1 << 20]), ErrorKind::Invalid),
        (Reply::new(200, r#"{"token":"a\r\nX-Evil: 1"}"#), ErrorKind::Invalid),
        (Reply::redirect("http://169.254.169.254/"), ErrorKind::Invalid),
        (Reply::redirect("/token"), ErrorKind::Invalid),
    ] {
        let answer = reply.clone();
        let server = tokens(|_, _| true, move |_, _| answer.clone()).await;
        let error = repository(&server, quick()).resolve().await.expect_err("no token");
        assert_eq!(error.kind(), kind, "{reply:?}: {}", shown(&error));
        assert!(error.to_string().contains("token"), "{error}");
    }
}

#[tokio::test]
async fn d_032_a_token_server_at_an_internal_address_is_not_asked() {
    for realm in ["http://169.254.169.254/token", "file:///etc/passwd", "http://10.0.0.1/token", ""] {
        let server = Server::start(move |_, _| Reply::bearer(realm, "")).await;
        let error = repository(&server, quick()).resolve().await.expect_err("refused");
        assert!(matches!(error.kind(), ErrorKind::Invalid | ErrorKind::Denied), "{}", shown(&error));
        assert_eq!(server.log().len(), 1);
    }
}

#[tokio::test]
async fn b_140_a_broken_credential_file_is_never_taken_for_no_credentials() {
    let server = tokens(|_, _| true, |_, count| numbered(count)).await;
    let files = Files::new();
    let auth_files = files.store(&server.host(), r#"{"auth":"#);
    let error = repository(&server, Options { auth_files, ..quick() }).resolve().await.expect_err("a broken file");
    assert!(error.to_string().contains("auth.json"), "{error}");
    assert_eq!(server.log().len(), 1, "no anonymous token was fetched");
}

#[tokio::test]
async fn b_141_a_registry_that_hangs_up_after_its_challenge_is_not_taken_for_one_that_speaks_tls() {
    let content = Content::new();
    content.add_manifest("team/app", Some("v1"), "application/vnd.oci.image.manifest.v1+json", BODY);
    let registry = Registry::start(content).await.expect("a port is free");
    registry.set_faults(|request| {
        let mut faults = vec![Fault::Bearer(Bearer::default())];
        faults.extend((request.is_manifest() && request.attempt == 1).then_some(Fault::HangUp { after: 0 }));
        Some(Fault::Many(faults))
    });
    let tag = Selector::Tag("v1".to_owned());
    let repository = client(quick()).repository(&registry.addr().to_string(), "team/app", tag);
    repository.resolve().await.unwrap_or_else(|error| panic!("{}", shown(&error)));
    let statuses: Vec<_> = registry.requests().iter().map(|record| record.status).collect();
    assert_eq!(statuses.len(), 4, "refused, given a token, cut off, answered: {statuses:?}");
}

#[tokio::test]
async fn d_034_no_secret_is_ever_logged() {
    let text = Arc::new(std::sync::Mutex::new(Vec::new()));
    let sink = Arc::clone(&text);
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || Sink(Arc::clone(&sink)))
        .finish();
    // The test runs on one thread, so what is set for it holds for all its tasks.
    let _guard = tracing::subscriber::set_default(subscriber);
    let server = tokens(
        |token, _| token == "s3cret-1",
        |_, count| Reply::new(200, format!(r#"{{"token":"s3cret-{count}","refresh_token":"s3cret-r"}}"#)),
    )
    .await;
    let files = Files::new();
    let auth_files = files.store(&server.host(), LOGIN);
    repository(&server, Options { auth_files, ..quick() }).resolve().await.expect("the second token is good");
    tracing::debug!("the log works");
    let text = String::from_utf8_lossy(&text.lock().expect("nobody panicked")).into_owned();
    assert!(text.contains("the log works"));
    for secret in ["s3cret", "hunter2", "bWU6aHVudGVyMg"] {
        assert!(!text.contains(secret), "{text}");
    }
}

struct Sink(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("nobody panicked").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
