//! Indexes that somebody signed: believed by who has the key, also where the reference is a digest.
//!
//! The keys and signatures are OpenSSL's; where they lie is what cosign does with them (`SIGNATURE_SPEC.md`, `BUNDLE_SPEC.md`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use ocifs::oci::Digest;
use ocifs::profile::{Access, Origin, Profile};
use ocifs::registry::{Client, Options, Repository, Selector};
use serde_json::{Value, json};

use super::soci::push_soci;
use super::*;
use crate::support::{DockerRegistry, assert_same, output_of, temp_dir};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// How a signature lies in a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// A payload under a tag.
    Simple,
    /// What refers to the artifact, listed as what it is.
    Bundle,
    /// The same where a list calls it after its configuration, as the one does that cosign keeps.
    BundleWithoutType,
}

/// A pair of keys.
struct Signer {
    dir: tempfile::TempDir,
}

impl Signer {
    /// `algorithm` as `openssl genpkey` takes it.
    fn new(algorithm: &[&str]) -> Self {
        let signer = Self { dir: temp_dir() };
        let private = signer.path("key");
        output_of(Command::new("openssl").arg("genpkey").args(algorithm).arg("-out").arg(&private));
        output_of(
            Command::new("openssl").args(["pkey", "-pubout", "-in"]).arg(&private).arg("-out").arg(signer.public()),
        );
        signer
    }

    /// What `cosign generate-key-pair` makes.
    fn usual() -> Self {
        Self::new(&["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"])
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn public(&self) -> PathBuf {
        self.path("key.pub")
    }

    /// The option that names the key.
    fn option(&self) -> String {
        format!("--index-key={}", self.public().display())
    }

    fn sign(&self, message: &[u8]) -> String {
        let (text, signature) = (self.path("text"), self.path("signature"));
        fs::write(&text, message).expect("a temporary file");
        let mut command = Command::new("openssl");
        command.args(["dgst", "-sha256", "-sign"]).arg(self.path("key")).arg("-out").arg(&signature).arg(&text);
        output_of(&mut command);
        BASE64_STANDARD.encode(fs::read(signature).expect("a signature"))
    }
}

/// A repository to which signatures are pushed.
struct Place {
    repository: Repository,
    runtime: tokio::runtime::Runtime,
}

impl Place {
    fn new(host: &str, repository: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let client = {
            let _inside = runtime.enter();
            Client::new(Options::default()).expect("a client")
        };
        Self {
            repository: client.repository(host, repository, Selector::Tag("latest".to_owned())).for_pushing(),
            runtime,
        }
    }

    fn blob(&self, bytes: &str) -> Value {
        let (digest, sent) = (Digest::sha256(bytes.as_bytes()), Default::default());
        let push = self.repository.push_blob(digest, Bytes::copy_from_slice(bytes.as_bytes()), None, &sent);
        self.runtime.block_on(push).expect("pushed");
        json!({ "digest": digest.to_string(), "size": bytes.len() })
    }

    /// Signs `about`, and puts that beside `artifact`, which is the same if the signer is honest.
    fn sign(&self, signer: &Signer, form: Form, about: &str, artifact: &str) {
        match form {
            Form::Simple => self.sign_simple(signer, about, artifact),
            Form::Bundle | Form::BundleWithoutType => self.sign_bundle(signer, form, about, artifact),
        }
    }

