//! Grafana dashboards as far as their queries go: panels, variables, and what Grafana puts in their place.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use serde_json::Value;

use super::api::Api;

/// A dashboard in Grafana's classic JSON.
#[derive(Debug, Clone, PartialEq)]
pub struct Dashboard {
    /// Its title.
    pub title: String,
    /// Its variables, in their order: a later one may use those before it.
    pub variables: Vec<Variable>,
    /// Every panel that asks something, those within rows too.
    pub panels: Vec<Panel>,
    /// Expressions of its annotations, by name.
    pub annotations: Vec<(String, String)>,
}

/// A panel that asks something.
#[derive(Debug, Clone, PartialEq)]
pub struct Panel {
    /// Its title.
    pub title: String,
    /// What it is for.
    pub description: String,
    /// `timeseries`, `stat`, `heatmap`, …
    pub kind: String,
    /// Grafana's name of its unit.
    pub unit: String,
    /// Whether its axis is logarithmic.
    pub logarithmic: bool,
    /// Its queries.
    pub targets: Vec<Target>,
}

/// One query of a panel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// PromQL with variables in it.
    pub expression: String,
    /// How its series are named: `{{pod}}`.
    pub legend: String,
    /// Asked for one instant, not for a range.
    pub instant: bool,
}

/// A variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    /// Its name, without the dollar.
    pub name: String,
    /// `query`, `custom`, `datasource`, …
    pub kind: String,
    /// What it asks, or its values with commas between.
    pub query: String,
    /// Whether all values can be meant at once.
    pub all: bool,
    /// What "All" stands for, if not for every value.
    pub all_value: Option<String>,
}

/// Name → what stands in its place.
pub type Values = BTreeMap<String, String>;

impl Dashboard {
    /// Reads one.
    ///
    /// # Errors
    /// When it is no dashboard.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let json: Value = serde_json::from_str(text)?;
        let title = json["title"].as_str().context("no title")?.to_owned();
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let mut panels = Vec::new();
        for panel in list(&json["panels"]) {
            panels.extend(list(&panel["panels"]).iter().map(Panel::read)); // a row that is folded
            panels.push(Panel::read(&panel));
        }
        panels.retain(|panel| !panel.targets.is_empty());
        let annotations = list(&json["annotations"]["list"]);
        let annotations =
            annotations.iter().filter_map(|a| Some((text_of(&a["name"]), a["target"]["expr"].as_str()?.to_owned())));
        let annotations = annotations.collect();
        let variables = list(&json["templating"]["list"]).iter().map(Variable::read).collect();
        Ok(Self { title, variables, panels, annotations })
    }

    /// Every variable with all its values, as a fresh page has it; what has no value is an error.
    ///
    /// # Errors
    /// When a variable's query fails or finds nothing.
    pub async fn resolve(&self, api: &Api, window: Window) -> anyhow::Result<Values> {
        let mut values = window.values();
        for variable in self.variables.iter().filter(|variable| variable.kind != "datasource") {
            let found = match variable.kind.as_str() {
                "query" => {
                    let query = substitute(&variable.query, &values);
                    let (matching, label) =
                        label_values(&query).with_context(|| format!("${}: {query}", variable.name))?;
                    api.label_values(label, matching).await?
                }
                _ => variable.query.split(',').map(|value| value.trim().to_owned()).collect(),
            };
            let Some(first) = found.first() else {
                bail!("the variable ${} of {} has no value: {}", variable.name, self.title, variable.query)
            };
            let value = match &variable.all_value {
                Some(all) => all.clone(),
                None if variable.all => format!("({})", found.join("|")),
                None => first.clone(),
            };
            values.insert(variable.name.clone(), value);
        }
        Ok(values)
    }
}

impl Panel {
    fn read(json: &Value) -> Self {
        let defaults = &json["fieldConfig"]["defaults"];
        let targets = json["targets"].as_array().into_iter().flatten();
        let target = |target: &Value| {
            let expression = target["expr"].as_str()?.to_owned();
            let instant = target["instant"].as_bool() == Some(true) && target["range"].as_bool() != Some(true);
            Some(Target { expression, legend: text_of(&target["legendFormat"]), instant })
        };
        Self {
            title: text_of(&json["title"]),
            description: text_of(&json["description"]),
            kind: text_of(&json["type"]),
            unit: text_of(&defaults["unit"]),
            logarithmic: defaults["custom"]["scaleDistribution"]["type"] == "log",
            targets: targets.filter_map(target).collect(),
        }
    }
}

impl Variable {
    fn read(json: &Value) -> Self {
        let query = if json["query"].is_object() { &json["query"]["query"] } else { &json["query"] };
        let all_value = json["allValue"].as_str().filter(|value| !value.is_empty());
        Self {
            name: text_of(&json["name"]),
            kind: text_of(&json["type"]),
            query: text_of(query),
            all: json["includeAll"].as_bool() == Some(true),
            all_value: all_value.map(ToOwned::to_owned),
        }
    }
}

fn text_of(json: &Value) -> String {
    json.as_str().unwrap_or_default().to_owned()
}

/// `label_values(metric, label)` or `label_values(label)` → what it matches, and the label.
fn label_values(query: &str) -> Option<(Option<&str>, &str)> {
    let inner = query.trim().strip_prefix("label_values(")?.strip_suffix(')')?;
    Some(inner.rsplit_once(',').map_or((None, inner.trim()), |(of, label)| (Some(of.trim()), label.trim())))
}

