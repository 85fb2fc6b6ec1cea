//! Figures by the name a plan calls them: `commit_to_arrival.p50`, `cpu_us_per_delivery`, `figures.max_over_mean`.

use crate::result::summary::RunSummary;

/// Is the metric a latency (or the age of what is shown)? Those are compared only where nothing is near its capacity.
#[must_use]
pub fn is_latency(name: &str) -> bool {
    ["commit_to_", "due_to_", "staleness", "noticed_ms", "healed_ms"].iter().any(|prefix| name.starts_with(prefix))
        || (name.starts_with("figures.") && ["_ms", "_us", "latency"].iter().any(|part| name.contains(part)))
}

/// The figure of that name in a run; none when the run has none (or the name is unknown).
#[must_use]
pub fn value(summary: &RunSummary, name: &str) -> Option<f64> {
    if let Some(figure) = summary.figures.get(name.strip_prefix("figures.").unwrap_or(name)) {
        return Some(*figure);
    }
    let fields = serde_json::to_value(summary).ok()?;
    let found = name.split('.').try_fold(&fields, |at, step| match step.parse::<usize>() {
        Ok(index) => at.get(index),
        Err(_) => at.get(step),
    });
    let found = found?;
    // A whole distribution is named by its median: `healed_ms`, `commit_to_arrival`.
    found.as_f64().or_else(|| found.get(0)?.as_f64()).or_else(|| found.get("p50")?.as_f64())
}

/// The name as prose: `commit → arrival p50`.
#[must_use]
pub fn title(name: &str) -> String {
    let (base, quantile) = name.split_once('.').unwrap_or((name, ""));
    let prose = match base {
        "commit_to_arrival" => "commit → arrival",
        "commit_to_last" => "commit → last viewer",
        "due_to_arrival" => "due → arrival",
        "due_to_answer" => "due → answer",
        "cpu_us_per_delivery" => "CPU per delivery",
        "bytes_per_delivery" => "bytes per delivery",
        "events_per_write" => "events per write",
        "deliveries_per_s" => "deliveries per second",
        "accepted_rate" => "accepted likes per second",
        "staleness_us" => return format!("staleness {}", if quantile == "1" { "p99" } else { "p50" }),
        "noticed_ms" => return format!("time to notice, {}", if quantile == "1" { "longest" } else { "p50" }),
        "healed_ms" => return format!("time to heal, {}", if quantile == "1" { "longest" } else { "p50" }),
        "figures" => return title(quantile),
        "max_over_mean" => "most ÷ mean viewers per pod after a pod was added",
        "max_over_mean_before" => "most ÷ mean viewers per pod before",
        "max_over_mean_settled" => "most ÷ mean viewers per pod, settled",
        "balanced_after_s" => "time until most ÷ mean < 1.2",
        "p99_us_on_fullest_pod" => "commit → arrival p99, viewers of the fullest pod",
        "p99_us_on_emptiest_pod" => "commit → arrival p99, viewers of the emptiest pod",
        "newcomers_to_new_pod_10s" => "newcomers to the new pod in its first 10 s",
        "even_share" => "an even share",
        "answered_by_broken_pod" => "streams answered by the broken pod",
        "attempts_that_failed" => "attempts that failed",
        "events_before_the_end" => "events that came before the stream's end",
        "pod_rss_mib" => "memory of the fullest pod",
        "versions_left_out" => "versions pods left out (conflated, dropped)",
        "pod_wrote_mib" => "slow reader: the pod wrote",
        "pod_left_out_versions" => "slow reader: versions the pod left out",
        "pod_wrote_last_after_s" => "slow reader: the pod last wrote after",
        "edge_temp_files_mib" => "slow reader: the edge's temporary files",
        other if quantile.is_empty() => return unit(other).map_or(other, |(bare, _)| bare).replace('_', " "),
        other => return format!("{} {quantile}", other.replace('_', " ")).trim_end().to_owned(),
    };
    match quantile {
        "" => prose.to_owned(),
        "p999" => format!("{prose} p99.9"),
        "max" => format!("{prose}, longest"),
        _ => format!("{prose} {quantile}"),
    }
}

/// A value of that metric with its unit.
#[must_use]
pub fn show(name: &str, value: f64) -> String {
    let name = name.strip_prefix("figures.").unwrap_or(name);
    match unit(name) {
        Some((_, Unit::Micros)) => micros(value),
        Some((_, Unit::Millis)) => micros(value * 1e3),
        Some((_, Unit::Seconds)) => micros(value * 1e6),
        Some((_, Unit::Share)) => percent(value),
        Some((_, Unit::Named(text))) => format!("{} {text}", number(value)),
        None => number(value),
    }
}

