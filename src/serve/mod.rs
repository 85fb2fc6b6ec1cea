//! One stateless pod: API, SSE and STOMP.

use std::process::ExitCode;

use tokio_util::sync::CancellationToken;

/// Refusals, and their status codes.
pub mod error;
/// Bounds on what one caller may ask for.
pub mod limits;
/// Flags and variables.
mod config;
/// One TCP connection: hyper, then take-over by the engine.
pub mod connection;
/// The use-case that publishes.
pub mod likes;
/// Join and repair.
pub mod watch;

pub use config::{AccelBuffering, Broken, BusyStream, Config, CpuList, Role, Switch};

/// Runs the pods until `shutdown`, then drains them.
///
/// # Errors
/// A message for the user.
#[expect(clippy::unused_async, reason = "not built yet")]
pub async fn run(_config: Config, _shutdown: CancellationToken) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not built yet")
}
