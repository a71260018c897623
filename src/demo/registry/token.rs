//! Credentials, as far as a registry for tests needs them: Basic, and Bearer tokens from an endpoint of its own.
//!
//! A [`Bearer`] fault on a request demands a token that this registry issued, that has not expired and whose scope covers
//! the repository (distribution's token.md); the same fault on a request to [`TOKEN_PATH`] says to whom tokens are issued
//! and how long they live. So a hook that always returns the fault is a complete set-up. Nothing here resists an attacker,
//! but the tokens of one registry are not those of another, or of the same after it was started again.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use hyper::{HeaderMap, Method, StatusCode};
use serde_json::json;

use super::answer::Reply;
use super::fault::Fault;
use super::request::{Endpoint, Request, form_values};
use crate::limits::DEMO_TOKENS;

/// Where the embedded registry issues tokens.
pub const TOKEN_PATH: &str = "/token";

/// A user name and a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user name.
    pub user: String,
    /// The password; for Bearer also what is accepted as refresh token.
    pub password: String,
}

impl Credentials {
    /// These two.
    pub fn new(user: impl Into<String>, password: impl Into<String>) -> Self {
        Self { user: user.into(), password: password.into() }
    }

    /// True if the request carries them in an `Authorization: Basic` header.
    fn are_in(&self, request: &Request) -> bool {
        let Some((scheme, given)) = authorization(request) else { return false };
        let wanted = format!("{}:{}", self.user, self.password);
        scheme.eq_ignore_ascii_case("basic") && BASE64.decode(given).is_ok_and(|given| given == wanted.into_bytes())
    }
}

/// How Bearer tokens are demanded and issued.
#[derive(Debug, Clone)]
pub struct Bearer {
    /// Who gets tokens; none for everybody.
    pub credentials: Option<Credentials>,
    /// How long a token is good for.
    pub lifetime: Duration,
    /// The `expires_in` that is stated, in seconds; none leaves it out.
    pub stated: Option<u64>,
    /// The realm of the challenge; none for this registry's own endpoint.
    pub realm: Option<String>,
}

impl Default for Bearer {
    /// Anonymous tokens that are good for five minutes and say so.
    fn default() -> Self {
        Self { credentials: None, lifetime: Duration::from_secs(300), stated: Some(300), realm: None }
    }
}

/// The tokens in force.
#[derive(Debug, Default)]
pub(super) struct Tokens(Mutex<Issued>);

#[derive(Debug, Default)]
struct Issued {
    count: u64,
    key: RandomState,
    valid: HashMap<String, (Instant, Vec<String>)>,
}

/// Why a token is not enough.
enum Lack {
    Missing,
    Invalid,
    Scope,
}

