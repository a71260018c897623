//! The command line: what users type, and what they read.
//!
//! All work is done by the daemon; a command turns arguments into a [`control`](crate::daemon::control) request and the
//! answer into text. Four things stand between the two, one file each: `args` is what was typed, `settings` is what it
//! means once environment and configuration files are added, `context` talks to the daemon, and `stop` shows why a
//! command could not do its work. Every command has a file of its own with its arguments and its `run`.
//!
//! This is the only module that reads the environment, the home directory and configuration files, and the only one
//! that writes to standard output.

mod args;
mod byte_size;
mod cache;
mod cat;
mod completions;
mod config_file;
mod context;
mod credentials;
mod daemon;
mod demo;
mod duration;
mod enter;
mod environment;
mod help;
mod hosts;
mod image;
mod index;
mod inspect;
mod interrupt;
mod list;
mod logging;
mod ls;
mod man;
mod mount;
mod output;
mod parcel;
mod paths;
mod profile;
mod progress;
mod references;
mod settings;
mod status;
mod stop;
mod table;
mod trust;
mod umount;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

use self::args::{Args, Command};
use self::context::Context;
use self::environment::Environment;
use self::stop::Stop;

/// Runs the program with the arguments of this process, and returns its exit code.
pub fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => return say(&error),
    };
    let environment = Environment::of_process();
    match run(args, &environment) {
        Ok(()) => ExitCode::SUCCESS,
        Err(stop) => stop.report(&environment),
    }
}

/// Says what clap found: help on standard output, or what is wrong with the arguments on standard error.
fn say(found: &clap::Error) -> ExitCode {
    match found.print().and_then(|()| io::stdout().flush()) {
        // Without standard error there is nobody to tell.
        Err(error) if !found.use_stderr() => Stop::output(&error).report(&Environment::of_process()),
        _ => u8::try_from(found.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from),
    }
}

fn run(args: Args, environment: &Environment) -> Result<(), Stop> {
    let context = || Context::new(&args.global, environment);
    match args.command {
        Command::Mount(command) => mount::run(command, &context()?),
        Command::Umount(command) => umount::run(&command, &context()?),
        Command::List(command) => list::run(&command, &context()?),
        Command::Status(command) => status::run(&command, &context()?),
        Command::Inspect(command) => inspect::run(&command, &context()?),
        Command::Ls(command) => ls::run(&command, &context()?),
        Command::Cat(command) => cat::run(&command, &context()?),
        Command::Profile(command) => profile::run(&command, &context()?),
        Command::Index(command) => index::run(&command, &context()?),
        Command::Cache(command) => cache::run(&command, &context()?),
        Command::Daemon(command) => daemon::run(&command, &context()?),
        Command::Demo(command) => demo::run(command, environment),
        Command::Enter(command) => enter::run(&command),
        // These must work however the machine is configured.
        Command::Completions(command) => completions::run(&command),
        Command::Man(command) => man::run(&command),
        Command::References => references::run(),
    }
}
