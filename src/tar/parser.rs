//! The parser: finds headers, maps and payloads in a stream that arrives in pieces of any size.
//!
//! [`Parser`] is a state machine. Blocks are gathered whole, since nothing can be said about half of one; payload bytes
//! go from the pushed piece to the sink without being copied or kept. What is kept is bounded: one block, one special
//! header, the overrides for the next member, one sparse map (`limits`).

use super::header::{BLOCK, Block, Header, until_nul};
use super::member::{self, Identity, Layout, Member, Overrides};
use super::pax::Records;
use super::{Error, Fault, Kind, Segment, Sink};
use crate::limits;

/// Longest part of a name that an error shows, in bytes.
const SHOWN_NAME: usize = 200;

/// Reads one tar stream.
#[derive(Debug)]
pub struct Parser {
    state: State,
    /// How much of the stream has been consumed.
    offset: u64,
    /// The part of a block that has arrived, its first `filled` bytes.
    block: Block,
    filled: usize,
    /// What the special headers so far say about the next member.
    overrides: Overrides,
    /// Where the current header begins.
    header: u64,
    /// The raw name of the current member, for errors.
    name: Vec<u8>,
}

/// What comes next in the stream.
#[derive(Debug)]
enum State {
    /// A header.
    Header,
    /// A second zero block, or nothing.
    AfterZeroBlock,
    /// Contents of a special header: `left` more bytes, then padding.
    Special { kind: Special, contents: Vec<u8>, left: usize },
    /// More of a member's sparse map.
    Map(Box<Member>),
    /// `left` bytes of payload, then `padding`.
    Payload { left: u64, padding: u64, is_wanted: bool },
    /// Bytes to the end of the block.
    Padding(u64),
    /// Nothing that matters: the end of the archive has been seen.
    End,
    /// Nothing that could be read.
    Failed(Error),
}

/// A header that says something about the next one.
#[derive(Debug, Clone, Copy)]
enum Special {
    /// `x`: records.
    Records,
    /// `g`: records for all that follows. Container tools ignore them.
    Global,
    /// `L`.
    LongName,
    /// `K`.
    LongLink,
}

impl Special {
    fn of(typeflag: u8) -> Option<Self> {
        Some(match typeflag {
            b'x' => Self::Records,
            b'g' => Self::Global,
            b'L' => Self::LongName,
            b'K' => Self::LongLink,
            _ => return None,
        })
    }
}

impl Default for Parser {
    fn default() -> Self {
        Self::new()
    }
}

impl Parser {
    /// A parser at the beginning of a stream.
    pub fn new() -> Self {
        Self {
            state: State::Header,
            offset: 0,
            block: [0; BLOCK],
            filled: 0,
            overrides: Overrides::default(),
            header: 0,
            name: Vec::new(),
        }
    }

