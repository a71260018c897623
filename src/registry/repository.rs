//! A repository of a registry as a source of one image.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;

use super::blob::Blob;
use super::client::{Client, WeakClient};
use super::course::Course;
use super::endpoint::Role;
use super::manifest::{self, Wanted};
use super::upload::{self, Pushed, Upload};
use super::{HostState, push, referrers, tag_schema};
use crate::oci::{Descriptor, Digest, IndexEntry};
use crate::source::{BlobReader, BoxFuture, Document, Error, ErrorKind, Source};

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
    course: Arc<Course>,
    selector: Selector,
}

impl Repository {
    pub(super) fn new(client: Client, course: Course, selector: Selector) -> Self {
        Self { client, course: Arc::new(course), selector }
    }

    /// False once a host answered a request for a range with the whole blob; ranges then cost whole transfers.
    pub fn serves_ranges(&self) -> bool {
        self.course.now().able(Role::Pull).all(|endpoint| endpoint.host.serves_ranges())
    }

    /// The host as people name it, wherever the repository is had from.
    pub fn host(&self) -> &str {
        &self.course.host
    }

    /// The name of the repository without its host.
    pub fn path(&self) -> &str {
        &self.course.repository
    }

    /// The hosts that are asked, in this order, and what they have done so far for all repositories of the client.
    pub fn hosts(&self) -> Vec<HostState> {
        self.course.now().endpoints().iter().map(|endpoint| endpoint.host.state()).collect()
    }

    /// What this order follows from, if somebody configured it: a file, and what of it.
    pub fn rule(&self) -> Option<String> {
        self.course.now().rule().map(str::to_owned)
    }

    /// True if whoever comes now is, as far as credential helpers tell, who the client was made for: none that was asked about
    /// one of the hosts answers something else now. Runs these helpers; what files say is for the caller to watch.
    pub async fn serves_still(&self) -> bool {
        for endpoint in self.course.now().endpoints() {
            if !self.client.grants().hold(endpoint.host.name()).await {
                return false;
            }
        }
        true
    }

    /// What tells by whose client, and so by whose login, the repository is asked.
    pub fn client(&self) -> WeakClient {
        self.client.downgrade()
    }

    /// The same repository for who wants something else of it.
    #[must_use]
    pub fn select(&self, selector: Selector) -> Self {
        Self { selector, ..self.clone() }
    }

    /// The same repository for who writes to it: asks for the right to push at once, not only when it is refused, and reads
    /// where it writes.
    #[must_use]
    pub fn for_pushing(&self) -> Self {
        Self { course: Arc::new(Course::fixed(self.course.now().for_pushing())), ..self.clone() }
    }

    /// True if the repository has the blob. One round trip.
    pub fn has_blob<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<bool, Error>> {
        Box::pin(async move { upload::exists(&self.client, self.course.now().push()?, digest).await })
    }

