//! Statistics, charts and pages from saved run files; no IO but reading results and writing files.
//!
//! The way of a figure: run file → [`model`] (summaries) → [`verdict`] (pairs) and cells (side by side) → page.
//! Rendering is deterministic: the same run files give the same bytes, whoever renders them and whenever.

/// `pushlab check`: the ledger alone.
mod check;
/// A result folder in memory.
pub mod model;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub use check::{CheckConfig, check};

/// Options of `pushlab report`.
#[derive(Debug, Clone, clap::Args)]
pub struct Config {
    /// A result folder, as `pushlab compare` left it
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// A second result folder: print the runs with equal cell ids side by side instead of rendering
    #[arg(value_name = "OTHER")]
    pub other: Option<PathBuf>,
    /// Do not open the page in a browser (never done unless on a terminal with a display)
    #[arg(long)]
    pub open_nothing: bool,
}

/// What rendering found, for the exit code and the last lines on the terminal.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Written {
    /// The page.
    pub index: PathBuf,
    /// Runs that were read.
    pub runs: usize,
    /// The answers, one sentence per claim, as the page prints them.
    pub answers: Vec<String>,
    /// Every broken rule of the ledger or a scenario, with the run it was found in; non-empty: exit code 3.
    pub violations: Vec<String>,
}

impl Written {
    /// 0, or 3 when the ledger found a violation.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        if self.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(3) }
    }
}

/// Reads a result folder and writes `report/{index.html,report.md,results.json}` into it.
///
/// # Errors
/// When the folder holds no environment or no readable run, or the report cannot be written.
pub fn write(dir: &Path) -> anyhow::Result<Written> {
    let _ = dir;
    anyhow::bail!("rendering is not built yet")
}

/// Renders a folder, or compares two.
///
/// # Errors
/// A message for the user.
pub async fn run(config: Config, _shutdown: tokio_util::sync::CancellationToken) -> anyhow::Result<ExitCode> {
    let written = write(&config.dir)?;
    println!("{}", written.index.display());
    Ok(written.exit_code())
}
