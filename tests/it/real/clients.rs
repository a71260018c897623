//! Real clients against the embedded registry: what they accept is what keeps it honest, since everything else is tested
//! against it.
//!
//! They pull while tokens are demanded, blobs lie at another host, and answers come slowly. skopeo's and curl's simpler
//! questions are asked in the registry's own tests.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ocifs::demo::registry::{Bearer, Content, Fault};

use super::Shown;
use crate::support::{Built, Embedded, output_of, require, require_root, temp_dir};

/// Two registries with one image, of which the first wants tokens and sends everybody to the second for blobs.
struct Served {
    near: Embedded,
    _far: Embedded,
    built: Built,
    shown: Shown,
}

impl Served {
    fn start() -> Self {
        let shown = Shown::new();
        let content = Content::new();
        let built = Shown::image().to_content(&content, "it", "latest");
        let (near, far) = (Embedded::start(content.clone()), Embedded::start(content));
        far.set_faults(|_| Some(Fault::Many(vec![Fault::NoLength, Fault::Delay(Duration::from_millis(30))])));
        let place = far.addr();
        near.set_faults(move |request| {
            let mut faults = vec![Fault::Bearer(Bearer::default())];
            faults.push(Fault::DripHead { bytes: 50, every: Duration::from_millis(5) });
            // The redirect stands in for the answer, so it is only for who has a token.
            let may = request.is_blob() && request.header("authorization").is_some();
            faults.extend(may.then(|| Fault::redirect(format!("http://{place}{}", request.path))));
            Some(Fault::Many(faults))
        });
        Self { near, _far: far, built, shown }
    }

    /// Fails unless blobs were asked for with a token.
    fn assert_used(&self) {
        let requests = self.near.requests();
        assert!(requests.iter().any(|record| record.request.is_blob() && record.status == 307), "{requests:#?}");
    }
}

#[test]
fn podman_pulls_from_the_embedded_registry_and_shows_the_same_tree() {
    if !require(&["podman", "umoci"]) || !require_root() {
        return;
    }
    let served = Served::start();
    let home = temp_dir();
    let policy = home.path().join("policy.json");
    fs::write(&policy, r#"{"default":[{"type":"insecureAcceptAnything"}]}"#).expect("a file");
    let podman = |arguments: &[&str]| {
        let mut command = Command::new("podman");
        for (option, name) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            command.arg(option).arg(home.path().join(name));
        }
        command.args(["--storage-driver=vfs", "--events-backend=none", "--cgroup-manager=cgroupfs"]).args(arguments);
        output_of(command.env("HOME", home.path()).env("XDG_RUNTIME_DIR", home.path()))
    };
    let name = served.near.name("it:latest");
    let policy = format!("--signature-policy={}", policy.display());
    podman(&["pull", "--quiet", "--tls-verify=false", &policy, &name]);
    let digest = podman(&["image", "inspect", "--format={{.Digest}}", &name]);
    assert_eq!(digest.trim(), served.built.manifest.digest.to_string());
    let root = podman(&["image", "mount", &name]);
    served.shown.assert_shown(Path::new(root.trim()));
    served.assert_used();
}

/// What crane does, in the words of a shell.
const CRANE: &str = r#"
get() { curl --silent --show-error --fail --location --noproxy '*' -H "Authorization: Bearer $token" "$@"; }
challenge=$(curl --silent --noproxy '*' --output /dev/null --dump-header - "http://$host/v2/it/manifests/latest" |
  sed -n 's/^[Ww][Ww][Ww]-[Aa]uthenticate: Bearer //p')
realm=$(printf %s "$challenge" | sed -n 's/.*realm="\([^"]*\)".*/\1/p')
scope=$(printf %s "$challenge" | sed -n 's/.*scope="\([^"]*\)".*/\1/p')
token=$(curl --silent --fail --noproxy '*' --get --data-urlencode "scope=$scope" "$realm" | sed 's/.*"token":"\([^"]*\)".*/\1/')
get -H 'Accept: application/vnd.oci.image.manifest.v1+json' --output manifest "http://$host/v2/it/manifests/latest"
get --head "http://$host/v2/it/manifests/latest" | tr -d '\r' | sed -n 's/^docker-content-digest: //p'
for digest in $(grep -o 'sha256:[0-9a-f]*' manifest); do
  get --output "${digest#sha256:}" "http://$host/v2/it/blobs/$digest"
done
sha256sum -- *
"#;

#[test]
fn a_shell_pulls_from_the_embedded_registry_as_crane_does() {
    if !require(&["curl", "umoci", "sh", "sha256sum"]) || !require_root() {
        return;
    }
    let served = Served::start();
    let place = temp_dir();
    let mut shell = Command::new("sh");
    shell.args(["-euc", CRANE]).current_dir(place.path()).env("host", served.near.addr().to_string());
    let text = output_of(&mut shell);
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some(served.built.manifest.digest.to_string().as_str()), "{text}");
    let mut pulled: Vec<String> = lines.map(str::to_owned).collect();
    pulled.sort();
    let blobs = served.built.layers.iter().chain([&served.built.config]);
    let mut expected: Vec<String> = blobs.map(|blob| format!("{0}  {0}", blob.digest.hex())).collect();
    expected.push(format!("{}  manifest", served.built.manifest.digest.hex()));
    expected.sort();
    assert_eq!(pulled, expected);
    served.assert_used();
}
