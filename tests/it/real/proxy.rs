//! tinyproxy as the only way to a registry.

use super::certificates::Authority;
use super::machine::{Machine, NAME as HOST};
use super::servers::Server;
use super::{NAME, Shown, ready};

/// What the proxy wants to hear, as tinyproxy takes it and as a URL has it.
const LOGIN: (&str, &str) = ("BasicAuth it pr0xySecret", "it:pr0xySecret");

#[test]
fn b_103_a_registry_is_reached_through_a_proxy_with_a_login_and_without_it_where_no_proxy_says_so() {
    if !ready(&["nginx", "openssl", "tinyproxy", "unshare"]) {
        return;
    }
    let shown = Shown::new();
    let registry = shown.registry();
    let authority = Authority::new();
    let certified = authority.certify(HOST);
    let front = Server::nginx(2, |ports, _| {
        format!(
            "server {{ listen 127.0.0.1:{}; listen 127.0.0.1:{} ssl; ssl_certificate {}; ssl_certificate_key {};\n\
             location / {{ proxy_pass http://{}; }} }}",
            ports[0],
            ports[1],
            certified.certificate.display(),
            certified.key.display(),
            registry.addr()
        )
    });
    let plain = format!("{HOST}:{}/{NAME}", front.port(0));
    let tls = format!("{HOST}:{}/{NAME}", front.port(1));
    let known = || Machine::new().with("SSL_CERT_FILE", authority.certificate().display().to_string());
    let resolver = known();
    let proxy = Server::tinyproxy(LOGIN.0, |command| resolver.command(&command));
    let url = format!("http://{}@127.0.0.1:{}", LOGIN.1, proxy.port(0));

    let machine = known().with("HTTPS_PROXY", url.clone());
    machine.mount(&[], &tls).ok();
    shown.assert_shown(&machine.root());
    machine.mount_lazily(&[], &tls).ok();
    shown.assert_shown(&machine.root());
    assert!(proxy.log().contains("CONNECT"), "{}", proxy.log());

    let machine = known().with("HTTP_PROXY", url.clone());
    machine.mount(&["--plain-http"], &plain).ok();
    shown.assert_shown(&machine.root());
    assert!(proxy.log().contains("GET http://"), "{}", proxy.log());

    // Without the login the proxy lets nobody through, and says which it is that refuses.
    let machine = known().with("HTTPS_PROXY", format!("http://127.0.0.1:{}", proxy.port(0)));
    let refused = machine.mount(&[], &tls);
    assert!(refused.code() != 0 && refused.stderr.contains("proxy"), "{}", refused.stderr);

    let asked = proxy.log().lines().count();
    let machine = known().with("HTTPS_PROXY", url).with("NO_PROXY", ".test");
    machine.mount(&[], &tls).ok();
    assert_eq!(proxy.log().lines().count(), asked, "{}", proxy.log());
}