    /// Takes the next bytes of the stream.
    ///
    /// Bytes after the end of the archive are ignored. After an error nothing more is read: the error is
    /// returned again.
    pub fn push(&mut self, bytes: &[u8], sink: &mut impl Sink) -> Result<(), Error> {
        if let State::Failed(error) = &self.state {
            return Err(error.clone());
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            match self.step(rest, sink) {
                Ok(consumed) => rest = &rest[consumed..],
                Err(error) => {
                    self.state = State::Failed(error.clone());
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Ends the stream. An archive needs no end marker and the last payload no padding.
    pub fn finish(self) -> Result<(), Error> {
        match &self.state {
            State::Failed(error) => Err(error.clone()),
            State::Header | State::AfterZeroBlock if self.filled > 0 => {
                Err(Error::Header { offset: self.offset - self.filled as u64, fault: Fault::Truncated })
            }
            State::Special { .. } => Err(Error::Header { offset: self.header, fault: Fault::Truncated }),
            State::Map(_) | State::Payload { .. } => Err(self.reject(Fault::Truncated)),
            State::Header | State::AfterZeroBlock | State::Padding(_) | State::End => Ok(()),
        }
    }

    /// Consumes some of `bytes`, which are not empty, and says how many.
    fn step(&mut self, bytes: &[u8], sink: &mut impl Sink) -> Result<usize, Error> {
        match &mut self.state {
            State::Header | State::AfterZeroBlock | State::Map(_) => self.gather(bytes, sink),
            State::Special { contents, left, .. } => {
                let taken = (*left).min(bytes.len());
                contents.extend_from_slice(&bytes[..taken]);
                *left -= taken;
                let is_complete = *left == 0;
                self.advance(taken)?;
                if is_complete {
                    self.end_special()?;
                }
                Ok(taken)
            }
            State::Payload { left, padding, is_wanted } => {
                let taken = shorter(*left, bytes.len());
                if *is_wanted {
                    sink.data(&bytes[..taken]);
                }
                *left -= taken as u64;
                if *left == 0 {
                    self.state = State::Padding(*padding);
                    self.skip_nothing();
                }
                self.advance(taken)?;
                Ok(taken)
            }
            State::Padding(left) => {
                let taken = shorter(*left, bytes.len());
                *left -= taken as u64;
                self.skip_nothing();
                self.advance(taken)?;
                Ok(taken)
            }
            State::End | State::Failed(_) => Ok(bytes.len()),
        }
    }

    fn advance(&mut self, taken: usize) -> Result<(), Error> {
        self.offset = self.offset.checked_add(taken as u64).ok_or_else(|| self.reject(Fault::Size))?;
        Ok(())
    }

    /// Leaves a state in which no padding is left.
    fn skip_nothing(&mut self) {
        if let State::Padding(0) = self.state {
            self.state = State::Header;
        }
    }

    /// Adds to the current block, and handles it once it is complete.
    fn gather(&mut self, bytes: &[u8], sink: &mut impl Sink) -> Result<usize, Error> {
        let taken = (BLOCK - self.filled).min(bytes.len());
        self.block[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
        self.filled += taken;
        self.advance(taken)?;
        if self.filled == BLOCK {
            self.filled = 0;
            let block = self.block;
            self.complete(&block, sink)?;
        }
        Ok(taken)
    }

    fn complete(&mut self, block: &Block, sink: &mut impl Sink) -> Result<(), Error> {
        let is_zero = block.iter().all(|&byte| byte == 0);
        match std::mem::replace(&mut self.state, State::Header) {
            State::Map(member) => self.extend_map(member, block, sink),
            State::AfterZeroBlock if is_zero => {
                self.state = State::End;
                Ok(())
            }
            State::AfterZeroBlock => {
                Err(Error::Header { offset: self.offset - BLOCK as u64, fault: Fault::AfterZeroBlock })
            }
            _ if is_zero => {
                self.state = State::AfterZeroBlock;
                Ok(())
            }
            _ => self.begin(block, sink),
        }
    }

    /// Handles a header.
    fn begin<S: Sink>(&mut self, block: &Block, sink: &mut S) -> Result<(), Error> {
        self.header = self.offset - BLOCK as u64;
        let header = Header::parse(block).map_err(|fault| Error::Header { offset: self.header, fault })?;
        if let Some(kind) = Special::of(header.typeflag) {
            if matches!(kind, Special::Global) {
                sink.global();
            }
            return self.begin_special(kind, header.size);
        }
        let overrides = std::mem::take(&mut self.overrides);
        let identity = Identity::new(&header, &overrides);
        let member = Member::new(&header, block, &overrides, &identity).and_then(|member| {
            if S::MEMBERS {
                sink.member(super::Member {
                    name: &identity.path,
                    described: member::describe(&header, &overrides, &identity, member.payload)?,
                    xattrs: overrides.records.xattrs().collect(),
                    offset: self.offset,
                    is_sparse: !matches!(member.layout, Layout::Whole),
                });
            }
            Ok(member)
        });
        self.name = identity.path;
        let member = member.map_err(|fault| self.reject(fault))?;
        match member.layout {
            Layout::Whole | Layout::Sparse(_) => self.place(member, sink),
            Layout::Extended(_) | Layout::Lines(_) => {
                self.state = State::Map(Box::new(member));
                Ok(())
            }
        }
    }

    fn begin_special(&mut self, kind: Special, size: i64) -> Result<(), Error> {
        let left = u64::try_from(size).map_err(|_| Fault::Range("size"));
        let left =
            left.and_then(|size| if size > limits::TAR_SPECIAL_BYTES { Err(Fault::SpecialTooLong) } else { Ok(size) });
        let left = left.map_err(|fault| Error::Header { offset: self.header, fault })? as usize;
        self.state = State::Special { kind, contents: Vec::with_capacity(left), left };
        // Nothing else would end a special header that has no contents.
        if left == 0 { self.end_special() } else { Ok(()) }
    }

    /// Interprets a special header whose contents are complete.
    fn end_special(&mut self) -> Result<(), Error> {
        let State::Special { kind, contents, .. } = std::mem::replace(&mut self.state, State::Header) else {
            return Ok(());
        };
        self.state = State::Padding(padding(contents.len() as u64));
        self.skip_nothing();
        let records = |contents| Records::parse(contents).map_err(|fault| Error::Header { offset: self.header, fault });
        match kind {
            Special::Records => self.overrides.records = records(contents)?,
            Special::Global => drop(records(contents)?),
            Special::LongName => self.overrides.long_name = until_nul(&contents).to_vec(),
            Special::LongLink => self.overrides.long_link = until_nul(&contents).to_vec(),
        }
        Ok(())
    }

    /// Handles a block of a sparse map that does not fit the header.
    fn extend_map(&mut self, mut member: Box<Member>, block: &Block, sink: &mut impl Sink) -> Result<(), Error> {
        let has_more = match &mut member.layout {
            Layout::Extended(map) => map.gnu_extension(block),
            Layout::Lines(lines) => match member.payload.checked_sub(BLOCK as u64) {
                // The map is part of the payload, so it cannot go on when that has ended.
                None => Err(Fault::SparseMap),
                Some(payload) => {
                    member.payload = payload;
                    lines.block(block).map(|is_complete| !is_complete)
                }
            },
            Layout::Whole | Layout::Sparse(_) => Ok(false),
        };
        if has_more.map_err(|fault| self.reject(fault))? {
            self.state = State::Map(member);
            return Ok(());
        }
        self.place(*member, sink)
    }

    /// Hands out a member whose payload, if it has one, begins here.
    fn place(&mut self, member: Member, sink: &mut impl Sink) -> Result<(), Error> {
        let Member { entry, payload, layout } = member;
        let padding = padding(payload);
        let end = self.offset.checked_add(payload).and_then(|end| end.checked_add(padding));
        end.ok_or_else(|| self.reject(Fault::Size))?;
        let mut is_wanted = false;
        if let Some(mut entry) = entry {
            if let Kind::Regular { size, segments, .. } = &mut entry.kind {
                is_wanted = true;
                let map = match layout {
                    Layout::Sparse(map) | Layout::Extended(map) => Some(map),
                    Layout::Lines(lines) => Some(lines.into_map()),
                    Layout::Whole => None,
                };
                if let Some(map) = map {
                    *size = map.size();
                    *segments = map.segments(self.offset, payload).map_err(|fault| self.reject(fault))?;
                } else if payload > 0 {
                    segments.push(Segment { file_offset: 0, layer_offset: self.offset, length: payload });
                }
            }
            sink.entry(entry);
        }
        if payload > 0 {
            self.state = State::Payload { left: payload, padding, is_wanted };
        }
        Ok(())
    }

    fn reject(&self, fault: Fault) -> Error {
        let shown = &self.name[..self.name.len().min(SHOWN_NAME)];
        let mut path = shown.escape_ascii().to_string();
        if shown.len() < self.name.len() {
            path.push_str("...");
        }
        Error::Entry { path, offset: self.header, fault }
    }
}

/// The bytes between the end of a payload and the next block.
fn padding(payload: u64) -> u64 {
    payload.wrapping_neg() % BLOCK as u64
}

/// The lesser of two lengths.
fn shorter(left: u64, available: usize) -> usize {
    usize::try_from(left).map_or(available, |left| left.min(available))
}
