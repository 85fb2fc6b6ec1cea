//! A result folder in memory: the environment and, of each run, its summary and what the header saw from outside.

use std::path::Path;

use anyhow::{Context, bail};

use crate::result::k6::{self, K6Run};
use crate::result::snapshot::Snapshot;
use crate::result::summary::{RunSummary, summarize};
use crate::result::{Environment, GeneratorHealth, Header, Observed, PodCounters, file};

/// Everything a report is made from.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Results {
    /// `environment.json`.
    pub environment: Environment,
    /// The runs in executed order.
    pub runs: Vec<Run>,
    /// What k6 left beside them.
    pub k6: Vec<K6Run>,
    /// Files that could not be read, and why: listed on the page, never passed over.
    pub unreadable: Vec<String>,
    /// What Prometheus saw, in the order of the runs; empty unless `--observe`.
    pub snapshots: Vec<Snapshot>,
}

/// One run: its figures, and the parts of its header that a page shows.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Run {
    /// The figures.
    pub summary: RunSummary,
    /// Ends of warm-up, measurement and cool-down in seconds after the origin.
    pub phases_s: [f64; 3],
    /// How the generator did.
    pub generator: GeneratorHealth,
    /// The pods' counters over the run.
    pub pods: Vec<PodCounters>,
    /// What `compare` saw from outside.
    pub observed: Option<Observed>,
}

impl Results {
    /// Reads `environment.json`, every `cells/*.run.gz` and `k6/*.json` of a result folder, one run file in memory at a time.
    ///
    /// # Errors
    /// When the folder is not one that `pushlab compare` left, or holds no readable run.
    pub fn read(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join("environment.json");
        let text = std::fs::read(&path).with_context(|| {
            format!("{} cannot be read: is {} a folder that `pushlab compare` wrote?", path.display(), dir.display())
        })?;
        let environment =
            serde_json::from_slice(&text).with_context(|| format!("{} is not an environment", path.display()))?;
        let cells = dir.join("cells");
        let mut names: Vec<String> = std::fs::read_dir(&cells)
            .with_context(|| format!("{} cannot be read", cells.display()))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.ends_with(".run.gz"))
            .collect();
        names.sort();
        let (mut runs, mut unreadable) = (Vec::new(), Vec::new());
        for name in &names {
            match file::read(&cells.join(name)) {
                Ok(run) => runs.push(Run::new(summarize(&format!("cells/{name}"), &run), run.header)),
                // Without this machine's path: equal folders give equal bytes wherever they lie.
                Err(error) => {
                    let text = format!("{:#}", anyhow::Error::from(error));
                    let path = cells.join(name).display().to_string();
                    let text = if text.contains(&path) { text } else { format!("{path}: {text}") };
                    unreadable.push(text.replace(&path, &format!("cells/{name}")));
                }
            }
        }
        if runs.is_empty() {
            let why = unreadable.first().map_or_else(|| "it is empty".to_owned(), ToOwned::to_owned);
            bail!("no run file in {} can be read ({why})", cells.display());
        }
        runs.sort_by_key(|run| run.summary.cell.as_ref().map_or(u32::MAX, |cell| cell.index));
        let (k6, not_k6) = k6::read_folder(dir);
        unreadable.extend(not_k6);
        let snapshots = snapshots(dir, &mut unreadable);
        Ok(Self { environment, runs, k6, unreadable, snapshots })
    }

    /// The stack without proxy, broker or row lock, on which transports are not ranked by latency.
    #[must_use]
    pub fn embedded(&self) -> bool {
        self.environment.stack == "embedded"
    }

    /// The command that repeats one question of this plan.
    #[must_use]
    pub fn command_for(&self, question: &str) -> String {
        let command = match self.environment.command.trim() {
            "" => "pushlab compare",
            given => given,
        };
        if command.contains("--question") || question.is_empty() {
            command.to_owned()
        } else {
            format!("{command} --question {question}")
        }
    }

    /// Every broken rule of the ledger or of a scenario, with the run it was found in.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        let of = |run: &Run| {
            let scenario = run.observed.iter().flat_map(|observed| observed.violations.clone());
            let all: Vec<String> = run.summary.account.violations.iter().cloned().chain(scenario).collect();
            all.into_iter().map(|text| format!("{}: {text}", run.summary.file)).collect::<Vec<_>>()
        };
        self.runs.iter().flat_map(of).collect()
    }
}

/// `prometheus/*.json` of a result folder in the order of their names, which is the runs'.
fn snapshots(dir: &Path, unreadable: &mut Vec<String>) -> Vec<Snapshot> {
    let files = std::fs::read_dir(dir.join("prometheus")).into_iter().flatten().flatten();
    let mut paths: Vec<_> =
        files.map(|entry| entry.path()).filter(|p| p.extension().is_some_and(|e| e == "json")).collect();
    paths.sort();
    let mut read = Vec::new();
    for path in paths {
        match Snapshot::read(&path) {
            Ok(snapshot) => read.push(snapshot),
            Err(error) => {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                unreadable.push(format!("prometheus/{name}: {error:#}"));
            }
        }
    }
    read
}

impl Run {
    /// A run from its summary and the header of its file.
    #[must_use]
    pub fn new(summary: RunSummary, header: Header) -> Self {
        let seconds = |us: u64| us as f64 / 1e6;
        Self {
            summary,
            phases_s: [header.warmup_end_us, header.measure_end_us, header.cooldown_end_us].map(seconds),
            generator: header.generator,
            pods: header.pods,
            observed: header.observed,
        }
    }

    /// The question it serves; empty for a bare `load`.
    #[must_use]
    pub fn question(&self) -> &str {
        self.summary.cell.as_ref().map_or("", |cell| cell.question.as_str())
    }
}
