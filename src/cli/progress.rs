//! Progress on the terminal: one line on standard error that is gone when the command ends.
//!
//! A line that wraps cannot be taken away, so it is one message, cut at the width of the terminal: what matters most is
//! at its beginning. Its speed is that of what comes now ([`Speed`]), whatever was there before.

use std::collections::VecDeque;
use std::io::{self, IsTerminal};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::duration;
use super::table::{count, size};
use crate::daemon::control::Progress;
use crate::oci::Printable;

/// How often the line moves while nothing arrives, so that waiting does not look like being stuck.
const TICK: Duration = Duration::from_millis(200);

/// `wide_msg` is what is cut.
const LINE: &str = "{spinner} {wide_msg}";

/// The time over which speed is measured: long enough to be steady, short enough to show that a line has become slow.
const WINDOW: Duration = Duration::from_secs(5);

/// Cells of the bar.
const BAR: u64 = 16;

/// The line. Clones show the same one.
#[derive(Debug, Clone)]
pub(super) struct Meter {
    line: ProgressBar,
    /// Bytes that pass through this program, and how many are expected; held only to count.
    passing: Arc<Mutex<Counted>>,
}

/// What is shown of bytes.
#[derive(Debug, Default)]
struct Counted {
    speed: Speed,
    passed: u64,
    total: Option<u64>,
}

impl Meter {
    /// A line that is shown only if standard error is a terminal.
    pub(super) fn new(what: String) -> Self {
        let line = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        line.set_style(ProgressStyle::with_template(LINE).expect("the template of this file is well formed"));
        line.set_message(what);
        if io::stderr().is_terminal() {
            line.set_draw_target(ProgressDrawTarget::stderr());
            line.enable_steady_tick(TICK);
        }
        Self { line, passing: Arc::default() }
    }

    /// A line for an image that is looked up, and streamed if nobody has indexed it.
    pub(super) fn looking_up(reference: &str) -> Self {
        Self::new(format!("looking up {}", Printable::of(reference)))
    }

    /// No line, for what takes no time.
    pub(super) fn hidden() -> Self {
        Self { line: ProgressBar::hidden(), passing: Arc::default() }
    }

    /// Shows how far it is.
    pub(super) fn show(&self, progress: &Progress) {
        if progress.layers == 0 {
            return;
        }
        let rate = self.counted(|counted| counted.speed.rate(progress.received, Instant::now()));
        let layers = format!("{} of {}", progress.finished, count(progress.layers as u64, "layer"));
        self.line.set_message(format!("{}, {layers}", line(progress.taken, progress.total, rate)));
    }

    /// Shows bytes that pass through this program instead, `total` of them if that is known.
    pub(super) fn expect(&self, total: Option<u64>) {
        self.counted(|counted| *counted = Counted { total, ..Counted::default() });
    }

    /// Counts bytes that have passed.
    pub(super) fn advance(&self, count: u64) {
        let text = self.counted(|counted| {
            counted.passed = counted.passed.saturating_add(count);
            let rate = counted.speed.rate(counted.passed, Instant::now());
            Some(line(counted.passed, counted.total?, rate))
        });
        if let Some(text) = text {
            self.line.set_message(text);
        }
    }

    /// Goes on with something else, whose length is not known yet.
    pub(super) fn next(&self, what: String) {
        self.expect(None);
        self.line.set_message(what);
    }

    /// Takes the line away while `print` writes others.
    pub(super) fn aside(&self, print: impl FnOnce()) {
        self.line.suspend(print);
    }

    /// Takes the line away for good.
    pub(super) fn clear(&self) {
        self.line.finish_and_clear();
    }

