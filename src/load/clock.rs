//! The run's clock: µs after its origin by `CLOCK_REALTIME` (the clock of kernel stamps and of the pods' commits), and
//! the same instants by `CLOCK_MONOTONIC` for sleeping.

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, ClockNanosleepFlags, clock_gettime, clock_nanosleep};

/// The run's clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    /// Unix time in µs to which everything else is relative.
    pub(super) origin_us: u64,
    /// `CLOCK_REALTIME` − `CLOCK_MONOTONIC` at the origin, in ns.
    offset_ns: i128,
}

fn nanos(time: TimeSpec) -> i128 {
    i128::from(time.tv_sec()) * 1_000_000_000 + i128::from(time.tv_nsec())
}

fn read(clock: ClockId) -> i128 {
    nanos(clock_gettime(clock).expect("both clocks exist on every Linux"))
}

/// `CLOCK_REALTIME` − `CLOCK_MONOTONIC`: of several readings the one with the least time between them.
fn offset_ns() -> i128 {
    let reading = || {
        let (before, real, after) =
            (read(ClockId::CLOCK_MONOTONIC), read(ClockId::CLOCK_REALTIME), read(ClockId::CLOCK_MONOTONIC));
        (after - before, real - i128::midpoint(before, after))
    };
    (0..16).map(|_| reading()).min().map_or(0, |(_, offset)| offset)
}

impl Clock {
    /// Its origin is now.
    pub(super) fn start() -> Self {
        let origin_us = u64::try_from(read(ClockId::CLOCK_REALTIME) / 1_000).unwrap_or(0);
        Self { origin_us, offset_ns: offset_ns() }
    }

    /// µs since the origin.
    pub(super) fn now(&self) -> u32 {
        self.relative(u64::try_from(read(ClockId::CLOCK_REALTIME) / 1_000).unwrap_or(0))
    }

    /// A Unix time in µs as µs after the origin; zero when it lies before.
    pub(super) fn relative(&self, unix_us: u64) -> u32 {
        u32::try_from(unix_us.saturating_sub(self.origin_us)).unwrap_or(u32::MAX)
    }

    /// A kernel stamp as µs after the origin.
    pub(super) fn of_stamp(&self, stamp: TimeSpec) -> u32 {
        self.relative(u64::try_from(nanos(stamp) / 1_000).unwrap_or(0))
    }

    /// Sleeps until `at_us` after the origin, by the monotonic clock: a clock step delays nothing.
    pub(super) fn sleep_until(&self, at_us: u32) {
        let at = (i128::from(self.origin_us) + i128::from(at_us)) * 1_000 - self.offset_ns;
        let (Ok(seconds), Ok(nanos)) = (i64::try_from(at / 1_000_000_000), i64::try_from(at % 1_000_000_000)) else {
            return;
        };
        let at = TimeSpec::new(seconds, nanos);
        // Interrupted by a signal: the time is absolute, so sleeping again is right.
        while clock_nanosleep(ClockId::CLOCK_MONOTONIC, ClockNanosleepFlags::TIMER_ABSTIME, &at)
            == Err(nix::errno::Errno::EINTR)
        {}
    }

    /// How far the real-time clock was stepped since the origin, in µs.
    pub(super) fn step_us(&self) -> i64 {
        i64::try_from((offset_ns() - self.offset_ns) / 1_000).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_ends_after_its_time_and_the_clocks_agree() {
        let clock = Clock::start();
        let until = clock.now() + 5_000;
        clock.sleep_until(until);
        let now = clock.now();
        assert!(now >= until && now < until + 1_000_000, "{now} after a sleep until {until}");
        clock.sleep_until(0);
        assert!(clock.step_us().abs() < 1_000);
        assert_eq!(clock.relative(clock.origin_us + 7), 7);
        assert_eq!(clock.relative(0), 0);
    }
}
