//! `ocifs profile`: what an image's start reads, shown and carried elsewhere.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::{Subcommand, ValueHint};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::context::Context;
use super::image::ImageArgs;
use super::interrupt::or_interrupted;
use super::ls::{date, text_or_base64};
use super::output::Output;
use super::progress::Meter;
use super::stop::{Stop, usage};
use super::table::{Column, Rows, count, percent, size};
use crate::daemon::control::{self, ProfileText, Request};
use crate::daemon::{Code, Failure};
use crate::limits::PROFILE_TEXT_BYTES;
use crate::oci::Printable;
use crate::profile::Profile;

const EXAMPLES: &str = "\
Examples:
  ocifs profile show debian:12
  ocifs profile export ghcr.io/owner/name:1.2 start.profile
  ocifs profile import ghcr.io/owner/name:1.3 start.profile
  ocifs profile rm debian:12";

/// Show, carry and remove what image starts read
///
/// Every mount records which parts of which files were read first, in order, until the start is over (see `ocifs mount
/// --profile-until`). The next mount that lacks them fetches them ahead, in that order. Profiles belong to an image's
/// manifest; one of another image, such as its previous version, does no harm: paths that do not exist are passed over.
///
/// The exported form is text: the lines `ocifs-profile 1`, `image DIGEST`, `recorded SECONDS`, `mount PATH`, `accesses
/// COUNT`, then one line `OFFSET LENGTH PATH` an access, in order; bytes that are not printable ASCII, blanks and
/// backslashes are written \xNN.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show the profile of an image
    #[command(after_long_help = "Examples:\n  ocifs profile show debian:12\n  ocifs profile show --json debian:12")]
    Show {
        #[command(flatten)]
        image: ImageArgs,

        /// Print JSON for programs
        #[arg(long)]
        json: bool,
    },
    /// Write the profile of an image as text
    #[command(after_long_help = "Examples:\n  ocifs profile export debian:12 > start.profile")]
    Export {
        #[command(flatten)]
        image: ImageArgs,

        /// The file to write; without it standard output
        #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
        file: Option<PathBuf>,
    },
    /// Replace the profile of an image
    ///
    /// The text is checked completely before it replaces anything.
    #[command(after_long_help = "Examples:\n  ocifs profile import debian:12 < start.profile")]
    Import {
        #[command(flatten)]
        image: ImageArgs,

        /// The file to read; without it standard input
        #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
        file: Option<PathBuf>,
    },
    /// Remove the profile of an image
    #[command(after_long_help = "Examples:\n  ocifs profile rm debian:12")]
    Rm {
        #[command(flatten)]
        image: ImageArgs,
    },
}

/// Does what was asked for.
pub(super) fn run(args: &Args, context: &Context) -> Result<(), Stop> {
    match &args.action {
        Action::Show { image, json } => show(&fetch(image, context)?, *json),
        Action::Export { image, file } => export(&fetch(image, context)?, file.as_deref()),
        Action::Import { image, file } => import(image, file.as_deref(), context),
        Action::Rm { image } => ask(image.request(context)?, Request::RemoveProfile, context),
    }
}

fn fetch(image: &ImageArgs, context: &Context) -> Result<ProfileText, Stop> {
    ask(image.request(context)?, Request::Profile, context)
}

/// Asks about an image, which may have to be looked up in its registry.
fn ask<T: DeserializeOwned + Send + 'static>(
    image: control::Image,
    request: impl FnOnce(control::Image) -> Request,
    context: &Context,
) -> Result<T, Stop> {
    let meter = Meter::looking_up(&image.reference);
    let (request, context, shown) = (request(image), context.clone(), meter.clone());
    let outcome = or_interrupted(move || context.ask(&request, &shown));
    meter.clear();
    outcome
}

fn show(report: &ProfileText, as_json: bool) -> Result<(), Stop> {
    let profile = Profile::parse(report.text.as_bytes())
        .map_err(|error| Failure::of(Code::Cache, &error).about("the stored profile cannot be read".to_owned()))?;
    let mut output = Output::new();
    if as_json {
        output.json(&json_of(report, &profile))?;
    } else {
        write!(output, "{}", text_of(report, &profile))?;
    }
    output.finish()
}

fn text_of(report: &ProfileText, profile: &Profile) -> String {
    let bytes = profile.bytes();
    let share = report.image_bytes.map_or_else(String::new, |all| format!(", {} of the image", percent(bytes, all)));
    let origin = profile.origin();
    let seconds = i64::try_from(origin.recorded).unwrap_or(i64::MAX);
    let accesses = profile.accesses().len() as u64;
    let mut text = String::new();
    let mut line = |label: &str, value: &str| text += &format!("{label:<9} {value}\n");
    line("digest", &Printable::of(&report.digest).to_string());
    let image = origin.image.to_string();
    if image != report.digest {
        line("from", &image);
    }
    line("recorded", &format!("{} UTC", date(seconds.min(1 << 40))));
    line("mount", &Printable::path(&origin.mount).to_string());
    // `access` has a plural of its own.
    let noun = if accesses == 1 { "access" } else { "accesses" };
    line("size", &format!("{} in {accesses} {noun} to {}{share}", size(bytes), count(profile.files(), "file")));
    text + "\n" + &table(profile).to_string()
}

