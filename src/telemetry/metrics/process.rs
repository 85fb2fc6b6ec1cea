//! The process as its system sees it: the standard `process_*` metrics, with CPU time in microseconds.

use nix::sys::resource::{UsageWho, getrusage};
use prometheus::core::{Collector, Desc};
use prometheus::process_collector::ProcessCollector;
use prometheus::proto::{Counter, MetricFamily};

const CPU: &str = "process_cpu_seconds_total";

/// The collector of the prometheus crate, but for the CPU time, of which that one tells whole seconds only: too coarse for
/// CPU per viewer over a scrape or two.
#[derive(Debug)]
pub(super) struct Process(ProcessCollector);

impl Process {
    pub(super) fn new() -> Self {
        Self(ProcessCollector::for_self())
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        self.0.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = self.0.collect();
        let cpu = families.iter_mut().find(|family| family.name() == CPU);
        if let (Some(family), Some(seconds)) = (cpu, cpu_seconds()) {
            let mut counter = Counter::default();
            counter.set_value(seconds);
            family.mut_metric().iter_mut().for_each(|metric| metric.set_counter(counter.clone()));
        }
        families
    }
}

#[expect(clippy::cast_precision_loss, reason = "a duration")]
fn cpu_seconds() -> Option<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Some(seconds(usage.user_time()) + seconds(usage.system_time()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_time_has_fractions_and_the_rest_is_there() {
        let families = Process::new().collect();
        let value = |name: &str| {
            let family = families.iter().find(|family| family.name() == name).unwrap_or_else(|| panic!("no {name}"));
            let metric = &family.get_metric()[0];
            metric.get_counter().get_value() + metric.get_gauge().get_value()
        };
        assert!(value(CPU) > 0.0, "no CPU time since the start");
        for name in ["process_resident_memory_bytes", "process_open_fds", "process_max_fds", "process_threads"] {
            assert!(value(name) >= 1.0, "{name}");
        }
    }
}
