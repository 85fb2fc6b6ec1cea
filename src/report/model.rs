//! A result folder in memory: the environment and, of each run, its summary and what the header saw from outside.

use crate::result::summary::RunSummary;
use crate::result::{Environment, GeneratorHealth, Observed};

/// Everything a report is made from.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Results {
    /// `environment.json`.
    pub environment: Environment,
    /// The runs in executed order.
    pub runs: Vec<Run>,
}

/// One run: its figures, and the parts of its header that a page shows.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Run {
    /// The figures.
    pub summary: RunSummary,
    /// Ends of warm-up, measurement and cool-down in seconds after the origin.
    pub phases_s: [f64; 3],
    /// How the generator did.
    pub generator: GeneratorHealth,
    /// What `compare` saw from outside.
    pub observed: Option<Observed>,
}
