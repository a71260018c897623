//! Profiles as text, and back; see the module's documentation for the form.

use std::fmt::Write as _;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use super::{Access, Origin, Profile};
use crate::limits::{PROFILE_ACCESSES, PROFILE_OFFSET, PROFILE_PATH_BYTES, PROFILE_TEXT_BYTES};

/// The first word, and the version.
const MARK: &str = "ocifs-profile";
const VERSION: &str = "1";

/// The longest header, without the mount point: four keys, a version, a digest and two numbers.
const HEADER_BYTES: usize = 512;

/// Why a text is no profile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// It does not begin like one.
    #[error("line 1: this is no profile of ocifs: it does not begin with \"{MARK} {VERSION}\"")]
    Foreign,
    /// It is of another version.
    #[error("line 1: the profile is of a version this program does not know (it knows {VERSION})")]
    Version,
    /// It is longer than [`PROFILE_TEXT_BYTES`].
    #[error("the profile is longer than {} MiB", PROFILE_TEXT_BYTES >> 20)]
    TooLong,
    /// A line is wrong.
    #[error("line {line}: {what}")]
    Line {
        /// The line, counted from 1.
        line: usize,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// Writes a profile.
pub(super) fn write(profile: &Profile) -> String {
    let Origin { image, recorded, mount } = &profile.origin;
    let mut text = format!("{MARK} {VERSION}\nimage {image}\nrecorded {recorded}\nmount ");
    escape(mount.as_os_str().as_bytes(), &mut text);
    text += &format!("\naccesses {}\n", profile.accesses.len());
    for access in &profile.accesses {
        text += &format!("{} {} ", access.start, access.end - access.start);
        escape(&access.path, &mut text);
        text.push('\n');
    }
    text
}

/// Bytes that the header takes at most.
pub(super) fn header_bytes(origin: &Origin) -> usize {
    HEADER_BYTES + escaped_bytes(origin.mount.as_os_str().as_bytes())
}

/// Bytes that one line takes.
pub(super) fn line_bytes(access: &Access) -> usize {
    let digits = |number: u64| number.checked_ilog10().map_or(1, |log| log as usize + 1);
    digits(access.start) + digits(access.end - access.start) + escaped_bytes(&access.path) + 3
}

/// Reads a profile.
pub(super) fn parse(text: &[u8]) -> Result<Profile, ParseError> {
    if text.len() > PROFILE_TEXT_BYTES {
        return Err(ParseError::TooLong);
    }
    let mut lines = Lines { rest: text, line: 0 };
    match lines.next() {
        Some(line) if line == format!("{MARK} {VERSION}").as_bytes() => {}
        Some(line) if line.starts_with(format!("{MARK} ").as_bytes()) => return Err(ParseError::Version),
        _ => return Err(ParseError::Foreign),
    }
    let image = lines.field("image", "\"image DIGEST\" is expected")?;
    let image = std::str::from_utf8(image).ok().and_then(|text| text.parse().ok());
    let image = image.ok_or_else(|| lines.wrong("the digest of the image is not valid"))?;
    let recorded = lines.field("recorded", "\"recorded SECONDS\" is expected")?;
    let recorded = number(recorded).ok_or_else(|| lines.wrong("the time is no number of seconds"))?;
    let mount = lines.field("mount", "\"mount PATH\" is expected")?;
    let mount = unescape(mount).filter(|mount| mount.len() <= PROFILE_PATH_BYTES);
    let mount = mount.ok_or_else(|| lines.wrong("the mount point is too long or not escaped as it should be"))?;
    let count = lines.field("accesses", "\"accesses COUNT\" is expected")?;
    let count = number(count).and_then(|count| usize::try_from(count).ok());
    let count = count.ok_or_else(|| lines.wrong("the count is no number"))?;
    if count > PROFILE_ACCESSES {
        return Err(lines.wrong("there are more accesses than a profile may have"));
    }
    let mut accesses = Vec::new();
    for _ in 0..count {
        let line = lines.next().ok_or_else(|| lines.wrong("the text ends before its last access"))?;
        accesses.push(access(line).map_err(|what| lines.wrong(what))?);
    }
    if lines.next().is_some() {
        return Err(lines.wrong("there is more than the accesses that were announced"));
    }
    let origin = Origin { image, recorded, mount: PathBuf::from(std::ffi::OsString::from_vec(mount)) };
    Ok(Profile::new(origin, accesses))
}

fn access(line: &[u8]) -> Result<Access, &'static str> {
    let mut fields = line.splitn(3, |byte| *byte == b' ');
    let (Some(start), Some(length), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
        return Err("\"OFFSET LENGTH PATH\" is expected");
    };
    let start = number(start).ok_or("the offset is no number")?;
    let length = number(length).ok_or("the length is no number")?;
    let end = start.checked_add(length).filter(|end| length > 0 && *end <= PROFILE_OFFSET);
    let end = end.ok_or("no file has such a range")?;
    let path = unescape(path).ok_or("the path is not escaped as it should be")?;
    Access::new(path, start, end).ok_or("the path is not one below the image's root")
}

/// A decimal number, digits only.
fn number(text: &[u8]) -> Option<u64> {
    let is_number = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| is_number)?.parse().ok()
}

fn is_literal(byte: u8) -> bool {
    byte.is_ascii_graphic() && byte != b'\\'
}

fn escape(bytes: &[u8], text: &mut String) {
    for byte in bytes {
        if is_literal(*byte) {
            text.push(char::from(*byte));
        } else if write!(text, "\\x{byte:02x}").is_err() {
            unreachable!("writing to a string does not fail");
        }
    }
}

fn escaped_bytes(bytes: &[u8]) -> usize {
    bytes.iter().map(|byte| if is_literal(*byte) { 1 } else { 4 }).sum()
}

fn unescape(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if is_literal(*first) {
            bytes.push(*first);
            continue;
        }
        let code = tail.strip_prefix(b"x").and_then(|tail| tail.split_at_checked(2)).filter(|_| *first == b'\\');
        let (code, after) = code?;
        let digit = |digit: u8| char::from(digit).to_digit(16);
        bytes.push(u8::try_from(digit(code[0])? << 4 | digit(code[1])?).ok()?);
        rest = after;
    }
    Some(bytes)
}

/// The lines of a text, counted.
struct Lines<'a> {
    rest: &'a [u8],
    line: usize,
}

impl<'a> Lines<'a> {
    /// The next line without its end; none at the end of the text.
    fn next(&mut self) -> Option<&'a [u8]> {
        self.line += 1;
        if self.rest.is_empty() {
            return None;
        }
        let end = self.rest.iter().position(|byte| *byte == b'\n').unwrap_or(self.rest.len());
        let line = &self.rest[..end];
        self.rest = self.rest.get(end + 1..).unwrap_or_default();
        Some(line)
    }

    /// The value of the line that begins with `key`.
    fn field(&mut self, key: &str, what: &'static str) -> Result<&'a [u8], ParseError> {
        let value = self.next().and_then(|line| line.strip_prefix(key.as_bytes())?.strip_prefix(b" "));
        value.ok_or_else(|| self.wrong(what))
    }

    fn wrong(&self, what: &'static str) -> ParseError {
        ParseError::Line { line: self.line, what }
    }
}
