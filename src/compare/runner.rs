//! Runs the cells of a plan in their order, saves each one, and resumes where an earlier run stopped.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio_util::sync::CancellationToken;

use super::calibrate::Capacity;
use super::edges::Edge;
use super::namespace;
use super::observe::snapshot;
use super::plan::{Broken, FaultKind, Planned, Scenario};
use super::scenario::{balance, buffering, faults, latency, no_stickiness, slow_consumer, slow_reader};
use super::stack::kubernetes::Cluster;
use super::stack::{Deployment, Kind, Stack};
use crate::result::snapshot::Snapshot;
use crate::result::summary::{RunSummary, Validity, summarize};
use crate::result::{Observed, RunResult, file};

/// A cell is tried this often; a second failure in a row of three cells ends the plan.
const TRIES: u32 = 2;

/// A cell in no pair whose run was INVALID is run again, this often in all; a pair's members must stay neighbours in time.
const VALID_TRIES: usize = 3;

/// What became of the plan.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Cells that were run now.
    pub ran: usize,
    /// Cells that were there from an earlier run.
    pub kept: usize,
    /// Cells that could not be run, with the reason.
    pub failed: Vec<(String, String)>,
}

/// A result folder: `plan.toml`, `environment.json`, `cells/`, `edges/`, `report/`.
#[derive(Debug, Clone)]
pub struct Folder(pub PathBuf);

impl Folder {
    /// Makes it, or takes an existing one of the same plan.
    ///
    /// # Errors
    /// When it cannot be written, or holds another plan's results.
    pub fn open(path: &Path, plan: &str) -> anyhow::Result<Self> {
        let cannot = || format!("cannot write to {}; give another folder by --out", path.display());
        for folder in ["cells", "edges"] {
            std::fs::create_dir_all(path.join(folder)).with_context(cannot)?;
        }
        let kept = path.join("plan.toml");
        match std::fs::read_to_string(&kept) {
            Ok(text) if text != plan => {
                bail!("{} holds the results of another plan; give another folder by --out", path.display())
            }
            Ok(_) => {}
            Err(_) => std::fs::write(&kept, plan).with_context(cannot)?,
        }
        Ok(Self(path.to_owned()))
    }

    /// Ids of the cells that are finished.
    #[must_use]
    pub fn finished(&self) -> HashSet<String> {
        let files = std::fs::read_dir(self.0.join("cells")).into_iter().flatten().flatten();
        let runs = files.map(|entry| entry.path()).filter(|path| path.to_string_lossy().ends_with(".run.gz"));
        runs.filter_map(|path| Some(file::read_header(&path).ok()?.cell?.id)).collect()
    }

    /// Writes a run beside its name first, so that a half-written one is never taken for a result.
    fn save(&self, run: &RunResult) -> anyhow::Result<String> {
        let cell = run.header.cell.as_ref().context("a run without its place")?;
        let name = format!("{:03}-{}.run.gz", cell.index + 1, cell.id);
        let (part, whole) = (self.0.join("cells").join(format!("{name}.part")), self.0.join("cells").join(&name));
        file::write(&part, run)?;
        std::fs::rename(&part, &whole)?;
        Ok(name)
    }

    /// Writes what Prometheus saw of a run.
    fn save_snapshot(&self, snapshot: &Snapshot) -> anyhow::Result<()> {
        let folder = self.0.join("prometheus");
        std::fs::create_dir_all(&folder)?;
        snapshot.write(&folder.join(snapshot.run.replace(".run.gz", ".json")))
    }
}

