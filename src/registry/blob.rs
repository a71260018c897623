//! Ranged reads of a blob that go on where they broke off.
//!
//! A [`Blob`] knows where its bytes may be had ([`Places`]): the URLs of a foreign layer, mirrors, the registry; and of each
//! host where its redirects led last time. A [`Transfer`] is one range under way: it opens an answer, passes its bytes on,
//! and opens another at the first missing byte when that one breaks, stalls or ends early. The other places are asked at
//! once, in a [`Round`]; when all have failed there is a pause, until the range is complete or the attempts without
//! progress are used up.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf, Bytes};
use reqwest::{Response, StatusCode};

use super::call::Call;
use super::client::{BlobKey, Client, complain};
use super::course::Course;
use super::encoded;
use super::endpoint::{Endpoint, Role};
use super::error::{Fault, Retry, origin};
use super::host::Host;
use super::places::Places;
use super::range::{self, Content, RangeError};
use super::redirect::{self, Location};
use super::retry::Retries;
use super::route::{Round, Route};
use super::transport::Body;
use crate::limits::{DECODED_BLOB_BYTES, REDIRECTS, RESUME_PROGRESS};
use crate::oci::{Descriptor, Digest};
use crate::source::{BlobReader, BoxFuture, ByteStream, Error, ErrorKind};

/// A blob of a repository.
pub(super) struct Blob {
    client: Client,
    course: Arc<Course>,
    descriptor: Descriptor,
    /// What is known of it on the route that it has now. Held to copy it.
    facts: Mutex<Arc<Facts>>,
}

struct Facts {
    client: Client,
    route: Arc<Route>,
    digest: Digest,
    size: u64,
    what: String,
    /// The content, if the descriptor embeds it.
    data: Option<Bytes>,
    /// Places that the descriptor names (B-071).
    urls: Vec<String>,
    /// These, and after them the endpoints that hand out blobs.
    places: Places,
}

impl Blob {
    pub(super) fn new(client: Client, course: Arc<Course>, descriptor: &Descriptor) -> Self {
        let facts = Mutex::new(Arc::new(Facts::new(client.clone(), course.now(), descriptor)));
        Self { client, course, descriptor: descriptor.clone(), facts }
    }

