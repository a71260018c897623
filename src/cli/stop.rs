//! Why a command ends early, how that is told, and with which exit code.
//!
//! Failures look the same whoever found them, this program or the daemon: `error:`, one `cause:` a line, `hint:`.

use std::fmt;
use std::io::{self, IsTerminal, Write as _};
use std::process::ExitCode;

use clap::builder::styling::{AnsiColor, Style};
use tokio::signal::unix::SignalKind;

use super::environment::Environment;
use crate::daemon::{Code, Failure};
use crate::oci::Message;

/// What shells add to the number of a signal for the exit code of a command that was ended by it.
const SIGNALLED: i32 = 128;

/// Why a command does not go on.
#[derive(Debug)]
pub(super) enum Stop {
    /// It failed.
    Failed(Box<Failure>),
    /// Whoever reads standard output has read enough, as `head` does.
    OutputClosed,
    /// The user pressed Ctrl-C, or the command was ended by another signal.
    Interrupted(SignalKind),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(Box::new(failure))
    }
}

impl Stop {
    /// What a failed write to standard output means.
    pub(super) fn output(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Failure::io("cannot write to standard output", error).into(),
        }
    }

    /// Tells the user, and returns the exit code.
    pub(super) fn report(&self, environment: &Environment) -> ExitCode {
        match self {
            Self::Failed(failure) => {
                tell(&Shown { failure, coloured: environment.wants_colour(io::stderr().is_terminal()) });
                ExitCode::from(failure.code as u8)
            }
            Self::OutputClosed => ExitCode::SUCCESS,
            Self::Interrupted(kind) => {
                u8::try_from(SIGNALLED + kind.as_raw_value()).map_or(ExitCode::FAILURE, ExitCode::from)
            }
        }
    }
}

/// The usage error for a wrong argument, with what is wrong with it.
pub(super) fn usage(error: impl Into<String>, cause: impl fmt::Display) -> Failure {
    Failure::new(Code::Usage, error).because(cause.to_string())
}

/// Tells the user something that does not end the command.
pub(super) fn warn(environment: &Environment, text: &str) {
    let style = style(environment.wants_colour(io::stderr().is_terminal()), AnsiColor::Yellow);
    tell(&format_args!("{style}warning:{style:#} {}\n", Message(text)));
}

/// Writes to standard error in one piece. If that is closed there is nobody left to tell.
fn tell(text: &dyn fmt::Display) {
    io::stderr().write_all(text.to_string().as_bytes()).ok();
}

fn style(coloured: bool, colour: AnsiColor) -> Style {
    if coloured { Style::new().bold().fg_color(Some(colour.into())) } else { Style::new() }
}

/// A failure as it is printed (D-070).
struct Shown<'a> {
    failure: &'a Failure,
    coloured: bool,
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |label: &str, colour, text: &str| {
            let style = style(self.coloured, colour);
            writeln!(f, "{style}{label}:{style:#} {}", Message(text))
        };
        line("error", AnsiColor::Red, &self.failure.error)?;
        for cause in &self.failure.causes {
            line("cause", AnsiColor::Yellow, cause)?;
        }
        self.failure.hint.iter().try_for_each(|hint| line("hint", AnsiColor::Cyan, hint))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure() -> Failure {
        Failure::new(Code::NotFound, "cannot mount debain:12")
            .because("library/debain has no tag 12")
            .because("the registry says \\x1b[31m\nerror: forged")
            .hint("tags: \u{202e}11")
    }

    #[test]
    fn a_failure_is_one_line_each_for_error_causes_and_hint() {
        let shown = Shown { failure: &failure(), coloured: false }.to_string();
        assert_eq!(
            shown,
            "error: cannot mount debain:12\ncause: library/debain has no tag 12\n\
             cause: the registry says \\x1b[31m\\nerror: forged\nhint: tags: \\u{202e}11\n"
        );
    }

    #[test]
    fn colours_mark_only_the_labels() {
        let shown = Shown { failure: &failure(), coloured: true }.to_string();
        assert!(shown.starts_with("\x1b[1m\x1b[31merror:\x1b[0m cannot mount debain:12\n"), "{shown:?}");
        assert_eq!(shown.matches('\x1b').count(), 4 * 3);
    }

    #[test]
    fn a_closed_pipe_is_the_readers_choice_and_other_write_errors_are_failures() {
        assert!(matches!(Stop::output(&io::ErrorKind::BrokenPipe.into()), Stop::OutputClosed));
        let Stop::Failed(failure) = Stop::output(&io::ErrorKind::StorageFull.into()) else {
            panic!("a full disk is a failure");
        };
        assert_eq!(failure.error, "cannot write to standard output");
    }
}
