//! The `Range` header of a blob request (RFC 9110, section 14): what part of the blob is asked for.

use std::ops::Range;

/// What a `Range` header asks of a body of known length.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// The whole: there is no header, or one that may be ignored (another unit, several ranges, nonsense).
    Whole,
    /// These bytes, none of them beyond the end.
    Part(Range<u64>),
    /// Nothing that exists: `416`.
    Unsatisfiable,
}

/// Reads a `Range` header for a body of `size` bytes.
///
/// Several ranges in one header are answered with the whole body, which section 14.2 allows a server to do.
pub(super) fn parse(header: Option<&str>, size: u64) -> Asked {
    let Some((first, last)) = header.and_then(split) else { return Asked::Whole };
    match (first, last) {
        (Some(first), Some(last)) if last < first => Asked::Whole,
        (Some(first), _) if first >= size => Asked::Unsatisfiable,
        (Some(first), last) => Asked::Part(first..last.map_or(size, |last| last.saturating_add(1).min(size))),
        (None, Some(0)) => Asked::Unsatisfiable,
        (None, Some(_)) if size == 0 => Asked::Unsatisfiable,
        (None, Some(count)) => Asked::Part(size.saturating_sub(count)..size),
        (None, None) => Asked::Whole,
    }
}

/// The two numbers of `bytes=first-last`; none if the header is something else.
fn split(header: &str) -> Option<(Option<u64>, Option<u64>)> {
    let (unit, range) = header.trim().split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = range.trim().split_once('-')?;
    Some((number(first)?, number(last)?))
}

/// An empty text is no number, which is fine; anything but digits is not.
fn number(text: &str) -> Option<Option<u64>> {
    match text {
        "" => Some(None),
        digits if digits.bytes().all(|digit| digit.is_ascii_digit()) => Some(Some(digits.parse().unwrap_or(u64::MAX))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_at_the_end_of_the_body() {
        for (header, range) in [
            ("bytes=0-0", 0..1),
            ("bytes=0-99", 0..100),
            ("bytes=7-", 7..100),
            ("bytes=90-1000", 90..100),
            ("bytes=90-99999999999999999999999", 90..100),
            ("bytes=-5", 95..100),
            ("bytes=-500", 0..100),
            ("Bytes = 3-4", 3..5),
        ] {
            assert_eq!(parse(Some(header), 100), Asked::Part(range), "{header}");
        }
    }

    #[test]
    fn ranges_beyond_the_end_cannot_be_satisfied() {
        for (header, size) in
            [("bytes=100-", 100), ("bytes=100-200", 100), ("bytes=-0", 100), ("bytes=0-0", 0), ("bytes=-1", 0)]
        {
            assert_eq!(parse(Some(header), size), Asked::Unsatisfiable, "{header} of {size}");
        }
    }

    #[test]
    fn headers_that_are_not_one_byte_range_are_ignored() {
        for header in
            ["", "bytes", "bytes=", "bytes=-", "bytes=5-4", "bytes=a-b", "bytes=0-1,3-4", "lines=0-1", "bytes=+1-2"]
        {
            assert_eq!(parse(Some(header), 100), Asked::Whole, "{header}");
        }
        assert_eq!(parse(None, 100), Asked::Whole);
    }
}
