//! Statistics, charts and pages from saved run files; no IO but reading results and writing files.
//!
//! The way of a figure: run file → [`model`] (summaries) → [`verdict`] (pairs) and [`cells`] (side by side) → page.
//! Rendering is deterministic: the same run files give the same bytes, whoever renders them and whenever.

/// Cells side by side.
pub mod cells;
/// Drawings.
pub mod chart;
/// Two folders side by side.
pub mod diff;
/// What each fault cost.
pub mod faults;
/// What scenarios found.
pub mod findings;
/// k6 beside our generator.
pub mod k6;
/// Figures by name, and numbers for people.
pub mod metric;
/// A result folder in memory.
pub mod model;
/// What the templates print.
pub mod page;
/// Charts without a page around them.
pub mod picture;
/// What Prometheus saw.
pub mod prometheus;
/// The open questions by number.
pub mod questions;
/// Results into bytes.
pub mod render;
/// Intervals, exact tests, Holm.
pub mod stats;
/// Claims and what their pairs say.
pub mod verdict;
/// Where a like's time goes.
pub mod waterfall;
/// Levels, claims and validities as prose.
pub mod wording;

/// `pushlab check`: the ledger alone.
mod check;
/// A made-up result folder for tests.
#[cfg(test)]
mod sample;
#[cfg(test)]
mod tests;

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::Context;

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
    /// Also write these panels of each run that Prometheus watched as a picture, report/RUN.svg
    #[arg(long, value_name = "TITLE", value_delimiter = ';')]
    pub panels: Vec<String>,
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

/// Reads a result folder and writes `report/{index.html,report.md,results.json}` into it. Blocks: it reads every run.
///
/// # Errors
/// When the folder holds no environment or no readable run, or the report cannot be written.
pub fn write(dir: &Path) -> anyhow::Result<Written> {
    let results = model::Results::read(dir)?;
    let (verdicts, rendered) = render::judge_and_render(&results)?;
    let report = dir.join("report");
    std::fs::create_dir_all(&report).with_context(|| format!("{} cannot be made", report.display()))?;
    let files = [("report.md", &rendered.markdown), ("results.json", &rendered.json), ("index.html", &rendered.html)];
    for (name, text) in files {
        let path = report.join(name);
        std::fs::write(&path, text).with_context(|| format!("{} cannot be written", path.display()))?;
    }
    Ok(Written {
        index: report.join("index.html"),
        runs: results.runs.len(),
        answers: verdicts.iter().map(|v| format!("{}: {}", v.question, v.sentence)).collect(),
        violations: results.violations(),
    })
}

/// Renders a folder, or compares two.
///
/// # Errors
/// A message for the user.
pub async fn run(config: Config, _shutdown: tokio_util::sync::CancellationToken) -> anyhow::Result<ExitCode> {
    tokio::task::spawn_blocking(move || {
        if let Some(other) = &config.other {
            print!("{}", diff::side_by_side(&config.dir, other)?);
            return Ok(ExitCode::SUCCESS);
        }
        let written = write(&config.dir)?;
        for answer in &written.answers {
            println!("{answer}");
        }
        for violation in &written.violations {
            eprintln!("violation: {violation}");
        }
        println!("{}", written.index.display());
        if !config.panels.is_empty() {
            for (run, picture) in prometheus::pictures(&model::Results::read(&config.dir)?, &config.panels)? {
                let path = config.dir.join("report").join(format!("{run}.svg"));
                std::fs::write(&path, picture).with_context(|| format!("{} cannot be written", path.display()))?;
                println!("{}", path.display());
            }
        }
        if !config.open_nothing {
            open(&written.index);
        }
        Ok(written.exit_code())
    })
    .await?
}

/// Shows the page to a person who sits before a display; nothing depends on it.
fn open(page: &Path) {
    let display = ["DISPLAY", "WAYLAND_DISPLAY"].into_iter().any(|name| std::env::var_os(name).is_some());
    if std::io::stdout().is_terminal() && (display || cfg!(target_os = "macos")) {
        let opener = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };
        let quiet =
            Command::new(opener).arg(page).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        drop(quiet);
    }
}
