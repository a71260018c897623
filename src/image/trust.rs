//! Who is believed about a layer's index.
//!
//! [`verdict`] is the rule about what lies beside the image, [`verdict_of_pins`] that about an index which the image's manifest
//! names by its digest.

/// Whose indexes the user wants believed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Trust {
    /// Those of the image's repository if the reference is a tag.
    #[default]
    ByReference,
    /// Nobody's.
    Nobody,
    /// Those of the image's repository.
    Registry,
}

/// Whether indexes of the image's repository are believed, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// True if they are.
    pub is_believed: bool,
    /// Why, as the end of a sentence.
    pub why: &'static str,
}

/// The rule. `is_pinned` is true if the reference has a digest.
///
/// Whoever can push an index beside an image can also move its tag, so believing the index gives nobody a power that the
/// tag does not give already. A digest binds the image, but not what lies beside it.
pub fn verdict(trust: Trust, is_pinned: bool) -> Verdict {
    let (is_believed, why) = match (trust, is_pinned) {
        (Trust::ByReference, false) => (true, "the reference is a tag, and who can push an index can move the tag"),
        (Trust::ByReference, true) => (false, "the reference is pinned by its digest, which binds no index"),
        (Trust::Registry, _) => (true, "--trust-index registry was given"),
        (Trust::Nobody, _) => (false, "--trust-index none was given"),
    };
    Verdict { is_believed, why }
}

/// The rule about indexes that the image's manifest pins: who wrote them had a say in what the image is, so that a digest of
/// the image binds them too.
pub fn verdict_of_pins(trust: Trust) -> Verdict {
    match trust {
        Trust::ByReference | Trust::Registry => Verdict { is_believed: true, why: "the image's manifest pins it" },
        Trust::Nobody => Verdict { is_believed: false, why: verdict(trust, false).why },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_of_the_registry_are_believed_by_this_table() {
        for (trust, is_pinned, is_believed) in [
            (Trust::ByReference, false, true),
            (Trust::ByReference, true, false),
            (Trust::Nobody, false, false),
            (Trust::Nobody, true, false),
            (Trust::Registry, false, true),
            (Trust::Registry, true, true),
        ] {
            let verdict = verdict(trust, is_pinned);
            assert_eq!(verdict.is_believed, is_believed, "{trust:?} {is_pinned}");
            assert!(!verdict.why.is_empty() && !verdict.why.ends_with('.'));
        }
    }

    #[test]
    fn pinned_indexes_are_believed_unless_nobody_is() {
        let believed = [Trust::ByReference, Trust::Registry, Trust::Nobody].map(verdict_of_pins);
        assert_eq!(believed.map(|verdict| verdict.is_believed), [true, true, false]);
        assert_eq!(believed[2].why, verdict(Trust::Nobody, true).why);
    }
}
