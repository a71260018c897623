//! Platforms: which of an index's images this machine can run.
//!
//! The same machine has many names (`x86_64` and `amd64`, `aarch64` and `arm64/v8`), and newer processors run programs
//! built for older ones. A [`Platform`] is normalised when it is made, as containerd does it, so that equal platforms
//! compare equal; [`Wanted`] says whether the machine's own order of preference counts or one platform exactly.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use super::manifest::{IndexEntry, MediaKind};
use super::{Descriptor, Printable};

/// An operating system and processor, in Go's vocabulary, normalised (B-051).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
    os_version: Option<String>,
    os_features: Vec<String>,
}

/// A platform text that is not `os/architecture[/variant]`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid platform \"{}\"; write os/architecture[/variant], such as linux/amd64 or linux/arm/v7", Printable::of(.0))]
pub struct PlatformError(String);

impl Platform {
    /// The platform of this name, normalised: `Linux`, `x86_64` is `linux/amd64`.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let os = match os.to_ascii_lowercase().as_str() {
            "" => "linux".to_owned(),
            "macos" => "darwin".to_owned(),
            other => other.to_owned(),
        };
        let variant = variant.map(str::to_ascii_lowercase).filter(|variant| !variant.is_empty());
        let (architecture, variant) = normalise(&architecture.to_ascii_lowercase(), variant);
        Self { os, architecture, variant, os_version: None, os_features: Vec::new() }
    }

    /// Adds the version and features of the operating system that an image demands.
    #[must_use]
    pub fn with_os(mut self, version: Option<String>, features: Vec<String>) -> Self {
        self.os_version = version.filter(|version| !version.is_empty());
        self.os_features = features;
        self
    }

    /// The platform of the machine this program runs on.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86" => "386",
            "loongarch64" => "loong64",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "powerpc64" => "ppc64",
            "mips64" if cfg!(target_endian = "little") => "mips64le",
            other => other,
        };
        Self::new(std::env::consts::OS, architecture, host_variant())
    }

    /// The operating system, `linux`.
    pub fn os(&self) -> &str {
        &self.os
    }

    /// The processor architecture, `amd64`.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// The variant of the processor, `v7`; none for the plain `amd64` and `arm64`.
    pub fn variant(&self) -> Option<&str> {
        self.variant.as_deref()
    }

    /// The version of the operating system; it counts for Windows only (B-055).
    pub fn os_version(&self) -> Option<&str> {
        self.os_version.as_deref()
    }

    /// Features that the operating system must have.
    pub fn os_features(&self) -> &[String] {
        &self.os_features
    }

    /// True for `unknown/unknown`, by which build tools mark attestations (B-056).
    pub fn is_unknown(&self) -> bool {
        self.os == "unknown" || self.architecture == "unknown"
    }

    fn is(&self, architecture: &str, variant: Option<&str>) -> bool {
        self.architecture == architecture && self.variant.as_deref() == variant
    }

    /// The images this machine runs, best first, as architecture and variant (B-052, B-053).
    fn runnable(&self) -> Vec<(&str, Option<&str>)> {
        const ARM: [&str; 4] = ["v8", "v7", "v6", "v5"];
        const AMD64: [&str; 3] = ["v4", "v3", "v2"];
        let mut order = Vec::new();
        match (self.architecture.as_str(), self.variant()) {
            ("amd64", variant) => {
                let from = AMD64.iter().position(|level| Some(*level) == variant).unwrap_or(AMD64.len());
                order.extend(AMD64[from..].iter().map(|level| ("amd64", Some(*level))));
                order.extend([("amd64", None), ("386", None)]);
            }
            ("arm64", variant) => {
                order.extend(variant.map(|variant| ("arm64", Some(variant))));
                order.push(("arm64", None));
                order.extend(ARM.map(|level| ("arm", Some(level))));
            }
            ("arm", variant) => {
                let from = ARM.iter().position(|level| Some(*level) == variant).unwrap_or(ARM.len());
                order.extend(ARM[from..].iter().map(|level| ("arm", Some(*level))));
                if order.is_empty() {
                    order.push(("arm", variant));
                }
            }
            (architecture, variant) => {
                order.extend(variant.map(|variant| (architecture, Some(variant))));
                order.push((architecture, None));
            }
        }
        order
    }
}

