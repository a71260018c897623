//! Finding the user's credentials for a registry in docker's and podman's files (containers-auth.json(5)).
//!
//! [`Credentials`] knows the files in the order in which to ask them and reads them at every look-up: look-ups are
//! rare, and credentials rotate under running mounts. Nothing is ever written. A [`Credential`] knows where it came
//! from, so that an error can say which one was refused.
//!
//! A helper may answer for somebody else tomorrow, and no file shows it. What each has answered is remembered, so that whoever
//! comes later can be told from those for whom it was asked ([`Credentials::hold`]).
//!
//! Within one file, a helper named for the host comes first, then the general helper, then stored entries, of which
//! the one for the longest part of the repository's path wins (B-134, B-137).

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::Deserialize;

use super::error::escape;
use super::helper::{self, HelperError};
use super::host::{contact, is_docker_hub};
use super::secret::Secret;
use super::warning::Warnings;
use crate::limits::{AUTH_FILE_BYTES, SHOWN_CHARACTERS};
use crate::source::{Error, ErrorKind};

/// The server name by which Docker's files and helpers know Docker Hub.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// The user name that marks a secret as an identity token (B-139).
const TOKEN_USER: &str = "<token>";

/// Something that proves who the user is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Credential {
    pub(super) proof: Proof,
    /// The file or helper it came from, for messages.
    pub(super) origin: String,
}

/// The kinds of credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Proof {
    /// User name and password.
    Password {
        /// The user name.
        user: String,
        /// The password.
        password: Secret,
    },
    /// A refresh token for the registry's token server.
    Identity {
        /// The user name beside it, for token servers that only take passwords.
        user: String,
        /// The token.
        token: Secret,
    },
    /// A bearer token for the registry itself.
    Registry(Secret),
}

/// What a look-up found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) credential: Option<Credential>,
    /// Sources that failed without being decisive; worth telling when access is denied.
    pub(super) troubles: Vec<String>,
}

/// The places where credentials are looked for.
#[derive(Debug)]
pub(super) struct Credentials {
    files: Vec<PathBuf>,
    helper_time: Duration,
    /// By helper and server. Held to read or note an answer.
    answers: Mutex<HashMap<(String, String), Answers>>,
    /// What was wrong so far.
    told: Warnings,
}

/// What a helper has answered about one server.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answers {
    /// This each time; none if it has nothing.
    Always(Option<Credential>),
    /// Not always the same.
    Several,
}

impl Credentials {
    pub(super) fn new(files: Vec<PathBuf>, helper_time: Duration) -> Self {
        Self { files, helper_time, answers: Mutex::default(), told: Warnings::default() }
    }

    /// True unless a helper that was asked about `host` would not give the same answer to whoever asks now.
    ///
    /// Asks those helpers again, and no others. One that fails now may fail for the one who asks only.
    pub(super) async fn hold(&self, host: &str) -> bool {
        let server = server(host);
        let known: Vec<_> = {
            let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            let of_server = answers.iter().filter(|((_, about), _)| about == server);
            of_server.map(|((name, _), answers)| (name.clone(), answers.clone())).collect()
        };
        for (name, answers) in known {
            if self.answer(&name, server).await.ok().map(Answers::Always) != Some(answers) {
                return false;
            }
        }
        true
    }

    /// Looks for the credentials of `repository` at `host`.
    pub(super) async fn find(&self, host: &str, repository: &str) -> Result<Found, Error> {
        let mut found = Found::default();
        for path in &self.files {
            let Some(file) = load(path.clone()).await? else {
                continue;
            };
            found.credential = self.find_in(path, &file, host, repository, &mut found.troubles).await?;
            if found.credential.is_some() {
                break;
            }
        }
        Ok(found)
    }

