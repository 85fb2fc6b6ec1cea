//! `pushlab bench writes`: the write strategies side by side on one post, on a durable database: at the store's boundary,
//! and through whole pods over HTTP and STOMP.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio_util::sync::CancellationToken;

use crate::compare::environment;
use crate::compare::stack::processes::Guardian;
use crate::compare::stack::services::{self, Running};
use crate::store::WriteStrategy;
use figures::{Run, median};

/// The two write channels, as simple clients.
mod clients;
/// Callers of the store, without a pod.
mod direct;
/// What a run comes to.
mod figures;
/// Clients of whole pods.
mod pods;

/// Options of `pushlab bench writes`.
#[derive(Debug, Clone, clap::Args)]
pub struct Config {
    /// Callers at once, all of them on one post
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub callers: u32,

    /// Length of one run, seconds
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,

    /// Rounds; in each every strategy runs once, in the one order and then in the other
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub repetitions: u32,

    /// Strategies
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = WriteStrategy::ALL)]
    pub strategies: Vec<WriteStrategy>,

    /// Pods of the runs over HTTP and STOMP; 0 leaves these out
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=16))]
    pub pods: u32,
}

/// Where the likes come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Door {
    Store,
    Http,
    Stomp,
}

impl Door {
    const fn title(self) -> &'static str {
        match self {
            Self::Store => "At the store's boundary: no HTTP, no broker, one process",
            Self::Http => "Over HTTP: POST, a connection per caller, its next like after its answer",
            Self::Stomp => "Over STOMP: SEND, a session per caller, its next like after its RECEIPT",
        }
    }
}

/// What stays up for all runs.
struct Lab {
    guardian: Guardian,
    database: Running,
    nats: Running,
}

/// Runs it until done or `shutdown`.
///
/// # Errors
/// What is missing, or what a strategy did wrong.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<ExitCode> {
    ensure!(config.seconds.is_finite() && config.seconds > 0.0, "--seconds must be more than 0");
    let _ = environment::raise_open_files();
    let program = std::env::current_exe().context("cannot find this program")?;
    let guardian = Guardian::start(&program).await?;
    let work = measure(&config, &guardian);
    let done = tokio::select! {
        done = work => done,
        () = shutdown.cancelled() => Err(anyhow::anyhow!("interrupted")),
    };
    guardian.end().await;
    done.map(|()| ExitCode::SUCCESS)
}

async fn measure(config: &Config, guardian: &Guardian) -> anyhow::Result<()> {
    let (database, nats) =
        tokio::try_join!(services::mariadb_with_binlog(guardian, &[]), services::nats(guardian, &[]))?;
    let lab = Lab { guardian: guardian.clone(), database, nats };
    let facts = environment::facts();
    let fact = |name: &str| facts.get(name).map_or("?", String::as_str);
    println!(
        "{} callers on one post, {} s a run, {} rounds; {} with innodb_flush_log_at_trx_commit=1 and sync_binlog=1",
        config.callers,
        config.seconds,
        config.repetitions,
        facts.get("mariadbd").or_else(|| facts.get("mysqld")).map_or("MariaDB", String::as_str)
    );
    println!("{} × {}, kernel {}; build: {}", fact("cores"), fact("cpu"), fact("kernel"), fact("build"));
    let doors = if config.pods == 0 { &[Door::Store][..] } else { &[Door::Store, Door::Http, Door::Stomp][..] };
    for door in doors {
        let runs = rounds(config, &lab, *door).await?;
        print(config, *door, &runs);
    }
    Ok(())
}

/// Per strategy its runs, in the order of the rounds.
async fn rounds(config: &Config, lab: &Lab, door: Door) -> anyhow::Result<Vec<(WriteStrategy, Vec<Run>)>> {
    let mut runs: Vec<(WriteStrategy, Vec<Run>)> = config.strategies.iter().map(|write| (*write, Vec::new())).collect();
    let length = Duration::from_secs_f64(config.seconds);
    for round in 0..config.repetitions {
        let mut order: Vec<usize> = (0..runs.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for at in order {
            let (write, done) = &mut runs[at];
            let run = match door {
                Door::Store => direct::run(&lab.database, *write, config.callers, length).await,
                Door::Http | Door::Stomp => pods::run(lab, *write, config, door).await,
            };
            done.push(run.with_context(|| format!("{} ({door:?})", write.name()))?);
        }
    }
    Ok(runs)
}

fn print(config: &Config, door: Door, runs: &[(WriteStrategy, Vec<Run>)]) {
    println!("\n{}", door.title());
    println!(
        "{:12} {:>26} {:>19} {:>19} {:>12} {:>9}  CPU: cores busy on average",
        "strategy", "likes/s (min…max)", "lock wait p50/p99", "answer p50/p99", "commits/like", "refused"
    );
    for (write, runs) in runs {
        let rates: Vec<f64> = runs.iter().map(Run::rate).collect();
        let of = |value: fn(&Run) -> f64| median(runs.iter().map(value).collect());
        let pair = |a: f64, b: f64| if a.is_nan() { "–".into() } else { format!("{a:.2} / {b:.2} ms") };
        println!(
            "{:12} {:>26} {:>19} {:>19} {:>12.4} {:>9.0}  {}",
            write.name(),
            spread(&rates, 0),
            pair(of(|run| run.lock_wait_ms.0), of(|run| run.lock_wait_ms.1)),
            pair(of(|run| run.answer_ms.0), of(|run| run.answer_ms.1)),
            of(|run| run.commits as f64 / run.likes.max(1) as f64),
            of(|run| run.refused as f64),
            figures::cpu(runs),
        );
        if runs.iter().any(|run| run.counted_after_ms.is_some()) {
            let after = |which: fn((f64, f64)) -> f64| {
                median(runs.iter().filter_map(|run| run.counted_after_ms.map(which)).collect())
            };
            println!(
                "{:12} from the answer to the count: p50 {:.1} ms, p99 {:.1} ms; likes/s until the last one is counted",
                "",
                after(|pair| pair.0),
                after(|pair| pair.1)
            );
        }
    }
    let of = |wanted| runs.iter().find(|(write, _)| *write == wanted).map(|(_, runs)| runs);
    if let (Some(combining), Some(pessimistic)) = (of(WriteStrategy::Combining), of(WriteStrategy::Pessimistic)) {
        let ratios: Vec<f64> = combining.iter().zip(pessimistic).map(|(a, b)| a.rate() / b.rate()).collect();
        println!("combining ÷ pessimistic, round by round: {}", spread(&ratios, 1));
        println!("combining is bound by {}", figures::bound(combining, config));
    }
}

/// The median with the least and the greatest.
fn spread(values: &[f64], digits: usize) -> String {
    let (least, most) = values.iter().fold((f64::INFINITY, 0.0_f64), |(a, b), v| (a.min(*v), b.max(*v)));
    format!("{:.digits$} ({least:.digits$}…{most:.digits$})", median(values.to_vec()))
}
