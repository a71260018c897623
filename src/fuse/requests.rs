//! How often the kernel asked: a warm mount is silent, and this is how one sees it.

use std::sync::atomic::{AtomicU64, Ordering};

/// A kind of request that the kernel sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Lookup,
    Forget,
    Getattr,
    Readlink,
    Open,
    Read,
    Release,
    Opendir,
    Readdir,
    Readdirplus,
    Statfs,
    Getxattr,
    Listxattr,
    Ioctl,
    /// Flush, fsync, lseek and what else is refused once and then never asked again.
    Refused,
}

/// The kinds with their names in reports.
const KINDS: [(Kind, &str); 15] = [
    (Kind::Lookup, "lookup"),
    (Kind::Forget, "forget"),
    (Kind::Getattr, "getattr"),
    (Kind::Readlink, "readlink"),
    (Kind::Open, "open"),
    (Kind::Read, "read"),
    (Kind::Release, "release"),
    (Kind::Opendir, "opendir"),
    (Kind::Readdir, "readdir"),
    (Kind::Readdirplus, "readdirplus"),
    (Kind::Statfs, "statfs"),
    (Kind::Getxattr, "getxattr"),
    (Kind::Listxattr, "listxattr"),
    (Kind::Ioctl, "ioctl"),
    (Kind::Refused, "refused"),
];

/// Counters of one mount's requests.
#[derive(Debug, Default)]
pub(super) struct Requests([AtomicU64; KINDS.len()]);

impl Requests {
    pub(super) fn count(&self, kind: Kind) {
        // Nothing is ordered by a counter that is only shown.
        self.0[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The counts by name.
    pub(super) fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        KINDS.iter().map(|(kind, name)| (*name, self.0[*kind as usize].load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_counted_under_its_own_name() {
        let requests = Requests::default();
        for (number, (kind, _)) in KINDS.iter().enumerate() {
            assert_eq!(*kind as usize, number, "the table is in the order of the kinds");
            (0..=number).for_each(|_| requests.count(*kind));
        }
        let counts: Vec<_> = requests.counts().collect();
        assert_eq!((counts[0], counts[14]), (("lookup", 1), ("refused", 15)));
        assert!(counts.iter().map(|(_, count)| *count).eq(1..=15));
    }
}
