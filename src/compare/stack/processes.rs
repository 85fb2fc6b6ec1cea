//! The lab's side of the guardian: start processes, hear their lines, learn of their ends.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{mpsc, oneshot, watch};

use super::guardian::{News, Order, Request, Spawn};

/// A running guardian. When the last clone is dropped (or this process dies) everything it started is ended.
#[derive(Debug, Clone)]
pub struct Guardian {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    pid: i32,
    input: tokio::sync::Mutex<Option<ChildStdin>>,
    waiting: Mutex<Waiting>,
    child: tokio::sync::Mutex<Option<Child>>,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    asked: HashMap<u64, (bool, oneshot::Sender<Result<Process, String>>)>,
    lines: HashMap<i32, mpsc::Sender<String>>,
    ends: HashMap<i32, watch::Sender<Option<Ended>>>,
    gone: bool,
}

/// A pod's word that it serves: the line that `pushlab serve` prints for each of its pods.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Announced {
    /// Its name.
    pub pod: String,
    /// Public address, `host:port`.
    pub listen: String,
    /// Admin address, `host:port`.
    pub admin: String,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// In words: `exit 1`, `SIGKILL`.
    pub how: String,
}

/// A process below the guardian.
#[derive(Debug)]
pub struct Process {
    /// Process id.
    pub pid: i32,
    /// Its log: standard error, and standard output unless it was started with `lines`.
    pub log: PathBuf,
    /// Lines of its standard output, if asked for.
    pub lines: mpsc::Receiver<String>,
    /// Its end, once it has come.
    pub ended: watch::Receiver<Option<Ended>>,
}

impl Guardian {
    /// Starts a guardian: `pushlab guardian`, where `pushlab` is the program to run.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn start(pushlab: &Path) -> anyhow::Result<Self> {
        let mut child = Command::new(pushlab)
            .arg("guardian")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(false)
            .spawn()
            .with_context(|| format!("cannot start the guardian {}", pushlab.display()))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("the guardian has no pipes")
        };
        let mut lines = BufReader::new(output).lines();
        let first = lines.next_line().await?.context("the guardian ended at once; its message is above")?;
        let News::Ready { folder, pid } = serde_json::from_str(&first)? else { bail!("the guardian said {first}") };
        let shared = Arc::new(Shared {
            folder,
            pid,
            input: Some(input).into(),
            waiting: Mutex::default(),
            child: Some(child).into(),
        });
        let weak = Arc::downgrade(&shared);
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let (Some(shared), Ok(news)) = (weak.upgrade(), serde_json::from_str(&line)) else { break };
                shared.hear(news);
            }
            if let Some(shared) = weak.upgrade() {
                let mut waiting = shared.lock();
                *waiting = Waiting { gone: true, ..Waiting::default() };
            }
        });
        Ok(Self { shared })
    }

    /// The temporary folder; removed with the guardian.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.shared.folder
    }

    /// The guardian's process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.shared.pid
    }

    /// Starts a process.
    ///
    /// # Errors
    /// When it cannot be started, with the reason.
    pub async fn spawn(&self, spawn: Spawn) -> anyhow::Result<Process> {
        let log = spawn.log.clone();
        let mut process = self.ask(Order::Spawn(spawn), true).await?;
        process.log = log;
        Ok(process)
    }

    /// Sends a signal to a process it started.
    ///
    /// # Errors
    /// When the process is not there (any more).
    pub async fn signal(&self, pid: i32, signal: Signal) -> anyhow::Result<()> {
        self.ask(Order::Signal { pid, signal: signal as i32 }, false).await.map(|_| ())
    }

    /// Ends everything and waits until it is gone.
    pub async fn end(&self) {
        let child = self.shared.child.lock().await.take();
        drop(self.shared.input.lock().await.take());
        if let Some(mut child) = child {
            let _ = tokio::time::timeout(Duration::from_secs(8), child.wait()).await;
        }
    }

    async fn ask(&self, order: Order, spawn: bool) -> anyhow::Result<Process> {
        let (tx, answer) = oneshot::channel();
        let id = {
            let mut waiting = self.shared.lock();
            if waiting.gone {
                bail!("the guardian is gone");
            }
            waiting.next += 1;
            let id = waiting.next;
            waiting.asked.insert(id, (spawn, tx));
            id
        };
        let mut line = serde_json::to_string(&Request { id, order })?;
        line.push('\n');
        let mut input = self.shared.input.lock().await;
        let pipe = input.as_mut().context("the guardian is gone")?;
        pipe.write_all(line.as_bytes()).await.context("the guardian is gone")?;
        drop(input);
        answer.await.context("the guardian is gone")?.map_err(anyhow::Error::msg)
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, news: News) {
        let mut waiting = self.lock();
        match news {
            News::Done { id, pid } => {
                let Some((spawn, answer)) = waiting.asked.remove(&id) else { return };
                let ((line_tx, lines), (end_tx, ended)) = (mpsc::channel(1_024), watch::channel(None));
                if spawn {
                    waiting.lines.insert(pid, line_tx);
                    waiting.ends.insert(pid, end_tx);
                }
                let _ = answer.send(Ok(Process { pid, log: PathBuf::new(), lines, ended }));
            }
            News::Failed { id, why } => {
                if let Some((_, answer)) = waiting.asked.remove(&id) {
                    let _ = answer.send(Err(why));
                }
            }
            News::Line { pid, text } => {
                // Our programs say a handful of lines; what nobody reads beyond a thousand is dropped.
                if let Some(lines) = waiting.lines.get(&pid) {
                    let _ = lines.try_send(text);
                }
            }
            News::Silent { pid } => drop(waiting.lines.remove(&pid)),
            News::Exited { pid, code, how } => {
                if let Some(end) = waiting.ends.remove(&pid) {
                    let _ = end.send(Some(Ended { code, how }));
                }
            }
            News::Ready { .. } => {}
        }
    }
}

impl Process {
    /// Waits for its end.
    pub async fn wait(&mut self) -> Ended {
        let gone = Ended { code: None, how: "the guardian is gone".into() };
        self.ended.wait_for(Option::is_some).await.ok().and_then(|ended| ended.clone()).unwrap_or(gone)
    }

    /// Waits until the next pod of this `pushlab serve` (started with `lines`) says where it listens.
    ///
    /// # Errors
    /// When it ends, says something else or nothing for 20 s; with the end of its log. `name` is for these messages.
    pub async fn announced(&mut self, name: &str) -> anyhow::Result<Announced> {
        match tokio::time::timeout(Duration::from_secs(20), self.lines.recv()).await {
            Ok(Some(line)) => serde_json::from_str(&line).with_context(|| format!("{name} said {line:?}")),
            Ok(None) => {
                let ended = self.wait().await;
                bail!("{name} ended at once ({}); {}", ended.how, self.log_tail())
            }
            Err(_) => bail!("{name} does not serve after 20 s; {}", self.log_tail()),
        }
    }

    /// Whether it has ended, and how.
    #[must_use]
    pub fn has_ended(&self) -> Option<Ended> {
        self.ended.borrow().clone()
    }

    /// The last lines of its log, for an error message.
    #[must_use]
    pub fn log_tail(&self) -> String {
        log_tail(&self.log)
    }
}

/// The last twelve lines of a log, indented.
#[must_use]
pub fn log_tail(log: &Path) -> String {
    let text = std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<_> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let tail = &lines[lines.len().saturating_sub(12)..];
    if tail.is_empty() { "its log is empty".into() } else { format!("its log ends:\n    {}", tail.join("\n    ")) }
}