    async fn find_in(
        &self,
        path: &Path,
        file: &AuthFile,
        host: &str,
        repository: &str,
        troubles: &mut Vec<String>,
    ) -> Result<Option<Credential>, Error> {
        let server = server(host);
        if let Some(name) = file.helper_of(host) {
            match self.ask(name, server).await {
                Ok(None) => {}
                Ok(found) => return Ok(found),
                // The user named this helper for this host, so going on without it would be a surprise.
                Err(error) => {
                    let message = format!("cannot get the credentials of {host} that {} promises", path.display());
                    return Err(Error::new(ErrorKind::Denied, message).because(error));
                }
            }
        }
        if let Some(name) = file.creds_store.as_deref().filter(|name| !name.is_empty()) {
            match self.ask(name, server).await {
                Ok(None) => {}
                Ok(found) => return Ok(found),
                // Files name stores that exist only on the desktop they were written on; public images need none.
                Err(error) => troubles.push(self.tell(format!("{error} (from {})", path.display()))),
            }
        }
        for (key, entry) in file.entries_of(host, repository) {
            if let Some(proof) = entry.proof() {
                return Ok(Some(Credential { proof, origin: path.display().to_string() }));
            }
            if let Some(why) = entry.problem() {
                let key = escape(key, SHOWN_CHARACTERS);
                troubles.push(self.tell(format!("the entry \"{key}\" in {} is not used: {why}", path.display())));
            }
        }
        Ok(None)
    }

    /// Logs what is wrong, unless it was logged before: credentials are looked up as often as tokens expire.
    fn tell(&self, trouble: String) -> String {
        if self.told.is_new(&trouble) {
            tracing::warn!("looking for credentials: {trouble}");
        }
        trouble
    }

    async fn ask(&self, name: &str, server: &str) -> Result<Option<Credential>, HelperError> {
        let answer = self.answer(name, server).await?;
        let (key, now) = ((name.to_owned(), server.to_owned()), Answers::Always(answer.clone()));
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let known = answers.entry(key).or_insert_with(|| now.clone());
        if *known != now {
            *known = Answers::Several;
        }
        Ok(answer)
    }

    async fn answer(&self, name: &str, server: &str) -> Result<Option<Credential>, HelperError> {
        let Some(answer) = helper::get(name, server, self.helper_time).await? else {
            return Ok(None);
        };
        let origin = format!("docker-credential-{name}");
        Ok(proof(answer.user, answer.secret, None).map(|proof| Credential { proof, origin }))
    }
}

/// What helpers call a host.
fn server(host: &str) -> &str {
    if is_docker_hub(host) { DOCKER_HUB_KEY } else { host }
}

/// Sorts what was stored into the kinds of credentials; nothing usable gives nothing.
fn proof(user: String, secret: Secret, identity: Option<Secret>) -> Option<Proof> {
    match identity {
        Some(token) if !token.is_empty() => Some(Proof::Identity { user, token }),
        _ if secret.is_empty() => None,
        _ if user == TOKEN_USER => Some(Proof::Identity { user, token: secret }),
        _ if user.is_empty() => None,
        _ => Some(Proof::Password { user, password: secret }),
    }
}

