//! `ocifs demo`: what ocifs does, on an image of its own.

use std::io::{self, IsTerminal, Write};
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
        temporary: settled(&environment.temporary())?,
        daemon: program("daemon"),
        enter: program("enter"),
        interactive: io::stdin().is_terminal() && io::stdout().is_terminal(),
    };
    let mut output = Output::new();
    let mut told = Told { out: output.raw(), refusal: None };
    match (demo::run(&demo, &mut told), told.refusal) {
        (Err(_), Some(error)) => Err(Stop::output(&error)),
        (Err(failure), None) => Err(failure.into()),
        (Ok(()), _) => output.finish(),
    }
}

/// Standard output, and why nothing more can be written there.
struct Told<'a> {
    out: &'a mut dyn Write,
    refusal: Option<io::Error>,
}

impl Told<'_> {
    fn noted<T>(&mut self, outcome: io::Result<T>) -> io::Result<T> {
        outcome.inspect_err(|error| self.refusal = Some(error.kind().into()))
    }
}

impl Write for Told<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let outcome = self.out.write(bytes);
        self.noted(outcome)
    }

    fn flush(&mut self) -> io::Result<()> {
        let outcome = self.out.flush();
        self.noted(outcome)
    }
}
