//! `ocifs cache`: what the cache holds, making room, checking it, and carrying parts of it elsewhere ([`parcel`]).

use clap::Subcommand;

use super::context::Context;
use super::output::Output;
use super::parcel;
use super::progress::Meter;
use super::stop::{Stop, warn};
use super::table::{Column, Rows, count, size};
use crate::daemon::control::{self, CacheReport, DropReport, Kept, Request, Usage, UsedBy, VerifyReport};
use crate::daemon::{Code, Failure};
use crate::oci::Printable;

const EXAMPLES: &str = "\
Examples:
  ocifs cache du
  ocifs cache drop             # layers and files; what makes mounts lazy stays
  ocifs cache verify
  ocifs cache export debian:12 debian.parcel
  ocifs cache import debian.parcel";

/// Show, empty, check and carry the cache
///
/// The cache is bound to contents, not to names: an image mounted by another tag or from another registry finds all it
/// has in common with those before.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show how much the cache holds
    #[command(after_long_help = "Examples:\n  ocifs cache du\n  ocifs cache du --json")]
    Du {
        /// Print JSON for programs
        #[arg(long)]
        json: bool,
    },
    Drop(What),
    /// Check every object of the cache
    ///
    /// Objects that are not what their names say are removed; they are fetched again when they are needed. The exit
    /// code is 9 if there were any.
    #[command(after_long_help = "Examples:\n  ocifs cache verify\n  ocifs cache verify --json")]
    Verify {
        /// Print JSON for programs
        #[arg(long)]
        json: bool,
    },
    Export(parcel::Export),
    Import(parcel::Import),
}

/// Remove what no mount uses
///
/// Without an option, layers and files are removed; indexes stay, so that the next mount of the same image is lazy.
/// What is still in use stays, and is told.
#[derive(Debug, Clone, Copy, clap::Args)]
#[command(
    after_long_help = "Examples:\n  ocifs cache drop\n  ocifs cache drop --files\n  ocifs cache drop --all --json"
)]
struct What {
    /// Remove compressed layers
    #[arg(long)]
    blobs: bool,

    /// Remove decoded files
    #[arg(long)]
    files: bool,

    /// Remove layer indexes and merged trees, so that the next mount streams its layers again
    #[arg(long)]
    indexes: bool,

