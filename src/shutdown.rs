//! Signals and the one token that ends everything.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that is cancelled by the first SIGTERM or SIGINT; the second one ends the process at once (exit 130).
///
/// # Errors
/// When the signal handlers cannot be installed.
pub fn on_signals() -> std::io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn({
        let token = token.clone();
        async move {
            for round in 0.. {
                tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
                if round > 0 {
                    std::process::exit(130);
                }
                token.cancel();
            }
        }
    });
    Ok(token)
}