    fn sign_simple(&self, signer: &Signer, about: &str, artifact: &str) {
        let payload = json!({
            "critical": {
                "identity": { "docker-reference": "registry.example/it" },
                "image": { "docker-manifest-digest": about },
                "type": "cosign container image signature",
            },
            "optional": null,
        })
        .to_string();
        let mut layer = self.blob(&payload);
        layer["mediaType"] = "application/vnd.dev.cosign.simplesigning.v1+json".into();
        layer["annotations"] = json!({ "dev.cosignproject.cosign/signature": signer.sign(payload.as_bytes()) });
        let mut config =
            self.blob(r#"{"architecture":"","os":"","rootfs":{"type":"layers","diff_ids":[]},"config":{}}"#);
        config["mediaType"] = "application/vnd.oci.image.config.v1+json".into();
        let manifest =
            json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer] }).to_string();
        let tag = Selector::Tag(format!("{}.sig", artifact.replace(':', "-")));
        self.runtime.block_on(self.repository.push_manifest(&tag, MANIFEST, manifest.into())).expect("pushed");
    }

    /// Puts something else beside `artifact` that is signed in a bundle, as `cosign attest` does.
    fn attest(&self, artifact: &str, number: usize) {
        let mut layer = self.blob(&format!("{{\"number\":{number}}}"));
        layer["mediaType"] = BUNDLE.into();
        let mut config = self.blob("{}");
        config["mediaType"] = EMPTY.into();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": BUNDLE, "config": config, "layers": [layer],
            "subject": { "mediaType": MANIFEST, "digest": artifact, "size": 1 },
            "annotations": { "dev.sigstore.bundle.predicateType": "https://spdx.dev/Document" },
        })
        .to_string();
        let name = Selector::Digest(Digest::sha256(manifest.as_bytes()));
        self.runtime.block_on(self.repository.push_manifest(&name, MANIFEST, manifest.into())).expect("pushed");
    }

    fn sign_bundle(&self, signer: &Signer, form: Form, about: &str, artifact: &str) {
        let kind = "application/vnd.in-toto+json";
        let hex = about.split_once(':').expect("a digest").1;
        let statement = json!({
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{ "digest": { "sha256": hex }, "annotations": {} }],
            "predicateType": "https://sigstore.dev/cosign/sign/v1",
            "predicate": {},
        })
        .to_string();
        let signed = format!("DSSEv1 {} {kind} {} {statement}", kind.len(), statement.len());
        let bundle = json!({
            "mediaType": BUNDLE,
            "verificationMaterial": { "publicKey": { "hint": "" }, "tlogEntries": [] },
            "dsseEnvelope": {
                "payload": BASE64_STANDARD.encode(&statement), "payloadType": kind,
                "signatures": [{ "sig": signer.sign(signed.as_bytes()) }],
            },
        });
        let mut layer = self.blob(&bundle.to_string());
        layer["mediaType"] = BUNDLE.into();
        let mut config = self.blob("{}");
        config["mediaType"] = EMPTY.into();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": BUNDLE, "config": config, "layers": [layer],
            "subject": { "mediaType": MANIFEST, "digest": artifact, "size": 1 },
        })
        .to_string();
        let digest = Digest::sha256(manifest.as_bytes());
        let mut entry = json!({ "mediaType": MANIFEST, "digest": digest.to_string(), "size": manifest.len(), "artifactType": BUNDLE });
        if form == Form::BundleWithoutType {
            entry["artifactType"] = EMPTY.into();
        }
        let subject = artifact.parse().expect("a digest");
        self.runtime.block_on(async {
            let name = Selector::Digest(digest);
            let noted = self.repository.push_manifest(&name, MANIFEST, manifest.into()).await.expect("pushed");
            if !noted {
                self.repository.add_tagged_referrer(&subject, &entry).await.expect("listed");
            }
        });
    }
}

/// An image with an index beside it, and the digest of that.
struct Shared {
    registry: Embedded,
    built: Built,
    artifact: String,
}

impl Shared {
    fn new() -> Self {
        let (registry, built) = served(&image());
        let made = Machine::new().push(&registry.name("it:latest"));
        Self { registry, built, artifact: text(&made["artifact"]).to_owned() }
    }

    fn place(&self) -> Place {
        Place::new(&self.registry.addr().to_string(), "it")
    }

    /// Signs the index as its maker does.
    fn sign(&self, signer: &Signer, form: Form) {
        self.place().sign(signer, form, &self.artifact, &self.artifact);
    }

    fn tagged(&self) -> String {
        self.registry.name("it:latest")
    }

