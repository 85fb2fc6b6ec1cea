//! The pods' counters: scraped before the viewers connect and after the end, kept as differences.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::result::PodCounters;

/// One scrape: Prometheus name with labels → value; none: the pod could not be asked.
pub type Scrape = Option<BTreeMap<String, f64>>;

/// Asks one pod.
async fn scrape(client: &reqwest::Client, admin_url: &str) -> Scrape {
    let url = format!("{}/metrics", admin_url.trim_end_matches('/'));
    let answer = client.get(url).timeout(Duration::from_secs(5)).send().await.ok()?.error_for_status().ok()?;
    Some(parse(&answer.text().await.ok()?))
}

/// Asks all pods, in order.
pub async fn scrape_all(client: &reqwest::Client, admin_urls: &[String]) -> Vec<Scrape> {
    let mut all = Vec::with_capacity(admin_urls.len());
    for url in admin_urls {
        all.push(scrape(client, url).await);
    }
    all
}

fn parse(text: &str) -> BTreeMap<String, f64> {
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.trim().to_owned(), value.parse().ok()?))
    };
    text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect()
}

/// What happened in between. A pod that was not there before begins at zero; one that is not there after, or counts less
/// than before (another process now), is not complete.
pub fn differences(admin_urls: &[String], before: &[Scrape], after: Vec<Scrape>) -> Vec<PodCounters> {
    let pairs = admin_urls.iter().zip(before).zip(after);
    pairs.map(|((url, before), after)| difference(url, before.as_ref(), after)).collect()
}

fn difference(admin_url: &str, before: Option<&BTreeMap<String, f64>>, after: Scrape) -> PodCounters {
    let mut counters = PodCounters { admin_url: admin_url.into(), ..PodCounters::default() };
    let Some(after) = after else { return counters };
    counters.complete = true;
    for (name, value) in after {
        let old = before.and_then(|before| before.get(&name)).copied().unwrap_or(0.0);
        let value = if is_counter(&name) { value - old } else { value };
        if value < 0.0 && is_counter(&name) {
            counters.complete = false;
            continue;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "counters are whole and not negative"
        )]
        let whole = value as u64;
        let family = name.split('{').next().unwrap_or_default();
        match family {
            "pushlab_skipped_versions_total" if name.contains("reason=\"conflated\"") => counters.conflated += whole,
            "pushlab_skipped_versions_total" if name.contains("reason=\"superseded\"") => counters.superseded += whole,
            "pushlab_skipped_versions_total" if name.contains("reason=\"dropped\"") => counters.dropped += whole,
            "pushlab_deliveries_total" => counters.deliveries += whole,
            "pushlab_socket_writes_total" => counters.socket_writes += whole,
            "pushlab_written_bytes_total" => counters.written_bytes += whole,
            _ => {}
        }
        if value != 0.0 {
            counters.other.insert(name, value);
        }
    }
    counters
}

/// Counters and histograms rise; gauges are kept as they are.
fn is_counter(name: &str) -> bool {
    let family = name.split('{').next().unwrap_or_default();
    ["_total", "_bucket", "_count", "_sum"].iter().any(|suffix| family.ends_with(suffix))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "# HELP x y\npushlab_deliveries_total{transport=\"sse\"} 10\npushlab_connections 3\n";
    const AFTER: &str = "pushlab_deliveries_total{transport=\"sse\"} 25\npushlab_deliveries_total{transport=\"stomp\"} 5\n\
                         pushlab_connections 2\npushlab_skipped_versions_total{reason=\"conflated\",transport=\"sse\"} 4\n";

    #[test]
    fn counters_are_differences_and_gauges_are_not() {
        let pod = difference("http://a", Some(&parse(BEFORE)), Some(parse(AFTER)));
        assert_eq!((pod.complete, pod.deliveries, pod.conflated), (true, 20, 4));
        assert_eq!(pod.other["pushlab_connections"], 2.0);
    }

    #[test]
    fn a_pod_that_went_away_or_began_again_is_not_complete() {
        assert!(!difference("http://a", Some(&parse(BEFORE)), None).complete);
        assert!(!difference("http://a", Some(&parse(AFTER)), Some(parse(BEFORE))).complete);
        let new = difference("http://a", None, Some(parse(AFTER)));
        assert_eq!((new.complete, new.deliveries), (true, 30));
    }
}
