//! Hosts as the user's files describe them: client certificates, and a real cache in front of a registry.

use std::fs;
use std::path::Path;

use super::certificates::Authority;
use super::machine::{Machine, NAME as HOST};
use super::servers::Server;
use super::{NAME, Shown, ready};
use crate::support::DockerRegistry;

/// nginx that wants certificates of `clients` and passes everything on to `registry`.
fn front(servers: &Authority, clients: &Authority, registry: &DockerRegistry) -> Server {
    let certified = servers.certify(HOST);
    Server::nginx(1, |ports, _| {
        format!(
            "server {{ listen 127.0.0.1:{} ssl; ssl_certificate {}; ssl_certificate_key {};\n\
             ssl_verify_client on; ssl_client_certificate {};\n\
             location / {{ proxy_pass http://{}; }} }}",
            ports[0],
            certified.certificate.display(),
            certified.key.display(),
            clients.certificate().display(),
            registry.addr()
        )
    })
}

#[test]
fn b_143_a_registry_that_knows_its_clients_is_shown_the_certificate_filed_for_it() {
    if !ready(&["nginx", "openssl", "unshare"]) {
        return;
    }
    let shown = Shown::new();
    let registry = shown.registry();
    let (servers, clients) = (Authority::new(), Authority::new());
    let front = front(&servers, &clients, &registry);
    let place = format!("{HOST}:{}", front.port(0));
    let reference = format!("{place}/{NAME}");
    let machine = Machine::new();
    let filed = machine.ocifs.home().join(".config/containers/certs.d").join(&place);
    fs::create_dir_all(&filed).expect("a directory");
    let copy = |from: &Path, name: &str| {
        fs::copy(from, filed.join(name)).expect("a file");
    };
    copy(&servers.certificate(), "ca.crt");

    let refused = machine.mount(&[], &reference);
    assert!(refused.code() != 0 && refused.stderr.contains("400"), "{}", refused.stderr);

    let client = clients.certify("client");
    copy(&client.certificate, "client.cert");
    copy(&client.key, "client.key");
    machine.mount(&[], &reference).ok();
    shown.assert_shown(&machine.root());
    machine.mount_lazily(&[], &reference).ok();
    shown.assert_shown(&machine.root());
}

#[test]
fn b_144_b_147_a_pull_through_cache_is_a_mirror_and_the_registry_serves_when_it_is_gone() {
    if !ready(&["nginx", "unshare"]) {
        return;
    }
    let shown = Shown::new();
    let registry = shown.registry();
    let front = Server::nginx(1, |ports, _| {
        format!("server {{ listen 127.0.0.1:{}; location / {{ proxy_pass http://{}; }} }}", ports[0], registry.addr())
    });
    let cache = DockerRegistry::start_with(&format!("proxy: {{remoteurl: 'http://{}'}}", registry.addr()));
    let cache = cache.expect("the test asked whether it is here");
    let place = format!("{HOST}:{}", front.port(0));
    let reference = format!("{place}/{NAME}");
    let machine = Machine::new();
    let tree = machine.ocifs.home().join("hosts.d");
    fs::create_dir_all(tree.join(&place)).expect("a directory");
    let text = format!(
        "server = \"http://{place}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
        cache.addr()
    );
    fs::write(tree.join(&place).join("hosts.toml"), text).expect("a file");
    let tree = tree.to_string_lossy().into_owned();
    let options = ["--hosts-dir", &tree];
    machine.mount(&options, &reference).ok();
    shown.assert_shown(&machine.root());
    assert!(!front.log().contains("/blobs/"), "the mirror had everything: {}", front.log());

    drop(cache);
    machine.mount_lazily(&options, &reference).ok();
    shown.assert_shown(&machine.root());
    assert!(front.log().contains("/blobs/"), "{}", front.log());
}
