//! What the scripts in `k6/` leave: the JSON of their `handleSummary`, kept as `k6/*.json` beside a folder's run files.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// The format's number; a reader refuses another.
pub const FORMAT: u32 = 1;

/// One run of k6.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct K6Run {
    /// Its file, `k6/….json`; told by the reader.
    #[serde(default)]
    pub file: String,
    /// [`FORMAT`].
    pub format: u32,
    /// k6's version; none from a stock k6, which does not tell it to scripts.
    pub k6: Option<String>,
    /// The script.
    pub script: String,
    /// The run file of our generator that watched the same likes, as `cells/….run.gz`; none: it ran alone.
    pub beside: Option<String>,
    /// Likes that k6 was due to send and had no VU for.
    pub dropped: u64,
    /// By how much the posts' versions rose over the run; none: not asked.
    pub versions: Option<u64>,
    /// What was measured.
    pub cells: Vec<K6Cell>,
    /// The script's thresholds.
    pub thresholds: Vec<K6Threshold>,
}

/// One load of a run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct K6Cell {
    /// Its name within the script.
    pub name: String,
    /// The arm; none: likes alone.
    pub arm: Option<String>,
    /// Streams.
    pub viewers: u64,
    /// Likes per second that k6 sent; 0: somebody else liked.
    pub rate: f64,
    /// Who stamped the arrivals: `kernel`, `go`, `js` (the event loop), `none`.
    pub stamped: String,
    /// Commit → arrival; none: nothing arrived.
    pub commit_to_arrival_us: Option<K6Trend>,
    /// Likes answered well, and those of unknown outcome.
    pub likes_ok: u64,
    /// See `likes_ok`.
    pub likes_unknown: u64,
    /// Versions that streams were not told of one by one (conflated, superseded or lost).
    pub gaps: u64,
    /// Connections after the first of a stream.
    pub reconnects: u64,
    /// Connects and streams that came to nothing in time.
    pub timeouts: u64,
    /// Streams that were not on the final version in time.
    pub lost_finals: u64,
}

/// A distribution; its quantiles in µs.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct K6Trend {
    /// Samples.
    pub samples: u64,
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
}

/// A threshold and whether it held.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct K6Threshold {
    /// The metric, with its tags.
    pub metric: String,
    /// As written in the script.
    pub condition: String,
    /// Whether it held.
    pub ok: bool,
}

/// Reads every `k6/*.json` of a result folder, in the order of their names, and says of each that cannot be read why.
/// A folder without any is ordinary.
#[must_use]
pub fn read_folder(dir: &Path) -> (Vec<K6Run>, Vec<String>) {
    let folder = dir.join("k6");
    let names = std::fs::read_dir(&folder).into_iter().flatten();
    let mut names: Vec<String> = names.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.retain(|name| Path::new(name).extension().is_some_and(|end| end == "json"));
    names.sort();
    let (mut runs, mut unreadable) = (Vec::new(), Vec::new());
    for name in names {
        match read(&folder.join(&name)) {
            Ok(run) => runs.push(K6Run { file: format!("k6/{name}"), ..run }),
            Err(why) => unreadable.push(format!("k6/{name}: {why}")),
        }
    }
    (runs, unreadable)
}

fn read(path: &Path) -> Result<K6Run, String> {
    let text = std::fs::read(path).map_err(|error| error.to_string())?;
    let value: serde_json::Value = serde_json::from_slice(&text).map_err(|error| format!("not JSON: {error}"))?;
    match value.get("format").and_then(serde_json::Value::as_u64) {
        Some(format) if format == u64::from(FORMAT) => {
            serde_json::from_value(value).map_err(|error| format!("not what the scripts in k6/ write: {error}"))
        }
        Some(format) => Err(format!("format {format}, this pushlab reads {FORMAT}: use the version it came with")),
        None => Err("not what the scripts in k6/ write (set OUT to such a file): no format".into()),
    }
}
