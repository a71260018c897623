//! What is said about outages: what a mount's readers do in one, and the one they are in.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What the readers of a mount do while the registry does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnOutage {
    /// Each read waits so many seconds at most; without an end if none.
    Wait(Option<u32>),
    /// Reads fail once the usual attempts are used up.
    Eio,
}

impl Default for OnOutage {
    /// A restart of the registry, and nearly any fault that somebody is called for, is over by then.
    fn default() -> Self {
        Self::Wait(Some(300))
    }
}

/// As users write it.
impl fmt::Display for OnOutage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wait(None) => f.write_str("wait"),
            Self::Wait(Some(seconds)) if *seconds > 0 && seconds % 60 == 0 => write!(f, "wait:{}m", seconds / 60),
            Self::Wait(Some(seconds)) => write!(f, "wait:{seconds}s"),
            Self::Eio => f.write_str("eio"),
        }
    }
}

/// The outage that a mount is in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutageReport {
    /// Who does not answer: a registry, or the source if it is none.
    pub host: String,
    /// When it was first asked in vain, in seconds since the epoch.
    pub since: u64,
    /// How long that has lasted, in seconds.
    pub seconds: u64,
    /// The first failure, on one line.
    pub error: String,
    /// How long the reader has waited that waits longest, in seconds; none if nobody does.
    pub waiting: Option<u64>,
    /// After how many seconds that reader fails; none if nobody waits, or without an end.
    pub fails_in: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_shown_as_it_is_written() {
        let shown = |policy: OnOutage| policy.to_string();
        assert_eq!(shown(OnOutage::default()), "wait:5m");
        assert_eq!(shown(OnOutage::Wait(None)), "wait");
        assert_eq!(
            (shown(OnOutage::Wait(Some(90))), shown(OnOutage::Wait(Some(0)))),
            ("wait:90s".into(), "wait:0s".into())
        );
        assert_eq!(shown(OnOutage::Eio), "eio");
    }

    #[test]
    fn a_policy_travels_as_json() {
        for policy in [OnOutage::Wait(None), OnOutage::Wait(Some(7)), OnOutage::Eio] {
            let text = serde_json::to_string(&policy).expect("it is plain data");
            assert_eq!(serde_json::from_str::<OnOutage>(&text).expect("its own text"), policy, "{text}");
        }
    }
}
