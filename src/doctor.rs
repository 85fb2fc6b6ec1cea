//! What is installed, which stacks are possible, how to get the rest.

use std::process::ExitCode;

use crate::compare::environment::{cores, install_lines, machine, raise_open_files};
use crate::compare::namespace;
use crate::compare::stack::services::Service;

/// Options.
#[derive(Debug, Clone, clap::Args)]
pub struct Config {}

/// Says what is there. Always succeeds: what is missing is an answer.
///
/// # Errors
/// None.
#[expect(clippy::unused_async, reason = "every verb is called alike")]
pub async fn run(_config: Config, _shutdown: tokio_util::sync::CancellationToken) -> anyhow::Result<ExitCode> {
    print!("{}", examine());
    Ok(ExitCode::SUCCESS)
}

/// The doctor's findings as text.
#[must_use]
pub fn examine() -> String {
    let mut lines = vec![format!("pushlab {}", env!("CARGO_PKG_VERSION")), String::new(), "Servers".to_owned()];
    let (watching, servers): (Vec<_>, Vec<_>) = Service::ALL.into_iter().partition(|service| service.observes());
    lines.extend(servers.into_iter().map(|service| state(service, 12)));
    lines.extend([String::new(), "What watches them (compare --observe)".to_owned()]);
    lines.extend(watching.into_iter().map(|service| state(service, 27)));
    let missing: Vec<_> = Service::ALL.into_iter().filter(|service| service.find().is_none()).collect();
    lines.extend([
        String::new(),
        "Stacks".to_owned(),
        "  ok       embedded     pods, broker and SQLite in one process".to_owned(),
    ]);
    if missing.iter().any(|service| service.required()) {
        let names: Vec<_> = missing.iter().filter(|s| s.required()).map(|s| s.programs()[0]).collect();
        lines.push(format!("  no       local        needs {}", names.join(", ")));
    } else {
        let both = !missing.contains(&Service::HaProxy);
        let edges = if both { "nginx and HAProxy" } else { "nginx; cells behind HAProxy are left out" };
        lines.push(format!("  ok       local        real NATS, {}, {edges}", database()));
    }
    lines.push(match namespace::why_not() {
        None => "  ok       black holes  network namespaces, for the faults that cut a path".to_owned(),
        Some(why) => format!("  no       black holes  {why}; the faults that cut a path are left out"),
    });
    lines.push("  ok       remote       something that runs already: --base-url".to_owned());
    lines.extend([String::new(), "Machine".to_owned()]);
    let files = raise_open_files();
    for (name, value) in machine() {
        lines.push(format!("  {name:<12} {value}"));
    }
    let mut hints = Vec::new();
    if files < 8_192 {
        hints.push(format!(
            "{files} open files do for about {} viewers; more: ulimit -n 65536 (as root), then again",
            files / 3
        ));
    }
    if cores() < 2 {
        hints.push("one core: generator and pods share it, so latencies hold the generator's own work".to_owned());
    }
    let clock = machine().remove("clock").unwrap_or_default();
    if !matches!(clock.as_str(), "tsc" | "kvm-clock" | "arch_sys_counter" | "hyperv_clocksource_tsc_page") {
        hints.push(format!("clock source {clock:?} is slow to read; tsc or kvm-clock is better"));
    }
    if !hints.is_empty() {
        lines.extend([String::new(), "Worth knowing".to_owned()]);
        lines.extend(hints.into_iter().map(|hint| format!("  {hint}")));
    }
    let install = install_lines(|_| true);
    if !install.is_empty() {
        lines.extend([String::new(), "To get the rest".to_owned()]);
        lines.extend(install.into_iter().map(|line| format!("  {line}")));
    }
    lines.push(String::new());
    lines.join("\n")
}

/// Whether it is installed, which version, and where.
fn state(service: Service, width: usize) -> String {
    let name = service.programs()[0];
    if let Some(program) = service.find() {
        return format!("  ok       {name:<width$} {} ({})", service.version(&program), program.display());
    }
    let named = std::env::var_os(service.variable());
    let why = named.map_or_else(String::new, |path| format!(" ({}={path:?} is no file)", service.variable()));
    format!("  missing  {name}{why}")
}

fn database() -> &'static str {
    match Service::MariaDb.find() {
        Some(program) if program.ends_with("mysqld") => "MySQL",
        _ => "MariaDB",
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_missing_server_comes_with_the_line_that_gets_it() {
        let text = super::examine();
        assert_eq!(text.contains("  missing  "), text.contains("To get the rest"), "{text}");
        assert!(text.contains("embedded"));
    }
}