fn table(profile: &Profile) -> Rows {
    let columns = [Column::Number("ORDER"), Column::Number("OFFSET"), Column::Number("SIZE"), Column::Text("PATH")];
    let mut rows = Rows::new(&columns);
    for (order, access) in (1..).zip(profile.accesses()) {
        rows.add([
            format!("{order}"),
            access.start().to_string(),
            size(access.end() - access.start()),
            format!("/{}", Printable(access.path())),
        ]);
    }
    rows
}

fn json_of(report: &ProfileText, profile: &Profile) -> serde_json::Value {
    let accesses = profile.accesses().iter().map(|access| {
        let (path, path_base64) = text_or_base64(access.path());
        let mut item = json!({ "offset": access.start(), "length": access.end() - access.start() });
        match path_base64 {
            Some(encoded) => item["path_base64"] = encoded.into(),
            None => item["path"] = path.into(),
        }
        item
    });
    json!({
        "digest": report.digest,
        "recorded_of": profile.origin().image.to_string(),
        "recorded": profile.origin().recorded,
        "mount": profile.origin().mount.to_string_lossy(),
        "bytes": profile.bytes(),
        "image_bytes": report.image_bytes,
        "files": profile.files(),
        "accesses": accesses.collect::<Vec<_>>(),
    })
}

fn export(report: &ProfileText, file: Option<&Path>) -> Result<(), Stop> {
    let Some(file) = file else {
        let mut output = Output::new();
        write!(output, "{}", report.text)?;
        return output.finish();
    };
    fs::write(file, &report.text)
        .map_err(|error| Failure::io(&format!("cannot write {}", Printable::path(file)), &error).into())
}

fn import(image: &ImageArgs, file: Option<&Path>, context: &Context) -> Result<(), Stop> {
    let name = file.map_or_else(|| "standard input".to_owned(), |file| Printable::path(file).to_string());
    let text = read(file).map_err(|error| Failure::io(&format!("cannot read {name}"), &error).coded(Code::Usage))?;
    // Told before a daemon is started for it.
    let profile = Profile::parse(&text).map_err(|error| {
        usage(format!("cannot import the profile in {name}"), error)
            .hint("`ocifs profile export` writes what can be imported")
    })?;
    let import = |image| Request::ImportProfile { image, text: profile.to_text() };
    ask(image.request(context)?, import, context)
}

/// Reads no more than a profile may have, and one byte that shows that there is more.
fn read(file: Option<&Path>) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let limit = PROFILE_TEXT_BYTES as u64 + 1;
    match file {
        Some(file) => fs::File::open(file)?.take(limit).read_to_end(&mut text)?,
        None => io::stdin().lock().take(limit).read_to_end(&mut text)?,
    };
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;
    use crate::profile::{Access, Origin};

    fn report() -> (ProfileText, Profile) {
        let origin = Origin { image: Digest::sha256(b"old"), recorded: 1_600_000_000, mount: "/mnt/\u{1b}x".into() };
        let accesses = [Access::new(b"bin/app".to_vec(), 0, 2048), Access::new(b"caf\xe9\n".to_vec(), 100, 101)];
        let profile = Profile::new(origin, accesses.into_iter().flatten());
        let digest = Digest::sha256(b"new").to_string();
        (ProfileText { digest, image_bytes: Some(20_490), text: profile.to_text() }, profile)
    }

    #[test]
    fn a_profile_is_shown_in_its_order_and_escaped() {
        let (report, profile) = report();
        let expected = format!(
            "\
digest    {}
from      {}
recorded  2020-09-13 12:26 UTC
mount     /mnt/\\x1bx
size      2.0 KiB in 2 accesses to 2 files, 10 % of the image

ORDER  OFFSET     SIZE  PATH
    1       0  2.0 KiB  /bin/app
    2     100      1 B  /caf\\xe9\\n
",
            report.digest,
            profile.origin().image
        );
        assert_eq!(text_of(&report, &profile), expected);
    }

    #[test]
    fn json_keeps_every_byte_of_a_path() {
        let (report, profile) = report();
        let json = json_of(&report, &profile);
        assert_eq!(json["accesses"][0], json!({ "offset": 0, "length": 2048, "path": "bin/app" }));
        assert_eq!(json["accesses"][1], json!({ "offset": 100, "length": 1, "path_base64": "Y2Fm6Qo=" }));
        assert_eq!((json["bytes"].as_u64(), json["image_bytes"].as_u64()), (Some(2049), Some(20_490)));
    }
}
