//! How an answer of the embedded registry may go wrong.
//!
//! A hook set by [`super::Registry::set_faults`] looks at each request and returns a [`Fault`] or none. A fault either
//! stands in for the answer, changes it, or changes how its bytes go out (its [`Pace`]); [`Fault::Many`] combines them.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::{CONTENT_RANGE, HeaderMap, HeaderName, HeaderValue, LOCATION};

use super::answer::Reply;
use super::request::Request;
use super::token::{Bearer, Credentials};

/// One way in which an answer departs from the specification or from what the client hopes for.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Answers this instead.
    Status(Answer),
    /// Waits before the status line goes out.
    Delay(Duration),
    /// Sends this many bytes of the body, then closes the connection. Nothing happens to a shorter body; a client that
    /// does not read meanwhile may get fewer.
    Truncate {
        /// Bytes of the body that are sent.
        after: u64,
    },
    /// Sends at most this many bytes of the body, then resets the connection; what the client had not read yet is lost.
    Reset {
        /// Bytes of the body that are sent.
        after: u64,
    },
    /// Sends this many bytes of the body, then nothing more, with the connection left open.
    Stall {
        /// Bytes of the body that are sent; with 0 the client sees the headers only.
        after: u64,
    },
    /// Sends the body in small pieces with pauses.
    Drip {
        /// Length of a piece, at least 1.
        bytes: usize,
        /// The pause before each piece.
        every: Duration,
    },
    /// Sends status line and headers in small pieces with pauses; the body follows at its own pace.
    DripHead {
        /// Length of a piece, at least 1.
        bytes: usize,
        /// The pause before each piece.
        every: Duration,
    },
    /// Inverts one byte of the blob or document, if the answer contains it.
    Corrupt {
        /// Where, in the whole blob, whatever range was asked for.
        offset: u64,
    },
    /// Answers `200` with the whole blob although a range was asked for.
    IgnoreRange,
    /// Answers as if another range had been asked for, header and bytes in accord.
    OtherRange(Range<u64>),
    /// States this `Content-Range` in a partial answer, whatever the bytes are; none leaves it out.
    ContentRange(Option<String>),
    /// Adds a header, or replaces it. `Connection: close` ends the connection after the answer.
    Header(HeaderName, HeaderValue),
    /// Adds a header beside any that is there already: the same twice, as broken proxies do.
    SecondHeader(HeaderName, HeaderValue),
    /// Takes at most this many bytes of the request's body, does what they ask for if they are all of it, and closes the
    /// connection without an answer. What was taken of an upload stays there.
    HangUp {
        /// Bytes of the request's body that are taken.
        after: u64,
    },
    /// Leaves out the length, so that the body is sent in chunks.
    NoLength,
    /// Sends the client elsewhere.
    Redirect {
        /// 301, 302, 303, 307 or 308.
        status: StatusCode,
        /// The value of `Location`, absolute or relative.
        location: String,
    },
    /// Demands a Bearer token; on the token endpoint, says how tokens are issued.
    Bearer(Bearer),
    /// Demands user name and password.
    Basic(Credentials),
    /// All of these, in this order.
    Many(Vec<Self>),
}

/// An answer made up by a test.
#[derive(Debug, Clone)]
pub struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    /// An answer with a status, and nothing else.
    ///
    /// # Panics
    /// If `status` is not between 100 and 999.
    pub fn new(status: u16) -> Self {
        let status = StatusCode::from_u16(status).expect("a status has three digits");
        Self { status, headers: HeaderMap::new(), body: Bytes::new() }
    }

    /// Adds a header; one that is there already stays too.
    ///
    /// # Panics
    /// If the name or the value is not one that HTTP allows.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let name = HeaderName::try_from(name).expect("a valid header name");
        self.headers.append(name, HeaderValue::try_from(value).expect("a valid header value"));
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }
}

impl From<Answer> for Fault {
    fn from(answer: Answer) -> Self {
        Self::Status(answer)
    }
}

impl Fault {
    /// Answers with a bare status.
    ///
    /// # Panics
    /// If `status` is not between 100 and 999.
    pub fn status(status: u16) -> Self {
        Answer::new(status).into()
    }

    /// Sends the client to `location` by a `307`, as registries do that keep blobs elsewhere.
    pub fn redirect(location: impl Into<String>) -> Self {
        Self::Redirect { status: StatusCode::TEMPORARY_REDIRECT, location: location.into() }
    }