/// The names that containerd's platform database unites.
fn normalise(architecture: &str, variant: Option<String>) -> (String, Option<String>) {
    let (architecture, variant) = match (architecture, variant.as_deref()) {
        ("i386", _) => ("386", None),
        ("x86_64" | "x86-64" | "amd64", None | Some("v1")) => ("amd64", None),
        ("x86_64" | "x86-64", _) => ("amd64", variant),
        ("aarch64" | "arm64", None | Some("8" | "v8" | "v8.0")) => ("arm64", None),
        ("aarch64" | "arm64", Some("9" | "9.0" | "v9.0")) => ("arm64", Some("v9".to_owned())),
        ("aarch64", _) => ("arm64", variant),
        ("armhf", _) | ("arm", None | Some("7")) => ("arm", Some("v7".to_owned())),
        ("armel", _) => ("arm", Some("v6".to_owned())),
        ("arm", Some(level @ ("5" | "6" | "8"))) => ("arm", Some(format!("v{level}"))),
        ("", _) => ("unknown", variant),
        (other, _) => (other, variant),
    };
    (architecture.to_owned(), variant)
}

/// The x86-64 level of this processor, by the psABI's lists of instructions.
#[cfg(target_arch = "x86_64")]
fn host_variant() -> Option<&'static str> {
    use std::arch::is_x86_feature_detected as has;
    if !(has!("sse3") && has!("ssse3") && has!("sse4.1") && has!("sse4.2") && has!("popcnt") && has!("cmpxchg16b")) {
        return None;
    }
    let third = has!("avx") && has!("avx2") && has!("bmi1") && has!("bmi2") && has!("f16c") && has!("fma");
    if !(third && has!("lzcnt") && has!("movbe")) {
        return Some("v2");
    }
    let fourth = has!("avx512f") && has!("avx512bw") && has!("avx512cd") && has!("avx512dq") && has!("avx512vl");
    Some(if fourth { "v4" } else { "v3" })
}

#[cfg(not(target_arch = "x86_64"))]
fn host_variant() -> Option<&'static str> {
    None
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let invalid = || PlatformError(text.chars().take(80).collect());
        let is_part = |part: &&str| {
            !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
        };
        let parts: Vec<&str> = text.split('/').collect();
        if !parts.iter().all(is_part) {
            return Err(invalid());
        }
        match parts[..] {
            [os, architecture] => Ok(Self::new(os, architecture, None)),
            [os, architecture, variant] => Ok(Self::new(os, architecture, Some(variant))),
            _ => Err(invalid()),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.40}/{:.40}", Printable::of(&self.os), Printable::of(&self.architecture))?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{:.40}", Printable::of(variant)))
    }
}

/// The `platform` object of an index entry.
#[derive(Debug, Deserialize)]
pub(super) struct WirePlatform {
    architecture: Option<String>,
    os: Option<String>,
    variant: Option<String>,
    #[serde(rename = "os.version")]
    os_version: Option<String>,
    #[serde(rename = "os.features")]
    os_features: Option<Vec<String>>,
}

impl WirePlatform {
    /// The platform; none if the object states neither operating system nor architecture.
    pub(super) fn into_platform(self) -> Option<Platform> {
        let (os, architecture) = (self.os.unwrap_or_default(), self.architecture.unwrap_or_default());
        let platform = Platform::new(&os, &architecture, self.variant.as_deref())
            .with_os(self.os_version, self.os_features.unwrap_or_default());
        (!os.is_empty() || !architecture.is_empty()).then_some(platform)
    }
}

/// Which platform a mount asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// Whatever this machine runs best: its own platform, else the nearest it is compatible with.
    Host(Platform),
    /// This platform and no other (B-054).
    Exactly(Platform),
}

