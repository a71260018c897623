//! One registry client for all who ask in the same way.
//!
//! Mounts of images from one registry share connections, tokens and what was learned about hosts: the second mount asks no
//! question that the first one had answered, and a host that does not answer is found out once.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::registry::{Client, Options, WeakClient};
use crate::source::Error;

/// The clients in use, by their options. A client goes with the last who has it.
#[derive(Debug, Default)]
pub(super) struct Clients {
    /// Held to find a client, or to make one, which does no I/O.
    table: Mutex<HashMap<Options, WeakClient>>,
}

impl Clients {
    /// The client with these options.
    pub(super) fn get(&self, options: Options) -> Result<Client, Error> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = table.get(&options).and_then(WeakClient::upgrade) {
            return Ok(client);
        }
        table.retain(|_, client| client.upgrade().is_some());
        let client = Client::new(options.clone())?;
        table.insert(options, client.downgrade());
        Ok(client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
