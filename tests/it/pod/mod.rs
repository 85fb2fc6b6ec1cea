//! Pods on port 0 in this process, spoken to by independent clients (reqwest, tungstenite, raw sockets).

use std::net::SocketAddr;

use clap::Parser;
use pushlab::serve::{Config, Drained, build};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::pod_process::{self, PATIENCE, PodProcess};

mod abuse;
mod auth;
mod auth_streams;
mod canary;
mod client;
mod conformance;
mod cycles;
mod database;
mod dying;
mod guarded;
mod handshake;
mod hostile;
mod http;
mod leaving;
mod likes;
mod origin;
mod process;
mod rates;
mod raw;
mod real;
mod relay;
mod resume;
mod roles;
mod scrape;
mod sse;
mod stomp;
mod streams;
mod timeouts;
mod tls;
pub(crate) mod tokens;
mod traces;
mod writing;

#[derive(Debug, Parser)]
struct Cli {
    #[command(flatten)]
    config: Config,
}

/// Pods that share a database and a broker; ended when dropped.
struct TestPods {
    /// Public addresses.
    addresses: Vec<SocketAddr>,
    /// Admin addresses.
    admins: Vec<SocketAddr>,
    /// STOMP over TCP, in the conformance mode.
    stomp_addresses: Vec<Option<SocketAddr>>,
    shutdown: CancellationToken,
    running: Vec<JoinHandle<anyhow::Result<Drained>>>,
    http: reqwest::Client,
    _folder: tempfile::TempDir,
}

impl TestPods {
    /// One embedded pod, unless `flags` say otherwise.
    async fn start(flags: &[&str]) -> Self {
        Self::try_start(flags).await.unwrap()
    }

    /// The same, or why not.
    async fn try_start(flags: &[&str]) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().unwrap();
        let database = format!("sqlite:{}", folder.path().join("likes.db").display());
        let fixed = ["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
        let mut line: Vec<&str> = fixed.to_vec();
        let defaults = [
            ("--database-url", database.as_str()),
            ("--nats-url", "local"),
            ("--drain", "200ms"),
            ("--drain-grace", "0"),
        ];
        for (flag, value) in defaults {
            if !flags.contains(&flag) {
                line.extend([flag, value]);
            }
        }
        line.extend(flags);
        let config = Cli::try_parse_from(line).unwrap().config;
        let pods = build(&config).await?;
        let shutdown = CancellationToken::new();
        let addresses = pods.iter().map(pushlab::serve::Pod::address).collect();
        let admins = pods.iter().map(pushlab::serve::Pod::admin_address).collect();
        let stomp_addresses = pods.iter().map(pushlab::serve::Pod::stomp_address).collect();
        let running = pods.into_iter().map(|pod| tokio::spawn(pod.run(shutdown.clone()))).collect();
        Ok(Self {
            addresses,
            admins,
            stomp_addresses,
            shutdown,
            running,
            http: reqwest::Client::new(),
            _folder: folder,
        })
    }

    /// The same helpers for a pod that is a process of its own.
    fn of(process: &PodProcess) -> Self {
        Self {
            addresses: vec![process.listen],
            admins: vec![process.admin],
            stomp_addresses: vec![None],
            shutdown: CancellationToken::new(),
            running: Vec::new(),
            http: reqwest::Client::new(),
            _folder: tempfile::tempdir().unwrap(),
        }
    }

    fn url(&self, pod: usize, path: &str) -> String {
        format!("http://{}{path}", self.addresses[pod])
    }

    /// A new post's id.
    async fn post(&self) -> u64 {
        pod_process::new_post(&self.http, self.addresses[0]).await
    }

    /// +1 on this pod; the answer.
    async fn like(&self, pod: usize, post: u64) -> Value {
        let answer = self.http.post(self.url(pod, &format!("/posts/{post}/likes"))).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        answer.json().await.unwrap()
    }

    /// A metric of a pod, summed over its series that contain `labels`.
    async fn metric(&self, pod: usize, name: &str, labels: &str) -> f64 {
        pod_process::metric(&self.http, self.admins[pod], name, labels).await
    }

    /// Waits until the metric is `wanted`.
    async fn metric_becomes(&self, pod: usize, name: &str, labels: &str, wanted: f64) {
        pod_process::metric_becomes(&self.http, self.admins[pod], name, labels, wanted).await;
    }

    /// As SIGTERM would.
    fn stop(&self) {
        self.shutdown.cancel();
    }

    /// What became of the pods.
    async fn ended(mut self) -> Vec<Drained> {
        let mut all = Vec::new();
        for pod in std::mem::take(&mut self.running) {
            all.push(tokio::time::timeout(PATIENCE, pod).await.expect("the pod ends").unwrap().unwrap());
        }
        all
    }
}

impl Drop for TestPods {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}
