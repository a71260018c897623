use super::*;
use crate::oci::Digest;
use crate::source::ErrorKind;

fn conf(text: &str) -> Conf {
    parse(text, Path::new("/e/r.conf")).expect("sound")
}

/// Where `host`/`repository` is read from, with the rights of each place.
fn places(text: &str, host: &str, repository: &str, selector: &Selector) -> Vec<String> {
    let wanted = Wanted { host, repository, selector, plain_http: false };
    let conf = conf(text);
    let Some(rule) = conf.rule_of(&wanted.text()) else { return Vec::new() };
    let plan = rule.plan(&wanted);
    assert_eq!(plan.push.expect("the registry itself").repository, repository);
    let show = |place: &Place| {
        assert_eq!(place.ns, None);
        let resolves = if place.may.resolve { "" } else { " by digest" };
        format!("{}/{}{resolves}", place.site.name, place.repository)
    };
    plan.places.iter().map(show).collect()
}

fn tag() -> Selector {
    Selector::Tag("v1".to_owned())
}

fn digest() -> Selector {
    Selector::Digest(Digest::sha256(b""))
}

#[test]
fn b_149_mirrors_come_first_and_the_location_last() {
    let text = "
        [[registry]]
        prefix = 'example.com/foo'
        location = 'internal.example:5000/bar'
        [[registry.mirror]]
        location = 'm0.local/mirror-for-foo'
        [[registry.mirror]]
        location = 'm1.local:81/a/b/'
    ";
    let expected = ["m0.local/mirror-for-foo/image", "m1.local:81/a/b/image", "internal.example:5000/bar/image"];
    assert_eq!(places(text, "example.com", "foo/image", &tag()), expected);
    assert_eq!(places(text, "example.com", "foo/image", &digest()), expected);
    assert!(places(text, "example.com", "foobar/image", &tag()).is_empty(), "a prefix ends where a name ends");
    assert_eq!(
        places(text, "example.com", "foo", &tag()).last().map(String::as_str),
        Some("internal.example:5000/bar")
    );
}

#[test]
fn b_149_the_longest_prefix_counts() {
    let text = "
        [[registry]]
        location = 'example.com'
        blocked = true
        [[registry]]
        prefix = 'example.com/a/b:v1'
        location = 'tagged.example/x:v1'
        [[registry]]
        prefix = 'example.com/a'
        location = 'a.example'
        [[registry]]
        prefix = '*.example.com'
        insecure = true
    ";
    assert_eq!(places(text, "example.com", "a/c", &tag()), ["a.example/c"]);
    assert_eq!(places(text, "example.com", "a/b", &tag()), ["tagged.example/x"]);
    assert_eq!(places(text, "example.com", "a/b", &digest()), ["a.example/b"]);
    let conf = conf(text);
    let rule = |reference: &str| conf.rule_of(reference).map(|rule| (rule.prefix.as_str(), rule.blocked));
    assert_eq!(rule("example.com/b:1"), Some(("example.com", true)));
    for sub in ["x.example.com/b:1", "y.x.example.com:5000/b@sha256:0"] {
        assert_eq!(rule(sub), Some(("*.example.com", false)), "{sub}");
    }
    for other in ["example.org/b", "xexample.com/b", "h/x.example.com", "example.com.evil/b"] {
        assert_eq!(rule(other), None, "{other}");
    }
}

#[test]
fn b_149_names_of_docker_hub_have_their_library() {
    let text = "[[registry]]\nprefix = 'docker.io/library/alpine'\nlocation = 'docker.io/alpine'";
    assert_eq!(places(text, "docker.io", "library/alpine", &tag()), ["docker.io/library/alpine"]);
    let all = "[[registry]]\nlocation = 'docker.io'\n[[registry.mirror]]\nlocation = 'm.example/hub'";
    let expected = ["m.example/hub/library/alpine", "docker.io/library/alpine"];
    assert_eq!(places(all, "docker.io", "library/alpine", &tag()), expected);
}

#[test]
fn b_145_b_149_a_mirror_for_digests_does_not_resolve_and_one_for_tags_is_not_asked_for_digests() {
    let by_mirror = "
        [[registry]]
        location = 'r.example'
        [[registry.mirror]]
        location = 'd.example'
        pull-from-mirror = 'digest-only'
        [[registry.mirror]]
        location = 't.example'
        pull-from-mirror = 'tag-only'
    ";
    assert_eq!(places(by_mirror, "r.example", "a", &tag()), ["d.example/a by digest", "t.example/a", "r.example/a"]);
    assert_eq!(places(by_mirror, "r.example", "a", &digest()), ["d.example/a by digest", "r.example/a"]);
    let all = "[[registry]]\nlocation = 'r.example'\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = 'm.example'";
    assert_eq!(places(all, "r.example", "a", &tag()), ["m.example/a by digest", "r.example/a"]);
}

#[test]
fn b_142_b_149_only_what_is_insecure_may_be_spoken_to_in_the_clear() {
    let text = "
        [[registry]]
        location = 'r.example'
        insecure = true
        [[registry.mirror]]
        location = 'm.example'
    ";
    let selector = tag();
    let wanted = Wanted { host: "r.example", repository: "a", selector: &selector, plain_http: false };
    let conf = conf(text);
    let plan = conf.rule_of(&wanted.text()).expect("a rule").plan(&wanted);
    let schemes: Vec<_> = plan.places.iter().map(|place| place.site.schemes.clone()).collect();
    assert_eq!(schemes, [vec![Scheme::Tls], vec![Scheme::TlsUnverified, Scheme::Plain]]);
    assert_eq!(plan.push.expect("the registry").site.schemes, schemes[1]);
    assert_eq!(plan.rule.as_deref(), Some("/e/r.conf (registry r.example)"));
}

