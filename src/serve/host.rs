//! What the pod asks of the machine: file descriptors and cores.

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;

use super::CpuList;

/// Raises the soft limit of open files to the hard one; returns what it is now.
pub(super) fn raise_open_files() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 0 };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(error) => {
            tracing::warn!(soft, hard, %error, "the limit of open files stays");
            soft
        }
    }
}

/// Pins the calling thread, and so every thread it starts later: call it before the runtime is built.
///
/// # Errors
/// When a core does not exist or may not be used.
pub fn pin(cpus: &CpuList) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    let done = cpus.0.iter().try_for_each(|core| set.set(*core));
    done.and_then(|()| sched_setaffinity(Pid::from_raw(0), &set)).map_err(|error| {
        let most = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        anyhow::anyhow!(
            "cannot run on the cores {:?}: {error}; this process may use {most} (nproc), see --cpus",
            cpus.0
        )
    })
}
