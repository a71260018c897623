//! What a line to a source can do, measured from the ranged reads that went over it.
//!
//! Two numbers decide how reads are cut: the round-trip time says what a request costs, the bandwidth what a byte costs.
//! Their product, the bytes that the line holds, is how much must be asked for ahead to keep it full; more only makes a
//! reader who comes next wait longer.

use std::time::{Duration, Instant};

/// Assumed until something was measured: a registry on the same continent over a good line.
const FIRST_ROUND_TRIP: Duration = Duration::from_millis(30);
const FIRST_RATE: f64 = 25e6;

/// How long bytes are counted for one measurement of the rate.
const WINDOW: Duration = Duration::from_millis(200);

/// Weight of a new measurement of the rate: bytes come in bursts, and servers pause.
const WEIGHT: f64 = 0.2;

/// How far a slower answer moves the round-trip time.
const DRIFT: f64 = 0.01;

/// Bounds of the product: below, requests would cost more than bytes on any line; above, the bytes in flight would be
/// felt in memory.
const PRODUCT_BYTES: std::ops::RangeInclusive<u64> = 256 << 10..=8 << 20;

/// Bounds of the time after which an answer counts as stalled: a busy line delays answers too.
const PATIENCE: std::ops::RangeInclusive<Duration> = Duration::from_secs(2)..=Duration::from_secs(10);

/// The measured state of one line.
#[derive(Debug)]
pub(super) struct Estimate {
    round_trip: Duration,
    /// Bytes per second.
    rate: f64,
    measured: bool,
    /// The running measurement; none while the line is idle.
    window: Option<Window>,
}

#[derive(Debug)]
struct Window {
    since: Instant,
    bytes: u64,
    /// As much was asked for as the line holds, all the time.
    full: bool,
}

impl Default for Estimate {
    fn default() -> Self {
        Self { round_trip: FIRST_ROUND_TRIP, rate: FIRST_RATE, measured: false, window: None }
    }
}

impl Estimate {
    /// A read was answered: its first byte came `after` its request.
    pub(super) fn answered(&mut self, after: Duration) {
        if !self.measured || after < self.round_trip {
            self.round_trip = after;
            self.measured = true;
        } else {
            // Most of the difference is the queue that our own bytes make.
            self.round_trip += (after - self.round_trip).mul_f64(DRIFT).min(self.round_trip.mul_f64(DRIFT));
        }
    }

    /// Bytes arrived, and `outstanding` are still to come.
    pub(super) fn received(&mut self, bytes: u64, outstanding: u64, now: Instant) {
        let full = outstanding >= self.product();
        let Some(window) = &mut self.window else {
            // The first piece opens the window: when its bytes left is not known.
            self.window = Some(Window { since: now, bytes: 0, full });
            return;
        };
        window.bytes += bytes;
        window.full &= full;
        let elapsed = now.duration_since(window.since);
        if elapsed >= WINDOW {
            let sample = window.bytes as f64 / elapsed.as_secs_f64();
            // A line that had less to carry is not slower for it.
            if sample > self.rate || window.full {
                self.rate += (sample - self.rate) * WEIGHT;
            }
            self.window = Some(Window { since: now, bytes: 0, full });
        }
    }

    /// Nothing is in flight any more: time passes without saying anything about the line.
    pub(super) fn idle(&mut self) {
        self.window = None;
    }

    /// How long an answer may give nothing before it counts as stalled.
    pub(super) fn patience(&self) -> Duration {
        (self.round_trip * 10).clamp(*PATIENCE.start(), *PATIENCE.end())
    }

    /// Bytes that are on their way when the line is full.
    pub(super) fn product(&self) -> u64 {
        let bytes = self.rate * self.round_trip.as_secs_f64();
        (bytes as u64).clamp(*PRODUCT_BYTES.start(), *PRODUCT_BYTES.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `rate` bytes per second in pieces of 10 ms for five seconds.
    fn feed(estimate: &mut Estimate, start: Instant, rate: u64) -> Instant {
        let mut now = start;
        for _ in 0..=500 {
            estimate.received(rate / 100, u64::MAX, now);
            now += Duration::from_millis(10);
        }
        now
    }

    #[test]
    fn the_product_follows_what_was_measured() {
        let mut estimate = Estimate::default();
        estimate.answered(Duration::from_millis(80));
        let now = feed(&mut estimate, Instant::now(), 100_000_000);
        assert!((7_500_000..=8_500_000).contains(&estimate.product()), "{}", estimate.product());
        estimate.answered(Duration::from_millis(10));
        assert!((900_000..=1_100_000).contains(&estimate.product()), "{}", estimate.product());
        // A slower line is believed after a while.
        estimate.idle();
        feed(&mut estimate, now, 50_000_000);
        assert!((490_000..=600_000).contains(&estimate.product()), "{}", estimate.product());
    }

    #[test]
    fn an_idle_line_is_not_a_slow_one() {
        let mut estimate = Estimate::default();
        estimate.answered(Duration::from_millis(30));
        let now = feed(&mut estimate, Instant::now(), 100_000_000);
        let before = estimate.product();
        estimate.idle();
        estimate.received(1000, u64::MAX, now + Duration::from_secs(60));
        assert_eq!(estimate.product(), before);
    }

    #[test]
    fn a_line_that_is_asked_for_little_is_not_slow_either() {
        let mut estimate = Estimate::default();
        estimate.answered(Duration::from_millis(30));
        let mut now = feed(&mut estimate, Instant::now(), 100_000_000);
        let before = estimate.product();
        for _ in 0..100 {
            now += Duration::from_millis(20);
            estimate.received(10_000, 10_000, now);
        }
        assert_eq!(estimate.product(), before);
    }

    #[test]
    fn no_measurement_leads_out_of_bounds() {
        let mut estimate = Estimate::default();
        estimate.answered(Duration::ZERO);
        assert_eq!(estimate.product(), *PRODUCT_BYTES.start());
        estimate.answered(Duration::from_secs(3600));
        estimate.received(1, 0, Instant::now());
        assert!(PRODUCT_BYTES.contains(&estimate.product()));
    }
}
