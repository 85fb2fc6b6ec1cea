//! One NATS connection per pod: subjects `likes.{post}`, a bounded queue in front of the connection, subscriptions proved by a nonce.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event, HeaderMap, Message, ServerAddr, Subscriber};
use futures_util::StreamExt;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::queue::{Queue, Queued};
use super::{BrokerCounters, BrokerError, BrokerOptions, BrokerState, OnEvent};
use crate::domain::{LikesChanged, PostId, unix_micros};
use crate::telemetry::trace::{self, Carrier, Publishing};
use crate::telemetry::{Trace, Tracer};

/// Longest wait for one try to connect.
const TRY: Duration = Duration::from_secs(2);

/// The connection.
#[derive(Debug, Clone)]
pub struct Nats {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    options: BrokerOptions,
    on_event: OnEvent,
    counters: BrokerCounters,
    queue: Mutex<Queue>,
    /// Something was put into the queue.
    filled: Notify,
    /// The newest events are to be published once more.
    again: Notify,
    subscriptions: Mutex<HashMap<PostId, AbortHandle>>,
    /// Where this connection sends nonces to itself; within `likes.>`, so that a pod needs no other permission.
    sync_subject: String,
    next_nonce: AtomicU64,
    nonces: Mutex<HashMap<u64, oneshot::Sender<()>>>,
    state: watch::Sender<BrokerState>,
    stop: CancellationToken,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nats").field("state", &*self.state.borrow()).finish_non_exhaustive()
    }
}

impl Nats {
    pub(super) async fn connect(
        url: &str,
        name: &str,
        options: BrokerOptions,
        on_event: OnEvent,
    ) -> Result<Self, BrokerError> {
        let failed = |cause: String| BrokerError::Connect { url: without_passwords(url), cause };
        let servers: Result<Vec<ServerAddr>, _> = url.split(',').map(|server| server.trim().parse()).collect();
        let servers = servers.map_err(|e: std::io::Error| failed(e.to_string()))?;
        let deadline = Instant::now() + options.connect_timeout;
        let (client, events) = loop {
            let (sender, events) = mpsc::channel(64);
            let connecting = connect_options(name, &options, &servers, sender).connect(&servers[..]);
            let cause = match timeout_at(deadline, connecting).await {
                Ok(Ok(client)) => break (client, events),
                Ok(Err(e)) => e.to_string(),
                Err(_) => "no answer".into(),
            };
            if Instant::now() + Duration::from_millis(100) >= deadline {
                return Err(failed(cause));
            }
            sleep(Duration::from_millis(100)).await;
        };
        let sync_subject = format!("likes.sync.{:016x}", rand::random::<u64>());
        let echoes = client.subscribe(sync_subject.clone()).await.map_err(|e| failed(e.to_string()))?;
        let queue = Queue::new(options.queue, options.overflow);
        let inner = Arc::new(Inner {
            client,
            options,
            on_event,
            counters: BrokerCounters::default(),
            queue: Mutex::new(queue),
            filled: Notify::new(),
            again: Notify::new(),
            subscriptions: Mutex::default(),
            sync_subject,
            next_nonce: AtomicU64::new(1),
            nonces: Mutex::default(),
            state: watch::Sender::new(BrokerState { connected: true, missed: 0 }),
            stop: CancellationToken::new(),
        });
        tokio::spawn(take_echoes(inner.clone(), echoes));
        tokio::spawn(publish_queued(inner.clone()));
        tokio::spawn(follow(inner.clone(), events));
        Ok(Self { inner })
    }

    pub(super) fn publish(&self, event: LikesChanged, trace: &Trace) {
        let counters = &self.inner.counters;
        match lock(&self.inner.queue).push((event, trace.publishing(&event))) {
            Queued::Waits => self.inner.filled.notify_one(),
            Queued::Merged => _ = counters.merged.fetch_add(1, Ordering::Relaxed),
            Queued::Dropped => _ = counters.dropped.fetch_add(1, Ordering::Relaxed),
        }
    }

    pub(super) fn tracer(&self) -> &Tracer {
        &self.inner.options.tracer
    }

    /// The connection, for JetStream.
    pub(super) fn client(&self) -> Client {
        self.inner.client.clone()
    }

    /// An event went out by another way over this connection.
    pub(super) fn count_published(&self) {
        self.inner.counters.published.fetch_add(1, Ordering::Relaxed);
    }

