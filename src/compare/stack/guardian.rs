//! The guardian: keeps the processes of a stack and ends them when the lab goes away, however it goes.
//!
//! It is a process of its own, in its own session, and the sub-reaper of everything below it. It holds one pipe to the
//! lab: requests come in as JSON lines, answers and news go out as JSON lines. When the pipe ends (the lab returned,
//! was interrupted, or was killed), every descendant is ended by its process id and the temporary folder is removed.
//! Parent-death signals alone do not do: they follow the spawning *thread* and are cleared when the uid changes.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::affinity;

/// How long descendants may take to end by SIGTERM before SIGKILL.
const PATIENCE: Duration = Duration::from_millis(1_500);

/// Options.
#[derive(Debug, Clone, clap::Args)]
pub struct Config {
    /// Where the temporary folder is made
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    pub below: PathBuf,
}

/// What the lab asks for; answered by one [`News`] with the same `id`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// The lab's number of this request.
    pub id: u64,
    /// What to do.
    pub order: Order,
}

/// The two things a guardian does.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Start a process.
    Spawn(Spawn),
    /// Send a signal to a process it started.
    Signal {
        /// The process.
        pid: i32,
        /// The signal's number.
        signal: i32,
    },
}

/// A process to start. Its standard input is empty.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Spawn {
    /// Program, as a full path.
    pub program: PathBuf,
    /// Arguments.
    pub args: Vec<String>,
    /// Additional environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// File that takes its standard error, and its standard output unless `lines`.
    pub log: PathBuf,
    /// Report each line of its standard output as [`News::Line`].
    #[serde(default)]
    pub lines: bool,
    /// CPUs it may run on; empty: all.
    #[serde(default)]
    pub cpus: Vec<usize>,
}

/// What the guardian says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum News {
    /// First line: it is there.
    Ready {
        /// The temporary folder, removed at the end.
        folder: PathBuf,
        /// The guardian's own process id.
        pid: i32,
    },
    /// The request `id` was done.
    Done {
        /// The request.
        id: u64,
        /// Process id, for a spawn.
        pid: i32,
    },
    /// The request `id` failed.
    Failed {
        /// The request.
        id: u64,
        /// Why.
        why: String,
    },
    /// One line of a process' standard output.
    Line {
        /// The process.
        pid: i32,
        /// The line.
        text: String,
    },
    /// A process' standard output ended: no line follows.
    Silent {
        /// The process.
        pid: i32,
    },
    /// A process ended.
    Exited {
        /// The process.
        pid: i32,
        /// Its exit code; none when a signal ended it.
        code: Option<i32>,
        /// In words: `exit 1`, `SIGKILL`.
        how: String,
    },
}

/// Runs it until its standard input ends or `shutdown`. Inputs of its loop: requests from the lab, lines of its
/// children, deaths of its children, signals.
///
/// # Errors
/// When the temporary folder cannot be made or this system has no child sub-reapers.
pub async fn run(config: Config, shutdown: tokio_util::sync::CancellationToken) -> anyhow::Result<ExitCode> {
    let _ = nix::unistd::setsid(); // fails only for a group's leader, which started by hand has its own session's terminal anyway
    nix::sys::prctl::set_child_subreaper(true).context("this system has no child sub-reapers (Linux 3.4 or newer)")?;
    let folder = tempfile::Builder::new()
        .prefix("pushlab-")
        .tempdir_in(&config.below)
        .with_context(|| format!("cannot make a folder in {}; set TMPDIR", config.below.display()))?
        .keep();
    let mut deaths = signal(SignalKind::child())?;
    let (line_tx, mut lines) = mpsc::channel::<News>(1_024); // a full queue makes a child's pipe full, never a lost line
    let (ask, mut requests) = mpsc::channel::<String>(64);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if ask.blocking_send(line).is_err() {
                return;
            }
        }
    });
    let mut pids = HashSet::new();
    let mut heard = say(&News::Ready { folder: folder.clone(), pid: Pid::this().as_raw() });
    while heard {
        tokio::select! {
            request = requests.recv() => match request {
                Some(text) => heard = say(&obey(&text, &line_tx, &mut pids)),
                None => break,
            },
            Some(news) = lines.recv() => heard = say(&news),
            _ = deaths.recv() => for news in reap(&mut pids) {
                heard = say(&news);
            },
            () = shutdown.cancelled() => break,
        }
    }
    end_descendants();
    let _ = fs::remove_dir_all(&folder);
    std::process::exit(0) // the thread that waits for standard input must not hold the runtime's end up
}

/// Writes one line to the lab; false when the lab is gone.
fn say(news: &News) -> bool {
    let mut line = serde_json::to_string(news).unwrap_or_default();
    line.push('\n');
    let mut out = std::io::stdout().lock();
    out.write_all(line.as_bytes()).and_then(|()| out.flush()).is_ok()
}

