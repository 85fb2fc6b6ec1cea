//! A pod as a process of its own: its memory, its log and its end can be looked at, and signals sent to it.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pushlab::compare::stack::processes::Announced;

/// `pushlab serve`, killed when dropped.
pub(crate) struct PodProcess {
    child: Child,
    /// Its public address.
    pub(crate) listen: SocketAddr,
    /// Its admin address.
    pub(crate) admin: SocketAddr,
    folder: tempfile::TempDir,
}

impl PodProcess {
    /// With SQLite and a broker of its own, unless `flags` say otherwise.
    pub(crate) fn start(flags: &[&str]) -> Self {
        Self::with(flags, &[])
    }

    /// The same in another environment.
    pub(crate) fn with(flags: &[&str], environment: &[(&str, &str)]) -> Self {
        pushlab::serve::tls::provide(); // which reqwest looks for
        let folder = tempfile::tempdir().unwrap();
        let database = format!("sqlite:{}", folder.path().join("likes.db").display());
        let mut command = Command::new(env!("CARGO_BIN_EXE_pushlab"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]).args(flags);
        for (flag, value) in [("--database-url", database.as_str()), ("--nats-url", "local")] {
            if !flags.contains(&flag) {
                command.args([flag, value]);
            }
        }
        command.env_remove("RUST_LOG").envs(environment.iter().copied());
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let log = || std::fs::read_to_string(folder.path().join("log")).unwrap();
        let said: Announced = serde_json::from_str(&line).unwrap_or_else(|_| panic!("no start: {}", log()));
        let (listen, admin) = (said.listen.parse().unwrap(), said.admin.parse().unwrap());
        Self { child, listen, admin, folder }
    }

    /// At its public address.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.listen)
    }

    /// A new post's id.
    pub(crate) async fn post(&self) -> u64 {
        new_post(&reqwest::Client::new(), self.listen).await
    }

    /// A metric, summed over its series that contain `labels`.
    pub(crate) async fn metric(&self, name: &str, labels: &str) -> f64 {
        metric(&reqwest::Client::new(), self.admin, name, labels).await
    }

    /// Waits until the metric is `wanted`.
    pub(crate) async fn metric_becomes(&self, name: &str, labels: &str, wanted: f64) {
        metric_becomes(&reqwest::Client::new(), self.admin, name, labels, wanted).await;
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the process does not end: {}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// What it logged so far.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.folder.path().join("log")).unwrap()).into_owned()
    }

    /// Resident memory now, in MiB.
    pub(crate) fn rss_mib(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
    }

    /// How many entries a folder of its `/proc` has: `fd` (open files) or `task` (threads).
    pub(crate) fn count(&self, what: &str) -> usize {
        std::fs::read_dir(format!("/proc/{}/{what}", self.child.id())).unwrap().count()
    }
}

impl Drop for PodProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the tests wait at most, however busy the machine. What is bounded ends before it; how soon is not a test's to judge.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Creates a post at the pod that listens there; its id.
pub(crate) async fn new_post(http: &reqwest::Client, listen: SocketAddr) -> u64 {
    let body = serde_json::json!({ "title": "a post" });
    let answer = http.post(format!("http://{listen}/posts")).json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 201);
    answer.json::<serde_json::Value>().await.unwrap()["id"].as_u64().unwrap()
}

/// A metric of the pod with this admin address, summed over its series that contain `labels`.
pub(crate) async fn metric(http: &reqwest::Client, admin: SocketAddr, name: &str, labels: &str) -> f64 {
    let text = http.get(format!("http://{admin}/metrics")).send().await.unwrap().text().await.unwrap();
    let of = |line: &str| {
        let (series, value) = line.rsplit_once(' ')?;
        let (found, rest) = series.split_once('{').unwrap_or((series, ""));
        (found == name && rest.contains(labels)).then(|| value.parse::<f64>().unwrap())
    };
    text.lines().filter_map(of).sum()
}

/// Waits until the metric is `wanted`.
pub(crate) async fn metric_becomes(http: &reqwest::Client, admin: SocketAddr, name: &str, labels: &str, wanted: f64) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = metric(http, admin, name, labels).await;
        if (now - wanted).abs() < 0.5 {
            return;
        }
        assert!(Instant::now() < deadline, "{name}{{{labels}}} is {now}, not {wanted}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