    /// What is known, for whoever is about to ask.
    async fn facts(&self) -> Arc<Facts> {
        let route = self.course.route(&self.client).await;
        let mut facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&facts.route, &route) {
            *facts = Arc::new(Facts::new(self.client.clone(), route, &self.descriptor));
        }
        Arc::clone(&facts)
    }

    /// What was known last.
    fn known(&self) -> Arc<Facts> {
        Arc::clone(&self.facts.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Facts {
    fn new(client: Client, route: Arc<Route>, descriptor: &Descriptor) -> Self {
        let own = route.able(Role::Pull).position(|endpoint| endpoint.is_own);
        Self {
            what: format!("blob {}@{}", route.name(), descriptor.digest),
            places: Places::new(descriptor.urls.len(), route.able(Role::Pull).count(), own),
            client,
            route,
            digest: descriptor.digest,
            size: descriptor.size,
            data: descriptor.data.clone(),
            urls: descriptor.urls.clone(),
        }
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let facts = self.known();
        f.debug_struct("Blob").field("what", &facts.what).field("size", &facts.size).finish_non_exhaustive()
    }
}

impl BlobReader for Blob {
    fn size(&self) -> u64 {
        self.descriptor.size
    }

    fn host(&self) -> Option<&str> {
        Some(&self.course.host)
    }

    fn read(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, Error>> {
        Box::pin(async move {
            let facts = self.facts().await;
            if range.start > range.end || range.end > facts.size {
                let message = format!("{} has no bytes {range:?}, it ends at {}", facts.what, facts.size);
                return Err(Error::new(ErrorKind::Invalid, message));
            }
            if range.is_empty() {
                return Ok(stream_of(None));
            }
            if let Some(data) = &facts.data {
                return embedded(&facts, data, &range).map(|bytes| stream_of(Some(bytes)));
            }
            let mut transfer = Transfer::new(facts, range);
            let first = transfer.next().await?;
            let started = futures_util::stream::iter(first.map(Ok));
            let rest = futures_util::stream::try_unfold(transfer, async |mut transfer| {
                Ok(transfer.next().await?.map(|piece| (piece, transfer)))
            });
            Ok(Box::pin(futures_util::StreamExt::chain(started, rest)) as ByteStream)
        })
    }

    fn distrust(&self, range: Range<u64>) -> bool {
        let facts = self.known();
        // What is behind a redirect may be wrong while the host itself is right, and leads elsewhere the next time.
        for endpoint in facts.route.able(Role::Pull) {
            facts.client.remember(&BlobKey::new(endpoint, facts.digest), None);
        }
        facts.data.is_none() && facts.places.distrust(&range)
    }
}

fn stream_of(bytes: Option<Bytes>) -> ByteStream {
    Box::pin(futures_util::stream::iter(bytes.map(Ok)))
}

fn embedded(facts: &Facts, data: &Bytes, range: &Range<u64>) -> Result<Bytes, Error> {
    let (Ok(start), Ok(end)) = (usize::try_from(range.start), usize::try_from(range.end)) else {
        return Err(Error::new(ErrorKind::Invalid, format!("{} is too long for this machine", facts.what)));
    };
    if end > data.len() {
        return Err(Error::new(ErrorKind::Corrupt, format!("{} embeds fewer bytes than its size", facts.what)));
    }
    Ok(data.slice(start..end))
}

/// A range under way.
struct Transfer {
    facts: Arc<Facts>,
    /// What is still to come.
    left: Range<u64>,
    arriving: Option<Arriving>,
    /// The place that is asked now.
    place: usize,
    /// The places to ask next, and what was wrong with those before.
    round: Round,
    retries: Retries,
    since_fault: u64,
}

/// An answer whose body is being read.
struct Arriving {
    body: Body,
    /// Bytes before those wanted (B-086, B-095).
    skip: u64,
    /// True if the body must end where the range ends and the HTTP stack does not see to it.
    must_end: bool,
    /// True if more bytes than wanted are a fault.
    exact: bool,
}

impl Transfer {
    fn new(facts: Arc<Facts>, range: Range<u64>) -> Self {
        let retries = Retries::new(facts.client.policy());
        Self { facts, left: range, arriving: None, place: 0, round: Round::default(), retries, since_fault: 0 }
    }

    /// The next bytes, never empty, or nothing after the last.
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            match self.step().await {
                Ok(piece) => return Ok(piece),
                Err(fault) => self.after(fault).await?,
            }
        }
    }

    /// Prepares for the next attempt, which is made at once if there is a place that was not asked.
    async fn after(&mut self, fault: Fault) -> Result<(), Error> {
        self.arriving = None;
        if self.since_fault >= RESUME_PROGRESS {
            // What was wrong with the others was long ago.
            let others = self.facts.order().into_iter().filter(|place| *place != self.place);
            self.round = Round::new(others);
        }
        self.since_fault = 0;
        self.facts.note(self.place, Some(&fault));
        self.round.failed(self.place, fault);
        if !self.round.is_over() {
            return Ok(());
        }
        let round = std::mem::take(&mut self.round);
        match round.verdict(Role::Pull, |place| self.facts.places.is_own(place)) {
            Some(fault) => {
                self.facts.route.note_failure();
                self.retries.pause(fault).await
            }
            None => Ok(()),
        }
    }

    /// Opens an answer at the place whose turn it is.
    async fn open(&mut self) -> Result<Arriving, Fault> {
        if self.round.is_over() {
            self.round = Round::new(self.facts.order());
        }
        let nobody = || Fault::lasting(self.facts.route.nobody(Role::Pull.describe()));
        self.place = self.round.next().ok_or_else(nobody)?;
        let host = self.facts.endpoint(self.place).map(|endpoint| &*endpoint.host);
        self.round.turn(&self.facts.what, host, self.facts.open(self.place, &self.left)).await
    }

    async fn step(&mut self) -> Result<Option<Bytes>, Fault> {
        if self.left.is_empty() {
            return self.finish().await.map(|()| None);
        }
        if self.arriving.is_none() {
            self.arriving = Some(self.open().await?);
        }
        let Some(arriving) = &mut self.arriving else { return Ok(None) };
        let what = &self.facts.what;
        loop {
            let Some(mut piece) = arriving.body.piece(what).await? else {
                let message =
                    format!("cannot get {what}: the answer ended {} bytes early", self.left.end - self.left.start);
                return Err(Fault::passing(Error::new(ErrorKind::Unreachable, message)));
            };
            let skipped = usize::try_from(arriving.skip).unwrap_or(usize::MAX).min(piece.len());
            arriving.skip -= skipped as u64;
            piece.advance(skipped);
            if piece.is_empty() {
                continue;
            }
            let left = usize::try_from(self.left.end - self.left.start).unwrap_or(usize::MAX);
            if piece.len() > left {
                if arriving.exact {
                    return Err(self.facts.too_long());
                }
                piece.truncate(left);
            }
            if let Some(endpoint) = self.facts.endpoint(self.place) {
                endpoint.host.sent(piece.len());
            }
            self.left.start += piece.len() as u64;
            self.since_fault += piece.len() as u64;
            if self.since_fault >= RESUME_PROGRESS {
                self.retries.progress();
            }
            return Ok(Some(piece));
        }
    }

    /// Sees to it that nothing follows the last byte (B-093).
    async fn finish(&mut self) -> Result<(), Fault> {
        let Some(Arriving { mut body, must_end: true, .. }) = self.arriving.take() else {
            return Ok(());
        };
        match body.piece(&self.facts.what).await {
            Ok(None) => Ok(()),
            Ok(Some(_)) => Err(self.facts.too_long()),
            Err(fault) => {
                // All bytes are here, so how the connection ended is of no interest.
                tracing::debug!(error = %fault.error, "the end of a complete answer is missing");
                Ok(())
            }
        }
    }
}

impl Facts {
    /// The places in the order in which to ask them.
    fn order(&self) -> Vec<usize> {
        self.places.order(|place| self.endpoint(place).is_some_and(|endpoint| endpoint.host.rests()))
    }

    /// The host of a place; none for a URL of the descriptor.
    fn endpoint(&self, place: usize) -> Option<&Endpoint> {
        self.route.able(Role::Pull).nth(place.checked_sub(self.urls.len())?)
    }

    /// Notes at the host of a place whether it did what was asked.
    fn note(&self, place: usize, fault: Option<&Fault>) {
        if let Some(endpoint) = self.endpoint(place) {
            endpoint.host.note(fault.map(|fault| &fault.error));
        }
    }

    /// Opens an answer at a place.
    async fn open(&self, place: usize, range: &Range<u64>) -> Result<Arriving, Fault> {
        let result = match self.urls.get(place) {
            Some(url) => self.open_foreign(url, range).await,
            None => match self.endpoint(place) {
                Some(endpoint) => self.open_at(endpoint, range).await,
                None => Err(Fault::lasting(self.route.nobody(Role::Pull.describe()))),
            },
        };
        self.note(place, result.as_ref().err());
        match &result {
            Ok(_) => self.places.answers(place, range.clone()),
            Err(fault) if fault.error.kind() == ErrorKind::NotFound => self.places.lacks(place),
            Err(_) => {}
        }
        result
    }

    /// Opens an answer of a host, or of the place to which it redirects.
    async fn open_at(&self, endpoint: &Endpoint, range: &Range<u64>) -> Result<Arriving, Fault> {
        let call = self.call(range);
        let key = BlobKey::new(endpoint, self.digest);
        let mut renewed = false;
        loop {
            let known = self.client.resolved(&key);
            let was_known = known.is_some();
            let answered = match known {
                Some(at) => self.client.follow(endpoint, &call, at).await,
                None => {
                    let digest = self.digest.to_string();
                    self.client.request(endpoint, &["blobs", &digest], &call).await
                }
            };
            let stale = match &answered {
                Ok((response, at)) => at.moved && is_stale(response.status(), was_known),
                Err(fault) => was_known && fault.retry == Retry::Never,
            };
            if stale || answered.is_err() {
                self.client.remember(&key, None);
            }
            if stale && !renewed {
                renewed = true;
                continue;
            }
            let (response, at) = answered?;
            let arriving = self.judge(Some(&endpoint.host), response, range, call.range.is_some()).await;
            let place = at.moved.then_some(at).filter(|_| arriving.is_ok());
            self.client.remember(&key, place);
            return arriving;
        }
    }

    /// Opens an answer of a foreign URL: without credentials, and only where an image may send us (D-031).
    async fn open_foreign(&self, url: &str, range: &Range<u64>) -> Result<Arriving, Fault> {
        let private = self.client.options().private_urls;
        let refuse = |why: &str| {
            let message = format!("cannot get {}: a URL in its descriptor {why}", self.what);
            Fault::lasting(Error::new(ErrorKind::Invalid, message))
        };
        let Some(own) = self.route.endpoints().last() else { return Err(refuse("has no registry beside it")) };
        let registry = own.host.locate(own.host.schemes()[0], &own.repository, &[]).map_err(Fault::lasting)?.url;
        let url = redirect::foreign(&registry, url, private).map_err(refuse)?;
        let mut at = Location { url, trusted: false, verified: true, moved: true, link: None };
        let call = self.call(range);
        for _ in 0..=REDIRECTS {
            let response = self.client.transport().get(&self.what, &at, call.headers()).await?;
            if !redirect::is_redirect(response.status()) {
                return self.judge(None, response, range, call.range.is_some()).await;
            }
            at = redirect::next(&self.what, &at, response.headers()).map_err(Fault::lasting)?;
            redirect::foreign_at(&registry, &at.url, private).map_err(refuse)?;
        }
        Err(refuse("redirects in circles"))
    }

    fn call(&self, range: &Range<u64>) -> Call<'_> {
        // The whole blob needs no range, and is then cacheable for everyone in between.
        let whole = *range == (0..self.size);
        Call { what: &self.what, accept: None, range: (!whole).then(|| range.clone()), message: None }
    }

    /// Tells whether `response` may be used; notes at the `host`, if that is known, that it does not serve ranges.
    async fn judge(
        &self,
        host: Option<&Host>,
        response: Response,
        range: &Range<u64>,
        ranged: bool,
    ) -> Result<Arriving, Fault> {
        let status = response.status();
        if !matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE) {
            return Err(complain(&self.what, response).await);
        }
        let stall = self.client.transport().stall();
        let response = match !ranged && status == StatusCode::OK && self.size <= DECODED_BLOB_BYTES {
            true => encoded::plain(&self.what, response, self.size, stall).await?,
            false => response,
        };
        let content = range::judge(status, response.headers(), range, self.size, ranged).map_err(|error| {
            let kind = match error {
                RangeError::Size(..) | RangeError::Outside(_) => ErrorKind::Corrupt,
                RangeError::Other(_) | RangeError::Encoded => ErrorKind::Invalid,
            };
            let message = format!("cannot get {} from {}", self.what, origin(response.url()));
            Fault::lasting(Error::new(kind, message).because(error))
        })?;
        if let Some(host) = host.filter(|_| ranged && content == Content::Whole) {
            host.lacks_ranges();
        }
        let exact = content == Content::Range || range.end == self.size;
        Ok(Arriving {
            skip: if content == Content::Whole { range.start } else { 0 },
            must_end: exact && range::length(response.headers()).is_none(),
            exact,
            body: Body::new(response, stall),
        })
    }

    fn too_long(&self) -> Fault {
        let message = format!("cannot get {}: the answer has more bytes than were asked for", self.what);
        Fault::lasting(Error::new(ErrorKind::Invalid, message))
    }
}

/// Statuses by which object stores say that a signed URL is no longer good (B-083); they do not agree on one. If the
/// URL is an old one, its object may also be gone.
fn is_stale(status: StatusCode, old: bool) -> bool {
    matches!(status.as_u16(), 400 | 401 | 403 | 410) || (old && status == StatusCode::NOT_FOUND)
}
