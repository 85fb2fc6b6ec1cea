//! A pod as a process of its own: its memory and its log can be looked at, and signals sent to it.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::TestPods;

/// The process, killed when dropped.
pub(super) struct Outside {
    child: Child,
    /// Its public address.
    pub(super) listen: SocketAddr,
    admin: SocketAddr,
    folder: tempfile::TempDir,
}

impl Outside {
    /// With SQLite and a broker of its own, logging all of ours.
    pub(super) fn start(flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_pushlab"))
            .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--nats-url", "local"])
            .args(["--database-url", &format!("sqlite:{}", folder.path().join("likes.db").display())])
            .args(flags)
            .env("RUST_LOG", "pushlab=trace,info")
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let log = || std::fs::read_to_string(folder.path().join("log")).unwrap();
        let said: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("no start: {}", log()));
        let address = |field: &str| said[field].as_str().unwrap().parse().unwrap();
        let (listen, admin) = (address("listen"), address("admin"));
        Self { child, listen, admin, folder }
    }

    /// The same helpers as for pods of this process.
    pub(super) fn pods(&self) -> TestPods {
        TestPods {
            addresses: vec![self.listen],
            admins: vec![self.admin],
            stomp_addresses: vec![None],
            shutdown: tokio_util::sync::CancellationToken::new(),
            running: Vec::new(),
            http: reqwest::Client::new(),
            _folder: tempfile::tempdir().unwrap(),
        }
    }

    pub(super) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Resident memory now, in MiB.
    pub(super) fn rss(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    }

    /// What it logged so far.
    pub(super) fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.folder.path().join("log")).unwrap()).into_owned()
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
