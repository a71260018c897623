//! gzip streams (RFC 1952): members around deflate data.
//!
//! Headers and trailers are read here, byte by byte, because pieces may end anywhere and because zlib's own gzip mode
//! hides where a member ends. Several members are one stream, every header flag is understood, CRC32 and
//! ISIZE are checked, and after the last member only NUL padding is accepted: Go accepts none, GNU gzip
//! accepts any garbage.

use flate2::Crc;

use super::inflate::{Inflater, Stopped};
use super::{Error, Point, Step, WINDOW};

const FHCRC: u8 = 1 << 1;
const FEXTRA: u8 = 1 << 2;
const FNAME: u8 = 1 << 3;
const FCOMMENT: u8 = 1 << 4;

/// Decodes gzip members, or the rest of one from a seek point on.
#[derive(Debug)]
pub struct Decoder {
    inflater: Inflater,
    state: State,
    /// CRC32 of what the member gave so far; none if it was entered in the middle.
    crc: Option<Crc>,
    /// Length of what the member gave so far, modulo 2^32.
    length: u32,
    /// The last byte read inside deflate data.
    last: u8,
    /// Whether to stop at points.
    points: bool,
}

#[derive(Debug)]
enum State {
    /// At the start of the stream, where a member must follow.
    Start,
    /// After a member.
    Between,
    Header(Header),
    Body,
    Trailer(Collected<8>),
    /// In the NUL bytes after the last member.
    Padding,
}

/// A fixed number of bytes that arrive in pieces.
#[derive(Debug)]
struct Collected<const N: usize> {
    bytes: [u8; N],
    have: usize,
}

impl<const N: usize> Collected<N> {
    fn new() -> Self {
        Self { bytes: [0; N], have: 0 }
    }

    /// Takes bytes from the front of `input` and returns them all once they are here.
    fn take(&mut self, input: &mut &[u8]) -> Option<[u8; N]> {
        let length = input.len().min(N - self.have);
        self.bytes[self.have..self.have + length].copy_from_slice(&input[..length]);
        self.have += length;
        *input = &input[length..];
        (self.have == N).then_some(self.bytes)
    }
}

/// A member header on its way in.
#[derive(Debug)]
struct Header {
    part: Part,
    flags: u8,
    crc: Crc,
}

#[derive(Debug)]
enum Part {
    Fixed(Collected<10>),
    ExtraLength(Collected<2>),
    Extra(u16),
    Name,
    Comment,
    Checksum(Collected<2>),
    Done,
}

impl Header {
    fn new() -> Self {
        Self { part: Part::Fixed(Collected::new()), flags: 0, crc: Crc::new() }
    }

    /// Takes header bytes from the front of `input`; true once the header is complete.
    fn take(&mut self, input: &mut &[u8]) -> Result<bool, Error> {
        loop {
            if matches!(self.part, Part::Done) {
                return Ok(true);
            }
            let before = *input;
            // The checksum covers everything before itself.
            let sum = self.crc.sum();
            let complete = match &mut self.part {
                Part::Fixed(bytes) => match bytes.take(input) {
                    Some([0x1f, 0x8b, 8, flags, ..]) => {
                        self.flags = flags;
                        true
                    }
                    Some(_) => return Err(Error::Corrupt("a gzip member does not begin with a deflate header")),
                    None => false,
                },
                Part::ExtraLength(bytes) => match bytes.take(input) {
                    Some(length) => {
                        self.crc.update(&before[..before.len() - input.len()]);
                        self.part = Part::Extra(u16::from_le_bytes(length));
                        continue;
                    }
                    None => false,
                },
                Part::Extra(left) => {
                    let length = input.len().min(usize::from(*left));
                    *left -= length as u16;
                    *input = &input[length..];
                    *left == 0
                }
                Part::Name | Part::Comment => {
                    let end = input.iter().position(|byte| *byte == 0);
                    *input = &input[end.map_or(input.len(), |end| end + 1)..];
                    end.is_some()
                }
                Part::Checksum(bytes) => match bytes.take(input) {
                    Some(stored) if u16::from_le_bytes(stored) == sum as u16 => true,
                    Some(_) => return Err(Error::Checksum("gzip header checksum")),
                    None => return Ok(false),
                },
                Part::Done => true,
            };
            self.crc.update(&before[..before.len() - input.len()]);
            if !complete {
                return Ok(false);
            }
            self.part = self.following();
        }
    }

