//! Prometheus' HTTP API: instant and range queries, label values, targets.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail};
use reqwest::{Client, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// A Prometheus to ask.
#[derive(Debug, Clone)]
pub struct Api {
    base: Url,
    client: Client,
}

/// A time series: its labels and (Unix time in seconds, value); an instant query gives one point.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Found {
    /// Labels, the name of the metric among them as `__name__`.
    pub labels: BTreeMap<String, String>,
    /// Its points; NaN and infinities are among them.
    pub points: Vec<(f64, f64)>,
}

/// A target of a scrape.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// Its labels: `job`, `pod`, `instance`, …
    pub labels: BTreeMap<String, String>,
    /// `up`, `down` or `unknown` (not scraped yet).
    pub health: String,
    /// Why it is down.
    pub last_error: String,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Rule {
    /// What it records, or the alert's name.
    pub name: String,
    /// Its expression.
    pub query: String,
}

#[derive(Deserialize)]
struct Answer<T> {
    data: Option<T>,
    error: Option<String>,
}

/// The answer to a query.
#[derive(Deserialize)]
#[serde(tag = "resultType", content = "result", rename_all = "lowercase")]
enum Data {
    Vector(Vec<Raw>),
    Matrix(Vec<Raw>),
    Scalar((f64, String)),
    String((f64, String)),
}

#[derive(Deserialize)]
struct Raw {
    metric: BTreeMap<String, String>,
    value: Option<(f64, String)>,
    #[serde(default)]
    values: Vec<(f64, String)>,
}

impl Api {
    /// At `base`: `http://127.0.0.1:9090`.
    ///
    /// # Errors
    /// When it is no URL.
    pub fn new(base: &str) -> anyhow::Result<Self> {
        let client = Client::builder().timeout(Duration::from_secs(30)).build()?;
        Ok(Self { base: Url::parse(base).with_context(|| format!("{base} is no URL"))?, client })
    }

    /// An expression at an instant (Unix seconds).
    ///
    /// # Errors
    /// What Prometheus says against it, or that it does not answer.
    pub async fn query(&self, expression: &str, at: f64) -> anyhow::Result<Vec<Found>> {
        self.ask("query", &[("query", expression), ("time", &at.to_string())]).await.map(found)
    }

    /// An expression from `start` to `end` (Unix seconds) in steps of `step` seconds.
    ///
    /// # Errors
    /// What Prometheus says against it, or that it does not answer.
    pub async fn range(&self, expression: &str, start: f64, end: f64, step: f64) -> anyhow::Result<Vec<Found>> {
        let (start, end, step) = (start.to_string(), end.to_string(), step.to_string());
        let with = [("query", expression), ("start", &start), ("end", &end), ("step", &step)];
        self.ask("query_range", &with).await.map(found)
    }

    /// The values of a label, of all series or of those that match.
    ///
    /// # Errors
    /// What Prometheus says against it, or that it does not answer.
    pub async fn label_values(&self, label: &str, matching: Option<&str>) -> anyhow::Result<Vec<String>> {
        let with: Vec<_> = matching.map(|matching| ("match[]", matching)).into_iter().collect();
        self.ask(&format!("label/{label}/values"), &with).await
    }

    /// What it scrapes.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn targets(&self) -> anyhow::Result<Vec<Target>> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Targets {
            active_targets: Vec<Target>,
        }
        Ok(self.ask::<Targets>("targets", &[("state", "active")]).await?.active_targets)
    }

    /// The rules it evaluates, recording and alerting.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn rules(&self) -> anyhow::Result<Vec<Rule>> {
        #[derive(Deserialize)]
        struct Rules {
            groups: Vec<Group>,
        }
        #[derive(Deserialize)]
        struct Group {
            rules: Vec<Rule>,
        }
        Ok(self.ask::<Rules>("rules", &[]).await?.groups.into_iter().flat_map(|group| group.rules).collect())
    }

    /// Its version.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn version(&self) -> anyhow::Result<String> {
        #[derive(Deserialize)]
        struct Build {
            version: String,
        }
        Ok(self.ask::<Build>("status/buildinfo", &[]).await?.version)
    }

    async fn ask<T: DeserializeOwned>(&self, what: &str, with: &[(&str, &str)]) -> anyhow::Result<T> {
        let mut url = self.base.join("/api/v1/")?.join(what)?;
        if !with.is_empty() {
            url.query_pairs_mut().extend_pairs(with);
        }
        let response = self.client.get(url).send().await.context("Prometheus does not answer")?;
        let status = response.status();
        let text = response.text().await.context("Prometheus did not finish its answer")?;
        let answer: Answer<T> =
            serde_json::from_str(&text).with_context(|| format!("Prometheus answered {status}: {text}"))?;
        match (answer.data, answer.error) {
            (_, Some(error)) => bail!("Prometheus: {error}"),
            (Some(data), None) => Ok(data),
            (None, None) => bail!("Prometheus answered {status} without data"),
        }
    }
}

fn found(data: Data) -> Vec<Found> {
    let number = |(at, text): (f64, String)| (at, text.parse().unwrap_or(f64::NAN));
    match data {
        Data::Vector(all) | Data::Matrix(all) => all
            .into_iter()
            .map(|raw| Found {
                labels: raw.metric,
                points: raw.values.into_iter().chain(raw.value).map(number).collect(),
            })
            .collect(),
        Data::Scalar(point) | Data::String(point) => {
            vec![Found { labels: BTreeMap::new(), points: vec![number(point)] }]
        }
    }
}
