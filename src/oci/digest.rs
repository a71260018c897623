//! Digests: the names of immutable bytes (image-spec, descriptor.md "Digests").
//!
//! A [`Digest`] is valid by construction, so it can be used in a path or a URL without another look (D-005). A
//! [`Hasher`] makes one from bytes; comparing the result with the digest that was asked for is the caller's duty, done
//! where the bytes enter.

use std::fmt;
use std::str::FromStr;

use sha2::Digest as _;

/// A hash algorithm that descriptors may use and that this build can verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, what everyone uses.
    Sha256,
    /// SHA-512, optional in the specification.
    Sha512,
}

impl Algorithm {
    /// The name before the colon.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// Length of the hash in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a hash is never empty")]
    pub fn len(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }
}

/// The digest of some bytes: `algorithm:lower-case hex`.
///
/// Text and value correspond one to one, so digests can be compared, hashed and sorted as values.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Digest {
    /// A SHA-256 digest.
    Sha256([u8; 32]),
    /// A SHA-512 digest.
    Sha512([u8; 64]),
}

/// Why a text is not a usable digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// The text does not have the form `algorithm:encoded`, or the encoded part does not fit the algorithm.
    #[error("invalid digest {0:?}")]
    Malformed(String),
    /// The form is right but the algorithm is not one that can be verified here (B-064).
    #[error("cannot verify digests of algorithm {0:?}, only sha256 and sha512")]
    Unsupported(String),
}

impl Digest {
    /// Hashes `bytes` with SHA-256.
    pub fn sha256(bytes: &[u8]) -> Self {
        Self::Sha256(sha2::Sha256::digest(bytes).into())
    }

    /// Hashes `bytes` with `algorithm`.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    /// The algorithm of this digest.
    pub fn algorithm(&self) -> Algorithm {
        match self {
            Self::Sha256(_) => Algorithm::Sha256,
            Self::Sha512(_) => Algorithm::Sha512,
        }
    }

    /// The hash itself, 32 or 64 bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Sha256(bytes) => bytes,
            Self::Sha512(bytes) => bytes,
        }
    }

    /// The part after the colon.
    pub fn hex(&self) -> String {
        let mut text = String::with_capacity(self.bytes().len() * 2);
        for byte in self.bytes() {
            for nibble in [byte >> 4, byte & 15] {
                text.push(char::from(b"0123456789abcdef"[usize::from(nibble)]));
            }
        }
        text
    }

    /// The digest shortened for people: the algorithm is left out and twelve hex digits stay.
    pub fn short(&self) -> String {
        self.hex()[..12].to_owned()
    }

    /// True if `bytes` have this digest.
    pub fn matches(&self, bytes: &[u8]) -> bool {
        Self::of(self.algorithm(), bytes) == *self
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm().name(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    /// Parses `algorithm:encoded` as descriptor.md defines it: registered algorithms demand lower-case hex of their length.
    fn from_str(text: &str) -> Result<Self, DigestError> {
        let malformed = || DigestError::Malformed(text.chars().take(160).collect());
        let (algorithm, encoded) = text.split_once(':').ok_or_else(malformed)?;
        match algorithm {
            "sha256" => decode_hex(encoded).map(Self::Sha256).ok_or_else(malformed),
            "sha512" => decode_hex(encoded).map(Self::Sha512).ok_or_else(malformed),
            _ if is_algorithm(algorithm) && is_encoded(encoded) => Err(DigestError::Unsupported(algorithm.to_owned())),
            _ => Err(malformed()),
        }
    }
}

/// `algorithm-component (separator algorithm-component)*` of descriptor.md.
fn is_algorithm(text: &str) -> bool {
    text.len() <= 64
        && text
            .split(['+', '.', '_', '-'])
            .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()))
}

fn is_encoded(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 512
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"=_-".contains(&byte))
}

fn decode_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(bytes)
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// Makes a [`Digest`] of bytes that arrive in pieces.
#[derive(Debug, Clone)]
pub struct Hasher(State);

#[derive(Debug, Clone)]
enum State {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl Hasher {
    /// Starts a digest of `algorithm`.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => State::Sha512(sha2::Sha512::new()),
        })
    }

    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(state) => state.update(bytes),
            State::Sha512(state) => state.update(bytes),
        }
    }

    /// The digest of all bytes added.
    pub fn finish(self) -> Digest {
        match self.0 {
            State::Sha256(state) => Digest::Sha256(state.finalize().into()),
            State::Sha512(state) => Digest::Sha512(state.finalize().into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn text_and_value_correspond() {
        let digest: Digest = EMPTY.parse().expect("a valid digest");
        assert_eq!(digest.to_string(), EMPTY);
        assert_eq!(digest, Digest::sha256(b""));
        let long = Digest::of(Algorithm::Sha512, b"x");
        assert_eq!(long.to_string().parse(), Ok(long));
    }

    #[test]
    fn b_008_d_005_only_well_formed_digests_parse() {
        let upper = EMPTY.to_uppercase();
        let long = format!("{EMPTY}0");
        for text in ["", "sha256:", "sha256:../../x", &EMPTY[..70], &long, &upper, ":abc", "SHA256:ab", "a b:cd"] {
            assert!(matches!(text.parse::<Digest>(), Err(DigestError::Malformed(_))), "{text}");
        }
        assert_eq!("blake3:abcd".parse::<Digest>(), Err(DigestError::Unsupported("blake3".to_owned())));
    }

    #[test]
    fn pieces_hash_like_the_whole() {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(b"ab");
        hasher.update(b"c");
        assert_eq!(hasher.finish(), Digest::sha256(b"abc"));
    }
}
