//! The two modules under test, compiled from the pod's own files without the rest of it: a fuzz build takes a minute.

#[path = "../../src/domain.rs"]
pub mod domain;
#[path = "../../src/proto/mod.rs"]
pub mod proto;
