//! The main job: bring a stack up, run a plan, write the report.

/// nginx and HAProxy before the pods.
pub mod edges;
/// The machine and what is installed on it.
pub mod environment;
/// What is run, as data.
pub mod plan;
/// The stacks a plan runs on.
pub mod stack;

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
