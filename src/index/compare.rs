//! Comparing a claim with the truth, once the layer's bytes are all here.
//!
//! The truth is the index that a pass over the whole layer made. A claim is equal to it if both have the same entries and if
//! every byte that a reader of the claim would be given is the layer's: digests inside the claim cannot show that, because
//! whoever made the claim made them too. So the entries are compared pair by pair, which gives for each file the [`Run`]s in
//! which its bytes lie on both sides; then the claim's spans are decoded in order and compared ([`Comparator`]) with the
//! layer's own stream, decoded beside them ([`Stream`]). Both sides go forward only, so each is decoded once, and in bounded
//! memory.
//!
//! What lazy formats add to a layer for themselves ([`FORMAT_FILES`]) may be left out of a claim.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::ops::Range;
use std::sync::Arc;

use bytes::{Buf, Bytes};

use super::{Compression, Error, LayerIndex, SpanFault, Times};
use crate::codec::{Decoder, Format};
use crate::limits::READ_CHUNK;
use crate::oci::Printable;
use crate::tar::{Entry, Kind, Segment, Timestamp};

/// Files that tools for lazy formats add to the root of a layer.
pub const FORMAT_FILES: [&[u8]; 3] = [b"stargz.index.json", b".prefetch.landmark", b".no.prefetch.landmark"];

/// Decoded bytes of the layer held at a time.
const BUFFER: usize = 256 << 10;

/// Why a claim is not equal to the truth, or why that could not be found out.
#[derive(Debug, thiserror::Error)]
pub enum Difference<E: std::error::Error + 'static> {
    /// The claim says something else than the layer.
    #[error("\"{path}\": {what}")]
    Found {
        /// Of what, escaped.
        path: String,
        /// What the claim says, and what is so.
        what: String,
    },
    /// The layer's bytes could not be read.
    #[error("the layer could not be read")]
    Input(#[source] E),
    /// The layer's bytes are not those of the truth, or the truth is damaged.
    #[error("the layer cannot be compared")]
    Truth(#[source] Error),
}

/// Compares `claim` with `truth`, which is of the same layer; `read` gives bytes of its blob and may block.
///
/// Decodes the layer up to two times, on the calling thread, except if [both say the same](LayerIndex::says_the_same);
/// otherwise the windows of the claim must be here.
pub fn compare<E: std::error::Error + 'static>(
    claim: &LayerIndex,
    truth: &LayerIndex,
    read: impl Fn(Range<u64>) -> Result<Bytes, E>,
) -> Result<(), Difference<E>> {
    if claim.says_the_same(truth) {
        return Ok(());
    }
    if claim.diff_id() != truth.diff_id() || claim.compressed_size() != truth.compressed_size() {
        return Err(found(b"", "the claim is of another layer"));
    }
    let mut comparator = Comparator {
        runs: Runs::new(claim, truth),
        open: None,
        reached: 0,
        at: 0,
        stream: Stream::new(truth, &read),
        failed: None,
    };
    for span in claim.span_ids() {
        let decoded = claim.decoded(span);
        comparator.advance()?;
        let Some(next) = comparator.open.as_ref().map(|run| run.claim.start) else { break };
        if next >= decoded.end {
            continue;
        }
        comparator.at = decoded.start;
        let mut failed = None;
        let compressed = claim.compressed(span);
        let pieces = pieces(compressed, &read).map_while(|piece| piece.map_err(|error| failed = Some(error)).ok());
        let outcome = claim.decode_to(span, pieces, &mut comparator);
        if let Some(error) = failed {
            return Err(Difference::Input(error));
        }
        if let Some(failure) = comparator.failed.take() {
            return Err(failure);
        }
        outcome.map_err(|error| comparator.lie(&error))?;
    }
    comparator.finish()
}

fn found<E: std::error::Error + 'static>(path: &[u8], what: impl Into<String>) -> Difference<E> {
    Difference::Found { path: Printable::of(path).to_string(), what: what.into() }
}

/// The ranges in which the bytes of `range` are read.
pub(super) fn pieces<E>(
    range: Range<u64>,
    read: &impl Fn(Range<u64>) -> Result<Bytes, E>,
) -> impl Iterator<Item = Result<Bytes, E>> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let piece = at..range.end.min(at.saturating_add(READ_CHUNK));
        at = piece.end;
        (!piece.is_empty()).then(|| read(piece))
    })
}

