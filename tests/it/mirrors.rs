//! Mirrors through the program: a mount whose bytes come from a host beside its registry, as a peer-to-peer cache is one.

use std::fs;
use std::time::{Duration, Instant};

use ocifs::demo::registry::{Answer, Content, Endpoint, Fault};

use crate::damage::{Files, image, read_all};
use crate::support::{Embedded, Mount, Ocifs, REPEATS_LOG, Ran, require_fuse, require_root, run};

/// How long the client waits for the head of an answer: the longest silence, which includes the time to connect.
const SILENT: Duration = Duration::from_secs(30);

/// A registry, a mirror that has the same image, and a machine that is told of the mirror.
struct Bench {
    ocifs: Ocifs,
    point: Mount,
    registry: Embedded,
    mirror: Embedded,
    files: Files,
}

impl Bench {
    /// None, loudly, where nothing can be mounted. The mirror does what `capabilities` say.
    fn new(capabilities: &str) -> Option<Self> {
        if !require_fuse() || !require_root() {
            return None;
        }
        let (image, files) = image();
        let start = || {
            let content = Content::new();
            image.to_content(&content, "team/app", "1.0");
            Embedded::start(content)
        };
        let (registry, mirror, ocifs) = (start(), start(), Ocifs::new());
        let bench = Self { point: ocifs.mount_point("m"), ocifs, registry, mirror, files };
        let text = format!("[host.'http://{}']\ncapabilities = {capabilities}\n", bench.mirror.addr());
        bench.write(&format!("hosts/{}/hosts.toml", bench.registry.addr()), &text);
        Some(bench)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.ocifs.home().join(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        fs::write(path, text).expect("a file");
    }

    /// Mounts with the hosts of this machine.
    fn mount(&self) -> Ran {
        let hosts = format!("--hosts-dir={}", self.ocifs.home().join("hosts").display());
        let reference = self.registry.name("team/app:1.0");
        let dir = self.dir();
        let arguments = ["mount", "--fill=off", "--profile-until=0", &hosts, &reference, &dir];
        run(self.ocifs.command(arguments).env("OCIFS_LOG", REPEATS_LOG))
    }

    fn dir(&self) -> String {
        self.point.path().to_str().expect("a plain path").to_owned()
    }

    fn read_all(&self) {
        read_all(self.point.path(), &self.files).expect("everything is there");
    }
}

/// The blobs and manifests that a registry was asked for.
fn asked(registry: &Embedded) -> (usize, usize) {
    let requests = registry.requests();
    let count = |is: fn(&Endpoint) -> bool| requests.iter().filter(|record| is(&record.request.endpoint)).count();
    (
        count(|endpoint| matches!(endpoint, Endpoint::Blob { .. })),
        count(|endpoint| matches!(endpoint, Endpoint::Manifest { .. })),
    )
}

#[test]
fn b_145_b_146_a_peer_to_peer_mirror_sends_the_bytes_and_the_registry_says_what_the_tag_means() {
    let Some(bench) = Bench::new("['pull']") else { return };
    bench.mount().ok();
    bench.read_all();
    let (blobs, _) = asked(&bench.mirror);
    assert!(blobs > 0, "its bytes come from the mirror");
    let (blobs, manifests) = asked(&bench.registry);
    // A request that is made again for want of an answer goes to another host.
    assert!(blobs <= bench.ocifs.repeats(), "{blobs} of {}", bench.ocifs.repeats());
    assert!(manifests > 0, "the mirror is not asked what a tag means");
    let ns = format!("ns={}", bench.registry.addr()).replace(':', "%3A");
    assert!(bench.mirror.requests().iter().all(|record| record.request.query.contains(&ns)));
    let status = &bench.ocifs.status(&bench.point)["mounts"][0];
    let hosts: Vec<_> = status["hosts"].as_array().expect("hosts").iter().map(|host| host["name"].clone()).collect();
    assert_eq!(hosts, [bench.mirror.addr().to_string(), bench.registry.addr().to_string()]);
    assert!(status["hosts"][0]["received"].as_u64().expect("bytes") > 0 && status["hosts"][0]["trouble"].is_null());
    assert!(status["hosts_rule"].as_str().expect("a rule").ends_with("/hosts.toml"));
}

#[test]
fn b_147_a_mirror_that_fails_or_lies_under_a_mount_is_replaced_by_the_registry() {
    let Some(bench) = Bench::new("['pull', 'resolve']") else { return };
    bench.mount().ok();
    bench.ocifs.umount(&bench.point);
    for fault in [Fault::Status(Answer::new(500)), Fault::Truncate { after: 100 }, Fault::Corrupt { offset: 300 }] {
        bench.ocifs.drop_bytes();
        assert!(bench.ocifs.end_daemon(), "it ends when it is told to");
        bench.registry.forget_requests();
        let shown = format!("{fault:?}");
        let is_blob = |endpoint: &Endpoint| matches!(endpoint, Endpoint::Blob { .. });
        bench.mirror.set_faults(move |request| is_blob(&request.endpoint).then(|| fault.clone()));
        bench.mount().ok();
        bench.read_all();
        assert!(asked(&bench.registry).0 > 0, "{shown}: the registry helps out");
        bench.ocifs.umount(&bench.point);
        bench.mirror.clear_faults();
    }
}

#[test]
fn b_147_a_mirror_that_says_nothing_does_not_hold_up_a_reader() {
    let Some(bench) = Bench::new("['pull', 'resolve']") else { return };
    bench.mount().ok();
    bench.ocifs.umount(&bench.point);
    bench.ocifs.drop_bytes();
    bench.mount().ok();
    bench.registry.forget_requests();
    let is_blob = |endpoint: &Endpoint| matches!(endpoint, Endpoint::Blob { .. });
    bench.mirror.set_faults(move |request| is_blob(&request.endpoint).then_some(Fault::Delay(10 * SILENT)));
    let begun = Instant::now();
    bench.read_all();
    assert!(begun.elapsed() < SILENT, "the reader waited for the mirror: {:?}", begun.elapsed());
    assert!(asked(&bench.registry).0 > 0, "the registry helps out");
    bench.ocifs.umount(&bench.point);
}

#[test]
fn b_144_a_mistake_in_a_host_file_fails_the_mount_with_file_and_line() {
    let Some(bench) = Bench::new("['pull']") else { return };
    let name = format!("hosts/{}/hosts.toml", bench.registry.addr());
    bench.write(&name, "\n[host.'http://localhost:1']\ncapabilities = ['fly']\n");
    let ran = bench.mount();
    assert_eq!(ran.code(), 2, "{}", ran.stderr);
    assert!(ran.stderr.contains(&format!("{name}: line 3: unknown capability")), "{}", ran.stderr);
    assert!(asked(&bench.registry) == (0, 0), "nobody is asked");
    let image = bench.registry.name("team/app:1.0");
    for wrong in
        ["--hosts-dir=/no/such", "--hosts-dir=/dev/null", "--registries-conf=/no/such", "--registries-conf=/dev"]
    {
        let ran = bench.ocifs.run(["inspect", wrong, &image]);
        assert_eq!(ran.code(), 2, "{wrong}: {}", ran.stderr);
    }
    let file = bench.ocifs.run(["inspect", "--hosts-dir=/etc/passwd", &image]);
    assert!(file.code() == 2 && file.stderr.contains("it is not a directory"), "{}", file.stderr);
    bench.write("empty.conf", "");
    for (key, good) in [("hosts-dir", ""), ("registries-conf", "empty.conf")] {
        bench.write(".config/ocifs/config.toml", &format!("{key} = '/no/such'\n"));
        let ran = bench.ocifs.run(["inspect", &image]);
        let hint = format!("a configuration file names it as {key}");
        assert!(ran.code() == 2 && ran.stderr.contains("/no/such") && ran.stderr.contains(&hint), "{}", ran.stderr);
        let named = format!("--{key}={}", bench.ocifs.home().join(good).display());
        bench.ocifs.run(["inspect", &named, &image]).ok();
    }
    bench.write(".config/ocifs/config.toml", "");
    for (file, code) in [("/no/such", 2), ("hosts/none.conf", 0)] {
        bench.write("hosts/none.conf", "");
        let mut inspect = bench.ocifs.command(["inspect", &bench.registry.name("team/app:1.0")]);
        inspect.env("CONTAINERS_REGISTRIES_CONF", file).current_dir(bench.ocifs.home());
        let ran = run(&mut inspect);
        assert_eq!(ran.code(), code, "{file}: {}", ran.stderr);
    }
}

#[test]
fn b_149_short_names_locations_and_blocks_of_registries_conf_count() {
    let Some(bench) = Bench::new("['pull']") else { return };
    let addr = bench.registry.addr();
    let conf = format!(
        "unqualified-search-registries = ['a.example', 'b.example']\n\
         [aliases]\n'app' = 'moved.example/x/app'\n\
         [[registry]]\nprefix = 'moved.example/x'\nlocation = '{addr}/team'\n\
         [[registry]]\nlocation = 'blocked.example'\nblocked = true\n"
    );
    bench.write("registries.conf", &conf);
    let conf = format!("--registries-conf={}", bench.ocifs.home().join("registries.conf").display());
    let inspect = |name: &str| bench.ocifs.run(["inspect", "--json", &conf, name]);
    let report: serde_json::Value = serde_json::from_str(&inspect("app:1.0").ok().stdout).expect("JSON");
    assert_eq!(report["reference"], "moved.example/x/app:1.0");
    let blocked = inspect("blocked.example/a");
    assert!(blocked.code() == 4 && blocked.stderr.contains("is blocked by"), "{}", blocked.stderr);
    let ambiguous = inspect("other");
    assert!(ambiguous.stderr.contains("a.example/other or b.example/other"), "{}", ambiguous.stderr);
    bench.write("registries.conf", "[registries.search]\nregistries = ['a.example']\n");
    let old = inspect("app:1.0");
    assert!(old.code() == 2 && old.stderr.contains("version 1"), "b_150: {}", old.stderr);
}