#[test]
fn b_149_drop_ins_are_laid_over_in_their_order() {
    let dir = tempfile::tempdir().expect("a directory");
    let (main, drop_ins) = (dir.path().join("registries.conf"), dir.path().join("registries.conf.d"));
    std::fs::create_dir(&drop_ins).expect("a directory");
    let rule = |location: &str| format!("[[registry]]\nprefix = 'r.example'\nlocation = '{location}'\n");
    let write = |path: PathBuf, text: String| std::fs::write(path, text).expect("a file");
    let search = |host: &str| format!("unqualified-search-registries = ['{host}']\n");
    let aliases = "[aliases]\n'a' = 'one/a'\n'b' = 'one/b'\n";
    write(main.clone(), format!("{}{}{aliases}", search("main"), rule("one")));
    write(drop_ins.join("20-x.conf"), format!("{}[aliases]\n'a' = 'two/a'\n'b' = ''", rule("three")));
    write(drop_ins.join("10-x.conf"), format!("{}{}", search("drop-in"), rule("two")));
    write(drop_ins.join("99-x.txt"), "not TOML".to_owned());
    let all = read(&[main.clone(), drop_ins.clone()]).expect("sound");
    let locations: Vec<_> = all.rules.iter().filter_map(|rule| rule.location.as_deref()).collect();
    assert_eq!(locations, ["three"]);
    assert_eq!(all.search.map(|(hosts, _)| hosts), Some(vec!["drop-in".to_owned()]));
    assert_eq!(all.aliases.into_iter().collect::<Vec<_>>(), [("a".to_owned(), "two/a".to_owned())]);
    assert_eq!(read(&[dir.path().join("none"), dir.path().join("none.d")]).expect("nothing"), Conf::default());
}

#[test]
fn b_149_b_150_mistakes_and_version_1_are_errors_that_name_file_and_line() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("registries.conf");
    for (text, place, problem) in [
        ("\n[registries.search]\nregistries = ['a']", "line 2:", "version 1"),
        ("[registries]\ninsecure = {registries = []}", "line 1:", "version 1"),
        ("\n[[registry]]\ninsecure = true", "line 2:", "a registry needs a prefix or a location"),
        ("[[registry]]\nlocation = 'https://r.example'", "line 2:", "has a scheme"),
        ("[[registry]]\n\nprefix = '*.example.com/foo'", "line 3:", "is no prefix"),
        ("[[registry]]\nprefix = 'a b'\nlocation = 'r'", "line 2:", "is no prefix"),
        (
            "[[registry]]\nblocked = true\nprefix = 'r.example/a'",
            "line 3:",
            "registry \"r.example/a\" needs a location",
        ),
        ("[[registry]]\nprefix = '*'\nlocation = ''", "line 2:", "needs a location"),
        ("[[registry]]\nlocation = 'r'\n[[registry.mirror]]\ninsecure = true", "line 3:", "a mirror needs a location"),
        ("[[registry]]\nlocation = 'r'\n[[registry.mirror]]\nlocation = 'a b'", "line 4:", "is no location"),
        ("[[registry]]\nlocation = 'r'\n[[registry]]\nlocation = 'r/'", "line 3:", "two tables"),
        ("[[registry]]\nlocation = 'r'\npull-from-mirror = 'all'", "line 3:", "belongs into"),
        ("[[registry]]\nlocation = 'r'\nmirror = [{location = 'm', pull-from-mirror = 'some'}]", "line 3:", "\"some\""),
        ("[[registry]]\nlocation = 'r'\ninsecure = 'yes'", "line 3:", "invalid type"),
        ("unqualified-search-registries = [\n'a',\n'a/b']", "line 3:", "which is no host"),
        ("unqualified-search-registries = 'a'", "line 1:", "invalid type"),
        ("[[registry]", "line 1:", ""),
    ] {
        std::fs::write(&file, text).expect("a file");
        let error = read(std::slice::from_ref(&file)).expect_err(text);
        let shown = error.to_string();
        assert_eq!(error.kind(), ErrorKind::Misconfigured);
        assert!(shown.contains(&format!("{}:", file.display())), "{shown}");
        assert!(shown.contains(place) && shown.contains(problem), "{text:?} gives {shown}");
    }
}

proptest::proptest! {
    #[test]
    fn any_file_and_any_reference_give_no_panic(
        text in "(\\[\\[registry\\]\\]\n|prefix = 'a'\n|location = '[a-z:/@.*]{0,8}'\n|insecure = true\n|\\PC){0,12}",
        repository in "[a-z/:@.]{0,12}",
    ) {
        if let Ok(conf) = parse(&text, Path::new("/r")) {
            let selector = tag();
            let wanted = Wanted { host: "a", repository: &repository, selector: &selector, plain_http: false };
            if let Some(rule) = conf.rule_of(&wanted.text()) {
                drop(rule.plan(&wanted));
            }
        }
    }
}
