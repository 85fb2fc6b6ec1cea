//! The factors that can be paired, and the levels of those that are neither numbers nor somebody else's.

use serde::Deserialize;

/// A factor whose levels can be paired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Factor {
    /// `arm`.
    Arm,
    /// `edge`.
    Edge,
    /// `buffering`.
    Buffering,
    /// `pods`.
    Pods,
    /// `posts`.
    Posts,
    /// `viewers`.
    Viewers,
    /// `rate`.
    Rate,
    /// `max_age`.
    MaxAge,
    /// `slow_readers`.
    SlowReaders,
    /// `pod_flags`.
    PodFlags,
}

impl Factor {
    /// Its name in levels and claims.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Arm => "arm",
            Self::Edge => "edge",
            Self::Buffering => "buffering",
            Self::Pods => "pods",
            Self::Posts => "posts",
            Self::Viewers => "viewers",
            Self::Rate => "rate",
            Self::MaxAge => "max_age",
            Self::SlowReaders => "slow_readers",
            Self::PodFlags => "pod_flags",
        }
    }
}

/// `on` or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

/// Spacing of due times.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Independent arrivals.
    #[default]
    Poisson,
    /// Equal steps.
    Uniform,
}

/// The header `X-Accel-Buffering` on streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// `X-Accel-Buffering: no`, as in production.
    No,
    /// No such header.
    Unset,
}

/// What a pod does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Broken {
    /// Nothing.
    None,
    /// It answers streams 503 at once.
    RefuseFast,
    /// It answers streams 200 and ends them at once.
    #[serde(rename = "polite-200")]
    Polite200,
}

impl Broken {
    /// The value of `--break`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::RefuseFast => "refuse-fast",
            Self::Polite200 => "polite-200",
        }
    }
}
