//! One SSE and one STOMP session, one like, expected on both.

/// Options.
#[derive(Debug, Clone, clap::Args)]
pub struct Config {}

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