    /// The part after the current one that the flags announce.
    fn following(&self) -> Part {
        let stage = match self.part {
            Part::Fixed(_) => 0,
            Part::ExtraLength(_) | Part::Extra(_) => 1,
            Part::Name => 2,
            Part::Comment => 3,
            Part::Checksum(_) | Part::Done => 4,
        };
        if stage < 1 && self.flags & FEXTRA != 0 {
            Part::ExtraLength(Collected::new())
        } else if stage < 2 && self.flags & FNAME != 0 {
            Part::Name
        } else if stage < 3 && self.flags & FCOMMENT != 0 {
            Part::Comment
        } else if stage < 4 && self.flags & FHCRC != 0 {
            Part::Checksum(Collected::new())
        } else {
            Part::Done
        }
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// A decoder at the beginning of a stream, which stops at points.
    pub fn new() -> Self {
        Self { inflater: Inflater::new(), state: State::Start, crc: None, length: 0, last: 0, points: true }
    }

    /// Goes to the beginning of a member and no longer stops at points.
    pub fn restart(&mut self) {
        self.state = State::Start;
        self.points = false;
    }

    /// Goes to a block inside a member (see [`Point::Block`]) and no longer stops at points. The checksum of that member
    /// cannot be checked.
    pub fn resume(&mut self, bits: u8, byte: u8, window: &[u8; WINDOW]) {
        self.inflater.resume(bits, byte, window);
        self.state = State::Body;
        self.crc = None;
        self.points = false;
    }

    /// See [`super::Decoder::step`].
    pub fn step(&mut self, input: &[u8], out: &mut [u8]) -> Result<Step, Error> {
        let mut rest = input;
        let read = |rest: &[u8]| input.len() - rest.len();
        loop {
            match &mut self.state {
                State::Start | State::Between => match (&self.state, rest.first()) {
                    (_, None) => return Ok(Step { read: read(rest), ..Step::default() }),
                    (State::Between, Some(0)) => self.state = State::Padding,
                    (State::Between, Some(byte)) if *byte != 0x1f => return Err(Error::TrailingGarbage),
                    _ => {
                        self.state = State::Header(Header::new());
                        if self.points {
                            let point = Some(Point::Fresh { back: 0 });
                            return Ok(Step { read: read(rest), point, ..Step::default() });
                        }
                    }
                },
                State::Header(header) => {
                    if !header.take(&mut rest)? {
                        return Ok(Step { read: read(rest), ..Step::default() });
                    }
                    self.inflater.reset();
                    self.state = State::Body;
                    self.crc = Some(Crc::new());
                    self.length = 0;
                }
                State::Body => {
                    let mut step = self.body(rest, out)?;
                    step.read += read(rest);
                    return Ok(step);
                }
                State::Trailer(bytes) => match bytes.take(&mut rest) {
                    Some(trailer) => {
                        self.check(trailer)?;
                        self.state = State::Between;
                    }
                    None => return Ok(Step { read: read(rest), ..Step::default() }),
                },
                State::Padding => {
                    if rest.iter().any(|byte| *byte != 0) {
                        return Err(Error::TrailingGarbage);
                    }
                    return Ok(Step { read: input.len(), ..Step::default() });
                }
            }
        }
    }

    /// Inflates until a block ends, the member ends, or input or room run out.
    fn body(&mut self, input: &[u8], out: &mut [u8]) -> Result<Step, Error> {
        let progress = self.inflater.inflate(input, out, self.points)?;
        let (read, written) = (progress.read, progress.written);
        if let Some(last) = input[..read].last() {
            self.last = *last;
        }
        if let Some(crc) = &mut self.crc {
            crc.update(&out[..written]);
            self.length = self.length.wrapping_add(written as u32);
        }
        let step = Step { read, written, ..Step::default() };
        Ok(match progress.stopped {
            Stopped::Wanting => step,
            Stopped::Block { bits } => Step { point: Some(Point::Block { bits, byte: self.last }), ..step },
            Stopped::End => {
                self.state = State::Trailer(Collected::new());
                Step { ended: true, ..step }
            }
        })
    }

    fn check(&self, trailer: [u8; 8]) -> Result<(), Error> {
        let Some(crc) = &self.crc else { return Ok(()) };
        let [a, b, c, d, e, f, g, h] = trailer;
        if u32::from_le_bytes([a, b, c, d]) != crc.sum() {
            return Err(Error::Checksum("gzip CRC32"));
        }
        if u32::from_le_bytes([e, f, g, h]) != self.length {
            return Err(Error::Checksum("gzip length"));
        }
        Ok(())
    }

    /// Checks that the input may end here: after a member.
    pub fn finish(&self) -> Result<(), Error> {
        match self.state {
            State::Between | State::Padding => Ok(()),
            _ => Err(Error::Truncated),
        }
    }
}