impl Tokens {
    pub(super) fn revoke(&self) {
        self.lock().valid.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Issued> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a token for some scopes.
    fn issue(&self, scopes: Vec<String>, lifetime: Duration) -> String {
        let now = Instant::now();
        let mut issued = self.lock();
        issued.valid.retain(|_, (expiry, _)| *expiry > now);
        if issued.valid.len() >= DEMO_TOKENS {
            issued.valid.clear();
        }
        issued.count += 1;
        let token = format!("ocifs-demo-{:016x}", issued.key.hash_one(issued.count));
        issued.valid.insert(token.clone(), (now + lifetime, scopes));
        token
    }

    fn check(&self, request: &Request) -> Result<(), Lack> {
        let given = match authorization(request) {
            Some((scheme, given)) if scheme.eq_ignore_ascii_case("bearer") => given,
            _ => return Err(Lack::Missing),
        };
        let issued = self.lock();
        let (expiry, scopes) = issued.valid.get(given).ok_or(Lack::Invalid)?;
        if *expiry <= Instant::now() {
            return Err(Lack::Invalid);
        }
        match scope_of(request) {
            Some(needed) if !scopes.iter().any(|scope| covers(scope, &needed)) => Err(Lack::Scope),
            _ => Ok(()),
        }
    }
}

/// Answers `401` if one of the faults demands what the request does not bring.
pub(super) fn refusal(tokens: &Tokens, addr: SocketAddr, faults: &[Fault], request: &Request) -> Option<Reply> {
    if request.endpoint == Endpoint::Token {
        return None;
    }
    faults.iter().find_map(|fault| match fault {
        Fault::Basic(credentials) if !credentials.are_in(request) => Some(unauthorized("Basic realm=\"ocifs-demo\"")),
        Fault::Bearer(bearer) => {
            tokens.check(request).err().map(|lack| unauthorized(&challenge(addr, bearer, request, &lack)))
        }
        _ => None,
    })
}

fn challenge(addr: SocketAddr, bearer: &Bearer, request: &Request, lack: &Lack) -> String {
    let realm = bearer.realm.clone().unwrap_or_else(|| format!("http://{addr}{TOKEN_PATH}"));
    let mut challenge = format!("Bearer realm=\"{realm}\",service=\"ocifs-demo\"");
    if let Some(scope) = scope_of(request) {
        challenge.push_str(&format!(",scope=\"{scope}\""));
    }
    challenge.push_str(match lack {
        Lack::Missing => "",
        Lack::Invalid => ",error=\"invalid_token\"",
        Lack::Scope => ",error=\"insufficient_scope\"",
    });
    challenge
}

/// Answers a request to the token endpoint: GET as Docker has it, POST as OAuth 2 has it.
pub(super) fn issue(tokens: &Tokens, faults: &[Fault], request: &Request) -> Reply {
    let bearer = faults.iter().find_map(|fault| match fault {
        Fault::Bearer(bearer) => Some(bearer.clone()),
        _ => None,
    });
    let bearer = bearer.unwrap_or_default();
    let form = String::from_utf8_lossy(&request.body);
    let (scopes, refreshed) = match request.method {
        Method::GET => (request.parameters("scope"), None),
        Method::POST => (form_values(&form, "scope"), form_values(&form, "refresh_token").pop()),
        _ => return Reply::error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "tokens are issued by GET and POST"),
    };
    if let Some(wanted) = &bearer.credentials
        && !wanted.are_in(request)
        && refreshed.as_ref() != Some(&wanted.password)
    {
        return unauthorized("Basic realm=\"ocifs-demo tokens\"");
    }
    let scopes = scopes.iter().flat_map(|scopes| scopes.split_whitespace()).map(str::to_owned).collect();
    let token = tokens.issue(scopes, bearer.lifetime);
    let mut body = json!({ "token": token, "access_token": token });
    if let Some(stated) = bearer.stated {
        body["expires_in"] = stated.into();
    }
    let mut reply = Reply::new(StatusCode::OK, HeaderMap::new(), body.to_string());
    reply.set(CONTENT_TYPE, "application/json");
    reply
}

fn unauthorized(challenge: &str) -> Reply {
    let mut reply = Reply::error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "authentication required");
    reply.set(WWW_AUTHENTICATE, challenge);
    reply
}

fn scope_of(request: &Request) -> Option<String> {
    let actions = if request.is_write() { "pull,push" } else { "pull" };
    request.endpoint.repository().map(|repository| format!("repository:{repository}:{actions}"))
}

/// True if a token for `granted` may do what `needed` says.
fn covers(granted: &str, needed: &str) -> bool {
    let (Some((granted, may)), Some((needed, must))) = (granted.rsplit_once(':'), needed.rsplit_once(':')) else {
        return false;
    };
    granted == needed && must.split(',').all(|action| may.split(',').any(|known| known == action))
}

/// Scheme and credentials of the `Authorization` header.
fn authorization(request: &Request) -> Option<(&str, &str)> {
    let (scheme, given) = request.header(AUTHORIZATION.as_str())?.split_once(' ')?;
    Some((scheme, given.trim()))
}
