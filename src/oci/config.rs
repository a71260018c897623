//! The image configuration: what the layers unpack to and how to run it (image-spec, config.md).
//!
//! Configurations have been written by many tools and read by Go's decoder, which matches keys in any case and takes
//! null for absent; images rely on both (C-027, C-030). [`ImageConfig::parse`] reads them that way, exact spelling
//! first, and ignores what it does not know (C-028); only what makes the image unverifiable is an error.

use std::collections::{BTreeMap, BTreeSet};

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::descriptor::texts;
use super::json::{self, Keys, folds_to};
use super::{Digest, DigestError, JsonError, Platform, Printable};
use crate::limits;

/// An image configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageConfig {
    /// What the image is made for.
    pub platform: Platform,
    /// The digests of the layers' uncompressed tar streams, lowest first.
    pub diff_ids: Vec<Digest>,
    /// When the image was made, RFC 3339 text as written.
    pub created: Option<String>,
    /// Who made it.
    pub author: Option<String>,
    /// The program to run, before `cmd`.
    pub entrypoint: Vec<String>,
    /// Default arguments, or the program if there is no entrypoint.
    pub cmd: Vec<String>,
    /// Environment as `KEY=value`, in the order written.
    pub env: Vec<String>,
    /// The working directory, as written.
    pub working_dir: Option<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`, as written.
    pub user: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Ports as `8080/tcp`.
    pub exposed_ports: BTreeSet<String>,
    /// Paths whose content is to outlive the container.
    pub volumes: BTreeSet<String>,
    /// The signal that asks the program to end.
    pub stop_signal: Option<String>,
    /// Number of history entries.
    pub history_len: usize,
}

/// Why a configuration is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The document is longer than [`crate::limits::CONFIG_BYTES`].
    #[error("image configuration of {0} bytes is too long (the limit is {limit})", limit = limits::CONFIG_BYTES)]
    TooLong(usize),
    /// The document is not JSON of the right shape.
    #[error("image configuration: {0}")]
    Json(#[from] JsonError),
    /// `rootfs.type` is not `layers` (B-063).
    #[error("image configuration has a root file system of type \"{0}\", only \"layers\" is supported")]
    RootfsType(String),
    /// A diff id is not a usable digest.
    #[error("image configuration: diff_ids[{position}]: {problem}")]
    DiffId {
        /// Its position.
        position: usize,
        /// What is wrong with it.
        problem: DigestError,
    },
    /// More diff ids than [`crate::limits::LAYERS`].
    #[error("image configuration lists {0} diff ids, the limit is {limit}", limit = limits::LAYERS)]
    TooManyLayers(usize),
}

impl ConfigError {
    /// True if the document is well-formed but of a kind that this program does not handle.
    pub fn is_unsupported(&self) -> bool {
        match self {
            Self::RootfsType(_) | Self::DiffId { problem: DigestError::Unsupported(_), .. } => true,
            Self::TooLong(_) | Self::Json(_) | Self::DiffId { .. } | Self::TooManyLayers(_) => false,
        }
    }
}

/// Declares a struct that reads an object as Go does: keys in any case, the exact spelling preferred, null for absent.
macro_rules! lenient {
    ($name:ident { $($field:ident: $type:ty = $key:literal,)* }) => {
        #[derive(Debug, Default)]
        struct $name { $($field: Option<$type>,)* }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Fields;
                impl<'de> Visitor<'de> for Fields {
                    type Value = $name;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("an object")
                    }

                    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<$name, A::Error> {
                        let mut exact = $name::default();
                        let mut folded = $name::default();
                        while let Some(key) = map.next_key::<String>()? {
                            $(
                                if key == $key {
                                    exact.$field = map.next_value()?;
                                    continue;
                                }
                            )*
                            $(
                                if folds_to(&key, $key) {
                                    folded.$field = map.next_value()?;
                                    continue;
                                }
                            )*
                            map.next_value::<IgnoredAny>()?;
                        }
                        Ok($name { $($field: exact.$field.or(folded.$field),)* })
                    }
                }
                deserializer.deserialize_map(Fields)
            }
        }
    };
}

lenient!(WireConfig {
    architecture: String = "architecture",
    os: String = "os",
    variant: String = "variant",
    os_version: String = "os.version",
    os_features: Vec<String> = "os.features",
    created: String = "created",
    author: String = "author",
    config: WireExecution = "config",
    rootfs: WireRootfs = "rootfs",
    history: Vec<IgnoredAny> = "history",
});

lenient!(WireExecution {
    user: String = "User",
    exposed_ports: BTreeMap<String, IgnoredAny> = "ExposedPorts",
    env: Vec<Option<String>> = "Env",
    entrypoint: Vec<Option<String>> = "Entrypoint",
    cmd: Vec<Option<String>> = "Cmd",
    volumes: BTreeMap<String, IgnoredAny> = "Volumes",
    working_dir: String = "WorkingDir",
    labels: BTreeMap<String, Option<String>> = "Labels",
    stop_signal: String = "StopSignal",
});

lenient!(WireRootfs {
    kind: String = "type",
    diff_ids: Vec<String> = "diff_ids",
});

impl ImageConfig {
    /// Parses a configuration whose digest has been checked.
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        if bytes.len() as u64 > limits::CONFIG_BYTES {
            return Err(ConfigError::TooLong(bytes.len()));
        }
        json::scan(bytes, Keys::AnyCase)?;
        let wire: WireConfig = serde_json::from_slice(bytes).map_err(JsonError::from)?;
        let execution = wire.config.unwrap_or_default();
        Ok(Self {
            platform: Platform::new(
                &wire.os.unwrap_or_default(),
                &wire.architecture.unwrap_or_default(),
                wire.variant.as_deref(),
            )
            .with_os(wire.os_version, wire.os_features.unwrap_or_default()),
            diff_ids: diff_ids(wire.rootfs.unwrap_or_default())?,
            created: stated(wire.created),
            author: stated(wire.author),
            entrypoint: list(execution.entrypoint),
            cmd: list(execution.cmd),
            env: list(execution.env),
            working_dir: stated(execution.working_dir),
            user: stated(execution.user),
            labels: texts(execution.labels),
            exposed_ports: execution.exposed_ports.unwrap_or_default().into_keys().collect(),
            volumes: execution.volumes.unwrap_or_default().into_keys().collect(),
            stop_signal: stated(execution.stop_signal),
            history_len: wire.history.map_or(0, |history| history.len()),
        })
    }
}

fn diff_ids(rootfs: WireRootfs) -> Result<Vec<Digest>, ConfigError> {
    let kind = rootfs.kind.unwrap_or_default();
    if kind != "layers" {
        return Err(ConfigError::RootfsType(format!("{:.80}", Printable::of(&kind))));
    }
    let texts = rootfs.diff_ids.unwrap_or_default();
    if texts.len() > limits::LAYERS {
        return Err(ConfigError::TooManyLayers(texts.len()));
    }
    let parse =
        |(position, text): (usize, String)| text.parse().map_err(|problem| ConfigError::DiffId { position, problem });
    texts.into_iter().enumerate().map(parse).collect()
}

fn stated(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

fn list(texts: Option<Vec<Option<String>>>) -> Vec<String> {
    texts.unwrap_or_default().into_iter().map(Option::unwrap_or_default).collect()
}

#[cfg(test)]
mod tests;
