//! The open-loop generator and recorder: writes one run file.

/// Its options.
mod config;

pub use config::{Config, Progress, Schedule};

/// Runs it until done or `shutdown`.
///
/// # Errors
/// A message for the user.
#[expect(clippy::unused_async, reason = "not built yet")]
pub async fn run(
    _config: Config,
    _shutdown: tokio_util::sync::CancellationToken,
) -> anyhow::Result<std::process::ExitCode> {
    anyhow::bail!("not built yet")
}
