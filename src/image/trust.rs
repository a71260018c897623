//! Who is believed about a layer's index.
//!
//! [`verdict`] is the rule about what lies beside the image, [`verdict_of_pins`] that about an index which the image's manifest
//! names by its digest.

/// Whose indexes the user wants believed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Trust {
    /// Those of the image's repository if the reference is a tag, and those that a key of the user signed.
    #[default]
    ByReference,
    /// Nobody's.
    Nobody,
    /// Those that a key of the user signed.
    Signed,
    /// Those of the image's repository.
    Registry,
}

/// Which indexes are believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Belief {
    /// All.
    All,
    /// Those that a key of the user signed.
    Signed,
    /// None.
    None,
}

/// Which indexes of the image's repository are believed, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Which they are.
    pub belief: Belief,
    /// Why all of them are, or why one that nobody signed is not, as the end of a sentence.
    pub why: &'static str,
}

impl Verdict {
    /// Why an index that the key of this name signed is believed, or one that nobody signed; or why it is not.
    pub fn of(&self, signer: Option<&str>) -> Result<String, String> {
        match (self.belief, signer) {
            (Belief::All, _) => Ok(self.why.to_owned()),
            (Belief::Signed, Some(signer)) => Ok(format!("the key {signer} signed it")),
            (Belief::Signed | Belief::None, _) => Err(self.why.to_owned()),
        }
    }
}

/// The rule. `is_pinned` is true if the reference has a digest, `has_keys` if the user named keys.
///
/// Whoever can push an index beside an image can also move its tag, so believing the index gives nobody a power that the
/// tag does not give already. A digest binds the image, but not what lies beside it. A signature binds the index.
pub fn verdict(trust: Trust, is_pinned: bool, has_keys: bool) -> Verdict {
    let (belief, why) = match (trust, is_pinned, has_keys) {
        (Trust::ByReference, false, _) => {
            (Belief::All, "the reference is a tag, and who can push an index can move the tag")
        }
        (Trust::ByReference, true, false) => {
            (Belief::None, "the reference is pinned by its digest, which binds no index")
        }
        (Trust::ByReference, true, true) => (
            Belief::Signed,
            "the reference is pinned by its digest, which binds no index, and no configured key signed one",
        ),
        (Trust::Signed, _, true) => {
            (Belief::Signed, "--trust-index signed was given, and no configured key signed one")
        }
        (Trust::Signed, _, false) => (Belief::None, "--trust-index signed was given, and no key is configured"),
        (Trust::Registry, ..) => (Belief::All, "--trust-index registry was given"),
        (Trust::Nobody, ..) => (Belief::None, NOBODY),
    };
    Verdict { belief, why }
}

const NOBODY: &str = "--trust-index none was given";

/// The rule about indexes that the image's manifest pins: who wrote them had a say in what the image is, so that a digest of
/// the image binds them too.
pub fn verdict_of_pins(trust: Trust) -> Verdict {
    match trust {
        Trust::ByReference | Trust::Signed | Trust::Registry => {
            Verdict { belief: Belief::All, why: "the image's manifest pins it" }
        }
        Trust::Nobody => Verdict { belief: Belief::None, why: NOBODY },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_of_the_registry_are_believed_by_this_table() {
        use Belief::{All, None, Signed};
        for (trust, by_tag, by_digest, by_tag_with_keys, by_digest_with_keys) in [
            (Trust::ByReference, All, None, All, Signed),
            (Trust::Nobody, None, None, None, None),
            (Trust::Signed, None, None, Signed, Signed),
            (Trust::Registry, All, All, All, All),
        ] {
            let verdicts = [(false, false), (true, false), (false, true), (true, true)]
                .map(|(is_pinned, has_keys)| verdict(trust, is_pinned, has_keys));
            let beliefs = verdicts.map(|verdict| verdict.belief);
            assert_eq!(beliefs, [by_tag, by_digest, by_tag_with_keys, by_digest_with_keys], "{trust:?}");
            assert!(verdicts.iter().all(|verdict| !verdict.why.is_empty() && !verdict.why.ends_with('.')));
        }
    }

    #[test]
    fn a_signature_counts_where_one_is_asked_for() {
        let signed = verdict(Trust::ByReference, true, true);
        assert_eq!(signed.of(Some("ci.pub")).as_deref(), Ok("the key ci.pub signed it"));
        assert_eq!(signed.of(None), Err(signed.why.to_owned()));
        let all = verdict(Trust::Registry, true, true);
        assert_eq!(all.of(None).as_deref(), Ok(all.why));
        let nobody = verdict(Trust::Nobody, true, true);
        assert_eq!(nobody.of(Some("ci.pub")), Err(nobody.why.to_owned()));
    }

    #[test]
    fn pinned_indexes_are_believed_unless_nobody_is() {
        for trust in [Trust::ByReference, Trust::Signed, Trust::Registry] {
            assert_eq!(verdict_of_pins(trust).belief, Belief::All);
        }
        assert_eq!(verdict_of_pins(Trust::Nobody), verdict(Trust::Nobody, false, true));
    }
}
