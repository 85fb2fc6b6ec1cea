//! A pod from build to end: its parts, its two ports, its life in `run`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use axum::Router;
use http::HeaderValue;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::app::{App, Parts};
use super::auth::Auth;
use super::drain::{self, Drained};
use super::likes::{FailAt, die};
use super::relay::Relay;
use super::tls::Tls;
use super::watch::{Sink, Watch, WatchOptions};
use super::wire::Wire;
use super::{
    Config, Fanout, MailboxPolicy, Publish, ResumePolicy, Role, Switch, admin, canary, conformance, connection, error,
    limits, router,
};
use crate::broker::{BrokerOptions, BrokerTarget, LocalBus};
use crate::domain::Epoch;
use crate::hub::{EngineOptions, Hub, Mailbox};
use crate::store::{LikeStore, StoreError, StoreOptions};
use crate::telemetry::Metrics;
use crate::telemetry::trace::export::Tracing;

/// When the epoch changes, viewers are sent back over this time.
const COME_BACK: Duration = Duration::from_secs(2);
/// Keys are swept about this often.
const SWEEP: Duration = Duration::from_secs(600);

/// One pod, its ports bound, not yet serving.
#[derive(Debug)]
pub struct Pod {
    name: String,
    app: Arc<App>,
    public: TcpListener,
    admin: TcpListener,
    /// Conformance mode: STOMP over TCP.
    stomp: Option<TcpListener>,
    addresses: (SocketAddr, SocketAddr),
    tls: Option<Tls>,
}

/// Connects, binds, and returns the pods of this process: one, or `--pods` that share the database and the broker.
///
/// # Errors
/// One line for the user: what is wrong and what to do.
pub async fn build(config: &Config) -> anyhow::Result<Vec<Pod>> {
    build_traced(config, &Tracing::default()).await
}

/// The same with traces.
///
/// # Errors
/// As [`build`].
pub async fn build_traced(config: &Config, tracing: &Tracing) -> anyhow::Result<Vec<Pod>> {
    super::tls::provide();
    conformance::check(config)?;
    let tls = Tls::open(&config.tls)?;
    let ports = (0..config.pods.get()).map(|index| Ok((numbered(&config.pod_name, index), bind(config, index)?)));
    let ports: Vec<_> = ports.collect::<anyhow::Result<_>>()?;
    let outbox = config.publish == Publish::Outbox;
    let options =
        StoreOptions { startup_timeout: config.start_timeout, write: config.write, outbox, ..StoreOptions::default() };
    let store = LikeStore::connect(&config.database_url, options).await;
    let store = store.map_err(|error| match error {
        StoreError::Unsupported(why) => anyhow!("{why} (--write, --publish)"),
        error => unreachable_database(&config.database_url, &error),
    })?;
    let epoch = if config.new_epoch { store.new_epoch().await } else { store.epoch().await };
    let epoch = epoch.map_err(|error| unreachable_database(&config.database_url, &error))?;
    let bus = LocalBus::default();
    let mut pods = Vec::new();
    ensure!(
        config.canary.is_none() || !config.canary_period.is_zero(),
        "--canary-period must be longer than 0: write for example 10s"
    );
    if let Some(file) = &config.canary_token_file {
        canary::read_token(file)?;
    }
    for (name, (public, admin, stomp)) in ports {
        let metrics = Metrics::new();
        let auth = Auth::open(&config.auth, config.trust_user_header.is_some(), &metrics).await?;
        let tracer = tracing.tracer().of_pod(&name);
        let hub = hub(config, epoch)?;
        let target = target(config, &name, &bus)?;
        let (watch, broker) = {
            let (connect_timeout, tracer) = (config.start_timeout, tracer.clone());
            let broker = BrokerOptions { connect_timeout, tracer, ..BrokerOptions::default() };
            let started = Watch::start((store.clone(), epoch), &target, broker, sink(&hub), watch(config)).await;
            started.map_err(|error| anyhow!("{error} (--nats-url or NATS_URL; `local` needs no server)"))?
        };
        let relay = (config.fanout == Fanout::Relay && config.serves(Role::Stomp))
            .then(|| Relay::new(target, hub.clone(), &watch, config.anti_entropy == Switch::On));
        let outbox = match config.publish {
            Publish::AfterCommit => None,
            Publish::Outbox => Some(broker.events(epoch).await.map_err(|error| anyhow!("--publish outbox: {error}"))?),
        };
        let label = HeaderValue::from_str(&name).context("--pod-name is printable ASCII")?;
        let (mut config, store) = (config.clone(), store.clone());
        // One of a process is enough.
        config.canary = config.canary.filter(|_| pods.is_empty());
        let spans = Arc::clone(tracing.counters());
        let parts =
            Parts { config, pod: label, store, watch, broker, outbox, hub, relay, auth, metrics, tracer, spans };
        let addresses = (public.local_addr()?, admin.local_addr()?);
        pods.push(Pod { name, app: App::new(parts), public, admin, stomp, addresses, tls: tls.clone() });
    }
    Ok(pods)
}