/// Leaves out what this stack cannot run. A cell behind an edge that is not there is run directly when the plan has no
/// direct twin of it and it is in no pair. Returns the cells and sentences about what was changed.
#[must_use]
pub fn fit(kind: Kind, cluster: Option<&Cluster>, mut cells: Vec<Planned>) -> (Vec<Planned>, Vec<String>) {
    if let Some(cluster) = cluster {
        return fit_cluster(cells, |cell| cluster.why_not(cell));
    }
    let missing = |edge: Edge| match kind {
        Kind::Local => edge.service().is_some_and(|service| service.find().is_none()),
        _ => edge != Edge::Direct,
    };
    let mut notes = Vec::new();
    if cells.iter().any(|cell| cell.fault.is_some_and(FaultKind::needs_namespace))
        && let Some(why) = namespace::why_not()
    {
        let before = cells.len();
        cells.retain(|cell| !cell.fault.is_some_and(FaultKind::needs_namespace));
        notes.push(format!("{} cells with a black-holed path are left out: {why}.", before - cells.len()));
    }
    let planned = cells.len();
    cells.retain(|cell| cell.fault != Some(FaultKind::RolloutRestart));
    if kind != Kind::Local {
        cells.retain(|cell| cell.scenario == Scenario::Latency);
    }
    let mut direct: HashSet<String> = HashSet::new();
    let levels = |cell: &Planned| {
        let others = cell.cell.levels.iter().filter(|(key, _)| !["edge", "buffering"].contains(&key.as_str()));
        others.map(|(key, value)| format!("{key}={value} ")).collect::<String>()
    };
    direct.extend(cells.iter().filter(|cell| cell.edge.edge == Edge::Direct).map(&levels));
    let mut moved = 0;
    cells.retain_mut(|cell| {
        if !missing(cell.edge.edge) {
            return true;
        }
        let stands_in = cell.scenario == Scenario::Latency && cell.cell.pairs.is_empty() && direct.insert(levels(cell));
        if stands_in {
            cell.cell.id = cell.cell.id.replace(cell.edge.edge.name(), "direct").replace("-buffering-off", "");
            cell.cell.levels.insert("edge".into(), "direct".into());
            cell.cell.levels.remove("buffering");
            cell.edge = super::edges::EdgeConfig::new(Edge::Direct);
            moved += 1;
        }
        stands_in
    });
    let left_out = planned - cells.len();
    if left_out > 0 {
        notes.push(format!(
            "{left_out} of {planned} cells need what the {} stack does not have and are left out.",
            kind.name()
        ));
    }
    if moved > 0 {
        notes.push(format!("{moved} cells are planned behind a proxy that is not there and go to the pods directly."));
    }
    number(&mut cells);
    (cells, notes)
}

/// Leaves out what a release cannot do, with every reason once. Nothing is moved: who installs edges wants to see them.
fn fit_cluster(cells: Vec<Planned>, why_not: impl Fn(&Planned) -> Option<String>) -> (Vec<Planned>, Vec<String>) {
    let planned = cells.len();
    let (mut kept, mut reasons) = (Vec::new(), BTreeMap::<String, u32>::new());
    for cell in cells {
        match why_not(&cell) {
            None => kept.push(cell),
            Some(why) => *reasons.entry(why).or_default() += 1,
        }
    }
    number(&mut kept);
    let note = |(why, count): (String, u32)| format!("{count} of {planned} cells are left out: {why}.");
    (kept, reasons.into_iter().map(note).collect())
}

fn number(cells: &mut [Planned]) {
    for (index, cell) in (0..).zip(cells) {
        cell.cell.index = index;
    }
}

/// Runs what is not finished yet. A line per cell.
///
/// # Errors
/// When three cells in a row cannot be run, or results cannot be written.
pub async fn run(
    stack: &mut Stack,
    cells: &[Planned],
    folder: &Folder,
    capacity: Option<Capacity>,
    shutdown: &CancellationToken,
) -> anyhow::Result<Outcome> {
    let finished = folder.finished();
    let (mut outcome, mut row) = (Outcome::default(), 0);
    for (number, planned) in cells.iter().enumerate() {
        let place = format!("[{:>width$}/{}]", number + 1, cells.len(), width = cells.len().to_string().len());
        let id = &planned.cell.id;
        if finished.contains(id) {
            outcome.kept += 1;
            continue;
        }
        let (mut tried, mut invalid) = (0, Vec::new());
        loop {
            tried += 1;
            let begun = Instant::now();
            match cell(stack, planned, folder, capacity, &mut invalid, shutdown).await {
                Ok(None) => {
                    let why = invalid.last().map_or("", String::as_str);
                    println!("{place} {id}: INVALID, once more: {why} ({:.1} s)", begun.elapsed().as_secs_f64());
                    tried -= 1;
                    continue;
                }
                Ok(Some(summary)) => {
                    println!("{place} {id}: {} ({:.1} s)", line(planned, &summary), begun.elapsed().as_secs_f64());
                    (outcome.ran, row) = (outcome.ran + 1, 0);
                }
                Err(_) if shutdown.is_cancelled() => return Ok(outcome),
                Err(error) if tried < TRIES => {
                    println!("{place} {id}: once more, because {error:#}");
                    continue;
                }
                Err(error) => {
                    println!("{place} {id}: could not be run: {error:#}");
                    outcome.failed.push((id.clone(), format!("{error:#}")));
                    row += 1;
                    if row == 3 {
                        bail!("three cells in a row could not be run, the last one because {error:#}");
                    }
                }
            }
            break;
        }
    }
    Ok(outcome)
}

