//! What was typed: the options all commands share, and the commands.
//!
//! Nothing here is resolved yet; [`Settings`](super::settings::Settings) is. Doc comments of this file and of the
//! commands' arguments are the program's help.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueHint};

use super::{
    byte_size, cache, cat, completions, daemon, demo, enter, help, index, inspect, list, ls, man, mount, profile,
    status, umount,
};

/// Mounts any container image now and fetches its bytes when they are read
#[derive(Debug, Parser)]
#[command(
    name = "ocifs",
    version,
    long_about = help::ABOUT,
    after_help = help::AFTER_SHORT,
    after_long_help = help::after_long(),
    arg_required_else_help = true,
    disable_help_subcommand = false,
)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Options of all commands.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Global options")]
pub(super) struct Global {
    /// The cache directory
    ///
    /// Default: $OCIFS_CACHE_DIR, else cache-dir of a configuration file, else /var/cache/ocifs for root, and
    /// $XDG_CACHE_HOME/ocifs or ~/.cache/ocifs for other users. One daemon serves each cache directory.
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(super) cache_dir: Option<PathBuf>,

    /// How large the cache may grow, such as 20G or 500M
    ///
    /// Default: $OCIFS_CACHE_SIZE, else cache-size of a configuration file, else a tenth of its file system and at least
    /// 1 GiB. Holds for a daemon from its start. What was used least recently goes first, decoded files before layers, and
    /// never what a mount uses. 5 % of the file system, or 1 GiB, are left free in any case.
    #[arg(long, global = true, value_name = "SIZE", value_parser = byte_size::cache_size)]
    pub(super) cache_size: Option<u64>,

    /// How much memory holds decoded data, such as 64M
    ///
    /// Default: $OCIFS_MEMORY_SIZE, else memory-size of a configuration file, else 64M. Holds for a daemon from its start, for
    /// all of its mounts together. What programs have read is in the kernel's page cache, not in this.
    #[arg(long, global = true, value_name = "SIZE", value_parser = byte_size::memory_size)]
    pub(super) memory_size: Option<u64>,

    /// The directory of control sockets and logs
    ///
    /// Default: $OCIFS_RUNTIME_DIR, else runtime-dir of a configuration file, else /run/ocifs for root, and
    /// $XDG_RUNTIME_DIR/ocifs or /tmp/ocifs-UID for other users.
    #[arg(long, global = true, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(super) runtime_dir: Option<PathBuf>,
}

/// The commands, in the order in which help lists them.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Mount(mount::Args),
    Umount(umount::Args),
    List(list::Args),
    Status(status::Args),
    Inspect(inspect::Args),
    Ls(ls::Args),
    Cat(cat::Args),
    Profile(profile::Args),
    Index(index::Args),
    Cache(cache::Args),
    Demo(demo::Args),
    Completions(completions::Args),
    Man(man::Args),
    /// Explain how images are named
    #[command(long_about = help::REFERENCES)]
    References,
    Daemon(daemon::Args),
    Enter(enter::Args),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_command_says_what_it_does_in_one_line_and_gives_examples() {
        for command in Args::command().get_subcommands().filter(|command| !command.is_hide_set()) {
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            assert!(!about.is_empty() && !about.contains('\n'), "{}: {about:?}", command.get_name());
            let long = command.get_after_long_help().or(command.get_long_about()).map(ToString::to_string);
            let long = long.unwrap_or_default();
            assert!(long.contains("\n  "), "{} has no examples", command.get_name());
        }
    }

    #[test]
    fn global_options_are_taken_before_and_after_the_command() {
        for arguments in [["ocifs", "--cache-dir", "/c", "list"], ["ocifs", "list", "--cache-dir", "/c"]] {
            let args = Args::try_parse_from(arguments).expect("both places are right");
            assert_eq!(args.global.cache_dir.as_deref(), Some(std::path::Path::new("/c")));
        }
    }
}
