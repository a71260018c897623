//! What depends on the environment of the process: helper programs on the PATH, certificates of the system.
//!
//! The environment of a running process cannot be changed safely, so each test here runs a hidden one in a new process.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use ocifs::registry::{Options, Selector};
use ocifs::source::{ErrorKind, Source};

use super::scripted::{Reply, Server};
use super::{client, descriptor, quick, read, repository, shown};

/// Runs the hidden test `name` of this module in a process with the given environment.
fn run(name: &str, environment: &[(&str, &Path)]) {
    let program = std::env::current_exe().expect("the test program has a path");
    let name = format!("registry::environment::{name}");
    let output = Command::new(program)
        .args(["--exact", &name, "--ignored", "--nocapture"])
        .envs(environment.iter().copied())
        .output()
        .expect("the test program runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn without_certificates_only_tls_fails() {
    run(
        "hidden_without_certificates",
        &[("SSL_CERT_FILE", Path::new("/dev/null")), ("SSL_CERT_DIR", Path::new("/dev/null"))],
    );
}

#[tokio::test]
#[ignore = "runs in the process that without_certificates_only_tls_fails starts"]
async fn hidden_without_certificates() {
    if std::env::var_os("SSL_CERT_FILE").is_none_or(|path| path != "/dev/null") {
        return;
    }
    let server = Server::start(|_, count| match count {
        0 => Reply::new(200, "{}"),
        _ => Reply::redirect("https://127.0.0.1:9/x"),
    })
    .await;
    let repository = repository(&server);
    repository.resolve().await.expect("plain HTTP needs no certificates");
    let error = read(&repository.blob(&descriptor(b"0123456789")), 0..5).await.expect_err("TLS needs them");
    assert_eq!(error.kind(), ErrorKind::Unreachable);
    let text = shown(&error);
    assert!(text.contains("TLS to https://127.0.0.1:9 is not possible here"), "{text}");
    assert!(text.contains("No CA certificates") && text.contains("ca-certificates"), "{text}");
}

#[test]
fn b_137_a_helper_for_the_host_comes_before_the_store_and_the_store_before_the_file() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for (name, script) in [
        ("one", r#"read host; case "$host" in 127.*) printf '{"Username":"one","Secret":"p"}';; *) exit 1;; esac"#),
        ("two", r#"printf '{"ServerURL":"x","Username":"two","Secret":"p"}'"#),
        ("none", "echo credentials not found in native keychain; exit 1"),
        ("hangs", "exec sleep 600"),
    ] {
        let path = directory.path().join(format!("docker-credential-{name}"));
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("the directory is writable");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("the file is ours");
    }
    let path = format!("{}:/usr/bin:/bin", directory.path().display());
    run("hidden_helpers", &[("PATH", Path::new(&path)), ("TEST_DIRECTORY", directory.path())]);
}

#[tokio::test]
#[ignore = "runs in the process that b_137_… starts"]
async fn hidden_helpers() {
    let Some(directory) = std::env::var_os("TEST_DIRECTORY") else {
        return;
    };
    let server = Server::start(|request, _| match request.header("authorization") {
        Some(header) => Reply::error(404, "SEEN", header),
        None => Reply::new(401, "").with("WWW-Authenticate", "Basic"),
    })
    .await;
    let host = server.host();
    let file = Path::new(&directory).join("config.json");
    let auths = format!(r#""auths":{{"{host}":{{"username":"three","password":"p"}}}}"#);
    let seen = async |helper: &str, store: &str, milliseconds: u64| {
        let json = format!(r#"{{"credHelpers":{{"{host}":"{helper}"}},"credsStore":"{store}",{auths}}}"#);
        std::fs::write(&file, json).expect("the directory is writable");
        let helper_timeout = std::time::Duration::from_millis(milliseconds);
        let options = Options { auth_files: vec![file.clone()], helper_timeout, ..quick() };
        let repository = client(options).repository(&host, "a", Selector::Tag("v1".to_owned()));
        shown(&repository.resolve().await.expect_err("the answer is always an error"))
    };
    const LONG: u64 = 60_000;
    // The user names one, two and three with the password p, in base64.
    assert!(seen("one", "two", LONG).await.contains("SEEN: Basic b25lOnA="));
    assert!(seen("", "two", LONG).await.contains("SEEN: Basic dHdvOnA="));
    assert!(seen("none", "none", LONG).await.contains("SEEN: Basic dGhyZWU6cA=="));
    assert!(seen("none", "hangs", 5000).await.contains("SEEN: Basic dGhyZWU6cA=="));
    let hung = seen("hangs", "two", 700).await;
    assert!(hung.contains("docker-credential-hangs did not answer within 700ms"), "{hung}");
}

#[test]
fn b_137_whoever_a_helper_answers_for_now_is_told_from_whoever_it_answered_for() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("docker-credential-who");
    // With a login of somebody, without one, or failing, as the file says.
    std::fs::write(&path, "#!/bin/sh\ndir=${0%/*}\necho >> $dir/runs\n. $dir/login\n").expect("a writable directory");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("the file is ours");
    let path = format!("{}:/usr/bin:/bin", directory.path().display());
    run("hidden_changing_helper", &[("PATH", Path::new(&path)), ("TEST_DIRECTORY", directory.path())]);
}

#[tokio::test]
#[ignore = "runs in the process that b_137_whoever_… starts"]
async fn hidden_changing_helper() {
    let Some(directory) = std::env::var_os("TEST_DIRECTORY") else {
        return;
    };
    let directory = Path::new(&directory);
    let log_in = |user: &str| {
        let answer = format!(r#"printf '{{"Username":"{user}","Secret":"p"}}'"#);
        std::fs::write(directory.join("login"), answer).expect("a writable directory");
    };
    let runs = || std::fs::read_to_string(directory.join("runs")).unwrap_or_default().lines().count();
    // Alice may read until Bob comes.
    let server = Server::start(|request, _| match request.header("authorization") {
        Some("Basic YWxpY2U6cA==") if request.path().contains("/kept/") => Reply::new(200, "{}"),
        Some("Basic Ym9iOnA=") => Reply::new(200, "{}"),
        _ => Reply::new(401, "").with("WWW-Authenticate", "Basic"),
    })
    .await;
    let file = directory.join("config.json");
    std::fs::write(&file, r#"{"credsStore":"who"}"#).expect("a writable directory");
    let client = client(Options { auth_files: vec![file], ..quick() });
    let repository = |name: &str| client.repository(&server.host(), name, Selector::Tag("v1".to_owned()));
    let (kept, other) = (repository("kept/app"), repository("other"));
    log_in("alice");
    assert!(kept.serves_still().await, "nobody has asked yet");
    assert_eq!(runs(), 0, "and nobody asks for nothing");
    kept.resolve().await.expect("Alice may");
    assert!(kept.serves_still().await && other.serves_still().await);
    let stranger = client.repository("127.0.0.1:9", "app", Selector::Tag("v1".to_owned()));
    let before = runs();
    assert!(stranger.serves_still().await && runs() == before, "it has not asked about that registry");
    log_in("bob");
    assert!(!kept.serves_still().await, "whoever comes now is not Alice");
    kept.resolve().await.expect("who has a client keeps the login with it");
    // What the registry refuses, it is asked about again: the client is now both of theirs, and nobody else's.
    other.resolve().await.expect("Bob may");
    assert!(!kept.serves_still().await);
    log_in("alice");
    assert!(!kept.serves_still().await);
}

/// A SOCKS 5 proxy (RFC 1928) without logins, on which every name leads to this machine; the thread ends with the process.
fn socks() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
    let address = listener.local_addr().expect("a bound socket has an address");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || pass_on(stream));
        }
    });
    address
}

