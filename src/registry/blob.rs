//! Ranged reads of a blob that go on where they broke off.
//!
//! A [`Blob`] knows where its bytes may be had: the URLs of a foreign layer, the place where the registry's redirects
//! led last time, the registry. A [`Transfer`] is one range under way: it opens an answer, passes its bytes on, and
//! opens another at the first missing byte when that one breaks, stalls or ends early, until the range is complete or
//! the attempts without progress are used up.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Buf, Bytes};
use reqwest::{Response, StatusCode};

use super::client::{BlobKey, Call, Client, complain};
use super::error::{Fault, Retry, origin};
use super::range::{self, Content, RangeError};
use super::redirect::{self, Location};
use super::retry::Retries;
use super::route::Route;
use super::transport::Body;
use crate::limits::{REDIRECTS, RESUME_PROGRESS};
use crate::oci::Descriptor;
use crate::source::{BlobReader, BoxFuture, ByteStream, Error, ErrorKind};

/// A blob of a repository.
#[derive(Clone)]
pub(super) struct Blob {
    facts: Arc<Facts>,
}

struct Facts {
    client: Client,
    route: Arc<Route>,
    key: BlobKey,
    size: u64,
    what: String,
    /// The content, if the descriptor embeds it.
    data: Option<Bytes>,
    /// Other places, asked before the registry (B-071).
    urls: Vec<String>,
    /// Which of the urls answered last; their number stands for the registry.
    place: AtomicUsize,
}

impl Blob {
    pub(super) fn new(client: Client, route: Arc<Route>, descriptor: &Descriptor) -> Self {
        let registry = route.own();
        let key = BlobKey {
            host: registry.host.name().to_owned(),
            repository: registry.repository.clone(),
            digest: descriptor.digest,
        };
        let facts = Facts {
            what: format!("blob {}@{}", registry.name(), descriptor.digest),
            client,
            route,
            key,
            size: descriptor.size,
            data: descriptor.data.clone(),
            urls: descriptor.urls.clone(),
            place: AtomicUsize::new(0),
        };
        Self { facts: Arc::new(facts) }
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blob").field("what", &self.facts.what).field("size", &self.facts.size).finish_non_exhaustive()
    }
}

impl BlobReader for Blob {
    fn size(&self) -> u64 {
        self.facts.size
    }