    /// Something asked of the server was not answered in time.
    pub(super) fn count_timeout(&self) {
        self.inner.counters.timeouts.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) async fn subscribe(&self, post: PostId) -> Result<(), BrokerError> {
        let limit = self.inner.options.subscribe_timeout;
        let in_force = async {
            if !lock(&self.inner.subscriptions).contains_key(&post) {
                let subscriber = self.inner.client.subscribe(post.subject()).await.map_err(|_| ())?;
                let task = tokio::spawn(receive(self.inner.clone(), subscriber));
                if let Some(double) = lock(&self.inner.subscriptions).insert(post, task.abort_handle()) {
                    double.abort();
                }
            }
            self.inner.round_trip().await
        };
        match timeout(limit, in_force).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(())) => Err(BrokerError::Timeout(limit)),
            Err(_) => {
                self.count_timeout();
                Err(BrokerError::Timeout(limit))
            }
        }
    }

    pub(super) fn unsubscribe(&self, post: PostId) {
        // The aborted task drops its subscriber, which unsubscribes.
        if let Some(task) = lock(&self.inner.subscriptions).remove(&post) {
            task.abort();
        }
    }

    pub(super) fn subscriptions(&self) -> usize {
        lock(&self.inner.subscriptions).len()
    }

    pub(super) fn state(&self) -> watch::Receiver<BrokerState> {
        self.inner.state.subscribe()
    }

    pub(super) fn counters(&self) -> &BrokerCounters {
        &self.inner.counters
    }

    pub(super) async fn drain(&self, patience: Duration) {
        let sent = async {
            while !lock(&self.inner.queue).is_empty() {
                sleep(Duration::from_millis(5)).await;
            }
            // The echo says that the server has what was sent before.
            let _ = self.inner.round_trip().await;
            let _ = self.inner.client.drain().await;
        };
        let _ = timeout(patience, sent).await;
        self.inner.stop.cancel();
    }
}

impl Inner {
    /// Sends a nonce to this connection itself and waits for it: the server has then handled all that went before.
    /// (async-nats' `flush` waits for no answer of the server.)
    async fn round_trip(&self) -> Result<(), ()> {
        let nonce = self.next_nonce.fetch_add(1, Ordering::Relaxed);
        let (sender, echo) = oneshot::channel();
        lock(&self.nonces).insert(nonce, sender);
        let _forget = Forget(&self.nonces, nonce);
        let payload = nonce.to_be_bytes().to_vec().into();
        self.client.publish(self.sync_subject.clone(), payload).await.map_err(|_| ())?;
        echo.await.map_err(|_| ())
    }
}

/// Removes a nonce nobody waits for any more.
struct Forget<'a>(&'a Mutex<HashMap<u64, oneshot::Sender<()>>>, u64);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(self.0).remove(&self.1);
    }
}

fn connect_options(
    name: &str,
    options: &BrokerOptions,
    servers: &[ServerAddr],
    events: mpsc::Sender<Event>,
) -> ConnectOptions {
    // async-nats does not use the credentials of a URL; servers of one cluster share theirs.
    let credentials = servers.iter().find_map(|server| Some((server.username()?, server.password()?)));
    let connect = match credentials {
        Some((user, password)) => ConnectOptions::with_user_and_password(user.into(), password.into()),
        None => ConnectOptions::new(),
    };
    connect
        .name(name)
        .connection_timeout(TRY)
        .ping_interval(options.ping_interval)
        .subscription_capacity(options.backlog)
        .max_reconnects(None)
        // At once, then up to a second, with a quarter of it at random: pods do not come back in step.
        .reconnect_delay_callback(|attempt| {
            let most = 10_u64.saturating_mul(1 << attempt.min(7)).min(1_000);
            Duration::from_millis(most - rand::random_range(0..=most / 4))
        })
        .event_callback(move |event| {
            let events = events.clone();
            async move {
                let _ = events.send(event).await;
            }
        })
}

async fn take_echoes(inner: Arc<Inner>, mut echoes: Subscriber) {
    while let Some(Some(message)) = inner.stop.run_until_cancelled(echoes.next()).await {
        let nonce = <[u8; 8]>::try_from(&message.payload[..]).map(u64::from_be_bytes);
        if let Some(waiting) = nonce.ok().and_then(|nonce| lock(&inner.nonces).remove(&nonce)) {
            let _ = waiting.send(());
        }
    }
}

async fn receive(inner: Arc<Inner>, mut subscriber: Subscriber) {
    while let Some(message) = subscriber.next().await {
        match read(&message) {
            Some(event) => {
                inner.counters.received.fetch_add(1, Ordering::Relaxed);
                let trace = received(&inner.options.tracer, &event, &message);
                (inner.on_event)(event, trace);
            }
            None => _ = inner.counters.malformed.fetch_add(1, Ordering::Relaxed),
        }
    }
}

/// The event, if its subject, its post and its versions agree.
fn read(message: &Message) -> Option<LikesChanged> {
    let event: LikesChanged = serde_json::from_slice(&message.payload).ok()?;
    let post = PostId::from_subject(&message.subject).ok()?;
    (event.post_id == post && event.prev < event.version).then_some(event)
}

