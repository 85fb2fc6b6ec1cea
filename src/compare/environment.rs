//! What the machine is and what is installed on it: printed by `doctor`, kept beside every result.

use std::collections::BTreeMap;
use std::fs;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::stack::services::Service;

/// CPU, kernel, cores, memory, limits, clock, and the version of everything: name → value.
#[must_use]
pub fn facts() -> BTreeMap<String, String> {
    let mut facts = machine();
    facts.insert("pushlab".into(), env!("CARGO_PKG_VERSION").into());
    let build = if cfg!(debug_assertions) { "debug (figures are not to be quoted)" } else { "release" };
    facts.insert("build".into(), build.into());
    for service in Service::ALL {
        if let Some(program) = service.find() {
            facts.insert(service.programs()[0].into(), service.version(&program));
        }
    }
    facts
}

/// The machine alone.
#[must_use]
pub fn machine() -> BTreeMap<String, String> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let cpu = field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| std::env::consts::ARCH.into());
    let total = field(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
    let mib = total.trim_end_matches(" kB").parse::<u64>().map_or(total.clone(), |kib| format!("{} MiB", kib / 1_024));
    let clock = read("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    let ports = read("/proc/sys/net/ipv4/ip_local_port_range");
    let mut facts = BTreeMap::from([
        ("cpu".to_owned(), cpu),
        ("kernel".into(), read("/proc/sys/kernel/osrelease").trim().into()),
        ("cores".into(), cores().to_string()),
        ("memory".into(), mib),
        (
            "nofile".into(),
            getrlimit(Resource::RLIMIT_NOFILE)
                .map_or_else(|e| e.to_string(), |(soft, hard)| format!("{soft} (hard {hard})")),
        ),
        ("ports".into(), ports.split_whitespace().collect::<Vec<_>>().join("-")),
        ("clock".into(), clock.trim().into()),
    ]);
    for (name, path) in [("cpu limit", "/sys/fs/cgroup/cpu.max"), ("memory limit", "/sys/fs/cgroup/memory.max")] {
        let limit = read(path);
        if !limit.is_empty() && !limit.starts_with("max") {
            facts.insert(name.into(), limit.trim().into());
        }
    }
    facts.retain(|_, value| !value.is_empty());
    facts
}

/// Cores this process may use.
#[must_use]
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Raises the soft limit of open files to the hard one; children inherit it. Returns the limit.
#[must_use]
pub fn raise_open_files() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 0 };
    if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() { hard } else { soft }
}

/// The lines that install those of the `wanted` services that are missing; empty when none is.
#[must_use]
pub fn install_lines(wanted: impl Fn(Service) -> bool) -> Vec<String> {
    let missing: Vec<_> = Service::ALL.into_iter().filter(|s| wanted(*s) && s.find().is_none()).collect();
    let apt: Vec<_> =
        missing.iter().filter_map(|service| service.install().strip_prefix("sudo apt-get install -y ")).collect();
    let mut lines = Vec::new();
    if !apt.is_empty() {
        lines.push(format!("sudo apt-get update && sudo apt-get install -y {}", apt.join(" ")));
    }
    lines.extend(missing.iter().filter(|s| !s.install().starts_with("sudo apt-get")).map(|s| s.install().to_owned()));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_described() {
        let facts = machine();
        for name in ["cpu", "kernel", "cores", "memory", "nofile"] {
            assert!(facts.contains_key(name), "{name} is missing: {facts:?}");
        }
    }
}
