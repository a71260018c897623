//! What lets a request pass at a registry, kept until it expires and fetched once however many requests wait.
//!
//! A [`Grant`] is an `Authorization` header with its history: the credential behind it, so that a refusal can tell
//! whether asking again could help, and its age. [`Grants`] holds one slot per host, repository and set of scopes; hosts of
//! one name are two if they are contacted in different ways, since each may have a token server of its own. A
//! slot is an async mutex held during the exchange, which is what makes everyone else wait for the one exchange; those
//! who waited through a failure share it (B-118).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::Url;
use tokio::time::Instant;

use super::challenge::{Bearer, Challenge};
use super::credentials::{Credential, Credentials, Proof};
use super::error::{Fault, cannot};
use super::host::HostId;
use super::link::Link;
use super::secret::Secret;
use super::token;
use super::transport::Transport;
use crate::limits::GRANTS_KEPT;
use crate::source::{Error, ErrorKind};

/// A token is renewed when less than this is left of its life, or a tenth if that is less: a request in flight and the
/// clocks of the servers must fit in.
const MARGIN: Duration = Duration::from_secs(20);

/// A token that is refused within this time of its making is refused for what it is. An older one may have expired on the
/// way, whatever its server promised: a request may wait for long at a host that throttles.
const YOUNG: Duration = Duration::from_secs(10);

/// An `Authorization` header and where it came from.
#[derive(Debug, Clone)]
pub(super) struct Grant {
    /// The value of the header.
    pub(super) header: Secret,
    /// The credential behind it; none for an anonymous token.
    pub(super) credential: Option<Credential>,
    /// What went wrong while it was looked for.
    pub(super) troubles: Vec<String>,
    renew_at: Option<Instant>,
    refresh: Option<Secret>,
    serial: u64,
    made: Instant,
}

impl Grant {
    /// True if it cannot have expired already, so that another like it would fare no better.
    pub(super) fn is_young(&self) -> bool {
        self.made.elapsed() < YOUNG
    }

    fn is_fresh(&self) -> bool {
        self.renew_at.is_none_or(|renew_at| Instant::now() < renew_at)
    }

    /// True if both are the same grant, not only equal ones.
    fn is(&self, other: &Self) -> bool {
        self.serial == other.serial
    }
}

/// For what a grant is needed.
#[derive(Debug)]
pub(super) struct Need<'a> {
    /// For messages.
    pub(super) what: &'a str,
    /// The host that demands it.
    pub(super) id: HostId,
    /// The host as people name it, which is also how credentials are filed.
    pub(super) host: &'a str,
    pub(super) repository: &'a str,
    /// The URL at which the registry demanded a grant.
    pub(super) registry: &'a Url,
    /// How it is connected to, if not like all others.
    pub(super) link: Option<&'a Arc<Link>>,
    pub(super) challenge: &'a Challenge,
    pub(super) scopes: &'a [String],
}

/// A grant that the registry did not accept.
#[derive(Debug)]
pub(super) struct Refused<'a> {
    pub(super) grant: &'a Grant,
    /// True if another grant from the same credential would be refused as well.
    pub(super) final_unless_credential_changed: bool,
}

/// All grants of a client.
#[derive(Debug)]
pub(super) struct Grants {
    credentials: Credentials,
    /// Held only to find a slot.
    slots: Mutex<HashMap<Key, Arc<tokio::sync::Mutex<Slot>>>>,
    serial: AtomicU64,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    host: HostId,
    repository: String,
    scopes: Vec<String>,
}

#[derive(Debug, Default)]
struct Slot {
    grant: Option<Grant>,
    failure: Option<(Instant, Fault)>,
}

impl Grants {
    pub(super) fn new(credentials: Credentials) -> Self {
        Self { credentials, slots: Mutex::new(HashMap::new()), serial: AtomicU64::new(0) }
    }