/// Inputs: the queue, the wish to publish the newest once more, the end. Whoever publishes a like never waits for this.
async fn publish_queued(inner: Arc<Inner>) {
    let mut recent: HashMap<PostId, (Instant, LikesChanged)> = HashMap::new();
    let keep = inner.options.republish;
    loop {
        let next = lock(&inner.queue).pop();
        let Some((event, span)) = next else {
            tokio::select! {
                () = inner.filled.notified() => {}
                () = inner.again.notified() => {
                    recent.retain(|_, (at, _)| at.elapsed() < keep);
                    for (_, event) in recent.values() {
                        send(&inner, *event, Publishing::default()).await;
                        inner.counters.republished.fetch_add(1, Ordering::Relaxed);
                    }
                }
                () = inner.stop.cancelled() => return,
            }
            continue;
        };
        // While disconnected this waits as soon as async-nats' own buffer is full; the queue takes what comes meanwhile.
        if inner.stop.run_until_cancelled(send(&inner, event, span)).await.is_none() {
            return;
        }
        inner.counters.published.fetch_add(1, Ordering::Relaxed);
        if recent.len() >= inner.options.overflow && !recent.contains_key(&event.post_id) {
            recent.retain(|_, (at, _)| at.elapsed() < keep);
            if recent.len() >= inner.options.overflow {
                continue;
            }
        }
        let newest = recent.entry(event.post_id).or_insert((Instant::now(), event));
        if newest.1.version <= event.version {
            *newest = (Instant::now(), event);
        }
    }
}

async fn send(inner: &Inner, event: LikesChanged, span: Publishing) {
    let payload = serde_json::to_vec(&event).unwrap_or_default().into();
    let (client, subject) = (&inner.client, event.post_id.subject());
    let sent = match headers(&span.trace()) {
        Some(headers) => client.publish_with_headers(subject, headers, payload).await,
        None => client.publish(subject, payload).await,
    };
    match sent {
        Ok(()) => span.sent(),
        // It fails only when the client has been closed for good.
        Err(_) => _ = inner.counters.dropped.fetch_add(1, Ordering::Relaxed),
    }
}

/// What a traced event takes along, stamped now; nothing for the others.
pub(super) fn headers(trace: &Trace) -> Option<HeaderMap> {
    let Carrier { parent, state } = trace.carrier()?;
    let mut headers = HeaderMap::new();
    headers.insert(trace::TRACEPARENT, parent?);
    if let Some(state) = state {
        headers.insert(trace::TRACESTATE, state);
    }
    headers.insert(trace::SENT_AT, unix_micros().to_string());
    Some(headers)
}

/// The trace that came along.
fn received(tracer: &Tracer, event: &LikesChanged, message: &Message) -> Trace {
    let Some(headers) = message.headers.as_ref().filter(|_| tracer.is_on()) else { return Trace::none() };
    let text = |name: &str| headers.get(name).map(|value| value.as_str().to_owned());
    let carrier = Carrier::new(text(trace::TRACEPARENT), text(trace::TRACESTATE));
    tracer.received(event, text(trace::SENT_AT).and_then(|at| at.parse().ok()), &carrier)
}

/// Follows the connection. Inputs: its events, the end.
async fn follow(inner: Arc<Inner>, mut events: mpsc::Receiver<Event>) {
    let mut lost = false;
    let BrokerCounters { connected, disconnected, slow, lame_ducks, errors, .. } = &inner.counters;
    while let Some(Some(event)) = inner.stop.run_until_cancelled(events.recv()).await {
        let counter = match &event {
            Event::Connected => Some(connected),
            Event::Disconnected => Some(disconnected),
            Event::SlowConsumer(_) => Some(slow),
            Event::LameDuckMode => Some(lame_ducks),
            Event::ServerError(_) | Event::ClientError(_) => Some(errors),
            Event::Draining | Event::Closed => None,
        };
        if let Some(counter) = counter {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        match event {
            Event::Disconnected | Event::Closed => {
                lost = true;
                inner.state.send_modify(|state| state.connected = false);
                tracing::warn!("the connection to NATS is lost; likes go on, viewers wait");
            }
            Event::Connected if lost => {
                lost = false;
                inner.counters.reconnects.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(resume(inner.clone()));
            }
            Event::SlowConsumer(_) => inner.state.send_modify(|state| state.missed += 1),
            Event::ServerError(e) => tracing::warn!(error = %e, "NATS reports an error"),
            other => tracing::debug!(event = %other, "NATS"),
        }
    }
}

/// After a reconnect: once the subscriptions are in force again, what may have been lost is sent and read again.
async fn resume(inner: Arc<Inner>) {
    let limit = inner.options.subscribe_timeout;
    loop {
        match timeout(limit, inner.round_trip()).await {
            Ok(Ok(())) => break,
            Ok(Err(())) => {}
            Err(_) => _ = inner.counters.timeouts.fetch_add(1, Ordering::Relaxed),
        }
        if inner.client.connection_state() != async_nats::connection::State::Connected || inner.stop.is_cancelled() {
            return; // The next `Connected` tries again.
        }
    }
    inner.again.notify_one();
    inner.state.send_modify(|state| *state = BrokerState { connected: true, missed: state.missed + 1 });
    tracing::info!("the connection to NATS is back");
}

fn without_passwords(url: &str) -> String {
    let servers = url.split(',').map(|server| match (server.find("://"), server.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => format!("{}{}", &server[..scheme + 3], &server[at + 1..]),
        _ => server.to_owned(),
    });
    servers.collect::<Vec<_>>().join(",")
}

/// No holder of these locks panics half way through a change.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #[test]
    fn passwords_stay_out_of_messages() {
        let url = "nats://me:secret@a:1,nats://b:2";
        assert_eq!(super::without_passwords(url), "nats://a:1,nats://b:2");
    }
}
