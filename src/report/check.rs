//! `pushlab check`: the ledger alone, on run files.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use tokio_util::sync::CancellationToken;

use crate::result::summary::{Account, Quantiles, summarize};
use crate::result::{Session, file};

/// Options of `pushlab check`.
#[derive(Debug, Clone, clap::Args)]
pub struct CheckConfig {
    /// Run files (`*.run.gz`), as written by `pushlab load` and `pushlab compare`
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

/// The exit code that says: the ledger found a violation.
const VIOLATION: u8 = 3;

/// The ledger alone, on run files: exit 3 on a violation.
///
/// # Errors
/// When a file cannot be read.
pub async fn check(config: CheckConfig, shutdown: CancellationToken) -> anyhow::Result<ExitCode> {
    tokio::task::spawn_blocking(move || {
        let mut all_close = true;
        for path in &config.files {
            if shutdown.is_cancelled() {
                anyhow::bail!("interrupted");
            }
            let run = file::read(path)?;
            let name = path.display().to_string();
            let summary = summarize(&name, &run);
            let account = summary.account;
            print!("{}", table(&name, &account, &Absences::of(&run.header.sessions), &summary.commit_to_arrival));
            all_close &= account.closes();
        }
        Ok(if all_close { ExitCode::SUCCESS } else { ExitCode::from(VIOLATION) })
    })
    .await?
}

/// How often, why and for how long viewers had no stream.
#[derive(Debug, Default, PartialEq, Eq)]
struct Absences {
    /// From the end of a viewer's stream to its next snapshot, in µs, ascending.
    gaps_us: Vec<u32>,
    /// Viewers whose last stream broke and was not replaced.
    gone: usize,
    /// Why streams ended, in the words of the run file; those that viewers left by plan are not counted.
    reasons: BTreeMap<String, usize>,
}

impl Absences {
    fn of(sessions: &[Session]) -> Self {
        let mut all = Self::default();
        let mut lost: BTreeMap<u32, u32> = BTreeMap::new();
        let mut by_time: Vec<&Session> = sessions.iter().collect();
        by_time.sort_by_key(|session| (session.viewer, session.attempted_us));
        for session in by_time {
            if let Some(joined) = session.joined_us
                && let Some(since) = lost.remove(&session.viewer)
            {
                all.gaps_us.push(joined.saturating_sub(since));
            }
            if let Some(ended) = session.ended_us
                && let Some(reason) = session.reason.as_ref().filter(|reason| *reason != "left")
            {
                lost.entry(session.viewer).or_insert(ended);
                *all.reasons.entry(reason.clone()).or_default() += 1;
            }
        }
        all.gone = lost.len();
        all.gaps_us.sort_unstable();
        all
    }

    /// In a sentence.
    fn told(&self) -> String {
        let Some(longest) = self.gaps_us.last() else { return format!("none, {} gone for good", self.gone) };
        let ms = |us: u32| f64::from(us) / 1e3;
        let reasons: Vec<_> = self.reasons.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        let median = ms(self.gaps_us[self.gaps_us.len() / 2]);
        format!(
            "{} times, p50 {median:.0} ms, longest {:.0} ms, {} gone for good ({})",
            self.gaps_us.len(),
            ms(*longest),
            self.gone,
            reasons.join(", ")
        )
    }
}

/// How late updates came.
fn arrived(arrival: &Quantiles) -> String {
    let ms = |us: Option<f64>| us.map_or("–".into(), |us| format!("{:.1} ms", us / 1e3));
    format!("commit → arrival p50 {}, p99 {}, at most {}", ms(arrival.p50), ms(arrival.p99), ms(arrival.max))
}

/// One run's account as a small table.
fn table(name: &str, a: &Account, absences: &Absences, arrival: &Quantiles) -> String {
    use std::fmt::Write;
    let mut out = format!("{name}\n");
    let agree = match a.counters_agree {
        Some(true) => "the pods' counters agree",
        Some(false) => "the pods' counters DISAGREE",
        None => "pods' counters not had or not complete",
    };
    let rows = [
        ("likes", format!("{} ok, {} unknown, versions rose by {}", a.ok, a.unknown, a.version_delta)),
        ("expected", format!("{} versions × sessions", a.expected)),
        ("  received", a.received.to_string()),
        ("  conflated", a.conflated.to_string()),
        ("  superseded", a.superseded.to_string()),
        ("  dropped", a.dropped.to_string()),
        ("  snapshot", a.snapshot.to_string()),
        ("  lost", a.lost.to_string()),
        ("missing", format!("{} by the generator, {} by the pods: {agree}", a.missing, a.pods_missing)),
        ("final value", format!("{} of {} live viewers", a.on_final, a.live_viewers)),
        ("no stream", absences.told()),
        ("in the window", arrived(arrival)),
    ];
    for (what, value) in rows {
        let _ = writeln!(out, "  {what:<14}{value}");
    }
    for violation in &a.violations {
        let _ = writeln!(out, "  VIOLATION     {violation}");
    }
    let _ = writeln!(out, "  {}", if a.closes() { "the ledger closes" } else { "the ledger does NOT close" });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_without_a_stream_is_from_the_end_of_one_to_the_snapshot_of_the_next() {
        let session = |viewer, attempted_us, joined_us, ended_us, reason: Option<&str>| Session {
            viewer,
            attempted_us,
            joined_us,
            ended_us,
            reason: reason.map(String::from),
            ..Session::default()
        };
        let absences = Absences::of(&[
            session(1, 0, Some(10), Some(1_000), Some("drain")),
            session(2, 0, Some(10), Some(9_000), Some("left")),
            session(1, 1_500, None, Some(1_600), Some("refused")),
            session(1, 2_000, Some(4_000), Some(9_000), Some("left")),
            session(3, 0, Some(10), Some(2_000), Some("eof")),
        ]);
        assert_eq!((&absences.gaps_us[..], absences.gone), (&[3_000][..], 1));
        assert_eq!(absences.told(), "1 times, p50 3 ms, longest 3 ms, 1 gone for good (drain 1, eof 1, refused 1)");
    }
}
