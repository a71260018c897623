//! Bodies that arrive compressed although that was declined (RFC 9110, section 8.4; B-092).
//!
//! Every request says `Accept-Encoding: identity`, but caches and object stores that keep a document compressed send it so
//! all the same. What was asked for as a whole can be decoded, to no more bytes than it may have; of a range nobody knows what
//! it is a range of, so that one is refused ([`range`](super::range)).

use std::io::{self, Read};
use std::time::Duration;

use reqwest::header::{CONTENT_ENCODING, CONTENT_LENGTH, HeaderMap};
use reqwest::{Response, ResponseBuilderExt as _};

use super::error::{Fault, cannot, origin};
use super::transport::Body;
use crate::limits::{BODY_CODINGS, ENCODED_SLACK, ZSTD_CODING_WINDOW_LOG};
use crate::source::{Error, ErrorKind};

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coding {
    Gzip,
    Deflate,
    Zstd,
}

/// The same answer with its body as it was before it was encoded, at most `limit` bytes; as it is, if it is not encoded.
///
/// Reads the whole body of one that is, within the time that a document may take.
pub(super) async fn plain(what: &str, response: Response, limit: u64, stall: Duration) -> Result<Response, Fault> {
    let at = response.url().clone();
    let fault = |why: &dyn std::fmt::Display| {
        let message = format!("{}: the answer of {} is encoded although that was declined", cannot(what), origin(&at));
        Fault::lasting(Error::new(ErrorKind::Invalid, format!("{message}, {why}")))
    };
    let codings = codings(response.headers()).map_err(|why| fault(&why))?;
    if codings.is_empty() {
        return Ok(response);
    }
    let (status, mut headers) = (response.status(), response.headers().clone());
    let most = limit.saturating_add(ENCODED_SLACK);
    let encoded = Body::new(response, stall).whole(what, most, stall.saturating_mul(BODY_TIME)).await?;
    let decoding = tokio::task::spawn_blocking(move || decode_all(&encoded, &codings, limit));
    let decoded = decoding.await.unwrap_or_else(|error| Err(io::Error::other(error))).map_err(|error| fault(&error))?;
    tracing::debug!(length = decoded.len(), "{what} came encoded although that was declined");
    headers.remove(CONTENT_ENCODING);
    headers.insert(CONTENT_LENGTH, decoded.len().into());
    let mut plain = hyper::Response::builder().status(status).url(at.clone());
    if let Some(given) = plain.headers_mut() {
        *given = headers;
    }
    plain.body(decoded).map(Response::from).map_err(|error| fault(&error))
}

/// How many times a stall a whole body may take.
const BODY_TIME: u32 = 4;

/// The codings of a body in the order in which they were applied; none that a body has by itself.
fn codings(headers: &HeaderMap) -> Result<Vec<Coding>, &'static str> {
    let mut codings = Vec::new();
    for value in headers.get_all(CONTENT_ENCODING) {
        let names = value.to_str().map_err(|_| "in a way that has no name")?;
        for name in names.split(',').map(|name| name.trim().to_ascii_lowercase()) {
            match name.as_str() {
                "" | "identity" => continue,
                "gzip" | "x-gzip" => codings.push(Coding::Gzip),
                "deflate" => codings.push(Coding::Deflate),
                "zstd" => codings.push(Coding::Zstd),
                _ => return Err("in a way that is not known here"),
            }
        }
    }
    if codings.len() > BODY_CODINGS {
        return Err("too many times over");
    }
    Ok(codings)
}

/// Undoes the last coding first.
fn decode_all(encoded: &[u8], codings: &[Coding], limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = encoded.to_vec();
    for (left, coding) in codings.iter().enumerate().rev() {
        // What comes between two codings is hardly longer than what comes out.
        bytes = decode(*coding, &bytes, if left == 0 { limit } else { limit.saturating_add(ENCODED_SLACK) })?;
    }
    Ok(bytes)
}

