//! `ocifs list`: what is mounted.

use std::time::Duration;

use super::context::Context;
use super::output::Output;
use super::stop::{Stop, warn};
use super::table::{Column, Rows, percent, short_digest, size};
use crate::daemon::control::{MountReport, Request};
use crate::fuse;
use crate::oci::Printable;

/// How long other daemons may take to show that they are alive.
const ANSWER: Duration = Duration::from_secs(1);

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
    warn_of_abandoned(&mounts, context);
    let mut output = Output::new();
    if args.json {
        output.json(&mounts)?;
    } else if !mounts.is_empty() {
        write!(output, "{}", table(&mounts))?;
    }
    output.finish()
}

/// Tells of mounts that no daemon serves any more. Whose cache directory they were of is not known.
pub(super) fn warn_of_abandoned(mounts: &[MountReport], context: &Context) {
    let served: Vec<_> = mounts.iter().map(|mount| mount.dir.clone()).collect();
    let (send, found) = std::sync::mpsc::channel();
    // A daemon that is alive but stopped does not answer, and nothing else here depends on it.
    let asking = std::thread::Builder::new().spawn(move || send.send(fuse::abandoned(&served)).ok());
    let found = asking.ok().and_then(|_| found.recv_timeout(ANSWER).ok());
    for dir in found.and_then(Result::ok).unwrap_or_default() {
        let dir = Printable::path(&dir);
        let text =
            format!("the daemon of the mount {dir} is gone, and reading it fails; `ocifs umount {dir}` removes it");
        warn(&context.environment, &text);
    }
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