/// The time a page shows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Window {
    /// Its begin, Unix seconds.
    pub start: f64,
    /// Its end.
    pub end: f64,
    /// Seconds between two points.
    pub step: f64,
    /// Seconds between two scrapes, as the data source knows it.
    pub scrape: f64,
}

impl Window {
    /// Grafana's own variables.
    fn values(self) -> Values {
        let seconds = |value: f64| format!("{value:.0}s");
        let range = self.end - self.start;
        let rate = (self.step + self.scrape).max(4.0 * self.scrape);
        let all = [
            ("__rate_interval", seconds(rate)),
            ("__interval", seconds(self.step)),
            ("__interval_ms", format!("{:.0}", self.step * 1e3)),
            ("__range", seconds(range)),
            ("__range_s", format!("{range:.0}")),
            ("__range_ms", format!("{:.0}", range * 1e3)),
        ];
        all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// Puts values in the place of `$name`, `${name}`, `${name:format}` and `[[name]]`; what has no value stays.
#[must_use]
pub fn substitute(text: &str, values: &Values) -> String {
    let mut done = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['$', '[']) {
        let (before, from) = rest.split_at(at);
        done.push_str(before);
        let bare = |from: &str| {
            let end = from.find(|c: char| c != '_' && !c.is_ascii_alphanumeric()).unwrap_or(from.len());
            (end > 0).then_some((0, end, end))
        };
        let closed = |open: &str, close: &str| {
            let inner = from.strip_prefix(open)?;
            let end = inner.find(close)?;
            let name = inner[..end].split(':').next().map_or(0, str::len);
            Some((open.len(), open.len() + name, open.len() + end + close.len()))
        };
        let found = closed("${", "}").or_else(|| closed("[[", "]]"));
        let found = found.or_else(|| {
            let (begin, end, length) = bare(from.strip_prefix('$')?)?;
            Some((begin + 1, end + 1, length + 1))
        });
        match found.and_then(|(begin, end, length)| Some((values.get(&from[begin..end])?, length))) {
            Some((value, length)) => {
                done.push_str(value);
                rest = &from[length..];
            }
            None => {
                done.push_str(&from[..1]);
                rest = &from[1..];
            }
        }
    }
    done + rest
}

/// A series' name: the legend's `{{label}}` replaced; without a legend its labels.
#[must_use]
pub fn series_name(legend: &str, labels: &BTreeMap<String, String>) -> String {
    if legend.is_empty() || legend == "__auto" {
        let own: Vec<_> = labels.iter().filter(|(name, _)| *name != "__name__").collect();
        return match own[..] {
            [(_, only)] => only.clone(),
            _ => own.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(", "),
        };
    }
    let mut name = String::new();
    let mut rest = legend;
    while let Some((before, (label, after))) =
        rest.split_once("{{").and_then(|(before, rest)| Some((before, rest.split_once("}}")?)))
    {
        name.push_str(before);
        name.push_str(labels.get(label.trim()).map_or("", String::as_str));
        rest = after;
    }
    (name + rest).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(all: &[(&str, &str)]) -> Values {
        all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn variables_are_replaced_as_grafana_does() {
        let with = values(&[("pod", "(pod-1|pod-2)"), ("podless", "x"), ("__rate_interval", "4s")]);
        for (text, expected) in [
            ("rate(a{pod=~\"$pod\"}[$__rate_interval])", "rate(a{pod=~\"(pod-1|pod-2)\"}[4s])"),
            (
                "a{b=\"$podless\", c=~\"${pod:regex}\", d=\"[[pod]]\"}",
                "a{b=\"x\", c=~\"(pod-1|pod-2)\", d=\"(pod-1|pod-2)\"}",
            ),
            ("a{b=~\"c$\"} / $unknown [5m]", "a{b=~\"c$\"} / $unknown [5m]"),
        ] {
            assert_eq!(substitute(text, &with), expected);
        }
    }

    #[test]
    fn a_series_is_named_by_its_legend() {
        let labels = values(&[("__name__", "up"), ("pod", "pod-1"), ("kind", "pool")]);
        assert_eq!(series_name("{{ pod }}: {{kind}} p99", &labels), "pod-1: pool p99");
        assert_eq!(series_name("", &labels), "kind=pool, pod=pod-1");
        assert_eq!(series_name("__auto", &values(&[("pod", "a")])), "a");
    }

    #[test]
    fn a_dashboard_is_read_with_its_folded_rows() {
        let text = r#"{"title": "T", "panels": [
            {"type": "row", "panels": [{"title": "in", "type": "stat", "targets": [{"expr": "up", "instant": true}]}]},
            {"title": "out", "type": "timeseries", "targets": [{"expr": "a", "legendFormat": "{{pod}}"}],
             "fieldConfig": {"defaults": {"unit": "s", "custom": {"scaleDistribution": {"type": "log"}}}}},
            {"title": "words", "type": "text"}],
            "templating": {"list": [{"name": "pod", "type": "query", "includeAll": true,
             "query": {"query": "label_values(up{job=\"x\"}, pod)"}}]}}"#;
        let dashboard = Dashboard::parse(text).unwrap();
        let titles: Vec<_> = dashboard.panels.iter().map(|panel| panel.title.as_str()).collect();
        assert_eq!(titles, ["in", "out"]);
        assert!(dashboard.panels[0].targets[0].instant && dashboard.panels[1].logarithmic);
        assert_eq!(label_values(&dashboard.variables[0].query), Some((Some("up{job=\"x\"}"), "pod")));
    }
}