impl Pod {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it serves the public.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.addresses.0
    }

    /// Where it serves its operator.
    #[must_use]
    pub fn admin_address(&self) -> SocketAddr {
        self.addresses.1
    }

    /// Where it serves STOMP over plain TCP, in the conformance mode.
    #[must_use]
    pub fn stomp_address(&self) -> Option<SocketAddr> {
        self.stomp.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// Serves until `shutdown`, then drains; returns when everything of the pod has ended, the shared database apart.
    ///
    /// # Errors
    /// When a port fails for good.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<Drained> {
        let Self { name, app, public, admin, stomp, tls, .. } = self;
        let closing = CancellationToken::new();
        let _certificate = tls.clone().map(|tls| AbortOnDropHandle::new(tokio::spawn(tls.reload_on_hangup())));
        let stats = Arc::clone(&app.stats);
        let options = connection::Options {
            max_connections: app.config.max_http_connections,
            write_timeout: app.config.write_timeout,
            busy: error::crowded().into(),
            tls,
            ..connection::Options::default()
        };
        let service = connection::serve::<Wire>(public, router::public(&app), options, stats, closing.clone());
        let public = AbortOnDropHandle::new(tokio::spawn(service));
        let _admin = AbortOnDropHandle::new(tokio::spawn(serve_admin(admin, admin::router(&app))));
        let _stomp = stomp.map(|listener| {
            AbortOnDropHandle::new(tokio::spawn(conformance::serve(Arc::clone(&app), listener, shutdown.clone())))
        });
        let _checks = AbortOnDropHandle::new(tokio::spawn(check_database(Arc::clone(&app))));
        let _clients = AbortOnDropHandle::new(tokio::spawn(forget_clients(Arc::clone(&app))));
        let _sweeps = AbortOnDropHandle::new(tokio::spawn(sweep_keys(Arc::clone(&app))));
        let _keys = AbortOnDropHandle::new(tokio::spawn(keep_keys_fresh(Arc::clone(&app))));
        let canary = app.config.canary.clone().map(|url| {
            let way = canary::Way::new(&url, app.config.canary_token_file.clone(), app.config.canary_period);
            AbortOnDropHandle::new(tokio::spawn(canary::sing(way, app.metrics.clone())))
        });
        tokio::pin!(public);
        tokio::select! {
            () = shutdown.cancelled() => {}
            ended = &mut public => {
                ended.context("the public port's task")?;
                return Err(anyhow!("the public port closed by itself"));
            }
        }
        drop(canary);
        let drained = drain::run(&app, &name, async {
            closing.cancel();
            drop(public.await);
        });
        Ok(drained.await)
    }

    /// What closes the database's connections, once every pod that shares them has ended.
    pub(super) fn store(&self) -> LikeStore {
        self.app.store.clone()
    }
}

/// `pod-1`, `pod-2`, … or `name`, `name-2`, ….
fn numbered(name: &str, index: usize) -> String {
    let (stem, first) = match name.rsplit_once('-').map(|(stem, number)| (stem, number.parse::<usize>())) {
        Some((stem, Ok(first))) => (stem, first),
        _ if index == 0 => return name.into(),
        _ => (name, 1),
    };
    format!("{stem}-{}", first + index)
}

fn bind(config: &Config, index: usize) -> anyhow::Result<(TcpListener, TcpListener, Option<TcpListener>)> {
    let listen = |address: SocketAddr, flag: &str| {
        let mut address = address;
        if address.port() != 0 {
            let port = u16::try_from(index).ok().and_then(|index| address.port().checked_add(index));
            address.set_port(port.ok_or_else(|| anyhow!("there are not so many ports after {address}"))?);
        }
        listener(address).map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => {
                anyhow!("another process listens on {address}: end it, or choose another {flag} (port 0: any free one)")
            }
            _ => anyhow!("cannot listen on {address}: {error}; choose another {flag}"),
        })
    };
    let stomp = config.conformance_stomp.map(|address| listen(address, "--conformance-stomp")).transpose()?;
    Ok((listen(config.listen, "--listen")?, listen(config.admin_listen, "--admin-listen")?, stomp))
}

fn listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(4096)
}

