//! The open-loop generator and recorder: writes one run file.

/// Requests that are no load.
mod api;
/// One clock for everything.
mod clock;
/// Its options.
mod config;
/// Where parts of one run are brought together.
mod control;
/// A client's HTTP/1.1.
mod http;
/// Who likes.
mod liker;
/// CPUs and file descriptors.
mod limits;
/// Metrics while it runs.
mod live;
/// When likes are due.
mod pacer;
/// The pods' counters.
mod pods;
/// What is shown meanwhile.
mod progress;
/// What viewers saw.
mod recorder;
/// One run from start to file.
mod run;
/// Non-blocking TCP with kernel stamps.
mod socket;
/// Where to connect.
mod target;
/// Who watches.
mod viewer;
/// Both transports without sockets.
mod wire;

pub use config::{Config, Progress, Schedule, SseClient};
pub use control::Gate;
pub use pods::{Scrape, differences, scrape_all};

/// Runs it until done or `shutdown`: exit 0 also when the run is INVALID (its file says so), 3 on a ledger violation.
///
/// # Errors
/// A message for the user.
pub async fn run(
    config: Config,
    shutdown: tokio_util::sync::CancellationToken,
) -> anyhow::Result<std::process::ExitCode> {
    run::run(config, shutdown).await
}
