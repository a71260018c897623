use super::*;
use crate::oci::Digest;

const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";

fn platform(text: &str) -> Platform {
    text.parse().expect("a platform")
}

fn entry(name: &str, platform: Option<Platform>) -> IndexEntry {
    let descriptor = Descriptor::new(IMAGE, Digest::sha256(name.as_bytes()), 1);
    IndexEntry { descriptor, platform, artifact_type: None }
}

fn entries(platforms: &[&str]) -> Vec<IndexEntry> {
    platforms.iter().map(|text| entry(text, Some(platform(text)))).collect()
}

fn chosen(offered: &[&str], wanted: &Wanted) -> Option<String> {
    let entries = entries(offered);
    select(&entries, wanted).ok().map(|entry| entry.platform.as_ref().expect("a platform").to_string())
}

#[test]
fn b_051_platforms_are_normalised_like_containerds() {
    for (text, normal) in [
        ("linux/x86_64", "linux/amd64"),
        ("linux/amd64/v1", "linux/amd64"),
        ("Linux/AMD64/V2", "linux/amd64/v2"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/armhf", "linux/arm/v7"),
        ("linux/armel", "linux/arm/v6"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/i386", "linux/386"),
        ("macos/arm64", "darwin/arm64"),
    ] {
        assert_eq!(platform(text).to_string(), normal, "{text}");
        assert_eq!(platform(normal), platform(text));
    }
    for text in ["", "linux", "linux/", "/amd64", "linux/arm/v7/x", "linux/a b", "linux/\x1b"] {
        let error = text.parse::<Platform>().expect_err(text).to_string();
        assert!(error.contains("os/architecture") && !error.contains('\x1b'));
    }
    assert_eq!(Platform::host().os(), "linux");
}

#[test]
fn b_052_an_arm_v7_machine_runs_older_code_but_not_newer() {
    let host = Wanted::Host(platform("linux/arm/v7"));
    let mut offered = vec!["linux/arm/v8", "linux/arm/v5", "linux/arm/v6", "linux/arm/v7"];
    for best in ["linux/arm/v7", "linux/arm/v6", "linux/arm/v5"] {
        assert_eq!(chosen(&offered, &host).as_deref(), Some(best));
        offered.retain(|text| *text != best);
    }
    assert_eq!(chosen(&offered, &host), None);
}

#[test]
fn b_053_newer_machines_fall_back_to_older_levels() {
    let arm64 = Wanted::Host(platform("linux/arm64"));
    assert_eq!(chosen(&["linux/arm/v6", "linux/arm/v8", "linux/arm64"], &arm64).as_deref(), Some("linux/arm64"));
    assert_eq!(chosen(&["linux/arm/v6", "linux/arm/v8"], &arm64).as_deref(), Some("linux/arm/v8"));
    let amd64 = Wanted::Host(platform("linux/amd64/v3"));
    let mut offered = vec!["linux/386", "linux/amd64", "linux/amd64/v2", "linux/amd64/v3", "linux/amd64/v4"];
    for best in ["linux/amd64/v3", "linux/amd64/v2", "linux/amd64", "linux/386"] {
        assert_eq!(chosen(&offered, &amd64).as_deref(), Some(best));
        offered.retain(|text| *text != best);
    }
    assert_eq!(chosen(&offered, &amd64), None);
    assert_eq!(chosen(&["windows/amd64"], &amd64), None);
}

#[test]
fn b_054_an_explicit_platform_is_matched_exactly_and_failure_lists_what_there_is() {
    let wanted = Wanted::Exactly(platform("linux/arm64"));
    let offered = entries(&["linux/arm/v8", "linux/arm64/v9", "linux/amd64", "linux/amd64"]);
    let error = select(&offered, &wanted).expect_err("no arm64");
    assert_eq!(error.to_string(), "no image for linux/arm64; there are linux/arm/v8, linux/arm64/v9, linux/amd64");
    assert_eq!(chosen(&["linux/amd64", "linux/arm64/v8"], &wanted).as_deref(), Some("linux/arm64"));
}

#[test]
fn b_047_an_empty_index_has_no_match() {
    let error = select(&[], &Wanted::Host(platform("linux/amd64"))).expect_err("nothing to choose");
    assert_eq!(error.to_string(), "no image for this machine (linux/amd64); there are no images at all");
}

#[test]
fn b_049_an_entry_without_platform_is_the_last_resort() {
    let host = Wanted::Host(platform("linux/amd64"));
    let mut offered = vec![entry("bare", None), entry("amd64", Some(platform("linux/amd64")))];
    assert_eq!(select(&offered, &host), Ok(&offered[1]));
    assert_eq!(ranked(&offered, &host).len(), 2);
    offered.pop();
    assert_eq!(select(&offered, &host), Ok(&offered[0]));
    assert!(host.accepts(&platform("linux/386")) && !host.accepts(&platform("linux/arm64")));
}

#[test]
fn b_050_the_first_of_equals_wins() {
    let offered = [entry("first", Some(platform("linux/amd64"))), entry("second", Some(platform("linux/amd64/v1")))];
    assert_eq!(select(&offered, &Wanted::Exactly(platform("linux/amd64"))), Ok(&offered[0]));
}

#[test]
fn b_055_versions_count_on_windows_and_features_must_be_there() {
    let with = |text: &str, version: &str, features: &[&str]| {
        let features = features.iter().map(|feature| (*feature).to_owned()).collect();
        platform(text).with_os(Some(version.to_owned()), features)
    };
    let windows = Wanted::Exactly(with("windows/amd64", "10.0.17763.1", &[]));
    assert!(windows.accepts(&with("windows/amd64", "10.0.17763.999", &[])));
    assert!(!windows.accepts(&with("windows/amd64", "10.0.20348.1", &[])));
    let linux = Wanted::Host(with("linux/amd64", "5.0", &["sse4"]));
    assert!(linux.accepts(&with("linux/amd64", "6.1", &["sse4"])));
    assert!(!linux.accepts(&with("linux/amd64", "5.0", &["sse4", "win32k"])));
}

#[test]
fn b_056_attestations_and_artifacts_are_never_selected() {
    let mut attestation = entry("attestation", None);
    attestation.descriptor.annotations.insert("vnd.docker.reference.type".into(), "attestation-manifest".into());
    let mut artifact = entry("artifact", None);
    artifact.artifact_type = Some("application/spdx+json".into());
    let mut other = entry("b_022_unknown_media_type", Some(platform("linux/amd64")));
    other.descriptor.media_type = "application/x-unknown".into();
    let offered = [entry("unknown", Some(platform("unknown/unknown"))), attestation, artifact, other];
    for wanted in ["linux/amd64", "unknown/unknown"] {
        select(&offered, &Wanted::Exactly(platform(wanted))).expect_err("nothing runnable");
    }
}

#[test]
fn d_070_platforms_in_errors_are_escaped() {
    let offered = [entry("evil", Some(Platform::new("linux", "\x1b[2J", None)))];
    let error = select(&offered, &Wanted::Host(platform("linux/amd64"))).expect_err("no match");
    assert!(error.to_string().contains("\\x1b[2j"));
}