fn hub(config: &Config, epoch: Epoch) -> anyhow::Result<Hub<Wire>> {
    let depth = config.mailbox_depth;
    let mailbox = match config.mailbox {
        MailboxPolicy::Conflate => Mailbox::Conflate,
        MailboxPolicy::DropOldest => Mailbox::DropOldest(depth),
        MailboxPolicy::Disconnect => Mailbox::Disconnect(depth),
    };
    let (write_timeout, idle_cut, flush) = (config.write_timeout, config.idle_cut, config.flush);
    let mut options = EngineOptions { mailbox, flush, write_timeout, idle_cut, epoch, ..EngineOptions::default() };
    if config.fail_at == Some(FailAt::MidWrite) {
        options.half_written = Some(die);
    }
    if config.conformance {
        // An echo of the largest message has to wait somewhere.
        options.max_pending = 4 * limits::CONFORMANCE_MESSAGE;
    }
    let streams = config.serves(Role::Sse) || config.serves(Role::Stomp);
    Hub::start(if streams { config.engine_threads.get() } else { 0 }, &options).context("the engine's threads")
}

fn watch(config: &Config) -> WatchOptions {
    WatchOptions {
        anti_entropy: config.anti_entropy == Switch::On,
        rows_per_second: config.anti_entropy_rate,
        replay_depth: if config.resume == ResumePolicy::Replay { config.replay_depth.into() } else { 0 },
        ..WatchOptions::default()
    }
}

fn sink(hub: &Hub<Wire>) -> Sink {
    let (to, from, all) = (hub.clone(), hub.clone(), hub.clone());
    Sink {
        renew: Box::new(move |epoch| all.renew(epoch, COME_BACK)),
        publish: Box::new(move |update, gap, traced| to.publish_traced(update, gap, &traced)),
        forget: Box::new(move |post| from.forget(post)),
    }
}

fn target(config: &Config, name: &str, bus: &LocalBus) -> anyhow::Result<BrokerTarget> {
    match config.nats_url.as_str() {
        "local" => Ok(BrokerTarget::Local(bus.clone())),
        url if url.contains("://") => Ok(BrokerTarget::Nats { url: url.into(), name: name.into() }),
        _ => Err(anyhow!("--nats-url is nats://host:4222, or `local` for pods of this one process")),
    }
}

fn unreachable_database(url: &str, error: &StoreError) -> anyhow::Error {
    let url = without_password(url);
    anyhow!(
        "cannot use the database {url}: {error}; does it run, and do user and password fit? (--database-url or DATABASE_URL)"
    )
}

fn without_password(url: &str) -> String {
    let hidden = url.split_once("://").and_then(|(scheme, rest)| {
        let (login, host) = rest.rsplit_once('@')?;
        let (user, _) = login.split_once(':')?;
        Some(format!("{scheme}://{user}:…@{host}"))
    });
    hidden.unwrap_or_else(|| url.into())
}

async fn serve_admin(listener: TcpListener, router: Router) {
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "the admin port");
    }
}

/// Readiness must be fast, so it looks at the last answer; a database that hangs counts as down after one second.
async fn check_database(app: Arc<App>) {
    let mut every = tokio::time::interval(Duration::from_secs(1));
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let up = matches!(tokio::time::timeout(Duration::from_secs(1), app.store.ping()).await, Ok(Ok(())));
        if app.database_up.swap(up, Ordering::AcqRel) != up {
            tracing::warn!(up, "the database");
        }
    }
}

async fn sweep_keys(app: Arc<App>) {
    loop {
        tokio::time::sleep(SWEEP.mul_f64(rand::random_range(0.5..=1.5))).await;
        if let Err(error) = app.store.sweep_keys().await {
            tracing::warn!(%error, "old keys stay for now");
        }
        if app.auth.is_some()
            && let Err(error) = app.store.sweep_tickets().await
        {
            tracing::warn!(%error, "old tickets stay for now");
        }
    }
}

async fn forget_clients(app: Arc<App>) {
    loop {
        tokio::time::sleep(Duration::from_secs(10)).await;
        app.rates.forget();
    }
}

async fn keep_keys_fresh(app: Arc<App>) {
    if let Some(auth) = &app.auth {
        auth.keep_fresh().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_count_on_from_the_first_name() {
        assert_eq!(numbered("pod-1", 0), "pod-1");
        assert_eq!(numbered("pod-4", 2), "pod-6");
        assert_eq!((numbered("a", 0), numbered("a", 1)), ("a".into(), "a-2".into()));
    }

    #[test]
    fn a_password_is_not_repeated() {
        assert_eq!(without_password("mysql://u:p@ss@h/db"), "mysql://u:…@h/db");
        assert_eq!(without_password("sqlite:a.db"), "sqlite:a.db");
    }
}
