//! What registries tell users beside the answer: `Warning: 299 - "text"` (distribution-spec, "Warnings"; B-101).

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, WARNING};

use super::error::{escape, origin};
use crate::limits::{SHOWN_CHARACTERS, WARNING_BYTES, WARNINGS_KEPT};

/// The warnings seen so far; each is logged once.
#[derive(Debug, Default)]
pub(super) struct Warnings {
    /// Held only while one text is looked up.
    seen: Mutex<HashSet<String>>,
}

impl Warnings {
    /// Logs the warnings among `headers` that were not logged before.
    pub(super) fn note(&self, from: &Url, headers: &HeaderMap) {
        const NAME: HeaderName = WARNING;
        for text in headers.get_all(NAME).iter().filter_map(|value| parse(value.as_bytes())) {
            if self.is_new(&text) {
                tracing::warn!(registry = %origin(from), "the registry warns: {text}");
            }
        }
    }

    /// True once for each text, and for so many texts only.
    pub(super) fn is_new(&self, text: &str) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.len() < WARNINGS_KEPT && seen.insert(text.to_owned())
    }
}

/// The escaped text of a warning that is meant for users: code 299, agent `-`, quoted text.
fn parse(value: &[u8]) -> Option<String> {
    if value.len() > WARNING_BYTES {
        return None;
    }
    let quoted = str::from_utf8(value).ok()?.trim().strip_prefix("299 - \"")?;
    let mut text = String::new();
    let mut characters = quoted.chars();
    loop {
        match characters.next()? {
            '"' => return Some(escape(&text, SHOWN_CHARACTERS)),
            '\\' => text.push(characters.next()?),
            other => text.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn b_101_warnings_are_recognised_escaped_and_bounded() {
        assert_eq!(parse(br#"299 - "deprecated \"tag\"""#).as_deref(), Some(r#"deprecated "tag""#));
        assert_eq!(parse("299 - \"a\u{202e}b\"".as_bytes()).as_deref(), Some(r"a\u{202e}b"));
        for other in [&b"199 - \"x\""[..], b"299 agent \"x\"", b"299 - x", b"299 - \"x", b"", b"299 - \"\\"] {
            assert_eq!(parse(other), None, "{other:?}");
        }
        let long = format!("299 - \"{}\"", "x".repeat(WARNING_BYTES));
        assert_eq!(parse(long.as_bytes()), None);
    }

    #[test]
    fn b_101_each_warning_is_shown_once_and_only_so_many() {
        let warnings = Warnings::default();
        assert!(warnings.is_new("a") && !warnings.is_new("a") && warnings.is_new("b"));
        let shown = (0..1000).filter(|number| warnings.is_new(&number.to_string())).count();
        assert_eq!(shown, WARNINGS_KEPT - 2);
    }

    proptest! {
        #[test]
        fn any_value_parses_without_a_panic(value in proptest::collection::vec(any::<u8>(), 0..100)) {
            let mut warned = b"299 - \"".to_vec();
            warned.extend(value);
            let text = parse(&warned).unwrap_or_default();
            prop_assert!(!text.chars().any(char::is_control));
        }
    }
}
