//! Credential helpers: programs `docker-credential-NAME` that hand out secrets (docker-credential-helpers).
//!
//! A helper is asked with `get` and the server's name on its standard input; it answers in JSON. It is outside code:
//! its name must be plain (D-036), its time and its output are bounded, and it is killed when the caller gives up.

use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use super::error::escape;
use super::secret::Secret;
use crate::limits::{HELPER_BYTES, SHOWN_CHARACTERS};

/// What a helper answered.
pub(super) struct Answer {
    pub(super) user: String,
    pub(super) secret: Secret,
}

/// Why a helper gave no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum HelperError {
    /// The name would reach outside `docker-credential-*`.
    #[error("invalid credential helper name {0:?}")]
    Name(String),
    /// The program cannot be run.
    #[error("cannot run docker-credential-{name}")]
    Run {
        name: String,
        #[source]
        cause: std::io::Error,
    },
    /// It takes too long.
    #[error("docker-credential-{name} did not answer within {time:?}")]
    Time { name: String, time: Duration },
    /// It says that it failed.
    #[error("docker-credential-{name} failed: {message}")]
    Failed { name: String, message: String },
    /// Its answer is not what helpers answer. The answer itself is not shown: it may hold the secret.
    #[error("docker-credential-{0} answered with something else than credentials")]
    Answer(String),
}

/// Asks the helper `name` for the credentials of `server`; nothing if it has none.
pub(super) async fn get(name: &str, server: &str, time: Duration) -> Result<Option<Answer>, HelperError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if name.is_empty() || name.len() > 64 || !name.bytes().all(plain) {
        return Err(HelperError::Name(escape(name, 64)));
    }
    ask(name, Command::new(format!("docker-credential-{name}")), server, time).await
}

async fn ask(name: &str, mut program: Command, server: &str, time: Duration) -> Result<Option<Answer>, HelperError> {
    let run = |cause| HelperError::Run { name: name.to_owned(), cause };
    let child = program
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(run)?;
    match tokio::time::timeout(time, converse(child, server)).await {
        Ok(Ok((success, output))) => interpret(name, success, &output),
        Ok(Err(cause)) => Err(run(cause)),
        Err(_) => Err(HelperError::Time { name: name.to_owned(), time }),
    }
}

/// Tells the helper the server and takes its answer; the helper is killed if it says too much.
async fn converse(mut child: Child, server: &str) -> std::io::Result<(bool, Vec<u8>)> {
    if let Some(mut stdin) = child.stdin.take() {
        // A helper may know its answer without reading; then the pipe is closed, and that is no failure.
        let sent = stdin.write_all(server.as_bytes()).await;
        if let Err(error) = sent.as_ref() {
            tracing::debug!(%error, "the credential helper did not read its input");
        }
    }
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(HELPER_BYTES + 1).read_to_end(&mut output).await?;
    }
    if output.len() as u64 > HELPER_BYTES {
        child.kill().await?;
        return Ok((true, Vec::new()));
    }
    Ok((child.wait().await?.success(), output))
}

#[derive(Deserialize)]
struct Wire {
    #[serde(rename = "Username", default)]
    username: String,
    #[serde(rename = "Secret")]
    secret: String,
}

fn interpret(name: &str, success: bool, output: &[u8]) -> Result<Option<Answer>, HelperError> {
    if success {
        let wire: Wire = serde_json::from_slice(output).map_err(|_| HelperError::Answer(name.to_owned()))?;
        return Ok(Some(Answer { user: wire.username, secret: Secret::new(wire.secret) }));
    }
    // Helpers report on standard output, and only these texts tell "I have none" from a failure.
    let message = String::from_utf8_lossy(output);
    let message = message.trim();
    if message.contains("credentials not found") || message.contains("no credentials server URL") {
        return Ok(None);
    }
    Err(HelperError::Failed { name: name.to_owned(), message: escape(message, SHOWN_CHARACTERS) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn d_036_a_helper_name_cannot_be_a_path() {
        for name in ["", "../../bin/x", "a/b", "a b", "a\0", "a.b", &"x".repeat(65)] {
            let result = get(name, "h", Duration::from_secs(60)).await;
            assert!(matches!(result, Err(HelperError::Name(_))), "{name:?}");
        }
    }

    #[tokio::test]
    async fn b_138_a_missing_helper_is_an_error_that_names_it() {
        let error =
            get("ocifs-surely-missing", "h", Duration::from_secs(60)).await.err().expect("there is no such helper");
        assert_eq!(error.to_string(), "cannot run docker-credential-ocifs-surely-missing");
    }

    async fn ask_script(script: &str, time: Duration) -> Result<Option<Answer>, HelperError> {
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", script]);
        ask("x", shell, "registry.example", time).await
    }

    #[tokio::test]
    async fn b_137_a_helper_gets_the_server_on_its_input() {
        let script = r#"read server; printf '{"Username":"u","Secret":"for %s"}' "$server""#;
        let answer =
            ask_script(script, Duration::from_secs(60)).await.expect("it answers").expect("it has credentials");
        assert_eq!((answer.user.as_str(), answer.secret.expose()), ("u", "for registry.example"));
        let deaf = ask_script(r#"printf '{"Username":"u","Secret":"s"}'"#, Duration::from_secs(60)).await;
        assert!(matches!(deaf, Ok(Some(_))));
        let none = ask_script("echo 'credentials not found in native keychain'; exit 1", Duration::from_secs(60)).await;
        assert!(matches!(none, Ok(None)));
    }

    #[tokio::test]
    async fn b_138_a_helper_that_hangs_or_talks_without_end_is_given_up() {
        let hangs = ask_script("exec sleep 600", Duration::from_millis(100)).await;
        assert!(matches!(hangs, Err(HelperError::Time { .. })));
        let talks = ask_script("exec yes", Duration::from_secs(60)).await;
        assert!(matches!(talks, Err(HelperError::Answer(_))));
    }

    #[test]
    fn b_138_answers_are_credentials_none_or_errors_that_keep_the_secret() {
        let good = interpret("x", true, br#"{"ServerURL":"h","Username":"u","Secret":"s"}"#);
        assert!(matches!(good, Ok(Some(answer)) if answer.user == "u" && answer.secret.expose() == "s"));
        assert!(matches!(interpret("x", false, b"credentials not found in native keychain\n"), Ok(None)));
        let failed = interpret("x", false, b"no\x1bkeyring").err().expect("a failure").to_string();
        assert_eq!(failed, r"docker-credential-x failed: no\u{1b}keyring");
        let bad = interpret("x", true, b"{\"Secret\":\"hunter2\"").err().expect("bad JSON").to_string();
        assert!(!bad.contains("hunter2"));
    }
}
