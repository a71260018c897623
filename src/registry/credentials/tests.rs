//! Look-ups in credential files and through helper programs.

use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;

use super::*;

impl AuthFile {
    fn entry_of(&self, host: &str, repository: &str) -> Option<Proof> {
        self.entries_of(host, repository).into_iter().find_map(|(_, entry)| entry.proof())
    }
}

fn file(json: &str) -> AuthFile {
    serde_json::from_str(json).expect("a valid file")
}

fn password(user: &str, password: &str) -> Option<Proof> {
    Some(Proof::Password { user: user.to_owned(), password: Secret::new(password) })
}

fn entry(json: &str) -> Option<Proof> {
    file(&format!(r#"{{"auths":{{"h":{json}}}}}"#)).entry_of("h", "a/b")
}

fn stored(directory: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
    let path = directory.path().join(name);
    std::fs::write(&path, text).expect("the directory is writable");
    path
}

async fn find(files: &[&PathBuf], host: &str, repository: &str) -> Result<Found, Error> {
    let files = files.iter().map(|&path| path.clone()).collect();
    Credentials::new(files, Duration::from_secs(60)).find(host, repository).await
}

#[test]
fn b_134_the_longest_part_of_the_path_wins() {
    let pair = |name: &str| format!(r#"{{"username":"{name}","password":"p"}}"#);
    let json = format!(
        r#"{{"auths":{{"h":{},"h/a":{},"h/a/b":{},"h/a/bc":{},"other/a/b/c":{}}}}}"#,
        pair("host"),
        pair("a"),
        pair("ab"),
        pair("abc"),
        pair("other")
    );
    let file = file(&json);
    for (repository, user) in
        [("a/b/c", "ab"), ("a/b", "ab"), ("a/bc", "abc"), ("a/bcd", "a"), ("x", "host"), ("a", "a")]
    {
        assert_eq!(file.entry_of("h", repository), password(user, "p"), "{repository}");
    }
    assert_eq!(file.entry_of("h:5000", "a/b"), None);
}

#[test]
fn b_135_all_spellings_of_a_host_are_equal() {
    for (key, host) in [
        ("https://index.docker.io/v1/", "docker.io"),
        ("docker.io", "docker.io"),
        ("registry-1.docker.io", "docker.io"),
        ("index.docker.io/v1/", "docker.io"),
        ("http://h/v1/", "h"),
        ("https://h", "h"),
        ("h/v2/", "h"),
        ("h/", "h"),
        ("H", "h"),
        ("https://h:5000/some/path", "h:5000"),
    ] {
        let json = format!(r#"{{"auths":{{"{key}":{{"username":"u","password":"p"}}}}}}"#);
        assert_eq!(file(&json).entry_of(host, "library/x"), password("u", "p"), "{key}");
    }
    let hub = file(
        r#"{"auths":{"docker.io/library":{"username":"l","password":"p"},
            "docker.io":{"username":"u","password":"p"}}}"#,
    );
    assert_eq!(hub.entry_of("docker.io", "library/x"), password("l", "p"));
    assert_eq!(hub.entry_of("docker.io", "me/x"), password("u", "p"));
}

#[test]
fn b_136_every_form_of_a_stored_entry_is_understood() {
    let encode = |text: &str| STANDARD.encode(text);
    assert_eq!(entry(&format!(r#"{{"auth":"{}"}}"#, encode("u:p:q"))), password("u", "p:q"));
    assert_eq!(entry(&format!(r#"{{"auth":"{}"}}"#, encode("u:p\0\0"))), password("u", "p"));
    assert_eq!(entry(&format!(r#"{{"auth":"{}"}}"#, STANDARD_NO_PAD.encode("u:pp"))), password("u", "pp"));
    assert_eq!(entry(&format!(r#"{{"auth":"{}"}}"#, encode("no colon"))), None);
    assert_eq!(entry(r#"{"auth":"%%%"}"#), None);
    assert_eq!(entry(r#"{"username":"u","password":"p"}"#), password("u", "p"));
    assert_eq!(entry("{}"), None);
    assert_eq!(entry("null"), None);
    assert_eq!(entry(r#"{"registrytoken":"t"}"#), Some(Proof::Registry(Secret::new("t"))));
}

#[test]
fn b_139_identity_tokens_are_told_from_passwords() {
    let identity = |user: &str| Some(Proof::Identity { user: user.to_owned(), token: Secret::new("t") });
    assert_eq!(entry(r#"{"identitytoken":"t"}"#), identity(""));
    assert_eq!(entry(&format!(r#"{{"auth":"{}","identitytoken":"t"}}"#, STANDARD.encode("u:"))), identity("u"));
    assert_eq!(proof("<token>".to_owned(), Secret::new("t"), None), identity("<token>"));
}

#[tokio::test]
async fn b_132_b_137_files_are_asked_in_order_and_missing_ones_skipped() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let first = stored(&directory, "1", r#"{"auths":{"a":{"username":"first","password":"p"}}}"#);
    let second = stored(
        &directory,
        "2",
        r#"{"auths":{"a":{"username":"second","password":"p"},"b":{"username":"b","password":"p"}}}"#,
    );
    let (missing, empty) = (directory.path().join("missing"), stored(&directory, "empty", "\n"));
    let files = [&missing, &empty, &first, &second];
    let user =
        async |host: &str| find(&files, host, "x").await.expect("readable files").credential.map(|found| found.proof);
    assert_eq!(user("a").await, password("first", "p"));
    assert_eq!(user("b").await, password("b", "p"));
    assert_eq!(user("c").await, None);
}

#[tokio::test]
async fn b_140_a_bad_file_is_an_error_that_names_it_and_shows_nothing_of_it() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let long = format!(r#"{{"x":"{}"}}"#, "y".repeat(1 << 20));
    for text in ["{", "[]", r#"{"auths":"hunter2"}"#, r#"{"auths":{"h":{"auth":{"hunter2":1}}}}"#, &long] {
        let path = stored(&directory, "config.json", text);
        let error = find(&[&path], "h", "x").await.expect_err("a bad file");
        assert_eq!(error.kind(), ErrorKind::Misconfigured);
        let shown = format!("{error} {error:?}");
        assert!(shown.contains("config.json") && !shown.contains("hunter2"), "{shown}");
    }
    let unreadable = directory.path().to_owned();
    let error = find(&[&unreadable], "h", "x").await.expect_err("a directory");
    assert_eq!(error.kind(), ErrorKind::Io);
}

#[tokio::test]
async fn b_137_b_138_a_store_that_cannot_run_is_reported_and_a_promised_helper_is_required() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let auths = r#""auths":{"h":{"username":"u","password":"p"}}"#;
    let store = stored(&directory, "store", &format!(r#"{{"credsStore":"ocifs-surely-missing",{auths}}}"#));
    let found = find(&[&store], "h", "x").await.expect("a store is not decisive");
    assert_eq!(found.credential.map(|credential| credential.proof), password("u", "p"));
    assert_eq!(found.troubles.len(), 1);
    assert!(found.troubles[0].contains("ocifs-surely-missing"), "{:?}", found.troubles);
    let helper = stored(&directory, "helper", &format!(r#"{{"credHelpers":{{"h":"ocifs-surely-missing"}},{auths}}}"#));
    let error = find(&[&helper], "h", "x").await.expect_err("the helper is named for this host");
    assert!(error.to_string().contains("helper"), "{error}");
    let other = find(&[&helper], "other", "x").await.expect("the helper is for another host");
    assert_eq!(other.credential, None);
}

#[tokio::test]
async fn b_136_a_broken_entry_is_told_by_file_and_key_and_the_next_one_is_used() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let secret = STANDARD.encode("hunter2-without-a-colon");
    let broken = format!(r#""h/a":{{"auth":"!!hunter2!!"}},"https://u:hunter2@h":{{"auth":"{secret}"}}"#);
    let alone = stored(&directory, "alone.json", &format!(r#"{{"auths":{{{broken}}}}}"#));
    let found = find(&[&alone], "h", "a/b").await.expect("a sound file");
    assert_eq!((found.credential, found.troubles.len()), (None, 1), "{:?}", found.troubles);
    let trouble = &found.troubles[0];
    assert!(trouble.contains("\"h/a\"") && trouble.contains("alone.json") && trouble.contains("base64"), "{trouble}");

    let colon = stored(&directory, "colon.json", &format!(r#"{{"auths":{{"http://h/v1/":{{"auth":"{secret}"}}}}}}"#));
    let sound = stored(&directory, "sound.json", r#"{"auths":{"h":{"username":"u","password":"p"}}}"#);
    let found = find(&[&alone, &colon, &sound], "h", "a").await.expect("sound files");
    assert_eq!(found.credential.map(|credential| credential.proof), password("u", "p"));
    assert_eq!(found.troubles.len(), 2);
    assert!(found.troubles[1].contains("colon.json is not used: what its \"auth\" encodes has no colon"));
    for trouble in &found.troubles {
        assert!(!trouble.contains("hunter2") && !trouble.contains(&secret), "{trouble}");
    }
}

#[tokio::test]
async fn d_036_a_helper_named_by_a_path_is_never_run() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (program, mark) = (directory.path().join("x"), directory.path().join("mark"));
    std::fs::write(&program, format!("#!/bin/sh\ntouch {}\n", mark.display())).expect("the directory is writable");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("the file is ours");
    let json = format!(r#"{{"credHelpers":{{"h":"/..{}"}}}}"#, program.display());
    let path = stored(&directory, "config.json", &json);
    find(&[&path], "h", "x").await.expect_err("the name is invalid");
    assert!(!mark.exists());
}

proptest! {
    #[test]
    fn any_key_and_entry_are_looked_up_without_a_panic(
        key in "\\PC{0,30}",
        auth in "\\PC{0,30}",
        repository in "[a-z/]{0,20}",
    ) {
        let entry = Entry { auth: Some(auth), ..Entry::default() };
        let file = AuthFile { auths: Some(HashMap::from([(key, Some(entry))])), ..AuthFile::default() };
        drop(file.entry_of("h", &repository));
    }
}
