//! `ocifs ls`: the names in an image.
//!
//! A listing may have millions of names, so nothing is collected but the first thousands, whose widths align the
//! columns of the whole.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;

use super::context::{Context, Sink, unexpected};
use super::image::ImageArgs;
use super::interrupt::or_interrupted;
use super::output::Output;
use super::progress::Meter;
use super::stop::Stop;
use crate::daemon::Connection;
use crate::daemon::control::{Listed, Request};
use crate::oci::Printable;

/// Names whose widths align the columns.
const ALIGNED: usize = 4096;

const EXAMPLES: &str = "\
Examples:
  ocifs ls debian:12
  ocifs ls -l debian:12 /etc
  ocifs ls -R --json oci:build/image /usr/lib";

/// List a directory of an image without mounting it
///
/// With -l as GNU ls does: type and permissions, links, user and group id, size or device number, time (UTC), name. With
/// -R everything below as well, by full path.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Args {
    #[command(flatten)]
    image: ImageArgs,

    /// The directory or file, from the image's root
    #[arg(value_name = "PATH", default_value = "/")]
    path: OsString,

    /// Show more than names
    #[arg(short, long)]
    long: bool,

    /// List directories below as well
    #[arg(short = 'R', long)]
    recursive: bool,

    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

/// Lists.
pub(super) fn run(args: &Args, context: &Context) -> Result<(), Stop> {
    let image = args.image.request(context)?;
    let meter = Meter::looking_up(&image.reference);
    let (path, recursive) = (args.path.as_bytes().to_vec(), args.recursive);
    let (asked, columns) = (trim(&path).to_vec(), args.long.then(Columns::default));
    let request = Request::ListDirectory { image, path, recursive };
    let (json, context, shown) = (args.json, context.clone(), meter.clone());
    let outcome = or_interrupted(move || {
        let output = Output::new();
        if json {
            let mut listing = JsonListing { output, count: 0 };
            context.ask_into(&request, &shown, &mut listing)?;
            return listing.finish();
        }
        let mut listing = Listing { output, asked, full_paths: recursive, columns, waiting: Vec::new() };
        context.ask_into(&request, &shown, &mut listing)?;
        listing.finish()
    });
    meter.clear();
    outcome
}

/// A path without the slashes around it, as the daemon shows paths.
fn trim(path: &[u8]) -> &[u8] {
    let path = path.strip_prefix(b"/").unwrap_or(path);
    path.strip_suffix(b"/").unwrap_or(path)
}

/// Names for people.
struct Listing {
    output: Output,
    /// The path that was asked for.
    asked: Vec<u8>,
    full_paths: bool,
    /// Widths of the long form.
    columns: Option<Columns>,
    /// Names whose widths are to be known first.
    waiting: Vec<Listed>,
}

/// How wide the columns of the long form are.
#[derive(Debug, Clone, Copy, Default)]
struct Columns {
    nlink: usize,
    uid: usize,
    gid: usize,
    size: usize,
    settled: bool,
}

impl Listing {
    fn release(&mut self) -> Result<(), Stop> {
        if let Some(columns) = &mut self.columns {
            self.waiting.iter().for_each(|item| columns.widen(item));
            columns.settled = true;
        }
        std::mem::take(&mut self.waiting).iter().try_for_each(|item| self.print(item))
    }

    fn print(&mut self, item: &Listed) -> Result<(), Stop> {
        if let Some(columns) = &self.columns {
            write!(self.output, "{} ", columns.line(item))?;
        }
        // As ls does: a file by the name it was asked for, the content of a directory by its names.
        let name = match item.path.iter().rposition(|byte| *byte == b'/') {
            Some(slash) if !self.full_paths && item.path != self.asked => &item.path[slash + 1..],
            _ => &item.path,
        };
        let root = if self.full_paths || item.path == self.asked { "/" } else { "" };
        write!(self.output, "{root}{}", Printable(name))?;
        if self.columns.is_some() && item.kind == "symlink" {
            write!(self.output, " -> {}", Printable(&item.target))?;
        }
        writeln!(self.output)
    }