impl Wanted {
    /// The preference given to an image for `platform`, 0 being the best; none if the image does not fit.
    fn rank(&self, platform: &Platform) -> Option<usize> {
        match self {
            Self::Host(host) => {
                let fits = host.os == platform.os
                    && same_version(host, platform)
                    && platform.os_features.iter().all(|feature| host.os_features.contains(feature));
                let order = host.runnable();
                order.iter().position(|(architecture, variant)| fits && platform.is(architecture, *variant))
            }
            Self::Exactly(wanted) => {
                let fits = wanted.os == platform.os && same_version(wanted, platform);
                (fits && platform.is(&wanted.architecture, wanted.variant())).then_some(0)
            }
        }
    }

    /// True if an image for `platform` will do.
    ///
    /// For images whose index entry states no platform, so that only their configuration tells (B-049).
    pub fn accepts(&self, platform: &Platform) -> bool {
        self.rank(platform).is_some()
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(platform) => write!(f, "this machine ({platform})"),
            Self::Exactly(platform) => platform.fmt(f),
        }
    }
}

/// Windows containers run on the build of Windows they were made for; elsewhere the version says nothing (B-055).
fn same_version(wanted: &Platform, offered: &Platform) -> bool {
    let (Some(wanted_version), Some(version)) = (&wanted.os_version, &offered.os_version) else { return true };
    wanted.os != "windows" || version.split('.').take(3).eq(wanted_version.split('.').take(3))
}

/// No image of an index fits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no image for {wanted}; there {}", offer(.available))]
pub struct NoMatch {
    /// The platform that was asked for.
    pub wanted: String,
    /// The platforms there are, in the index's order, each once.
    pub available: Vec<String>,
}

fn offer(platforms: &[String]) -> String {
    match platforms {
        [] => "are no images at all".to_owned(),
        [one] => format!("is only {one}"),
        many => format!("are {}", many.join(", ")),
    }
}

/// Chooses the image to use: the most preferred platform, and of equals the first (B-050).
pub fn select<'a>(candidates: &'a [IndexEntry], wanted: &Wanted) -> Result<&'a IndexEntry, NoMatch> {
    ranked(candidates, wanted).into_iter().next().ok_or_else(|| no_match(candidates, wanted))
}

/// All entries that may be used, best first; entries without a platform come last, because their configuration or the
/// index behind them has to be read before anyone knows whether they fit ([`Wanted::accepts`], B-046, B-049).
pub fn ranked<'a>(candidates: &'a [IndexEntry], wanted: &Wanted) -> Vec<&'a IndexEntry> {
    let mut fitting: Vec<(usize, &IndexEntry)> = candidates
        .iter()
        .filter(|entry| is_image(entry))
        .filter_map(|entry| match &entry.platform {
            Some(platform) => wanted.rank(platform).map(|rank| (rank, entry)),
            None => Some((usize::MAX, entry)),
        })
        .collect();
    fitting.sort_by_key(|(rank, _)| *rank);
    fitting.into_iter().map(|(_, entry)| entry).collect()
}

/// The failure to find `wanted` among `candidates`, with what there is.
pub fn no_match(candidates: &[IndexEntry], wanted: &Wanted) -> NoMatch {
    let mut available: Vec<String> = Vec::new();
    for entry in candidates.iter().filter(|entry| is_image(entry)) {
        let text = entry.platform.as_ref().map_or("an image without platform".to_owned(), ToString::to_string);
        if !available.contains(&text) && available.len() < AVAILABLE {
            available.push(text);
        }
    }
    NoMatch { wanted: wanted.to_string(), available }
}

/// Most platforms listed in an error; Debian's index, among the longest, has nine.
const AVAILABLE: usize = 24;

/// True for entries that lead to an image: no attestations, artifacts or documents of unknown type (B-056, B-061).
fn is_image(entry: &IndexEntry) -> bool {
    let Descriptor { media_type, annotations, .. } = &entry.descriptor;
    let is_attestation = annotations.get("vnd.docker.reference.type").is_some_and(|kind| !kind.is_empty());
    let is_manifest = media_type.is_empty() || MediaKind::of(media_type).is_some_and(MediaKind::is_supported);
    let is_unknown = entry.platform.as_ref().is_some_and(Platform::is_unknown);
    is_manifest && !is_attestation && !entry.is_artifact() && !is_unknown
}

#[cfg(test)]
mod tests;