    /// True unless a credential helper would now answer something else about `host` than it did.
    pub(super) async fn hold(&self, host: &str) -> bool {
        self.credentials.hold(host).await
    }

    /// A grant that fits `need`: the one at hand, or a new one if that is old or `refused`.
    ///
    /// Gives nothing if all that could be had is what was refused already.
    pub(super) async fn get(
        &self,
        transport: &Transport,
        need: &Need<'_>,
        refused: Option<Refused<'_>>,
    ) -> Result<Option<Grant>, Fault> {
        let arrived = Instant::now();
        let slot = self.slot(need);
        let mut slot = slot.lock().await;
        if let Some(grant) = &slot.grant
            && grant.is_fresh()
            && !refused.as_ref().is_some_and(|refused| refused.grant.is(grant))
        {
            return Ok(Some(grant.clone()));
        }
        if let Some((at, fault)) = &slot.failure
            && *at >= arrived
        {
            return Err(fault.clone());
        }
        let last = slot.grant.take();
        match self.obtain(transport, need, refused, last).await {
            Ok(grant) => {
                slot.grant.clone_from(&grant);
                slot.failure = None;
                Ok(grant)
            }
            Err(fault) => {
                slot.failure = Some((Instant::now(), fault.clone()));
                Err(fault)
            }
        }
    }

    async fn obtain(
        &self,
        transport: &Transport,
        need: &Need<'_>,
        refused: Option<Refused<'_>>,
        last: Option<Grant>,
    ) -> Result<Option<Grant>, Fault> {
        let found = self.credentials.find(need.host, need.repository).await.map_err(Fault::lasting)?;
        let credential = found.credential;
        if let Some(refused) = &refused {
            let fixed = matches!(need.challenge, Challenge::Basic) || is_registry_token(credential.as_ref());
            if credential == refused.grant.credential && (fixed || refused.final_unless_credential_changed) {
                return Ok(None);
            }
        }
        let made = match (need.challenge, credential.as_ref()) {
            (Challenge::Basic, credential) => basic(need, credential).map(|header| (header, None, None)),
            (Challenge::Bearer(_), Some(Credential { proof: Proof::Registry(token), .. })) => {
                Ok((bearer_header(token), None, None))
            }
            (Challenge::Bearer(bearer), credential) => {
                // A refresh token speaks for the credential it was given for, and no other.
                let refresh = last.filter(|last| last.credential.as_ref() == credential).and_then(|last| last.refresh);
                exchange(transport, need, bearer, credential, refresh).await
            }
        };
        let (header, renew_at, refresh) =
            made.map_err(|fault| advise(fault, need.host, credential.as_ref(), &found.troubles))?;
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let troubles = found.troubles;
        Ok(Some(Grant { header, credential, troubles, renew_at, refresh, serial, made: Instant::now() }))
    }

