//! Which extended attributes of an entry are served, and under which name.
//!
//! Served are `security.capability` and `user.*`, the latter only where Linux has it, on files and directories (A-131,
//! Everything else is dropped: `trusted.*` would steer an overlay above us, SELinux, Smack and EVM
//! labels belong to the host, and access control lists would promise checks that nobody makes.
//! `user.overlay.*` steers an overlay mounted with `userxattr`, so it gets the escaped name from which such an overlay
//! gives the attribute back to its own users.

use super::{Fault, Kind, Xattr};
use crate::limits;

const USER_OVERLAY: &[u8] = b"user.overlay.";
const USER_OVERLAY_ESCAPED: &[u8] = b"user.overlay.overlay.";

/// Picks the attributes to serve, sorted by name; of several with one name the last.
pub(super) fn served<'a>(kind: &Kind, given: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Result<Vec<Xattr>, Fault> {
    let has_user = matches!(kind, Kind::Directory | Kind::Regular { .. });
    let mut xattrs = Vec::new();
    for (name, value) in given {
        let Some(name) = served_name(name, has_user) else { continue };
        if name.len() > limits::XATTR_NAME_BYTES || value.len() > limits::XATTR_VALUE_BYTES {
            return Err(Fault::Xattr);
        }
        xattrs.push(Xattr { name, value: value.to_vec() });
    }
    // The sort is stable, so of equal names the last given comes last: it takes the place of those before it.
    xattrs.sort_by(|a: &Xattr, b| a.name.cmp(&b.name));
    xattrs.dedup_by(|next, kept| {
        let same = next.name == kept.name;
        if same {
            std::mem::swap(next, kept);
        }
        same
    });
    let list: usize = xattrs.iter().map(|xattr| xattr.name.len() + 1).sum();
    if list > limits::XATTR_LIST_BYTES { Err(Fault::Xattr) } else { Ok(xattrs) }
}

impl Xattr {
    /// True for what may be among the attributes of an entry of this kind: a name that is served, as it is served.
    pub fn is_served(&self, kind: &Kind) -> bool {
        let has_user = matches!(kind, Kind::Directory | Kind::Regular { .. });
        match self.name.strip_prefix(USER_OVERLAY) {
            Some(_) => has_user && self.name.starts_with(USER_OVERLAY_ESCAPED),
            None => served_name(&self.name, has_user).is_some(),
        }
    }
}

fn served_name(name: &[u8], has_user: bool) -> Option<Vec<u8>> {
    if name == b"security.capability" {
        return Some(name.to_vec());
    }
    if !has_user || name.len() <= b"user.".len() || !name.starts_with(b"user.") {
        return None;
    }
    match name.strip_prefix(USER_OVERLAY) {
        Some(rest) => Some([USER_OVERLAY_ESCAPED, rest].concat()),
        None => Some(name.to_vec()),
    }
}
