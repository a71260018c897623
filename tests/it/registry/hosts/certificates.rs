//! TLS with an authority of the user's own and a client certificate, against the server that comes with OpenSSL.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ocifs::registry::{Options, Selector};
use ocifs::source::Source;

use super::{Files, MANIFEST};
use crate::registry::{client, shown};

/// An authority, a server's certificate and a client's, in a directory.
struct Keys {
    dir: tempfile::TempDir,
}

impl Keys {
    fn new() -> Self {
        let keys = Self { dir: tempfile::tempdir().expect("a directory") };
        std::fs::write(keys.dir.path().join("req.cnf"), "[req]\ndistinguished_name = dn\n[dn]\n").expect("a file");
        keys.certificate("ca", &["-addext", "basicConstraints=critical,CA:TRUE"]);
        for name in ["localhost", "client"] {
            let alias = format!("subjectAltName=DNS:{name}");
            keys.certificate(name, &["-CA", "ca.crt", "-CAkey", "ca.key", "-addext", &alias]);
        }
        keys
    }

    /// Makes `NAME.crt` and `NAME.key`.
    fn certificate(&self, name: &str, more: &[&str]) {
        let (key, certificate, subject) = (format!("{name}.key"), format!("{name}.crt"), format!("/CN={name}"));
        let own = ["req", "-config", "req.cnf", "-x509", "-keyout", &key, "-out", &certificate, "-subj", &subject];
        let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"];
        self.openssl(&[&own[..], &curve, more].concat());
    }

    fn openssl(&self, arguments: &[&str]) {
        let output = Command::new("openssl").args(arguments).current_dir(self.dir.path()).output();
        let output = output.expect("openssl is installed");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).expect("a file")
    }
}

/// A registry that has one manifest and speaks to clients with a certificate only; it ends with the value.
struct TlsRegistry {
    server: Child,
    port: u16,
}

impl TlsRegistry {
    async fn start(keys: &Keys) -> Self {
        let content = keys.dir.path().join("v2/team/app/manifests");
        std::fs::create_dir_all(&content).expect("a directory");
        let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", MANIFEST.len());
        // To this server the query is a part of the name.
        for name in ["v1", "v1?ns=r.example"] {
            std::fs::write(content.join(name), format!("{head}{MANIFEST}")).expect("a file");
        }
        // Another process may take a free port first; then the server ends at once and another is tried.
        for _ in 0..5 {
            let port = free_port();
            let accept = format!("127.0.0.1:{port}");
            let mut server = Command::new("openssl");
            server.args(["s_server", "-accept", &accept, "-HTTP", "-cert", "localhost.crt", "-key", "localhost.key"]);
            server.args(["-CAfile", "ca.crt", "-Verify", "1", "-verify_return_error", "-quiet"]);
            server.current_dir(keys.dir.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let mut registry = Self { server: server.spawn().expect("openssl is installed"), port };
            if registry.listens().await {
                return registry;
            }
        }
        panic!("the server does not start");
    }

    async fn listens(&mut self) -> bool {
        let begun = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            if self.server.try_wait().expect("it is our process").is_some() {
                return false;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "the server does not listen after a minute");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        true
    }

    fn host(&self) -> String {
        format!("localhost:{}", self.port)
    }
}

impl Drop for TlsRegistry {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.server.kill().ok();
        self.server.wait().ok();
    }
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
    listener.local_addr().expect("a bound socket has an address").port()
}

async fn resolve(files: &Files, host: &str) -> Result<(), String> {
    let options = Options { attempts: 1, ..files.options() };
    let repository = client(options).find(host, "team/app", Selector::Tag("v1".to_owned())).await;
    let repository = repository.map_err(|error| shown(&error))?;
    let document = repository.resolve().await.map_err(|error| shown(&error))?;
    assert_eq!(document.bytes, MANIFEST);
    Ok(())
}

#[tokio::test]
async fn b_143_a_registry_behind_an_own_authority_that_wants_client_certificates_is_reached_with_certs_d() {
    let keys = Keys::new();
    let registry = TlsRegistry::start(&keys).await;
    let host = registry.host();
    let name = |file: &str| format!("certs.d/{host}/{file}");
    let files = Files::new();
    files.write(&name("ca.crt"), &keys.read("ca.crt"));
    let error = resolve(&files, &host).await.expect_err("it wants to know its clients");
    assert!(error.contains("cannot reach"), "{error}");
    files.write(&name("client.cert"), &keys.read("client.crt")).write(&name("client.key"), &keys.read("client.key"));
    resolve(&files, &host).await.expect("the certificates fit");
    let stranger = Keys::new();
    files.write(&name("ca.crt"), &stranger.read("ca.crt"));
    let error = resolve(&files, &host).await.expect_err("somebody else's authority");
    assert!(error.contains("certificate is not trusted") && error.contains("certs.d"), "{error}");
}

#[tokio::test]
async fn b_144_a_hosts_toml_names_certificates_relative_to_itself() {
    let keys = Keys::new();
    let registry = TlsRegistry::start(&keys).await;
    let host = registry.host();
    let both = keys.read("client.crt") + &keys.read("client.key");
    let files = Files::new();
    let text = format!("server = 'https://{host}'\nca = 'own.pem'\nclient = 'both.pem'\n");
    files.write("tree/r.example/hosts.toml", &text);
    files.write("tree/r.example/own.pem", &keys.read("ca.crt")).write("tree/r.example/both.pem", &both);
    resolve(&files, "r.example").await.expect("the certificates fit");
    let missing = files.path().join("tree/r.example/own.pem");
    remove(&missing);
    let error = resolve(&files, "r.example").await.expect_err("a file is gone");
    assert!(error.contains(&format!("cannot read the certificates in {}", missing.display())), "{error}");
}

fn remove(path: &Path) {
    std::fs::remove_file(path).expect("a file");
}
