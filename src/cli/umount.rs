//! `ocifs umount`: end a mount.

use std::path::PathBuf;

use clap::ValueHint;

use super::context::Context;
use super::settings::settled;
use super::stop::Stop;
use crate::daemon::control::Request;
use crate::daemon::{Code, unmount_without_daemon};

const EXAMPLES: &str = "\
Examples:
  ocifs umount /mnt/debian
  ocifs umount --lazy /mnt/debian    # also if it is in use";

/// End a mount
///
/// A mount that is in use stays, and the message says who uses it. A mount whose daemon is gone is removed as well. What
/// was fetched stays in the cache.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Args {
    /// The mount point
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    dir: PathBuf,

    /// Detach the mount at once; whoever uses it may finish
    #[arg(long)]
    lazy: bool,
}

/// Unmounts.
pub(super) fn run(args: &Args, context: &Context) -> Result<(), Stop> {
    let dir = settled(&args.dir)?;
    // Whoever stands in the mount uses it; this program need not.
    if let Err(error) = std::env::set_current_dir("/") {
        tracing::debug!(%error, "this process stays where it was started");
    }
    let request = Request::Unmount { dir: dir.clone(), lazy: args.lazy };
    match context.ask_if_running::<serde_json::Value>(&request) {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Ok(unmount_without_daemon(&dir, args.lazy)?),
        // It may be left by a daemon that was killed, or belong to one of another cache directory.
        Err(Stop::Failed(failure)) if failure.code == Code::NotFound => Ok(unmount_without_daemon(&dir, args.lazy)?),
        Err(stop) => Err(stop),
    }
}
