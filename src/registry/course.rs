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

use tokio::task::{JoinError, JoinHandle};
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
    /// The files' being read. Nobody waits for this lock: whoever has it reads, and the others go by what was known before.
    reading: tokio::sync::Mutex<Option<Reading>>,
}

/// A thread that reads the files, which may take for ever.
type Reading = JoinHandle<Result<Plan, Error>>;

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
        Self { host, repository, selector: None, state: Mutex::new(state), reading: tokio::sync::Mutex::default() }
    }

    /// The route that the files have for a repository.
    pub(super) async fn find(
        client: &Client,
        host: &str,
        repository: &str,
        selector: &Selector,
    ) -> Result<Self, Error> {
        let host = Site::of(host, client.options().plain_http).name;
        let plan = ended(read(client, (&host, repository), selector).await)?;
        if let Some(rule) = &plan.rule {
            tracing::debug!(rule, hosts = plan.places.len(), "{host}/{repository} is had by a rule");
        }
        let route = Arc::new(route(client, (&host, repository), &plan));
        let state = State { route, plan: Some(plan), looked: Instant::now(), is_wrong: false };
        let selector = Some(selector.clone());
        let (repository, reading) = (repository.to_owned(), tokio::sync::Mutex::default());
        Ok(Self { host, repository, selector, state: Mutex::new(state), reading })
    }

    /// The route as it was last known.
    pub(super) fn now(&self) -> Arc<Route> {
        Arc::clone(&self.lock().route)
    }

    /// The route for whoever is about to ask; reads the files if it is time.
    pub(super) async fn route(&self, client: &Client) -> Arc<Route> {
        let Some(selector) = &self.selector else { return self.now() };
        let Ok(mut reading) = self.reading.try_lock() else { return self.now() };
        // Each reading that hangs has a thread of the pool, so that there is never another beside it.
        let hangs = reading.as_ref().is_some_and(|reading| !reading.is_finished());
        if hangs || !self.lock().is_due() {
            return self.now();
        }
        let task = reading.get_or_insert_with(|| read(client, (&self.host, &self.repository), selector));
        let plan = match timeout(PATIENCE, task).await {
            Ok(outcome) => {
                *reading = None;
                ended(outcome)
            }
            // What it finds in the end is for whoever asks then.
            Err(_) => Err(Error::new(ErrorKind::Io, "the files about hosts cannot be read in time")),
        };
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

/// Asks the files, in a thread of its own.
fn read(client: &Client, (host, repository): (&str, &str), selector: &Selector) -> Reading {
    let Options { hosts: files, plain_http, .. } = client.options().clone();
    let (host, repository, selector) = (host.to_owned(), repository.to_owned(), selector.clone());
    tokio::task::spawn_blocking(move || {
        hosts::plan(&files, &Wanted { host: &host, repository: &repository, selector: &selector, plain_http })
    })
}

/// What came of a reading.
fn ended(outcome: Result<Result<Plan, Error>, JoinError>) -> Result<Plan, Error> {
    outcome.map_err(|_| Error::new(ErrorKind::Io, "the process is ending"))?
}

fn route(client: &Client, name: (&str, &str), plan: &Plan) -> Route {
    let endpoint = |place: &Place, access| Endpoint::of(client.host(&place.site), place, access);
    let endpoints = plan.places.iter().map(|place| endpoint(place, Access::Pull)).collect();
    let push = plan.push.as_ref().map(|place| endpoint(place, Access::Push));
    Route::new(name, endpoints, push, plan.rule.clone())
}

#[cfg(test)]
mod tests {
    use super::super::HostFiles;
    use super::*;

    #[tokio::test]
    async fn files_that_hang_have_one_thread_and_count_once_they_are_read() {
        let dir = tempfile::tempdir().expect("there is room");
        let file = dir.path().join("registries.conf");
        std::fs::write(&file, "").expect("there is room");
        let hosts = HostFiles { registries: vec![file.clone()], ..HostFiles::default() };
        let client = Client::new(Options { hosts, ..Options::default() }).expect("a client");
        let selector = Selector::Tag("latest".to_owned());
        let course = Course::find(&client, "r.example", "it", &selector).await.expect("nothing is wrong");
        std::fs::remove_file(&file).expect("it is there");
        // Opening it to read waits for somebody who writes.
        let made = std::process::Command::new("mkfifo").arg(&file).status();
        assert!(made.expect("mkfifo runs").success());
        let make_due = || course.lock().looked = Instant::now().checked_sub(LOOK_AGAIN).expect("it runs for longer");
        let thread = async || course.reading.lock().await.as_ref().map(JoinHandle::id);

        make_due();
        assert!(course.route(&client).await.rule().is_none() && course.lock().is_wrong);
        let first = thread().await;
        make_due();
        assert!(course.route(&client).await.rule().is_none());
        assert!(first.is_some() && thread().await == first, "no other was begun");

        let conf = "[[registry]]\nlocation = 'r.example'\n[[registry.mirror]]\nlocation = 'mirror.example'\n";
        std::fs::write(&file, conf).expect("somebody reads");
        while !course.reading.lock().await.as_ref().is_some_and(JoinHandle::is_finished) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(course.route(&client).await.rule().is_some(), "what it found is used");
        assert!(thread().await.is_none() && !course.lock().is_wrong);
    }
}
