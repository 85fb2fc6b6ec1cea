//! One file per question: what a cell does, and which figures come of it.

/// Q4: viewers that come and go, a pod that is added, a pod that answers fast and wrongly.
pub mod balance;
/// Q2: when do events get through an edge?
pub mod buffering;
/// Q12: something fails under load.
pub mod faults;
/// Q1, and what most cells do: the generator runs, the stack is watched, faults come at their moments.
pub mod latency;
/// Q8: a like on one pod reaches a viewer on another.
pub mod no_stickiness;
/// Q13: a stalled client among others.
pub mod slow_consumer;
/// Q2: a client that never reads.
pub mod slow_reader;
