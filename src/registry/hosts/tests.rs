use super::*;
use crate::registry::link::Pair;

/// A machine's configuration, in a directory of its own.
struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
            std::fs::write(path, text).expect("a file");
        }
        Self { dir }
    }

    fn plan(&self, host: &str) -> Result<Plan, Error> {
        let path = |name: &str| self.dir.path().join(name);
        let files = HostFiles {
            trees: vec![path("tree")],
            registries: vec![path("registries.conf")],
            certificates: vec![path("certs.d")],
        };
        let selector = Selector::Tag("v1".to_owned());
        plan(&files, &Wanted { host, repository: "team/app", selector: &selector, plain_http: false })
    }

    fn hosts(&self, host: &str) -> Vec<String> {
        let plan = self.plan(host).expect("sound");
        plan.places.iter().map(|place| place.site.name.clone()).collect()
    }
}

const CONF: &str = "[[registry]]\nlocation = 'r.example'\n[[registry.mirror]]\nlocation = 'conf.example'";
const TREE: &str = "[host.'https://tree.example']";

#[test]
fn without_files_the_registry_itself_is_asked() {
    let plan = Machine::new(&[]).plan("docker.io").expect("nothing is wrong");
    let itself = Place {
        site: Site::of("docker.io", false),
        repository: "team/app".to_owned(),
        ns: None,
        may: Capabilities::ALL,
        is_own: false,
    };
    let own = Place { is_own: true, ..itself.clone() };
    assert_eq!(plan, Plan { places: vec![own], push: Some(itself), rule: None });
}

#[test]
fn a_hosts_toml_for_the_registry_decides_then_registries_conf_then_the_default() {
    let all = [("registries.conf", CONF), ("tree/r.example/hosts.toml", TREE), ("tree/_default/hosts.toml", TREE)];
    assert_eq!(Machine::new(&all).hosts("r.example"), ["tree.example", "r.example"]);
    let rest = [all[0], all[2]];
    assert_eq!(Machine::new(&rest).hosts("r.example"), ["conf.example", "r.example"]);
    assert_eq!(Machine::new(&rest).hosts("other.example"), ["tree.example", "other.example"]);
}

#[test]
fn b_149_docker_hub_has_one_table_and_one_directory_by_whichever_of_its_names() {
    for name in ["docker.io", "index.docker.io", "Registry-1.docker.io"] {
        let conf = format!("[[registry]]\nlocation = '{name}'\n[[registry.mirror]]\nlocation = 'conf.example'");
        assert_eq!(Machine::new(&[("registries.conf", &conf)]).hosts("docker.io"), ["conf.example", "docker.io"]);
        let conf = format!("[[registry]]\nprefix = '{name}/team'\nlocation = 'r.example/x'");
        let machine = Machine::new(&[("registries.conf", &conf)]);
        let plan = machine.plan("docker.io").expect("sound");
        assert_eq!((plan.places[0].site.name.as_str(), plan.places[0].repository.as_str()), ("r.example", "x/app"));
        assert!(plan.rule.is_some_and(|rule| rule.ends_with(&format!("(registry {name}/team)"))), "as it is written");
        if name.starts_with('R') {
            continue;
        }
        let machine = Machine::new(&[(&format!("tree/{name}/hosts.toml"), TREE)]);
        assert_eq!(machine.hosts("docker.io"), ["tree.example", "docker.io"], "{name}");
        let machine = Machine::new(&[(&format!("certs.d/{name}/ca.crt"), "")]);
        let site = &machine.plan("docker.io").expect("sound").places[0].site;
        assert_eq!(site.wishes.authorities, [machine.dir.path().join(format!("certs.d/{name}/ca.crt"))]);
    }
    let table = |name: &str| format!("[[registry]]\nlocation = '{name}'\nmirror = [{{location = 'm-{name}'}}]\n");
    let all = ["registry-1.docker.io", "docker.io", "index.docker.io"].map(table).concat();
    let hosts = Machine::new(&[("registries.conf", &all)]).hosts("docker.io");
    assert_eq!(hosts, ["m-docker.io", "docker.io"], "the usual name counts");
}

