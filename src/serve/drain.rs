//! Leaving: not ready → refuse new streams → grace for the edge → end the open ones one by one → the rest → exit.

use std::future::Future;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};

use super::app::App;
use crate::domain::Transport;

/// What lies between the end of `--drain` and giving up.
const MARGIN: Duration = Duration::from_secs(10);
/// Likes under way end within the store's own limits.
const LIKES: Duration = Duration::from_secs(6);

/// Whether everything ended by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Yes.
    Whole,
    /// Something had to be cut off at the deadline.
    CutOff,
}

/// Drains the pod. `close_port` stops accepting and returns when ordinary requests have ended.
pub(super) async fn run(app: &App, name: &str, close_port: impl Future<Output = ()>) -> Drained {
    let began = Instant::now();
    app.draining.store(true, Ordering::Release);
    let config = &app.config;
    tracing::info!(pod = name, streams = open(app), grace = ?config.drain_grace, over = ?config.drain, "draining");
    let deadline = config.drain_grace + config.drain + MARGIN;
    let done = timeout(deadline, async {
        // Ordinary requests are still served; the edge learns from /readyz, or from the 503 to a new stream.
        sleep(config.drain_grace).await;
        app.hub.drain(config.drain);
        // The seats also hold streams whose handshake is under way: those are refused by the engine, or end as it does.
        while open(app) > 0 {
            sleep(Duration::from_millis(20)).await;
        }
        close_port.await;
    });
    let whole = done.await.is_ok();
    let quiet = timeout(LIKES, app.likes.idle()).await.is_ok();
    app.watch.stop();
    app.broker.drain(Duration::from_secs(2)).await;
    let left = open(app);
    let hub = app.hub.clone();
    // Joins the engines' threads.
    drop(tokio::task::spawn_blocking(move || hub.stop()).await);
    let drained = if whole && quiet { Drained::Whole } else { Drained::CutOff };
    tracing::info!(pod = name, ?drained, left, took = ?began.elapsed(), "drained");
    drained
}

fn open(app: &App) -> usize {
    Transport::ALL.into_iter().map(|transport| app.hub.connections(transport)).sum()
}
