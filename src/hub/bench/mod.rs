//! The delivery path beside raw `write(2)` fan-out, in one run: bursts in ABBA order, sender and readers on a core each.
//!
//! Three processes: this one conducts and posts; the sender holds engine, axum and the raw sockets; the reader only reads.
//! (The one place of the hub that knows HTTP and the wire formats: it measures the whole path, handshake included.)

/// The process that only reads.
mod reader;
/// The process that is measured.
mod sender;
/// What metrics and traces cost.
pub mod telemetry;
/// The protocol of the bench: the real wire formats, without sessions.
mod wire;

use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::affinity;
use crate::domain::Transport;

/// Options.
#[derive(Debug, Clone, clap::Args)]
pub struct Config {
    /// Viewers per transport, and raw sockets beside them
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub viewers: u32,
    /// Length of one burst, seconds
    #[arg(long, default_value_t = 2.0)]
    pub seconds: f64,
    /// ABBA groups per transport: raw, ours, ours, raw
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub pairs: u32,
    /// POSTs beside the saturated fan-out, 250 per second; a p99 is printed from 1,000 on
    #[arg(long, default_value_t = 1000)]
    pub posts: u32,
    /// Core of the sender
    #[arg(long, default_value_t = 0)]
    pub sender_cpu: usize,
    /// Core of the readers and of the client that posts
    #[arg(long, default_value_t = 1)]
    pub reader_cpu: usize,
    /// Which of the processes this is
    #[arg(long, hide = true, value_enum)]
    role: Option<Role>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Role {
    Sender,
    Reader,
}

/// Where the sender listens.
#[derive(Debug, Serialize, Deserialize)]
struct Addresses {
    http: SocketAddr,
    raw: SocketAddr,
}

/// What one burst did.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Burst {
    deliveries: u64,
    writes: u64,
    /// Updates a full socket did not take: the readers were too slow for the sender.
    refused: u64,
    /// User and system time of the sender's process, µs.
    cpu_us: u64,
    user_us: u64,
    wall_us: u64,
}

impl Burst {
    fn cost(&self) -> f64 {
        self.cpu_us as f64 / self.deliveries.max(1) as f64
    }
}

/// Runs it until done or `shutdown`.
///
/// # Errors
/// A message for the user.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<ExitCode> {
    ensure!(config.seconds.is_finite() && config.seconds > 0.0, "--seconds must be more than 0");
    match config.role {
        Some(Role::Sender) => return sender::run().await,
        Some(Role::Reader) => return tokio::task::spawn_blocking(reader::run).await?,
        None => {}
    }
    // The blocking side ends by itself when its children do; they end when this process closes their input.
    let conducted = tokio::task::spawn_blocking(move || conduct(&config));
    tokio::select! {
        done = conducted => done??,
        () = shutdown.cancelled() => std::process::exit(1),
    }
    Ok(ExitCode::SUCCESS)
}

