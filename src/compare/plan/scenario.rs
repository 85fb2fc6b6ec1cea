//! What a cell does, and what fails in it.

use std::time::Duration;

use serde::Deserialize;

/// What a cell does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// Viewers that stay, likes at a rate.
    Latency,
    /// One stream of twenty events: when do they get through the edge?
    Buffering,
    /// A client that never reads, while events keep coming.
    SlowReader,
    /// Viewers that come and go, a pod that is added.
    Balance,
    /// Viewers that come and go while a pod answers fast and wrongly.
    BrokenPod,
    /// Something fails under load: `fault`.
    Faults,
    /// Clients that read their snapshot and then nothing, among viewers that do: `slow_readers`.
    SlowConsumer,
}

impl Scenario {
    /// Its name in plans and files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Latency => "latency",
            Self::Buffering => "buffering",
            Self::SlowReader => "slow-reader",
            Self::Balance => "balance",
            Self::BrokenPod => "broken-pod",
            Self::Faults => "faults",
            Self::SlowConsumer => "slow-consumer",
        }
    }
}

/// What fails (`faults`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// The NATS server is killed and, after `hold`, started again.
    NatsRestart,
    /// The NATS server is stopped (SIGSTOP) for `hold`.
    NatsStop,
    /// The database is killed and, after `hold`, started again.
    DatabaseRestart,
    /// kill -9 of one pod.
    PodKill,
    /// One pod is stopped (SIGSTOP) for `hold`.
    PodHang,
    /// One pod is told to end, and drains.
    PodTerm,
    /// The proxy reads its configuration again.
    ProxyReload,
    /// Somebody else locks the row of the newest post for `hold`.
    RowLock,
    /// No packet passes between the edge and one pod for `hold`.
    BlackholeEdgePod,
    /// No packet passes between viewers and the edge for `hold`.
    BlackholeViewerEdge,
    /// Every pod is replaced by a new one (`kubectl rollout restart`).
    RolloutRestart,
}

impl FaultKind {
    /// Its name in plans, levels and files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NatsRestart => "nats-restart",
            Self::NatsStop => "nats-stop",
            Self::DatabaseRestart => "database-restart",
            Self::PodKill => "pod-kill",
            Self::PodHang => "pod-hang",
            Self::PodTerm => "pod-term",
            Self::ProxyReload => "proxy-reload",
            Self::RowLock => "row-lock",
            Self::BlackholeEdgePod => "blackhole-edge-pod",
            Self::BlackholeViewerEdge => "blackhole-viewer-edge",
            Self::RolloutRestart => "rollout-restart",
        }
    }

    /// Whether only the viewers of one pod can feel it.
    #[must_use]
    pub const fn is_of_a_pod(self) -> bool {
        matches!(self, Self::PodKill | Self::PodHang | Self::PodTerm | Self::BlackholeEdgePod)
    }

    /// Whether packets are dropped, which needs a network of the lab's own.
    #[must_use]
    pub const fn needs_namespace(self) -> bool {
        matches!(self, Self::BlackholeEdgePod | Self::BlackholeViewerEdge)
    }

    /// How long it lasts unless the plan says it; zero for what has no end.
    #[must_use]
    pub const fn usual_hold(self) -> Duration {
        match self {
            Self::NatsRestart | Self::DatabaseRestart => Duration::from_secs(1),
            Self::NatsStop | Self::RowLock | Self::BlackholeEdgePod | Self::BlackholeViewerEdge => {
                Duration::from_secs(10)
            }
            Self::PodHang => Duration::from_secs(60),
            Self::PodKill | Self::PodTerm | Self::ProxyReload | Self::RolloutRestart => Duration::ZERO,
        }
    }
}
