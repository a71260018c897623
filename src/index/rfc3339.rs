//! Times as JSON and flatbuffers write them: RFC 3339, as Go's `time.RFC3339Nano` does.

/// Reads `YYYY-MM-DDTHH:MM:SS[.FRACTION](Z|±HH:MM)` as seconds since the epoch and nanoseconds after that; digits beyond
/// nanoseconds are cut off.
pub(super) fn parse(text: &str) -> Option<(i64, u32)> {
    let bytes = text.as_bytes();
    let (date, rest) = bytes.split_at_checked(19)?;
    let punctuated = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if punctuated.iter().any(|(at, byte)| date[*at] != *byte) {
        return None;
    }
    let field = |from: usize, to: usize| digits(&date[from..to]);
    let days = days(field(0, 4)?, field(5, 7)?, field(8, 10)?)?;
    let (hour, minute, second) = (field(11, 13)?, field(14, 16)?, field(17, 19)?);
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let (nanos, zone) = fraction(rest)?;
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second;
    Some((seconds - offset(zone)?, nanos))
}

fn digits(text: &[u8]) -> Option<i64> {
    text.iter().try_fold(0, |value, digit| digit.is_ascii_digit().then(|| value * 10 + i64::from(digit - b'0')))
}

/// Days from the epoch to a day of the Gregorian calendar.
fn days(year: i64, month: i64, day: i64) -> Option<i64> {
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let lengths = [31, if is_leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let length = *lengths.get(usize::try_from(month - 1).ok()?)?;
    if !(1..=length).contains(&day) {
        return None;
    }
    let before: i64 = lengths.iter().take(month as usize - 1).sum();
    // Years before this one since the year 1; the year 0, which Go can print, is a leap year of its own.
    let years = year - 1;
    let leaps = years.div_euclid(4) - years.div_euclid(100) + years.div_euclid(400);
    Some(years * 365 + leaps + before + day - 1 - DAYS_TO_EPOCH)
}

/// Days from 0001-01-01 to 1970-01-01.
const DAYS_TO_EPOCH: i64 = 719_162;

fn fraction(rest: &[u8]) -> Option<(u32, &[u8])> {
    let Some(rest) = rest.strip_prefix(b".") else { return Some((0, rest)) };
    let length = rest.iter().position(|byte| !byte.is_ascii_digit()).filter(|length| *length > 0)?;
    let (fraction, zone) = rest.split_at(length);
    let nanos = fraction.iter().map(|digit| u32::from(digit - b'0')).chain(std::iter::repeat(0)).take(9);
    Some((nanos.fold(0, |nanos, digit| nanos * 10 + digit), zone))
}

/// Seconds that a zone is ahead of UTC.
fn offset(zone: &[u8]) -> Option<i64> {
    let (sign, hours, minutes) = match zone {
        b"Z" => return Some(0),
        [b'+', h @ .., b':', m1, m2] => (1, digits(h).filter(|_| h.len() == 2)?, digits(&[*m1, *m2])?),
        [b'-', h @ .., b':', m1, m2] => (-1, digits(h).filter(|_| h.len() == 2)?, digits(&[*m1, *m2])?),
        _ => return None,
    };
    (hours < 24 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_go_writes_them() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", (0, 0)),
            ("2026-11-22T04:33:25Z", (1_795_322_005, 0)),
            ("2000-02-29T23:59:59.5Z", (951_868_799, 500_000_000)),
            ("2000-03-01T00:00:00.123456789Z", (951_868_800, 123_456_789)),
            ("2000-03-01T01:30:00.0000000019+01:30", (951_868_800, 1)),
            ("2000-02-29T19:00:00-05:00", (951_868_800, 0)),
            ("0001-01-01T00:00:00Z", (-62_135_596_800, 0)),
            ("1969-12-31T23:59:59Z", (-1, 0)),
            ("9999-12-31T23:59:59Z", (253_402_300_799, 0)),
        ] {
            assert_eq!(parse(text), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "2000",
            "2000-01-01",
            "2000-01-01T00:00:00",
            "2000-01-01 00:00:00Z",
            "2000-13-01T00:00:00Z",
            "2000-00-01T00:00:00Z",
            "2001-02-29T00:00:00Z",
            "2000-01-00T00:00:00Z",
            "2000-01-01T24:00:00Z",
            "2000-01-01T00:60:00Z",
            "2000-01-01T00:00:60Z",
            "2000-01-01T00:00:00.Z",
            "2000-01-01T00:00:00z",
            "2000-01-01T00:00:00+1:00",
            "2000-01-01T00:00:00+01:0",
            "2000-01-01T00:00:00+24:00",
            "2000-01-01T00:00:00+:00",
            "+200-01-01T00:00:00Z",
            "2000-01-01T00:00:00.\u{e9}Z",
            "2000-01-01T00:00:0\u{e9}Z",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