fn conduct(config: &Config) -> anyhow::Result<()> {
    let mut sender = Worker::start("sender", config.sender_cpu)?;
    let addresses: Addresses = serde_json::from_str(&sender.hear()?)?;
    let mut reader = Worker::start("reader", config.reader_cpu)?;
    println!(
        "{} viewers per transport and {0} raw sockets, loopback; sender on core {}, readers on core {}; {} groups of raw, \
         ours, ours, raw; {} s a burst; one event per write",
        config.viewers, config.sender_cpu, config.reader_cpu, config.pairs, config.seconds
    );
    let mut memory = Vec::new();
    for transport in Transport::ALL {
        memory.push((transport, join(config, transport, &addresses, &mut sender, &mut reader)?));
    }
    reader.ask(&format!("connect raw {} {}", addresses.raw, config.viewers))?;
    sender.ask(&format!("accept {}", config.viewers))?;
    println!(
        "\n{:12} {:>11} {:>11} {:>9} {:>24} {:>13}",
        "", "CPU µs/deliv", "raw µs/deliv", "user µs", "raw ÷ ours (min…max)", "events/write"
    );
    let mut steadiness = Vec::new();
    for transport in Transport::ALL {
        let groups = (0..config.pairs).map(|_| group(config, transport, &mut sender));
        let groups = groups.collect::<anyhow::Result<Vec<_>>>()?;
        steadiness.extend(groups.iter().map(|g| (g.raw[0].cost() / g.raw[1].cost()).ln().abs()));
        println!("{}", line(transport, &groups));
        let bursts = || groups.iter().flat_map(|group| group.raw.iter().chain(&group.ours));
        let (refused, sent) = bursts().fold((0, 0), |(r, d), burst| (r + burst.refused, d + burst.deliveries));
        if refused * 100 > sent {
            println!(
                "{:12} the readers were too slow for {refused} of {} updates: do not trust the ratio",
                "",
                refused + sent
            );
        }
    }
    println!(
        "raw against itself: median difference {:.1} % (what the ratio can resolve)",
        100.0 * median(&mut steadiness)
    );
    println!();
    for (transport, per_viewer) in memory {
        println!("{:12} {per_viewer:.2} kB of the sender's memory (RSS) per idle viewer", name(transport));
    }
    println!();
    post("POST, no fan-out", config, &addresses)?;
    for transport in Transport::ALL {
        sender.ask(&format!("saturate {} on", transport.label()))?;
        let posted = post(&format!("POST beside saturated {}", name(transport)), config, &addresses);
        sender.ask(&format!("saturate {} off", transport.label()))?;
        posted?;
    }
    Ok(())
}

const fn name(transport: Transport) -> &'static str {
    match transport {
        Transport::Sse => "SSE",
        Transport::Stomp => "WS + STOMP",
    }
}

/// Connects the viewers; kB per viewer from the growth between a tenth of them and all.
fn join(
    config: &Config,
    transport: Transport,
    addresses: &Addresses,
    sender: &mut Worker,
    reader: &mut Worker,
) -> anyhow::Result<f64> {
    let few = (config.viewers / 10).max(1);
    let mut settle = |count: u32| -> anyhow::Result<f64> {
        if count > 0 {
            reader.ask(&format!("connect {} {} {count}", transport.label(), addresses.http))?;
        }
        sender.ask(&format!("rss {}", transport.label()))?.parse().context("the sender's memory")
    };
    let before = settle(few)?;
    let after = settle(config.viewers - few)?;
    Ok((after - before) / f64::from((config.viewers - few).max(1)))
}

/// One ABBA group.
struct Group {
    raw: [Burst; 2],
    ours: [Burst; 2],
}

fn group(config: &Config, transport: Transport, sender: &mut Worker) -> anyhow::Result<Group> {
    let mut burst = |what: &str| -> anyhow::Result<Burst> {
        let burst: Burst =
            serde_json::from_str(&sender.ask(&format!("{what} {} {}", transport.label(), config.seconds))?)?;
        ensure!(burst.deliveries > 0, "a burst delivered nothing: are {} sockets within the limits?", config.viewers);
        Ok(burst)
    };
    let (a, b, c, d) = (burst("raw")?, burst("ours")?, burst("ours")?, burst("raw")?);
    Ok(Group { raw: [a, d], ours: [b, c] })
}

fn line(transport: Transport, groups: &[Group]) -> String {
    let mean = |bursts: &[Burst; 2]| f64::midpoint(bursts[0].cost(), bursts[1].cost());
    let mut ratios: Vec<_> = groups.iter().map(|g| mean(&g.raw) / mean(&g.ours)).collect();
    let middle = median(&mut ratios);
    let (least, most) = (ratios[0], ratios[ratios.len() - 1]);
    let ours: Vec<_> = groups.iter().flat_map(|g| g.ours).collect();
    let sum = |of: fn(&Burst) -> u64| ours.iter().map(of).sum::<u64>() as f64;
    let deliveries = sum(|b| b.deliveries);
    format!(
        "{:12} {:>12.2} {:>12.2} {:>9.2} {:>24} {:>13.3}",
        name(transport),
        median(&mut groups.iter().map(|g| mean(&g.ours)).collect::<Vec<_>>()),
        median(&mut groups.iter().map(|g| mean(&g.raw)).collect::<Vec<_>>()),
        sum(|b| b.user_us) / deliveries,
        format!("{middle:.3} ({least:.3}…{most:.3})"),
        deliveries / sum(|b| b.writes).max(1.0),
    )
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let (low, high) = (values.len().saturating_sub(1) / 2, values.len() / 2);
    f64::midpoint(values[low], values[high])
}

