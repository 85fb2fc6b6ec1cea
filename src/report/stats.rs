//! Statistics over pairs of runs. The unit is the run: a thousand deliveries of one run are not a thousand observations.

use statrs::distribution::{ContinuousCDF, StudentsT};

/// Pairs a verdict needs: below it a sign-flip test says little and an interval is an opinion about the spread.
pub const MIN_PAIRS: usize = 8;
/// Error probability of a single interval and of the family of claims.
pub const ALPHA: f64 = 0.05;
/// Largest number of pairs for which all sign assignments are counted.
const MAX_EXACT: usize = 40;

/// What pairs say about the ratio A ÷ B.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Pairs.
    pub pairs: usize,
    /// Geometric mean of the ratios.
    pub ratio: f64,
    /// Lower end of the 95 % Student-t interval over the log ratios.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Two-sided p of the t-test; what Holm's correction is applied to.
    pub p_t: f64,
    /// Two-sided p of the exact sign-flip test, which needs no normality; none above 40 pairs.
    pub p_flip: Option<f64>,
}

impl Estimate {
    /// The largest difference the interval leaves possible, as a share: 0.04 reads "± 4 %".
    #[must_use]
    pub fn resolution(&self) -> f64 {
        (self.low - 1.0).abs().max((self.high - 1.0).abs())
    }
}

/// The geometric mean ratio of paired log ratios with its interval and tests; none for fewer than two pairs.
#[must_use]
pub fn estimate(log_ratios: &[f64]) -> Option<Estimate> {
    let pairs = log_ratios.len();
    if pairs < 2 || log_ratios.iter().any(|x| !x.is_finite()) {
        return None;
    }
    let n = pairs as f64;
    let mean = log_ratios.iter().sum::<f64>() / n;
    let variance = log_ratios.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0);
    let error = (variance / n).sqrt();
    let t = StudentsT::new(0.0, 1.0, n - 1.0).ok()?;
    let reach = t.inverse_cdf(1.0 - ALPHA / 2.0) * error;
    let p_t = match (error > 0.0, mean == 0.0) {
        (true, _) => 2.0 * (1.0 - t.cdf((mean / error).abs())),
        (false, true) => 1.0,
        (false, false) => 0.0,
    };
    Some(Estimate {
        pairs,
        ratio: mean.exp(),
        low: (mean - reach).exp(),
        high: (mean + reach).exp(),
        p_t,
        p_flip: (pairs <= MAX_EXACT).then(|| sign_flip(log_ratios)),
    })
}

/// Exact two-sided sign-flip test: the share of the 2ⁿ sign assignments whose |sum| is at least the observed one.
/// The sums of two halves are sorted and joined, which counts 2⁴⁰ assignments in 2²⁰ steps.
fn sign_flip(x: &[f64]) -> f64 {
    let observed = x.iter().sum::<f64>().abs();
    let reach = observed - 1e-9 * x.iter().map(|v| v.abs()).sum::<f64>();
    let (left, right) = x.split_at(x.len() / 2);
    let (left, mut right) = (signed_sums(left), signed_sums(right));
    right.sort_by(f64::total_cmp);
    let extreme: usize = left
        .iter()
        .map(|a| {
            let above = right.len() - right.partition_point(|b| a + b < reach);
            let below = right.partition_point(|b| a + b <= -reach);
            (above + below).min(right.len())
        })
        .sum();
    extreme as f64 / (left.len() as f64 * right.len() as f64)
}

fn signed_sums(x: &[f64]) -> Vec<f64> {
    x.iter().fold(vec![0.0], |sums, v| sums.iter().flat_map(|s| [s + v, s - v]).collect())
}

/// Holm's step-down correction: p values that keep the chance of one false verdict in the whole family at the level.
#[must_use]
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&i, &j| p[i].total_cmp(&p[j]));
    let mut corrected = vec![1.0; p.len()];
    let mut floor = 0.0_f64;
    for (rank, &i) in order.iter().enumerate() {
        floor = floor.max((p[i] * (p.len() - rank) as f64).min(1.0));
        corrected[i] = floor;
    }
    corrected
}

