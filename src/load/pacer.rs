//! When likes are due: computed up front, never skipped, never re-based; a late pacer sends at once, and its lag is kept.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, Exp};

use super::Schedule;
use super::clock::Clock;

/// One like to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Due {
    /// µs after the start of the warm-up.
    pub(super) at_us: u32,
    /// Post by column index: in turn when uniform, at random otherwise.
    pub(super) post: u32,
}

/// Every like of a run of `length`, in order of time.
pub(super) fn schedule(schedule: Schedule, rate: f64, posts: u32, length: Duration, seed: u64) -> Vec<Due> {
    let end = length.as_secs_f64() * 1e6;
    if rate <= 0.0 {
        return Vec::new();
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 30 minutes")]
    let due = |at: f64, post: u32| Due { at_us: at as u32, post };
    let mut likes = Vec::new();
    match schedule {
        Schedule::Uniform => {
            let at = |i: u32| f64::from(i) * 1e6 / rate;
            likes.extend((0..u32::MAX).take_while(|i| at(*i) < end).map(|i| due(at(i), i % posts)));
        }
        Schedule::Poisson => {
            let mut rng = StdRng::seed_from_u64(seed);
            let gap = Exp::new(rate / 1e6).expect("the rate is positive");
            let mut at = gap.sample(&mut rng);
            while at < end {
                likes.push(due(at, rng.random_range(0..posts)));
                at += gap.sample(&mut rng);
            }
        }
    }
    likes
}

/// Calls `submit(i)` when like i is due, `start_us` after the clock's origin; runs on a thread of its own.
pub(super) fn run(clock: &Clock, start_us: u32, due: &[Due], stop: &AtomicBool, mut submit: impl FnMut(u32)) {
    // Timers of ordinary threads may be 50 µs late, to save power.
    let _ = nix::sys::prctl::set_timerslack(1);
    for (i, due) in (0..).zip(due) {
        let at = start_us + due.at_us;
        if clock.now() < at {
            clock.sleep_until(at);
        }
        if stop.load(Ordering::Relaxed) {
            return;
        }
        submit(i);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_gaps_are_equal_and_posts_take_turns() {
        let likes = schedule(Schedule::Uniform, 4.0, 3, Duration::from_secs(2), 1);
        let at: Vec<_> = likes.iter().map(|due| due.at_us).collect();
        assert_eq!(at, [0, 250_000, 500_000, 750_000, 1_000_000, 1_250_000, 1_500_000, 1_750_000]);
        let posts: Vec<_> = likes.iter().map(|due| due.post).collect();
        assert_eq!(posts, [0, 1, 2, 0, 1, 2, 0, 1]);
    }

    #[test]
    fn poisson_has_the_rate_and_its_seed_repeats_it() {
        let make = |seed| schedule(Schedule::Poisson, 1_000.0, 10, Duration::from_secs(60), seed);
        let likes = make(3);
        // 60,000 ± 5 σ.
        assert!((58_775..=61_225).contains(&likes.len()), "{}", likes.len());
        assert!(likes.is_sorted_by_key(|due| due.at_us));
        let gaps: Vec<_> = likes.windows(2).map(|w| f64::from(w[1].at_us - w[0].at_us)).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        // An exponential's standard deviation is its mean.
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.05, "{} against {mean}", variance.sqrt());
        assert_eq!(make(3), likes);
        assert_ne!(make(4), likes);
    }

    #[test]
    fn nothing_is_skipped_after_a_stall() {
        let due: Vec<_> = (0..50).map(|i| Due { at_us: i * 1_000, post: 0 }).collect();
        let (clock, stop) = (Clock::start(), AtomicBool::new(false));
        let mut seen = Vec::new();
        run(&clock, clock.now(), &due, &stop, |i| {
            if i == 10 {
                clock.sleep_until(clock.now() + 20_000);
            }
            seen.push((i, clock.now()));
        });
        assert_eq!(seen.iter().map(|(i, _)| *i).collect::<Vec<_>>(), (0..50).collect::<Vec<_>>());
        // The twenty that fell into the stall are sent right after it, the others at their times.
        assert!(seen[49].1 >= 49_000);
    }
}
