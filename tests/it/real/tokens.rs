//! docker-registry with tokens of a server that it trusts by certificate (distribution's token and JWT specifications).

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ocifs::demo::registry::{Answer, Content, Endpoint, Request};
use serde_json::json;
use tempfile::TempDir;

use super::{NAME, Shown, ready};
use crate::support::{DockerRegistry, Embedded, Ocifs, output_of, temp_dir};

/// How long docker-registry goes on to take a token that has expired (`Leeway` of its token package).
const LEEWAY: u64 = 60;

/// A token server: everybody may pull below `public/`, and who has the login may do anything.
struct Tokens {
    server: Embedded,
    files: TempDir,
    /// For how many seconds docker-registry takes the tokens that are issued now.
    good_for: Arc<AtomicU64>,
}

const LOGIN: &str = "me:c0rrectHorse";

impl Tokens {
    fn start() -> Self {
        let files = temp_dir();
        let (key, certificate) = (files.path().join("key.pem"), files.path().join("certificate.pem"));
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=tokens", "-keyout"]);
        output_of(openssl.arg(&key).arg("-out").arg(&certificate));
        let good_for = Arc::new(AtomicU64::new(300));
        let lifetime = Arc::clone(&good_for);
        let server = Embedded::start(Content::new());
        server.set_faults(move |request| {
            let is_token = request.endpoint == Endpoint::Token;
            is_token.then(|| answer(request, &key, &certificate, lifetime.load(Ordering::SeqCst)).into())
        });
        Self { server, files, good_for }
    }

    /// A docker-registry that takes these tokens.
    fn registry(&self) -> DockerRegistry {
        let bundle = self.files.path().join("certificate.pem");
        let configuration = format!(
            "auth: {{token: {{realm: 'http://{}/token', service: it, issuer: it tokens, rootcertbundle: '{}'}}}}",
            self.server.addr(),
            bundle.display()
        );
        DockerRegistry::start_with(&configuration).expect("the test asked whether it is here")
    }

    /// Credential files with the login for `host`.
    fn login(&self, host: &str) -> PathBuf {
        let file = self.files.path().join("auth.json");
        let text = json!({ "auths": { host: { "auth": STANDARD.encode(LOGIN) } } });
        fs::write(&file, text.to_string()).expect("a file");
        file
    }

    /// How many tokens were issued.
    fn issued(&self) -> usize {
        self.server.requests().iter().filter(|record| record.status == 200).count()
    }
}

/// What the token server answers.
fn answer(request: &Request, key: &Path, certificate: &Path, good_for: u64) -> Answer {
    let given = request.header("authorization").and_then(|header| header.strip_prefix("Basic "));
    let is_known = given.is_some_and(|given| given == STANDARD.encode(LOGIN));
    if given.is_some() && !is_known {
        return Answer::new(401).body(r#"{"details":"incorrect username or password"}"#);
    }
    let scopes = request.parameters("scope");
    let mut access = Vec::new();
    for scope in scopes.iter().flat_map(|scopes| scopes.split(' ')) {
        let mut parts = scope.splitn(3, ':');
        let (Some(kind), Some(name), Some(actions)) = (parts.next(), parts.next(), parts.next()) else { continue };
        let may = |action: &&str| is_known || (name.starts_with("public/") && *action == "pull");
        let actions: BTreeSet<&str> = actions.split(',').filter(may).collect();
        access.push(json!({ "type": kind, "name": name, "actions": actions }));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later than 1970").as_secs();
    let claims = json!({
        "iss": "it tokens", "aud": "it", "sub": "", "jti": request.number.to_string(), "access": access,
        "iat": now - LEEWAY, "nbf": now - LEEWAY, "exp": now + good_for - LEEWAY,
    });
    let token = sign(&claims.to_string(), key, certificate);
    // Whatever is true, the answer promises five minutes.
    Answer::new(200).body(json!({ "token": token, "expires_in": 300 }).to_string())
}

/// A JSON Web Token, signed by openssl.
fn sign(claims: &str, key: &Path, certificate: &Path) -> String {
    let pem = fs::read_to_string(certificate).expect("a file");
    let der: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let header = json!({ "typ": "JWT", "alg": "RS256", "x5c": [der] }).to_string();
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let mut openssl = Command::new("openssl");
    openssl.args(["dgst", "-sha256", "-sign"]).arg(key).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = openssl.spawn().expect("openssl can be run");
    let mut stdin = child.stdin.take().expect("it is a pipe");
    stdin.write_all(signed.as_bytes()).expect("openssl reads it");
    drop(stdin);
    let output = child.wait_with_output().expect("openssl ends");
    assert!(output.status.success());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(output.stdout))
}

fn push(shown: &Shown, registry: &DockerRegistry, name: &str) {
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false", "--preserve-digests"]);
    skopeo.args(["--dest-creds", LOGIN]).arg(format!("oci:{}:v1", shown.layout().display()));
    output_of(skopeo.arg(format!("docker://{}/{name}", registry.addr())));
}

#[test]
fn b_112_b_120_signed_tokens_are_fetched_and_replaced_when_the_registry_stops_taking_them() {
    if !ready(&["openssl"]) {
        return;
    }
    let shown = Shown::new();
    let tokens = Tokens::start();
    let registry = tokens.registry();
    push(&shown, &registry, NAME);
    push(&shown, &registry, "public/app:v1");

    // Everybody.
    let anybody = Ocifs::new();
    let point = anybody.mount_point("m");
    anybody.mount(&format!("{}/public/app:v1", registry.addr()), &point);
    shown.assert_shown(point.path());
    let private = format!("{}/{NAME}", registry.addr());
    let other = anybody.mount_point("other");
    let dir = other.path().to_string_lossy().into_owned();
    let refused = anybody.run(["mount", &private, &dir]);
    assert!(refused.code() != 0 && refused.stderr.contains("podman login"), "{}", refused.stderr);

    // Who has a login, for the length of a few tokens. Each is taken for five seconds, whatever the server promised.
    tokens.good_for.store(5, Ordering::SeqCst);
    let login = tokens.login(registry.addr()).to_string_lossy().into_owned();
    let mount = |ocifs: &Ocifs, dir: &str| {
        let arguments =
            ["mount", "--fill=off", "--profile-until=0", "--io=cached", "--authfile", &login, &private, dir];
        ocifs.run(arguments)
    };
    let known = Ocifs::new();
    let point = known.mount_point("m");
    let dir = point.path().to_string_lossy().into_owned();
    mount(&known, &dir).ok();
    shown.assert_shown(point.path());
    known.umount(&point);
    known.drop_bytes();
    assert!(known.end_daemon(), "it ends when it is told to");
    mount(&known, &dir).ok();
    shown.touch(point.path());
    let before = tokens.issued();
    std::thread::sleep(Duration::from_millis(6200));
    shown.assert_shown(point.path());
    assert!(tokens.issued() > before, "the one it had is not taken any more");

    // Tokens of somebody else are as good as none.
    let stranger = Tokens::start();
    let registry = stranger.registry();
    let text = fs::read(tokens.files.path().join("certificate.pem")).expect("a file");
    fs::write(stranger.files.path().join("certificate.pem"), text).expect("a file");
    let refused = Ocifs::new().run(["inspect", &format!("{}/public/app:v1", registry.addr())]);
    assert!(refused.code() != 0 && refused.stderr.contains("401"), "{}", refused.stderr);
}
