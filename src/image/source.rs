//! Which source a reference names.

use std::path::Path;
use std::sync::Arc;

use super::clients::Clients;
use super::{Error, Request};
use crate::oci::{Reference, RegistryName};
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
            let repository = repository(request, name, clients).await?;
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

/// The repository `name`, asked by a client that nobody shares who logged in as somebody else.
async fn repository(request: &Request, name: &RegistryName, clients: &Clients) -> Result<Repository, Error> {
    let options = registry::Options {
        plain_http: request.plain_http,
        auth_files: request.auth_files.clone(),
        hosts: request.hosts.clone(),
        ..registry::Options::default()
    };
    let client = clients.get(options.clone())?;
    let selector = match (name.digest(), name.tag()) {
        (Some(digest), _) => Selector::Digest(*digest),
        (None, tag) => Selector::Tag(tag.unwrap_or("latest").to_owned()),
    };
    // Who asks nobody needs not know whom to ask, and a mistake in a file is then no reason to fail.
    if request.offline {
        return Ok(client.repository(name.api_host(), name.repository(), selector));
    }
    let found = client.find(name.api_host(), name.repository(), selector.clone()).await?;
    if found.serves_still().await {
        return Ok(found);
    }
    let renewed = clients.renew(options, &client)?;
    Ok(renewed.find(name.api_host(), name.repository(), selector).await?)
}