    fn pinned(&self) -> String {
        self.registry.name(&format!("it@{}", self.built.manifest.digest))
    }
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

/// Why the index of the first layer was believed or not.
fn reason(report: &Value) -> &str {
    text(&report["layers"][0]["index_reason"])
}

#[test]
fn a_signed_index_is_believed_by_digest() {
    if !ready() {
        return;
    }
    let shared = Shared::new();
    let signer = Signer::usual();
    for (form, lists) in
        [(Form::Simple, 100), (Form::Simple, 0), (Form::Bundle, 100), (Form::Bundle, 0), (Form::BundleWithoutType, 0)]
    {
        let shared = Shared::new();
        shared.registry.set_referrers(lists);
        if lists == 0 {
            // The list under the tag is made by who pushes.
            Machine::new().push(&shared.tagged());
        }
        shared.sign(&signer, form);
        shared.registry.forget_requests();
        let machine = Machine::new();
        let report = machine.mount(&[&signer.option()], &shared.pinned());
        assert_eq!(origins(&report), ["shared"; 2], "{form:?} {lists} {}", machine.ocifs.log());
        assert_eq!(reason(&report), format!("the key {} signed it", signer.public().display()));
        assert_eq!(layer_bytes(&shared.registry, &shared.built), 0, "{form:?} {lists}");
        let shown = machine.ocifs.run(["status".as_ref(), machine.point.path().as_os_str()]).ok().stdout;
        assert!(shown.contains(reason(&report)), "{shown}");
        assert_eq!(fs::read(machine.point.path().join("etc/conf")).expect("it can be read"), b"a = b\n");
    }
    let truth = Machine::new();
    truth.mount(&["--trust-index=none"], &shared.tagged());
    shared.sign(&signer, Form::Simple);
    let machine = Machine::new();
    machine.mount(&[&signer.option()], &shared.pinned());
    assert_same(&machine.tree(), &truth.tree(), |_, _| false);
}

#[test]
fn each_kind_of_key_signs_an_index_at_a_real_registry() {
    if !ready() {
        return;
    }
    let Some(registry) = DockerRegistry::start() else { return };
    let layout = temp_dir();
    let built = image().to_layout(layout.path(), "v1");
    registry.push(layout.path(), "v1", "team/app:v1");
    let made = Machine::new().push(&format!("{}/team/app:v1", registry.addr()));
    let artifact = text(&made["artifact"]);
    let pinned = format!("{}/team/app@{}", registry.addr(), built.manifest.digest);
    let rsa = Signer::new(&["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"]);
    for (signer, form) in [(Signer::usual(), Form::Simple), (rsa, Form::Simple), (Signer::usual(), Form::Bundle)] {
        let place = Place::new(registry.addr(), "team/app");
        let machine = Machine::new();
        assert_eq!(origins(&machine.mount(&[&signer.option()], &pinned)), ["first-contact"; 2]);
        place.sign(&signer, form, artifact, artifact);
        let machine = Machine::new();
        assert_eq!(origins(&machine.mount(&[&signer.option()], &pinned)), ["shared"; 2], "{}", machine.ocifs.log());
    }
}

#[test]
fn what_is_not_signed_for_the_user_is_not_believed() {
    if !ready() {
        return;
    }
    let shared = Shared::new();
    let (signer, stranger) = (Signer::usual(), Signer::usual());
    let streamed = |options: &[&str], reference: &str, why: &str| {
        let machine = Machine::new();
        let report = machine.mount(options, reference);
        assert_eq!(origins(&report), ["first-contact"; 2], "{options:?} {}", machine.ocifs.log());
        assert!(reason(&report).contains(why), "{}", reason(&report));
    };
    let option = signer.option();
    let unsigned = "which binds no index, and no configured key signed one";
    streamed(&[&option], &shared.pinned(), unsigned);
    for form in [Form::Simple, Form::Bundle] {
        shared.sign(&stranger, form);
        streamed(&[&option], &shared.pinned(), unsigned);
        // The right key, but it signed something else.
        let other = Digest::sha256(b"another artifact").to_string();
        shared.place().sign(&signer, form, &other, &shared.artifact);
        streamed(&[&option], &shared.pinned(), unsigned);
        shared.place().sign(&signer, form, &shared.built.manifest.digest.to_string(), &shared.artifact);
        streamed(&[&option], &shared.pinned(), unsigned);
    }
    streamed(&[&option, "--trust-index=signed"], &shared.tagged(), "--trust-index signed was given");
    // Whoever is content with less is not asked to sign.
    shared.registry.forget_requests();
    let machine = Machine::new();
    assert_eq!(origins(&machine.mount(&[&option], &shared.tagged())), ["shared"; 2]);
    let is_about_signatures = |path: &str| path.contains(".sig") || path.contains(&shared.artifact.replace(':', "-"));
    assert!(!shared.registry.requests().iter().any(|record| is_about_signatures(&record.request.path)));
    machine.ocifs.umount(&machine.point);
    // What was believed for less does not count for more.
    assert_eq!(origins(&machine.mount(&[&option], &shared.pinned())), ["first-contact"; 2]);

    shared.sign(&signer, Form::Simple);
    streamed(&[&option, "--trust-index=none"], &shared.tagged(), "--trust-index none was given");
    let report = Machine::new().mount(&[&option, "--trust-index=signed"], &shared.tagged());
    assert_eq!(origins(&report), ["shared"; 2]);
    assert!(reason(&report).ends_with("signed it"), "{}", reason(&report));
}

#[test]
fn of_several_indexes_the_signed_one_is_used_with_its_profile() {
    if !ready() {
        return;
    }
    let shared = Shared::new();
    let signer = Signer::usual();
    // Somebody puts another beside it, which a mount would prefer for its profile.
    let maker = Machine::new();
    let origin = Origin { image: shared.built.manifest.digest, recorded: 0, mount: "/".into() };
    let recorded = Profile::new(origin, Access::new(b"usr/text0".to_vec(), 0, 4096));
    let file = maker.ocifs.home().join("profile");
    fs::write(&file, recorded.to_text()).expect("a file");
    let profile = format!("--profile={}", file.display());
    let made = maker.ocifs.json(["index", "--json", "--push", &profile, &shared.tagged()]);
    assert_ne!(text(&made[0]["artifact"]), shared.artifact);
    shared.sign(&signer, Form::Simple);
    let machine = Machine::new();
    let report = machine.mount(&[&signer.option()], &shared.pinned());
    assert_eq!(text(&report["layers"][0]["index_artifact"]), shared.artifact);
    assert_ne!(report["profile"]["state"], "stored", "a stranger's recording is not taken");

    // The list says of each whether it would be believed.
    let config = machine.ocifs.home().join("config/ocifs");
    fs::create_dir_all(&config).expect("a directory");
    let keys = format!("index-keys = [\"{}\"]\n", signer.public().display());
    fs::write(config.join("config.toml"), keys).expect("a file");
    let mut list = machine.ocifs.command(["index", "list", "--json", &shared.pinned()]);
    let listed: Value =
        serde_json::from_str(&output_of(list.env("XDG_CONFIG_HOME", machine.ocifs.home().join("config"))))
            .expect("JSON");
    let believed: Vec<_> = listed.as_array().expect("a list").iter().map(|index| &index["believed"]).collect();
    assert_eq!(believed.len(), 2);
    for index in listed.as_array().expect("a list") {
        assert_eq!(index["believed"], index["digest"] == shared.artifact.as_str(), "{listed}");
    }
}

#[test]
fn a_signature_is_kept_for_the_time_without_a_registry() {
    if !ready() {
        return;
    }
    let shared = Shared::new();
    let (signer, stranger) = (Signer::usual(), Signer::usual());
    shared.sign(&signer, Form::Bundle);
    let machine = Machine::new();
    machine.mount(&[&signer.option()], &shared.pinned());
    let file = machine.point.path().join("usr/text2");
    assert!(fs::read(&file).expect("it can be read") == prose(4 << 20, 2));

    shared.registry.set_faults(|_| Some(ocifs::demo::registry::Fault::status(503)));
    machine.ocifs.umount(&machine.point);

    let offline = machine.mount(&["--offline", &signer.option()], &shared.pinned());
    assert_eq!(origins(&offline), ["shared"; 2]);
    assert!(reason(&offline).ends_with("signed it"), "{}", reason(&offline));
    machine.ocifs.umount(&machine.point);
    // Kept for who has the key.
    let arguments = |key: &str| {
        let dir = machine.point.path().display().to_string();
        ["mount", "--offline", "--fill=off", key, &shared.pinned(), &dir].map(str::to_owned)
    };
    let ran = machine.ocifs.run(arguments(&stranger.option()));
    assert!(ran.code() != 0 && ran.stderr.contains("of 2 of 2 layers are not in the cache"), "{}", ran.stderr);

    // What it was mounted with goes into a parcel, for who says why.
    let parcel = machine.ocifs.home().join("parcel");
    let export = |options: &[&str]| {
        let parcel = parcel.to_string_lossy().into_owned();
        machine.ocifs.run([&["cache", "export"], options, &[&shared.pinned(), &parcel]].concat())
    };
    let ran = export(&[]);
    assert!(ran.code() == 5 && ran.stderr.contains("with --trust-index, if it was mounted so"), "{}", ran.stderr);
    export(&[&signer.option()]).ok();
}

#[test]
fn who_asks_for_a_signature_and_who_does_not_remember_apart() {
    if !ready() {
        return;
    }
    let shared = Shared::new();
    let signer = Signer::usual();
    shared.sign(&signer, Form::Simple);
    // For its recording, this one comes first for who asks for nothing.
    let maker = Machine::new();
    let file = maker.ocifs.home().join("profile");
    let origin = Origin { image: shared.built.manifest.digest, recorded: 0, mount: "/".into() };
    let recorded = Profile::new(origin, Access::new(b"usr/text0".to_vec(), 0, 4096));
    fs::write(&file, recorded.to_text()).expect("a file");
    let made =
        maker.ocifs.json(["index", "--json", "--push", &format!("--profile={}", file.display()), &shared.tagged()]);
    let machine = Machine::new();
    let option = signer.option();
    for offline in [&[][..], &["--offline"]] {
        let report = machine.mount(offline, &shared.tagged());
        assert_eq!(report["layers"][0]["index_artifact"], made[0]["artifact"], "{report}");
        machine.ocifs.umount(&machine.point);
        let report = machine.mount(&[offline, &[&option]].concat(), &shared.pinned());
        assert_eq!(report["layers"][0]["index_artifact"], shared.artifact.as_str(), "{report}");
        machine.ocifs.umount(&machine.point);
    }
}

#[test]
fn a_signature_that_cannot_be_looked_for_is_not_said_to_be_missing() {
    if !ready() {
        return;
    }
    let shared = Shared::new();
    let signer = Signer::usual();
    shared.sign(&signer, Form::Simple);
    shared
        .registry
        .set_faults(|request| request.path.contains(".sig").then(|| ocifs::demo::registry::Fault::status(403)));
    let machine = Machine::new();
    let report = machine.mount(&[&signer.option()], &shared.pinned());
    assert_eq!(origins(&report), ["first-contact"; 2]);
    assert!(reason(&report).contains("whether a key signed one cannot be found out: "), "{}", reason(&report));
}

#[test]
fn a_signature_is_found_among_much_else_that_refers_to_the_index() {
    if !ready() {
        return;
    }
    let shared = Shared::new();
    let (signer, stranger) = (Signer::usual(), Signer::usual());
    let place = shared.place();
    for number in 0..40 {
        place.attest(&shared.artifact, number);
    }
    for form in [Form::Bundle, Form::Simple] {
        place.sign(&stranger, form, &shared.artifact, &shared.artifact);
    }
    place.sign(&signer, Form::Bundle, &shared.artifact, &shared.artifact);
    let machine = Machine::new();
    assert_eq!(
        origins(&machine.mount(&[&signer.option()], &shared.pinned())),
        ["shared"; 2],
        "{}",
        machine.ocifs.log()
    );
}

#[test]
fn socis_index_can_be_signed_as_well() {
    if !ready() {
        return;
    }
    let (registry, built) = served(&image());
    let made = push_soci(&Machine::new(), &registry.name("it:latest"));
    let signer = Signer::usual();
    let pinned = registry.name(&format!("it@{}", built.manifest.digest));
    assert_eq!(origins(&Machine::new().mount(&[&signer.option()], &pinned)), ["first-contact"; 2]);
    let artifact = text(&made["artifact"]);
    Place::new(&registry.addr().to_string(), "it").sign(&signer, Form::Simple, artifact, artifact);
    let machine = Machine::new();
    for options in [&[][..], &["--offline"]] {
        let report = machine.mount(&[options, &[&signer.option()]].concat(), &pinned);
        assert_eq!(origins(&report), ["shared"; 2], "{}", machine.ocifs.log());
        assert!(reason(&report).ends_with("signed it"), "{}", reason(&report));
        machine.ocifs.umount(&machine.point);
    }
}

#[test]
fn keys_that_cannot_be_used_are_told_before_anything_is_done() {
    let machine = Machine::new();
    let dir = machine.point.path().to_string_lossy().into_owned();
    let mount = |options: &[&str]| {
        let ran = machine.ocifs.run([&["mount"], options, &["localhost:1/it", &dir]].concat());
        assert_eq!(ran.code(), 2, "{}", ran.stderr);
        ran.stderr
    };
    let signer = Signer::usual();
    let named = |path: &Path| format!("--index-key={}", path.display());
    let missing = mount(&[&named(Path::new("/no/such/key.pub"))]);
    assert!(missing.contains("error: cannot read the key /no/such/key.pub"), "{missing}");
    let private = mount(&[&named(&signer.path("key"))]);
    assert!(
        private.contains("cause: it is a private key") && private.contains("hint: name the public key"),
        "{private}"
    );
    let nonsense = signer.path("nonsense");
    fs::write(&nonsense, "ssh-ed25519 AAAA me@here\n").expect("a file");
    let nonsense = mount(&[&named(&nonsense)]);
    assert!(
        nonsense.contains("it is no public key in PEM") && nonsense.contains("-----BEGIN PUBLIC KEY"),
        "{nonsense}"
    );
    let none = mount(&["--trust-index=signed"]);
    assert!(none.contains("no key was named") && none.contains("--index-key FILE"), "{none}");
    assert_eq!(machine.ocifs.daemon(), None, "no daemon was started for that");
}