/// Posts through the sender's axum router at fixed due times; prints due → answer.
fn post(title: &str, config: &Config, addresses: &Addresses) -> anyhow::Result<()> {
    let (count, http, cpu) = (config.posts, addresses.http, config.reader_cpu);
    let posting = std::thread::spawn(move || {
        affinity::pin(&[cpu]).context("--reader-cpu")?;
        post_all(http, count)
    });
    let mut latencies = posting.join().map_err(|_| anyhow!("the posting thread panicked"))??;
    latencies.sort_unstable();
    let quantile = |q: f64| {
        let index = ((latencies.len() as f64 * q).ceil() as usize).clamp(1, latencies.len().max(1)) - 1;
        latencies.get(index).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e3)
    };
    let p99 = if count >= 1000 { format!("{:.2} ms", quantile(0.99)) } else { "(fewer than 1,000 POSTs)".into() };
    println!("{title:32} p50 {:.2} ms, p99 {p99}, n = {count}", quantile(0.5));
    Ok(())
}

fn post_all(http: SocketAddr, count: u32) -> anyhow::Result<Vec<Duration>> {
    let mut stream = TcpStream::connect(http)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let request =
        b"POST /posts/1/likes HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
    let (start, mut latencies) = (Instant::now(), Vec::new());
    let mut buffer = [0; 4096];
    for i in 0..count {
        let due = start + Duration::from_millis(4) * i;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        stream.write_all(request)?;
        let mut seen = Vec::new();
        while !seen.ends_with(wire::POST_ANSWER.as_bytes()) {
            let n = stream.read(&mut buffer).context("no answer to a POST")?;
            ensure!(n > 0, "the sender closed on a POST");
            seen.extend_from_slice(&buffer[..n]);
        }
        latencies.push(due.elapsed());
    }
    Ok(latencies)
}

/// A child of this program; killed when dropped.
struct Worker {
    name: &'static str,
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Worker {
    /// Starts it on a core.
    fn start(name: &'static str, cpu: usize) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["bench", "--role", name]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let spawned = affinity::within(&[cpu], || command.spawn()).with_context(|| format!("--{name}-cpu"))?;
        let mut child = spawned.with_context(|| format!("the {name} could not be started"))?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (Some(input), Some(output)) = (input, output) else { bail!("the {name} has no pipes") };
        Ok(Self { name, child, input, output: BufReader::new(output).lines() })
    }

    fn hear(&mut self) -> anyhow::Result<String> {
        let line = self.output.next().ok_or_else(|| anyhow!("the {} ended early", self.name))??;
        match line.strip_prefix("error: ") {
            Some(error) => bail!("the {}: {error}", self.name),
            None => Ok(line),
        }
    }

    fn ask(&mut self, order: &str) -> anyhow::Result<String> {
        writeln!(self.input, "{order}").with_context(|| format!("the {} ended early", self.name))?;
        self.hear()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The side of a worker: one answer per order, until the conductor goes away.
fn obey(mut on_order: impl FnMut(&[&str]) -> anyhow::Result<String>) -> anyhow::Result<()> {
    for order in std::io::stdin().lines() {
        let order = order?;
        let words: Vec<_> = order.split_whitespace().collect();
        let answer = on_order(&words).unwrap_or_else(|error| format!("error: {error:#}"));
        println!("{answer}");
    }
    Ok(())
}

fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
