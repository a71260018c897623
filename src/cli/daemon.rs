//! `ocifs daemon`: what a client starts when there is no daemon; not for people.
//!
//! The client waits for one line on this process's standard output. From then on nothing may be written there, so the
//! pipe is taken away before anything else happens.

use std::fs::DirEntry;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::context::Context;
use super::logging;
use super::stop::Stop;
use crate::daemon::{self, Failure, Options};

/// Serve mounts until there are none (started by other commands)
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub(super) struct Args {
    /// End after this long without a mount and without a client
    #[arg(long, value_name = "SECONDS")]
    idle: Option<u64>,
}

/// Serves.
pub(super) fn run(args: &Args, context: &Context) -> Result<(), Stop> {
    close_inherited().map_err(|error| Failure::io("cannot close what other programs have open", &error))?;
    let ready = take_stdout().map_err(|error| Failure::io("cannot take standard output", &error))?;
    logging::start(&context.environment, false);
    // Signals for the terminal's foreground processes are not for the daemon. Who starts it as a session's leader
    // already has what this is for.
    if let Err(error) = rustix::process::setsid() {
        tracing::debug!(%error, "this process leads its group already");
    }
    daemon::make_runtime_dir(&context.settings.runtime_dir)?;
    let mut options = options(context);
    options.idle = args.idle.map_or(options.idle, |seconds| Some(Duration::from_secs(seconds)));
    daemon::run(&options, Some(ready), None)?;
    Ok(())
}

/// The daemon's options by the settings.
pub(super) fn options(context: &Context) -> Options {
    let settings = &context.settings;
    Options {
        cache_dir: settings.cache_dir.clone(),
        cache_size: settings.cache_size,
        memory_size: settings.memory_size,
        runtime_dir: settings.runtime_dir.clone(),
        idle: Some(settings.idle),
    }
}

/// Closes all descriptors but the three standard ones.
///
/// Programs leak descriptors to what they start, on purpose as flock(1) does with its lock, or not; the daemon outlives
/// them, and would keep their locks, their pipes and their deleted files.
fn close_inherited() -> io::Result<()> {
    let number = |entry: io::Result<DirEntry>| Ok(entry?.file_name().to_str().and_then(|name| name.parse().ok()));
    // The descriptor by which they are listed is among them, and closed with the listing.
    let open = std::fs::read_dir("/proc/self/fd")?.map(number).collect::<io::Result<Vec<Option<i32>>>>()?;
    for number in open.into_iter().flatten().filter(|number| *number > 2) {
        // SAFETY: this is the first thing that the only thread of this process does, so nothing in it owns a descriptor.
        let closed = unsafe { libc::close(number) };
        if closed != 0 {
            tracing::trace!(number, "the descriptor was closed before");
        }
    }
    Ok(())
}

/// Moves standard output to a descriptor that no child inherits, and leaves the log in its place.
fn take_stdout() -> io::Result<OwnedFd> {
    let ready = io::stdout().as_fd().try_clone_to_owned()?;
    rustix::stdio::dup2_stdout(io::stderr())?;
    Ok(ready)
}
