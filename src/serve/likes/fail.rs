//! Fail points, for the laboratory: the process dies at a named place, as `kill -9` would have it.

use clap::ValueEnum;
use nix::sys::signal::{Signal, kill};
use nix::unistd::getpid;

/// Where the process dies, at the first like or update that comes there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FailAt {
    /// The like is committed, nobody is told and nobody answered
    #[value(name = "after-commit:kill")]
    AfterCommit,
    /// The like is committed, all pods are told, and its answer (or RECEIPT) is not sent
    #[value(name = "before-answer:kill")]
    BeforeAnswer,
    /// Half of an update is in a viewer's socket
    #[value(name = "mid-write:kill")]
    MidWrite,
    /// With an outbox: the event is acknowledged, its row not yet removed
    #[value(name = "after-publish:kill")]
    AfterPublish,
}

impl FailAt {
    /// Dies here, when this is the place that was asked for.
    pub(super) fn if_asked(self, asked: Option<Self>) {
        if asked == Some(self) {
            die();
        }
    }
}

/// SIGKILL: no destructor runs, nothing is flushed. It does not come back from this.
pub(in super::super) fn die() {
    let _ = kill(getpid(), Signal::SIGKILL);
    std::process::abort();
}
