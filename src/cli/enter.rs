//! `ocifs enter`: run a command with another root directory; what the demo runs commands of its image with.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use super::stop::Stop;
use crate::daemon::Failure;
use crate::oci::Printable;

/// Run a command with DIR as its root directory (used by the demo)
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub(super) struct Args {
    /// The new root directory
    #[arg(value_name = "DIR")]
    dir: PathBuf,

    /// The command, with its arguments
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// Becomes the command; returns only if that fails.
pub(super) fn run(args: &Args) -> Result<(), Stop> {
    let dir = Printable::path(&args.dir);
    rustix::process::chroot(&args.dir)
        .and_then(|()| rustix::process::chdir("/"))
        .map_err(|error| Failure::io(&format!("cannot make {dir} the root directory"), &error.into()))?;
    let Some((program, arguments)) = args.command.split_first() else { return Ok(()) };
    let error = Command::new(program).args(arguments).env_clear().env("PATH", "/bin:/usr/bin").exec();
    Err(Failure::io(&format!("cannot run {}", Printable::of(program.as_encoded_bytes())), &error).into())
}