/// A part of a file: where its bytes are in the claim's stream and in the layer's. One of the two may be empty: then the
/// file has a hole there, and the other side must have zeros.
#[derive(Debug)]
struct Run {
    path: Arc<[u8]>,
    claim: Range<u64>,
    truth: Range<u64>,
}

/// Compares entries pair by pair, and gives the runs of their contents in order.
struct Runs<'a> {
    claim: Box<dyn Iterator<Item = Result<Entry, Error>> + 'a>,
    truth: Box<dyn Iterator<Item = Result<Entry, Error>> + 'a>,
    times: Times,
    ready: VecDeque<Run>,
}

impl<'a> Runs<'a> {
    fn new(claim: &'a LayerIndex, truth: &'a LayerIndex) -> Self {
        Self {
            claim: Box::new(claim.entries()),
            truth: Box::new(truth.entries()),
            times: claim.times(),
            ready: VecDeque::new(),
        }
    }

    fn next<E: std::error::Error + 'static>(&mut self) -> Result<Option<Run>, Difference<E>> {
        while self.ready.is_empty() {
            let claimed = self.claim.next().transpose();
            let claimed = claimed.map_err(|error| found(b"", format!("the claim cannot be read: {error}")))?;
            let mut real = self.truth.next().transpose().map_err(Difference::Truth)?;
            while let Some(entry) = &real
                && FORMAT_FILES.contains(&&entry.path[..])
                && claimed.as_ref().is_none_or(|claimed| claimed.path != entry.path)
            {
                real = self.truth.next().transpose().map_err(Difference::Truth)?;
            }
            let (claimed, real) = match (claimed, real) {
                (None, None) => return Ok(None),
                (Some(claimed), None) => return Err(found(&claimed.path, "is not in the layer")),
                (None, Some(real)) => return Err(found(&real.path, "is missing in the claim")),
                (Some(claimed), Some(real)) => (claimed, real),
            };
            if let Some(what) = difference(&claimed, &real, self.times) {
                return Err(found(&real.path, what));
            }
            if let (Kind::Regular { segments: claimed, .. }, Kind::Regular { segments: layer, .. }) =
                (claimed.kind, real.kind)
            {
                self.ready.extend(runs(&real.path, claimed, layer));
            }
        }
        Ok(self.ready.pop_front())
    }
}

/// What two entries differ in, if anything.
fn difference(claim: &Entry, real: &Entry, times: Times) -> Option<String> {
    if claim.path != real.path {
        return Some(format!("the claim has \"{}\" in its place", Printable::of(&claim.path)));
    }
    let kind = kind_difference(&claim.kind, &real.kind);
    // The attributes of these entries mean nothing: a link has those of its target.
    if kind.is_some() || matches!(real.kind, Kind::HardLink { .. } | Kind::Whiteout | Kind::Opaque) {
        return kind;
    }
    let time = |time: Timestamp| if times == Times::Seconds { Timestamp { nanos: 0, ..time } } else { time };
    let (claimed_time, real_time) = (time(claim.mtime), time(real.mtime));
    if claim.mode != real.mode {
        return Some(format!("has mode {:04o}, the claim says {:04o}", real.mode, claim.mode));
    }
    if (claim.uid, claim.gid) != (real.uid, real.gid) {
        return Some(format!("belongs to {}:{}, the claim says {}:{}", real.uid, real.gid, claim.uid, claim.gid));
    }
    if claimed_time != real_time {
        let show = |time: Timestamp| format!("{}.{:09}", time.seconds, time.nanos);
        return Some(format!("is of time {}, the claim says {}", show(real_time), show(claimed_time)));
    }
    (claim.xattrs != real.xattrs).then(|| "has other extended attributes than the claim says".to_owned())
}

fn kind_difference(claim: &Kind, real: &Kind) -> Option<String> {
    match (claim, real) {
        (Kind::Regular { size: claimed, content: digest, .. }, Kind::Regular { size, content, .. }) => {
            if claimed != size {
                return Some(format!("has {size} bytes, the claim says {claimed}"));
            }
            // A claim need not have a digest, but what it has must be right: decoded copies go by it.
            (digest.is_some() && digest != content).then(|| "has another content digest than the claim says".to_owned())
        }
        (Kind::Symlink { target: claimed }, Kind::Symlink { target })
        | (Kind::HardLink { target: claimed }, Kind::HardLink { target })
            if claimed != target =>
        {
            Some(format!("leads to \"{}\", the claim says \"{}\"", Printable::of(target), Printable::of(claimed)))
        }
        (claim, real) if claim != real => Some(format!("is {}, the claim says {}", name_of(real), name_of(claim))),
        _ => None,
    }
}

