//! Q13: clients that read their snapshot and then nothing, among viewers that read. What they cost the others is the
//! verdict's business (pairs with and without them); what they cost the pod is here.

use crate::result::RunResult;

/// Memory of the fullest pod, and what was left out for the stalled. Stalled clients that held nobody up did not stall.
pub fn judge(run: &mut RunResult) {
    let header = &mut run.header;
    let Some(observed) = &mut header.observed else { return };
    let pods = observed.processes.iter().filter(|process| process.name.starts_with("pod-"));
    if let Some(most) = pods.map(|process| process.rss_bytes).max() {
        observed.figures.insert("pod_rss_mib".into(), most as f64 / f64::from(1 << 20));
    }
    let left_out: u64 = header.pods.iter().map(|pod| pod.conflated + pod.dropped).sum();
    observed.figures.insert("versions_left_out".into(), left_out as f64);
    let stalled = header.sessions.iter().filter(|session| session.slow && session.joined_us.is_some()).count();
    if header.config.slow_readers > 0 && (stalled == 0 || left_out == 0) {
        let why = "nobody stalled: the pods left nothing out for the clients that do not read";
        header.generator.problems.push(why.into());
    }
}
