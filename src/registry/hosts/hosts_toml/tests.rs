use super::*;
use crate::registry::Selector;
use crate::source::ErrorKind;

fn tree(text: &str) -> Tree {
    let (hosts, server) = parse(text, Path::new("/t/h")).expect("sound");
    Tree { file: "/t/h/hosts.toml".into(), is_default: false, hosts, server }
}

fn plan(text: &str, host: &str) -> Plan {
    let selector = Selector::Tag("v1".to_owned());
    tree(text).plan(&Wanted { host, repository: "team/app", selector: &selector, plain_http: false })
}

/// What is contacted at each place, and the registry that it is told to stand in for.
fn shown(plan: &Plan) -> Vec<String> {
    let show = |place: &Place| {
        let site = &place.site;
        let ns = place.ns.as_ref().map_or_else(String::new, |ns| format!(" ns={ns}"));
        let may = place.may;
        let letter = |may: bool, letter: &'static str| if may { letter } else { "" };
        let may = [letter(may.pull, "p"), letter(may.resolve, "r"), letter(may.push, "w")].concat();
        format!("{:?} {}/{} {may}{ns}", site.schemes, site.contact, site.root.join("/"))
    };
    plan.places.iter().map(show).collect()
}

#[test]
fn b_144_hosts_are_asked_in_the_order_of_the_text_and_the_registry_last() {
    let text =
        "[host.\"https://z.example\"]\n[host.\"http://a.example:5000\"]\ncapabilities = ['pull']\n[host.'m.example']";
    let plan = plan(text, "r.example:5000");
    assert_eq!(
        shown(&plan),
        [
            "[Tls] z.example/v2 prw ns=r.example:5000",
            "[Plain] a.example:5000/v2 p ns=r.example:5000",
            "[Tls] m.example/v2 prw ns=r.example:5000",
            "[Tls] r.example:5000/v2 prw",
        ]
    );
    assert_eq!(plan.rule.as_deref(), Some("/t/h/hosts.toml"));
}

#[test]
fn b_144_a_server_stands_in_for_the_registry() {
    let text = "server = 'https://mirror.example'\ncapabilities = ['pull', 'Resolve']";
    let plan = plan(text, "r.example");
    assert_eq!(shown(&plan), ["[Tls] mirror.example/v2 pr ns=r.example"]);
    assert_eq!(plan.push, None, "nobody may be written to");
}

#[test]
fn b_146_docker_hub_is_not_told_that_its_own_images_are_wanted() {
    let text =
        "server = 'https://registry-1.docker.io'\n[host.'https://m.example']\ncapabilities = ['pull', 'resolve']";
    let plan = plan(text, "docker.io");
    assert_eq!(shown(&plan), ["[Tls] m.example/v2 pr ns=docker.io", "[Tls] registry-1.docker.io/v2 prw"]);
    assert_eq!(plan.push.expect("the registry").site.name, "docker.io");
}

#[test]
fn b_144_paths_end_in_v2_unless_that_is_overridden() {
    let path = |host: &str, more: &str| {
        let text = format!("[host.'{host}']\n{more}");
        plan(&text, "r.example").places[0].site.root.join("/")
    };
    for (host, root) in [
        ("https://m.example", "v2"),
        ("https://m.example/", "v2"),
        ("https://m.example/v2", "v2"),
        ("https://m.example/a//b/", "a/b/v2"),
    ] {
        assert_eq!(path(host, ""), root, "{host}");
    }
    assert_eq!(path("https://m.example/a/b", "override_path = true"), "a/b");
    assert_eq!(path("https://m.example", "override_path = true"), "");
}

#[test]
fn b_144_certificates_headers_and_time_outs_belong_to_their_table() {
    let text = r#"
        ca = ["ca.pem", "/abs/ca.pem"]
        skip_verify = true
        [header]
        x-a = "b"
        [host."https://m.example"]
        ca = "m.pem"
        client = [["c.pem", "k.pem"], ["both.pem", ""]]
        dial_timeout = "1m1.5s"
        proxy = "http://proxy:8080"
        [host."https://m.example".header]
        authorization = ["hunter2"]
        [host."http://n.example:5000"]
        client = "c.pem"
    "#;
    let plan = plan(text, "r.example");
    let [mirror, plain, own] = &plan.places[..] else { panic!("three places: {plan:?}") };
    let pair =
        |certificate: &str, key: Option<&str>| Pair { certificate: certificate.into(), key: key.map(PathBuf::from) };
    let wishes = Wishes {
        authorities: vec!["/t/h/m.pem".into()],
        identities: vec![pair("/t/h/c.pem", Some("/t/h/k.pem")), pair("/t/h/both.pem", None)],
        connect: Some(Duration::from_millis(61_500)),
        proxy: Some("http://proxy:8080".to_owned()),
        ..Wishes::default()
    };
    assert_eq!(mirror.site.wishes, wishes);
    assert_eq!(mirror.site.headers, [("authorization".to_owned(), Secret::new("hunter2"))]);
    assert!(!format!("{plan:?}").contains("hunter2"), "d_034");
    assert_eq!(plain.site.schemes, [Scheme::Tls, Scheme::Plain]);
    assert_eq!(own.site.schemes, [Scheme::TlsUnverified]);
    assert_eq!(own.site.wishes.authorities, [Path::new("/t/h/ca.pem"), Path::new("/abs/ca.pem")]);
    assert_eq!(own.site.headers, [("x-a".to_owned(), Secret::new("b"))]);
}

