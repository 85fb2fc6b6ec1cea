//! The control port: where the parts of one run wait for each other. Whoever holds them together reads the phase, opens
//! the gates one after the other, and fetches the run file.

use std::collections::BTreeMap;
use std::future::IntoFuture;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::watch;

use super::limits;
use crate::domain::unix_micros;

/// A gate that nobody opens for this long ends the run: whoever held the parts together is gone.
const PATIENCE: Duration = Duration::from_secs(300);

/// Where a run waits, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Gate {
    /// Everybody is connected; it goes on at a given time.
    Connected,
    /// Every like has its outcome, as far as it ever will.
    Liked,
    /// Every viewer has the final values, as far as it ever will; nobody has left.
    Converged,
    /// The run file is written.
    Saved,
}

/// Gates that are open, with the time to go on at.
type Opened = BTreeMap<Gate, Option<u64>>;

/// The port and its gates.
pub(super) struct Control {
    reached: watch::Sender<Option<Gate>>,
    opened: watch::Receiver<Opened>,
}

struct Shared {
    reached: watch::Receiver<Option<Gate>>,
    opened: watch::Sender<Opened>,
    out: PathBuf,
}

#[derive(Deserialize)]
struct Open {
    gate: Gate,
    at_us: Option<u64>,
}

impl Control {
    /// Listens; `out` is the file that is given away at the end.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub(super) async fn listen(address: SocketAddr, out: PathBuf) -> anyhow::Result<Self> {
        let (reached, seen) = watch::channel(None);
        let (open, opened) = watch::channel(Opened::new());
        let shared = Arc::new(Shared { reached: seen, opened: open, out });
        let router = Router::new()
            .route("/phase", get(phase))
            .route("/open", post(open_gate))
            .route("/run", get(run_file))
            .with_state(shared);
        let listener = tokio::net::TcpListener::bind(address).await;
        let listener = listener.with_context(|| format!("--control {address} cannot be listened on"))?;
        // For whoever asked for port 0.
        println!("{}", json!({ "phase": "control", "listen": listener.local_addr()?.to_string() }));
        tokio::spawn(axum::serve(listener, router).into_future());
        Ok(Self { reached, opened })
    }

    /// Says that the run is at this gate and waits until it is opened; the time to go on at, if one was given.
    ///
    /// # Errors
    /// When nobody opens it in five minutes.
    pub(super) async fn pass(&self, gate: Gate) -> anyhow::Result<Option<u64>> {
        self.reached.send_replace(Some(gate));
        let mut opened = self.opened.clone();
        let open = opened.wait_for(|opened| opened.contains_key(&gate));
        let open = tokio::time::timeout(PATIENCE, open).await;
        let open = open.with_context(|| format!("nobody opened the gate {gate:?} in {} s", PATIENCE.as_secs()))?;
        Ok(open.context("the control port is gone")?.get(&gate).copied().flatten())
    }
}

async fn phase(State(shared): State<Arc<Shared>>) -> Response {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
    let gate = *shared.reached.borrow();
    let body = json!({
        "gate": gate,
        "unix_us": unix_micros(),
        "rss_bytes": rss.unwrap_or(0_u64) * 1_024,
        "fds": limits::open_files(),
    });
    Json(body).into_response()
}

async fn open_gate(State(shared): State<Arc<Shared>>, Query(open): Query<Open>) -> Response {
    shared.opened.send_modify(|opened| {
        opened.insert(open.gate, open.at_us);
    });
    Json(json!({ "unix_us": unix_micros() })).into_response()
}

async fn run_file(State(shared): State<Arc<Shared>>) -> Response {
    if *shared.reached.borrow() != Some(Gate::Saved) {
        return (StatusCode::NOT_FOUND, "the run file is not written yet\n").into_response();
    }
    match tokio::fs::read(&shared.out).await {
        Ok(bytes) => bytes.into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