fn pass_on(mut client: TcpStream) -> std::io::Result<()> {
    let mut greeting = [0; 2];
    client.read_exact(&mut greeting)?;
    client.read_exact(&mut vec![0; greeting[1].into()])?;
    client.write_all(&[5, 0])?;
    let mut head = [0; 5];
    client.read_exact(&mut head)?;
    assert_eq!(head[..4], [5, 1, 0, 3], "a connection to a name, which the proxy is to look up");
    let mut name = vec![0; head[4].into()];
    client.read_exact(&mut name)?;
    assert_eq!(name, b"registry.test");
    let mut port = [0; 2];
    client.read_exact(&mut port)?;
    let server = TcpStream::connect(("127.0.0.1", u16::from_be_bytes(port)))?;
    client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])?;
    let (mut from, mut to) = (server.try_clone()?, client.try_clone()?);
    std::thread::spawn(move || std::io::copy(&mut from, &mut to));
    std::io::copy(&mut client, &mut &server).map(drop)
}

#[test]
fn b_103_a_socks_proxy_is_used_and_looks_up_the_names() {
    let proxy = format!("socks5h://{}", socks());
    run("hidden_socks", &[("http_proxy", Path::new(&proxy)), ("TEST_SOCKS", Path::new("1"))]);
}

#[tokio::test]
#[ignore = "runs in the process that b_103_… starts"]
async fn hidden_socks() {
    if std::env::var_os("TEST_SOCKS").is_none() {
        return;
    }
    let server =
        Server::start(|request, _| Reply::error(404, "SEEN", request.header("host").unwrap_or_default())).await;
    let (_, port) =
        server.host().rsplit_once(':').map(|(host, port)| (host.to_owned(), port.to_owned())).expect("a port");
    let options = Options { plain_http: true, ..quick() };
    let host = format!("registry.test:{port}");
    let repository = client(options).repository(&host, "a", Selector::Tag("v1".to_owned()));
    let text = shown(&repository.resolve().await.expect_err("the answer is always an error"));
    assert!(text.contains(&format!("SEEN: {host}")), "{text}");
}
