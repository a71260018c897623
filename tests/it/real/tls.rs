//! nginx with TLS in front of docker-registry: an authority that only the user knows, and one that knows its clients.

use super::certificates::Authority;
use super::machine::{Machine, NAME as HOST};
use super::servers::Server;
use super::{NAME, Shown, ready};

/// nginx that speaks TLS as `name` and passes everything on to `registry`.
fn front(authority: &Authority, name: &str, registry: &str, more: &str) -> Server {
    let certified = authority.certify(name);
    Server::nginx(1, |ports, _| {
        format!(
            "server {{ listen 127.0.0.1:{} ssl; ssl_certificate {}; ssl_certificate_key {}; {more}\n\
             location / {{ proxy_pass http://{registry}; }} }}",
            ports[0],
            certified.certificate.display(),
            certified.key.display()
        )
    })
}

#[test]
fn a_registry_of_a_private_authority_is_trusted_where_the_authority_is_known() {
    if !ready(&["nginx", "openssl", "unshare"]) {
        return;
    }
    let shown = Shown::new();
    let registry = shown.registry();
    let authority = Authority::new();
    let front = front(&authority, HOST, registry.addr(), "");
    let reference = format!("{HOST}:{}/{NAME}", front.port(0));

    let another = Authority::new();
    let stranger = Machine::new().with("SSL_CERT_FILE", another.certificate().display().to_string());
    let refused = stranger.mount(&[], &reference);
    assert_ne!(refused.code(), 0);
    assert!(refused.stderr.contains("its TLS certificate is not trusted"), "{}", refused.stderr);

    let machine = Machine::new().with("SSL_CERT_FILE", authority.certificate().display().to_string());
    machine.mount(&[], &reference).ok();
    shown.assert_shown(&machine.root());
    machine.mount_lazily(&[], &reference).ok();
    shown.assert_shown(&machine.root());
    let ranges = front.log().lines().filter(|line| line.contains("/blobs/") && line.contains("\" 206 ")).count();
    assert!(ranges > 0, "{}", front.log());

    // The certificate is of the one name, and not of whoever else listens there.
    let other = reference.replace(HOST, "other.test");
    let machine = Machine::new().with("SSL_CERT_FILE", authority.certificate().display().to_string());
    let refused = machine.mount(&[], &other);
    assert!(refused.code() != 0 && refused.stderr.contains("certificate"), "{}", refused.stderr);
}
