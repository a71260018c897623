//! A repository at one host: what a request is sent to.
//!
//! A repository may be had from several hosts, each with a name of its own for it. An [`Endpoint`] is one of these: the
//! [`Host`], the repository's name there, and the scopes that a token for it must have.

use std::sync::{Arc, Mutex, PoisonError};

use super::host::Host;
use crate::limits::TOKEN_SCOPES;

/// A host together with what a repository is called there.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) host: Arc<Host>,
    pub(super) repository: String,
    /// What is done there, as scopes name it.
    access: Access,
    /// The scopes that this host asked for; empty until it did. Held only to copy them.
    scopes: Mutex<Vec<String>>,
}

/// What is done with a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// It is read.
    Pull,
    /// It is read and written.
    Push,
}

impl Access {
    /// The scope of this access to `repository`.
    fn scope(self, repository: &str) -> String {
        let actions = match self {
            Self::Pull => "pull",
            Self::Push => "pull,push",
        };
        format!("repository:{repository}:{actions}")
    }
}

impl Endpoint {
    pub(super) fn new(host: Arc<Host>, repository: String, access: Access) -> Self {
        Self { host, repository, access, scopes: Mutex::new(Vec::new()) }
    }

    /// The same place for who does something else there.
    pub(super) fn with_access(&self, access: Access) -> Self {
        Self::new(Arc::clone(&self.host), self.repository.clone(), access)
    }

    /// `registry.example.com/library/debian`.
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.host.name(), self.repository)
    }

    /// The scopes to ask for: what the registry demanded, or else what every registry understands (B-112).
    pub(super) fn scopes(&self) -> Vec<String> {
        let learned = self.scopes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if learned.is_empty() { vec![self.access.scope(&self.repository)] } else { learned }
    }

    /// Notes the scopes of a challenge, new ones first (B-119); true if there were new ones.
    pub(super) fn demand(&self, wanted: &[String], asked_before: bool) -> bool {
        let mut scopes = self.scopes.lock().unwrap_or_else(PoisonError::into_inner);
        if asked_before && scopes.is_empty() {
            scopes.push(self.access.scope(&self.repository));
        }
        let mut merged: Vec<String> = wanted.iter().filter(|scope| !scopes.contains(*scope)).cloned().collect();
        if merged.is_empty() {
            return false;
        }
        merged.append(&mut scopes);
        merged.truncate(TOKEN_SCOPES);
        *scopes = merged;
        true
    }

    /// Adds the right to read `repository` as well, which mounting its blobs needs.
    pub(super) fn also_reads(&self, repository: &str) {
        self.demand(&[Access::Pull.scope(repository)], true);
    }
}
