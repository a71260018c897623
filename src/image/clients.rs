//! One registry client for all who ask in the same way.
//!
//! Mounts of images from one registry share connections, tokens and what was learned about hosts: the second mount asks no
//! question that the first one had answered, and a host that does not answer is found out once.
//!
//! Who shares a client shares its logins, so that it must be one person's. Who logged in anew, or out, shows in the credential
//! files, and behind them in the answers of helper programs: those that a client has asked about a registry are asked again
//! before another mount gets it, and [`Clients::renew`] is for him to whom they say something else. A mount keeps the client
//! that it has, and with it the login, until a registry refuses that.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::registry::{Client, Options, WeakClient};
use crate::source::Error;

/// The state of a file that shows whether it was written anew: inode, length, time of change in nanoseconds.
type Stamp = (u64, u64, i128);

/// How somebody asks, and the states of his credential files.
type Key = (Options, Vec<Option<Stamp>>);

/// The clients in use, by their options and the state of the credential files. A client goes with the last who has it.
#[derive(Debug, Default)]
pub(super) struct Clients {
    /// Held to find a client, or to make one, which does no I/O.
    table: Mutex<HashMap<Key, WeakClient>>,
}

impl Clients {
    /// The client with these options.
    pub(super) fn get(&self, options: Options) -> Result<Client, Error> {
        self.other(options, None)
    }

    /// The client with these options for who is not to have the `stale` one.
    pub(super) fn renew(&self, options: Options, stale: &Client) -> Result<Client, Error> {
        self.other(options, Some(stale))
    }

    fn other(&self, options: Options, stale: Option<&Client>) -> Result<Client, Error> {
        let key = (options.clone(), options.auth_files.iter().map(|path| stamp(path)).collect());
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let known = table.get(&key).and_then(WeakClient::upgrade);
        if let Some(client) = known.filter(|known| !stale.is_some_and(|stale| stale.is(known))) {
            return Ok(client);
        }
        table.retain(|_, client| client.upgrade().is_some());
        let client = Client::new(options)?;
        table.insert(key, client.downgrade());
        Ok(client)
    }
}

/// The state of a credential file; none if there is none.
fn stamp(path: &Path) -> Option<Stamp> {
    let found = path.metadata().ok()?;
    Some((found.ino(), found.len(), i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_logs_in_anew_gets_a_client_of_his_own() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("auth.json");
        let clients = Clients::default();
        let get = || clients.get(Options { auth_files: vec![file.clone()], ..Options::default() }).expect("a client");
        let before = get();
        std::fs::write(&file, "{}").expect("a writable directory");
        let after = get();
        assert!(!before.is(&after) && get().is(&after));
        std::fs::write(&file, r#"{"auths": {}}"#).expect("a writable directory");
        let last = get();
        assert!(!last.is(&after));
        let renew = || clients.renew(Options { auth_files: vec![file.clone()], ..Options::default() }, &last);
        let renewed = renew().expect("a client");
        assert!(!renewed.is(&last) && get().is(&renewed), "who comes later shares the new one");
        assert!(renew().expect("a client").is(&renewed), "it is renewed once, however many notice");
    }

    #[test]
    fn who_asks_in_the_same_way_shares_a_client_until_nobody_has_it() {
        let clients = Clients::default();
        let options = |plain_http| Options { plain_http, ..Options::default() };
        let known = || clients.table.lock().expect("nobody panicked").len();
        let first = clients.get(options(false)).expect("a client");
        let second = clients.get(options(false)).expect("a client");
        let other = clients.get(options(true)).expect("a client");
        assert!(first.is(&second) && !first.is(&other) && known() == 2);
        drop((first, second));
        let third = clients.get(Options { attempts: 1, ..options(false) }).expect("a client");
        assert!(!third.is(&other) && known() == 2, "the one that nobody has is forgotten");
    }
}
