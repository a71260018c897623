//! The route of a repository as the user's files have it now.
//!
//! A mount lives for days, and meanwhile mirrors move and registries get other certificates. containerd reads its files at
//! every pull; here nobody pulls twice, so that a [`Course`] reads them again while a repository is in use: soon after all
//! hosts of its route have failed, and else twice a minute at most, which is nothing beside what is read of the repository.
//! If they say something else now, whoever asks next goes by that, and what was noted of the places of a blob begins anew.
//!
//! What cannot be understood changes nothing, and neither does a registry's being blocked: a file that somebody is just
//! writing must not take away the file system under a running program. The next mount is told.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::client::Client;
use super::endpoint::{Access, Endpoint};
use super::host::Site;
use super::hosts::{self, Place, Plan, Wanted};
use super::route::Route;
use super::{Options, Selector};
use crate::source::{Error, ErrorKind};

/// How often the files are read again while all goes well.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// How soon they are read again after all hosts have failed: many readers fail together.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// How long a reader waits for the files; they may lie on a file system that does not answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where a repository may be had, for as long as somebody has it.
#[derive(Debug)]
pub(super) struct Course {
    /// The registry as people name it.
    pub(super) host: String,
    /// The repository as people name it.
    pub(super) repository: String,
    /// For what of the repository the files are asked; none if they do not count.
    selector: Option<Selector>,
    /// Held to copy or to change it, never while a route is made or something is logged.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    route: Arc<Route>,
    /// What the route was made from.
    plan: Option<Plan>,
    looked: Instant,
    /// True if the files could not be understood the last time.
    is_wrong: bool,
}

impl Course {
    /// This route, whatever the files say.
    pub(super) fn fixed(route: Route) -> Self {
        let (host, repository) = (route.host.clone(), route.repository.clone());
        let state = State { route: Arc::new(route), plan: None, looked: Instant::now(), is_wrong: false };
        Self { host, repository, selector: None, state: Mutex::new(state) }
    }

    /// The route that the files have for a repository.
    pub(super) async fn find(
        client: &Client,
        host: &str,
        repository: &str,
        selector: &Selector,
    ) -> Result<Self, Error> {
        let host = Site::of(host, client.options().plain_http).name;
        let plan = plan(client, (&host, repository), selector).await?;
        if let Some(rule) = &plan.rule {
            tracing::debug!(rule, hosts = plan.places.len(), "{host}/{repository} is had by a rule");
        }
        let route = Arc::new(route(client, (&host, repository), &plan));
        let state = State { route, plan: Some(plan), looked: Instant::now(), is_wrong: false };
        let selector = Some(selector.clone());
        Ok(Self { host, repository: repository.to_owned(), selector, state: Mutex::new(state) })
    }

    /// The route as it was last known.
    pub(super) fn now(&self) -> Arc<Route> {
        Arc::clone(&self.lock().route)
    }

    /// The route for whoever is about to ask; reads the files if it is time.
    pub(super) async fn route(&self, client: &Client) -> Arc<Route> {
        let Some(selector) = self.selector.as_ref().filter(|_| self.lock().is_due()) else { return self.now() };
        let name = (self.host.as_str(), self.repository.as_str());
        let plan = timeout(PATIENCE, plan(client, name, selector)).await;
        let plan =
            plan.unwrap_or_else(|_| Err(Error::new(ErrorKind::Io, "the files about hosts cannot be read in time")));
        match plan {
            Ok(plan) => self.follow(client, plan),
            Err(error) => {
                let was_wrong = std::mem::replace(&mut self.lock().is_wrong, true);
                if !was_wrong {
                    tracing::warn!(%error, "{}/{} is had from the same hosts as before", self.host, self.repository);
                }
            }
        }
        self.now()
    }

    /// Goes by `plan` from now on.
    fn follow(&self, client: &Client, plan: Plan) {
        let is_new = {
            let mut state = self.lock();
            state.is_wrong = false;
            state.plan.as_ref() != Some(&plan)
        };
        if is_new {
            let rule = plan.rule.clone();
            let route = Arc::new(route(client, (&self.host, &self.repository), &plan));
            {
                let mut state = self.lock();
                state.route = route;
                state.plan = Some(plan);
            }
            tracing::info!(rule, "{}/{} is had from other hosts now", self.host, self.repository);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// True for the one who is to read the files.
    fn is_due(&mut self) -> bool {
        let age = self.looked.elapsed();
        let is_due = age >= LOOK_AGAIN || (age >= AFTER_FAILURE && self.route.has_failed());
        if is_due {
            self.looked = Instant::now();
        }
        is_due
    }
}

/// Asks the files.
async fn plan(client: &Client, (host, repository): (&str, &str), selector: &Selector) -> Result<Plan, Error> {
    let Options { hosts: files, plain_http, .. } = client.options().clone();
    let (host, repository, selector) = (host.to_owned(), repository.to_owned(), selector.clone());
    let task = tokio::task::spawn_blocking(move || {
        hosts::plan(&files, &Wanted { host: &host, repository: &repository, selector: &selector, plain_http })
    });
    task.await.map_err(|_| Error::new(ErrorKind::Io, "the process is ending"))?
}

fn route(client: &Client, name: (&str, &str), plan: &Plan) -> Route {
    let endpoint = |place: &Place, access| Endpoint::of(client.host(&place.site), place, access);
    let endpoints = plan.places.iter().map(|place| endpoint(place, Access::Pull)).collect();
    let push = plan.push.as_ref().map(|place| endpoint(place, Access::Push));
    Route::new(name, endpoints, push, plan.rule.clone())
}
