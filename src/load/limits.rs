//! What the process takes from the system: file descriptors, CPU time, the scheduler's attention.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, bail};
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::time::{ClockId, clock_gettime};
use thread_priority::{
    NormalThreadSchedulePolicy, RealtimeThreadSchedulePolicy, ThreadPriority, ThreadPriorityValue,
    ThreadSchedulePolicy, set_thread_priority_and_policy, thread_native_id,
};

use crate::affinity;

/// Raises the limit of open files to hold `needed`.
///
/// # Errors
/// When the hard limit is lower, with what to do.
pub(super) fn allow_files(needed: u64) -> anyhow::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the limit of open files")?;
    if soft >= needed {
        return Ok(());
    }
    if hard < needed {
        bail!(
            "{needed} open files are needed, the hard limit is {hard}: raise it (ulimit -Hn {needed}) or use fewer viewers"
        );
    }
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise the limit of open files")
}

/// User and system CPU seconds of this process so far.
pub(super) fn cpu_seconds() -> f64 {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return 0.0 };
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}

/// Seconds the hypervisor took from this machine's cores so far (`steal` in proc(5)), summed over them; 0 where unknown.
pub(super) fn stolen_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let steal = stat.lines().next().and_then(|all| all.split_whitespace().nth(8)?.parse::<f64>().ok());
    // Ticks of 10 ms: USER_HZ is 100 on every architecture that Rust's std supports on Linux.
    steal.unwrap_or(0.0) / 100.0
}

/// Open file descriptors.
pub(super) fn open_files() -> u32 {
    // Since Linux 6.2 the folder's size is their number; counting ten thousand entries would disturb the measurement.
    let size = std::fs::metadata("/proc/self/fd").map_or(0, |meta| meta.len());
    let count = || std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64);
    u32::try_from(if size > 0 { size } else { count() }).unwrap_or(u32::MAX)
}

/// Who comes first on the generator's core.
#[derive(Debug, Clone, Copy)]
pub(super) enum Rank {
    /// Arrivals are stamped by the kernel: their reader can wait a little.
    Viewers = 10,
    /// Answers likewise.
    Likers = 20,
    /// A like that is due cannot.
    Pacer = 30,
}

/// Lets the calling thread run as soon as it has work (`SCHED_FIFO`), if the system allows it; else nothing changes, and
/// the run's own figures tell whether it was late.
pub(super) fn prompt(rank: Rank) {
    let priority = ThreadPriority::Crossplatform(ThreadPriorityValue::try_from(rank as u8).expect("below 100"));
    let policy = ThreadSchedulePolicy::Realtime(RealtimeThreadSchedulePolicy::Fifo);
    if let Err(error) = set_thread_priority_and_policy(thread_native_id(), priority, policy) {
        tracing::debug!(?error, "no real-time priority");
    }
}

/// Keeps the generator's cores from sleeping: waking a halted virtual CPU takes a hypervisor 0.1 to 2 ms, which would be
/// booked on whatever is measured. One thread per core, run only when nothing else wants the core (`SCHED_IDLE`).
pub(super) struct Awake {
    stop: Arc<AtomicBool>,
    spent_ns: Vec<Arc<AtomicU64>>,
    threads: Vec<JoinHandle<()>>,
}

impl Awake {
    /// Nothing happens for an unpinned generator, or where the system has no such policy.
    pub(super) fn start(cpus: &[usize]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (mut spent_ns, mut threads) = (Vec::new(), Vec::new());
        for cpu in cpus.iter().copied() {
            let (stop, spent) = (Arc::clone(&stop), Arc::new(AtomicU64::new(0)));
            spent_ns.push(Arc::clone(&spent));
            let thread = std::thread::Builder::new().name("awake".into());
            threads.extend(thread.spawn(move || stay_awake(cpu, &stop, &spent)).ok());
        }
        Self { stop, spent_ns, threads }
    }

    /// CPU seconds spent so far, none of them wanted by anybody.
    pub(super) fn seconds(&self) -> f64 {
        self.spent_ns.iter().map(|ns| ns.load(Ordering::Relaxed) as f64 / 1e9).sum()
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn stay_awake(cpu: usize, stop: &AtomicBool, spent: &AtomicU64) {
    let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
    if affinity::pin(&[cpu]).is_err()
        || set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, idle).is_err()
    {
        return;
    }
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..1_000 {
            std::hint::spin_loop();
        }
        if let Ok(time) = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID) {
            let ns = time.tv_sec() * 1_000_000_000 + time.tv_nsec();
            spent.store(u64::try_from(ns).unwrap_or(0), Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staying_awake_costs_what_it_says_and_ends() {
        let awake = Awake::start(&[0]);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while awake.seconds() == 0.0 && std::time::Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert!(awake.seconds() > 0.0 && awake.seconds() <= cpu_seconds() + 0.1);
        drop(awake);
    }

    #[test]
    fn what_cannot_be_had_is_said() {
        assert!(allow_files(u64::MAX).unwrap_err().to_string().contains("ulimit"));
        allow_files(1).unwrap();
        assert!(open_files() > 2 && cpu_seconds() >= 0.0 && stolen_seconds() >= 0.0);
    }
}
