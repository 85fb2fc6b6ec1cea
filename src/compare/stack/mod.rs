//! The stacks a plan runs on.

/// Ends every descendant when the lab goes away.
pub mod guardian;
