//! Where a repository may be had: its endpoints in the order in which they are tried.

use super::endpoint::Endpoint;

/// The endpoints of one repository.
#[derive(Debug)]
pub(super) struct Route {
    /// The registry itself.
    own: Endpoint,
}

impl Route {
    /// The route that leads to the registry and nowhere else.
    pub(super) fn to(registry: Endpoint) -> Self {
        Self { own: registry }
    }

    /// The registry itself, which decides what its tags mean and takes what is pushed.
    pub(super) fn own(&self) -> &Endpoint {
        &self.own
    }
}