    fn finish(mut self) -> Result<(), Stop> {
        self.release()?;
        self.output.finish()
    }
}

impl Sink for Listing {
    fn item(&mut self, item: Listed) -> Result<(), Stop> {
        if self.columns.is_none_or(|columns| columns.settled) {
            return self.print(&item);
        }
        self.waiting.push(item);
        if self.waiting.len() < ALIGNED { Ok(()) } else { self.release() }
    }

    fn data(&mut self, _: u64, _: &mut Connection) -> Result<(), Stop> {
        Err(unexpected().into())
    }
}

impl Columns {
    fn widen(&mut self, item: &Listed) {
        self.nlink = self.nlink.max(item.nlink.to_string().len());
        self.uid = self.uid.max(item.uid.to_string().len());
        self.gid = self.gid.max(item.gid.to_string().len());
        self.size = self.size.max(size(item).len());
    }

    fn line(&self, item: &Listed) -> String {
        let Self { nlink, uid, gid, size: width, .. } = *self;
        format!(
            "{} {:>nlink$} {:<uid$} {:<gid$} {:>width$} {}",
            mode(item),
            item.nlink,
            item.uid,
            item.gid,
            size(item),
            date(item.mtime)
        )
    }
}

/// The size, or a device's numbers in its place.
fn size(item: &Listed) -> String {
    match item.device {
        Some((major, minor)) => format!("{major}, {minor}"),
        None => item.size.to_string(),
    }
}

/// Type and permissions: `drwxr-xr-t`.
fn mode(item: &Listed) -> String {
    let kind = match item.kind.as_str() {
        "directory" => 'd',
        "file" => '-',
        "symlink" => 'l',
        "char-device" => 'c',
        "block-device" => 'b',
        "fifo" => 'p',
        _ => '?',
    };
    let bit = |mask: u16| item.mode & mask != 0;
    let letter = |mask, letter| if bit(mask) { letter } else { '-' };
    let execute = |mask, special, letter: char| match (bit(mask), bit(special)) {
        (true, true) => letter,
        (false, true) => letter.to_ascii_uppercase(),
        (true, false) => 'x',
        (false, false) => '-',
    };
    [
        kind,
        letter(0o400, 'r'),
        letter(0o200, 'w'),
        execute(0o100, 0o4000, 's'),
        letter(0o040, 'r'),
        letter(0o020, 'w'),
        execute(0o010, 0o2000, 's'),
        letter(0o004, 'r'),
        letter(0o002, 'w'),
        execute(0o001, 0o1000, 't'),
    ]
    .iter()
    .collect()
}

/// Date and time in UTC: `2024-02-29 23:59`. Any number of seconds has one, however absurd.
pub(super) fn date(seconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days since 0000-03-01 in the proleptic Gregorian calendar, whose cycle of 400 years has 146,097 days; with years
    // that begin in March the leap day is the last one.
    let shifted = days + 719_468;
    let (cycle, day) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, next_year) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = cycle * 400 + year + next_year;
    format!("{year:04}-{month:02}-{day_of_month:02} {:02}:{:02}", second / 3600, second / 60 % 60)
}

/// Names for programs: one JSON array.
struct JsonListing {
    output: Output,
    count: u64,
}

/// One name in JSON. Bytes that are not UTF-8 are given in base64 under another key.
#[derive(Serialize)]
struct Item<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_base64: Option<String>,
    kind: &'a str,
    mode: u16,
    nlink: u32,
    uid: u32,
    gid: u32,
    size: u64,
    mtime: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<(u32, u32)>,
}

impl<'a> Item<'a> {
    fn new(item: &'a Listed) -> Self {
        let (path, path_base64) = text_or_base64(&item.path);
        let (target, target_base64) = match item.kind.as_str() {
            "symlink" => text_or_base64(&item.target),
            _ => (None, None),
        };
        let Listed { mode, nlink, uid, gid, size, mtime, device, .. } = *item;
        Self { path, path_base64, kind: &item.kind, mode, nlink, uid, gid, size, mtime, target, target_base64, device }
    }
}

