//! Signals: a pod as a process of its own.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::PATIENCE;
use crate::servers::until;

/// `pushlab serve`, killed when dropped.
struct Process {
    child: Child,
    listen: String,
    admin: String,
    log: Arc<Mutex<String>>,
}

impl Process {
    /// With SQLite and a broker of its own, unless `flags` say otherwise.
    fn start(folder: &Path, flags: &[&str]) -> Self {
        pushlab::serve::tls::provide();
        let database = format!("sqlite:{}", folder.join("likes.db").display());
        let mut command = Command::new(env!("CARGO_BIN_EXE_pushlab"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]).args(flags);
        for (flag, value) in [("--database-url", database.as_str()), ("--nats-url", "local")] {
            if !flags.contains(&flag) {
                command.args([flag, value]);
            }
        }
        command.env_remove("RUST_LOG");
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let lines = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn({
            let log = log.clone();
            move || lines.lines().map_while(Result::ok).for_each(|line| *log.lock().unwrap() += &(line + "\n"))
        });
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said: serde_json::Value = serde_json::from_str(&line).unwrap();
        let url = |field: &str| format!("http://{}", said[field].as_str().unwrap());
        Self { child, listen: url("listen"), admin: url("admin"), log }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    fn logged(&self, part: &str) -> bool {
        self.log.lock().unwrap().contains(part)
    }

    async fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the process does not end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_sigterm_ends_a_drain_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut pod = Process::start(folder.path(), &["--drain", "10m", "--drain-grace", "10m"]);
    let http = reqwest::Client::new();
    let post =
        http.post(format!("{}/posts", pod.listen)).json(&serde_json::json!({ "title": "a" })).send().await.unwrap();
    assert_eq!(post.status(), 201);
    pod.signal(Signal::SIGTERM);
    until("it drains", || pod.logged("draining")).await;
    let ready = http.get(format!("{}/readyz", pod.admin)).send().await.unwrap();
    assert_eq!(ready.status(), 503);
    pod.signal(Signal::SIGTERM);
    assert_eq!(pod.ended().await.code(), Some(130));
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_reads_the_log_filter_again_and_a_bad_one_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("filter");
    std::fs::write(&file, "warn\n").unwrap();
    let mut pod = Process::start(
        folder.path(),
        &["--log-filter-file", file.to_str().unwrap(), "--drain", "0", "--drain-grace", "0"],
    );
    std::fs::write(&file, "pushlab=???").unwrap();
    pod.signal(Signal::SIGHUP);
    until("it says so", || pod.logged("stays as it was") && pod.logged("write for example")).await;
    std::fs::write(&file, "info").unwrap();
    pod.signal(Signal::SIGHUP);
    until("it is read", || pod.logged("was read again")).await;
    assert!(!pod.logged("INFO"), "{}", pod.log.lock().unwrap());
    pod.signal(Signal::SIGTERM);
    assert_eq!(pod.ended().await.code(), Some(0));
    until("what is logged at info is there now", || pod.logged("INFO") && pod.logged("drained")).await;

    let mut pod = Process::start(folder.path(), &["--drain", "0", "--drain-grace", "0"]);
    pod.signal(Signal::SIGHUP);
    until("it says what to do", || pod.logged("--log-filter-file")).await;
    pod.signal(Signal::SIGTERM);
    assert_eq!(pod.ended().await.code(), Some(0));
}