#[test]
fn b_144_the_directory_is_named_with_the_port_apart_or_plain_or_default() {
    let dir = tempfile::tempdir().expect("a directory");
    let trees = [dir.path().join("one"), dir.path().join("two")];
    let found = |host: &str| read(&trees, host).expect("sound").map(|tree| (tree.file, tree.is_default));
    let write = |name: &str, text: &str| {
        let file = dir.path().join(name).join("hosts.toml");
        std::fs::create_dir_all(file.parent().expect("a directory")).expect("a directory");
        std::fs::write(&file, text).expect("a file");
        file
    };
    assert_eq!(found("h:5000"), None);
    let default = write("two/_default", "server = 'https://m.example'");
    assert_eq!(found("h:5000"), Some((default.clone(), true)));
    let plain = write("two/h:5000", "server = 'https://m.example'");
    assert_eq!(found("h:5000"), Some((plain, false)));
    let apart = write("one/h_5000_", "server = 'https://m.example'");
    assert_eq!(found("h:5000"), Some((apart, false)));
    assert_eq!(found("h"), Some((default, true)));
    std::fs::create_dir(trees[0].join("h")).expect("a directory");
    assert_eq!(found("h"), None, "it holds certificates only");
    assert_eq!(found("../two/h:5000"), None);
}

#[test]
fn b_144_mistakes_are_errors_that_name_file_and_line() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("h/hosts.toml");
    std::fs::create_dir(dir.path().join("h")).expect("a directory");
    for (text, place, problem) in [
        ("server = ", "line 1", ""),
        ("\n[host.'https://m.example']\ncapabilities = ['pull',\n'fly']", "line 4:", "unknown capability \"fly\""),
        ("\n\n[host.'ftp://m.example']", "line 3:", "is not the address of a host"),
        ("[host.'https://u:p@m.example']", "line 1:", "is not the address of a host"),
        ("[host.'https://m.example/../x']", "line 1:", "is not the address of a host"),
        ("[host.'https://m.example']\ndial_timeout = '5'", "line 2:", "is not a duration"),
        ("[host.'https://m.example'.header]\n'a b' = 'c'", "line 2:", "header \"a b\" cannot be sent"),
        ("\nproxy = 'ftp://p'", "line 2:", "the proxy is not an address"),
        ("\nserver = 'ftp://m.example'", "line 2:", "is not the address of a host"),
        ("\n\ncapabilities = 'pull'", "line 3:", "invalid type"),
        ("[host.'https://m.example']\nca = 7", "line 2:", ""),
    ] {
        std::fs::write(&file, text).expect("a file");
        let error = read(&[dir.path().to_owned()], "h").expect_err(text);
        let shown = error.to_string();
        assert_eq!(error.kind(), ErrorKind::Misconfigured);
        assert!(shown.contains(&format!("{}:", file.display())), "{shown}");
        assert!(shown.contains(place) && shown.contains(problem), "{text:?} gives {shown}");
    }
}

#[test]
fn durations_are_those_of_go() {
    for (text, milliseconds) in [("1s", 1000), ("500ms", 500), ("1m30s", 90_000), ("1.5h", 5_400_000), ("2000us", 2)] {
        assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
    }
    for text in ["", "5", "s", "1d", "-1s", "0s", "1..5s", "1s5", "9e9h"] {
        assert!(duration(text).is_err(), "{text}");
    }
}

proptest::proptest! {
    #[test]
    fn any_file_parses_without_a_panic(text in "([\\[\\]\"'.=\\n]|host|server|https://a|capabilities|pull|header|\\PC){0,60}") {
        drop(parse(&text, Path::new("/t")));
    }
}