fn name_of(kind: &Kind) -> String {
    match kind {
        Kind::Directory => "a directory".to_owned(),
        Kind::Regular { .. } => "a regular file".to_owned(),
        Kind::Symlink { .. } => "a symbolic link".to_owned(),
        Kind::HardLink { .. } => "a hard link".to_owned(),
        Kind::CharDevice { major, minor } => format!("character device {major}:{minor}"),
        Kind::BlockDevice { major, minor } => format!("block device {major}:{minor}"),
        Kind::Fifo => "a named pipe".to_owned(),
        Kind::Whiteout => "a whiteout".to_owned(),
        Kind::Opaque => "an opaque marker".to_owned(),
    }
}

/// The runs of one file, whose pieces may be cut in another way on each side.
fn runs(path: &[u8], claim: Vec<Segment>, real: Vec<Segment>) -> Vec<Run> {
    let path: Arc<[u8]> = path.into();
    let mut runs = Vec::new();
    let (mut claim, mut real) = (claim.into_iter().peekable(), real.into_iter().peekable());
    let mut at = 0;
    while let Some(next) = claim.peek().into_iter().chain(real.peek()).map(|segment| segment.file_offset).min() {
        at = next.max(at);
        // How far both sides go on as they are at this place.
        let ends = [claim.peek(), real.peek()].into_iter().flatten().map(|segment| match segment.file_offset {
            start if start > at => start,
            start => start + segment.length,
        });
        let end = ends.min().unwrap_or(at);
        let part = |segment: Option<&Segment>| match segment {
            Some(segment) if segment.file_offset <= at => {
                let start = segment.layer_offset + (at - segment.file_offset);
                start..start + (end - at)
            }
            _ => 0..0,
        };
        runs.push(Run { path: Arc::clone(&path), claim: part(claim.peek()), truth: part(real.peek()) });
        let over = |segment: &Segment| segment.file_offset + segment.length <= end;
        claim.next_if(over);
        real.next_if(over);
        at = end;
    }
    runs
}

/// Takes the decoded bytes of the claim's stream and compares those that files have.
struct Comparator<'a, E: std::error::Error + 'static, R> {
    runs: Runs<'a>,
    /// The run being compared.
    open: Option<Run>,
    /// Where the last run ends in the claim's stream.
    reached: u64,
    /// Where in the claim's stream the next bytes are.
    at: u64,
    stream: Stream<'a, R>,
    failed: Option<Difference<E>>,
}

impl<E: std::error::Error + 'static, R: Fn(Range<u64>) -> Result<Bytes, E>> Comparator<'_, E, R> {
    /// Goes to the next run that has bytes in the claim; those that have none are compared with zeros.
    fn advance(&mut self) -> Result<(), Difference<E>> {
        while self.open.as_ref().is_none_or(|run| run.claim.is_empty()) {
            if let Some(run) = self.open.take() {
                self.stream.skip_to(run.truth.start)?;
                let mut left = run.truth.end - run.truth.start;
                while left > 0 {
                    let bytes = self.stream.take(left)?;
                    if bytes.iter().any(|byte| *byte != 0) {
                        return Err(found(&run.path, "has bytes where the claim has a hole"));
                    }
                    left -= bytes.len() as u64;
                }
            }
            self.open = self.runs.next()?;
            let Some(run) = &self.open else { break };
            // The stream is passed over once: what lies behind would be compared with other bytes than readers get.
            if !run.claim.is_empty() && run.claim.start < self.reached {
                return Err(found(&run.path, "has bytes that the claim has in no order"));
            }
            self.reached = self.reached.max(run.claim.end);
        }
        Ok(())
    }

