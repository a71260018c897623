//! `ocifs completions`: what shells need to complete the command line.

use clap::CommandFactory;
use clap_complete::Shell;

use super::output::Output;
use super::stop::Stop;

const EXAMPLES: &str = "\
Examples:
  ocifs completions bash > /etc/bash_completion.d/ocifs
  ocifs completions zsh > /usr/local/share/zsh/site-functions/_ocifs
  ocifs completions fish > ~/.config/fish/completions/ocifs.fish";

/// Print completions for a shell
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Args {
    /// The shell
    #[arg(value_enum, value_name = "SHELL")]
    shell: Shell,
}

/// Prints them.
pub(super) fn run(args: &Args) -> Result<(), Stop> {
    // Generated to memory first, because the generator takes a failing write for a mistake in the program.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::args::Args::command(), "ocifs", &mut script);
    let mut output = Output::new();
    output.raw().write_all(&script).map_err(|error| Stop::output(&error))?;
    output.finish()
}
