//! `pushlab check`: the ledger alone, on run files.

/// Options of `pushlab check`.
#[derive(Debug, Clone, clap::Args)]
pub struct CheckConfig {}

/// The ledger alone, on run files: exit 3 on a violation.
///
/// # Errors
/// A message for the user.
pub async fn check(
    _config: CheckConfig,
    _shutdown: tokio_util::sync::CancellationToken,
) -> anyhow::Result<std::process::ExitCode> {
    anyhow::bail!("not built yet")
}
