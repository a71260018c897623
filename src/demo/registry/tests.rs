//! The registry as its clients see it: raw HTTP for what must be exact, curl and skopeo for what others accept.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use hyper::header::{CONTENT_RANGE, HeaderValue};
use serde_json::{Value, json};

use super::*;
use crate::oci::{Algorithm, Descriptor, Digest};

/// Longer than a busy machine takes for anything here.
const PATIENCE: Duration = Duration::from_secs(60);

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// An answer as it came over the wire.
#[derive(Debug)]
struct Got {
    status: u16,
    head: String,
    body: Vec<u8>,
    /// In so many pieces it came.
    pieces: usize,
}

impl Got {
    fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find_map(|(key, value)| key.eq_ignore_ascii_case(name).then_some(value))
    }

    fn error_code(&self) -> String {
        let body: Value = serde_json::from_slice(&self.body).expect("an error has a JSON body");
        body["errors"][0]["code"].as_str().expect("an error has a code").to_owned()
    }
}

/// Sends one request on a connection of its own and reads to its end; what a cut leaves is returned as it is.
async fn ask(addr: SocketAddr, method: &str, target: &str, headers: &[(&str, &str)]) -> Got {
    let mut text = format!("{method} {target} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    tokio::task::spawn_blocking(move || exchange(addr, &text)).await.expect("the exchange does not panic")
}

/// A connection on which `text` was sent.
fn sent(addr: SocketAddr, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(addr).expect("the registry listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out can be set");
    stream.write_all(text.as_bytes()).expect("the registry reads");
    stream
}

/// True if an answer stays away after `count` bytes of its body, for a while.
fn stalled(addr: SocketAddr, text: &str, count: usize) -> bool {
    let mut stream = sent(addr, text);
    let (mut answer, mut byte) = (Vec::new(), [0]);
    let is_there = |answer: &[u8]| answer.len() >= count + 4 && answer[..answer.len() - count].ends_with(b"\r\n\r\n");
    while !is_there(&answer) {
        stream.read_exact(&mut byte).expect("so much is sent");
        answer.extend_from_slice(&byte);
    }
    stream.set_read_timeout(Some(Duration::from_millis(300))).expect("a time-out can be set");
    let silent = stream.read(&mut byte).map_err(|error| error.kind());
    matches!(silent, Err(std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted))
}

/// Returns what arrived when the connection ends or nothing came for long.
fn exchange(addr: SocketAddr, text: &str) -> Got {
    let mut stream = sent(addr, text);
    let (mut answer, mut buffer, mut pieces) = (Vec::new(), [0; 4096], 0);
    loop {
        match stream.read(&mut buffer) {
            Ok(count @ 1..) => answer.extend_from_slice(&buffer[..count]),
            // A process that was stopped for a while (signal(7), "Interruption of system calls").
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Ok(_) | Err(_) => break,
        }
        pieces += 1;
    }
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("the answer has a head");
    let head = String::from_utf8(answer[..end].to_vec()).expect("a head is text");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status line");
    Got { status, head, body: answer[end + 4..].to_vec(), pieces }
}

async fn get(registry: &Registry, target: &str) -> Got {
    ask(registry.addr(), "GET", target, &[]).await
}

async fn get_range(registry: &Registry, target: &str, range: &str) -> Got {
    ask(registry.addr(), "GET", target, &[("Range", range)]).await
}

/// A registry with one image of one blob, which counts 0, 1, 2, ….
async fn counting(size: u32) -> (Registry, Descriptor, String) {
    let content = Content::new();
    let blob = content.add_blob("application/octet-stream", numbers(size));
    content.add_manifest("a/b", Some("v1"), MANIFEST, "{}");
    let registry = Registry::start(content).await.expect("a port is free");
    let target = format!("/v2/a/b/blobs/{}", blob.digest);
    (registry, blob, target)
}

fn numbers(size: u32) -> Vec<u8> {
    (0..size).map(|number| (number % 251) as u8).collect()
}

#[tokio::test]
async fn manifests_are_found_by_tag_and_by_digest() {
    let content = Content::new();
    let manifest = content.add_manifest("a/b", Some("v1"), MANIFEST, r#"{"schemaVersion":2}"#);
    let long = content.add_manifest_as(Algorithm::Sha512, "a/b", None, MANIFEST, "{}");
    let registry = Registry::start(content).await.expect("a port is free");
    let base = get(&registry, "/v2/").await;
    assert_eq!((base.status, base.header("docker-distribution-api-version")), (200, Some("registry/2.0")));
    let escaped = manifest.digest.to_string().replace(':', "%3A");
    for reference in ["v1", &manifest.digest.to_string(), &escaped] {
        for method in ["GET", "HEAD"] {
            let got = ask(registry.addr(), method, &format!("/v2/a/b/manifests/{reference}"), &[]).await;
            assert_eq!((got.status, got.header("content-type")), (200, Some(MANIFEST)), "{got:?}");
            assert_eq!(got.header("docker-content-digest"), Some(manifest.digest.to_string().as_str()));
            assert_eq!(got.header("content-length"), Some("19"));
            assert_eq!(got.body, if method == "GET" { &br#"{"schemaVersion":2}"#[..] } else { b"" });
        }
    }
    assert_eq!(get(&registry, &format!("/v2/a/b/manifests/{}", long.digest)).await.body, b"{}");
}

#[tokio::test]
async fn what_is_not_there_is_named_by_the_codes_of_the_specification() {
    let (registry, _, target) = counting(10).await;
    let unknown = Digest::sha256(b"unknown");
    for (target, status, code) in [
        ("/v2/a/b/manifests/v2", 404, "MANIFEST_UNKNOWN"),
        ("/v2/x/manifests/v1", 404, "NAME_UNKNOWN"),
        ("/v2/A/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/a___b/tags/list", 400, "NAME_INVALID"),
        ("/v2/a--b/tags/list", 404, "NAME_UNKNOWN"),
        ("/v2/a/b/blobs/sha256:abc", 400, "DIGEST_INVALID"),
        (&format!("/v2/a/b/blobs/{unknown}"), 404, "BLOB_UNKNOWN"),
        (&format!("/v2/a/b/manifests/{unknown}"), 404, "MANIFEST_UNKNOWN"),
        ("/v2/a/b/tags/list?n=x", 400, "PAGINATION_NUMBER_INVALID"),
        ("/v1/", 404, "NOT_FOUND"),
    ] {
        let got = get(&registry, target).await;
        assert_eq!((got.status, got.error_code().as_str()), (status, code), "{target}");
    }
    assert_eq!(ask(registry.addr(), "DELETE", &target, &[]).await.status, 405);
}

#[tokio::test]
async fn a_blob_is_served_whole_and_in_ranges_from_memory_and_from_a_file() {
    let size = 600_000;
    let (registry, blob, target) = counting(size).await;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("blob");
    let mut bytes = numbers(size);
    bytes.push(7);
    std::fs::write(&path, &bytes).expect("a file can be written");
    let filed = registry.content().add_blob_file("x", &path).expect("the file can be read");
    assert_eq!((filed.size, filed.digest), (u64::from(size) + 1, Digest::sha256(&bytes)));
    for (blob, target) in [(blob, target), (filed.clone(), format!("/v2/a/b/blobs/{}", filed.digest))] {
        let bytes = &bytes[..usize::try_from(blob.size).expect("small")];
        let whole = get(&registry, &target).await;
        assert_eq!((whole.status, whole.header("accept-ranges")), (200, Some("bytes")));
        assert!(whole.body == bytes, "the whole blob arrives");
        let part = get_range(&registry, &target, "bytes=262140-300000").await;
        let stated = format!("bytes 262140-300000/{}", blob.size);
        assert_eq!((part.status, part.header("content-range")), (206, Some(stated.as_str())));
        assert!(part.body == bytes[262_140..=300_000], "the range arrives");
        let beyond = get_range(&registry, &target, &format!("bytes={}-", blob.size)).await;
        let stated = format!("bytes */{}", blob.size);
        assert_eq!((beyond.status, beyond.header("content-range")), (416, Some(stated.as_str())));
        let head = ask(registry.addr(), "HEAD", &target, &[]).await;
        assert_eq!((head.status, head.header("content-length")), (200, Some(blob.size.to_string().as_str())));
        assert_eq!(head.body, b"");
    }
    registry.content().remove_blob(&filed.digest);
    assert_eq!(get(&registry, &format!("/v2/a/b/blobs/{}", filed.digest)).await.status, 404);
}

#[tokio::test]
async fn b_160_tags_are_listed_page_by_page() {
    let content = Content::new();
    for tag in ["v2", "V1", "a", "b"] {
        content.add_manifest("r", Some(tag), MANIFEST, "{}");
    }
    let registry = Registry::start(content).await.expect("a port is free");
    let (mut target, mut pages) = (Some("/v2/r/tags/list?n=3".to_owned()), Vec::new());
    while let Some(next) = target.take() {
        let got = get(&registry, &next).await;
        pages.push(serde_json::from_slice::<Value>(&got.body).expect("a JSON body")["tags"].clone());
        target = got.header("link").map(|link| {
            link.strip_prefix('<').and_then(|link| link.strip_suffix(">; rel=\"next\"")).expect("a link").to_owned()
        });
    }
    assert_eq!(pages, [json!(["a", "b", "V1"]), json!(["v2"])]);
    let none = get(&registry, "/v2/r/tags/list?n=0").await;
    assert_eq!((none.header("link"), none.body.as_slice()), (None, &br#"{"name":"r","tags":[]}"#[..]));
}

#[tokio::test]
async fn the_log_tells_what_was_asked_and_how_much_was_sent() {
    let (registry, _, target) = counting(1000).await;
    get_range(&registry, &target, "bytes=0-99").await;
    get(&registry, &target).await;
    ask(registry.addr(), "HEAD", &target, &[]).await;
    let log = registry.requests();
    let seen: Vec<_> = log
        .iter()
        .map(|record| {
            (record.request.number, record.request.attempt, record.request.range(), record.status, record.sent)
        })
        .collect();
    assert_eq!(seen, [(0, 0, Some("bytes=0-99"), 206, 100), (1, 1, None, 200, 1000), (2, 0, None, 200, 0)]);
    assert!(log.iter().all(|record| record.ended >= Some(record.arrived)), "{log:?}");
    registry.forget_requests();
    get(&registry, &target).await;
    assert_eq!(registry.requests()[0].request.number, 3);
}

#[tokio::test]
async fn faults_change_the_answer() {
    let (registry, _, target) = counting(1000).await;
    let part = "bytes=100-199";
    registry.set_faults(|request| (request.attempt == 0).then(|| Answer::new(503).header("Retry-After", "1").into()));
    let refused = get(&registry, &target).await;
    assert_eq!((refused.status, refused.header("retry-after"), refused.body.len()), (503, Some("1"), 0));
    assert_eq!(get(&registry, &target).await.status, 200, "only the first try fails");

    registry.set_faults(|_| Some(Fault::IgnoreRange));
    let whole = get_range(&registry, &target, part).await;
    assert_eq!((whole.status, whole.body.len()), (200, 1000));

    registry.set_faults(|_| Some(Fault::ContentRange(Some("bytes 0-99/1000".to_owned()))));
    let lie = get_range(&registry, &target, part).await;
    assert_eq!((lie.header("content-range"), lie.body[0]), (Some("bytes 0-99/1000"), 100));
    registry.set_faults(|_| Some(Fault::ContentRange(None)));
    let silent = get_range(&registry, &target, part).await;
    assert_eq!((silent.status, silent.header("content-range")), (206, None));

    registry.set_faults(|_| Some(Fault::OtherRange(5..8)));
    let other = get_range(&registry, &target, part).await;
    assert_eq!((other.header("content-range"), other.body.as_slice()), (Some("bytes 5-7/1000"), &[5, 6, 7][..]));

    registry.set_faults(|_| Some(Fault::Corrupt { offset: 150 }));
    let wrong = get_range(&registry, &target, part).await;
    let places: Vec<usize> = (0..100).filter(|place| usize::from(wrong.body[*place]) != place + 100).collect();
    assert_eq!(places, [50]);

    registry.set_faults(|_| Some(Fault::header("Content-Encoding", "gzip")));
    assert_eq!(get(&registry, &target).await.header("content-encoding"), Some("gzip"));
    registry.set_faults(|_| Some(Fault::NoLength));
    let chunked = get_range(&registry, &target, part).await;
    assert_eq!((chunked.header("content-length"), chunked.header("transfer-encoding")), (None, Some("chunked")));
    registry.set_faults(|_| Some(Fault::SecondHeader(CONTENT_RANGE, HeaderValue::from_static("bytes 0-0/1"))));
    let twice = get_range(&registry, &target, part).await;
    assert_eq!(twice.head.to_ascii_lowercase().matches("content-range:").count(), 2);

    registry.set_faults(|_| Some(Fault::redirect("http://127.0.0.1:1/elsewhere")));
    let away = get(&registry, &target).await;
    assert_eq!((away.status, away.header("location")), (307, Some("http://127.0.0.1:1/elsewhere")));
}

#[tokio::test]
async fn faults_change_how_the_bytes_go_out() {
    let (registry, _, target) = counting(1000).await;
    registry.set_faults(|_| Some(Fault::Truncate { after: 700 }));
    let short = get(&registry, &target).await;
    assert_eq!((short.header("content-length"), short.body.len()), (Some("1000"), 700));
    registry.set_faults(|_| Some(Fault::Truncate { after: 1000 }));
    assert_eq!(get(&registry, &target).await.body.len(), 1000);

    registry.set_faults(|_| Some(Fault::Stall { after: 10 }));
    let (addr, text) = (registry.addr(), format!("GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
    let stalled = tokio::task::spawn_blocking(move || stalled(addr, &text, 10)).await.expect("no panic");
    assert!(stalled, "nothing more comes, and the connection stays");

    registry.set_faults(|_| {
        let delay = Fault::Delay(Duration::from_millis(60));
        let drip = Fault::Drip { bytes: 300, every: Duration::from_millis(20) };
        Some(Fault::Many(vec![delay, Fault::Many(vec![drip])]))
    });
    let started = Instant::now();
    assert_eq!(get(&registry, &target).await.body.len(), 1000);
    assert!(started.elapsed() >= Duration::from_millis(140), "one delay and four pauses");

    // A head of about 200 bytes in pieces of 20, with a body that does not wait.
    registry.set_faults(|_| Some(Fault::DripHead { bytes: 20, every: Duration::from_millis(20) }));
    let started = Instant::now();
    let slow = get(&registry, &target).await;
    let pauses = u32::try_from(slow.head.len() / 20).expect("a short head");
    assert_eq!((slow.status, slow.body.len()), (200, 1000));
    assert!(pauses > 5 && started.elapsed() >= Duration::from_millis(20) * pauses, "{:?}", started.elapsed());
    assert!(slow.pieces < pauses as usize + 20, "the body does not drip: {} pieces", slow.pieces);

    registry.set_faults(|_| Some(Fault::Reset { after: 10 }));
    let addr = registry.addr();
    let kind = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(addr).expect("the registry listens");
        stream.write_all(format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).expect("the registry reads");
        std::io::copy(&mut stream, &mut std::io::sink()).map_err(|error| error.kind())
    });
    assert_eq!(kind.await.expect("no panic"), Err(std::io::ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn b_112_bearer_tokens_are_demanded_issued_and_expire() {
    let (registry, _, target) = counting(10).await;
    let credentials = Some(Credentials::new("user", "pass"));
    let bearer = Bearer { credentials, stated: Some(3600), ..Bearer::default() };
    let short = Bearer { lifetime: Duration::ZERO, ..bearer.clone() };
    registry.set_faults(move |_| Some(Fault::Bearer(bearer.clone())));
    let refused = get(&registry, &target).await;
    let realm = format!("http://{}/token", registry.addr());
    let challenge = format!("Bearer realm=\"{realm}\",service=\"ocifs-demo\",scope=\"repository:a/b:pull\"");
    assert_eq!((refused.status, refused.header("www-authenticate")), (401, Some(challenge.as_str())));
    assert_eq!(get(&registry, "/token?scope=repository:a/b:pull").await.status, 401);

    let basic = [("Authorization", "Basic dXNlcjpwYXNz")];
    let token = |scope: &'static str| {
        let addr = registry.addr();
        async move {
            let got = ask(addr, "GET", &format!("/token?service=ocifs-demo&scope={scope}"), &basic).await;
            let body: Value = serde_json::from_slice(&got.body).expect("a JSON body");
            assert_eq!(body["expires_in"], 3600);
            format!("Bearer {}", body["token"].as_str().expect("a token"))
        }
    };
    let (good, other) = (token("repository:a/b:pull").await, token("repository:c:pull").await);
    let with = |token: String| {
        let (addr, target) = (registry.addr(), target.clone());
        async move { ask(addr, "GET", &target, &[("Authorization", &token)]).await }
    };
    assert_eq!(with(good.clone()).await.status, 200);
    let error =
        |got: &Got| got.header("www-authenticate").and_then(|text| Some(text.split_once("error=")?.1.to_owned()));
    assert_eq!(error(&with(other).await).as_deref(), Some("\"insufficient_scope\""));
    registry.revoke_tokens();
    assert_eq!(error(&with(good).await).as_deref(), Some("\"invalid_token\""));
    registry.set_faults(move |_| Some(Fault::Bearer(short.clone())));
    let expired = token("repository:a/b:pull").await;
    assert_eq!(error(&with(expired).await).as_deref(), Some("\"invalid_token\""));
}

#[tokio::test]
async fn b_115_a_refresh_token_is_taken_by_post_and_basic_is_checked() {
    let (registry, _, target) = counting(10).await;
    let credentials = Credentials::new("user", "pa:ss");
    registry.set_faults({
        let credentials = credentials.clone();
        move |_| Some(Fault::Bearer(Bearer { credentials: Some(credentials.clone()), ..Bearer::default() }))
    });
    for (password, status) in [("pa%3Ass", 200), ("wrong", 401)] {
        let form = format!("grant_type=refresh_token&refresh_token={password}&scope=repository%3Aa%2Fb%3Apull");
        let text = format!(
            "POST /token HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{form}",
            form.len()
        );
        let addr = registry.addr();
        let got = tokio::task::spawn_blocking(move || exchange(addr, &text)).await.expect("no panic");
        assert_eq!(got.status, status, "{got:?}");
    }
    registry.set_faults(move |_| Some(Fault::Basic(credentials.clone())));
    assert_eq!(get(&registry, &target).await.status, 401);
    let header = [("Authorization", "basic dXNlcjpwYTpzcw==")];
    assert_eq!(ask(registry.addr(), "GET", &target, &header).await.status, 200);
}

#[tokio::test]
async fn a_dropped_registry_frees_its_port_and_cuts_stalled_answers() {
    let (registry, _, target) = counting(1000).await;
    registry.set_faults(|_| Some(Fault::Stall { after: 1 }));
    let addr = registry.addr();
    let text = format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
    let mut stalled = TcpStream::connect(addr).expect("the registry listens");
    stalled.write_all(text.as_bytes()).expect("the registry reads");
    let deadline = Instant::now() + PATIENCE;
    while registry.requests().first().is_none_or(|record| record.sent == 0) {
        assert!(Instant::now() < deadline, "the answer does not begin");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let content = registry.content().clone();
    registry.stop().await;
    assert!(TcpStream::connect(addr).is_err(), "nobody listens any more");
    let left = tokio::task::spawn_blocking(move || stalled.read_to_end(&mut Vec::new()));
    tokio::time::timeout(PATIENCE, left).await.expect("the connection is closed").expect("no panic").ok();
    let again = Registry::start_at(addr, content).await.expect("the port is free");
    assert_eq!(get(&again, &target).await.status, 200);
    let everywhere = "0.0.0.0:0".parse().expect("an address");
    assert!(Registry::start_at(everywhere, Content::new()).await.is_err(), "only loopback");
}

/// True if the program is here; a machine that runs the whole test suite (`CI` is set) must have it.
fn present(program: &str) -> bool {
    let here = Command::new(program).arg("--version").output().is_ok();
    assert!(here || std::env::var_os("CI").is_none(), "{program} is missing");
    if !here {
        eprintln!("SKIPPED: {program} is missing");
    }
    here
}

#[tokio::test]
async fn curl_gets_ranges_and_follows_redirects() {
    if !present("curl") {
        return;
    }
    let (far, _, target) = counting(300_000).await;
    let near = Registry::start(far.content().clone()).await.expect("a port is free");
    let place = format!("http://{}{target}", far.addr());
    near.set_faults(move |request| request.is_blob().then(|| Fault::redirect(place.clone())));
    let curl = |range: &'static str| {
        let url = format!("http://{}{target}", near.addr());
        tokio::task::spawn_blocking(move || {
            Command::new("curl").args(["-sSfL", "--noproxy", "*", "-r", range, &url]).output()
        })
    };
    let part = curl("1000-200999").await.expect("no panic").expect("curl runs");
    assert!(part.status.success() && part.stdout == numbers(300_000)[1000..=200_999], "{:?}", part.stderr);
    let beyond = curl("300000-").await.expect("no panic").expect("curl runs");
    assert_eq!(beyond.status.code(), Some(22), "curl fails on 416");
}

#[tokio::test]
async fn skopeo_copies_an_image_byte_for_byte() {
    if !present("skopeo") {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let content = Content::new();
    let image = crate::demo::image::Options { large_bytes: 2 << 20, ..Default::default() };
    let image = crate::demo::image::build(&content, "demo/image", "latest", &image).expect("the host has a shell");
    let registry = Registry::start(content).await.expect("a port is free");
    registry.set_faults(|_| Some(Fault::Bearer(Bearer::default())));
    let (from, to) =
        (format!("docker://{}/demo/image:latest", registry.addr()), format!("dir:{}", dir.path().display()));
    let copy = tokio::process::Command::new("skopeo")
        .args(["--insecure-policy", "copy", "--src-tls-verify=false", &from, &to])
        .output()
        .await
        .expect("skopeo runs");
    assert!(copy.status.success(), "{}", String::from_utf8_lossy(&copy.stderr));
    let read = |name: String| std::fs::read(dir.path().join(name)).expect("skopeo wrote it");
    assert!(image.manifest.digest.matches(&read("manifest.json".to_owned())));
    for blob in image.layers.iter().chain([&image.config]) {
        let bytes = read(blob.digest.hex());
        assert_eq!((bytes.len() as u64, blob.digest.matches(&bytes)), (blob.size, true));
    }
}

#[tokio::test]
async fn skopeo_pushes_an_image_byte_for_byte() {
    if !present("skopeo") {
        return;
    }
    let content = Content::new();
    let layer = content.add_blob("application/vnd.oci.image.layer.v1.tar", numbers(100_000));
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": { "type": "layers", "diff_ids": [layer.digest.to_string()] },
    });
    let config = content.add_blob("application/vnd.oci.image.config.v1+json", config.to_string());
    let described = |blob: &Descriptor| json!({ "mediaType": blob.media_type, "digest": blob.digest.to_string(), "size": blob.size });
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": described(&config), "layers": [described(&layer)],
    });
    let manifest = content.add_manifest("a/b", Some("v1"), MANIFEST, manifest.to_string());
    let from = Registry::start(content).await.expect("a port is free");
    let to = Registry::start(Content::new()).await.expect("a port is free");
    let mut command = Command::new("skopeo");
    command
        .args(["--insecure-policy", "copy", "--quiet", "--preserve-digests", "--src-tls-verify=false"])
        .arg("--dest-tls-verify=false")
        .args([format!("docker://{}/a/b:v1", from.addr()), format!("docker://{}/c:v2", to.addr())]);
    let output = tokio::task::spawn_blocking(move || command.output()).await.expect("no panic").expect("skopeo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let got = get(&to, "/v2/c/manifests/v2").await;
    assert_eq!((got.status, Digest::sha256(&got.body)), (200, manifest.digest));
    assert_eq!(get(&to, &format!("/v2/c/blobs/{}", layer.digest)).await.body, numbers(100_000));
}
