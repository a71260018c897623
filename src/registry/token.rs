//! Asking a token server (distribution-spec: token.md, oauth.md).
//!
//! [`fetch`] makes one exchange: a [`Request`] in, a [`Token`] out. It keeps nothing; [`super::grant`] does. The token
//! server is named by the registry, so its address, its redirects and the size of its answer are checked.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{AUTHORIZATION, HeaderMap};
use reqwest::{Response, StatusCode, Url};
use serde::Deserialize;
use serde_json::Value;

use super::challenge::Bearer;
use super::credentials::{Credential, Proof};
use super::error::{Complaint, Fault, cannot, origin, refused, token_for};
use super::link::Link;
use super::redirect::{self, Location};
use super::secret::Secret;
use super::transport::{Body, Transport};
use crate::limits::TOKEN_BYTES;
use crate::source::{Error, ErrorKind};

/// The name under which this program appears in a token server's logs.
const CLIENT_ID: &str = "ocifs";

/// The life that a token has if the server does not say (token.md), and at least.
const LEAST_LIFE: Duration = Duration::from_secs(60);

/// The longest life believed; a longer one only delays noticing that the server changed its mind.
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3600);

/// Redirects followed at a token server; real ones have at most one, to another scheme or path.
const TOKEN_REDIRECTS: usize = 3;

/// What is asked of a token server.
#[derive(Debug)]
pub(super) struct Request<'a> {
    /// What the token is for, for messages.
    pub(super) what: &'a str,
    /// The registry that named the token server.
    pub(super) registry: &'a Url,
    /// How the registry is connected to, if not like all others.
    pub(super) link: Option<&'a Arc<Link>>,
    pub(super) bearer: &'a Bearer,
    pub(super) scopes: &'a [String],
    pub(super) credential: Option<&'a Credential>,
    /// A refresh token that an earlier answer contained (B-125).
    pub(super) refresh: Option<&'a Secret>,
}

/// What a token server gives.
#[derive(Debug)]
pub(super) struct Token {
    pub(super) token: Secret,
    pub(super) life: Duration,
    pub(super) refresh: Option<Secret>,
}

/// Exchanges credentials, or nothing, for a token.
pub(super) async fn fetch(transport: &Transport, request: &Request<'_>) -> Result<Token, Fault> {
    let what = token_for(request.what);
    let realm = redirect::realm(request.registry, &request.bearer.realm).map_err(|why| {
        let registry = origin(request.registry);
        let message = format!("cannot get {what}: the token server that {registry} names {why}");
        Fault::lasting(Error::new(ErrorKind::Invalid, message))
    })?;
    if let Some(refresh) = request.refresh {
        // A refresh token may have been revoked; the credentials themselves then decide.
        if let Ok(response) = exchange(transport, &what, request, &realm, refresh).await
            && response.status().is_success()
        {
            return read(&what, response, transport.stall()).await;
        }
    }
    let mut basic = None;
    match request.credential.map(|credential| &credential.proof) {
        Some(Proof::Identity { user, token }) => {
            let response = exchange(transport, &what, request, &realm, token).await?;
            // Servers without the OAuth form know the token as a password, if at all (B-115).
            if !matches!(response.status(), StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED) {
                return accept(&what, response, transport.stall()).await;
            }
            basic = Some(basic_header(if user.is_empty() { "<token>" } else { user }, token));
        }
        Some(Proof::Password { user, password }) => basic = Some(basic_header(user, password)),
        Some(Proof::Registry(_)) | None => {}
    }
    let response = ask(transport, &what, request, realm, basic.as_ref()).await?;
    accept(&what, response, transport.stall()).await
}

/// The value of an `Authorization` header with user name and password.
pub(super) fn basic_header(user: &str, password: &Secret) -> Secret {
    Secret::new(format!("Basic {}", STANDARD.encode(format!("{user}:{}", password.expose()))))
}

