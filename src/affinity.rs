//! The CPUs that threads may run on.

use anyhow::{Context, anyhow};
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The calling thread, for `sched_setaffinity`.
const SELF: Pid = Pid::from_raw(0);

/// Pins the calling thread to `cpus`, and so every thread and process it starts later; nothing when empty.
///
/// # Errors
/// When a CPU does not exist or may not be used, with how many there are.
pub fn pin(cpus: &[usize]) -> anyhow::Result<()> {
    if cpus.is_empty() { Ok(()) } else { set_of(cpus).and_then(|set| allow(SELF, &set, cpus)) }
}

/// Pins every thread that this process has, and so those they start; nothing when empty.
///
/// # Errors
/// As [`pin`], and without `/proc`.
pub fn pin_process(cpus: &[usize]) -> anyhow::Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    let set = set_of(cpus)?;
    for thread in std::fs::read_dir("/proc/self/task").context("/proc is needed")? {
        let name = thread?.file_name();
        let Some(tid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        match sched_setaffinity(Pid::from_raw(tid), &set) {
            // A thread that ended meanwhile.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => return Err(refused(cpus, errno)),
        }
    }
    Ok(())
}

/// Runs `start`, whose threads and processes inherit `cpus` (empty: whatever this thread has), which stays as it was.
///
/// # Errors
/// As [`pin`].
pub fn within<T>(cpus: &[usize], start: impl FnOnce() -> T) -> anyhow::Result<T> {
    let before = sched_getaffinity(SELF).context("cannot ask for this thread's CPUs")?;
    pin(cpus)?;
    let started = start();
    sched_setaffinity(SELF, &before).context("cannot give this thread its CPUs back")?;
    Ok(started)
}

fn set_of(cpus: &[usize]) -> anyhow::Result<CpuSet> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu).map_err(|errno| refused(&[*cpu], errno))?;
    }
    Ok(set)
}

fn allow(thread: Pid, set: &CpuSet, cpus: &[usize]) -> anyhow::Result<()> {
    sched_setaffinity(thread, set).map_err(|errno| refused(cpus, errno))
}

fn refused(cpus: &[usize], errno: Errno) -> anyhow::Error {
    let most = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    anyhow!("cannot run on the CPUs {cpus:?}: {errno}; this process may use {most} (see nproc and taskset -p 1)")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mine() -> Vec<usize> {
        let set = sched_getaffinity(SELF).unwrap();
        (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap()).collect()
    }

    #[test]
    fn a_thread_hands_its_cpus_on_and_has_its_own_back() {
        // In a thread of its own: the others of this process keep theirs.
        std::thread::spawn(|| {
            let before = mine();
            let one = &before[before.len() - 1..];
            let inherited = within(one, || std::thread::spawn(mine)).unwrap().join().unwrap();
            assert_eq!((&inherited[..], mine()), (one, before.clone()));
            pin(one).unwrap();
            assert_eq!(mine(), one);
            pin(&[]).unwrap();
            assert_eq!(mine(), one, "no list, no change");
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_cpu_that_is_not_there_is_named() {
        for result in [pin(&[100_000]), pin(&[1_023]), pin_process(&[100_000]), within(&[100_000], || ())] {
            let error = result.unwrap_err().to_string();
            assert!(error.contains("nproc") && (error.contains("[100000]") || error.contains("[1023]")), "{error}");
        }
    }
}
