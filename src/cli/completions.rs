//! `ocifs completions`: what shells need to complete the command line.

use clap::{Command, CommandFactory};
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
    clap_complete::generate(args.shell, &mut offered(), "ocifs", &mut script);
    let mut output = Output::new();
    output.raw().write_all(&script).map_err(|error| Stop::output(&error))?;
    output.finish()
}

/// The command line without the commands that are not for people, which completions do not leave out by themselves.
fn offered() -> Command {
    let all = super::args::Args::command();
    let commands = all.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    Command::new("ocifs").version(env!("CARGO_PKG_VERSION")).args(all.get_arguments().cloned()).subcommands(commands)
}

#[cfg(test)]
mod tests {
    #[test]
    fn commands_that_are_not_for_people_are_not_offered() {
        let names: Vec<_> = super::offered().get_subcommands().map(|command| command.get_name().to_owned()).collect();
        assert!(names.iter().any(|name| name == "mount") && !names.iter().any(|name| name == "daemon"), "{names:?}");
    }
}
