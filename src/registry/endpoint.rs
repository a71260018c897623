//! A repository at one host: what a request is sent to.
//!
//! A repository may be had from several hosts, each with a name of its own for it. An [`Endpoint`] is one of these: the
//! [`Host`], the repository's name there, what the user lets the host do ([`Capabilities`]), and the scopes that a token
//! for it must have.

use std::sync::{Arc, Mutex, PoisonError};

use super::host::Host;
use super::hosts::Place;
use crate::limits::TOKEN_SCOPES;

/// A host together with what a repository is called there.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) host: Arc<Host>,
    pub(super) repository: String,
    /// The registry for which the host stands in, if it is to be told (B-146).
    pub(super) ns: Option<String>,
    pub(super) may: Capabilities,
    /// True for the registry itself, false for a mirror of it.
    pub(super) is_own: bool,
    /// What is done there, as scopes name it.
    access: Access,
    /// The scopes that this host asked for; empty until it did. Held only to copy them.
    scopes: Mutex<Vec<String>>,
}

/// What the user lets a host do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Capabilities {
    /// It hands out what is named by a digest.
    pub(super) pull: bool,
    /// It says what a tag means: nothing checks that it tells the truth (D-041).
    pub(super) resolve: bool,
    /// It takes what is pushed.
    pub(super) push: bool,
}

impl Capabilities {
    /// What a registry does.
    pub(super) const ALL: Self = Self { pull: true, resolve: true, push: true };

    /// True if a host with these does what is needed.
    pub(super) fn does(self, role: Role) -> bool {
        match role {
            Role::Pull => self.pull,
            Role::Resolve => self.resolve,
        }
    }
}

/// What is needed of a host that is read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Bytes whose digest is known.
    Pull,
    /// What belongs to a name now: a tag, or the list of what refers to a manifest.
    Resolve,
}

impl Role {
    /// What a host does that does it, for an error that nobody does.
    pub(super) fn describe(self) -> &'static str {
        match self {
            Self::Pull => "is to be asked for the blobs and manifests of",
            Self::Resolve => "is to be asked for the tags of",
        }
    }
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
    /// The registry itself.
    pub(super) fn own(host: Arc<Host>, repository: String, access: Access) -> Self {
        let may = Capabilities::ALL;
        Self { host, repository, ns: None, may, is_own: true, access, scopes: Mutex::new(Vec::new()) }
    }

    /// A place that the user's files name. Who writes there asks nobody else, so that it is the registry itself to him.
    pub(super) fn of(host: Arc<Host>, place: &Place, access: Access) -> Self {
        let Place { repository, ns, may, is_own, .. } = place;
        let is_own = *is_own || access == Access::Push;
        Self { ns: ns.clone(), may: *may, is_own, ..Self::own(host, repository.clone(), access) }
    }

    /// The same place, of which nothing is known, for who does the same there.
    pub(super) fn again(&self, may: Capabilities) -> Self {
        let (host, repository, ns) = (Arc::clone(&self.host), self.repository.clone(), self.ns.clone());
        Self { ns, may, is_own: self.is_own, ..Self::own(host, repository, self.access) }
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

    /// Gives up all rights but those to the repository itself.
    pub(super) fn reads_only_itself(&self) {
        let own = format!("repository:{}:", self.repository);
        self.scopes.lock().unwrap_or_else(PoisonError::into_inner).retain(|scope| scope.starts_with(&own));
    }
}
