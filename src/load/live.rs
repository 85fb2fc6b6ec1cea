//! What `--metrics-listen` tells while a run goes on: histograms from the same stamps as the run file, joined a second
//! after each arrival, when the answer to its like is long known.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::routing::get;
use http::header;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use super::pacer::Due;
use super::recorder::Shared;
use crate::domain::Transport;
use crate::result::Outcome;
use crate::telemetry::metrics::{LoadMetrics, Timings, raise};

/// An arrival is booked this long after it, µs: until then its like's due time may be unknown.
const SETTLE_US: u32 = 1_000_000;
/// Arrivals of one thread that wait to be booked. Beyond it the oldest are booked early, and those whose like is not yet
/// answered go by their commit.
const WAITING: usize = 1 << 20;
/// Outcomes in the order of `Live::outcomes`.
const OUTCOMES: [(Outcome, &str); 4] =
    [(Outcome::Ok, "ok"), (Outcome::Failed, "failed"), (Outcome::Unknown, "unknown"), (Outcome::Unsent, "unsent")];

/// What the generator's threads leave for the exporter. Times are µs after the clock's origin.
#[derive(Debug)]
pub(super) struct Live {
    transport: Transport,
    posts: Vec<DueTimes>,
    due_to_view: Timings,
    commit_to_view: Timings,
    /// Sent − due.
    pub(super) lag: Timings,
    outcomes: [AtomicU64; OUTCOMES.len()],
}

/// When the likes were due that made a post's versions: by version − base − 1, 0 while unknown.
#[derive(Debug)]
struct DueTimes {
    base: u32,
    at_us: Box<[AtomicU32]>,
}

impl DueTimes {
    fn of(&self, version: u32) -> Option<&AtomicU32> {
        self.at_us.get(version.checked_sub(self.base)?.checked_sub(1)? as usize)
    }
}

/// One update that a viewer received.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrival {
    /// The post, by column index.
    pub(super) post: u32,
    /// The version the viewer had before.
    pub(super) from: u32,
    /// The version it has now.
    pub(super) version: u32,
    /// When it arrived.
    pub(super) at: u32,
    /// When it was committed; a snapshot does not say.
    pub(super) committed: Option<u32>,
}

impl Live {
    /// For posts whose state before the run is `initial`: (likes, version).
    pub(super) fn new(transport: Transport, initial: &[(u64, u64)], due: &[Due]) -> Self {
        let mut likes = vec![0_usize; initial.len()];
        due.iter().for_each(|due| likes[due.post as usize] += 1);
        let times = |(likes, initial): (usize, &(u64, u64))| DueTimes {
            base: u32::try_from(initial.1).unwrap_or(u32::MAX),
            at_us: (0..likes).map(|_| AtomicU32::new(0)).collect(),
        };
        Self {
            transport,
            posts: likes.into_iter().zip(initial).map(times).collect(),
            due_to_view: Timings::default(),
            commit_to_view: Timings::default(),
            lag: Timings::default(),
            outcomes: Default::default(),
        }
    }

    /// A like has its final outcome; of one that is ok: the version it made, and when it was due.
    pub(super) fn ended(&self, outcome: Outcome, post: u32, version: u32, due_us: u32) {
        let place = OUTCOMES.iter().position(|(other, _)| *other == outcome).unwrap_or_default();
        self.outcomes[place].fetch_add(1, Ordering::Relaxed);
        if let (Outcome::Ok, Some(due)) = (outcome, self.posts[post as usize].of(version)) {
            due.store(due_us.max(1), Ordering::Relaxed);
        }
    }

    fn due(&self, post: u32, version: u32) -> Option<u32> {
        let due = self.posts[post as usize].of(version)?.load(Ordering::Relaxed);
        (due > 0).then_some(due)
    }

    /// As the ledger's walk along the arrivals does: a like belongs to the window when it was due in it.
    fn book(&self, arrival: &Arrival, shared: &Shared) {
        let Arrival { post, from, version, at, committed } = *arrival;
        let micros = |since: u32| Duration::from_micros(at.saturating_sub(since).into());
        let known = &self.posts[post as usize];
        let newest = known.base.saturating_add(u32::try_from(known.at_us.len()).unwrap_or(u32::MAX));
        for covered in from.max(known.base) + 1..=version.min(newest) {
            if let Some(due) = self.due(post, covered).filter(|due| shared.measured(*due)) {
                self.due_to_view.observe(micros(due));
            }
        }
        if let Some(committed) = committed.filter(|at| shared.measured(self.due(post, version).unwrap_or(*at))) {
            self.commit_to_view.observe(micros(committed));
        }
    }
}

/// The arrivals of one viewer thread that are not booked yet.
#[derive(Debug, Default)]
pub(super) struct Waiting(VecDeque<Arrival>);

impl Waiting {
    /// One more.
    pub(super) fn push(&mut self, arrival: Arrival, live: &Live, shared: &Shared) {
        if self.0.len() >= WAITING
            && let Some(oldest) = self.0.pop_front()
        {
            live.book(&oldest, shared);
        }
        self.0.push_back(arrival);
    }

    /// Books what is old enough by `now`; everything at the end.
    pub(super) fn settle(&mut self, now: u32, live: &Live, shared: &Shared) {
        while let Some(arrival) = self.0.front().filter(|arrival| arrival.at.saturating_add(SETTLE_US) <= now) {
            live.book(arrival, shared);
            self.0.pop_front();
        }
    }
}

/// The port where the metrics are; closed when dropped.
#[derive(Debug)]
pub(super) struct Exporter(#[expect(dead_code, reason = "held")] AbortOnDropHandle<()>);

impl Exporter {
    /// Serves `/metrics` and says where on stderr.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub(super) async fn start(address: SocketAddr, shared: Arc<Shared>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address).await;
        let listener = listener.with_context(|| format!("--metrics-listen {address}: choose another (port 0: any)"))?;
        eprintln!("load: metrics at http://{}/metrics", listener.local_addr()?);
        let router = Router::new().route("/metrics", get(text)).with_state((LoadMetrics::new(), shared));
        Ok(Self(AbortOnDropHandle::new(tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                eprintln!("load: --metrics-listen: {error}");
            }
        }))))
    }
}

async fn text(
    State((metrics, shared)): State<(LoadMetrics, Arc<Shared>)>,
) -> Result<([(header::HeaderName, &'static str); 1], String), http::StatusCode> {
    let Some(live) = &shared.live else { return Err(http::StatusCode::NOT_FOUND) };
    let label = live.transport.label();
    metrics.due_to_view_seconds.set(label, live.due_to_view.copied());
    metrics.commit_to_view_seconds.set(label, live.commit_to_view.copied());
    metrics.schedule_lag_seconds.set("", live.lag.copied());
    for ((_, name), ended) in OUTCOMES.iter().zip(&live.outcomes) {
        raise(&metrics.likes_total.with_label_values(&[name]), ended.load(Ordering::Relaxed));
    }
    metrics.viewers.with_label_values(&[label]).set(shared.joined.load(Ordering::Relaxed).into());
    raise(&metrics.reconnects_total.with_label_values(&[label]), shared.losses.load(Ordering::Relaxed));
    let text = metrics.text().map_err(|_| http::StatusCode::INTERNAL_SERVER_ERROR)?;
    Ok(([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text))
}