pub(super) fn text_or_base64(bytes: &[u8]) -> (Option<&str>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text), None),
        Err(_) => (None, Some(BASE64_STANDARD.encode(bytes))),
    }
}

impl JsonListing {
    fn finish(mut self) -> Result<(), Stop> {
        writeln!(self.output, "{}", if self.count == 0 { "[]" } else { "\n]" })?;
        self.output.finish()
    }
}

impl Sink for JsonListing {
    fn item(&mut self, item: Listed) -> Result<(), Stop> {
        let text = serde_json::to_string_pretty(&Item::new(&item)).map_err(|error| Stop::output(&error.into()))?;
        let before = if self.count == 0 { "[" } else { "," };
        self.count += 1;
        // Line breaks inside strings are escaped, so that every one here is between fields.
        write!(self.output, "{before}\n  {}", text.replace('\n', "\n  "))
    }

    fn data(&mut self, _: u64, _: &mut Connection) -> Result<(), Stop> {
        Err(unexpected().into())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn item(kind: &str, mode: u16) -> Listed {
        Listed {
            path: b"usr/\xff".to_vec(),
            kind: kind.to_owned(),
            mode,
            nlink: 1,
            uid: 0,
            gid: 1000,
            size: 5,
            mtime: 0,
            target: b"a/b".to_vec(),
            device: None,
        }
    }

    #[test]
    fn modes_are_written_as_ls_does() {
        let cases = [
            ("directory", 0o1777, "drwxrwxrwt"),
            ("directory", 0o1776, "drwxrwxrwT"),
            ("file", 0o4755, "-rwsr-xr-x"),
            ("file", 0o6644, "-rwSr-Sr--"),
            ("file", 0o2711, "-rwx--s--x"),
            ("symlink", 0o777, "lrwxrwxrwx"),
            ("char-device", 0o620, "crw--w----"),
            ("block-device", 0o660, "brw-rw----"),
            ("fifo", 0, "p---------"),
        ];
        for (kind, mode_bits, expected) in cases {
            assert_eq!(mode(&item(kind, mode_bits)), expected);
        }
    }

    #[test]
    fn dates_are_gregorian_and_utc() {
        let cases = [
            (0, "1970-01-01 00:00"),
            (-1, "1969-12-31 23:59"),
            (951_782_399, "2000-02-28 23:59"),
            (951_868_799, "2000-02-29 23:59"),
            (1_709_251_199, "2024-02-29 23:59"),
            (4_107_542_400, "2100-03-01 00:00"),
            (253_402_300_800, "10000-01-01 00:00"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(date(seconds), expected);
        }
    }

    proptest! {
        #[test]
        fn every_number_of_seconds_has_a_date_and_dates_follow_each_other(seconds: i64) {
            prop_assert!(date(seconds).len() >= "1970-01-01 00:00".len());
            let day = i64::from(seconds as i32).div_euclid(86_400) * 86_400;
            let (today, tomorrow) = (date(day), date(day + 86_400));
            prop_assert!(today < tomorrow || today.len() != tomorrow.len(), "{} {}", today, tomorrow);
        }
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_name() {
        let mut columns = Columns::default();
        let device = Listed { device: Some((8, 16)), ..item("block-device", 0o660) };
        columns.widen(&item("file", 0o644));
        columns.widen(&device);
        assert_eq!(columns.line(&item("file", 0o644)), "-rw-r--r-- 1 0 1000     5 1970-01-01 00:00");
        assert_eq!(columns.line(&device), "brw-rw---- 1 0 1000 8, 16 1970-01-01 00:00");
    }

    #[test]
    fn json_keeps_every_byte_of_a_name() {
        let link = serde_json::to_value(Item::new(&item("symlink", 0o777))).expect("JSON");
        assert_eq!(link["path_base64"], "dXNyL/8=");
        assert_eq!(link["target"], "a/b");
        assert!(link.get("path").is_none() && link.get("device").is_none());
        let file = serde_json::to_value(Item::new(&item("file", 0o644))).expect("JSON");
        assert!(file.get("target").is_none());
    }
}