fn decode(coding: Coding, encoded: &[u8], limit: u64) -> io::Result<Vec<u8>> {
    match coding {
        Coding::Gzip => read(flate2::read::MultiGzDecoder::new(encoded), limit),
        // The name means the zlib format, and some servers send its contents without the format.
        Coding::Deflate if is_zlib(encoded) => read(flate2::read::ZlibDecoder::new(encoded), limit),
        Coding::Deflate => read(flate2::read::DeflateDecoder::new(encoded), limit),
        Coding::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::new(encoded)?;
            decoder.window_log_max(ZSTD_CODING_WINDOW_LOG)?;
            read(decoder, limit)
        }
    }
}

/// True if `bytes` begin as the zlib format does (RFC 1950, section 2.2).
fn is_zlib(bytes: &[u8]) -> bool {
    matches!(bytes, [method, flags, ..] if method & 0xf == 8 && u16::from_be_bytes([*method, *flags]) % 31 == 0)
}

/// All that `reader` has, at most `limit` bytes.
fn read(reader: impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other(format!("and has more than {limit} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
    use proptest::prelude::*;
    use reqwest::header::HeaderValue;

    use super::*;

    fn encode(coding: Coding, bytes: &[u8]) -> Vec<u8> {
        let level = Compression::default();
        let written = match coding {
            Coding::Gzip => {
                let mut gzip = GzEncoder::new(Vec::new(), level);
                gzip.write_all(bytes).and_then(|()| gzip.finish())
            }
            Coding::Deflate => {
                let mut zlib = ZlibEncoder::new(Vec::new(), level);
                zlib.write_all(bytes).and_then(|()| zlib.finish())
            }
            Coding::Zstd => zstd::encode_all(bytes, 3),
        };
        written.expect("written to memory")
    }

    fn named(values: &[&'static str]) -> Result<Vec<Coding>, &'static str> {
        codings(&values.iter().map(|value| (CONTENT_ENCODING, HeaderValue::from_static(value))).collect())
    }

    #[test]
    fn b_092_codings_are_named_in_one_header_or_in_several() {
        assert_eq!(named(&[]), Ok(Vec::new()));
        assert_eq!(named(&["identity", " , IDENTITY"]), Ok(Vec::new()));
        assert_eq!(named(&["gzip, zstd", "Deflate"]), Ok(vec![Coding::Gzip, Coding::Zstd, Coding::Deflate]));
        assert_eq!(named(&["x-gzip"]), Ok(vec![Coding::Gzip]));
        assert!(named(&["br"]).is_err() && named(&["gzip, gzip, gzip, gzip"]).is_err());
    }

    #[test]
    fn b_092_a_body_that_decodes_to_too_much_is_refused() {
        let zeros = vec![0; 1 << 20];
        for coding in [Coding::Gzip, Coding::Deflate, Coding::Zstd] {
            let encoded = encode(coding, &zeros);
            assert_eq!(decode_all(&encoded, &[coding], 1 << 20).expect("it may be so long"), zeros);
            assert!(decode_all(&encoded, &[coding], (1 << 20) - 1).is_err(), "{coding:?}");
            assert!(decode_all(&encoded[..encoded.len() - 1], &[coding], 1 << 20).is_err(), "{coding:?} is cut short");
        }
        let mut raw = DeflateEncoder::new(Vec::new(), Compression::default());
        raw.write_all(&zeros).expect("written to memory");
        let raw = raw.finish().expect("written to memory");
        assert_eq!(decode_all(&raw, &[Coding::Deflate], 1 << 20).expect("without its format"), zeros);
    }

    proptest! {
        #[test]
        fn b_092_what_was_encoded_is_decoded_and_anything_else_does_no_harm(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            chain in prop::collection::vec(prop::sample::select(vec![Coding::Gzip, Coding::Deflate, Coding::Zstd]), 0..3),
        ) {
            let encoded = chain.iter().fold(bytes.clone(), |bytes, coding| encode(*coding, &bytes));
            prop_assert_eq!(decode_all(&encoded, &chain, 300).expect("it is what was encoded"), bytes.clone());
            // Whether it is an error does not matter.
            drop(decode_all(&bytes, &chain, 300));
        }
    }
}
