//! Progress on the terminal: one line on standard error that is gone when the command ends.

use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::daemon::control::Progress;
use crate::oci::Printable;

/// How often the line moves while nothing arrives, so that waiting does not look like being stuck.
const TICK: Duration = Duration::from_millis(200);

/// Cut at the width of the terminal: a line that wraps cannot be taken away.
const WAITING: &str = "{spinner} {wide_msg}";
const STREAMING: &str =
    "{spinner} {msg} [{wide_bar}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}, {eta} left";

/// The line. Clones show the same one.
#[derive(Debug, Clone)]
pub(super) struct Meter(ProgressBar);

impl Meter {
    /// A line that is shown only if standard error is a terminal.
    pub(super) fn new(what: String) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        bar.set_style(style(WAITING));
        bar.set_message(what);
        if io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::stderr());
            bar.enable_steady_tick(TICK);
        }
        Self(bar)
    }

    /// A line for an image that is looked up, and streamed if nobody has indexed it.
    pub(super) fn looking_up(reference: &str) -> Self {
        Self::new(format!("looking up {}", Printable::of(reference)))
    }

    /// No line, for what takes no time.
    pub(super) fn hidden() -> Self {
        Self(ProgressBar::hidden())
    }

    /// Shows how far it is.
    pub(super) fn show(&self, progress: &Progress) {
        if progress.layers == 0 {
            return;
        }
        let is_first = self.0.length().is_none();
        if is_first {
            self.0.set_style(style(STREAMING));
        }
        self.0.set_message(format!("{} of {} layers", progress.finished, progress.layers));
        self.0.set_length(progress.total);
        self.0.set_position(progress.taken);
        if is_first {
            // What was there before is no speed.
            self.0.reset_eta();
        }
    }

    /// Shows bytes that pass through this program instead, `total` of them if that is known.
    pub(super) fn expect(&self, total: Option<u64>) {
        if let Some(total) = total {
            self.0.set_style(style(STREAMING));
            self.0.set_length(total);
            self.0.reset_eta();
        }
    }

    /// Counts bytes that have passed.
    pub(super) fn advance(&self, count: u64) {
        self.0.inc(count);
    }

    /// Goes on with something else, whose length is not known yet.
    pub(super) fn next(&self, what: String) {
        self.0.unset_length();
        self.0.reset();
        self.0.set_style(style(WAITING));
        self.0.set_message(what);
    }

    /// Takes the line away while `print` writes others.
    pub(super) fn aside(&self, print: impl FnOnce()) {
        self.0.suspend(print);
    }

    /// Takes the line away for good.
    pub(super) fn clear(&self) {
        self.0.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).expect("the templates of this file are well formed");
    style.progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_goes_from_waiting_to_streaming() {
        let meter = Meter::hidden();
        meter.show(&Progress { layers: 0, finished: 0, total: 0, taken: 0, received: 0 });
        meter.show(&Progress { layers: 3, finished: 1, total: 1000, taken: 10, received: 10 });
        assert_eq!((meter.0.length(), meter.0.position()), (Some(1000), 10));
        assert_eq!(meter.0.message(), "1 of 3 layers");
        meter.next("completing it".to_owned());
        assert_eq!((meter.0.length(), meter.0.position(), meter.0.message()), (None, 0, "completing it".to_owned()));
    }
}
