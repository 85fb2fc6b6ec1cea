//! What each fault cost, by transport, with anti-entropy on and off: a row per cell, and the whole in a sentence.

use std::collections::BTreeMap;

use super::cells::{Column, Group};
use super::{metric, wording};
use crate::result::summary::{Account, RunSummary, Validity};

/// What stands over the figures of a row.
const HEAD: [&str; 12] = [
    "viewers hit",
    "connections lost",
    "gave up for good",
    "loss noticed p50",
    "longest",
    "healed p50",
    "longest",
    "lost final values",
    "likes counted twice",
    "likes refused",
    "likes sent again",
    "slowest like",
];

/// A table: heads of its columns, and its rows by name.
pub type Table = (Vec<String>, Vec<(String, Vec<String>)>);

/// Is this a cell in which something failed?
#[must_use]
pub fn is_one(group: &Group<'_>) -> bool {
    group.columns.iter().any(|column| levels(column).is_some_and(|levels| levels.contains_key("fault")))
}

/// The table of these cells; none when nothing failed in any of them.
#[must_use]
pub fn table(groups: &[Group<'_>]) -> Option<Table> {
    let mut rows: Vec<_> = columns(groups).map(|column| (name(column), figures(column))).collect();
    rows.sort_by_key(|(name, _)| wording::natural(name));
    (!rows.is_empty()).then(|| (HEAD.map(String::from).to_vec(), rows))
}

/// All of it in a sentence or two.
#[must_use]
pub fn sentences(groups: &[Group<'_>]) -> Vec<String> {
    let valid: Vec<_> = columns(groups).filter(|column| column.validity != Validity::Invalid).collect();
    if valid.is_empty() {
        return Vec::new();
    }
    let sum =
        |of: fn(&Account) -> u64| -> u64 { valid.iter().map(|column| accounts(column).map(of).sum::<u64>()).sum() };
    let figure = |name: &str| -> f64 { valid.iter().map(|column| total(column, name)).sum() };
    let runs: usize = valid.iter().map(|column| column.shown.len()).sum();
    let mut said = vec![format!(
        "In {} with a fault under load {} final values were lost and {} likes counted twice; {} likes were refused, {} sent again \
         because their outcome was unknown.",
        wording::count(runs, "run"),
        sum(lost_finals),
        sum(counted_twice),
        metric::number(figure("likes_failed")),
        metric::number(figure("likes_sent_again")),
    )];
    let gave_up = figure("viewers_that_gave_up");
    if gave_up > 0.0 {
        said.push(format!(
            "{} emulated EventSources gave up for good, as browsers do on any answer but a 200 stream: they show an old value until the page is loaded again.",
            metric::number(gave_up)
        ));
    }
    let healed = valid.iter().filter_map(|column| Some((column.figure(|s| s.healed_ms.map(|ms| ms[1]))?[2], *column)));
    if let Some((ms, column)) = healed.max_by(|a, b| a.0.total_cmp(&b.0)) {
        said.push(format!("The longest to heal took {}: {}.", metric::micros(ms * 1e3), name(column)));
    }
    said
}

fn columns<'g, 'a>(groups: &'g [Group<'a>]) -> impl Iterator<Item = &'g Column<'a>> {
    groups.iter().filter(|group| is_one(group)).flat_map(|group| &group.columns)
}

fn levels<'c>(column: &'c Column<'_>) -> Option<&'c BTreeMap<String, String>> {
    column.all.first().and_then(|run| run.summary.cell.as_ref()).map(|cell| &cell.levels)
}

/// `pod hung (SIGSTOP) for 12s · SSE+POST, native EventSource · anti-entropy on · heartbeat 2s`.
fn name(column: &Column<'_>) -> String {
    let none = BTreeMap::new();
    let levels = levels(column).unwrap_or(&none);
    let level = |factor: &str| levels.get(factor).map_or("", String::as_str);
    let fault = match level("fault") {
        "nats-restart" => "NATS killed and started again",
        "nats-stop" => "NATS stopped (SIGSTOP)",
        "row-lock" => "the post's row locked by somebody else",
        "database-restart" => "database killed and started again",
        "pod-kill" => "pod killed (SIGKILL)",
        "pod-hang" => "pod hung (SIGSTOP)",
        "pod-term" => "pod drained (SIGTERM)",
        "proxy-reload" => "proxy reloaded",
        "blackhole-edge-pod" => "no packet between edge and pod",
        "blackhole-viewer-edge" => "no packet between viewers and edge",
        "rollout-restart" => "every pod replaced (rollout restart; times count from its first step)",
        other => other,
    };
    let mut name = fault.to_owned();
    match level("hold") {
        "" => {}
        hold if ["nats-restart", "database-restart"].contains(&level("fault")) => {
            name.push_str(&format!(" after {hold}"))
        }
        hold => name.push_str(&format!(" for {hold}")),
    }
    name.push_str(&format!(" · {}", column.arm.title()));
    name.push_str(match level("sse_client") {
        "native" => ", native EventSource",
        "watchdog" => ", page with a watchdog",
        "named-heartbeat" => ", watchdog that sees heartbeats (named events)",
        _ => "",
    });
    name.push_str(&format!(" · anti-entropy {}", level("anti_entropy")));
    for (factor, prose) in [("heartbeat", "heartbeat"), ("retry503", "edge's 503 rule"), ("pod_flags", "pods")] {
        if !level(factor).is_empty() {
            name.push_str(&format!(" · {prose} {}", level(factor)));
        }
    }
    name
}

fn figures(column: &Column<'_>) -> Vec<String> {
    if column.validity == Validity::Invalid {
        let why = column.all.iter().flat_map(|run| &run.summary.reasons).next();
        let mut all = vec![format!("INVALID: {}", why.map_or("", String::as_str))];
        all.resize(HEAD.len(), "–".into());
        return all;
    }
    let time = |of: fn(&RunSummary) -> Option<f64>, place: usize| {
        column.figure(of).map_or_else(|| "–".into(), |figure| metric::micros(figure[place] * 1e3))
    };
    let sum = |of: fn(&Account) -> u64| accounts(column).map(of).sum::<u64>().to_string();
    let own = |name: &str| metric::number(total(column, name));
    vec![
        own("viewers_hit"),
        own("viewers_cut"),
        own("viewers_that_gave_up"),
        time(|s| s.noticed_ms.map(|ms| ms[0]), 0),
        time(|s| s.noticed_ms.map(|ms| ms[1]), 2),
        time(|s| s.healed_ms.map(|ms| ms[0]), 0),
        time(|s| s.healed_ms.map(|ms| ms[1]), 2),
        sum(lost_finals),
        sum(counted_twice),
        own("likes_failed"),
        own("likes_sent_again"),
        time(|s| s.due_to_answer.max.map(|us| us / 1e3), 2),
    ]
}

fn accounts<'c>(column: &'c Column<'_>) -> impl Iterator<Item = &'c Account> {
    column.shown.iter().map(|run| &run.summary.account)
}

fn total(column: &Column<'_>, figure: &str) -> f64 {
    column.shown.iter().filter_map(|run| run.summary.figures.get(figure)).sum()
}

/// Live viewers that did not end on the final value.
const fn lost_finals(account: &Account) -> u64 {
    account.live_viewers.saturating_sub(account.on_final)
}

/// By how much the versions rose beyond what likes explain.
const fn counted_twice(account: &Account) -> u64 {
    account.version_delta.saturating_sub(account.ok + account.unknown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Arm;
    use crate::report::model::Results;
    use crate::report::{cells, sample};

    fn failed() -> Results {
        let mut results = sample::local();
        results.runs.truncate(2);
        for (run, (arm, client)) in results.runs.iter_mut().zip([(Arm::SsePost, "native"), (Arm::StompPost, "")]) {
            run.summary.config.arm = arm;
            let cell = run.summary.cell.as_mut().unwrap();
            cell.question = "Q12".into();
            cell.levels.extend(
                [("fault", "pod-hang"), ("hold", "12s"), ("anti_entropy", "off")].map(|(k, v)| (k.into(), v.into())),
            );
            if !client.is_empty() {
                cell.levels.insert("sse_client".into(), client.into());
            }
            run.summary.validity = Validity::Valid;
            run.summary.noticed_ms = Some([4_100.0, 4_600.0]);
            run.summary.healed_ms = Some([4_300.0, 5_900.0]);
            let figures =
                [("viewers_hit", 33.0), ("viewers_cut", 30.0), ("viewers_that_gave_up", 3.0), ("likes_failed", 0.0)];
            run.summary.figures = figures.map(|(name, value)| (name.to_owned(), value)).into();
        }
        results
    }

    #[test]
    fn a_row_says_what_a_fault_cost() {
        let mut results = failed();
        let account = &mut results.runs[0].summary.account;
        (account.live_viewers, account.on_final) = (100, 98);
        (account.ok, account.unknown, account.version_delta) = (500, 0, 501);
        let groups = cells::groups(&results.runs);
        let (head, rows) = table(&groups).unwrap();
        assert_eq!((head.len(), rows.len()), (12, 2));
        let row = rows.iter().find(|(name, _)| name.contains("native")).unwrap();
        assert_eq!(row.0, "pod hung (SIGSTOP) for 12s · SSE+POST, native EventSource · anti-entropy off");
        assert_eq!(row.1[..9], ["33", "30", "3", "4.1 s", "4.6 s", "4.3 s", "5.9 s", "2", "1"]);
        let said = sentences(&groups);
        assert!(said[0].contains("2 final values were lost and 1 likes counted twice"), "{said:?}");
        assert!(said[1].starts_with("6 emulated EventSources gave up"), "{said:?}");
        assert!(said[2].contains("5.9 s: pod hung"), "{said:?}");
    }

    #[test]
    fn an_invalid_run_says_why_and_has_no_figures() {
        let mut results = failed();
        results.runs.truncate(1);
        results.runs[0].summary.validity = Validity::Invalid;
        results.runs[0].summary.reasons = vec!["the fault did not fire: no packet was dropped".into()];
        let groups = cells::groups(&results.runs);
        let (_, rows) = table(&groups).unwrap();
        assert_eq!(rows[0].1[..2], ["INVALID: the fault did not fire: no packet was dropped", "–"]);
        assert!(sentences(&groups).is_empty());
    }

    #[test]
    fn where_nothing_failed_there_is_no_table() {
        let results = sample::local();
        assert_eq!(table(&cells::groups(&results.runs)), None);
    }
}