    fn read(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, Error>> {
        Box::pin(async move {
            let facts = &self.facts;
            if range.start > range.end || range.end > facts.size {
                let message = format!("{} has no bytes {range:?}, it ends at {}", facts.what, facts.size);
                return Err(Error::new(ErrorKind::Invalid, message));
            }
            if range.is_empty() {
                return Ok(stream_of(None));
            }
            if let Some(data) = &facts.data {
                return embedded(facts, data, &range).map(|bytes| stream_of(Some(bytes)));
            }
            let mut transfer = Transfer::new(Arc::clone(facts), range);
            let first = transfer.next().await?;
            let started = futures_util::stream::iter(first.map(Ok));
            let rest = futures_util::stream::try_unfold(transfer, async |mut transfer| {
                Ok(transfer.next().await?.map(|piece| (piece, transfer)))
            });
            Ok(Box::pin(futures_util::StreamExt::chain(started, rest)) as ByteStream)
        })
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
        Self { facts, left: range, arriving: None, retries, since_fault: 0 }
    }

    /// The next bytes, never empty, or nothing after the last.
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            match self.step().await {
                Ok(piece) => return Ok(piece),
                Err(fault) => {
                    self.arriving = None;
                    self.since_fault = 0;
                    self.retries.pause(fault).await?;
                }
            }
        }
    }

    async fn step(&mut self) -> Result<Option<Bytes>, Fault> {
        if self.left.is_empty() {
            return self.finish().await.map(|()| None);
        }
        let what = &self.facts.what;
        let arriving = match &mut self.arriving {
            Some(arriving) => arriving,
            none => none.insert(self.facts.open(&self.left).await?),
        };
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
    /// Opens an answer at the first of the places that has one, starting with the one that had one last time.
    async fn open(&self, range: &Range<u64>) -> Result<Arriving, Fault> {
        let last = self.place.load(Ordering::Relaxed);
        let others = (0..=self.urls.len()).filter(|&place| place != last);
        let mut worst: Option<Fault> = None;
        for place in std::iter::once(last).chain(others) {
            let result = match self.urls.get(place) {
                Some(url) => self.open_foreign(url, range).await,
                None => self.open_here(range).await,
            };
            match result {
                Ok(arriving) => {
                    self.place.store(place, Ordering::Relaxed);
                    return Ok(arriving);
                }
                // A place that may recover says more than one that never had the blob.
                Err(fault) if worst.as_ref().is_none_or(|worst| worst.retry == Retry::Never) => worst = Some(fault),
                Err(fault) => tracing::debug!(error = %fault.error, "another place failed as well"),
            }
        }
        Err(worst.unwrap_or_else(|| Fault::lasting(Error::new(ErrorKind::NotFound, self.what.clone()))))
    }

    /// Opens an answer of the registry, or of the place to which it redirects.
    async fn open_here(&self, range: &Range<u64>) -> Result<Arriving, Fault> {
        let call = self.call(range);
        let mut renewed = false;
        loop {
            let known = self.client.resolved(&self.key);
            let was_known = known.is_some();
            let answered = match known {
                Some(at) => self.client.follow(self.route.own(), &call, at).await,
                None => {
                    let digest = self.key.digest.to_string();
                    self.client.request(self.route.own(), &["blobs", &digest], &call).await
                }
            };
            let stale = match &answered {
                Ok((response, at)) => at.moved && is_stale(response.status(), was_known),
                Err(fault) => was_known && fault.retry == Retry::Never,
            };
            if stale || answered.is_err() {
                self.client.remember(&self.key, None);
            }
            if stale && !renewed {
                renewed = true;
                continue;
            }
            let (response, at) = answered?;
            let arriving = self.judge(response, range, call.range.is_some()).await;
            let place = at.moved.then_some(at).filter(|_| arriving.is_ok());
            self.client.remember(&self.key, place);
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
        let scheme = self.route.own().host.schemes()[0];
        let registry =
            self.route.own().host.locate(scheme, &self.route.own().repository, &[]).map_err(Fault::lasting)?.url;
        let url = redirect::foreign(&registry, url, private).map_err(refuse)?;
        let mut at = Location { url, trusted: false, verified: true, moved: true, link: None };
        let call = self.call(range);
        for _ in 0..=REDIRECTS {
            let response = self.client.transport().get(&self.what, &at, call.headers()).await?;
            if !redirect::is_redirect(response.status()) {
                return self.judge(response, range, call.range.is_some()).await;
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

    async fn judge(&self, response: Response, range: &Range<u64>, ranged: bool) -> Result<Arriving, Fault> {
        let status = response.status();
        if !matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE) {
            return Err(complain(&self.what, response).await);
        }
        let content = range::judge(status, response.headers(), range, self.size, ranged).map_err(|error| {
            let kind = match error {
                RangeError::Size(..) | RangeError::Outside(_) => ErrorKind::Corrupt,
                RangeError::Other(_) | RangeError::Encoded => ErrorKind::Invalid,
            };
            let message = format!("cannot get {} from {}", self.what, origin(response.url()));
            Fault::lasting(Error::new(kind, message).because(error))
        })?;
        if ranged && content == Content::Whole {
            self.route.own().host.lacks_ranges();
        }
        let exact = content == Content::Range || range.end == self.size;
        Ok(Arriving {
            skip: if content == Content::Whole { range.start } else { 0 },
            must_end: exact && range::length(response.headers()).is_none(),
            exact,
            body: Body::new(response, self.client.transport().stall()),
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
