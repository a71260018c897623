//! `ocifs man`: manual pages, made from the same texts as the help.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory, ValueHint};
use clap_mangen::Man;

use super::help;
use super::output::Output;
use super::stop::Stop;
use crate::daemon::Failure;
use crate::oci::Printable;

const EXAMPLES: &str = "\
Examples:
  ocifs man | man -l -
  ocifs man /usr/local/share/man/man1";

/// Print the manual pages, or write one file per command
#[derive(Debug, clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Args {
    /// Write the pages into this directory
    #[arg(value_name = "DIR", value_hint = ValueHint::DirPath)]
    dir: Option<PathBuf>,
}

/// One manual page.
struct Page {
    file_name: String,
    roff: Vec<u8>,
}

/// Prints or writes them.
pub(super) fn run(args: &Args) -> Result<(), Stop> {
    let pages = pages().map_err(|error| Failure::io("cannot make the manual pages", &error))?;
    if let Some(dir) = &args.dir {
        return Ok(write(&pages, dir)?);
    }
    let mut output = Output::new();
    for page in pages {
        output.raw().write_all(&page.roff).map_err(|error| Stop::output(&error))?;
    }
    output.finish()
}

fn write(pages: &[Page], dir: &Path) -> Result<(), Failure> {
    for page in pages {
        let path = dir.join(&page.file_name);
        let failed = |error| Failure::io(&format!("cannot write {}", Printable::path(&path)), &error);
        std::fs::write(&path, &page.roff).map_err(failed)?;
    }
    Ok(())
}

/// The pages of the program and of all commands that people use.
fn pages() -> io::Result<Vec<Page>> {
    let mut program = super::args::Args::command().disable_help_subcommand(true);
    program.build();
    let mut pages = Vec::new();
    let mut pending = vec![&program];
    while let Some(command) = pending.pop() {
        pages.push(page(command)?);
        let mut below: Vec<_> = command.get_subcommands().filter(|command| !command.is_hide_set()).collect();
        below.reverse();
        pending.append(&mut below);
    }
    Ok(pages)
}

fn page(command: &Command) -> io::Result<Page> {
    let is_program = command.get_name() == "ocifs";
    // What follows the program's help has sections of its own in a manual.
    let command = if is_program { command.clone().after_help("").after_long_help("") } else { command.clone() };
    let man = Man::new(command);
    let mut roff = Vec::new();
    man.render_title(&mut roff)?;
    man.render_name_section(&mut roff)?;
    man.render_synopsis_section(&mut roff)?;
    man.render_description_section(&mut roff)?;
    man.render_options_section(&mut roff)?;
    if is_program {
        man.render_subcommands_section(&mut roff)?;
        exit_status(&mut roff)?;
        section(&mut roff, "FILES", help::FILES)?;
        man.render_version_section(&mut roff)?;
    } else {
        man.render_subcommands_section(&mut roff)?;
        man.render_extra_section(&mut roff)?;
    }
    Ok(Page { file_name: man.get_filename(), roff })
}

fn exit_status(roff: &mut Vec<u8>) -> io::Result<()> {
    writeln!(roff, ".SH \"EXIT STATUS\"")?;
    for (code, meaning) in help::EXIT_CODES {
        writeln!(roff, ".TP\n\\fB{code}\\fR\n{}", escape(meaning))?;
    }
    Ok(())
}

/// A section of text whose lines stay as they are.
fn section(roff: &mut Vec<u8>, title: &str, text: &str) -> io::Result<()> {
    let (first, rest) = text.split_once("\n\n").unwrap_or((text, ""));
    writeln!(roff, ".SH {title}\n{}\n.PP\n.nf\n{}\n.fi", escape(first), escape(rest))
}

/// Text that the formatter does not take for commands.
fn escape(text: &str) -> String {
    let escaped = text.replace('\\', "\\e").replace('-', "\\-");
    let lines =
        escaped.lines().map(|line| if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line.to_owned() });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_page_for_every_command_that_people_use() {
        let pages = pages().expect("pages");
        let names: Vec<_> = pages.iter().map(|page| page.file_name.as_str()).collect();
        assert_eq!(names[..3], ["ocifs.1", "ocifs-mount.1", "ocifs-umount.1"]);
        assert!(names.contains(&"ocifs-cache-drop.1") && !names.contains(&"ocifs-daemon.1"), "{names:?}");
    }

    #[test]
    fn the_first_page_has_exit_codes_and_files() {
        let pages = pages().expect("pages");
        let page = String::from_utf8(pages[0].roff.clone()).expect("UTF-8");
        assert!(page.contains("\\fB130\\fR\ninterrupted with Ctrl\\-C"), "{page}");
        assert!(page.contains(".SH FILES") && page.contains("idle\\-seconds = 30"), "{page}");
    }

    #[test]
    fn text_cannot_be_taken_for_formatter_commands() {
        assert_eq!(escape(".TH x\n'y\\z"), "\\&.TH x\n\\&'y\\ez");
    }
}
