//! JSON that means one thing only.
//!
//! Two readers of the same bytes must not see two images: a key given twice, or given once in another case, is read
//! differently by different programs (B-044, B-065; CVE-2021-41190). [`scan`] walks a document once before anything is
//! taken from it, holds nothing but the keys of the objects it is inside of, and refuses what is ambiguous or too deep.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::Printable;
use crate::limits;

/// A document that is not JSON, not I-JSON, or not of the expected shape; says where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed JSON: {0}")]
pub struct JsonError(String);

impl From<serde_json::Error> for JsonError {
    fn from(error: serde_json::Error) -> Self {
        Self(format!("{:.300}", Printable::of(&error.to_string())))
    }
}

/// How strictly the spelling of keys is looked at.
#[derive(Debug, Clone, Copy)]
pub(super) enum Keys {
    /// Any spelling; readers fold case themselves (C-030).
    AnyCase,
    /// A key that differs from one of these names in case only is refused, except inside `annotations` and inside
    /// values of other keys, which nobody interprets.
    Exact(&'static [&'static str]),
}

/// Parses nothing, but makes sure that `bytes` are one JSON value without duplicate keys, within the bounds.
///
/// Answers the keys of the outermost object.
pub(super) fn scan(bytes: &[u8], keys: Keys) -> Result<HashSet<String>, JsonError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let outermost = Scan { keys, depth: 0 }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(outermost)
}

/// True if Go's decoder takes `one` for `two`: it folds case beyond ASCII, so that the Kelvin sign is a `k`.
pub(super) fn folds_to(one: &str, two: &str) -> bool {
    one.len() <= 4 * two.len()
        && one
            .chars()
            .flat_map(char::to_uppercase)
            .flat_map(char::to_lowercase)
            .eq(two.chars().flat_map(char::to_lowercase))
}

struct Scan {
    keys: Keys,
    depth: usize,
}

impl Scan {
    fn inner<E: serde::de::Error>(&self, key: Option<&str>) -> Result<Self, E> {
        if self.depth == limits::JSON_DEPTH {
            return Err(E::custom(format!("nested deeper than {}", limits::JSON_DEPTH)));
        }
        let keys = match (self.keys, key) {
            (Keys::Exact(names), Some(key)) if key == "annotations" || !names.contains(&key) => Keys::AnyCase,
            (keys, _) => keys,
        };
        Ok(Self { keys, depth: self.depth + 1 })
    }

    fn check_spelling<E: serde::de::Error>(&self, key: &str) -> Result<(), E> {
        let Keys::Exact(names) = self.keys else { return Ok(()) };
        match names.iter().find(|name| **name != key && folds_to(key, name)) {
            Some(name) if !names.contains(&key) => {
                Err(E::custom(format!("key \"{}\" must be spelled \"{name}\"", Printable::of(key))))
            }
            _ => Ok(()),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Scan {
    type Value = HashSet<String>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Scan {
    type Value = HashSet<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(HashSet::new())
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(HashSet::new())
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(HashSet::new())
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(HashSet::new())
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(HashSet::new())
    }

    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(HashSet::new())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        while items.next_element_seed(self.inner(None)?)?.is_some() {}
        Ok(HashSet::new())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            self.check_spelling(&key)?;
            map.next_value_seed(self.inner(Some(&key))?)?;
            if seen.len() == limits::JSON_KEYS {
                return Err(A::Error::custom(format!("more than {} keys in one object", limits::JSON_KEYS)));
            }
            if let Some(key) = seen.replace(key) {
                return Err(A::Error::custom(format!("key \"{:.60}\" is given twice", Printable::of(&key))));
            }
        }
        Ok(seen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &[u8]) -> String {
        scan(text, Keys::Exact(&["layers", "size", "kind"])).expect_err("refused").to_string()
    }

    #[test]
    fn b_065_what_two_readers_read_differently_is_refused() {
        assert!(refusal(br#"{"a":1,"a":2}"#).contains("given twice"));
        assert!(refusal(br#"[{"b":{"a":1,"\u0061":2}}]"#).contains("given twice"));
        for text in
            [&b"\xef\xbb\xbf{}"[..], b"{\0}\0", b"{\"a\":NaN}", b"{\"a\":1e999}", b"{} {}", b"{\"a\":\"\xff\"}", b""]
        {
            refusal(text);
        }
        refusal(br#"{"a":"\ud800"}"#);
    }

    #[test]
    fn b_044_case_variants_of_known_keys_are_refused_as_go_folds_them() {
        for key in ["Layers", "LAYERS", "layer\u{17f}", "SIZE", "\u{212a}ind"] {
            assert!(refusal(format!("{{\"{key}\":1}}").as_bytes()).contains("must be spelled"), "{key}");
        }
        refusal(br#"{"layers":[{"Size":1}]}"#);
        let free = br#"{"annotations":{"Size":"","size":""},"layers":[],"x":[{"Size":1}]}"#;
        let keys = scan(free, Keys::Exact(&["annotations", "layers", "size"])).expect("annotations are free");
        assert!(keys.contains("layers") && keys.len() == 3);
        scan(br#"{"Size":1,"size":2}"#, Keys::AnyCase).expect("readers fold case themselves");
    }

    #[test]
    fn nesting_and_keys_are_bounded() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        scan(nested(limits::JSON_DEPTH).as_bytes(), Keys::AnyCase).expect("within the bound");
        assert!(refusal(nested(limits::JSON_DEPTH + 1).as_bytes()).contains("nested"));
        refusal(nested(1 << 20).as_bytes());
        let keys: Vec<String> = (0..=limits::JSON_KEYS).map(|key| format!("\"{key}\":0")).collect();
        assert!(refusal(format!("{{{}}}", keys.join(",")).as_bytes()).contains("keys in one object"));
    }
}
