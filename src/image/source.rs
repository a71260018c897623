//! Which source a reference names.

use std::path::Path;
use std::sync::Arc;

use super::clients::Clients;
use super::{Error, Request};
use crate::oci::Reference;
use crate::registry::{self, Repository, Selector};
use crate::source::{self, DockerArchive, Layout, OciArchive, Source};

/// Where an image comes from.
#[derive(Debug, Default)]
pub(super) struct Opened {
    /// Nowhere when offline.
    pub(super) source: Option<Arc<dyn Source>>,
    /// The same if it is a registry.
    pub(super) repository: Option<Repository>,
}

impl Opened {
    pub(super) fn source(&self) -> Option<&dyn Source> {
        self.source.as_deref()
    }
}

/// Opens the source of `request`. Archives that must be decompressed first are unpacked below `cache`.
pub(super) async fn open(request: &Request, clients: &Clients, cache: &Path) -> Result<Opened, Error> {
    let local = match &request.reference {
        Reference::Registry(name) => {
            let options = registry::Options {
                plain_http: request.plain_http,
                auth_files: request.auth_files.clone(),
                hosts: request.hosts.clone(),
                ..registry::Options::default()
            };
            let client = clients.get(options)?;
            let selector = match (name.digest(), name.tag()) {
                (Some(digest), _) => Selector::Digest(*digest),
                (None, tag) => Selector::Tag(tag.unwrap_or("latest").to_owned()),
            };
            // Who asks nobody needs not know whom to ask, and a mistake in a file is then no reason to fail.
            let repository = match request.offline {
                true => client.repository(name.api_host(), name.repository(), selector),
                false => client.find(name.api_host(), name.repository(), selector).await?,
            };
            return Ok(Opened { source: Some(Arc::new(repository.clone())), repository: Some(repository) });
        }
        local => local.clone(),
    };
    let scratch = cache.join("tmp");
    let task = tokio::task::spawn_blocking(move || -> Result<Arc<dyn Source>, source::Error> {
        Ok(match &local {
            Reference::Layout(local) => Arc::new(Layout::open(local.path(), local.selector())?),
            Reference::OciArchive(local) => Arc::new(OciArchive::open(local.path(), local.selector(), &scratch)?),
            Reference::DockerArchive(local) => Arc::new(DockerArchive::open(local.path(), local.selector(), &scratch)?),
            Reference::Registry(_) => return Err(source::Error::new(source::ErrorKind::Invalid, "not a local source")),
        })
    });
    Ok(Opened { source: Some(task.await.map_err(|_| Error::Interrupted)??), repository: None })
}
