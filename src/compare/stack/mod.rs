//! The stacks a plan runs on: what is started, where, and how it is reached.

/// Ends every descendant when the lab goes away.
pub mod guardian;
/// The lab's side of the guardian.
pub mod processes;
/// Real servers on private ports.
pub mod services;
