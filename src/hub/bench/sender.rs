//! The process that is measured: engine, axum, and raw sockets with the same options.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use axum::Router;
use axum::extract::State;
use axum::extract::ws::WebSocketUpgrade;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use tokio_util::sync::CancellationToken;

use super::telemetry::Arms;
use super::wire::{Frames, POST_ANSWER, Pace, encode};
use super::{Addresses, Burst};
use crate::domain::{Epoch, Transport, Version};
use crate::hub::{EngineOptions, Hub, Subscription};
use crate::serve::connection::{self, TakeOver};

#[derive(Clone)]
struct App {
    hub: Hub<Frames>,
    paces: Arc<[Arc<Pace>; 2]>,
}

/// Runs until the conductor goes away.
pub(super) async fn run() -> anyhow::Result<ExitCode> {
    super::raise_open_files();
    let paces = Arc::new(Transport::ALL.map(|transport| Arc::new(Pace::new(transport))));
    let app = App { hub: Hub::start(1, &EngineOptions::default())?, paces };
    for pace in app.paces.iter() {
        let _ = pace.engine.set(app.hub.pick().clone());
    }
    let router = Router::new()
        .route("/sse", get(|State(app): State<App>| async move { stream(&app) }))
        .route("/stomp", get(|State(app): State<App>, upgrade: WebSocketUpgrade| async move { session(&app, upgrade) }))
        .route("/posts/{id}/likes", post(like))
        .with_state(app.clone());
    let http = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let raw = TcpListener::bind("127.0.0.1:0")?;
    // All connect before any is accepted: the standard library's backlog of 128 is too short.
    socket2::SockRef::from(&raw).listen(65_535)?;
    let addresses = Addresses { http: http.local_addr()?, raw: raw.local_addr()? };
    println!("{}", serde_json::to_string(&addresses)?);
    let options = connection::Options { max_connections: 100_000, ..connection::Options::default() };
    tokio::spawn(connection::serve::<Frames>(http, router, options, Arc::default(), CancellationToken::new()));
    tokio::task::spawn_blocking(move || {
        let mut sender = Sender { app, listener: raw, raw: Vec::new(), arms: Arms::default() };
        super::obey(|words| sender.on_order(words))
    })
    .await??;
    Ok(ExitCode::SUCCESS)
}

/// As far as HTTP goes, a like: its JSON body is read, an answer of the usual size comes back.
async fn like(_id: axum::extract::Path<u64>, _body: axum::Json<serde_json::Value>) -> Response {
    ([(http::header::CONTENT_TYPE, "application/json")], POST_ANSWER).into_response()
}

fn take_over(app: &App, transport: Transport) -> TakeOver<Frames> {
    let pace = &app.paces[transport as usize];
    pace.viewers.fetch_add(1, Ordering::Relaxed);
    let (cursor, first) = (Version(pace.version()), Bytes::new());
    let (post, epoch) = (pace.post(), Epoch(0));
    let subscription = Subscription { post, slot: 0, epoch, format: transport, cursor, first, alone: false, guard: () };
    TakeOver::new(app.hub.pick().clone(), Frames(Arc::clone(pace)), vec![subscription], Bytes::new())
}

fn stream(app: &App) -> Response {
    let take_over = take_over(app, Transport::Sse);
    let mut response = Response::new(take_over.body());
    response.extensions_mut().insert(take_over);
    response
}

fn session(app: &App, upgrade: WebSocketUpgrade) -> Response {
    let mut response = upgrade.on_failed_upgrade(|_| {}).on_upgrade(|_| async {});
    response.extensions_mut().insert(take_over(app, Transport::Stomp));
    response
}

struct Sender {
    app: App,
    listener: TcpListener,
    raw: Vec<TcpStream>,
    arms: Arms,
}

impl Sender {
    fn on_order(&mut self, words: &[&str]) -> anyhow::Result<String> {
        match words {
            ["accept", count] => {
                for _ in 0..count.parse::<u32>()? {
                    let (socket, _) = self.listener.accept()?;
                    socket.set_nonblocking(true)?;
                    socket.set_nodelay(true)?;
                    let lowat = EngineOptions::default().notsent_lowat;
                    socket2::SockRef::from(&socket).set_tcp_notsent_lowat(lowat)?;
                    self.raw.push(socket);
                }
                Ok("ok".into())
            }
            ["rss", label] => self.memory(transport(label)?).map(|kb| kb.to_string()),
            ["raw", label, seconds] => Ok(serde_json::to_string(&self.burst_raw(transport(label)?, seconds.parse()?))?),
            ["ours", label, seconds] => {
                Ok(serde_json::to_string(&self.burst_ours(transport(label)?, seconds.parse()?))?)
            }
            ["collector", endpoint] => {
                self.arms = Arms::open(endpoint)?;
                Ok("ok".into())
            }
            ["arm", arm, label, seconds] => {
                let (transport, arm) = (transport(label)?, arm.parse()?);
                let scraping = self.arms.begin(arm, &self.app.hub, &self.app.paces[transport as usize]);
                let burst = self.burst_ours(transport, seconds.parse()?);
                drop(scraping);
                Ok(serde_json::to_string(&burst)?)
            }
            ["spans"] => Ok(serde_json::to_string(&self.arms.spans())?),
            ["saturate", label, on] => {
                let pace = &self.app.paces[transport(label)? as usize];
                pace.running.store(*on == "on", Ordering::Relaxed);
                if *on == "on" {
                    pace.publish();
                    let pace = Arc::clone(pace);
                    std::thread::spawn(move || {
                        while pace.running.load(Ordering::Relaxed) {
                            nudge(&pace)
                        }
                    });
                }
                Ok("ok".into())
            }
            other => bail!("unknown order {other:?}"),
        }
    }