    /// Remove everything, manifests, what tags meant and profiles as well
    #[arg(long)]
    all: bool,

    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

impl From<What> for control::Drop {
    fn from(what: What) -> Self {
        let default = !(what.blobs || what.files || what.indexes || what.all);
        Self {
            blobs: what.blobs || what.all || default,
            files: what.files || what.all || default,
            indexes: what.indexes || what.all,
            documents: what.all,
        }
    }
}

/// Does what was asked for.
pub(super) fn run(args: &Args, context: &Context) -> Result<(), Stop> {
    match &args.action {
        Action::Du { json } => show_usage(*json, context),
        Action::Drop(what) => remove(*what, context),
        Action::Verify { json } => verify(*json, context),
        Action::Export(args) => parcel::export(args, context),
        Action::Import(args) => parcel::import(args, context),
    }
}

fn show_usage(json: bool, context: &Context) -> Result<(), Stop> {
    let report: CacheReport = context.ask(&Request::CacheUsage, &Meter::hidden())?;
    if let Some(text) = control::other_cache_size(report.limit, context.settings.cache_size) {
        warn(&context.environment, &text);
    }
    let mut output = Output::new();
    if json {
        output.json(&report)?;
    } else {
        write!(output, "{}\n\n{}", Printable::path(&report.dir), usage_table(&report))?;
        if let Some(limit) = report.limit {
            writeln!(output, "\n{} of {} used", size(report.used), size(limit))?;
        }
    }
    output.finish()
}

fn usage_table(report: &CacheReport) -> Rows {
    let mut rows = Rows::new(&[Column::Text("PART"), Column::Number("OBJECTS"), Column::Number("SIZE")]);
    let parts = [
        ("layers", report.blobs),
        ("files", report.files),
        ("indexes", report.indexes),
        ("trees", report.trees),
        ("manifests", report.manifests),
        ("profiles", report.profiles),
        ("decoded", report.decoded),
    ];
    let mut total = Usage::default();
    for (name, usage) in parts {
        rows.add([name.to_owned(), usage.count.to_string(), size(usage.bytes)]);
        total.count += usage.count;
        total.bytes += usage.bytes;
    }
    rows.add(["total".to_owned(), total.count.to_string(), size(total.bytes)]);
    rows
}

fn remove(what: What, context: &Context) -> Result<(), Stop> {
    let report: DropReport = context.ask(&Request::CacheDrop(what.into()), &Meter::hidden())?;
    let mut output = Output::new();
    if what.json {
        output.json(&report)?;
    } else {
        writeln!(output, "removed {}, {}", count(report.removed.count, "object"), size(report.removed.bytes))?;
        for kept in &report.kept {
            writeln!(output, "{}", describe(kept))?;
        }
    }
    output.finish()
}

/// What stayed of a part of the cache, and why.
fn describe(kept: &Kept) -> String {
    let why = match kept.used_by {
        UsedBy::Mount => "mounted",
        UsedBy::EndedMount => "unmounted, but a process or another mount namespace still has it",
        UsedBy::Reader => "being read",
    };
    let (number, part) = (kept.usage.count, &kept.part);
    format!("kept {part}: {}, {}: {why}", count(number, "object"), size(kept.usage.bytes))
}

fn verify(json: bool, context: &Context) -> Result<(), Stop> {
    let meter = Meter::new("checking the cache".to_owned());
    let report: Result<VerifyReport, _> = context.ask(&Request::CacheVerify, &meter);
    meter.clear();
    let report = report?;
    let mut output = Output::new();
    if json {
        output.json(&report)?;
    } else {
        writeln!(output, "{} good, {} damaged", count(report.good, "object"), report.removed.len())?;
        for path in &report.removed {
            writeln!(output, "removed {}", Printable::of(path))?;
        }
    }
    output.finish()?;
    match report.removed.len() as u64 {
        0 => Ok(()),
        damaged => Err(Failure::new(Code::Cache, "the cache was damaged")
            .because(format!("{} had other contents than their names say", count(damaged, "object")))
            .hint("they were removed and are fetched again when needed; check the disk")
            .into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: What = What { blobs: false, files: false, indexes: false, all: false, json: false };

    #[test]
    fn what_stays_is_told_with_its_reason() {
        let kept = |used_by| Kept { part: "layers".to_owned(), usage: Usage { count: 2, bytes: 3 << 20 }, used_by };
        assert_eq!(describe(&kept(UsedBy::Mount)), "kept layers: 2 objects, 3.0 MiB: mounted");
        assert!(
            describe(&kept(UsedBy::EndedMount))
                .ends_with(": unmounted, but a process or another mount namespace still has it")
        );
        let json = serde_json::to_value(kept(UsedBy::EndedMount)).expect("JSON");
        let wanted = serde_json::json!({"part": "layers", "count": 2, "bytes": 3 << 20, "used_by": "ended-mount"});
        assert_eq!(json, wanted);
    }

    #[test]
    fn dropping_keeps_indexes_unless_they_are_named() {
        let bytes = control::Drop { blobs: true, files: true, indexes: false, documents: false };
        assert_eq!(control::Drop::from(NOTHING), bytes);
        let indexes = What { indexes: true, ..NOTHING };
        assert_eq!(control::Drop::from(indexes), control::Drop { indexes: true, ..control::Drop::default() });
        let all = control::Drop { blobs: true, files: true, indexes: true, documents: true };
        assert_eq!(control::Drop::from(What { all: true, ..NOTHING }), all);
    }
}
