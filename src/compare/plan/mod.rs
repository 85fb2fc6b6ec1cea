//! Plans: what is run, as data. A plan crosses factors into cells, and says which cells are pairs.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Deserialize;

pub use crate::load::SseClient;

/// From grids to cells: crossing, blocks, order, duration.
pub mod expand;
/// The factors that can be paired, and levels.
mod factor;
/// Which levels are crossed, their defaults, what cannot be.
mod grid;
/// What a cell does, and what fails in it.
mod scenario;

pub use expand::{Planned, estimate};
pub use factor::{Accel, Broken, Factor, Schedule, Switch};
pub use grid::Grid;
use grid::duration;
pub use scenario::{FaultKind, Scenario};

/// Plans that come with the program: name → text.
pub const PRESETS: [(&str, &str); 7] = [
    ("quick", include_str!("../plans/quick.toml")),
    ("seed", include_str!("../plans/seed.toml")),
    ("full", include_str!("../plans/full.toml")),
    ("faults", include_str!("../plans/faults.toml")),
    ("writes", include_str!("../plans/writes.toml")),
    ("incidents", include_str!("../plans/incidents.toml")),
    ("kind", include_str!("../plans/kind.toml")),
];

/// A plan.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Its name.
    pub name: String,
    /// What it is for, in a sentence.
    #[serde(default)]
    pub about: String,
    /// Seed of the order of cells, of due times and of choices.
    #[serde(default = "one")]
    pub order_seed: u64,
    /// Phases of every cell that does not say its own.
    pub phases: Phases,
    /// Which CPUs are whose.
    #[serde(default)]
    pub cpus: CpuSets,
    /// Question → the metric its verdict is about: a field of the run's summary.
    #[serde(default)]
    pub primary: BTreeMap<String, String>,
    /// The grids.
    pub cells: Vec<Grid>,
}

/// Lengths of the phases of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Phases {
    /// Likes that are not judged, at first.
    #[serde(deserialize_with = "duration")]
    pub warmup: Duration,
    /// The window.
    #[serde(deserialize_with = "duration")]
    pub measure: Duration,
    /// Likes that are not judged, at last.
    #[serde(deserialize_with = "duration")]
    pub cooldown: Duration,
}

/// CPU sets; absent: the generator gets the last core, everything else the others (one core: no pinning).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuSets {
    /// The generator's.
    pub generator: Option<Vec<usize>>,
    /// Pods', edge's, broker's and database's.
    pub stack: Option<Vec<usize>>,
}

impl Plan {
    /// A preset by name, or a file; with its text, which is kept beside the results.
    ///
    /// # Errors
    /// When there is no such plan, or it says something that cannot be: file, line, field and what to do.
    pub fn load(name: &str) -> anyhow::Result<(Self, String)> {
        let preset = PRESETS.iter().find(|(preset, _)| *preset == name).map(|(_, text)| (*text).to_owned());
        let text = match preset {
            Some(text) => text,
            None if Path::new(name).extension().is_some_and(|e| e == "toml") => {
                std::fs::read_to_string(name).with_context(|| format!("cannot read the plan {name}"))?
            }
            None => bail!(
                "there is no plan {name:?}; give {} or a file that ends in .toml",
                PRESETS.map(|(name, _)| name).join(", ")
            ),
        };
        let plan = Self::parse(&text).with_context(|| format!("the plan {name} is not usable"))?;
        Ok((plan, text))
    }

    /// Reads a plan.
    ///
    /// # Errors
    /// What is wrong and in which line.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let plan: Self = toml::from_str(text)?;
        for (number, grid) in plan.cells.iter().enumerate() {
            if let Err((field, why)) = grid.check() {
                let place = line_of(text, number, field);
                bail!("line {place}, [[cells]] number {}, field `{field}`: {why}", number + 1);
            }
            let window = grid.phases.unwrap_or(plan.phases).measure;
            let longest = grid.fault.iter().map(|fault| grid.hold.unwrap_or_else(|| fault.usual_hold())).max();
            if longest.is_some_and(|hold| !hold.is_zero() && window < hold + Duration::from_secs(4)) {
                let place = line_of(text, number, if grid.hold.is_some() { "hold" } else { "fault" });
                let why = "the window must be 4 s longer than the fault lasts: give `hold`, or longer `phases`";
                bail!("line {place}, [[cells]] number {}: {why}", number + 1);
            }
        }
        if plan.cells.is_empty() {
            bail!("no [[cells]]");
        }
        Ok(plan)
    }
}

/// Line of a field within the grid of that number, else the line of the grid itself.
fn line_of(text: &str, grid: usize, field: &str) -> usize {
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    let heads = lines.iter().enumerate().filter(|(_, line)| line.starts_with("[[cells]]"));
    let begin = heads.map(|(line, _)| line).nth(grid).unwrap_or_default();
    let within = lines.iter().enumerate().skip(begin + 1).take_while(|(_, line)| !line.starts_with("[["));
    let mut named = within.filter(|(_, line)| line.split(['=', ' ']).next() == Some(field));
    named.next().map_or(begin, |(line, _)| line) + 1
}

fn one() -> u64 {
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(cells: &str) -> String {
        let head = "name = \"x\"\nphases = { warmup = \"1s\", measure = \"1s\", cooldown = \"1s\" }\n";
        format!("{:#}", Plan::parse(&format!("{head}{cells}")).unwrap_err())
    }

    #[test]
    fn a_bad_plan_is_told_by_line_and_field() {
        let said = problem("[[cells]]\nquestion = \"Q1\"\nscenario = \"latency\"\nrat = [1]\n");
        assert!(said.contains("line 6") && said.contains("rat"), "{said}");
        let said = problem("[[cells]]\nquestion = \"Q1\"\nscenario = \"latency\"\nedge = [\"apache\"]\n");
        assert!(said.contains("line 6") && said.contains("apache") && said.contains("nginx-rr"), "{said}");
        let said = problem(
            "[[cells]]\nquestion = \"Q1\"\nscenario = \"latency\"\n\n[[cells]]\nquestion = \"Q1\"\nscenario = \"latency\"\nrate = [0]\n",
        );
        assert!(said.contains("line 10, [[cells]] number 2, field `rate`"), "{said}");
        let said = problem("[[cells]]\nquestion = \"Q1\"\nscenario = \"latency\"\nmax_age = [\"soon\"]\n");
        assert!(said.contains("line 6") && said.contains("soon"), "{said}");
        let said = problem(
            "[[cells]]\nquestion = \"Q1\"\nscenario = \"latency\"\ncompare = \"arm\"\narm = [\"sse-post\"]\npairs = 8\n",
        );
        assert!(said.contains("line 7") && said.contains("two levels"), "{said}");
        let said = problem("[[cells]]\nquestion = \"Q12\"\nscenario = \"faults\"\n");
        assert!(said.contains("field `fault`") && said.contains("pod-kill"), "{said}");
        let hangs = "[[cells]]\nquestion = \"Q12\"\nscenario = \"faults\"\nfault = [\"pod-hang\"]\n";
        let said = problem(hangs);
        assert!(said.contains("line 6") && said.contains("4 s longer than the fault lasts"), "{said}");
        let said = problem(&hangs.replace("pod-hang", "proxy-reload"));
        assert!(said.contains("field `edge`") && said.contains("needs nginx"), "{said}");
        assert!(problem("cells = []\n").contains("no [[cells]]"));
    }

    #[test]
    fn an_unknown_plan_says_which_there_are() {
        assert!(format!("{:#}", Plan::load("fast").unwrap_err()).contains("quick, seed, full"));
    }
}
