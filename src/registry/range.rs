//! Which answers to a request for bytes are acceptable (RFC 9110, sections 14 and 15.3.7).
//!
//! A range is asked for exactly and must be answered exactly: a server or cache that is vague about which bytes it
//! sends is not believed about them (B-085, B-087). Only the whole blob is accepted instead (B-086).

use std::ops::Range;

use reqwest::StatusCode;
use reqwest::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, HeaderMap, HeaderName};

/// What the body of an acceptable answer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// The bytes asked for.
    Range,
    /// The blob from its start.
    Whole,
}

/// Why an answer is not acceptable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum RangeError {
    /// The blob has another length than its descriptor says.
    #[error("it has {0} bytes there, but {1} by its descriptor")]
    Size(u64, u64),
    /// The server says that the range lies outside the blob (B-088).
    #[error("it is shorter there than the {0} bytes of its descriptor")]
    Outside(u64),
    /// The range is missing, given more than once or not the one asked for.
    #[error("the answer to a request for bytes {0} is not for these bytes")]
    Other(String),
    /// The bytes are compressed on the way although that was declined (B-092).
    #[error("the answer is encoded although that was declined")]
    Encoded,
}

/// Judges an answer with status 200, 206 or 416 to a request for `range` of a blob of `size` bytes.
///
/// `ranged` tells whether the request had a `Range` header.
pub(super) fn judge(
    status: StatusCode,
    headers: &HeaderMap,
    range: &Range<u64>,
    size: u64,
    ranged: bool,
) -> Result<Content, RangeError> {
    if headers.get_all(CONTENT_ENCODING).iter().any(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(RangeError::Encoded);
    }
    let wrong = || RangeError::Other(format!("{}-{}", range.start, range.end.saturating_sub(1)));
    match status {
        StatusCode::RANGE_NOT_SATISFIABLE => Err(RangeError::Outside(size)),
        StatusCode::PARTIAL_CONTENT if ranged => {
            let given = only(headers, CONTENT_RANGE).and_then(parse).ok_or_else(wrong)?;
            if given.bytes != *range {
                return Err(wrong());
            }
            if given.size != size {
                return Err(RangeError::Size(given.size, size));
            }
            if length(headers).is_some_and(|length| length != range.end - range.start) {
                return Err(wrong());
            }
            Ok(Content::Range)
        }
        StatusCode::OK => match length(headers) {
            Some(length) if length != size => Err(RangeError::Size(length, size)),
            _ => Ok(Content::Whole),
        },
        _ => Err(wrong()),
    }
}

/// The length that the body will have, if the server says it.
pub(super) fn length(headers: &HeaderMap) -> Option<u64> {
    number(only(headers, CONTENT_LENGTH)?)
}

struct Given {
    bytes: Range<u64>,
    size: u64,
}

/// Reads `bytes FIRST-LAST/SIZE`; an unknown size (`*`) is refused like any other vagueness.
fn parse(value: &str) -> Option<Given> {
    let (unit, rest) = value.trim().split_once(' ')?;
    let (bytes, size) = rest.trim().split_once('/')?;
    let (first, last) = bytes.split_once('-')?;
    let (first, last, size) = (number(first)?, number(last)?, number(size)?);
    let end = last.checked_add(1)?;
    (unit.eq_ignore_ascii_case("bytes") && first < end && end <= size).then_some(Given { bytes: first..end, size })
}

/// The value of a header that must not be given twice.
fn only(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

/// Decimal digits only, unlike the standard parser, which takes a sign.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use reqwest::header::HeaderValue;

    use super::*;

    fn judged(status: u16, headers: &[(&'static str, &str)]) -> Result<Content, RangeError> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_static(name), HeaderValue::from_str(value).expect("a header value"));
        }
        judge(StatusCode::from_u16(status).expect("a status"), &map, &(10..20), 100, true)
    }

    #[test]
    fn b_085_the_exact_range_is_accepted() {
        for value in ["bytes 10-19/100", "Bytes 10-19/100"] {
            assert_eq!(judged(206, &[("content-range", value)]), Ok(Content::Range), "{value}");
        }
        assert_eq!(judged(206, &[("content-range", "bytes 10-19/100"), ("content-length", "10")]), Ok(Content::Range));
        assert_eq!(judged(206, &[("content-range", "bytes 10-19/101")]), Err(RangeError::Size(101, 100)));
    }

    #[test]
    fn b_087_vague_or_other_ranges_are_refused() {
        for value in [
            "bytes 10-18/100",
            "bytes 10-20/100",
            "bytes 9-19/100",
            "bytes 10-19/*",
            "bytes */100",
            "bytes 10-19",
            "10-19/100",
            "bytes +10-19/100",
            "bytes 10-18446744073709551615/100",
            "items 10-19/100",
            "",
        ] {
            assert!(matches!(judged(206, &[("content-range", value)]), Err(RangeError::Other(_))), "{value}");
        }
        let exact = ("content-range", "bytes 10-19/100");
        assert!(judged(206, &[]).is_err());
        assert!(judged(206, &[exact, exact]).is_err());
        assert!(judged(206, &[exact, ("content-length", "11")]).is_err());
        assert!(judged(206, &[("content-type", "multipart/byteranges; boundary=x")]).is_err());
    }

    #[test]
    fn b_086_b_093_the_whole_blob_is_accepted_if_it_is_as_long_as_described() {
        assert_eq!(judged(200, &[("content-length", "100")]), Ok(Content::Whole));
        assert_eq!(judged(200, &[]), Ok(Content::Whole));
        assert_eq!(judged(200, &[("content-length", "10")]), Err(RangeError::Size(10, 100)));
    }

    #[test]
    fn b_088_b_092_unsatisfiable_and_encoded_answers_are_errors() {
        assert_eq!(judged(416, &[]), Err(RangeError::Outside(100)));
        assert_eq!(judged(200, &[("content-encoding", "gzip")]), Err(RangeError::Encoded));
        assert_eq!(
            judged(206, &[("content-encoding", "gzip"), ("content-range", "bytes 10-19/100")]),
            Err(RangeError::Encoded)
        );
        assert_eq!(judged(200, &[("content-encoding", "identity")]), Ok(Content::Whole));
    }

    proptest! {
        #[test]
        fn any_value_is_judged_without_a_panic(value in "(bytes )?[0-9*/ -]{0,60}") {
            let accepted = judged(206, &[("content-range", &value)]).is_ok();
            prop_assert!(!accepted || value.contains("10-19/100"));
        }

        #[test]
        fn b_087_only_one_range_of_all_is_accepted(first in 8_u64..13, last in 17_u64..22, size in 98_u64..103) {
            let accepted = judged(206, &[("content-range", &format!("bytes {first}-{last}/{size}"))]).is_ok();
            prop_assert_eq!(accepted, (first, last, size) == (10, 19, 100));
        }
    }
}
