//! What a running pod tells about itself: metrics for machines, logs for people.

/// Logs: stderr, `RUST_LOG`, JSON on request.
pub mod logs;
/// One struct of all metrics.
pub mod metrics;

pub use metrics::Metrics;
