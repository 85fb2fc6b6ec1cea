//! The command line: one binary, small verbs.

use clap::{Parser, Subcommand};

/// Push changes over SSE + HTTP POST or over WebSocket + STOMP? The service, and the laboratory that answers with numbers.
#[derive(Debug, Parser)]
#[command(name = "pushlab", version, arg_required_else_help = true, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 could not run (the last line says why and what to do), 2 bad usage, \
    3 the ledger found a violation, 130 interrupted twice.";

/// The verbs.
#[allow(clippy::large_enum_variant, reason = "made once per process")]
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run one stateless pod of the service
    Serve(crate::serve::Config),
    /// Generate load open-loop, record every arrival, write one run file
    Load(crate::load::Config),
    /// The main job: bring a stack up, run a plan, write the report
    Compare(crate::compare::Config),
    /// Render or compare saved run files again, without a rerun
    Report(crate::report::Config),
    /// The ledger alone, on run files
    Check(crate::report::CheckConfig),
    /// What is installed, which stacks are possible, how to get the rest
    Doctor(crate::doctor::Config),
    /// One SSE and one STOMP session, one like, expected on both
    Probe(crate::probe::Config),
    /// The delivery path beside raw write(2), or `bench writes`: the write strategies on one hot post
    Bench(Bench),
    /// The instrument against itself: A/A must show nothing, A/B a delay of 20 %
    Selftest(crate::compare::selftest::Config),
    /// Keeps the processes of a local stack and ends them when its parent goes away
    #[command(hide = true)]
    Guardian(crate::compare::stack::guardian::Config),
}

/// `bench`, `bench writes` and `bench telemetry`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Bench {
    /// Something else than the delivery path.
    #[command(subcommand)]
    pub what: Option<BenchWhat>,
    /// The delivery path: CPU per delivery, memory per viewer, POST beside fan-out.
    #[command(flatten)]
    pub delivery: crate::hub::bench::Config,
}

/// What else is benched.
#[derive(Debug, Subcommand)]
pub enum BenchWhat {
    /// The write strategies side by side on one hot post and a durable database: likes/s, lock wait, commits per like
    Writes(crate::contention::Config),
    /// What metrics and traces cost: CPU per delivery with and without them, in one run, ratios with their intervals
    Telemetry(crate::hub::bench::telemetry::Config),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        super::Cli::command().debug_assert();
    }
}