enum Unit {
    Micros,
    Millis,
    Seconds,
    Share,
    Named(&'static str),
}

/// The unit that a name ends with (or is known to have), and the name without it.
fn unit(name: &str) -> Option<(&str, Unit)> {
    let base = name.split('.').next().unwrap_or(name);
    if base.starts_with("commit_to_")
        || base.starts_with("due_to_")
        || base == "cpu_us_per_delivery"
        || base.starts_with("p99_us_on_")
    {
        return Some((base, Unit::Micros));
    }
    if ["newcomers_to_new_pod_10s", "answered_by_broken_pod", "attempts_that_failed", "events_before_the_end"]
        .contains(&base)
    {
        return Some((base, Unit::Share));
    }
    let units = [
        ("_us", Unit::Micros),
        ("_ms", Unit::Millis),
        ("_per_s", Unit::Named("/s")),
        ("_s", Unit::Seconds),
        ("_share", Unit::Share),
        ("_mib", Unit::Named("MiB")),
        ("_kib", Unit::Named("KiB")),
        ("_bytes", Unit::Named("B")),
    ];
    units.into_iter().find_map(|(end, unit)| Some((base.strip_suffix(end)?, unit)))
}

/// Three significant digits, thousands grouped by a narrow space: `0.0123`, `4.56`, `78.9`, `12 300`.
#[must_use]
pub fn number(value: f64) -> String {
    if !value.is_finite() {
        return "—".to_owned();
    }
    let size = value.abs();
    if size == 0.0 {
        return "0".to_owned();
    }
    if size >= 1000.0 {
        return grouped(value);
    }
    let exponent = size.log10().floor() as i32;
    let decimals = usize::try_from(2 - exponent).unwrap_or(0).min(6);
    let text = format!("{value:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// A whole number with its thousands grouped by a narrow no-break space.
#[must_use]
pub fn grouped(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = String::from(if value < 0.0 { "−" } else { "" });
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 && digits.len() > 4 {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// A time given in µs, in the unit a person would choose.
#[must_use]
pub fn micros(us: f64) -> String {
    if !us.is_finite() {
        "—".to_owned()
    } else if us.abs() < 1000.0 {
        format!("{} µs", number(us))
    } else if us.abs() < 1_000_000.0 {
        format!("{} ms", number(us / 1000.0))
    } else {
        format!("{} s", number(us / 1_000_000.0))
    }
}

/// A share as a percentage. What is not all is never rounded to "100 %", nor what is something to "0 %".
#[must_use]
pub fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent > 99.95 && percent < 100.0 {
        "> 99.9 %".to_owned()
    } else if percent > 0.0 && percent < 0.05 {
        "< 0.1 %".to_owned()
    } else if (0.95..99.95).contains(&percent) {
        format!("{percent:.1} %")
    } else {
        format!("{} %", number(percent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::summary::Quantiles;

    #[test]
    fn figures_are_found_by_the_name_a_plan_calls_them() {
        let mut run = RunSummary { accepted_rate: 9.5, staleness_us: Some([1.0, 2.0]), ..Default::default() };
        run.commit_to_arrival = Quantiles { p50: Some(412.0), ..Default::default() };
        run.figures.insert("max_over_mean".into(), 1.25);
        assert_eq!(value(&run, "commit_to_arrival.p50"), Some(412.0));
        assert_eq!(value(&run, "commit_to_arrival.p99"), None);
        assert_eq!(value(&run, "accepted_rate"), Some(9.5));
        assert_eq!(value(&run, "staleness_us.1"), Some(2.0));
        assert_eq!(value(&run, "figures.max_over_mean"), Some(1.25));
        assert_eq!(value(&run, "max_over_mean"), Some(1.25));
        assert_eq!(value(&run, "commit_to_arrival"), Some(412.0));
        assert_eq!(value(&run, "staleness_us"), Some(1.0));
        assert_eq!(value(&run, "no.such"), None);
    }

    #[test]
    fn numbers_for_people() {
        for (value, text) in [
            (0.0, "0"),
            (0.012_345, "0.0123"),
            (4.0, "4"),
            (78.94, "78.9"),
            (999.6, "1000"),
            (12_345.0, "12\u{202f}345"),
        ] {
            assert_eq!(number(value), text);
        }
        assert_eq!(micros(412.4), "412 µs");
        assert_eq!(micros(2_206_000.0), "2.21 s");
        assert_eq!(percent(0.999_99), "> 99.9 %");
        assert_eq!(percent(0.000_01), "< 0.1 %");
        assert_eq!(percent(0.1234), "12.3 %");
        assert_eq!(percent(1.0), "100 %");
        assert_eq!(title("commit_to_arrival.p999"), "commit → arrival p99.9");
        assert_eq!((title("figures.held_ms"), show("figures.held_ms", 2206.0)), ("held".into(), "2.21 s".into()));
        assert_eq!((title("newcomer_share"), show("newcomer_share", 0.97)), ("newcomer".into(), "97.0 %".into()));
        assert_eq!(
            (title("slow_reader_mib"), show("slow_reader_mib", 264.0)),
            ("slow reader".into(), "264 MiB".into())
        );
        assert_eq!(title("figures.max_over_mean_before"), "most ÷ mean viewers per pod before");
        assert_eq!(show("events_before_the_end", 1.0), "100 %");
        assert_eq!(show("commit_to_arrival.p50", 412.0), "412 µs");
        assert_eq!(show("deliveries_per_s", 412.0), "412 /s");
    }
}