    /// Resident memory in kB once every viewer is with the engine.
    fn memory(&self, transport: Transport) -> anyhow::Result<u64> {
        let deadline = Instant::now() + Duration::from_secs(10);
        let expected = self.app.paces[transport as usize].viewers.load(Ordering::Relaxed);
        while self.app.hub.counters().of(transport).accepted < u64::from(expected) {
            ensure!(Instant::now() < deadline, "not all of {expected} viewers reached the engine");
            std::thread::sleep(Duration::from_millis(5));
        }
        // hyper's tasks free their buffers a moment after the take-over.
        std::thread::sleep(Duration::from_millis(200));
        let statm = std::fs::read_to_string("/proc/self/statm")?;
        let pages: u64 = statm.split(' ').nth(1).context("statm has a second field")?.parse()?;
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?.context("a page size")?;
        Ok(pages * u64::try_from(page)? / 1024)
    }

    /// The same bytes to the same number of sockets by nothing but `write(2)`.
    fn burst_raw(&mut self, transport: Transport, seconds: f64) -> Burst {
        let frame = encode(&self.app.paces[transport as usize].update(1_000), transport);
        let meter = Meter::start();
        let end = Instant::now() + Duration::from_secs_f64(seconds);
        let (mut deliveries, mut refused) = (0, 0);
        while Instant::now() < end {
            for socket in &mut self.raw {
                match socket.write(&frame) {
                    Ok(written) if written == frame.len() => deliveries += 1,
                    _ => refused += 1,
                }
            }
        }
        let burst = meter.stop(deliveries, deliveries, refused);
        // The reader empties its sockets before the next burst.
        std::thread::sleep(Duration::from_millis(100));
        burst
    }

    fn burst_ours(&self, transport: Transport, seconds: f64) -> Burst {
        let pace = &self.app.paces[transport as usize];
        let counts = || *self.app.hub.counters().of(transport);
        let before = counts();
        let meter = Meter::start();
        let end = Instant::now() + Duration::from_secs_f64(seconds);
        pace.running.store(true, Ordering::Relaxed);
        pace.publish();
        while Instant::now() < end {
            nudge(pace);
        }
        let after = counts();
        let writes = after.socket_writes - before.socket_writes;
        // What is left to be exported was caused by this burst.
        self.arms.flush();
        let burst = meter.stop(after.deliveries - before.deliveries, writes, after.conflated - before.conflated);
        pace.running.store(false, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(100));
        burst
    }
}

fn transport(label: &str) -> anyhow::Result<Transport> {
    let known = Transport::ALL.into_iter().find(|transport| transport.label() == label);
    known.ok_or_else(|| anyhow!("no transport {label}"))
}

/// Publishes when nothing has been for a while: a viewer whose socket is full is not visited, and the pace would stop.
fn nudge(pace: &Pace) {
    let before = pace.version();
    std::thread::sleep(Duration::from_millis(50));
    if pace.version() == before {
        pace.publish();
    }
}

/// CPU time of this process, which on loopback contains the receivers' TCP work.
struct Meter {
    start: Instant,
    user: i64,
    system: i64,
}

impl Meter {
    fn start() -> Self {
        let (user, system) = Self::times();
        Self { start: Instant::now(), user, system }
    }

    fn times() -> (i64, i64) {
        let usage = getrusage(UsageWho::RUSAGE_SELF).expect("one's own usage is always known");
        (usage.user_time().num_microseconds(), usage.system_time().num_microseconds())
    }

    fn stop(self, deliveries: u64, writes: u64, refused: u64) -> Burst {
        let (user, system) = Self::times();
        let micros = |time: i64| u64::try_from(time).unwrap_or(0);
        Burst {
            deliveries,
            writes,
            refused,
            cpu_us: micros(user - self.user + system - self.system),
            user_us: micros(user - self.user),
            wall_us: u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX),
        }
    }
}
