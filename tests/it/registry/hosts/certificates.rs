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

    /// Makes `NAME.crt`, a certificate of localhost that signed itself and calls itself an authority, and `NAME.key`.
    fn own_authority(&self, name: &str) {
        let (authority, alias) = ("basicConstraints=critical,CA:TRUE", "subjectAltName=DNS:localhost");
        self.certificate(name, &["-subj", "/CN=localhost", "-addext", authority, "-addext", alias]);
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).expect("a file")
    }
}

/// A registry that has one manifest; it ends with the value.
struct TlsRegistry {
    server: Child,
    port: u16,
}

impl TlsRegistry {
    /// It wants to know its clients.
    async fn start(keys: &Keys) -> Self {
        let clients = ["-CAfile", "ca.crt", "-Verify", "1", "-verify_return_error"];
        Self::showing(keys, "localhost", &clients).await
    }

    /// Shows the certificate `shown`, with `more` arguments for the server.
    async fn showing(keys: &Keys, shown: &str, more: &[&str]) -> Self {
        let content = keys.dir.path().join("v2/team/app/manifests");
        std::fs::create_dir_all(&content).expect("a directory");
        let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", MANIFEST.len());
        // To this server the query is a part of the name.
        for name in ["v1", "v1?ns=r.example"] {
            std::fs::write(content.join(name), format!("{head}{MANIFEST}")).expect("a file");
        }
        let (certificate, key) = (format!("{shown}.crt"), format!("{shown}.key"));
        // Another process may take a free port first; then the server ends at once and another is tried.
        for _ in 0..5 {
            let port = free_port();
            let accept = format!("127.0.0.1:{port}");
            let mut server = Command::new("openssl");
            server.args(["s_server", "-accept", &accept, "-HTTP", "-cert", &certificate, "-key", &key]).args(more);
            server.arg("-quiet");
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

#[tokio::test]
async fn b_143_a_certificate_that_signed_itself_is_believed_where_it_is_filed_and_nothing_like_it_is() {
    let keys = Keys::new();
    keys.own_authority("own");
    keys.own_authority("alike");
    let registry = TlsRegistry::showing(&keys, "own", &[]).await;
    let host = registry.host();
    let files = Files::new();
    let filed = format!("certs.d/{host}/ca.crt");
    files.write(&filed, &keys.read("alike.crt"));
    let error = resolve(&files, &host).await.expect_err("of the same name by another key");
    assert!(error.contains("certificate is not trusted"), "{error}");
    files.write(&filed, &(keys.read("alike.crt") + &keys.read("own.crt")));
    resolve(&files, &host).await.expect("it is one of those filed");

    let other_name = format!("127.0.0.1:{}", registry.port);
    files.write(&format!("certs.d/{other_name}/ca.crt"), &keys.read("own.crt"));
    let error = resolve(&files, &other_name).await.expect_err("it is not the certificate of that name");
    assert!(error.contains("certificate is not trusted"), "{error}");

    let text = format!("server = 'https://{host}'\nca = 'own.pem'\n");
    files.write("tree/r.example/hosts.toml", &text).write("tree/r.example/own.pem", &keys.read("own.crt"));
    resolve(&files, "r.example").await.expect("a hosts.toml files it too");
}

#[tokio::test]
async fn b_143_a_certificate_that_signed_itself_is_not_believed_for_what_it_is_not_made() {
    let keys = Keys::new();
    let (authority, alias) = ("basicConstraints=critical,CA:TRUE", "subjectAltName=DNS:localhost");
    for (name, usage, is_believed) in [
        ("server", "extendedKeyUsage=clientAuth,serverAuth", true),
        ("any", "extendedKeyUsage=anyExtendedKeyUsage", true),
        ("other", "extendedKeyUsage=critical,clientAuth,codeSigning", false),
    ] {
        let extensions = ["-addext", authority, "-addext", alias, "-addext", usage];
        keys.certificate(name, &[&["-subj", "/CN=localhost"][..], &extensions].concat());
        let registry = TlsRegistry::showing(&keys, name, &[]).await;
        let files = Files::new();
        files.write(&format!("certs.d/{}/ca.crt", registry.host()), &keys.read(&format!("{name}.crt")));
        let resolved = resolve(&files, &registry.host()).await;
        assert_eq!(resolved.is_ok(), is_believed, "{name}: {resolved:?}");
        let error = resolved.err().unwrap_or_default();
        assert!(is_believed || error.contains("certificate is not trusted"), "{error}");
    }
}

#[tokio::test]
async fn b_143_a_certificate_that_signed_itself_is_not_believed_after_its_time() {
    let keys = Keys::new();
    keys.own_authority("own");
    keys.openssl(&["x509", "-in", "own.crt", "-signkey", "own.key", "-days", "-1", "-out", "past.crt"]);
    std::fs::copy(keys.dir.path().join("own.key"), keys.dir.path().join("past.key")).expect("a file");
    let registry = TlsRegistry::showing(&keys, "past", &[]).await;
    let files = Files::new();
    files.write(&format!("certs.d/{}/ca.crt", registry.host()), &keys.read("past.crt"));
    let error = resolve(&files, &registry.host()).await.expect_err("it has expired");
    assert!(error.contains("certificate is not trusted") && error.contains("xpired"), "{error}");
}

#[tokio::test]
async fn b_143_a_client_certificate_is_shown_to_a_registry_whose_certificate_signed_itself() {
    let keys = Keys::new();
    keys.own_authority("own");
    let clients = ["-CAfile", "ca.crt", "-Verify", "1", "-verify_return_error"];
    let registry = TlsRegistry::showing(&keys, "own", &clients).await;
    let host = registry.host();
    let name = |file: &str| format!("certs.d/{host}/{file}");
    let files = Files::new();
    files.write(&name("ca.crt"), &keys.read("own.crt"));
    let error = resolve(&files, &host).await.expect_err("it wants to know its clients");
    assert!(error.contains("cannot reach"), "{error}");
    files.write(&name("client.cert"), &keys.read("client.crt")).write(&name("client.key"), &keys.read("client.key"));
    resolve(&files, &host).await.expect("the certificates fit");
}

fn remove(path: &Path) {
    std::fs::remove_file(path).expect("a file");
}
