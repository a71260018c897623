use super::*;

const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn document(rest: &str) -> String {
    format!(
        r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{EMPTY}"]}},"history":[{{}},{{}}]{rest}}}"#
    )
}

fn parse(text: &str) -> ImageConfig {
    ImageConfig::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn fails(text: &str) -> ConfigError {
    ImageConfig::parse(text.as_bytes()).expect_err(text)
}

#[test]
fn everything_a_runtime_needs_is_read() {
    let config = parse(&document(
        r#","created":"2026-01-02T03:04:05.6Z","author":"me","variant":"v1","config":{"User":"1:2","Env":["A=1","B"],
        "Entrypoint":["/e"],"Cmd":["c","d"],"WorkingDir":"/w","Labels":{"l":"1"},"ExposedPorts":{"80/tcp":{},"1/udp":{}},
        "Volumes":{"/v":{}},"StopSignal":"SIGINT"}"#,
    ));
    assert_eq!(config.platform.to_string(), "linux/amd64");
    assert_eq!(config.diff_ids, [Digest::sha256(b"")]);
    assert_eq!(config.created.as_deref(), Some("2026-01-02T03:04:05.6Z"));
    assert_eq!(config.author.as_deref(), Some("me"));
    assert_eq!((config.entrypoint, config.cmd), (vec!["/e".to_owned()], vec!["c".to_owned(), "d".to_owned()]));
    assert_eq!(config.env, ["A=1", "B"]);
    assert_eq!((config.user.as_deref(), config.working_dir.as_deref()), (Some("1:2"), Some("/w")));
    assert_eq!(config.labels["l"], "1");
    assert_eq!(config.exposed_ports.into_iter().collect::<Vec<_>>(), ["1/udp", "80/tcp"]);
    assert!(config.volumes.contains("/v"));
    assert_eq!((config.stop_signal.as_deref(), config.history_len), (Some("SIGINT"), 2));
}

#[test]
fn c_027_null_is_absent() {
    let plain = parse(&document(""));
    let nulls = r#","created":null,"variant":null,"config":null"#;
    assert_eq!(parse(&document(nulls)), plain);
    let inner = r#","config":{"User":null,"Env":null,"Cmd":null,"Labels":null,"Volumes":null,"WorkingDir":""}"#;
    assert_eq!(parse(&document(inner)), plain);
    assert_eq!(parse(&document(r#","config":{"Cmd":[null],"Labels":{"a":null}}"#)).cmd, [""]);
}

#[test]
fn c_028_unknown_fields_are_ignored() {
    let rest = r#","config":{"Healthcheck":{"Test":["x"]},"Memory":1,"OnBuild":["y"],"Shell":null,"ArgsEscaped":true},
        "container_config":{"Cmd":["no"]},"docker_version":"1""#;
    assert_eq!(parse(&document(rest)), parse(&document("")));
}

#[test]
fn c_030_keys_match_in_any_case_but_the_exact_spelling_wins() {
    let config =
        parse(&document(r#","Author":"a","config":{"entrypoint":["/e"],"ENV":["A=1"],"cmd":["x"],"Cmd":["y"]}"#));
    assert_eq!((config.entrypoint, config.env, config.cmd), (vec!["/e".into()], vec!["A=1".into()], vec!["y".into()]));
    assert_eq!(config.author.as_deref(), Some("a"));
    let first = parse(&document(r#","config":{"Cmd":["y"],"cmd":["x"]}"#));
    assert_eq!(first.cmd, ["y"]);
}

#[test]
fn b_063_only_root_file_systems_of_layers() {
    for rootfs in [r#"{"type":"blocks","diff_ids":[]}"#, r#"{"diff_ids":[]}"#, "null", "{}"] {
        let text = format!(r#"{{"os":"linux","rootfs":{rootfs}}}"#);
        assert!(matches!(fails(&text), ConfigError::RootfsType(_)), "{rootfs}");
    }
    assert!(parse(r#"{"rootfs":{"type":"layers","diff_ids":null}}"#).diff_ids.is_empty());
}

#[test]
fn b_065_duplicate_keys_are_refused() {
    let twice = document(r#","config":{"Cmd":["x"],"Cmd":["y"]}"#);
    assert!(fails(&twice).to_string().contains("given twice"));
}

#[test]
fn b_064_d_005_diff_ids_are_digests_that_can_be_verified() {
    let with = |text: &str| fails(&document("").replace(EMPTY, text));
    assert!(matches!(with("sha256:../x"), ConfigError::DiffId { problem: DigestError::Malformed(_), .. }));
    assert!(matches!(with("blake3:00"), ConfigError::DiffId { problem: DigestError::Unsupported(_), .. }));
}

#[test]
fn d_016_size_and_layers_are_bounded() {
    let mut bytes = document("").into_bytes();
    bytes.resize(usize::try_from(limits::CONFIG_BYTES).expect("fits") + 1, b' ');
    assert!(matches!(ImageConfig::parse(&bytes), Err(ConfigError::TooLong(_))));
    let many = vec![format!("\"{EMPTY}\""); limits::LAYERS + 1].join(",");
    assert!(matches!(fails(&document("").replace(&format!("\"{EMPTY}\""), &many)), ConfigError::TooManyLayers(_)));
    assert!(matches!(fails(&document(r#","config":{"Cmd":"sh"}"#)), ConfigError::Json(_)));
}
