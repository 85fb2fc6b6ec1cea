//! Names of levels, claims and validities as prose, and the order in which people expect them.

use super::metric;
use crate::domain::Arm;
use crate::result::summary::Validity;

/// A claim's name taken apart: `arm: sse-post / stomp-post @ edge=direct`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimName {
    /// Side A.
    pub a: String,
    /// Side B; equal to A in an A/A claim.
    pub b: String,
    /// The shared levels; may be empty.
    pub context: String,
}

/// Takes a claim's name apart. A name of another shape is side A and B at once, unless it says `A/A`.
#[must_use]
pub fn claim(name: &str) -> ClaimName {
    let (sides, context) = name.split_once(" @ ").unwrap_or((name, ""));
    let sides = sides.strip_prefix("A/A ").unwrap_or(sides);
    let (factor, sides) = sides.split_once(": ").unwrap_or(("", sides));
    let (a, b) = sides.split_once(" / ").unwrap_or((sides, sides));
    let context: Vec<String> = context
        .split(", ")
        .filter(|part| !part.is_empty())
        .map(|part| part.split_once('=').map_or_else(|| part.to_owned(), |(factor, value)| level(factor, value)))
        .collect();
    ClaimName { a: level_name(factor, a.trim()), b: level_name(factor, b.trim()), context: context.join(", ") }
}

fn level_name(factor: &str, value: &str) -> String {
    match factor {
        "" | "arm" | "edge" => arm(value),
        factor => level(factor, value),
    }
}

fn arm(value: &str) -> String {
    let known = Arm::ALL.into_iter().find(|arm| arm.name() == value);
    known.map_or_else(|| value.to_owned(), |arm| arm.title().to_owned())
}

/// A factor's level as prose: `rate` `10` → `10 likes/s`.
#[must_use]
pub fn level(factor: &str, value: &str) -> String {
    let counted = |one: &str| format!("{value} {one}{}", if value == "1" { "" } else { "s" });
    match factor {
        "arm" => arm(value),
        "edge" => format!("edge {value}"),
        "rate" => format!("{value} likes/s"),
        "viewers" | "posts" | "pods" | "likers" => counted(factor.trim_end_matches('s')),
        _ => format!("{} {value}", factor.replace('_', " ")),
    }
}

/// Factors that only number the repetitions of a cell.
#[must_use]
pub fn is_repetition(factor: &str) -> bool {
    matches!(factor, "rep" | "repetition" | "run" | "side" | "pair")
}

/// As the page prints it.
#[must_use]
pub const fn validity(validity: Validity) -> &'static str {
    match validity {
        Validity::Valid => "VALID",
        Validity::Invalid => "INVALID",
        Validity::Saturated => "SATURATED",
        Validity::WriteBound => "WRITE-BOUND",
    }
}

/// A ratio as a difference: `8.4 % lower`, `12 times higher`.
#[must_use]
pub fn difference(ratio: f64) -> String {
    match ratio {
        r if r >= 10.0 => format!("{} times higher", metric::number(r)),
        r if r >= 1.0 => format!("{} higher", metric::percent(r - 1.0)),
        r if r > 0.1 => format!("{} lower", metric::percent(1.0 - r)),
        r => format!("{} times lower", metric::number(1.0 / r)),
    }
}

/// An interval of ratios as signed differences: `−11.7 % to −6.1 %`.
#[must_use]
pub fn interval(low: f64, high: f64) -> String {
    let signed = |ratio: f64| {
        let sign = if ratio < 1.0 { "−" } else { "+" };
        format!("{sign}{}", metric::percent((ratio - 1.0).abs()))
    };
    format!("{} to {}", signed(low), signed(high))
}

/// A range of two texts; the unit is said once. Empty when both are the same.
#[must_use]
pub fn range(low: &str, high: &str) -> String {
    let unit = |text: &str| text.split_once(' ').map(|(_, unit)| unit.to_owned());
    match (unit(low), unit(high)) {
        _ if low == high => String::new(),
        (Some(a), Some(b)) if a == b => format!("{} – {high}", low.split(' ').next().unwrap_or(low)),
        _ => format!("{low} – {high}"),
    }
}

/// Of several lists of parts: what all share, and what only the one at `index` says (its first part where nothing tells it apart).
#[must_use]
pub fn telling<'a>(all: &[Vec<&'a str>], index: usize) -> (Vec<&'a str>, Vec<&'a str>) {
    let own = &all[index];
    let (shared, telling): (Vec<&str>, Vec<&str>) =
        own.iter().partition(|part| all.iter().all(|other| other.contains(part)));
    let telling = if telling.is_empty() { own.iter().take(1).copied().collect() } else { telling };
    (shared, telling)
}

/// A ratio with the digits it deserves: two decimals, three near one.
#[must_use]
pub fn ratio(ratio: f64) -> String {
    if (0.1..10.0).contains(&ratio) { format!("{ratio:.3}") } else { metric::number(ratio) }
}

/// A p value: never "0".
#[must_use]
pub fn p(p: f64) -> String {
    if p < 0.0001 { "< 0.0001".to_owned() } else { format!("= {}", metric::number(p)) }
}

/// `1 pair`, `3 pairs`.
#[must_use]
pub fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// The first letter as a capital.
#[must_use]
pub fn upper_first(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// Sorts `Q2` before `Q10` and `10 likes/s` before `1000`: runs of digits compare as numbers.
pub type Natural = Vec<(String, u64)>;

/// The key for [`Natural`] order.
#[must_use]
pub fn natural(text: &str) -> Natural {
    let mut key = vec![(String::new(), 0_u64)];
    let mut in_digits = false;
    for letter in text.chars() {
        let digit = letter.to_digit(10).map(u64::from);
        if in_digits && digit.is_none() {
            key.push((String::new(), 0));
        }
        let last = key.last_mut().expect("never empty");
        match digit {
            Some(digit) => last.1 = last.1.saturating_mul(10).saturating_add(digit),
            None => last.0.push(letter),
        }
        in_digits = digit.is_some();
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_read_as_prose() {
        let name = claim("arm: sse-post / stomp-post @ edge=direct, rate=10");
        assert_eq!((name.a.as_str(), name.b.as_str()), ("SSE+POST", "STOMP+POST"));
        assert_eq!(name.context, "edge direct, 10 likes/s");
        let same = claim("A/A arm: sse-post / sse-post @ edge=direct");
        assert_eq!(same.a, same.b);
        assert_eq!(claim("max_age: 0 / 60s").a, "max age 0");
        assert_eq!(claim("whatever").context, "");
    }

    #[test]
    fn numbers_sort_as_numbers() {
        let mut all = ["Q10", "Q2", "rate=1000", "rate=1", "rate=10", "Q2 x", "7"];
        all.sort_by_key(|text| natural(text));
        assert_eq!(all, ["7", "Q2", "Q2 x", "Q10", "rate=1", "rate=10", "rate=1000"]);
    }

    #[test]
    fn differences_in_words() {
        assert_eq!(difference(0.916), "8.4 % lower");
        assert_eq!(difference(1.25), "25.0 % higher");
        assert_eq!(difference(0.25), "75.0 % lower");
        assert_eq!(difference(12.0), "12 times higher");
        assert_eq!(p(0.0), "< 0.0001");
        assert_eq!(count(1, "pair"), "1 pair");
    }
}
