use proptest::prelude::*;

use super::*;
use crate::oci::DigestError;

const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn name(text: &str) -> RegistryName {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn fails(text: &str) -> ReferenceError {
    text.parse::<Reference>().expect_err(text)
}

#[test]
fn b_001_short_names_mean_docker_hub() {
    for text in ["alpine", "docker.io/alpine", "index.docker.io/alpine", "docker.io/library/alpine"] {
        let name = name(text);
        assert_eq!(name.to_string(), "docker.io/library/alpine:latest", "{text}");
        assert_eq!(name.api_host(), "registry-1.docker.io");
        assert_eq!(name.familiar(), "alpine:latest");
    }
    assert_eq!(name("alpine:3").tag(), Some("3"));
}

#[test]
fn b_002_the_first_part_is_a_host_if_it_cannot_be_a_repository() {
    for (text, host, repository) in [
        ("a/b", "docker.io", "a/b"),
        ("localhost/b", "localhost", "b"),
        ("foo.bar/b", "foo.bar", "b"),
        ("foo:5000/b", "foo:5000", "b"),
        ("Foo/b", "Foo", "b"),
    ] {
        let name = name(text);
        assert_eq!((name.host(), name.repository()), (host, repository), "{text}");
        assert_eq!(name.api_host(), if host == "docker.io" { "registry-1.docker.io" } else { host });
    }
}

#[test]
fn b_003_b_004_a_port_without_a_repository_is_a_tag_and_advice_says_so() {
    let dotted = name("test.com:5000");
    assert_eq!(dotted.to_string(), "docker.io/library/test.com:5000");
    assert_eq!(name("test.com").repository(), "library/test.com");
    let local = name("localhost:5000");
    assert_eq!((local.repository(), local.tag()), ("library/localhost", Some("5000")));
    assert!(local.advice().expect("advice").contains("localhost:5000/IMAGE"));
    assert!(dotted.advice().is_some());
    assert_eq!(name("debian:12").advice(), None);
    assert_eq!(name("localhost:5000/x").advice(), None);
}

#[test]
fn b_005_ipv6_hosts_need_valid_brackets() {
    assert_eq!(name("[::1]:5000/i:t").host(), "[::1]:5000");
    assert_eq!(name("[fddd::5a6a]/i").host(), "[fddd::5a6a]");
    for text in ["[1::2::3]/i", "::1/i", "[::1/i", "[::1]x/i"] {
        assert!(matches!(fails(text), ReferenceError::Host { .. }), "{text}");
    }
}

#[test]
fn b_006_a_digest_decides_and_the_tag_stays_for_display() {
    let text = format!("docker.io/library/repo:tag@sha256:{HEX}");
    let pinned = name(&text);
    assert_eq!(pinned.to_string(), text);
    assert_eq!(pinned.digest().map(Digest::hex).as_deref(), Some(HEX));
    assert!(Reference::Registry(pinned).is_pinned());
    assert_eq!(name(&format!("repo@sha256:{HEX}")).tag(), None);
    assert!(!"repo:tag".parse::<Reference>().expect("a name").is_pinned());
}

#[test]
fn b_007_a_bare_identifier_is_not_a_name() {
    assert!(matches!(fails(HEX), ReferenceError::Identifier(_)));
    assert_eq!(name(&format!("docker.io/{HEX}")).repository(), format!("library/{HEX}"));
}

#[test]
fn b_008_digests_in_names_are_valid_or_refused() {
    let upper = HEX.to_uppercase();
    for digest in [&format!("sha256:{}", &HEX[1..]), &format!("sha256:{upper}"), "sha256:", "x", "", "sha256:a@b"] {
        let error = fails(&format!("repo@{digest}"));
        assert!(matches!(error, ReferenceError::Digest { problem: DigestError::Malformed(_), .. }), "{digest}");
    }
    assert!(format!("repo@sha512:{HEX}{HEX}").parse::<Reference>().expect("sha512").is_pinned());
    let blake3 = fails(&format!("repo@blake3:{HEX}"));
    assert!(matches!(blake3, ReferenceError::Digest { problem: DigestError::Unsupported(_), .. }));
}

#[test]
fn b_009_the_grammar_of_names_is_dockers() {
    for text in ["docker/Docker", "-a/b", "a-/b", "a..b", "a___b", "a//b", "/a", "a/", "a/b/", "a._b", "tag^", "é"] {
        assert!(text.parse::<RegistryName>().is_err(), "{text}");
    }
    let long = "t".repeat(129);
    for tag in ["", "^", "-x", ".x", "a b", "a:b", &long] {
        assert!(matches!(fails(&format!("a:{tag}")), ReferenceError::Tag { .. }), "{tag}");
    }
    for text in ["a__b", "a---b", "a.b_c", "0", "foo.bar:1/a/b/c", &format!("a:{}", &long[1..])] {
        name(text);
    }
}

#[test]
fn b_009_mistakes_are_explained() {
    assert!(fails("https://ghcr.io/a").to_string().contains("without https://"));
    assert!(fails("./dir").to_string().contains("oci:DIRECTORY"));
    assert!(fails("/srv/x.tar").to_string().contains("docker-archive:FILE"));
    assert!(fails("docker-daemon:a:b").to_string().contains("cannot read images from docker-daemon:"));
    assert!(fails("containers-storage:a").to_string().contains("cannot read images from containers-storage:"));
    assert!(fails("::1/i").to_string().contains("invalid registry host"));
    assert!(fails("a/B").to_string().contains("lower case"));
    assert!(fails("oci:").to_string().contains("oci:PATH"));
}

#[test]
fn b_010_repositories_have_at_most_255_characters() {
    let longest = "a".repeat(255 - "library/".len());
    assert_eq!(name(&longest).repository().len(), 255);
    assert!(matches!(fails(&format!("{longest}a")), ReferenceError::Repository { .. }));
    assert_eq!(name(&format!("host.example/{}", "a".repeat(255))).repository().len(), 255);
}

#[test]
fn b_011_tags_may_start_with_underscores() {
    assert_eq!(name("a:__a--b..5__").tag(), Some("__a--b..5__"));
}

#[test]
fn b_012_local_places_and_their_selectors() {
    let index = |index| Some(LocalSelector::Index(index));
    let named = |name: &str| Some(LocalSelector::Name(name.to_owned()));
    let digest = Some(LocalSelector::Digest(Digest::sha256(b"")));
    for (text, path, selector) in [
        ("oci:dir", "dir", None),
        ("oci:/a/b:ref", "/a/b", named("ref")),
        ("oci:dir:docker.io/library/debian:12", "dir", named("docker.io/library/debian:12")),
        ("oci:dir:@0", "dir", index(0)),
        ("oci:a@b", "a@b", None),
        (&format!("oci:dir@sha256:{HEX}"), "dir", digest.clone()),
    ] {
        let Reference::Layout(local) = text.parse().expect(text) else { panic!("{text} is a layout") };
        assert_eq!((local.path(), local.selector()), (Path::new(path), selector.as_ref()), "{text}");
        assert_eq!(Reference::Layout(local).to_string(), text);
    }
    let spelled = format!("oci:dir:@sha256:{HEX}").parse::<Reference>().expect("a digest after a colon");
    assert_eq!(spelled.to_string(), format!("oci:dir@sha256:{HEX}"));
    assert!(spelled.is_pinned());
    assert!(matches!("oci-archive:f:ref".parse(), Ok(Reference::OciArchive(_))));
    let Ok(Reference::DockerArchive(local)) = "docker-archive:f:@1".parse() else { panic!("a docker archive") };
    assert_eq!(local.selector(), index(1).as_ref());
}

#[test]
fn b_012_selectors_that_select_nothing_are_refused() {
    for text in ["oci:d:", "oci:d:@", "oci:d:@x", "oci:d:@-1", "oci:d:@99999999999999999999"] {
        assert!(matches!(fails(text), ReferenceError::Selector(_)), "{text}");
    }
    assert!(matches!(fails(&format!("oci:d:tag@sha256:{HEX}")), ReferenceError::Selector(_)));
    assert!(matches!(fails("oci:d@sha256:12"), ReferenceError::Digest { .. }));
    assert!(matches!(fails("oci-archive::tag"), ReferenceError::NoPath { .. }));
}

#[test]
fn relative_paths_are_taken_to_start_at_a_directory() {
    let against = |text: &str, directory: &str| text.parse::<Reference>().expect(text).against(Path::new(directory));
    assert_eq!(against("oci:d:t", "/srv").expect("joined").to_string(), "oci:/srv/d:t");
    assert_eq!(against("oci-archive:/f:@1", "/srv").expect("absolute").to_string(), "oci-archive:/f:@1");
    assert_eq!(against("debian", "/s:v").expect("no path").to_string(), "docker.io/library/debian:latest");
    assert!(matches!(against("docker-archive:f", "/s:v"), Err(ReferenceError::Unwritable(_))));
}

#[test]
fn a_host_named_like_a_transport_reads_back() {
    let reference: Reference = "docker://oci:5000/x".parse().expect("a host called oci");
    assert_eq!(reference.to_string(), "docker://oci:5000/x:latest");
    assert_eq!(reference.to_string().parse(), Ok(reference));
}

#[test]
fn d_070_errors_show_no_escape_sequences() {
    for text in ["a\x1b[2J", "a:\x1b", "\x1b/x", "oci:d:@\x1b", "\x1b://x", "/\x1b\u{202e}", "a@\u{202e}", "a@b:\x1b"] {
        assert!(!fails(text).to_string().contains(['\x1b', '\u{202e}']), "{text:?}");
    }
}

proptest! {
    #[test]
    fn every_text_is_refused_or_reads_back_the_same(
        text in prop_oneof![
            "((docker://|oci:|oci-archive:)?[a-zA-Z0-9.:/@_-]{0,24})",
            "(docker://)?([a-z]{1,4}(\\.[a-z]{1,3})?(:[0-9]{1,6})?/){0,2}[a-z0-9._-]{1,6}(:[a-zA-Z0-9_.-]{1,5})?",
            ".{0,40}",
        ],
        pin: bool,
    ) {
        let text = if pin { format!("{text}@sha256:{HEX}") } else { text };
        match text.parse::<Reference>() {
            Ok(reference) => {
                prop_assert_eq!(reference.is_pinned(), pin);
                prop_assert_eq!(reference.to_string().parse::<Reference>(), Ok(reference));
            }
            Err(error) => prop_assert!(!error.to_string().chars().any(char::is_control)),
        }
    }
}
