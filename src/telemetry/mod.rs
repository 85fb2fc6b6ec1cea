//! What a running pod tells about itself: metrics for machines, logs for people, traces for both.

/// Logs: stderr, `RUST_LOG`, JSON on request.
pub mod logs;
/// One struct of all metrics.
pub mod metrics;
/// One like's way, pod by pod.
pub mod trace;

pub use metrics::Metrics;
pub use trace::{FanOut, Trace, Tracer};
