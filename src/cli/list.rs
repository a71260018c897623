//! `ocifs list`: what is mounted.

use super::context::Context;
use super::output::Output;
use super::stop::Stop;
use super::table::{Column, Rows, percent, short_digest, size};
use crate::daemon::control::{MountReport, Request};
use crate::oci::Printable;

const EXAMPLES: &str = "\
Examples:
  ocifs list
  ocifs list --json";

/// List what is mounted
///
/// Shows the mounts of the daemon of this cache directory. Never starts one: without a daemon there are no mounts.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Args {
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

/// Lists.
pub(super) fn run(args: &Args, context: &Context) -> Result<(), Stop> {
    let mounts: Vec<MountReport> = context.ask_if_running(&Request::List)?.unwrap_or_default();
    let mut output = Output::new();
    if args.json {
        output.json(&mounts)?;
    } else if !mounts.is_empty() {
        write!(output, "{}", table(&mounts))?;
    }
    output.finish()
}

fn table(mounts: &[MountReport]) -> Rows {
    let mut rows = Rows::new(&[
        Column::Text("DIR"),
        Column::Text("IMAGE"),
        Column::Text("DIGEST"),
        Column::Text("PLATFORM"),
        Column::Number("SIZE"),
        Column::Number("LOCAL"),
    ]);
    for mount in mounts {
        rows.add([
            Printable::path(&mount.dir).to_string(),
            Printable::of(&mount.reference).to_string(),
            Printable::of(short_digest(&mount.digest)).to_string(),
            Printable::of(&mount.platform).to_string(),
            size(mount.bytes_needed),
            percent(mount.bytes_local, mount.bytes_needed),
        ]);
    }
    rows
}
