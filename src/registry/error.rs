//! Saying what went wrong at a registry, and whether trying again may help.
//!
//! A [`Fault`] is one failed attempt: the error that the caller would see, and what a retry could do about it; that is
//! decided here, where status and transport error are known, and nowhere else. [`Complaint`] is what the server itself
//! said. All text from outside is bounded and escaped, and a URL is shown without its query, which may be a signature
//! (B-102, B-105).

use std::fmt::Write as _;
use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::{Response, StatusCode, Url};
use serde_json::Value;

use super::{retry, transport};
use crate::limits::{ERROR_BODY_BYTES, SHOWN_CHARACTERS};
use crate::source::{Error, ErrorKind};

/// How long an error answer may take to tell its reason; the status alone is good enough after that.
const COMPLAINT_TIME: Duration = Duration::from_secs(5);

/// One failed attempt.
#[derive(Debug, Clone)]
pub(super) struct Fault {
    /// What the caller sees if no retry helps.
    pub(super) error: Error,
    pub(super) retry: Retry,
    /// Whether the peer speaks plain HTTP where TLS was tried, or TLS where plain HTTP was.
    pub(super) wrong_protocol: Suspicion,
}

/// How sure it is that a host is spoken to in the wrong way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Suspicion {
    /// Nothing speaks for it.
    Absent,
    /// A connection that is lost may be a host that does not understand, and may be a host that restarts: the other way is
    /// worth a try, but proves nothing.
    Vague,
    /// The host has shown it.
    Certain,
}

/// What a retry could do about a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Retry {
    /// Nothing: the answer will be the same.
    Never,
    /// It may help after a pause, at least as long as the server asked for.
    Later(Option<Duration>),
    /// It may help, but nobody should wait long for a host that cannot be reached at all.
    Briefly,
    /// It may help if the connection was dead and the host is not. To find out takes so long that once has to do.
    Once,
}

impl Fault {
    /// A fault that no retry mends.
    pub(super) fn lasting(error: Error) -> Self {
        Self { error, retry: Retry::Never, wrong_protocol: Suspicion::Absent }
    }

    /// A fault that may be gone in a moment.
    pub(super) fn passing(error: Error) -> Self {
        Self { error, retry: Retry::Later(None), wrong_protocol: Suspicion::Absent }
    }
}

/// What a server said about a refusal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Complaint {
    codes: Vec<String>,
    text: String,
}

impl Complaint {
    /// Reads the body of an error answer as far as it is worth it.
    pub(super) async fn of(response: Response) -> Self {
        let limit = ERROR_BODY_BYTES;
        let reading = transport::read_prefix(response, limit, COMPLAINT_TIME);
        Self::parse(&reading.await)
    }

    /// Finds codes and messages in `body`: the distribution specification's form, then forms seen in token servers.
    pub(super) fn parse(body: &[u8]) -> Self {
        let Ok(value) = serde_json::from_slice::<Value>(body) else {
            return Self { codes: Vec::new(), text: plain_text(body) };
        };
        let mut complaint = Self::default();
        let mut parts = Vec::new();
        let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        for error in value.get("errors").and_then(Value::as_array).into_iter().flatten().take(4) {
            let (code, message) = (text(error, "code"), text(error, "message"));
            parts.push(
                [code.as_str(), message.as_str()]
                    .into_iter()
                    .filter(|part| !part.is_empty())
                    .collect::<Vec<_>>()
                    .join(": "),
            );
            complaint.codes.push(code);
        }
        if parts.is_empty() {
            let fields = ["error", "error_description", "message", "details"];
            parts.extend(fields.iter().map(|key| text(&value, key)));
        }
        parts.retain(|part| !part.is_empty());
        complaint.text = escape(&parts.join("; "), SHOWN_CHARACTERS);
        complaint
    }

    /// True if the server gave the error `code` of the distribution specification.
    pub(super) fn has(&self, code: &str) -> bool {
        self.codes.iter().any(|given| given == code)
    }

    /// True if a TLS server says that it was spoken to in plain HTTP.
    pub(super) fn wants_tls(&self) -> bool {
        let text = self.text.to_ascii_lowercase();
        text.contains("https") && (text.contains("http request") || text.contains("plain http"))
    }
}

/// Servers' plain texts are shown, pages are not.
fn plain_text(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let text = text.trim();
    if text.starts_with('<') && !text.to_ascii_lowercase().contains("plain http request") {
        return String::new();
    }
    escape(text, SHOWN_CHARACTERS)
}

/// How a request begins its name that is there to do something: `leave to push blob ...`.
pub(super) const LEAVE_TO: &str = "leave to ";

/// `cannot get blob ...`, or `cannot push blob ...`.
pub(super) fn cannot(what: &str) -> String {
    what.strip_prefix(LEAVE_TO).map_or_else(|| format!("cannot get {what}"), |deed| format!("cannot {deed}"))
}

/// `a token for blob ...`, or `a token to push blob ...`.
pub(super) fn token_for(what: &str) -> String {
    what.strip_prefix(LEAVE_TO).map_or_else(|| format!("a token for {what}"), |deed| format!("a token to {deed}"))
}