/// One cell: fresh pods and edge, the run, its figures, the file. None when it is to be tried again, because the run was
/// `invalid`; a broken ledger is never tried away.
async fn cell(
    stack: &mut Stack,
    planned: &Planned,
    folder: &Folder,
    capacity: Option<Capacity>,
    invalid: &mut Vec<String>,
    shutdown: &CancellationToken,
) -> anyhow::Result<Option<RunSummary>> {
    let mut deployment = stack.deploy(planned).await?;
    let ran = attempt(stack, &mut deployment, planned, folder, shutdown).await;
    stack.end(deployment).await;
    if planned.fault.is_some() {
        super::faults::restore(stack).await.context("the stack could not be restored after a fault")?;
    }
    let mut run = ran?;
    run.header.cell = Some(planned.cell.clone());
    if let Some(cell) = &mut run.header.cell {
        cell.offered_over_capacity = capacity.and_then(|capacity| capacity.share(planned));
        cell.invalid_before.clone_from(invalid);
    }
    let summary = summarize("", &run);
    let again = planned.cell.pairs.is_empty() && invalid.len() + 1 < VALID_TRIES;
    if again && summary.validity == Validity::Invalid && summary.account.violations.is_empty() {
        invalid.push(summary.reasons.join("; "));
        return Ok(None);
    }
    let name = folder.save(&run)?;
    if let Some(observer) = &stack.observer {
        let taken = snapshot::take(observer, &run.header, &name).await.context("what Prometheus saw");
        folder.save_snapshot(&taken?)?;
    }
    Ok(Some(summary))
}

async fn attempt(
    stack: &mut Stack,
    deployment: &mut Deployment,
    planned: &Planned,
    folder: &Folder,
    shutdown: &CancellationToken,
) -> anyhow::Result<RunResult> {
    if let Some((name, text)) = deployment.cluster.as_ref().and_then(|placed| placed.edge.as_ref()) {
        std::fs::write(folder.0.join("edges").join(name), text)?;
    }
    if let Some(edge) = &deployment.edge {
        std::fs::write(folder.0.join("edges").join(edge.file_name()), edge.rendered()?)?;
    }
    let broken = planned.broken != Broken::None;
    let mut violations = Vec::new();
    if deployment.pods.len() > 1 {
        violations = no_stickiness::check(deployment, usize::from(broken)).await.context("the check for Q8")?;
    }
    let steps = match planned.scenario {
        Scenario::Balance => balance::steps(planned),
        Scenario::BrokenPod => balance::steps_broken(planned),
        Scenario::Faults => faults::steps(planned),
        _ => Vec::new(),
    };
    let mut run = match planned.scenario {
        Scenario::Buffering => buffering::run(stack, deployment, planned).await?,
        Scenario::SlowReader => slow_reader::run(stack, deployment, planned).await?,
        _ => latency::run(stack, deployment, planned, steps, shutdown).await?,
    };
    match planned.scenario {
        Scenario::Balance => balance::judge(&mut run),
        Scenario::BrokenPod => {
            let admin = deployment.pods.first().map(|pod| pod.admin.clone()).unwrap_or_default();
            balance::judge_broken(&mut run, &admin);
        }
        Scenario::SlowConsumer => slow_consumer::judge(&mut run),
        _ => {}
    }
    if let Some(fault) = planned.fault {
        faults::judge(&mut run, fault, deployment);
    }
    let serving: HashSet<_> = run.header.sessions.iter().filter_map(|session| session.pod.as_deref()).collect();
    let liked =
        run.header.pods.iter().filter(|pod| {
            pod.other.iter().any(|(name, value)| name.starts_with("pushlab_likes_total") && *value > 0.0)
        });
    let (serving, liked) = (serving.len(), liked.count());
    let observed = run.header.observed.get_or_insert_with(Observed::default);
    if planned.pods > 1 && serving > 0 {
        observed.figures.insert("pods_with_viewers".into(), f64::from(u32::try_from(serving)?));
        observed.figures.insert("pods_with_likes".into(), f64::from(u32::try_from(liked)?));
    }
    observed.violations.extend(violations);
    Ok(run)
}