    /// Brings a blob there, from the repository `from` of the same registry if that has it, else by sending `bytes`.
    ///
    /// Goes on where a broken connection left it. `sent` counts the bytes that the registry has. Whether the blob exists
    /// already is not asked.
    pub fn push_blob<'a>(
        &'a self,
        digest: Digest,
        bytes: Bytes,
        from: Option<&'a str>,
        sent: &'a AtomicU64,
    ) -> BoxFuture<'a, Result<Pushed, Error>> {
        Box::pin(
            async move { Upload::new(&self.client, self.course.now().push()?, digest, bytes, from, sent).run().await },
        )
    }

    /// Puts a manifest there, under its digest or a tag.
    ///
    /// True if the registry said that it has noted the manifest's subject, so that its referrers API will list it.
    pub fn push_manifest<'a>(
        &'a self,
        name: &'a Selector,
        media_type: &'a str,
        bytes: Bytes,
    ) -> BoxFuture<'a, Result<bool, Error>> {
        Box::pin(async move { push::manifest(&self.client, self.course.now().push()?, name, media_type, bytes).await })
    }

    /// Removes the manifest with this digest. Registries may forbid that; one that is gone already is no error.
    pub fn remove_manifest<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move { push::remove(&self.client, self.course.now().push()?, digest).await })
    }

    /// What another tag of the repository points to; none if there is no such tag. One round trip.
    pub fn tagged<'a>(&'a self, tag: &'a str) -> BoxFuture<'a, Result<Option<Document>, Error>> {
        Box::pin(async move {
            match self.fetch(Wanted::Perhaps(tag)).await {
                Ok(document) => Ok(Some(document)),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            }
        })
    }

    /// What refers to `subject` and is of `artifact_type`, or of any, by the referrers API; none if the registry has no such
    /// API.
    pub fn referrers<'a>(
        &'a self,
        subject: &'a Digest,
        artifact_type: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Option<Vec<IndexEntry>>, Error>> {
        Box::pin(self.list_referrers(subject, artifact_type))
    }

    /// The same by the tag that stands in for the API; empty if there is none.
    pub fn tagged_referrers<'a>(
        &'a self,
        subject: &'a Digest,
        artifact_type: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<IndexEntry>, Error>> {
        Box::pin(self.list_tagged(subject, artifact_type))
    }

    /// Adds `entry`, a descriptor as JSON, to the tag that stands in for the API.
    ///
    /// Others may do the same at the same time; see `tag_schema` for what is done about that.
    pub fn add_tagged_referrer<'a>(
        &'a self,
        subject: &'a Digest,
        entry: &'a serde_json::Value,
    ) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move { tag_schema::add(&self.client, self.course.now().push()?, subject, entry).await })
    }

    /// Takes the entry of a manifest out of that tag; true if it was there.
    pub fn remove_tagged_referrer<'a>(
        &'a self,
        subject: &'a Digest,
        digest: &'a Digest,
    ) -> BoxFuture<'a, Result<bool, Error>> {
        Box::pin(async move { tag_schema::remove(&self.client, self.course.now().push()?, subject, digest).await })
    }

    async fn fetch(&self, wanted: Wanted<'_>) -> Result<Document, Error> {
        let route = self.course.route(&self.client).await;
        manifest::fetch(&self.client, &route, wanted).await
    }

    /// Asks one host after the other until one lists something. What the registry itself says, nobody else is asked; a mirror
    /// may have the API and none of the registry's lists.
    async fn list_referrers(
        &self,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Option<Vec<IndexEntry>>, Error> {
        let what = format!("referrers of {}@{subject}", self.course.now().name());
        let list = |target| referrers::list(&self.client, target, subject, artifact_type);
        let says = |list: &Option<Vec<IndexEntry>>| list.as_ref().is_some_and(|list| !list.is_empty());
        let route = self.course.route(&self.client).await;
        self.client.persist_until(&what, (&route, Role::Resolve), list, says).await
    }

    /// The same with the lists under tags.
    async fn list_tagged(&self, subject: &Digest, artifact_type: Option<&str>) -> Result<Vec<IndexEntry>, Error> {
        let what = format!("tagged referrers of {}@{subject}", self.course.now().name());
        let list = |target| tag_schema::list(&self.client, target, subject, artifact_type);
        let route = self.course.route(&self.client).await;
        self.client.persist_until(&what, (&route, Role::Resolve), list, |list| !list.is_empty()).await
    }
}

impl Source for Repository {
    fn name(&self) -> String {
        self.course.now().name()
    }

    fn resolve(&self) -> BoxFuture<'_, Result<Document, Error>> {
        let wanted = match &self.selector {
            Selector::Tag(tag) => Wanted::Tag(tag),
            Selector::Digest(digest) => Wanted::Digest(digest),
        };
        Box::pin(self.fetch(wanted))
    }

    fn manifest<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<Document, Error>> {
        Box::pin(self.fetch(Wanted::Child(descriptor)))
    }

    fn blob(&self, descriptor: &Descriptor) -> Arc<dyn BlobReader> {
        Arc::new(Blob::new(self.client.clone(), Arc::clone(&self.course), descriptor))
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
