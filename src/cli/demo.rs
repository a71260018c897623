//! `ocifs demo`: what ocifs does, on an image of its own.

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::ValueHint;

use super::environment::Environment;
use super::output::Output;
use super::settings::settled;
use super::stop::Stop;
use crate::daemon::{Failure, Program};
use crate::demo::{self, Demo};

const EXAMPLES: &str = "\
Examples:
  ocifs demo              # mounts below the temporary directory
  ocifs demo /mnt         # mounts on an empty directory of yours";

/// Show what ocifs does on a small image of its own
///
/// Makes an image of three layers from files of this machine, serves it from a registry on the loopback interface, mounts
/// it, runs a command from it, and tells what was read and what was never fetched. Needs no network and no account, and
/// leaves nothing behind. On a terminal the image stays mounted until Enter or Ctrl-C.
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Args {
    /// The mount point, an empty directory; without it, one is made
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    dir: Option<PathBuf>,
}

/// Runs the demo.
pub(super) fn run(args: Args, environment: &Environment) -> Result<(), Stop> {
    let path = std::env::current_exe().map_err(|error| Failure::io("cannot find this program", &error))?;
    let program = |command: &str| Program { path: path.clone(), arguments: vec![command.into()] };
    let demo = Demo {
        dir: args.dir.as_deref().map(settled).transpose()?,
        temporary: environment.temporary(),
        daemon: program("daemon"),
        enter: program("enter"),
        interactive: std::io::stdin().is_terminal() && std::io::stdout().is_terminal(),
    };
    let mut output = Output::new();
    demo::run(&demo, output.raw())?;
    output.finish()
}
