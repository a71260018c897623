//! Keeping passwords and tokens out of logs and errors: [`Secret`] has no way to be printed by accident (D-034).

use std::fmt;

use reqwest::header::HeaderValue;

/// A password or token; `Debug` shows nothing of it and there is no `Display`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Secret(String);

impl Secret {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself; only for putting it on the wire to whom it belongs.
    pub(super) fn expose(&self) -> &str {
        &self.0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The text as a header value that the HTTP stack does not print either; nothing if no header can carry it.
    pub(super) fn header(&self) -> Option<HeaderValue> {
        let mut value = HeaderValue::from_str(&self.0).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn d_034_a_secret_does_not_print() {
        let secret = Secret::new("hunter2");
        let header = secret.header().expect("plain ASCII makes a header");
        assert!(!format!("{secret:?} {header:?}").contains("hunter2"));
        assert_eq!(secret.expose(), "hunter2");
    }

    #[test]
    fn line_breaks_never_reach_a_header() {
        assert!(Secret::new("a\r\nX-Evil: 1").header().is_none());
    }
}
