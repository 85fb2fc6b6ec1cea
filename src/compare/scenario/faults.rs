//! Q12: something fails under load. Viewers come back by themselves or stay and catch up; noticing and healing are told apart.

use std::time::Duration;

use crate::compare::faults::{Fault, Step, Target};
use crate::compare::namespace::Path;
use crate::compare::plan::{FaultKind, Planned};
use crate::compare::stack::Deployment;
use crate::compare::stack::processes::Process;
use crate::result::{GAVE_UP, Outcome, RunResult};

/// The pod that suffers. Not the first one, so that no order of pods favours it.
const VICTIM: &str = "pod-2";

/// Likes flow undisturbed for this long, or a quarter of the window if that is shorter.
const BEFORE: Duration = Duration::from_secs(2);

/// The fault, and its end if it has one.
#[must_use]
pub fn steps(planned: &Planned) -> Vec<Step> {
    let at = BEFORE.min(planned.phases.measure / 4);
    let victim = || Target::Pod(VICTIM.into());
    let path = || Path::EdgeToPod(VICTIM.into());
    let (fault, end) = match planned.fault {
        None => return Vec::new(),
        Some(FaultKind::NatsRestart) => (Fault::Kill(Target::Broker), Some(Fault::Start(Target::Broker))),
        Some(FaultKind::NatsStop) => (Fault::Hold(Target::Broker), Some(Fault::Release(Target::Broker))),
        Some(FaultKind::DatabaseRestart) => (Fault::Kill(Target::Database), Some(Fault::Start(Target::Database))),
        Some(FaultKind::PodKill) => (Fault::Kill(victim()), None),
        Some(FaultKind::PodHang) => (Fault::Hold(victim()), Some(Fault::Release(victim()))),
        Some(FaultKind::PodTerm) => (Fault::Terminate(victim()), None),
        Some(FaultKind::ProxyReload) => (Fault::ReloadEdge, None),
        Some(FaultKind::RowLock) => (Fault::LockRow, Some(Fault::FreeRow)),
        Some(FaultKind::RolloutRestart) => (Fault::Restart, None),
        Some(FaultKind::BlackholeEdgePod) => (Fault::Blackhole(path()), Some(Fault::Open(path()))),
        Some(FaultKind::BlackholeViewerEdge) => {
            (Fault::Blackhole(Path::ViewersToEdge), Some(Fault::Open(Path::ViewersToEdge)))
        }
    };
    let end = end.map(|fault| Step { at: at + planned.hold, fault });
    std::iter::once(Step { at, fault }).chain(end).collect()
}

/// Whom it hit. A fault that nobody could feel did not fire.
pub fn judge(run: &mut RunResult, fault: FaultKind, deployment: &Deployment) {
    let Some(observed) = &mut run.header.observed else { return };
    let Some(begun) = observed.markers.first().map(|marker| marker.at_us) else { return };
    let there = move |ended: Option<u32>| ended.is_none_or(|ended| u64::from(ended) >= begun);
    let sessions =
        || run.header.sessions.iter().filter(move |session| session.joined_us.is_some() && there(session.ended_us));
    let hit = sessions().filter(|session| {
        u64::from(session.joined_us.unwrap_or(u32::MAX)) < begun
            && (!fault.is_of_a_pod() || session.pod.as_deref() == Some(VICTIM))
    });
    let hit = hit.count();
    let cut = sessions().filter(|session| session.ended_us.is_some() && session.reason.as_deref() != Some("left"));
    let gave_up = run.header.sessions.iter();
    let gave_up = gave_up.filter(|session| session.reason.as_deref().is_some_and(|reason| reason.starts_with(GAVE_UP)));
    let failed = run.likes.outcome.iter().filter(|outcome| **outcome == Outcome::Failed as u8);
    let number = |n: usize| f64::from(u32::try_from(n).unwrap_or(u32::MAX));
    let retried = u32::try_from(run.header.generator.retried).unwrap_or(u32::MAX);
    observed.figures.extend([
        ("viewers_hit".to_owned(), number(hit)),
        ("viewers_cut".to_owned(), number(cut.count())),
        ("viewers_that_gave_up".to_owned(), number(gave_up.count())),
        ("likes_failed".to_owned(), number(failed.count())),
        ("likes_sent_again".to_owned(), f64::from(retried)),
    ]);
    // How a cluster's pod ended is not seen: it is gone with its status.
    if fault == FaultKind::PodTerm && deployment.cluster.is_none() {
        let pid = deployment.pods.iter().find(|pod| pod.name == VICTIM).and_then(|pod| pod.pid);
        let process = deployment.processes.iter().find(|process| Some(process.pid) == pid);
        let ended = process.map(Process::has_ended);
        match ended {
            Some(Some(ended)) if ended.code == Some(0) => {}
            Some(Some(ended)) => {
                observed.violations.push(format!("the drained pod ended with {}, not with exit 0", ended.how))
            }
            _ => observed.violations.push("the drained pod was still there when the run was over".into()),
        }
    }
    if hit == 0 {
        run.header.generator.problems.push("the fault did not fire: no viewer was where it happened".into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::plan::Plan;
    use crate::result::{Marker, Observed, Session};

    #[test]
    fn every_fault_that_lasts_is_ended_within_the_window() {
        for cell in Plan::load("faults").unwrap().0.expand(None) {
            let steps = steps(&cell);
            assert!(!steps[0].fault.is_recovery());
            assert_eq!(steps.len(), if cell.hold.is_zero() { 1 } else { 2 }, "{}", cell.cell.id);
            if let Some(end) = steps.get(1) {
                assert!(end.fault.is_recovery() && end.at == steps[0].at + cell.hold);
                assert!(end.at + Duration::from_secs(2) <= cell.phases.measure, "{}", cell.cell.id);
            }
        }
    }

    #[test]
    fn a_fault_that_nobody_could_feel_did_not_fire() {
        let session = |pod: &str, ended_us: Option<u32>| Session {
            joined_us: Some(1),
            ended_us,
            pod: Some(pod.into()),
            ..Session::default()
        };
        let mut run = RunResult::default();
        run.header.sessions = vec![session("pod-1", None), session(VICTIM, Some(900)), session("pod-1", Some(1_500))];
        let marker = Marker { at_us: 1_000, label: "pod-2 killed".into(), recovery: false };
        run.header.observed = Some(Observed { markers: vec![marker], ..Observed::default() });
        for (fault, hit) in [(FaultKind::PodKill, 0.0), (FaultKind::NatsStop, 2.0)] {
            let mut run = run.clone();
            judge(&mut run, fault, &Deployment::default());
            let figures = &run.header.observed.as_ref().unwrap().figures;
            assert_eq!((figures["viewers_hit"], figures["viewers_cut"]), (hit, 1.0));
            assert_eq!(run.header.generator.problems.len(), usize::from(hit == 0.0), "{fault:?}");
        }
    }
}
