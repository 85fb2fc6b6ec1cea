//! The outbox's relay. What commits here is published at once and its row removed once the stream has it; what nobody
//! published for a second (its pod died, the broker was away) is found in the table by a sweep, of any pod.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::FailAt;
use crate::broker::{Acknowledgement, EventStream};
use crate::domain::unix_micros;
use crate::store::{LikeStore, ToPublish};
use crate::telemetry::{Metrics, Trace};

/// Committed events waiting to be sent. Beyond it they are left to the sweep, and counted.
const QUEUE: usize = 8_192;

/// Sent events whose acknowledgements are waited for.
const SENT: usize = 1_024;

/// Rows removed, or claimed by the sweep, at once.
const BATCH: u32 = 256;

/// A sweep comes about this often,
const SWEEP: Duration = Duration::from_millis(500);

/// and takes what is older than this: younger ones are on their way.
const LEFT: Duration = Duration::from_secs(1);

/// Publishes from the outbox. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Relay {
    queue: mpsc::Sender<ToPublish>,
    account: Account,
}

/// What is on its way, and what became of the rest.
#[derive(Debug, Clone)]
struct Account {
    metrics: Metrics,
    under_way: Arc<AtomicUsize>,
}

impl Account {
    fn done(&self, events: usize) {
        self.under_way.fetch_sub(events, Ordering::AcqRel);
    }

    /// The row stays: the sweep finds it.
    fn left(&self) {
        self.metrics.outbox_left_total.inc();
        self.done(1);
    }

    fn taken(&self, what: &ToPublish) {
        let micros = unix_micros().saturating_sub(what.event.committed_at);
        self.metrics.outbox_publish_seconds.observe(Duration::from_micros(micros).as_secs_f64());
    }
}

impl Relay {
    pub(super) fn start(
        store: &LikeStore,
        events: &EventStream,
        metrics: &Metrics,
        fail_at: Option<FailAt>,
        stop: &CancellationToken,
    ) -> Self {
        let (queue, committed) = mpsc::channel(QUEUE);
        let (sent, unanswered) = mpsc::channel(SENT);
        let account = Account { metrics: metrics.clone(), under_way: Arc::default() };
        let sending = send(events.clone(), account.clone(), committed, sent);
        let removing = remove(store.clone(), account.clone(), unanswered, fail_at);
        let sweeping = sweep(store.clone(), events.clone(), account.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(sending));
        tokio::spawn(stop.clone().run_until_cancelled_owned(removing));
        tokio::spawn(stop.clone().run_until_cancelled_owned(sweeping));
        Self { queue, account }
    }

    /// Never blocks: what finds no room is left to the sweep.
    pub(super) fn publish(&self, what: ToPublish) {
        self.account.under_way.fetch_add(1, Ordering::AcqRel);
        if self.queue.try_send(what).is_err() {
            self.account.left();
        }
    }

    /// Waits until nothing of this pod is on its way. Bound it: the broker may be away.
    pub(super) async fn idle(&self) {
        while self.account.under_way.load(Ordering::Acquire) > 0 {
            sleep(Duration::from_millis(5)).await;
        }
    }
}

/// In the order of their commits.
async fn send(
    events: EventStream,
    account: Account,
    mut committed: mpsc::Receiver<ToPublish>,
    sent: mpsc::Sender<(ToPublish, Acknowledgement)>,
) {
    let state = events.state();
    while let Some(what) = committed.recv().await {
        // To a connection that is down nothing is handed: its buffer would fill, and the sweep finds the row afterwards.
        let connected = state.borrow().connected;
        let acknowledgement = if connected { events.send(&what.event, &what.trace).await.ok() } else { None };
        match acknowledgement {
            Some(acknowledgement) => drop(sent.send((what, acknowledgement)).await),
            None => account.left(),
        }
    }
}

/// Removes the rows of events that the stream has.
async fn remove(
    store: LikeStore,
    account: Account,
    mut unanswered: mpsc::Receiver<(ToPublish, Acknowledgement)>,
    fail_at: Option<FailAt>,
) {
    let mut batch = Vec::new();
    while unanswered.recv_many(&mut batch, BATCH as usize).await > 0 {
        let account = &account;
        let answers = batch.drain(..).map(|(what, acknowledgement)| async move {
            let taken = acknowledgement.taken().await.is_ok();
            if taken {
                account.taken(&what)
            } else {
                account.left()
            }
            what.outbox.filter(|_| taken)
        });
        let rows: Vec<u64> = join_all(answers).await.into_iter().flatten().collect();
        if !rows.is_empty() {
            FailAt::AfterPublish.if_asked(fail_at);
        }
        if let Err(error) = store.published(&rows).await {
            tracing::warn!(%error, rows = rows.len(), "published events stay in the outbox; they will be published again");
        }
        account.done(rows.len());
    }
}

/// Finds what nobody published, and says how much waits.
async fn sweep(store: LikeStore, events: EventStream, account: Account) {
    let state = events.state();
    loop {
        sleep(SWEEP.mul_f64(rand::random_range(0.5..=1.5))).await;
        let mut more = state.borrow().connected;
        while more {
            let found =
                store.publish_left(LEFT, BATCH, |left| publish_all(events.clone(), account.clone(), left)).await;
            if let Err(error) = &found {
                tracing::warn!(%error, "the outbox could not be swept");
            }
            more = found.is_ok_and(|published| published >= BATCH as usize);
        }
        if let Ok(queue) = store.outbox_queue().await {
            account.metrics.outbox_unpublished.set(i64::try_from(queue.rows).unwrap_or(i64::MAX));
            account.metrics.outbox_oldest_seconds.set(queue.oldest.as_secs_f64());
        }
    }
}

/// The rows of those that the stream has.
async fn publish_all(events: EventStream, account: Account, left: Vec<ToPublish>) -> Vec<u64> {
    let mut sent = Vec::with_capacity(left.len());
    for what in left {
        let trace = what.kept.as_ref().map_or_else(Trace::none, |kept| events.resumed(kept));
        match events.send(&what.event, &trace).await {
            Ok(acknowledgement) => sent.push((what, acknowledgement)),
            Err(_) => break,
        }
    }
    let account = &account;
    let answers = sent.into_iter().map(|(what, acknowledgement)| async move {
        acknowledgement.taken().await.ok()?;
        account.taken(&what);
        account.metrics.outbox_swept_total.inc();
        what.outbox
    });
    join_all(answers).await.into_iter().flatten().collect()
}
