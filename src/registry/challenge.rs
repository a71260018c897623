//! What a registry wants before it answers: the `WWW-Authenticate` header (RFC 9110, section 11.6.1).
//!
//! The grammar is ambiguous by nature: commas separate challenges and also parameters, several headers count like one,
//! and real registries write empty parameters, odd case and escaped quotes (B-110). [`parse`] reads what can be read
//! and drops the rest; [`choose`] picks the [`Challenge`] that can be answered here. The bytes are hostile.

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

use crate::limits::{CHALLENGE_BYTES, CHALLENGE_PARTS, TOKEN_SCOPES};

/// A challenge that this client can answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User and password with every request.
    Basic,
    /// A token from a token server (distribution-spec, token.md).
    Bearer(Bearer),
}

/// The parameters of a Bearer challenge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bearer {
    /// The URL of the token server, unchecked.
    pub(super) realm: String,
    /// The name by which the token server knows the registry.
    pub(super) service: Option<String>,
    /// The scopes that the refused request needs; empty if the registry did not say.
    pub(super) scopes: Vec<String>,
}

/// Why no challenge can be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ChallengeError {
    /// The answer names no scheme at all.
    #[error("it does not say how to authenticate")]
    Missing,
    /// Bearer without the address of a token server (B-112).
    #[error("its Bearer challenge has no realm")]
    NoRealm,
    /// Only schemes that are not implemented.
    #[error("it offers only authentication schemes that are not supported: {0}")]
    Unsupported(String),
}

/// One challenge as written.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Written {
    /// In lower case.
    scheme: String,
    /// Names in lower case.
    parameters: Vec<(String, String)>,
}

impl Written {
    fn parameter(&self, name: &str) -> Option<&str> {
        let value = self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())?;
        (!value.is_empty()).then_some(value)
    }
}

/// Picks what to answer among all challenges of a response: Bearer before Basic (B-111).
pub(super) fn choose(headers: &HeaderMap) -> Result<Challenge, ChallengeError> {
    let mut offered = Vec::new();
    for value in headers.get_all(WWW_AUTHENTICATE) {
        parse(value.as_bytes(), &mut offered);
    }
    let mut no_realm = false;
    for written in offered.iter().filter(|written| written.scheme == "bearer") {
        match written.parameter("realm") {
            Some(realm) => return Ok(Challenge::Bearer(bearer(written, realm))),
            None => no_realm = true,
        }
    }
    if offered.iter().any(|written| written.scheme == "basic") {
        return Ok(Challenge::Basic);
    }
    if no_realm {
        return Err(ChallengeError::NoRealm);
    }
    if offered.is_empty() {
        return Err(ChallengeError::Missing);
    }
    let schemes: Vec<_> = offered.into_iter().map(|written| written.scheme).take(8).collect();
    Err(ChallengeError::Unsupported(schemes.join(", ").chars().take(100).collect()))
}

fn bearer(written: &Written, realm: &str) -> Bearer {
    let scopes = written.parameter("scope").unwrap_or_default();
    Bearer {
        realm: realm.to_owned(),
        service: written.parameter("service").map(str::to_owned),
        scopes: scopes.split_ascii_whitespace().take(TOKEN_SCOPES).map(str::to_owned).collect(),
    }
}

/// Appends the challenges of one header value to `found`; text that fits no rule is skipped.
fn parse(value: &[u8], found: &mut Vec<Written>) {
    let mut text = Cursor { bytes: &value[..value.len().min(CHALLENGE_BYTES)] };
    // A header starts a new list: its parameters never belong to a challenge of the header before.
    let mut current: Option<Written> = None;
    for _ in 0..CHALLENGE_PARTS {
        text.skip(|byte| byte == b',' || byte.is_ascii_whitespace());
        if text.bytes.is_empty() {
            break;
        }
        let name = text.take(is_token);
        if name.is_empty() {
            text.bytes = &text.bytes[1..];
            continue;
        }
        let name = String::from_utf8_lossy(name).to_ascii_lowercase();
        match (text.value(), current.as_mut()) {
            (Some(value), Some(challenge)) => challenge.parameters.push((name, value)),
            (Some(_), None) => {}
            (None, _) => {
                found.extend(current.replace(Written { scheme: name, parameters: Vec::new() }));
                let answerable = current.as_ref().is_some_and(|new| matches!(new.scheme.as_str(), "bearer" | "basic"));
                if !answerable {
                    text.skip_token68();
                }
            }
        }
    }
    found.extend(current);
}

/// `tchar` of RFC 9110.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

/// The part of a header value not read yet.
struct Cursor<'a> {
    bytes: &'a [u8],
}