/// The fault of an answer whose status is not the one hoped for; `what` says what was asked for.
pub(super) fn refused(what: &str, at: &Url, status: StatusCode, headers: &HeaderMap, complaint: &Complaint) -> Fault {
    let (kind, again) = retry::of_status(status);
    let error = Error::new(kind, format!("{}: {}", cannot(what), answer(at, status, complaint)));
    let wrong_protocol = if complaint.wants_tls() { Suspicion::Certain } else { Suspicion::Absent };
    Fault { error, retry: again.after(retry::wish(headers)), wrong_protocol }
}

/// `HOST answered 404 Not Found: MANIFEST_UNKNOWN: manifest unknown`.
pub(super) fn answer(at: &Url, status: StatusCode, complaint: &Complaint) -> String {
    let mut text = format!("{} answered {}", origin(at), status.as_u16());
    if let Some(reason) = status.canonical_reason() {
        text.push(' ');
        text.push_str(reason);
    }
    if !complaint.text.is_empty() {
        text.push_str(": ");
        text.push_str(&complaint.text);
    }
    text
}

/// The fault of a request that got no answer.
pub(super) fn unanswered(what: &str, at: &Url, error: reqwest::Error) -> Fault {
    let trouble = Trouble::of(&error);
    let host = origin(at);
    let (problem, hint) = match trouble {
        Trouble::Refused => ("connection refused", None),
        Trouble::NoConnection => ("no connection in time", None),
        Trouble::Timeout => ("no answer in time", None),
        Trouble::Name => ("its name cannot be resolved", None),
        Trouble::Certificate => (
            "its TLS certificate is not trusted",
            Some("add the registry's CA to certs.d/HOST:PORT/, or to the system's trust store"),
        ),
        Trouble::SpeaksPlain => ("it does not speak TLS", Some("if the registry serves plain HTTP, use --plain-http")),
        Trouble::Tls => ("the TLS connection failed", None),
        Trouble::NotHttp => ("it does not answer in HTTP", None),
        Trouble::Lost => ("the connection was lost", None),
        Trouble::Other => ("the request failed", None),
    };
    let mut shown = Error::new(ErrorKind::Unreachable, format!("{}: cannot reach {host}: {problem}", cannot(what)));
    if !matches!(trouble, Trouble::Refused | Trouble::NoConnection | Trouble::Timeout) {
        shown = shown.because(Reason::of(error));
    }
    if let Some(hint) = hint {
        shown = shown.hint(hint);
    }
    Fault {
        error: shown,
        retry: retry::of_trouble(trouble).after(None),
        wrong_protocol: match trouble {
            // Nobody listens at the port of that protocol.
            Trouble::SpeaksPlain | Trouble::Refused => Suspicion::Certain,
            Trouble::NotHttp | Trouble::Lost => Suspicion::Vague,
            _ => Suspicion::Absent,
        },
    }
}

/// Why the HTTP client failed, in the words of the layer that knows. Those above only say which way the error went.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Reason(String);

impl Reason {
    /// Without the URL, which may be signed.
    pub(super) fn of(error: reqwest::Error) -> Self {
        let error = error.without_url();
        let mut last: &dyn std::error::Error = &error;
        while let Some(cause) = last.source() {
            last = cause;
        }
        Self(escape(&last.to_string(), SHOWN_CHARACTERS))
    }
}

/// What a transport error is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    Refused,
    NoConnection,
    Timeout,
    Name,
    Certificate,
    SpeaksPlain,
    Tls,
    NotHttp,
    Lost,
    Other,
}

impl Trouble {
    fn of(error: &reqwest::Error) -> Self {
        if error.is_timeout() {
            return if error.is_connect() { Self::NoConnection } else { Self::Timeout };
        }
        if error.is_dns() {
            return Self::Name;
        }
        let mut cause = std::error::Error::source(error);
        while let Some(current) = cause {
            if let Some(http) = current.downcast_ref::<hyper::Error>() {
                if http.is_parse() {
                    return Self::NotHttp;
                }
                if http.is_incomplete_message() || http.is_canceled() {
                    return Self::Lost;
                }
            }
            let mut io = current.downcast_ref::<std::io::Error>();
            while let Some(error) = io {
                if let Some(found) = Self::of_io(error) {
                    return found;
                }
                // The TLS connector wraps these in one another, and the wrapper does not count as having a source.
                io = error.get_ref().and_then(|inner| inner.downcast_ref::<std::io::Error>());
            }
            cause = current.source();
        }
        Self::Other
    }

    fn of_io(error: &std::io::Error) -> Option<Self> {
        use std::io::ErrorKind as Io;
        match error.kind() {
            Io::ConnectionRefused => Some(Self::Refused),
            Io::ConnectionReset | Io::ConnectionAborted | Io::BrokenPipe | Io::UnexpectedEof => Some(Self::Lost),
            Io::TimedOut => Some(Self::Timeout),
            // The TLS library's own error type is not in reach; its text is stable enough to choose a hint by.
            Io::InvalidData | Io::Other => Self::of_tls(&error.to_string()),
            _ => None,
        }
    }

