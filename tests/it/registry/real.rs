//! The client against Debian's docker-registry, with an image pushed by skopeo.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ocifs::oci::Digest;
use ocifs::registry::{Options, Selector};
use ocifs::source::{ErrorKind, Source};
use serde_json::Value;

use super::scripted::{Reply, Server};
use super::{client, descriptor, noise, quick, read, shown};

/// `me` with password `correct horse`, as htpasswd -B writes it.
const HTPASSWD: &str = "me:$2b$05$abcdefghijklmnopqrstuuHNbAKRhpaujgo33bRWs.NLUTJO3lOy2\n";

/// What the registry demands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Open,
    Passwords,
    Tls,
}

/// A registry process; it ends with the value.
struct Registry {
    child: Child,
    host: String,
    directory: tempfile::TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended by itself, and then there is nothing to do.
        self.child.kill().and_then(|()| self.child.wait()).map(drop).unwrap_or_default();
    }
}

/// True if the tools are here. Where they must be, their absence fails the test.
fn tools() -> bool {
    let missing: Vec<_> = ["docker-registry", "skopeo"]
        .into_iter()
        .filter(|tool| {
            Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err()
        })
        .collect();
    let required = std::env::var_os("CI").is_some_and(|value| value == "true");
    assert!(missing.is_empty() || !required, "CI needs {missing:?}");
    if !missing.is_empty() {
        eprintln!("SKIPPED: the registry is not tested against a real one, because {missing:?} cannot be run");
    }
    missing.is_empty()
}

impl Registry {
    fn start(kind: Kind) -> Self {
        // Another process may take the free port first; then the registry ends at once and another port is tried.
        for _ in 0..5 {
            let directory = tempfile::tempdir().expect("a temporary directory");
            let port =
                TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
            let child = spawn(directory.path(), port, kind);
            let mut registry = Self { child, host: format!("127.0.0.1:{port}"), directory };
            if registry.answers() {
                return registry;
            }
        }
        panic!("docker-registry does not start");
    }

    fn answers(&mut self) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(60) {
            if self.child.try_wait().expect("it is our process").is_some() {
                return false;
            }
            if std::net::TcpStream::connect(&self.host).is_ok() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        false
    }

    /// Pushes an image of one layer and returns its manifest, its config and the layer.
    fn push(&self, login: &[&str]) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
        let layout = self.directory.path().join("layout");
        let image = write_layout(&layout);
        let mut skopeo = Command::new("skopeo");
        skopeo
            .args(["--insecure-policy", "copy", "--quiet", "--preserve-digests", "--dest-tls-verify=false"])
            .args(login);
        skopeo.arg(format!("oci:{}:v1", layout.display())).arg(format!("docker://{}/team/app:v1", self.host));
        assert!(skopeo.status().expect("skopeo runs").success());
        image
    }
}

fn spawn(directory: &Path, port: u16, kind: Kind) -> Child {
    let mut config = format!(
        "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
         http:\n  addr: 127.0.0.1:{port}\n",
        directory.join("data").display()
    );
    if kind == Kind::Passwords {
        let path = directory.join("htpasswd");
        std::fs::write(&path, HTPASSWD).expect("the directory is writable");
        config.push_str(&format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", path.display()));
    }
    if kind == Kind::Tls {
        let (key, certificate) = (directory.join("key.pem"), directory.join("cert.pem"));
        config.push_str(&format!("  tls:\n    certificate: {}\n    key: {}\n", certificate.display(), key.display()));
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
        openssl.args(["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout"]).arg(key).arg("-out");
        openssl.arg(certificate).stderr(Stdio::null());
        assert!(openssl.status().expect("openssl was found a moment ago").success());
    }
    let path = directory.join("config.yml");
    std::fs::write(&path, config).expect("the directory is writable");
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().expect("docker-registry was found a moment ago")
}

/// Writes an image layout; the layer is not a real one, which no registry looks at.
fn write_layout(layout: &Path) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let blobs = layout.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).expect("the directory is writable");
    let store = |bytes: &[u8]| {
        std::fs::write(blobs.join(Digest::sha256(bytes).hex()), bytes).expect("the directory is writable");
        format!(r#""digest":"{}","size":{}"#, Digest::sha256(bytes), bytes.len())
    };
    let layer = noise(300_000);
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
        Digest::sha256(&layer)
    );
    let typed =
        |kind: &str, bytes: &[u8]| format!(r#"{{"mediaType":"application/vnd.oci.image.{kind}",{}"#, store(bytes));
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{}}},"layers":[{}}}]}}"#,
        typed("config.v1+json", config.as_bytes()),
        typed("layer.v1.tar", &layer)
    );
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{},"annotations":{{"org.opencontainers.image.ref.name":"v1"}}}}]}}"#,
        typed("manifest.v1+json", manifest.as_bytes())
    );
    std::fs::write(layout.join("index.json"), index).expect("the directory is writable");
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("the directory is writable");
    (manifest.into_bytes(), config.into_bytes(), layer)
}