/// The OAuth form: POST with a refresh token. Redirects are not followed, because the body holds the secret.
async fn exchange(
    transport: &Transport,
    what: &str,
    request: &Request<'_>,
    realm: &Url,
    refresh: &Secret,
) -> Result<Response, Fault> {
    let scope = request.scopes.join(" ");
    let mut form = vec![
        ("grant_type", "refresh_token"),
        ("client_id", CLIENT_ID),
        ("scope", scope.as_str()),
        ("refresh_token", refresh.expose()),
    ];
    form.extend(request.bearer.service.as_deref().map(|service| ("service", service)));
    transport.post(what, &at(request, realm.clone()), &form).await
}

/// The common form: GET with one `scope` per scope, after whatever query the realm has (B-113).
async fn ask(
    transport: &Transport,
    what: &str,
    request: &Request<'_>,
    mut realm: Url,
    basic: Option<&Secret>,
) -> Result<Response, Fault> {
    for (name, value) in (request.bearer.service.iter().map(|service| ("service", service)))
        .chain(request.scopes.iter().map(|scope| ("scope", scope)))
    {
        realm.query_pairs_mut().append_pair(name, value);
    }
    let mut place = at(request, realm);
    for _ in 0..=TOKEN_REDIRECTS {
        let mut headers = HeaderMap::new();
        if place.trusted
            && let Some(value) = basic
        {
            headers.insert(AUTHORIZATION, header(what, value)?);
        }
        let response = transport.get(what, &place, headers).await?;
        if !redirect::is_redirect(response.status()) {
            return Ok(response);
        }
        place = redirect::next(what, &place, response.headers()).map_err(Fault::lasting)?;
        if let Err(why) = redirect::realm_at(request.registry, &place.url) {
            let message =
                format!("cannot get {what}: the token server redirects to {}, which {why}", origin(&place.url));
            return Err(Fault::lasting(Error::new(ErrorKind::Invalid, message)));
        }
    }
    Err(Fault::lasting(Error::new(
        ErrorKind::Invalid,
        format!("cannot get {what}: the token server redirects in circles"),
    )))
}

/// The token server as a place: it may have the credentials, and its certificate counts unless all happens here. Only at the
/// registry's own origin it is spoken to as the registry is: another port is another server.
fn at(request: &Request<'_>, url: Url) -> Location {
    let here =
        |url: &Url| super::address::Reach::of(url.host_str().unwrap_or_default()) == super::address::Reach::Loopback;
    let verified = !(here(&url) && here(request.registry));
    let same = url.origin() == request.registry.origin();
    let link = if same { request.link.cloned() } else { request.link.and_then(Link::abroad) };
    Location { url, trusted: true, verified, moved: false, link }
}

/// `secret` as a header, or an error that does not show it.
pub(super) fn header(what: &str, secret: &Secret) -> Result<reqwest::header::HeaderValue, Fault> {
    secret.header().ok_or_else(|| {
        let message = format!("{}: a credential or token has characters that HTTP cannot carry", cannot(what));
        Fault::lasting(Error::new(ErrorKind::Invalid, message))
    })
}

async fn accept(what: &str, response: Response, stall: Duration) -> Result<Token, Fault> {
    let status = response.status();
    if status.is_success() {
        return read(what, response, stall).await;
    }
    let (url, headers) = (response.url().clone(), response.headers().clone());
    Err(refused(what, &url, status, &headers, &Complaint::of(response).await))
}

async fn read(what: &str, response: Response, stall: Duration) -> Result<Token, Fault> {
    let url = response.url().clone();
    let body = Body::new(response, stall).whole(what, TOKEN_BYTES, stall).await?;
    parse(&body).ok_or_else(|| {
        let message = format!("cannot get {what}: {} answered with something else than a token", origin(&url));
        Fault::lasting(Error::new(ErrorKind::Invalid, message))
    })
}

/// What token servers answer; numbers are read loosely, because some write them as text.
#[derive(Deserialize)]
struct Wire {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<Value>,
    refresh_token: Option<String>,
}

