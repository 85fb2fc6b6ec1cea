//! What a report keeps of Prometheus: key panels of the dashboards over one run, and latencies as histograms.

use std::time::Duration;

use anyhow::Context;

use super::dashboard::{self, Dashboard, Window, series_name, substitute};
use super::prometheus::{NAMESPACE, Observer, SCRAPE_S};
use crate::result::snapshot::{FORMAT, Latency, Measured, Panel, Series, Snapshot};
use crate::result::{Header, Marker};

/// Seconds shown before the first like and after the last one.
const MARGIN_S: f64 = 3.0;

/// Asks for everything that is kept of one run, whose file is `run`. Waits for the scrape after the run's end.
///
/// # Errors
/// When Prometheus does not answer, or refuses a query.
pub async fn take(observer: &Observer, header: &Header, run: &str) -> anyhow::Result<Snapshot> {
    tokio::time::sleep(Duration::from_secs(u64::from(SCRAPE_S) + 1)).await;
    let api = &observer.api;
    let origin = header.origin_us as f64 / 1e6;
    let of = |us: u64| origin + us as f64 / 1e6;
    let last = header.observed.iter().flat_map(|o| &o.markers).map(|Marker { at_us, .. }| *at_us).max();
    let end = of(last.unwrap_or_default().max(header.cooldown_end_us)) + MARGIN_S;
    let window = Window { start: origin, end, step: f64::from(SCRAPE_S), scrape: f64::from(SCRAPE_S) };
    let mut snapshot = Snapshot {
        format: FORMAT,
        run: run.to_owned(),
        prometheus: api.version().await?,
        scrape_s: f64::from(SCRAPE_S),
        missing: observer.missing.clone(),
        ..Snapshot::default()
    };
    for (name, text, keys) in super::KEY_PANELS {
        let dashboard = Dashboard::parse(text).with_context(|| format!("the dashboard {name}"))?;
        let values = match dashboard.resolve(api, window).await {
            Ok(values) => values,
            Err(why) => {
                snapshot.missing.push(format!("{why:#}."));
                continue;
            }
        };
        let key = |panel: &&dashboard::Panel| panel.kind == "timeseries" && keys.contains(&panel.title.as_str());
        for panel in dashboard.panels.iter().filter(key) {
            let mut series = Vec::new();
            for target in &panel.targets {
                let expression = substitute(&target.expression, &values);
                let found = api.range(&expression, window.start, window.end, window.step).await;
                let found = found.with_context(|| format!("{name}, {}: {expression}", panel.title))?;
                series.extend(found.into_iter().map(|one| Series {
                    name: series_name(&target.legend, &one.labels),
                    points: one.points.into_iter().filter(|p| p.1.is_finite()).map(|p| (p.0 - origin, p.1)).collect(),
                }));
            }
            series.retain(|one| !one.points.is_empty());
            series.sort_by(|a, b| a.name.cmp(&b.name));
            snapshot.panels.push(Panel {
                dashboard: dashboard.title.clone(),
                title: panel.title.clone(),
                description: panel.description.clone(),
                unit: panel.unit.clone(),
                logarithmic: panel.logarithmic,
                series,
            });
        }
    }
    let (from, to) = (of(header.warmup_end_us), of(header.measure_end_us));
    for (of, metric) in [
        (Measured::Generator, "pushlab_load_commit_to_view_seconds"),
        (Measured::Pods, "pushlab_delivery_latency_seconds"),
    ] {
        let transport = header.config.transport().label();
        let length = (to - from).max(2.0 * f64::from(SCRAPE_S));
        let of_run = format!("{{namespace=\"{NAMESPACE}\",transport=\"{transport}\"}}[{length:.0}s]");
        let expression = format!("sum by (le) (increase({metric}_bucket{of_run}))");
        let mut buckets: Vec<(f64, f64)> = Vec::new();
        for one in api.query(&expression, to).await? {
            let bound = one.labels.get("le").and_then(|le| le.parse().ok());
            buckets.extend(bound.zip(one.points.first()).map(|(bound, point)| (bound, point.1)));
        }
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        let count = buckets.pop_if(|last| last.0.is_infinite()).map_or(0.0, |last| last.1);
        let mean = format!("sum(increase({metric}_sum{of_run})) / sum(increase({metric}_count{of_run}))");
        let mean = api.query(&mean, to).await?.first().and_then(|one| one.points.first().map(|point| point.1));
        match mean.filter(|mean| mean.is_finite() && count > 0.0) {
            Some(mean) => snapshot.latencies.push(Latency { of, buckets, count, mean }),
            None => snapshot.missing.push(format!("No sample of {metric} in a run's window.")),
        }
    }
    Ok(snapshot)
}
