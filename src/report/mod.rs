//! Statistics, charts and pages from saved run files; no IO but reading results and writing files.

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

/// Options of `pushlab check`.
#[derive(Debug, Clone, clap::Args)]
pub struct CheckConfig {}

/// The ledger alone, on run files: exit 3 on a violation.
///
/// # Errors
/// A message for the user.
#[expect(clippy::unused_async, reason = "not built yet")]
pub async fn check(
    _config: CheckConfig,
    _shutdown: tokio_util::sync::CancellationToken,
) -> anyhow::Result<std::process::ExitCode> {
    anyhow::bail!("not built yet")
}
