//! Durations as users write and read them: `30s`, `2m`, `0`.

use crate::daemon::control::OnOutage;
use crate::fs::profile::LONGEST;

/// Seconds of how long a start is recorded; 0 for not at all.
pub(super) fn recording(text: &str) -> Result<u32, String> {
    let seconds = seconds(text).ok_or("write it as 30s or 2m, or 0 for not at all")?;
    match u64::from(seconds) <= LONGEST.as_secs() {
        true => Ok(seconds),
        false => Err(format!("a start is recorded for {} minutes at most", LONGEST.as_secs() / 60)),
    }
}

/// What readers do in an outage: `eio`, `wait` or `wait:DURATION`.
pub(super) fn on_outage(text: &str) -> Result<OnOutage, String> {
    let problem = "write it as eio, wait, or wait:DURATION such as wait:90s, wait:5m or wait:2h";
    match text.split_once(':') {
        None if text == "eio" => Ok(OnOutage::Eio),
        None if text == "wait" => Ok(OnOutage::Wait(None)),
        Some(("wait", time)) => match seconds(time) {
            Some(seconds) => Ok(OnOutage::Wait(Some(seconds))),
            None => Err(problem.to_owned()),
        },
        _ => Err(problem.to_owned()),
    }
}

/// A duration for people: `40s`, `2m 05s`, `3h 00m`.
pub(super) fn shown(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h {:02}m", seconds / 3600, seconds / 60 % 60),
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

    #[test]
    fn a_duration_is_shown_with_two_units_at_most() {
        let texts = [0, 59, 60, 125, 3599, 3600, 90_061].map(shown);
        assert_eq!(texts, ["0s", "59s", "1m 00s", "2m 05s", "59m 59s", "1h 00m", "25h 01m"]);
    }

    #[test]
    fn an_outage_is_waited_for_without_an_end_for_a_while_or_not() {
        let wait = |seconds| Ok(OnOutage::Wait(Some(seconds)));
        assert_eq!((on_outage("eio"), on_outage("wait")), (Ok(OnOutage::Eio), Ok(OnOutage::Wait(None))));
        for (text, seconds) in [("wait:5m", 300), ("wait:90s", 90), ("wait:2h", 7200), ("wait:7", 7), ("wait:0", 0)] {
            assert_eq!(on_outage(text), wait(seconds), "{text}");
        }
        for text in ["", "5m", "wait:", "wait:5d", "wait:-1", "wait 5m", "WAIT", "eio:5m", "wait:5m:1"] {
            assert!(on_outage(text).is_err(), "{text}");
        }
    }
}
