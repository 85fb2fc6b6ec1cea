//! Answers of scenarios that are no matter of pairs: an edge holds events back or it does not; a viewer came back or it did not.

use super::cells::{Column, Group};
use super::model::Results;
use super::{faults, metric, wording};
use crate::result::summary::Validity;

/// The findings of a question, one sentence each.
#[must_use]
pub fn of(question: &str, groups: &[Group<'_>]) -> Vec<String> {
    let own = groups.iter().filter(|group| group.question == question);
    let usable = own.flat_map(|group| group.columns.iter().map(move |column| (group, column)));
    let usable: Vec<_> = usable.filter(|(_, column)| column.validity != Validity::Invalid).collect();
    match question {
        "Q2" => held_back(&usable),
        "Q12" => {
            let own: Vec<Group<'_>> = groups.iter().filter(|group| group.question == question).cloned().collect();
            let mut found = faults::sentences(&own);
            // More than a few are better read in the scenario's table.
            let few = usable.iter().take(if usable.len() > 6 { 0 } else { 6 });
            found.extend(few.filter_map(|(group, column)| came_back(group, column)));
            found
        }
        _ => Vec::new(),
    }
}

/// The arms' medians of a question that the plan did not pair, one sentence per cell: figures, not a ranking.
#[must_use]
pub fn side_by_side(question: &str, groups: &[Group<'_>]) -> Vec<String> {
    // Faults have sentences and a table of their own.
    let own = groups.iter().filter(|group| !faults::is_one(group));
    let own = own.filter(|group| group.question == question && group.columns.len() > 1);
    own.filter_map(|group| {
        let cell = group.columns.first()?.all.first()?.summary.cell.as_ref()?;
        let name = cell.primary_metric.as_str();
        let columns: Vec<String> = group.columns.iter().filter_map(|column| in_short(column, name)).collect();
        let title = metric::title(name);
        (!columns.is_empty()).then(|| format!("{}: {title} {}.", group.title, columns.join(", ")))
    })
    .collect()
}

/// A column's primary metric, or what it is shown instead of one.
fn in_short(column: &Column<'_>, name: &str) -> Option<String> {
    let label = &column.label;
    match column.validity {
        Validity::Valid => {
            let [value, ..] = column.figure(|s| metric::value(s, name))?;
            Some(format!("{label} {}", metric::show(name, value)))
        }
        Validity::Invalid => Some(format!("{label} INVALID")),
        Validity::WriteBound => {
            let [accepted, ..] = column.figure(|s| Some(s.accepted_rate))?;
            Some(format!("{label} WRITE-BOUND ({} likes/s accepted)", metric::number(accepted)))
        }
        Validity::Saturated => {
            let [delivered, ..] = column.figure(|s| Some(s.delivered_share))?;
            let [stale, ..] = column.figure(|s| s.staleness_us.map(|age| age[0]))?;
            let (delivered, stale) = (metric::percent(delivered), metric::micros(stale));
            Some(format!("{label} SATURATED ({delivered} of the versions delivered, staleness p50 {stale})"))
        }
    }
}

/// Which edges hold events back until the stream ends.
fn held_back(cells: &[(&Group<'_>, &Column<'_>)]) -> Vec<String> {
    let (mut held, mut passed) = (Vec::new(), Vec::new());
    for (group, column) in cells {
        let Some([early, ..]) = column.figure(|s| s.figures.get("events_before_the_end").copied()) else { continue };
        let context: Vec<&str> = group.context.split(" · ").filter(|part| !part.starts_with("scenario ")).collect();
        let name = context.join(", ");
        match column.figure(|s| s.commit_to_arrival.p50) {
            _ if early >= 1.0 => passed.push(name),
            Some([p50, ..]) => held.push(format!("{name} (commit → arrival p50 {})", metric::micros(p50))),
            None => held.push(format!("{name} ({} came in time)", metric::percent(early))),
        }
    }
    let mut found = Vec::new();
    if !held.is_empty() {
        found.push(format!("Events were held back until the stream ended by: {}.", held.join("; ")));
    }
    if !passed.is_empty() {
        found.push(format!("Every event came at once through: {}.", passed.join("; ")));
    }
    found
}

/// How a cell's viewers fared when their pod was killed.
fn came_back(group: &Group<'_>, column: &Column<'_>) -> Option<String> {
    let noticed = column.figure(|s| s.noticed_ms.map(|ms| ms[1]))?;
    let healed = column.figure(|s| s.healed_ms.map(|ms| ms[1]))?;
    let ms = |figure: [f64; 3]| metric::micros(figure[2] * 1000.0);
    let (live, on_final) = column.shown.iter().fold((0, 0), |(live, on_final), run| {
        (live + run.summary.account.live_viewers, on_final + run.summary.account.on_final)
    });
    let cut = column.figure(|s| s.figures.get("viewers_cut").copied());
    let cut = cut.map_or(String::new(), |[cut, ..]| format!("{} cut viewers, ", metric::number(cut)));
    Some(format!(
        "{} ({}): {cut}the loss was noticed within {} and healed within {}; {on_final} of {live} live viewers ended on the final value.",
        column.label,
        group.title,
        ms(noticed),
        ms(healed)
    ))
}

/// Q8 is asserted in every run over several pods.
#[must_use]
pub fn no_stickiness(results: &Results) -> Option<String> {
    let spread = results.runs.iter().filter(|run| {
        let pods = |name: &str| run.summary.figures.get(name).copied().unwrap_or_default();
        pods("pods_with_viewers") >= 2.0 && pods("pods_with_likes") >= 1.0
    });
    let (mut runs, mut good) = (0, 0);
    for run in spread {
        let account = &run.summary.account;
        let asserted = run.observed.as_ref().is_none_or(|observed| observed.violations.is_empty());
        runs += 1;
        good += usize::from(account.closes() && account.on_final == account.live_viewers && asserted);
    }
    let over = wording::count(runs, "run");
    match runs {
        0 => None,
        _ if good == runs => Some(format!(
            "No: in {over} the viewers were on several pods, no edge kept anybody on one, and every live viewer ended on the final value."
        )),
        _ => Some(format!("In doubt: of {over} over several pods, {} broke a rule (see the ledger).", runs - good)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{cells, sample};

    #[test]
    fn edges_that_hold_back_are_told_from_those_that_do_not() {
        let mut results = sample::local();
        for run in results.runs.iter_mut().filter(|run| run.summary.cell.as_ref().unwrap().question == "Q2") {
            let edge = run.summary.cell.as_ref().unwrap().levels["edge"].clone();
            let early = if edge == "gzip" || edge.ends_with("1.0") { 0.0 } else { 1.0 };
            run.summary.figures = [("events_before_the_end".into(), early)].into();
        }
        let found = of("Q2", &cells::groups(&results.runs));
        assert!(found[0].contains("held back until the stream ended by: edge buffering-on-1.0 ("), "{found:?}");
        assert!(found[0].contains("edge gzip (") && !found[0].contains("1.1"), "{found:?}");
        assert_eq!(found[1], "Every event came at once through: edge buffering-off-1.1; edge buffering-on-1.1.");
    }

    #[test]
    fn arms_that_were_not_paired_still_show_their_figures() {
        let results = sample::local();
        let found = side_by_side("Q1", &cells::groups(&results.runs));
        assert!(found.iter().any(|line| line.contains("commit → arrival p50 SSE+POST")), "{found:?}");
    }

    #[test]
    fn stickiness_is_answered_by_the_runs_that_could_have_needed_it() {
        let mut results = sample::local();
        assert_eq!(no_stickiness(&results), None);
        for run in &mut results.runs[..3] {
            run.summary.figures = [("pods_with_viewers".into(), 3.0), ("pods_with_likes".into(), 3.0)].into();
        }
        assert!(no_stickiness(&results).unwrap().starts_with("No: in 3 runs"));
        results.runs[0].summary.account.on_final -= 1;
        assert!(no_stickiness(&results).unwrap().starts_with("In doubt: of 3 runs over several pods, 1 broke"));
    }
}