    fn of_tls(text: &str) -> Option<Self> {
        if text.contains("invalid peer certificate") {
            Some(Self::Certificate)
        } else if text.contains("InvalidContentType") {
            Some(Self::SpeaksPlain)
        } else if text.contains("corrupt message") || text.contains("fatal alert") || text.contains("peer") {
            Some(Self::Tls)
        } else {
            None
        }
    }
}

/// Scheme, host and port of a URL: all of it that is neither secret nor long.
pub(super) fn origin(url: &Url) -> String {
    let mut text = format!("{}://{}", url.scheme(), escape(url.host_str().unwrap_or_default(), SHOWN_CHARACTERS));
    if let Some(port) = url.port() {
        // Writing to a string does not fail.
        write!(text, ":{port}").unwrap_or_default();
    }
    text
}

/// `text` for people: control and direction-changing characters escaped, cut after `limit` characters.
pub(super) fn escape(text: &str, limit: usize) -> String {
    let mut shown = String::new();
    for (count, character) in text.chars().enumerate() {
        if count == limit {
            shown.push('…');
            break;
        }
        let reorders = matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if character.is_control() || reorders {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn status(code: u16) -> StatusCode {
        StatusCode::from_u16(code).expect("a valid status")
    }

    #[test]
    fn b_102_the_registrys_own_words_are_found_in_all_usual_forms() {
        let spec = br#"{"errors":[{"code":"NAME_UNKNOWN","message":"not known","detail":{"n":1}},{"code":"X"}]}"#;
        let complaint = Complaint::parse(spec);
        assert_eq!(complaint.text, "NAME_UNKNOWN: not known; X");
        assert!(complaint.has("NAME_UNKNOWN") && !complaint.has("MANIFEST_UNKNOWN"));
        assert_eq!(
            Complaint::parse(br#"{"details":"incorrect username or password"}"#).text,
            "incorrect username or password"
        );
        assert_eq!(Complaint::parse(b"  try later\n").text, "try later");
        for silent in
            [&b"<html><body>503</body></html>"[..], b"", b"[]", b"null", br#"{"errors":{}}"#, br#"{"errors":[7]}"#]
        {
            assert_eq!(Complaint::parse(silent).text, "", "{silent:?}");
        }
    }

    #[test]
    fn b_102_control_characters_of_a_message_are_escaped() {
        let complaint = Complaint::parse(br#"{"errors":[{"code":"A","message":"x\u001b[31m\r\n\u202ey"}]}"#);
        assert_eq!(complaint.text, r"A: x\u{1b}[31m\r\n\u{202e}y");
        assert_eq!(escape("abcdef", 3), "abc…");
    }

    #[test]
    fn b_141_tls_servers_that_are_spoken_to_in_the_clear_are_recognised() {
        let go = b"Client sent an HTTP request to an HTTPS server.\n";
        let nginx = b"<html><title>400 The plain HTTP request was sent to HTTPS port</title></html>";
        assert!(Complaint::parse(go).wants_tls() && Complaint::parse(nginx).wants_tls());
        assert!(!Complaint::parse(b"bad request, see https://h/").wants_tls());
    }

    #[test]
    fn b_105_urls_are_shown_without_user_and_query() {
        let url = Url::parse("https://u:p@cdn.example:8443/x?X-Amz-Signature=abc#f").expect("a valid URL");
        let fault = refused("blob x", &url, status(403), &HeaderMap::new(), &Complaint::default());
        assert_eq!(fault.error.to_string(), "cannot get blob x: https://cdn.example:8443 answered 403 Forbidden");
    }

    #[test]
    fn what_failed_is_said_of_getting_and_of_pushing() {
        let url = Url::parse("https://h/").expect("a valid URL");
        let said =
            |what: &str| refused(what, &url, status(403), &HeaderMap::new(), &Complaint::default()).error.to_string();
        assert_eq!(said("blob a"), "cannot get blob a: https://h answered 403 Forbidden");
        let push = format!("{LEAVE_TO}push blob a");
        assert_eq!(said(&push), "cannot push blob a: https://h answered 403 Forbidden");
        assert_eq!(token_for(&push), "a token to push blob a");
        assert_eq!(token_for("blob a"), "a token for blob a");
    }

    #[test]
    fn b_098_which_statuses_are_worth_a_retry_is_a_table() {
        let url = Url::parse("https://h/").expect("a valid URL");
        for code in 400..600 {
            let fault = refused("x", &url, status(code), &HeaderMap::new(), &Complaint::default());
            let passing = matches!(code, 408 | 429 | 500 | 502 | 503 | 504) || code >= 506;
            assert_eq!(fault.retry == Retry::Later(None), passing, "{code}");
            assert_eq!(fault.error.is_transient(), passing, "{code}");
        }
    }

    proptest! {
        #[test]
        fn any_body_gives_a_short_printable_complaint(body in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let complaint = Complaint::parse(&body);
            prop_assert!(complaint.text.chars().count() <= 12 * SHOWN_CHARACTERS);
            prop_assert!(!complaint.text.chars().any(char::is_control));
        }
    }
}