/// Reads a file, unless it does not exist; anything else that is wrong with it is an error that names it (B-140).
async fn load(path: PathBuf) -> Result<Option<AuthFile>, Error> {
    let shown = path.display().to_string();
    let wrong = |why: &str| Error::new(ErrorKind::Misconfigured, format!("invalid credential file {shown}: {why}"));
    let unreadable = |error: std::io::Error| {
        Error::new(ErrorKind::Io, format!("cannot read the credential file {shown}")).because(error)
    };
    let bytes = match tokio::task::spawn_blocking(move || read(&path)).await {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        // A component of the path is a file: then there is no such file either.
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotADirectory => return Ok(None),
        Ok(Err(error)) => return Err(unreadable(error)),
        Err(_) => return Err(wrong("the process is ending")),
    };
    if bytes.len() as u64 > AUTH_FILE_BYTES {
        return Err(wrong(&format!("it is longer than {AUTH_FILE_BYTES} bytes")));
    }
    if bytes.trim_ascii().is_empty() {
        return Ok(Some(AuthFile::default()));
    }
    // A list would be taken for the fields in order. The parser's messages may quote values: only the place is told.
    if !bytes.trim_ascii_start().starts_with(b"{") {
        return Err(wrong("it is not a JSON object"));
    }
    let file = serde_json::from_slice(&bytes);
    file.map(Some)
        .map_err(|error| wrong(&format!("line {}, column {}: not what belongs there", error.line(), error.column())))
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(AUTH_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// `auth.json` or `config.json`; other keys are someone else's.
#[derive(Default, Deserialize)]
struct AuthFile {
    #[serde(default)]
    auths: Option<HashMap<String, Option<Entry>>>,
    #[serde(default, rename = "credHelpers")]
    cred_helpers: Option<HashMap<String, String>>,
    #[serde(default, rename = "credsStore")]
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
struct Entry {
    #[serde(default)]
    auth: Option<String>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
    #[serde(default)]
    identitytoken: Option<String>,
    #[serde(default)]
    registrytoken: Option<String>,
}

impl AuthFile {
    fn helper_of(&self, host: &str) -> Option<&str> {
        let helpers = self.cred_helpers.as_ref()?;
        let exact = helpers.get(host);
        let equal = || helpers.iter().find(|(key, _)| Key::of(key).is(host, "")).map(|(_, name)| name);
        exact.or_else(equal).map(String::as_str).filter(|name| !name.is_empty())
    }

    /// The entries that are for the repository, with their keys: those for longer parts of its path first.
    fn entries_of(&self, host: &str, repository: &str) -> Vec<(&str, &Entry)> {
        let mut found = Vec::new();
        let mut path = repository;
        loop {
            let plain = if path.is_empty() { host.to_owned() } else { format!("{host}/{path}") };
            let auths = || self.auths.iter().flatten();
            let exact = auths().filter(|(key, _)| **key == plain);
            let equal = auths().filter(|(key, _)| **key != plain && Key::of(key).is(host, path));
            found.extend(exact.chain(equal).filter_map(|(key, entry)| Some((key.as_str(), entry.as_ref()?))));
            if path.is_empty() {
                return found;
            }
            path = path.rsplit_once('/').map_or("", |(parent, _)| parent);
        }
    }
}

impl Entry {
    fn proof(&self) -> Option<Proof> {
        let some = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = some(&self.registrytoken) {
            return Some(Proof::Registry(Secret::new(token)));
        }
        let (user, password) = match some(&self.auth).map(|auth| decode(&auth)) {
            Some(Ok(pair)) => pair,
            _ => (some(&self.username).unwrap_or_default(), some(&self.password).unwrap_or_default()),
        };
        proof(user, Secret::new(password), some(&self.identitytoken).map(Secret::new))
    }

    /// What keeps its `auth` from being read, without a word of it.
    fn problem(&self) -> Option<&'static str> {
        decode(self.auth.as_deref().filter(|auth| !auth.is_empty())?).err()
    }
}

/// `base64(user:password)`, as some tools write it with trailing NULs or without padding (B-136).
fn decode(auth: &str) -> Result<(String, String), &'static str> {
    let auth = auth.trim();
    let bytes = STANDARD.decode(auth).or_else(|_| STANDARD_NO_PAD.decode(auth));
    let bytes = bytes.map_err(|_| "its \"auth\" is not base64")?;
    let text = String::from_utf8(bytes).map_err(|_| "what its \"auth\" encodes is not UTF-8")?;
    let (user, password) = text.split_once(':').ok_or("what its \"auth\" encodes has no colon")?;
    Ok((user.to_owned(), password.trim_end_matches('\0').to_owned()))
}

/// A key of these files, taken apart: `host`, `host/path`, or a URL of which only the host counts (B-135).
struct Key<'a> {
    host: String,
    path: &'a str,
}

impl<'a> Key<'a> {
    fn of(key: &'a str) -> Self {
        let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
        let (host, path) = bare.unwrap_or(key).split_once('/').unwrap_or((bare.unwrap_or(key), ""));
        let endpoint = bare.is_some() || matches!(path.trim_end_matches('/'), "v1" | "v2" | "");
        Self { host: contact(host), path: if endpoint { "" } else { path } }
    }

    fn is(&self, host: &str, path: &str) -> bool {
        self.host == contact(host) && self.path == path
    }
}

#[cfg(test)]
#[path = "credentials/tests.rs"]
mod tests;
