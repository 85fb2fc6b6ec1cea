//! `pushlab check`: the ledger alone, on run files.

use std::path::PathBuf;
use std::process::ExitCode;

use tokio_util::sync::CancellationToken;

use crate::result::summary::Account;
use crate::result::{file, ledger};

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
            let account = ledger::account(&file::read(path)?);
            print!("{}", table(&path.display().to_string(), &account));
            all_close &= account.closes();
        }
        Ok(if all_close { ExitCode::SUCCESS } else { ExitCode::from(VIOLATION) })
    })
    .await?
}

/// One run's account as a small table.
fn table(name: &str, a: &Account) -> String {
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
