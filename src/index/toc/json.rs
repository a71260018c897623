//! The document of a TOC: JSON with one long list, which is read entry by entry and never held as a whole.
//!
//! All writers are Go programs: a key may be missing or null where its value is the zero of its type. Keys that no reader
//! needs, such as the `NumLink` of old ones, are passed over.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::Error;
use super::members::Members;
use crate::oci::Printable;

/// The only version there is.
const VERSION: i64 = 1;

/// One entry as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Listed {
    pub(super) name: Option<String>,
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) size: Option<i64>,
    pub(super) modtime: Option<String>,
    pub(super) link_name: Option<String>,
    pub(super) mode: Option<i64>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    pub(super) dev_major: Option<i64>,
    pub(super) dev_minor: Option<i64>,
    /// Values are in base64.
    pub(super) xattrs: Option<BTreeMap<String, Option<String>>>,
    /// Of the whole file.
    pub(super) digest: Option<String>,
    /// Where a member or frame begins in the blob.
    pub(super) offset: Option<i64>,
    /// Where what it decodes to has the first byte.
    pub(super) inner_offset: Option<i64>,
    pub(super) end_offset: Option<i64>,
    pub(super) chunk_offset: Option<i64>,
    pub(super) chunk_size: Option<i64>,
    pub(super) chunk_digest: Option<String>,
    pub(super) chunk_type: Option<String>,
}

/// Gives every entry of the document to `members`.
pub(super) fn read(document: &[u8], members: &mut Members) -> Result<(), Error> {
    let mut refused = None;
    let mut deserializer = serde_json::Deserializer::from_slice(document);
    let read = Document { members, refused: &mut refused }.deserialize(&mut deserializer);
    match read.and_then(|()| deserializer.end()) {
        Ok(()) => Ok(()),
        Err(error) => Err(refused.unwrap_or_else(|| malformed(&error))),
    }
}

fn malformed(error: &serde_json::Error) -> Error {
    Error::Json(format!("{:.300}", Printable::of(&error.to_string())))
}

struct Document<'a> {
    members: &'a mut Members,
    /// Why reading stopped, if not because of the JSON.
    refused: &'a mut Option<Error>,
}

impl<'de> DeserializeSeed<'de> for Document<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Document<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table of contents")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let (mut version, mut has_entries) = (None, false);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "version" if version.is_none() => version = Some(map.next_value::<i64>()?),
                "entries" if !has_entries => {
                    has_entries = true;
                    map.next_value_seed(Entries { members: self.members, refused: self.refused })?;
                }
                "version" | "entries" => return Err(A::Error::custom("a key is given twice")),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        match (version, has_entries) {
            (Some(VERSION), true) => Ok(()),
            (Some(VERSION), false) => Err(A::Error::custom("it has no entries")),
            _ => Err(A::Error::custom("it is of an unknown version")),
        }
    }
}

struct Entries<'a> {
    members: &'a mut Members,
    refused: &'a mut Option<Error>,
}

impl<'de> DeserializeSeed<'de> for Entries<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        // An empty list is null in Go.
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of entries")
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(listed) = list.next_element::<Listed>()? {
            if let Err(error) = self.members.push(&listed) {
                *self.refused = Some(error);
                return Err(A::Error::custom("refused"));
            }
        }
        Ok(())
    }
}
