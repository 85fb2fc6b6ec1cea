//! Fail points, for the laboratory: the process dies at a named place, as `kill -9` would have it.

use clap::ValueEnum;
use nix::sys::signal::{Signal, kill};
use nix::unistd::getpid;

/// Where the process dies, at the first like that comes there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FailAt {
    /// The like is committed, nobody is told and nobody answered
    #[value(name = "after-commit:kill")]
    AfterCommit,
    /// With an outbox: the event is acknowledged, its row not yet removed
    #[value(name = "after-publish:kill")]
    AfterPublish,
}

impl FailAt {
    /// Dies here, when this is the place that was asked for.
    pub(super) fn if_asked(self, asked: Option<Self>) {
        if asked == Some(self) {
            // SIGKILL: no destructor runs, nothing is flushed. It does not come back from this.
            let _ = kill(getpid(), Signal::SIGKILL);
            std::process::abort();
        }
    }
}
