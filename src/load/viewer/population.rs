//! Who comes when and stays how long: all at once and for ever, or a Poisson process with log-normal stays.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, Exp, LogNormal};

use crate::result::Population;

/// One viewer's plan. Times are µs after the start of the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::load) struct Visit {
    /// The viewer.
    pub(in crate::load) viewer: u32,
    /// When it comes; none: before the warm-up.
    pub(in crate::load) arrives_us: Option<u32>,
    /// When it leaves; none: it stays to the end of the run.
    pub(in crate::load) leaves_us: Option<u32>,
    /// Reads its first snapshot and then nothing until the cool-down ends.
    pub(in crate::load) slow: bool,
}

/// The visits of a run of `length`: `viewers` at once, and `slow` stalled ones beside them. With a population the number
/// present is `viewers` on average, from the start: those who are there at the start have their rest of a stay before
/// them, and longer stays are likelier to be met (a stay met at random is log-normal with μ + σ²).
pub(in crate::load) fn visits(
    viewers: u32,
    slow: u32,
    population: Option<&Population>,
    length: Duration,
    seed: u64,
) -> Vec<Visit> {
    let visit = |viewer| Visit { viewer, arrives_us: None, leaves_us: None, slow: false };
    let mut visits: Vec<_> = (0..viewers).map(visit).collect();
    if let Some(Population { mean_s, sigma }) = population {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x706f_7075);
        let end = length.as_secs_f64();
        let mu = mean_s.ln() - sigma * sigma / 2.0;
        let stay = LogNormal::new(mu, *sigma).expect("validated");
        let met = LogNormal::new(mu + sigma * sigma, *sigma).expect("validated");
        for visit in &mut visits {
            let rest = met.sample(&mut rng) * rng.random::<f64>();
            visit.leaves_us = micros(rest, end);
        }
        let gap = Exp::new(f64::from(viewers.max(1)) / mean_s).expect("validated");
        let mut at = gap.sample(&mut rng);
        while at < end {
            let leaves_us = micros(at + stay.sample(&mut rng), end);
            let viewer = u32::try_from(visits.len()).unwrap_or(u32::MAX);
            visits.push(Visit { arrives_us: micros(at, end), leaves_us, ..visit(viewer) });
            at += gap.sample(&mut rng);
        }
    }
    let first = u32::try_from(visits.len()).unwrap_or(u32::MAX);
    visits.extend((first..first.saturating_add(slow)).map(|viewer| Visit { slow: true, ..visit(viewer) }));
    visits
}

/// As µs; none when it is not before `end_s`.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 30 minutes")]
fn micros(at_s: f64, end_s: f64) -> Option<u32> {
    (at_s < end_s).then_some((at_s * 1e6) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_population_all_stay() {
        let all = visits(3, 2, None, Duration::from_secs(10), 1);
        assert!(all.iter().all(|v| v.arrives_us.is_none() && v.leaves_us.is_none()));
        assert_eq!(all.iter().map(|v| v.slow).collect::<Vec<_>>(), [false, false, false, true, true]);
        assert_eq!(all.iter().map(|v| v.viewer).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_population_keeps_its_mean_from_start_to_end() {
        let (mean_s, sigma, length) = (20.0, 1.0, 200_u32);
        let mut present = vec![0_i64; length as usize];
        for seed in 0..10 {
            let of_run = visits(300, 0, Some(&Population { mean_s, sigma }), Duration::from_secs(length.into()), seed);
            for visit in of_run {
                let (from, to) = (visit.arrives_us.unwrap_or(0), visit.leaves_us.unwrap_or(u32::MAX));
                for (second, present) in (0..).zip(&mut present) {
                    *present += i64::from(from <= second * 1_000_000 && second * 1_000_000 < to);
                }
            }
        }
        for second in [0, 5, 20, 60, 120, 199] {
            let mean = present[second] as f64 / 10.0;
            // A Poisson number of mean 300, averaged over ten: σ is 5.5.
            assert!((mean - 300.0).abs() < 28.0, "{mean} present in second {second}");
        }
    }
}
