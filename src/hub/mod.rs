//! hub

/// The delivery path beside raw `write(2)`.
pub mod bench;