/// What a cell came to, on one line.
fn line(planned: &Planned, summary: &RunSummary) -> String {
    let mut parts = vec![format!("{:?}", summary.validity).to_uppercase()];
    let ms = |us: f64| format!("{:.2} ms", us / 1_000.0);
    let q = &summary.commit_to_arrival;
    parts.extend(q.p50.map(|p50| format!("p50 {}", ms(p50))));
    parts.extend(q.p99.map(|p99| format!("p99 {}", ms(p99))));
    if matches!(planned.scenario, Scenario::Latency | Scenario::Faults | Scenario::SlowConsumer) {
        parts.push(format!("{:.0} deliveries/s", summary.deliveries_per_s));
    }
    parts.extend(summary.healed_ms.map(|[p50, max]| format!("healed {p50:.0} ms (longest {max:.0})")));
    if !matches!(planned.scenario, Scenario::Latency) {
        let figures = summary.figures.iter().filter(|(name, _)| !name.starts_with("pods_with"));
        parts.extend(figures.map(|(name, value)| format!("{name} {value:.3}")));
    }
    parts.extend(summary.reasons.first().filter(|_| summary.validity != Validity::Valid).cloned());
    parts.push(match summary.account.violations.first() {
        None => "ledger closes".into(),
        Some(first) => format!("LEDGER VIOLATION: {first}"),
    });
    parts.join(", ")
}

/// A duration as people say it.
#[must_use]
pub fn people(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7_199 => format!("{} min", seconds.div_ceil(60)),
        _ => format!("{} h {} min", seconds / 3_600, seconds % 3_600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::plan::Plan;

    #[test]
    fn the_embedded_stack_runs_the_matrix_directly_and_says_so() {
        let (cells, notes) = fit(Kind::Embedded, None, Plan::load("seed").unwrap().0.expand(None));
        assert_eq!(cells.len(), 21);
        assert!(cells.iter().all(|cell| cell.edge.edge == Edge::Direct && cell.cell.id.contains("direct")));
        assert!(notes[0].contains("directly"), "{notes:?}");
        let (cells, notes) = fit(Kind::Embedded, None, Plan::load("quick").unwrap().0.expand(None));
        assert_eq!(cells.len(), 3, "the direct twins are there already");
        assert!(notes[0].contains("left out"), "{notes:?}");
    }

    #[test]
    fn what_a_release_cannot_do_is_left_out_with_each_reason_once() {
        let cells = Plan::load("kind").unwrap().0.expand(None);
        let balance = cells.iter().filter(|cell| cell.scenario == Scenario::Balance).count();
        let all = cells.len();
        let (kept, notes) = fit_cluster(cells.clone(), |cell| {
            (cell.scenario == Scenario::Balance).then(|| "nobody may scale".to_owned())
        });
        assert_eq!(notes, [format!("{balance} of {all} cells are left out: nobody may scale.")]);
        assert_eq!(kept.len(), all - balance);
        assert!((0..).zip(&kept).all(|(index, cell)| cell.cell.index == index));
        // What only a cluster can do, the local stack does not try.
        let (local, _) = fit(Kind::Local, None, cells);
        assert!(local.iter().all(|cell| cell.fault != Some(FaultKind::RolloutRestart)));
    }

    #[test]
    fn a_folder_of_another_plan_is_refused_and_of_the_same_is_resumed() {
        let folder = tempfile::tempdir().unwrap();
        let mut run = RunResult::default();
        run.header.format = crate::result::FORMAT;
        run.header.cell = Some(crate::result::Cell { id: "q1-x".into(), ..Default::default() });
        Folder::open(folder.path(), "a").unwrap().save(&run).unwrap();
        assert!(Folder::open(folder.path(), "a").unwrap().finished().contains("q1-x"));
        assert!(Folder::open(folder.path(), "b").unwrap_err().to_string().contains("--out"));
    }
}