/// The median, by the mean of the middle two; none for no values.
#[must_use]
pub fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().filter(|v| v.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;
    use rand_distr::{Distribution, Normal, StudentT};

    use super::*;

    #[test]
    fn an_interval_of_known_numbers_is_the_textbooks() {
        // t(0.975, 3) = 3.182446; mean 0.25, s = 0.1290994, s/√n = 0.0645497.
        let e = estimate(&[0.1, 0.2, 0.3, 0.4]).unwrap();
        assert!((e.ratio.ln() - 0.25).abs() < 1e-12);
        assert!((e.low.ln() - (0.25 - 3.182_446 * 0.064_549_7)).abs() < 1e-6, "{e:?}");
        assert!((e.high.ln() - (0.25 + 3.182_446 * 0.064_549_7)).abs() < 1e-6, "{e:?}");
        assert!((e.p_t - 0.030_466).abs() < 1e-5, "{e:?}");
        assert_eq!(e.p_flip, Some(2.0 / 16.0));
    }

    #[test]
    fn degenerate_pairs_give_no_nan() {
        assert_eq!(estimate(&[0.3]), None);
        assert_eq!(estimate(&[0.3, f64::NAN]), None);
        let same = estimate(&[0.0; 8]).unwrap();
        assert_eq!((same.p_t, same.p_flip, same.low, same.high), (1.0, Some(1.0), 1.0, 1.0));
    }

    #[test]
    fn the_joined_halves_count_what_enumeration_counts() {
        let x = [0.31, -0.12, 0.05, 0.44, 0.44, -0.02, 0.13, 0.09, -0.3];
        let observed = x.iter().sum::<f64>().abs();
        let extreme = (0..1_u32 << x.len()).filter(|mask| {
            let sum: f64 = x.iter().enumerate().map(|(i, v)| if mask >> i & 1 == 1 { -v } else { *v }).sum();
            sum.abs() >= observed - 1e-9
        });
        assert_eq!(sign_flip(&x), extreme.count() as f64 / 512.0);
    }

    #[test]
    fn holm_on_the_textbook_example() {
        assert_eq!(holm(&[0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02]);
        assert!(holm(&[]).is_empty());
    }

    #[test]
    fn medians() {
        assert_eq!(median([3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median([]), None);
    }

    /// Simulated experiments: how often the interval holds the true ratio, and how often both tests call a difference.
    fn simulate(pairs: usize, effect: f64, noise: impl Fn(&mut SmallRng) -> f64) -> (f64, f64) {
        const EXPERIMENTS: usize = 3000;
        let mut rng = SmallRng::seed_from_u64(20_261_123);
        let (mut covered, mut called) = (0, 0);
        for _ in 0..EXPERIMENTS {
            let x: Vec<f64> = (0..pairs).map(|_| effect + noise(&mut rng)).collect();
            let e = estimate(&x).unwrap();
            covered += usize::from(e.low.ln() <= effect && effect <= e.high.ln());
            called += usize::from(e.p_t <= ALPHA && e.p_flip.is_none_or(|p| p <= ALPHA));
        }
        (covered as f64 / EXPERIMENTS as f64, called as f64 / EXPERIMENTS as f64)
    }

    #[test]
    fn the_interval_covers_the_truth_and_a_a_is_rarely_called_a_difference() {
        let normal = Normal::new(0.0, 0.08).unwrap();
        let heavy = StudentT::new(4.0).unwrap();
        for pairs in [8, 10, 14] {
            for effect in [0.0, 0.05, 0.4] {
                for (name, (covered, called)) in [
                    ("normal", simulate(pairs, effect, |rng| normal.sample(rng))),
                    ("heavy-tailed", simulate(pairs, effect, |rng| 0.05 * heavy.sample(rng))),
                ] {
                    assert!(covered >= 0.93, "{name}, {pairs} pairs, effect {effect}: covers {covered}");
                    assert!(effect != 0.0 || called <= 0.07, "{name}, {pairs} pairs: false positives {called}");
                    assert!(effect != 0.4 || called > 0.95, "{name}, {pairs} pairs: finds +49 % only {called}");
                }
            }
        }
    }
}
