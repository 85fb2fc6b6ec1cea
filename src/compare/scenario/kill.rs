//! Q12, a part of it: kill -9 of a pod. Viewers come back by themselves; noticing and healing are told apart.

use crate::compare::faults::{Fault, Step};
use crate::compare::plan::Planned;
use crate::result::RunResult;

/// The pod that is killed.
const VICTIM: &str = "pod-2";

/// One kill, a quarter into the window: the rest is for coming back.
#[must_use]
pub fn steps(planned: &Planned) -> Vec<Step> {
    vec![Step { at: planned.phases.measure / 4, fault: Fault::Kill(VICTIM.into()) }]
}

/// How many viewers lost their pod. A kill nobody felt is a fault that did not fire.
pub fn judge(run: &mut RunResult) {
    let Some(observed) = &mut run.header.observed else { return };
    let Some(killed) = observed.markers.first().map(|marker| marker.at_us) else { return };
    let cut = run.header.sessions.iter().filter(|session| {
        let there = session.ended_us.is_none_or(|ended| u64::from(ended) >= killed);
        session.pod.as_deref() == Some(VICTIM) && there
    });
    let cut = u32::try_from(cut.count()).unwrap_or(u32::MAX);
    observed.figures.insert("viewers_cut".into(), f64::from(cut));
    if cut == 0 {
        run.header.generator.problems.push(format!("the fault did not fire: no viewer was on {VICTIM}"));
    }
}