    fn slot(&self, need: &Need<'_>) -> Arc<tokio::sync::Mutex<Slot>> {
        let mut scopes = need.scopes.to_vec();
        scopes.sort();
        let key = Key { host: need.id, repository: need.repository.to_owned(), scopes };
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= GRANTS_KEPT {
            // A registry that invents scopes must not fill the memory. What is dropped is asked for again.
            slots.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        Arc::clone(slots.entry(key).or_default())
    }
}

type Made = (Secret, Option<Instant>, Option<Secret>);

async fn exchange(
    transport: &Transport,
    need: &Need<'_>,
    bearer: &Bearer,
    credential: Option<&Credential>,
    refresh: Option<Secret>,
) -> Result<Made, Fault> {
    let request = token::Request {
        what: need.what,
        registry: need.registry,
        link: need.link,
        bearer,
        scopes: need.scopes,
        credential,
        refresh: refresh.as_ref(),
    };
    let sent = Instant::now();
    let token = token::fetch(transport, &request).await?;
    Ok((bearer_header(&token.token), Some(sent + useful(token.life)), token.refresh.or(refresh)))
}

/// How long a token that lives for `life` is used.
fn useful(life: Duration) -> Duration {
    life - MARGIN.min(life / 10)
}

fn basic(need: &Need<'_>, credential: Option<&Credential>) -> Result<Secret, Fault> {
    match credential.map(|credential| &credential.proof) {
        Some(Proof::Password { user, password }) => Ok(token::basic_header(user, password)),
        Some(Proof::Identity { user, token }) => Ok(token::basic_header(user, token)),
        Some(Proof::Registry(token)) => Ok(bearer_header(token)),
        None => {
            let message = format!("{}: {} demands a login", cannot(need.what), need.host);
            Err(Fault::lasting(Error::new(ErrorKind::Denied, message)))
        }
    }
}

fn bearer_header(token: &Secret) -> Secret {
    Secret::new(format!("Bearer {}", token.expose()))
}

fn is_registry_token(credential: Option<&Credential>) -> bool {
    matches!(credential, Some(Credential { proof: Proof::Registry(_), .. }))
}

/// Adds to a denial what the user could do about it.
pub(super) fn advise(mut fault: Fault, host: &str, credential: Option<&Credential>, troubles: &[String]) -> Fault {
    if fault.error.kind() == ErrorKind::Denied {
        let mut hint = match credential {
            Some(credential) => format!("the credentials from {} do not suffice; ", credential.origin),
            None => "no credentials were found; ".to_owned(),
        };
        hint.push_str(&format!("log in with \"podman login {host}\" or \"docker login {host}\""));
        if !troubles.is_empty() {
            hint.push_str(&format!("; {}", troubles.join("; ")));
        }
        fault.error = fault.error.hint(hint);
    }
    fault
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::host::{Host, Site};

    fn grant(renew_at: Option<Instant>) -> Grant {
        let (header, made) = (Secret::new("hunter2"), Instant::now());
        Grant { header, credential: None, troubles: Vec::new(), renew_at, refresh: None, serial: 0, made }
    }

    #[test]
    fn b_117_a_token_is_renewed_shortly_before_it_expires() {
        assert_eq!(useful(Duration::from_secs(60)), Duration::from_secs(54));
        assert_eq!(useful(Duration::from_secs(3600)), Duration::from_secs(3580));
        let now = Instant::now();
        assert!(grant(Some(now + Duration::from_secs(60))).is_fresh());
        assert!(!grant(Some(now)).is_fresh());
        assert!(grant(None).is_fresh(), "a password does not expire");
    }

    #[test]
    fn b_099_a_token_that_was_long_on_its_way_may_have_expired() {
        let mut grant = grant(None);
        assert!(grant.is_young());
        grant.made -= YOUNG;
        assert!(!grant.is_young());
    }

    #[test]
    fn d_034_a_grant_does_not_print() {
        assert!(!format!("{:?}", grant(None)).contains("hunter2"));
    }

    #[test]
    fn slots_are_bounded_and_those_in_use_stay() {
        let grants = Grants::new(Credentials::new(Vec::new(), Duration::ZERO));
        let registry = Url::parse("https://h/").expect("a valid URL");
        let [one, other] = [(); 2].map(|()| Host::new(Site::of("h", false)).id());
        let slot_of = |id: HostId, repository: &str| {
            let challenge = &Challenge::Basic;
            grants.slot(&Need {
                what: "",
                id,
                host: "h",
                repository,
                registry: &registry,
                link: None,
                challenge,
                scopes: &[],
            })
        };
        let slot = |repository: &str| slot_of(one, repository);
        let used = slot("used");
        assert!(!Arc::ptr_eq(&used, &slot_of(other, "used")), "two mirrors at one address are two hosts");
        for number in 0..3 * GRANTS_KEPT {
            drop(slot(&number.to_string()));
        }
        assert!(grants.slots.lock().expect("nobody panicked").len() <= GRANTS_KEPT);
        assert!(Arc::ptr_eq(&used, &slot("used")));
    }
}
