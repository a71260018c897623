//! A repository of a registry as a source of one image.

use std::fmt;
use std::sync::Arc;

use super::blob::Blob;
use super::client::{Client, Target};
use super::manifest::{self, Wanted};
use crate::oci::{Descriptor, Digest};
use crate::source::{BlobReader, BoxFuture, Document, Error, Source};

/// What a reference names in its repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// Whatever the tag points to now.
    Tag(String),
    /// Exactly these bytes.
    Digest(Digest),
}

/// A repository at a registry. Cheap to clone; all clones and all repositories of one client share what it learns.
#[derive(Clone)]
pub struct Repository {
    client: Client,
    target: Arc<Target>,
    selector: Selector,
}

impl Repository {
    pub(super) fn new(client: Client, target: Arc<Target>, selector: Selector) -> Self {
        Self { client, target, selector }
    }

    /// False once the registry answered a request for a range with the whole blob; ranges then cost whole transfers.
    pub fn serves_ranges(&self) -> bool {
        self.target.host.serves_ranges()
    }
}

impl Source for Repository {
    fn name(&self) -> String {
        self.target.name()
    }

    fn resolve(&self) -> BoxFuture<'_, Result<Document, Error>> {
        let wanted = match &self.selector {
            Selector::Tag(tag) => Wanted::Tag(tag),
            Selector::Digest(digest) => Wanted::Digest(digest),
        };
        Box::pin(manifest::fetch(&self.client, &self.target, wanted))
    }

    fn manifest<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<Document, Error>> {
        Box::pin(manifest::fetch(&self.client, &self.target, Wanted::Child(descriptor)))
    }

    fn blob(&self, descriptor: &Descriptor) -> Arc<dyn BlobReader> {
        Arc::new(Blob::new(self.client.clone(), Arc::clone(&self.target), descriptor))
    }
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repository")
            .field("name", &self.name())
            .field("selector", &self.selector)
            .finish_non_exhaustive()
    }
}
