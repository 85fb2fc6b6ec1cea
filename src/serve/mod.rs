//! One stateless pod: API, SSE and STOMP.
//!
//! A stream's way in: `connection` (hyper) → `router` → `sse` or `stomp` (checks, join) → `wire`, which the hub's engine
//! drives from then on. A like's way through: `api` or `wire` → `app` → `likes` → store and broker → `watch` → hub.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::telemetry::trace::export::Tracing;

/// JSON or a stream.
mod accept;
/// The admin port.
mod admin;
/// Posts and likes over HTTP.
mod api;
/// What handlers and connections share.
mod app;
/// Who asks.
mod auth;
/// A viewer and a like through the public URL.
mod canary;
/// Flags and variables.
mod config;
/// An echo, and STOMP as a plain broker, for conformance suites.
mod conformance;
/// One TCP connection: hyper, then take-over by the engine.
pub mod connection;
/// Leaving in good order.
mod drain;
/// Refusals, and their status codes.
pub mod error;
/// File descriptors.
mod host;
/// The use-case that publishes.
pub mod likes;
/// Bounds on what one caller may ask for.
pub mod limits;
/// The interface described: OpenAPI, AsyncAPI, problem types.
mod openapi;
/// Which pages may ask.
mod origin;
/// The page at `/`.
mod page;
/// A pod from build to end.
mod pod;
/// How often one may ask.
mod rates;
/// A broker connection per STOMP session.
mod relay;
/// Every route in one list.
mod router;
/// The SSE handshake.
mod sse;
/// The WebSocket handshake of STOMP.
mod stomp;
/// TLS where no edge ends it.
pub mod tls;
/// Join and repair.
pub mod watch;
/// The two transports as the engine sees them.
pub mod wire;

pub use auth::{AuthConfig, AuthMode};
pub use config::{
    AccelBuffering, Broken, BusyStream, Config, CpuList, Fanout, MailboxPolicy, Publish, ResumePolicy, Role, Switch,
};
pub use drain::Drained;
pub use pod::{Pod, build, build_traced};
pub use rates::RateConfig;
pub use tls::TlsConfig;

/// Runs the pods until `shutdown`, then drains them.
///
/// # Errors
/// A message for the user.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<ExitCode> {
    if config.describe_metrics {
        write!(std::io::stdout().lock(), "{}", crate::telemetry::metrics::document())?;
        return Ok(ExitCode::SUCCESS);
    }
    let filter = crate::telemetry::logs::init(config.log_json, config.log_filter_file.clone())?;
    let mut hangups = signal(SignalKind::hangup()).context("the handler of SIGHUP")?;
    let _reloads = AbortOnDropHandle::new(tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            filter.reload();
        }
    }));
    let open_files = host::raise_open_files();
    let tracing = Tracing::start(&config.pod_name)?;
    // A signal during the start ends it: there is nothing to drain yet.
    let pods = tokio::select! {
        pods = build_traced(&config, &tracing) => pods?,
        () = shutdown.cancelled() => return Ok(ExitCode::SUCCESS),
    };
    let stores: Vec<_> = pods.iter().map(Pod::store).collect();
    let mut running = tokio::task::JoinSet::new();
    for pod in pods {
        let (name, listen, admin) = (pod.name().to_owned(), pod.address(), pod.admin_address());
        let stomp = pod.stomp_address().map_or_else(String::new, |address| format!(r#","stomp":"{address}""#));
        running.spawn(pod.run(shutdown.clone()));
        tracing::info!(pod = %name, %listen, %admin, open_files, "serving");
        let name = serde_json::Value::from(name);
        let line = format!(r#"{{"pod":{name},"listen":"{listen}","admin":"{admin}"{stomp}}}"#);
        // Whoever started the pod may have closed its end; that is no reason to stop.
        drop(writeln!(std::io::stdout().lock(), "{line}"));
    }
    let mut whole = true;
    while let Some(ended) = running.join_next().await {
        whole &= ended.context("a pod's task")?? == Drained::Whole;
    }
    for store in stores {
        store.close(std::time::Duration::from_secs(2)).await;
    }
    tracing.end().await;
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