    fn counted<T>(&self, change: impl FnOnce(&mut Counted) -> T) -> T {
        change(&mut self.passing.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// How fast bytes come.
#[derive(Debug, Default)]
struct Speed {
    /// How many had come when, within the window and once before it.
    seen: VecDeque<(Instant, u64)>,
}

impl Speed {
    /// Bytes a second, now that `bytes` have come; none before there is something to compare with. What had come when this
    /// is called first is no speed.
    fn rate(&mut self, bytes: u64, now: Instant) -> Option<u64> {
        self.seen.push_back((now, bytes));
        while self.seen.get(1).is_some_and(|(then, _)| now.duration_since(*then) >= WINDOW) {
            self.seen.pop_front();
        }
        let (then, before) = self.seen.front()?;
        let came = u128::from(bytes.saturating_sub(*before));
        let rate = (came * 1000).checked_div(now.duration_since(*then).as_millis())?;
        Some(u64::try_from(rate).unwrap_or(u64::MAX))
    }
}

/// So many bytes of so many, at so many a second.
fn line(done: u64, total: u64, rate: Option<u64>) -> String {
    let done = done.min(total);
    let full = u128::from(done) * u128::from(BAR);
    // Nothing of nothing is all.
    let full = full.checked_div(u128::from(total)).map_or(BAR as usize, |full| full as usize);
    let bar =
        format!("{:<width$}", "=".repeat(full) + if full < BAR as usize { ">" } else { "" }, width = BAR as usize);
    let left = rate.and_then(|rate| (total - done).checked_div(rate));
    let speed = rate.map_or_else(String::new, |rate| format!(", {}/s", size(rate)));
    let left =
        left.filter(|_| done < total).map_or_else(String::new, |left| format!(", {} left", duration::shown(left)));
    format!("[{bar}] {} of {}{speed}{left}", size(done), size(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_goes_from_waiting_to_streaming() {
        let meter = Meter::hidden();
        meter.next("looking up".to_owned());
        meter.show(&Progress { layers: 0, finished: 0, total: 0, taken: 0, received: 0 });
        assert_eq!(meter.line.message(), "looking up");
        meter.show(&Progress { layers: 3, finished: 1, total: 2048, taken: 1024, received: 10 });
        let shown = meter.line.message();
        assert!(shown.starts_with("[========>       ] 1.0 KiB of 2.0 KiB, "), "{shown}");
        assert!(shown.ends_with("1 of 3 layers"), "{shown}");
        meter.next("completing it".to_owned());
        assert_eq!(meter.line.message(), "completing it");
    }

    #[test]
    fn speed_is_of_what_came_since_it_is_watched_and_forgets_what_is_long_ago() {
        let (mut speed, start) = (Speed::default(), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!(speed.rate(1 << 30, at(0)), None, "what was there is no speed");
        assert_eq!(speed.rate((1 << 30) + 100, at(100)), Some(1000));
        assert_eq!(speed.rate((1 << 30) + 100, at(200)), Some(500));
        assert_eq!(speed.rate((1 << 30) + 100, at(6000)), Some(0), "a line that is stuck is shown as stuck");
        assert_eq!(speed.rate(0, at(7000)), Some(0), "bytes that do not count any more are no speed either");
    }

    #[test]
    fn a_line_tells_what_is_left_only_if_that_is_known() {
        let text = line(1 << 20, 3 << 20, Some(1 << 20));
        assert_eq!(text, "[=====>          ] 1.0 MiB of 3.0 MiB, 1.0 MiB/s, 2s left");
        assert_eq!(line(0, 1024, None), "[>               ] 0 B of 1.0 KiB");
        assert_eq!(line(0, 1024, Some(0)), "[>               ] 0 B of 1.0 KiB, 0 B/s");
        assert_eq!(line(9, 8, Some(2)), "[================] 8 B of 8 B, 2 B/s");
        assert_eq!(line(0, 0, None), "[================] 0 B of 0 B");
        line(u64::MAX, u64::MAX, Some(u64::MAX));
    }

    #[test]
    fn bytes_that_pass_are_counted_if_their_number_is_known() {
        let meter = Meter::hidden();
        meter.next("importing".to_owned());
        meter.advance(10);
        assert_eq!(meter.line.message(), "importing");
        meter.expect(Some(100));
        meter.advance(10);
        meter.advance(15);
        assert!(meter.line.message().contains(" 25 B of 100 B"), "{}", meter.line.message());
    }
}
