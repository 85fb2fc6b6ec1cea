//! pushlab: push changes over SSE + HTTP POST or over WebSocket + STOMP? The service, its cluster and the laboratory.
//!
//! The way of one like through the house:
//!
//! ```text
//! POST or SEND → serve/likes → store (lock, commit) → broker → serve/watch → hub → engine → socket
//!     → load/viewer → arrival matrix → ledger → verdict → report
//! ```
//!
//! Modules in reading order; ARCHITECTURE.md says which may import which.

/// The CPUs that threads may run on.
pub mod affinity;
/// The token a client shows.
pub mod bearer;
/// Events between pods: NATS, or in-process for the embedded stack.
pub mod broker;
/// The command line.
pub mod cli;
/// `pushlab compare`: plans, stacks, scenarios.
pub mod compare;
/// `pushlab bench writes`: the write strategies side by side.
pub mod contention;
/// `pushlab doctor`: what is installed, which stacks are possible.
pub mod doctor;
/// The words of the field: posts, versions, the event.
pub mod domain;
/// Fan-out within a pod: topics and the engine that writes to sockets.
pub mod hub;
/// `pushlab load`: the open-loop generator and recorder.
pub mod load;
/// `pushlab probe`: one session per transport, one like, expected on both.
pub mod probe;
/// SSE, WebSocket frames and STOMP without sockets: bytes in, meaning out.
pub mod proto;
/// `pushlab report`: statistics, charts, pages.
pub mod report;
/// The run file, its ledger and its summary.
pub mod result;
/// `pushlab serve`: one stateless pod.
pub mod serve;
/// Signals; one token that ends everything.
pub mod shutdown;
/// Likes in MySQL or SQLite: lock, change, commit.
pub mod store;
/// Metrics and logs.
pub mod telemetry;