fn obey(text: &str, lines: &mpsc::Sender<News>, pids: &mut HashSet<i32>) -> News {
    let request: Request = match serde_json::from_str(text) {
        Ok(request) => request,
        Err(error) => return News::Failed { id: 0, why: format!("not a request: {error}") },
    };
    let id = request.id;
    let done = match request.order {
        Order::Spawn(spawn) => start(&spawn, lines),
        Order::Signal { pid, .. } if !pids.contains(&pid) => Err(anyhow::anyhow!("process {pid} is not there")),
        Order::Signal { pid, signal } => Signal::try_from(signal)
            .and_then(|signal| kill(Pid::from_raw(pid), signal))
            .map(|()| pid)
            .map_err(anyhow::Error::from),
    };
    match done {
        Ok(pid) => {
            pids.insert(pid);
            News::Done { id, pid }
        }
        Err(error) => News::Failed { id, why: format!("{error:#}") },
    }
}

fn start(spawn: &Spawn, lines: &mpsc::Sender<News>) -> anyhow::Result<i32> {
    let log = File::options().create(true).append(true).open(&spawn.log);
    let log = log.with_context(|| format!("cannot write {}", spawn.log.display()))?;
    let out = if spawn.lines { Stdio::piped() } else { log.try_clone()?.into() };
    let mut command = Command::new(&spawn.program);
    command.args(&spawn.args).envs(&spawn.env).stdin(Stdio::null()).stdout(out).stderr(log);
    let child = affinity::within(&spawn.cpus, || command.spawn())?;
    let mut child = child.with_context(|| format!("cannot start {}", spawn.program.display()))?;
    let pid = i32::try_from(child.id())?;
    if let Some(out) = child.stdout.take() {
        let lines = lines.clone();
        std::thread::spawn(move || {
            for text in BufReader::new(out).lines().map_while(Result::ok) {
                if lines.blocking_send(News::Line { pid, text }).is_err() {
                    return;
                }
            }
            let _ = lines.blocking_send(News::Silent { pid });
        });
    }
    Ok(pid)
}

/// Collects every child that ended, adopted ones too; tells of those it started.
fn reap(pids: &mut HashSet<i32>) -> Vec<News> {
    let mut news = Vec::new();
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        let (pid, code, how) = match status {
            WaitStatus::Exited(pid, code) => (pid.as_raw(), Some(code), format!("exit {code}")),
            WaitStatus::Signaled(pid, signal, _) => (pid.as_raw(), None, signal.to_string()),
            WaitStatus::StillAlive => break,
            _ => continue,
        };
        if pids.remove(&pid) {
            news.push(News::Exited { pid, code, how });
        }
    }
    news
}

/// Ends everything below this process: SIGTERM, then SIGKILL until nothing is left.
fn end_descendants() {
    let begun = Instant::now();
    let mut told = HashSet::new();
    loop {
        while !matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(WaitStatus::StillAlive) | Err(_)) {}
        let left = descendants(Pid::this().as_raw());
        if left.is_empty() || begun.elapsed() > 3 * PATIENCE {
            return;
        }
        let hard = begun.elapsed() > PATIENCE;
        for pid in left {
            if hard || told.insert(pid) {
                let _ = kill(Pid::from_raw(pid), if hard { Signal::SIGKILL } else { Signal::SIGTERM });
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Every process below `root`, from /proc; zombies are not counted.
#[must_use]
pub fn descendants(root: i32) -> Vec<i32> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        parents.extend(parent(&entry.path()).map(|parent| (pid, parent)));
    }
    let (mut found, mut next) = (Vec::new(), vec![root]);
    while let Some(above) = next.pop() {
        for (pid, _) in parents.iter().filter(|(_, parent)| *parent == above) {
            found.push(*pid);
            next.push(*pid);
        }
    }
    found
}

/// Parent of a process that still runs: the second field after the name, which may itself hold spaces and brackets.
fn parent(proc: &Path) -> Option<i32> {
    let stat = fs::read_to_string(proc.join("stat")).ok()?;
    let mut rest = stat.rsplit_once(')')?.1.split_whitespace();
    (rest.next()? != "Z").then(|| rest.next()?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descendants_are_found_however_deep() {
        let mut child = Command::new("/bin/sh").args(["-c", "sleep 60 & wait"]).spawn().unwrap();
        let begun = Instant::now();
        let me = Pid::this().as_raw();
        let pid = i32::try_from(child.id()).unwrap();
        while descendants(pid).is_empty() && begun.elapsed() < Duration::from_secs(5) {
            std::thread::yield_now();
        }
        let below = descendants(pid);
        assert_eq!(below.len(), 1);
        assert!(descendants(me).contains(&below[0]));
        for pid in below.into_iter().chain([pid]) {
            kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        }
        child.wait().unwrap();
    }

    #[test]
    fn a_signal_goes_only_to_what_was_started() {
        let (lines, _keep) = mpsc::channel(1);
        let news = obey(r#"{"id":3,"order":{"signal":{"pid":1,"signal":15}}}"#, &lines, &mut HashSet::new());
        assert!(matches!(news, News::Failed { id: 3, .. }), "{news:?}");
    }
}
