//! `ocifs cache export` and `ocifs cache import`: what an image has touched of the cache, as one file for CI caches.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use clap::ValueHint;

use super::context::{Context, Sink, unexpected};
use super::image::CachedImageArgs;
use super::interrupt::or_interrupted;
use super::output::Output;
use super::progress::Meter;
use super::stop::{Stop, usage};
use super::table::{count, size};
use super::trust::TrustArgs;
use crate::daemon::control::{ImportReport, Listed, Request, Selection};
use crate::daemon::{Code, Connection, Failure};
use crate::oci::Printable;

/// Write what the cache has of an image to one file
///
/// The file holds the image's manifests, the indexes of its layers, its profile, and those parts of its layers that were
/// read in its mounts, each verified once more: neither what was fetched ahead of readers nor what fill brought. After `ocifs
/// cache import` on another machine the image can be mounted there, also with --offline. A tag is taken as this cache saw it
/// last; nothing is asked of a registry. Equal contents make equal files.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  ocifs cache export debian:12 debian.parcel
  ocifs cache export --profile ghcr.io/owner/name:1.2 start.parcel   # only what its start reads
  ocifs cache export --all debian:12 debian.parcel                   # whatever is here of it
  ocifs cache export debian:12 - | ssh host ocifs cache import -")]
pub(super) struct Export {
    // Nobody is asked, so there is nothing to say about how.
    #[command(flatten)]
    image: CachedImageArgs,

    /// Only what the image's profile names, whoever recorded it
    #[arg(long, conflicts_with = "all")]
    profile: bool,

    /// Everything that the cache has of the image
    #[arg(long)]
    all: bool,

    // As when it was mounted.
    #[command(flatten)]
    trust: TrustArgs,

    /// The file to write; - for standard output
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    file: PathBuf,
}

/// Take what `ocifs cache export` wrote into the cache
///
/// Whatever can be verified is: manifests and whole layers by their digests, parts of layers against the index of
/// their layer. But a file that holds a layer in parts also brings its index, and nothing can prove that before all of
/// the layer is here: until then it says which files the image has, and of which verified bytes they are made. What a tag
/// means to --offline comes from the file as well. So import only what was written by somebody whom you trust with the
/// image. Nothing that this cache found out by itself is replaced, and what was imported before an interruption is good.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  ocifs cache import debian.parcel
  ocifs cache import - < debian.parcel")]
pub(super) struct Import {
    /// The file to read; - for standard input
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    file: PathBuf,

    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

impl Export {
    fn selection(&self) -> Selection {
        match () {
            () if self.profile => Selection::Profile,
            () if self.all => Selection::All,
            () => Selection::Touched,
        }
    }
}

/// Exports.
pub(super) fn export(args: &Export, context: &Context) -> Result<(), Stop> {
    let image = args.image.believing(&args.trust, context)?;
    let file = named(&args.file);
    if file.is_none() && io::stdout().is_terminal() {
        return Err(usage("cannot write a parcel to a terminal", "it is no text")
            .hint("name a file, or send standard output to one")
            .into());
    }
    let meter = Meter::new(format!("exporting {}", Printable::of(&image.reference)));
    let request = Request::CacheExport { image, selection: args.selection() };
    let draft = Arc::new(OnceLock::new());
    let (work, shown, known) = (context.clone(), meter.clone(), Arc::clone(&draft));
    let name = file.map(Path::to_owned);
    let outcome = or_interrupted(move || {
        let mut target = Target { name, out: None, draft: known };
        work.ask_beside(&request, &shown, &mut target)?;
        target.finish()
    });
    meter.clear();
    // Half a parcel is good for nothing.
    if let (Err(_), Some(draft)) = (&outcome, draft.get())
        && let Err(error) = fs::remove_file(draft)
    {
        tracing::debug!(%error, "an unfinished parcel is left behind");
    }
    outcome
}

/// The path of a file, none for the standard stream.
fn named(file: &Path) -> Option<&Path> {
    (file != Path::new("-")).then_some(file)
}

/// Standard output as a destination like any other.
struct Standard(Output);

impl Write for Standard {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.raw().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.raw().flush()
    }
}

/// Where a parcel goes. A file is touched only once there is something to write, and what was in it before is there until
/// the parcel is complete.
struct Target {
    /// None for standard output.
    name: Option<PathBuf>,
    out: Option<Box<dyn Write>>,
    /// The file beside it that is written to, once there is one.
    draft: Arc<OnceLock<PathBuf>>,
}

impl Target {
    fn open(&self) -> io::Result<Box<dyn Write>> {
        let Some(file) = &self.name else { return Ok(Box::new(Standard(Output::new()))) };
        let known = match fs::metadata(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            known => Some(known?),
        };
        // What is no regular file, such as a pipe, cannot be replaced.
        if known.as_ref().is_some_and(|known| !known.is_file()) {
            return Ok(Box::new(File::options().write(true).open(file)?));
        }
        let draft = draft_of(file);
        let out = File::create_new(&draft)?;
        let draft = self.draft.get_or_init(|| draft);
        if let Some(known) = known {
            fs::set_permissions(draft, known.permissions())?;
        }
        Ok(Box::new(out))
    }