    fn take(&mut self, mut bytes: &[u8]) -> Result<(), Difference<E>> {
        while !bytes.is_empty() {
            self.advance()?;
            let Some(run) = &mut self.open else { return Ok(()) };
            let before = run.claim.start.saturating_sub(self.at).min(bytes.len() as u64);
            self.at += before;
            bytes = &bytes[before as usize..];
            let length = (run.claim.end - run.claim.start).min(bytes.len() as u64) as usize;
            let (now, later) = bytes.split_at(length);
            if run.truth.is_empty() {
                if now.iter().any(|byte| *byte != 0) {
                    return Err(found(&run.path, "has a hole where the claim has bytes"));
                }
            } else {
                self.stream.skip_to(run.truth.start)?;
                let mut rest = now;
                while !rest.is_empty() {
                    let real = self.stream.take(rest.len() as u64)?;
                    if real[..] != rest[..real.len()] {
                        return Err(found(&run.path, "has other bytes than the claim leads to"));
                    }
                    rest = &rest[real.len()..];
                }
                run.truth.start += length as u64;
            }
            run.claim.start += length as u64;
            self.at += length as u64;
            bytes = later;
        }
        Ok(())
    }

    /// What is to be said of a span of the claim that cannot be decoded.
    fn lie(&self, error: &Error) -> Difference<E> {
        let path = self.open.as_ref().map_or(&b""[..], |run| &run.path);
        found(
            path,
            match error {
                Error::Span { fault: SpanFault::Digest, .. } => "the claim has a wrong digest of its bytes".to_owned(),
                error => format!("its bytes cannot be had as the claim says: {error}"),
            },
        )
    }

    fn finish(mut self) -> Result<(), Difference<E>> {
        self.advance()?;
        match &self.open {
            // Segments lie in the stream, which the spans make up.
            Some(run) => Err(found(&run.path, "has bytes that no span of the claim has")),
            None => Ok(()),
        }
    }
}

impl<E: std::error::Error + 'static, R: Fn(Range<u64>) -> Result<Bytes, E>> Write for Comparator<'_, E, R> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.take(bytes) {
            Ok(()) => Ok(bytes.len()),
            Err(failure) => {
                self.failed = Some(failure);
                Err(io::ErrorKind::Other.into())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The layer's uncompressed stream, forward only.
struct Stream<'a, R> {
    truth: &'a LayerIndex,
    read: &'a R,
    decoder: Decoder,
    /// The next byte to read of the blob.
    next: u64,
    input: Bytes,
    buffer: Vec<u8>,
    /// What of the buffer has not been taken.
    ready: Range<usize>,
    /// Where in the stream that begins.
    at: u64,
}

impl<'a, R> Stream<'a, R> {
    fn new(truth: &'a LayerIndex, read: &'a R) -> Self {
        let format = match truth.compression() {
            Compression::None => Format::Plain,
            Compression::Gzip => Format::Gzip,
            Compression::Zstd => Format::Zstd,
        };
        let decoder = Decoder::new(format);
        Self { truth, read, decoder, next: 0, input: Bytes::new(), buffer: vec![0; BUFFER], ready: 0..0, at: 0 }
    }

    /// Passes over what lies before `offset`. Segments of files ascend, so nothing lies behind.
    fn skip_to<E: std::error::Error + 'static>(&mut self, offset: u64) -> Result<(), Difference<E>>
    where
        R: Fn(Range<u64>) -> Result<Bytes, E>,
    {
        while self.at < offset {
            self.take(offset - self.at)?;
        }
        if self.at == offset {
            Ok(())
        } else {
            Err(Difference::Truth(self.truth.damaged("its files are not in order")))
        }
    }

    /// The next bytes, at least one and at most `length`.
    fn take<E: std::error::Error + 'static>(&mut self, length: u64) -> Result<&[u8], Difference<E>>
    where
        R: Fn(Range<u64>) -> Result<Bytes, E>,
    {
        let wrong = || Difference::Truth(self.truth.damaged("the layer does not decode to its stream"));
        while self.ready.is_empty() {
            let step = self.decoder.step(&self.input, &mut self.buffer).map_err(|_| wrong())?;
            self.input.advance(step.read);
            self.ready = 0..step.written;
            if step.is_idle() {
                let end = self.truth.compressed_size().min(self.next + READ_CHUNK);
                if self.next == end {
                    return Err(wrong());
                }
                self.input = (self.read)(self.next..end).map_err(Difference::Input)?;
                self.next = end;
            }
        }
        let taken = self.ready.start..self.ready.end.min(self.ready.start.saturating_add(length as usize));
        self.ready.start = taken.end;
        self.at += taken.len() as u64;
        Ok(&self.buffer[taken])
    }
}