/// Reads an answer (B-116, B-117). `issued_at` is not used: counted from the arrival, the clocks need not agree.
fn parse(body: &[u8]) -> Option<Token> {
    let wire: Wire = serde_json::from_slice(body).ok()?;
    let some = |text: Option<String>| text.filter(|text| !text.is_empty()).map(Secret::new);
    let seconds = match wire.expires_in {
        Some(Value::Number(number)) => number.as_f64(),
        Some(Value::String(text)) => text.trim().parse().ok(),
        _ => None,
    };
    // Neither NaN nor a negative number is a duration; they get the least.
    let known = seconds.filter(|seconds: &f64| !seconds.is_nan());
    let life = known.and_then(|seconds| Duration::try_from_secs_f64(seconds.min(1e9)).ok());
    Some(Token {
        token: some(wire.token).or_else(|| some(wire.access_token))?,
        life: life.unwrap_or(LEAST_LIFE).clamp(LEAST_LIFE, LONGEST_LIFE),
        refresh: some(wire.refresh_token),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::registry::link::Wishes;

    fn token(json: &str) -> Option<(String, u64)> {
        parse(json.as_bytes()).map(|token| (token.token.expose().to_owned(), token.life.as_secs()))
    }

    #[test]
    fn b_116_the_token_has_two_names() {
        assert_eq!(token(r#"{"token":"a","access_token":"b"}"#), Some(("a".to_owned(), 60)));
        assert_eq!(token(r#"{"access_token":"b"}"#), Some(("b".to_owned(), 60)));
        assert_eq!(token(r#"{"token":"","access_token":"b"}"#), Some(("b".to_owned(), 60)));
        for bad in [r#"{"token":""}"#, "{}", "[]", "<html>", "", r#"{"token":7}"#] {
            assert_eq!(token(bad), None, "{bad}");
        }
    }

    #[test]
    fn b_117_a_token_lives_at_least_a_minute_whatever_the_server_writes() {
        for (written, seconds) in [
            ("300", 300),
            ("3600.5", 3600),
            (r#""900""#, 900),
            ("1", 60),
            ("0", 60),
            ("-5", 60),
            ("1e300", 24 * 3600),
            (r#""NaN""#, 60),
            ("null", 60),
            ("{}", 60),
        ] {
            let json = format!(r#"{{"token":"a","expires_in":{written},"issued_at":"1970-01-01T00:00:00Z"}}"#);
            assert_eq!(token(&json), Some(("a".to_owned(), seconds)), "{written}");
        }
    }

    #[test]
    fn b_125_a_refresh_token_is_kept_and_not_shown() {
        let token = parse(br#"{"token":"hunter1","refresh_token":"hunter2"}"#).expect("a token");
        assert_eq!(token.refresh.as_ref().map(Secret::expose), Some("hunter2"));
        assert!(!format!("{token:?}").contains("hunter"));
    }

    #[test]
    fn b_142_b_143_only_the_registrys_own_origin_is_spoken_to_as_the_registry_is() {
        let wishes = Wishes { authorities: vec!["/ca.crt".into()], unverified: true, ..Wishes::default() };
        let link = Link::new(&wishes).expect("a link of its own");
        let registry = Url::parse("https://r.example:5000/v2/").expect("a URL");
        let bearer = Bearer { realm: String::new(), service: None, scopes: Vec::new() };
        let (link, bearer) = (Some(&link), &bearer);
        let registry = &registry;
        let request = Request { what: "", registry, link, bearer, scopes: &[], credential: None, refresh: None };
        let is_same = |url: &str| {
            let at = at(&request, Url::parse(url).expect("a URL"));
            assert!(at.link.is_some(), "whom the user believes is believed elsewhere, too");
            at.link.zip(link).is_some_and(|(one, other)| Arc::ptr_eq(&one, other))
        };
        assert!(is_same("https://r.example:5000/token"));
        for other in ["https://r.example:5001/token", "https://r.example/token", "https://auth.example:5000/token"] {
            assert!(!is_same(other), "{other}");
        }
    }

    proptest! {
        #[test]
        fn any_answer_parses_without_a_panic(
            number in any::<f64>(),
            body in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            drop(parse(&body));
            let json = format!(r#"{{"token":"a","expires_in":"{number}"}}"#);
            let life = parse(json.as_bytes()).expect("a token").life;
            prop_assert!(life >= LEAST_LIFE && life <= LONGEST_LIFE);
        }
    }
}
