//! Logs go to stderr; `RUST_LOG` filters them (default `info`); JSON lines on request.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Installs the process's subscriber. A second call changes nothing, so that tests may call it freely.
pub fn init(json: bool) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,async_nats=warn,sqlx=warn"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let installed =
        if json { builder.json().try_init() } else { builder.with_ansi(std::io::stderr().is_terminal()).try_init() };
    drop(installed);
}
