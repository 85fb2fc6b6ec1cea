//! Results into bytes: the page, its Markdown twin and `results.json`. Equal results give equal bytes.

use minijinja::{AutoEscape, Environment, UndefinedBehavior};
use serde::Serialize;

use super::cells::{self, Row};
use super::k6;
use super::model::Results;
use super::page;
use super::verdict::{self, Verdict};
use crate::result::summary::RunSummary;

/// The three files of a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// `index.html`: self-contained, no script, nothing fetched.
    pub html: String,
    /// `report.md`: the same without charts.
    pub markdown: String,
    /// `results.json`, described by `results.schema.json`.
    pub json: String,
}

/// The JSON Schema of `results.json`, draft 2020-12.
pub const SCHEMA: &str = include_str!("results.schema.json");

/// `results.json`.
#[derive(Debug, Serialize)]
struct Json<'a> {
    format: u32,
    environment: &'a crate::result::Environment,
    verdicts: &'a [Verdict],
    cells: Vec<JsonCell>,
    runs: Vec<&'a RunSummary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    k6: Option<k6::Beside>,
    violations: Vec<String>,
    unreadable: &'a [String],
}

#[derive(Debug, Serialize)]
struct JsonCell {
    question: String,
    title: String,
    arms: Vec<&'static str>,
    rows: Vec<Row>,
    notes: Vec<String>,
}

/// Renders all three files.
///
/// # Errors
/// When a chart or a template fails.
pub fn render(results: &Results, verdicts: &[Verdict]) -> anyhow::Result<Rendered> {
    let page = page::page(results, verdicts)?;
    let mut templates = Environment::new();
    templates.set_undefined_behavior(UndefinedBehavior::Strict);
    templates.set_trim_blocks(true);
    templates.set_lstrip_blocks(true);
    templates
        .set_auto_escape_callback(|name| if name.ends_with(".html") { AutoEscape::Html } else { AutoEscape::None });
    templates.add_filter("cell", |text: String| text.replace('|', "\\|").replace('\n', " "));
    templates.add_template("report.html", include_str!("templates/report.html"))?;
    templates.add_template("style.css", include_str!("templates/style.css"))?;
    templates.add_template("report.md", include_str!("templates/report.md"))?;
    let html = templates.get_template("report.html")?.render(&page)?;
    let markdown = templates.get_template("report.md")?.render(&page)?;
    Ok(Rendered { html, markdown, json: json(results, verdicts)? })
}

fn json(results: &Results, verdicts: &[Verdict]) -> anyhow::Result<String> {
    let cells = cells::groups(&results.runs);
    let cells = cells.iter().map(|group| JsonCell {
        question: group.question.to_owned(),
        title: group.title.clone(),
        arms: group.columns.iter().map(|column| column.arm.name()).collect(),
        rows: group.rows(),
        notes: group.notes(),
    });
    let all = Json {
        format: crate::result::FORMAT,
        environment: &results.environment,
        verdicts,
        cells: cells.collect(),
        runs: results.runs.iter().map(|run| &run.summary).collect(),
        k6: k6::beside(results),
        violations: results.violations(),
        unreadable: &results.unreadable,
    };
    Ok(serde_json::to_string_pretty(&all)? + "\n")
}

/// Judges and renders.
///
/// # Errors
/// See [`render`].
pub fn judge_and_render(results: &Results) -> anyhow::Result<(Vec<Verdict>, Rendered)> {
    let verdicts = verdict::verdicts(results);
    let rendered = render(results, &verdicts)?;
    Ok((verdicts, rendered))
}