    /// Adds or replaces a header.
    ///
    /// # Panics
    /// If the name or the value is not one that HTTP allows.
    pub fn header(name: &str, value: &str) -> Self {
        let name = HeaderName::try_from(name).expect("a valid header name");
        Self::Header(name, HeaderValue::try_from(value).expect("a valid header value"))
    }

    /// Changes `reply` if this fault is about what is answered.
    pub(super) fn change(&self, reply: &mut Reply) {
        match self {
            Self::Status(answer) => *reply = Reply::new(answer.status, answer.headers.clone(), answer.body.clone()),
            Self::ContentRange(stated) if reply.status == StatusCode::PARTIAL_CONTENT => {
                reply.headers.remove(CONTENT_RANGE);
                if let Some(stated) = stated {
                    reply.set(CONTENT_RANGE, stated);
                }
            }
            Self::Header(name, value) => drop(reply.headers.insert(name, value.clone())),
            Self::SecondHeader(name, value) => drop(reply.headers.append(name, value.clone())),
            Self::NoLength => reply.states_length = false,
            Self::Redirect { status, location } => {
                *reply = Reply::new(*status, HeaderMap::new(), Bytes::new());
                reply.set(LOCATION, location);
            }
            _ => {}
        }
    }
}

/// How the bytes of one answer go out.
#[derive(Debug, Default)]
pub(super) struct Pace {
    pub(super) delay: Duration,
    pub(super) drip: Option<(usize, Duration)>,
    pub(super) head: Option<(usize, Duration)>,
    pub(super) corrupt: Vec<u64>,
    pub(super) cut: Option<Cut>,
}

/// Where a body ends before its end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    pub(super) after: u64,
    pub(super) end: End,
}

/// What happens where a body is cut.
#[derive(Debug, Clone, Copy)]
pub(super) enum End {
    Close,
    Reset,
    Stall,
}

impl Pace {
    pub(super) fn of(faults: &[Fault]) -> Self {
        let mut pace = Self::default();
        for fault in faults {
            match fault {
                Fault::Delay(delay) => pace.delay += *delay,
                Fault::Drip { bytes, every } => pace.drip = Some(((*bytes).max(1), *every)),
                Fault::DripHead { bytes, every } => pace.head = Some((*bytes, *every)),
                Fault::Corrupt { offset } => pace.corrupt.push(*offset),
                Fault::Truncate { after } => pace.cut = Some(Cut { after: *after, end: End::Close }),
                Fault::Reset { after } => pace.cut = Some(Cut { after: *after, end: End::Reset }),
                Fault::Stall { after } => pace.cut = Some(Cut { after: *after, end: End::Stall }),
                _ => {}
            }
        }
        pace
    }
}

/// Bytes of the request's body that are taken before the connection is closed without an answer, if it is.
pub(super) fn hangs_up(faults: &[Fault]) -> Option<u64> {
    faults.iter().find_map(|fault| match fault {
        Fault::HangUp { after } => Some(*after),
        _ => None,
    })
}

/// The range header to answer, given the one that was sent.
pub(super) fn asked_range(faults: &[Fault], sent: Option<&str>) -> Option<String> {
    faults.iter().fold(sent.map(str::to_owned), |asked, fault| match fault {
        Fault::IgnoreRange => None,
        Fault::OtherRange(range) => Some(format!("bytes={}-{}", range.start, range.end.saturating_sub(1))),
        _ => asked,
    })
}

/// Decides about faults, request by request.
pub(super) type Hook = Arc<dyn Fn(&Request) -> Option<Fault> + Send + Sync>;

/// The hook in force.
#[derive(Default)]
pub(super) struct Script(RwLock<Option<Hook>>);

impl Script {
    pub(super) fn set(&self, hook: Option<Hook>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = hook;
    }

    /// The faults of one request, in order, combinations taken apart.
    pub(super) fn decide(&self, request: &Request) -> Vec<Fault> {
        // The lock is not held while the hook runs, so that a hook may replace itself.
        let hook = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut waiting: Vec<Fault> = hook.and_then(|hook| hook(request)).into_iter().collect();
        let mut faults = Vec::new();
        while let Some(fault) = waiting.pop() {
            match fault {
                Fault::Many(many) => waiting.extend(many.into_iter().rev()),
                single => faults.push(single),
            }
        }
        faults
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Script")
    }
}