impl<'a> Cursor<'a> {
    fn take(&mut self, accept: impl Fn(u8) -> bool) -> &'a [u8] {
        let length = self.bytes.iter().position(|&byte| !accept(byte)).unwrap_or(self.bytes.len());
        let (taken, rest) = self.bytes.split_at(length);
        self.bytes = rest;
        taken
    }

    fn skip(&mut self, accept: impl Fn(u8) -> bool) {
        self.take(accept);
    }

    /// Reads `= value` if the next thing is an equals sign; otherwise reads nothing.
    fn value(&mut self) -> Option<String> {
        let mut ahead = Cursor { bytes: self.bytes };
        ahead.skip(is_blank);
        let (b'=', rest) = ahead.bytes.split_first()? else {
            return None;
        };
        ahead.bytes = rest;
        ahead.skip(is_blank);
        let value = if ahead.bytes.first() == Some(&b'"') {
            ahead.quoted()
        } else {
            // Looser than the grammar: realms are also written without quotes.
            ahead.take(|byte| byte != b',' && !byte.is_ascii_whitespace()).to_vec()
        };
        self.bytes = ahead.bytes;
        Some(String::from_utf8_lossy(&value).into_owned())
    }

    /// Reads a quoted string at its opening quote; an unfinished one is empty, so that it counts as not given.
    fn quoted(&mut self) -> Vec<u8> {
        let mut value = Vec::new();
        let mut bytes = self.bytes.iter().copied().enumerate().skip(1);
        while let Some((at, byte)) = bytes.next() {
            match byte {
                b'"' => {
                    self.bytes = &self.bytes[at + 1..];
                    return value;
                }
                b'\\' => value.extend(bytes.next().map(|(_, escaped)| escaped)),
                _ => value.push(byte),
            }
        }
        self.bytes = &[];
        Vec::new()
    }

    /// Skips the one-word credentials that schemes like Negotiate carry in the place of parameters.
    fn skip_token68(&mut self) {
        let mut ahead = Cursor { bytes: self.bytes };
        ahead.skip(is_blank);
        ahead.skip(|byte| byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte));
        ahead.skip(|byte| byte == b'=');
        ahead.skip(is_blank);
        if matches!(ahead.bytes.first(), None | Some(b',')) {
            self.bytes = ahead.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use reqwest::header::HeaderValue;

    use super::*;

    fn chosen(values: &[&str]) -> Result<Challenge, ChallengeError> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_str(value).expect("a header value"));
        }
        choose(&headers)
    }

    fn expected(realm: &str, service: Option<&str>, scopes: &[&str]) -> Result<Challenge, ChallengeError> {
        let scopes = scopes.iter().map(|&scope| scope.to_owned()).collect();
        Ok(Challenge::Bearer(Bearer { realm: realm.to_owned(), service: service.map(str::to_owned), scopes }))
    }

    #[test]
    fn b_110_parameters_are_read_in_any_order_case_and_quoting() {
        let scope = "repository:a/b:pull";
        let full = expected("https://auth.example/token", Some("reg"), &[scope, "x"]);
        for text in [
            r#"Bearer realm="https://auth.example/token",service="reg",scope="repository:a/b:pull x""#,
            r#"bearer scope="repository:a/b:pull x" , service=reg,  realm="https://auth.example/token""#,
            r#"BEARER Realm = "https://auth.example/token", SERVICE="r\eg",scope="repository:a/b:pull  x""#,
            r#",,Bearer realm=https://auth.example/token,service="reg",scope="repository:a/b:pull x",error="""#,
        ] {
            assert_eq!(chosen(&[text]), full, "{text}");
        }
        let commas = chosen(&[r#"Bearer realm="https://h/t?a=b,c",service=,scope="r:pull,push""#]);
        assert_eq!(commas, expected("https://h/t?a=b,c", None, &["r:pull,push"]));
    }

    #[test]
    fn b_111_bearer_is_preferred_whether_in_one_header_or_in_several() {
        let bearer = expected("https://h/t", None, &[]);
        assert_eq!(chosen(&[r#"Basic realm="x", Bearer realm="https://h/t""#]), bearer);
        assert_eq!(chosen(&["Negotiate", r#"Basic realm="x""#, r#"Bearer realm="https://h/t""#]), bearer);
        assert_eq!(chosen(&[r#"Negotiate YWJj/+==, Basic realm="x""#]), Ok(Challenge::Basic));
        assert_eq!(chosen(&["Basic"]), Ok(Challenge::Basic));
        assert_eq!(chosen(&["Negotiate a=="]), Err(ChallengeError::Unsupported("negotiate".to_owned())));
    }

    #[test]
    fn b_112_a_realm_is_required_and_the_rest_is_not() {
        assert_eq!(chosen(&[r#"Bearer realm="https://h/t""#]), expected("https://h/t", None, &[]));
        assert_eq!(chosen(&[r#"Bearer service="x""#]), Err(ChallengeError::NoRealm));
        assert_eq!(chosen(&[r#"Bearer realm="https://h/t"#]), Err(ChallengeError::NoRealm));
        assert_eq!(chosen(&[]), Err(ChallengeError::Missing));
        assert_eq!(chosen(&["", " , ", "="]), Err(ChallengeError::Missing));
    }

    proptest! {
        #[test]
        fn any_bytes_parse_to_a_bounded_list(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut found = Vec::new();
            parse(&bytes, &mut found);
            prop_assert!(found.len() <= CHALLENGE_PARTS);
        }

        #[test]
        fn any_mixture_of_grammar_pieces_parses_to_a_bounded_list(
            pieces in proptest::collection::vec("Bearer|Basic|realm|scope|=|\"|\\\\|,| |https://h/t|==|a", 0..200),
        ) {
            let mut found = Vec::new();
            parse(pieces.concat().as_bytes(), &mut found);
            prop_assert!(found.len() <= CHALLENGE_PARTS);
        }

        #[test]
        fn a_quoted_value_comes_back_whatever_it_holds(value in "[ -~]{1,60}") {
            let quoted = value.replace('\\', r"\\").replace('"', r#"\""#);
            let text = format!("Negotiate, Bearer a=b, realm=\"{quoted}\", service=s");
            prop_assert_eq!(chosen(&[&text]), expected(&value, Some("s"), &[]));
        }
    }
}