/// What skopeo 1.9 and podman 4.3 do with the same tables: `docker_client.go` looks the name up at which it is about to ask.
#[test]
fn b_149_what_is_blocked_is_not_contacted_and_its_own_mirrors_are() {
    let blocked = "[[registry]]\nlocation = 'r.example'\nblocked = true\n";
    let mirrored = format!("{blocked}[[registry.mirror]]\nlocation = 'm.example'");
    let plan = Machine::new(&[("registries.conf", &mirrored)]).plan("r.example").expect("the mirror is not blocked");
    let places: Vec<_> = plan.places.iter().map(|place| (place.site.name.as_str(), place.is_own)).collect();
    assert_eq!((places, plan.push), (vec![("m.example", false)], None));
    let moved = "[[registry]]\nprefix = 'r.example'\nlocation = 'internal.example'\nblocked = true";
    assert_eq!(Machine::new(&[("registries.conf", moved)]).hosts("r.example"), ["internal.example"]);
    let mirror = "[[registry]]\nlocation = 'n.example'\n[[registry.mirror]]\nlocation = 'r.example/m'";
    assert_eq!(Machine::new(&[("registries.conf", &[blocked, mirror].concat())]).hosts("n.example"), ["n.example"]);
    let only = "[[registry]]\nprefix = 'n.example'\nlocation = 'r.example/n'";
    let error = Machine::new(&[("registries.conf", &[blocked, only].concat())]).plan("n.example").expect_err("blocked");
    let shown = error.to_string();
    assert!(shown.starts_with("n.example/team/app:v1 is blocked by") && shown.ends_with("(registry r.example)"));
    let tree = "[host.'https://r.example']\n[host.'https://tree.example']";
    let files = [("registries.conf", blocked), ("tree/n.example/hosts.toml", tree)];
    assert_eq!(Machine::new(&files).hosts("n.example"), ["tree.example", "n.example"]);
}

#[test]
fn b_149_what_is_blocked_is_blocked_whoever_else_speaks_of_it() {
    let conf = "[[registry]]\nlocation = 'r.example'\nblocked = true";
    let machine = Machine::new(&[("registries.conf", conf), ("tree/r.example/hosts.toml", TREE)]);
    let error = machine.plan("r.example").expect_err("blocked");
    assert_eq!(error.kind(), ErrorKind::Denied);
    let shown = error.to_string();
    assert!(
        shown.starts_with("r.example/team/app:v1 is blocked by /") && shown.ends_with("(registry r.example)"),
        "{shown}"
    );
}

#[test]
fn b_143_each_host_gets_the_certificates_of_its_own_directory() {
    let machine = Machine::new(&[
        ("registries.conf", CONF),
        ("certs.d/conf.example/ca.crt", ""),
        ("certs.d/r.example/client.cert", ""),
    ]);
    let plan = machine.plan("r.example").expect("sound");
    let file = |name: &str| machine.dir.path().join("certs.d").join(name);
    assert_eq!(plan.places[0].site.wishes.authorities, [file("conf.example/ca.crt")]);
    assert!(plan.places[0].site.wishes.identities.is_empty(), "b_148: nobody shows another host's certificate");
    let pair = Pair { certificate: file("r.example/client.cert"), key: None };
    assert_eq!(plan.places[1].site.wishes.identities, [pair]);
}

#[test]
fn b_141_an_authority_for_a_registry_on_this_machine_is_heeded() {
    let machine = Machine::new(&[("certs.d/localhost:5000/ca.crt", "")]);
    let site = &machine.plan("localhost:5000").expect("sound").places[0].site;
    assert_eq!(site.schemes, [Scheme::Tls]);
    assert!(site.wishes.direct && !site.wishes.unverified);
    let without = Machine::new(&[]).plan("localhost:5000").expect("sound");
    assert_eq!(without.places[0].site, Site::of("localhost:5000", false));
}

#[test]
fn b_142_an_insecure_registry_elsewhere_has_connections_of_its_own() {
    let machine = Machine::new(&[("registries.conf", "[[registry]]\nlocation = 'r.example'\ninsecure = true")]);
    let site = &machine.plan("r.example").expect("sound").places[0].site;
    assert_eq!(site.schemes, [Scheme::TlsUnverified, Scheme::Plain]);
    assert!(site.wishes.unverified && !site.wishes.direct);
}

#[test]
fn files_that_cannot_be_read_are_errors_and_endless_ones_are_cut_short() {
    let long = "#".repeat(usize::try_from(HOSTS_FILE_BYTES).expect("small") + 1);
    let error = Machine::new(&[("registries.conf", &long)]).plan("r.example").expect_err("too long");
    assert!(error.to_string().contains("registries.conf: it is longer than"), "{error}");
    let machine = Machine::new(&[("tree/r.example/hosts.toml/x", "")]);
    let error = machine.plan("r.example").expect_err("a directory");
    assert_eq!(error.kind(), ErrorKind::Misconfigured);
    let many: String = (0..ENDPOINTS).map(|number| format!("[host.'https://m{number}.example']\n")).collect();
    let error = Machine::new(&[("tree/r.example/hosts.toml", &many)]).plan("r.example").expect_err("too many");
    assert!(error.to_string().contains("names 17 hosts"), "{error}");
}

#[test]
fn hosts_are_told_from_paths() {
    for host in ["r.example", "r.example:5000", "[::1]:5000", "localhost"] {
        assert!(is_host(host), "{host}");
    }
    for other in ["", ".", "..", "a/b", "a b", "a\nb", ":5000", "a@b"] {
        assert!(!is_host(other), "{other:?}");
    }
}
