//! NATS' own monitoring (`/varz`, `/connz`, `/jsz`) as metrics, under the names that prometheus-nats-exporter gives them.
//!
//! That exporter is in no package collection and takes minutes to compile; the dashboards fit both.

use std::fmt::Write as _;

use anyhow::Context;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// `/varz`: field, and name of the metric after `gnatsd_varz_`.
const VARZ: [&str; 11] = [
    "connections",
    "total_connections",
    "subscriptions",
    "slow_consumers",
    "stale_connections",
    "in_msgs",
    "out_msgs",
    "in_bytes",
    "out_bytes",
    "mem",
    "cpu",
];

/// `/jsz`: field and metric.
const JSZ: [(&str, &str); 3] = [
    ("streams", "jetstream_server_total_streams"),
    ("messages", "jetstream_server_total_messages"),
    ("bytes", "jetstream_server_total_message_bytes"),
];

/// Serves the metrics of the NATS server whose monitoring is at `monitor` (`http://127.0.0.1:8222`).
#[derive(Debug)]
pub struct Translator {
    /// `127.0.0.1:port` of its `/metrics`.
    pub address: String,
    task: JoinHandle<()>,
}

impl Translator {
    /// Starts it on a free port.
    ///
    /// # Errors
    /// When there is no port to be had.
    pub async fn start(monitor: String) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no free port on 127.0.0.1")?;
        let address = listener.local_addr()?.to_string();
        let answer = move || {
            let monitor = monitor.clone();
            async move { metrics(&monitor).await.map_err(|why| (StatusCode::BAD_GATEWAY, format!("{why:#}"))) }
        };
        let router = Router::new().route("/metrics", get(answer));
        let task = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { address, task })
    }
}

impl Drop for Translator {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn metrics(monitor: &str) -> anyhow::Result<String> {
    let ask = |what: &str| {
        let url = format!("{monitor}/{what}");
        async move { anyhow::Ok(reqwest::get(url).await?.json::<Value>().await?) }
    };
    let (varz, connz, jsz) = tokio::try_join!(ask("varz"), ask("connz"), ask("jsz"))?;
    Ok(text(&varz, &connz, &jsz))
}

/// The exposition; a field that this NATS does not have is left out.
fn text(varz: &Value, connz: &Value, jsz: &Value) -> String {
    let server = varz["server_id"].as_str().unwrap_or_default();
    let mut text = String::new();
    let mut gauge = |name: &str, value: Option<f64>| {
        if let Some(value) = value {
            let _ = writeln!(text, "# TYPE {name} gauge\n{name}{{server_id=\"{server}\"}} {value}");
        }
    };
    for field in VARZ {
        gauge(&format!("gnatsd_varz_{field}"), varz[field].as_f64());
    }
    gauge("gnatsd_connz_num_connections", connz["num_connections"].as_f64());
    let pending = connz["connections"].as_array();
    gauge(
        "gnatsd_connz_pending_bytes",
        pending.map(|all| all.iter().filter_map(|one| one["pending_bytes"].as_f64()).sum()),
    );
    for (field, name) in JSZ {
        gauge(name, jsz[field].as_f64());
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn monitoring_becomes_the_exporters_metrics() {
        let varz = json!({"server_id": "N1", "in_msgs": 7, "cpu": 1.5, "version": "2"});
        let connz = json!({"num_connections": 2, "connections": [{"pending_bytes": 3}, {"pending_bytes": 4}]});
        let text = super::text(&varz, &connz, &json!({"messages": 9}));
        for line in [
            "# TYPE gnatsd_varz_in_msgs gauge",
            "gnatsd_varz_in_msgs{server_id=\"N1\"} 7",
            "gnatsd_varz_cpu{server_id=\"N1\"} 1.5",
            "gnatsd_connz_pending_bytes{server_id=\"N1\"} 7",
            "jetstream_server_total_messages{server_id=\"N1\"} 9",
        ] {
            assert!(text.lines().any(|own| own == line), "{line} not in\n{text}");
        }
        assert!(!text.contains("mem"));
    }
}
