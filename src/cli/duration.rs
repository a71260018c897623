//! Durations as users write them: `30s`, `2m`, `0`.

use crate::fs::profile::LONGEST;

/// Seconds of how long a start is recorded; 0 for not at all.
pub(super) fn recording(text: &str) -> Result<u32, String> {
    let seconds = seconds(text).ok_or("write it as 30s or 2m, or 0 for not at all")?;
    match u64::from(seconds) <= LONGEST.as_secs() {
        true => Ok(seconds),
        false => Err(format!("a start is recorded for {} minutes at most", LONGEST.as_secs() / 60)),
    }
}

/// A whole number of seconds (`s`, or no unit), minutes (`m`) or hours (`h`).
fn seconds(text: &str) -> Option<u32> {
    let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return None,
    };
    number.parse::<u32>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units_and_an_end() {
        for (text, expected) in [("0", 0), ("30s", 30), ("45", 45), ("2m", 120), ("5m", 300), ("300s", 300)] {
            assert_eq!(recording(text), Ok(expected), "{text}");
        }
        for text in ["", "s", "-1s", "1.5s", "2 m", "1d", "301", "6m", "1h", "99999999999s", "4000000000m"] {
            assert!(recording(text).is_err(), "{text}");
        }
    }
}
