//! A pod in a process of its own: what it holds is read from outside.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use crate::servers::NatsServer;

/// A pod in a process of its own, so that what is counted is its own. Ended when dropped.
pub(super) struct Child {
    process: std::process::Child,
    pub(super) address: SocketAddr,
    admin: String,
    _folder: tempfile::TempDir,
}

/// What must return.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Held {
    pub(super) descriptors: usize,
    pub(super) threads: usize,
    pub(super) connections: f64,
    pub(super) watched: f64,
    pub(super) subscriptions: u64,
}

impl Child {
    pub(super) fn start(nats: &NatsServer) -> Self {
        pushlab::serve::tls::provide(); // which reqwest looks for
        let folder = tempfile::tempdir().unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_pushlab"))
            .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--nats-url", &nats.url()])
            .args(["--database-url", &format!("sqlite:{}", folder.path().join("likes.db").display())])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said: serde_json::Value = serde_json::from_str(&line).unwrap();
        let address = said["listen"].as_str().unwrap().parse().unwrap();
        let admin = format!("http://{}", said["admin"].as_str().unwrap());
        Self { process, address, admin, _folder: folder }
    }

    pub(super) async fn post(&self) -> u64 {
        let body = serde_json::json!({ "title": "a post" });
        let answer = reqwest::Client::new().post(format!("http://{}/posts", self.address)).json(&body).send();
        answer.await.unwrap().json::<serde_json::Value>().await.unwrap()["id"].as_u64().unwrap()
    }

    pub(super) async fn held(&self, nats: &NatsServer) -> Held {
        let text = reqwest::get(format!("{}/metrics", self.admin)).await.unwrap().text().await.unwrap();
        let sum = |name: &str| {
            let lines = text.lines().filter(|line| line.starts_with(name));
            lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
        };
        let told: serde_json::Value =
            reqwest::get(format!("{}/subsz", nats.monitor())).await.unwrap().json().await.unwrap();
        let count = |what: &str| std::fs::read_dir(format!("/proc/{}/{what}", self.process.id())).unwrap().count();
        Held {
            descriptors: count("fd"),
            threads: count("task"),
            connections: sum("pushlab_connections{"),
            watched: sum("pushlab_watched_posts "),
            subscriptions: told["num_subscriptions"].as_u64().unwrap(),
        }
    }

    pub(super) fn rss_mib(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