    fn finish(self) -> Result<(), Stop> {
        let Self { name, out, draft } = self;
        let finished = out.map_or(Ok(()), |mut out| out.flush()).and_then(|()| match (&name, draft.get()) {
            (Some(file), Some(draft)) => fs::rename(draft, settled(file)),
            _ => Ok(()),
        });
        finished.map_err(|error| refused(name.as_deref(), &error))
    }
}

/// The file that a link leads to: the link is to stay.
fn settled(file: &Path) -> PathBuf {
    file.canonicalize().unwrap_or_else(|_| file.to_owned())
}

/// Where `file` is written before it is complete: in the same directory, because renaming works only within a file system.
fn draft_of(file: &Path) -> PathBuf {
    let file = settled(file);
    let mut name = OsString::from(".");
    name.push(file.file_name().unwrap_or_default());
    name.push(format!(".{}.part", std::process::id()));
    file.with_file_name(name)
}

/// What a failed write means.
fn refused(file: Option<&Path>, error: &io::Error) -> Stop {
    match file {
        None => Stop::output(error),
        Some(file) => Failure::io(&format!("cannot write {}", Printable::path(file)), error).into(),
    }
}

impl Sink for Target {
    fn item(&mut self, _: Listed) -> Result<(), Stop> {
        Err(unexpected().into())
    }

    fn data(&mut self, length: u64, connection: &mut Connection) -> Result<(), Stop> {
        if self.out.is_none() {
            self.out = Some(self.open().map_err(|error| refused(self.name.as_deref(), &error))?);
        }
        let Some(out) = &mut self.out else { return Ok(()) };
        connection.copy(length, out).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
                Failure::io("lost the daemon", &error).into()
            }
            _ => refused(self.name.as_deref(), &error),
        })
    }
}

/// Imports.
pub(super) fn import(args: &Import, context: &Context) -> Result<(), Stop> {
    let file = named(&args.file);
    let name = file.map_or_else(|| "standard input".to_owned(), |file| Printable::path(file).to_string());
    let cannot_read = {
        let name = name.clone();
        move |error: &io::Error| {
            let failure = Failure::io(&format!("cannot read {name}"), error);
            match error.kind() {
                io::ErrorKind::NotFound => failure.coded(Code::NotFound),
                io::ErrorKind::PermissionDenied => failure,
                _ => failure.coded(Code::Usage),
            }
        }
    };
    // Before a daemon is started for it.
    let (input, length): (Box<dyn Read + Send>, _) = match file {
        None => (Box::new(io::stdin()), None),
        Some(file) => {
            let file = File::open(file).map_err(|error| cannot_read(&error))?;
            let metadata = file.metadata().map_err(|error| cannot_read(&error))?;
            (Box::new(file), metadata.is_file().then_some(metadata.len()))
        }
    };
    let meter = Meter::new(format!("importing {name}"));
    meter.expect(length);
    let (work, shown) = (context.clone(), meter.clone());
    let outcome = or_interrupted(move || {
        let mut input = Shown { input, meter: shown.clone() };
        work.send(&Request::CacheImport, &mut input, &shown, |error| cannot_read(error).into())
    });
    meter.clear();
    let report: ImportReport = outcome.map_err(|stop| match stop {
        Stop::Failed(failure) => Failure::about(*failure, format!("cannot import {name}")).into(),
        other => other,
    })?;
    let mut output = Output::new();
    if args.json {
        output.json(&report)?;
    } else {
        writeln!(output, "{}", text_of(&report))?;
    }
    output.finish()
}

fn text_of(report: &ImportReport) -> String {
    let profile = if report.profile { ", with a profile" } else { "" };
    let what = report.reference.as_ref().map_or_else(|| "an image".to_owned(), |name| Printable::of(name).to_string());
    format!("imported {what}: {} of {}{profile}", size(report.bytes), count(report.layers, "layer"))
}

/// Input whose progress is shown.
struct Shown {
    input: Box<dyn Read + Send>,
    meter: Meter,
}

impl Read for Shown {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.meter.advance(count as u64);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_import_is_told_in_one_line_without_control_characters() {
        let report = ImportReport { reference: Some("a/b\u{1b}:1".to_owned()), layers: 2, bytes: 2048, profile: true };
        assert_eq!(text_of(&report), "imported a/b\\x1b:1: 2.0 KiB of 2 layers, with a profile");
        let report = ImportReport { reference: None, layers: 1, bytes: 0, profile: false };
        assert_eq!(text_of(&report), "imported an image: 0 B of 1 layer");
    }
}
