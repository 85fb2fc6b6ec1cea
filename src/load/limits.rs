//! What the process takes from the system: CPUs, file descriptors, CPU time.

use anyhow::{Context, bail};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::unistd::Pid;

/// Pins every thread there is, and thereby those they start, to `cpus`; nothing when empty.
///
/// # Errors
/// When a CPU does not exist or may not be used.
pub(super) fn pin(cpus: &[usize]) -> anyhow::Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu).ok().with_context(|| format!("--cpus {cpu}: no such CPU"))?;
    }
    for thread in std::fs::read_dir("/proc/self/task").context("/proc is needed")? {
        let name = thread?.file_name();
        let Some(tid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        match sched_setaffinity(Pid::from_raw(tid), &set) {
            // A thread that ended meanwhile.
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(e) => bail!("--cpus {cpus:?}: {e}: is every one of them there and allowed? (nproc, taskset -p 1)"),
        }
    }
    Ok(())
}

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

/// Open file descriptors.
pub(super) fn open_files() -> u32 {
    // Since Linux 6.2 the folder's size is their number; counting ten thousand entries would disturb the measurement.
    let size = std::fs::metadata("/proc/self/fd").map_or(0, |meta| meta.len());
    let count = || std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64);
    u32::try_from(if size > 0 { size } else { count() }).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_had_is_said() {
        assert!(pin(&[100_000]).is_err());
        assert!(allow_files(u64::MAX).unwrap_err().to_string().contains("ulimit"));
        allow_files(1).unwrap();
        assert!(open_files() > 2 && cpu_seconds() >= 0.0);
    }
}