fn login(directory: &Path, host: &str) -> PathBuf {
    let path = directory.join("auth.json");
    let json = format!(r#"{{"auths":{{"{host}":{{"username":"me","password":"correct horse"}}}}}}"#);
    std::fs::write(&path, json).expect("the directory is writable");
    path
}

#[tokio::test]
async fn an_image_pushed_by_skopeo_is_read_from_a_real_registry() {
    if !tools() {
        return;
    }
    let registry = Registry::start(Kind::Open);
    let (manifest, config, layer) = registry.push(&[]);
    let client = client(quick());
    let tagged = client.repository(&registry.host, "team/app", Selector::Tag("v1".to_owned()));
    assert_eq!(tagged.name(), format!("{}/team/app", registry.host));
    let document = tagged.resolve().await.unwrap_or_else(|error| panic!("{}", shown(&error)));
    assert_eq!(document.bytes, manifest);
    assert_eq!(document.media_type, "application/vnd.oci.image.manifest.v1+json");
    let value: Value = serde_json::from_slice(&document.bytes).expect("JSON");
    assert_eq!(value["config"]["size"], config.len());

    let pinned = client.repository(&registry.host, "team/app", Selector::Digest(Digest::sha256(&manifest)));
    assert_eq!(pinned.resolve().await.expect("by digest").bytes, manifest);
    assert_eq!(pinned.manifest(&descriptor(&manifest)).await.expect("by descriptor").bytes, manifest);

    let blob = pinned.blob(&descriptor(&layer));
    let size = layer.len() as u64;
    for range in [0..size, 0..1, size - 1..size, 1000..200_000, 7..7] {
        let bytes = read(&blob, range.clone()).await.unwrap_or_else(|error| panic!("{}", shown(&error)));
        assert_eq!(bytes, layer[range.start as usize..range.end as usize], "{range:?}");
    }
    assert!(pinned.serves_ranges());

    let error = pinned.blob(&descriptor(b"never pushed")).read(0..5).await.err().expect("no such blob");
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn unknown_tags_and_repositories_of_a_real_registry_are_told_apart() {
    if !tools() {
        return;
    }
    let registry = Registry::start(Kind::Open);
    registry.push(&[]);
    let client = client(quick());
    let resolve = async |repository: &str, selector: Selector| {
        client.repository(&registry.host, repository, selector).resolve().await.expect_err("there is none")
    };
    let error = resolve("team/app", Selector::Tag("v2".to_owned())).await;
    assert_eq!((error.kind(), error.advice()), (ErrorKind::NotFound, Some("tags that exist: v1")), "{}", shown(&error));
    assert!(error.to_string().contains("team/app has no tag v2"), "{error}");
    let error = resolve("team/nothing", Selector::Tag("v1".to_owned())).await;
    assert!(error.to_string().contains("has no repository team/nothing"), "{}", shown(&error));
    let error = resolve("team/app", Selector::Digest(Digest::sha256(b"x"))).await;
    assert!(error.to_string().contains("team/app has no manifest sha256:"), "{}", shown(&error));
}

#[tokio::test]
async fn a_real_registry_with_passwords_lets_in_who_is_on_file() {
    if !tools() {
        return;
    }
    let registry = Registry::start(Kind::Passwords);
    let (manifest, _, layer) = registry.push(&["--dest-creds", "me:correct horse"]);
    let open = |auth_files| {
        let client = client(Options { auth_files, ..quick() });
        client.repository(&registry.host, "team/app", Selector::Tag("v1".to_owned()))
    };
    let error = open(Vec::new()).resolve().await.expect_err("a login is needed");
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(error.advice().is_some_and(|advice| advice.contains("podman login")), "{}", shown(&error));

    let known = open(vec![login(registry.directory.path(), &registry.host)]);
    assert_eq!(known.resolve().await.expect("logged in").bytes, manifest);
    assert_eq!(read(&known.blob(&descriptor(&layer)), 5..50).await.expect("logged in"), layer[5..50]);
}

#[tokio::test]
async fn b_141_tls_of_a_registry_on_this_machine_is_found_and_its_certificate_not_demanded() {
    if !tools() {
        return;
    }
    let registry = Registry::start(Kind::Tls);
    let (manifest, _, layer) = registry.push(&[]);
    let repository = client(quick()).repository(&registry.host, "team/app", Selector::Tag("v1".to_owned()));
    let document = repository.resolve().await.unwrap_or_else(|error| panic!("{}", shown(&error)));
    assert_eq!(document.bytes, manifest);
    assert_eq!(read(&repository.blob(&descriptor(&layer)), 5..50).await.expect("served"), layer[5..50]);

    // Elsewhere, and so also after a redirect, certificates count.
    let target = format!("https://{}/v2/", registry.host);
    let other = Server::start(move |_, _| Reply::redirect(target.clone())).await;
    let repository = client(quick()).repository(&other.host(), "team/app", Selector::Tag("v1".to_owned()));
    let error = repository.resolve().await.expect_err("nobody vouches for it");
    let text = shown(&error);
    let no_certificates_here = text.contains("is not possible here");
    assert!(no_certificates_here || text.contains("its TLS certificate is not trusted"), "{text}");
}
