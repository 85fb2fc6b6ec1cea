//! A real Prometheus beside the local stack, below the guardian, and the exporters of what speaks no Prometheus itself.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::json;
use sqlx::{Connection, Executor};

use super::api::Api;
use super::nats::Translator;
use crate::compare::stack::guardian::Spawn;
use crate::compare::stack::processes::{Guardian, Process};
use crate::compare::stack::services::{Running, Service, free_port, until_serving};
use crate::compare::stack::{Deployment, Stack};

/// Seconds between two scrapes.
pub const SCRAPE_S: u32 = 1;

/// The namespace that every target of the local stack is labelled with.
pub const NAMESPACE: &str = "local";

/// The scrape jobs, as the dashboards know them.
const JOBS: [&str; 7] = ["pushlab", "pushlab-load", "nats", "nginx", "haproxy", "mysql", "process"];

/// A new pod is found by Prometheus within 5 s (its discovery's own beat), then scraped once per second.
const PATIENCE: Duration = Duration::from_secs(20);

/// A Prometheus that watches a stack.
#[derive(Debug)]
pub struct Observer {
    /// The server.
    pub server: Running,
    /// The same, to be asked.
    pub api: Api,
    /// Exporters that last for the whole plan: job → its address.
    exporters: BTreeMap<&'static str, String>,
    /// Their processes, and names.
    processes: Vec<(String, Process)>,
    /// NATS' metrics.
    nats: Option<Translator>,
    /// Where lists of targets are.
    folder: PathBuf,
    /// Where nginx and HAProxy are to tell how they are.
    status_port: u16,
    /// What could not be had, one sentence each.
    pub missing: Vec<String>,
}

impl Observer {
    /// Starts Prometheus with these rule files (name, text), and an exporter for each server of the stack that has one.
    ///
    /// # Errors
    /// When Prometheus is not installed, with the line that installs it, or something does not serve.
    pub async fn start(stack: &Stack, rules: &[(&str, &str)]) -> anyhow::Result<Self> {
        let program = Service::Prometheus.require()?;
        let (guardian, cpus) = (&stack.guardian, &stack.cpus.stack);
        let folder = guardian.folder().join("prometheus");
        std::fs::create_dir_all(folder.join("targets"))?;
        std::fs::create_dir_all(folder.join("rules"))?;
        for (name, text) in rules {
            std::fs::write(folder.join("rules").join(name), text)?;
        }
        std::fs::write(folder.join("prometheus.yml"), serde_json::to_vec_pretty(&config())?)?;
        let port = free_port()?;
        let args = vec![
            format!("--config.file={}", folder.join("prometheus.yml").display()),
            format!("--storage.tsdb.path={}", folder.join("data").display()),
            format!("--web.listen-address=127.0.0.1:{port}"),
            "--web.enable-remote-write-receiver".into(),
            // Its default is 5 s, on top of the 5 s of the discovery itself.
            "--scrape.discovery-reload-interval=100ms".into(),
        ];
        let log = guardian.folder().join("prometheus.log");
        let process = guardian.spawn(Spawn { program, args, log, cpus: cpus.clone(), ..Spawn::default() }).await?;
        until_serving("prometheus", &process, port, b"").await?;
        let url = format!("http://127.0.0.1:{port}");
        let api = Api::new(&url)?;
        let server = Running { process, url, port, status_port: None };
        let mut observer = Self {
            server,
            api,
            exporters: BTreeMap::new(),
            processes: Vec::new(),
            nats: None,
            folder,
            status_port: free_port()?,
            missing: Vec::new(),
        };
        observer.export(stack).await?;
        observer.targets(BTreeMap::new())?;
        Ok(observer)
    }

    /// Starts the exporters of broker, database and nginx, each if it is installed.
    async fn export(&mut self, stack: &Stack) -> anyhow::Result<()> {
        let guardian = &stack.guardian;
        if let Some(monitor) = stack.nats.as_ref().and_then(|nats| nats.status_port) {
            let nats = Translator::start(format!("http://127.0.0.1:{monitor}")).await?;
            self.exporters.insert("nats", nats.address.clone());
            self.nats = Some(nats);
        }
        if let Some(database) = &stack.database {
            let file = self.folder.join("exporter.cnf");
            let text = format!("[client]\nuser=exporter\npassword=exporter\nhost=127.0.0.1\nport={}\n", database.port);
            std::fs::write(&file, text)?;
            grant(&database.url).await.context("the database's exporter gets no access")?;
            let args = |port: u16| {
                vec![
                    format!("--web.listen-address=127.0.0.1:{port}"),
                    format!("--config.my-cnf={}", file.display()),
                    "--no-collect.slave_status".into(),
                ]
            };
            let service = Service::MysqldExporter;
            self.exporter(guardian, service, "mysql", args, BTreeMap::new(), &stack.cpus.stack).await?;
        }
        if Service::Nginx.find().is_some() {
            let status = format!("http://127.0.0.1:{}/stub_status", self.status_port);
            let args = |port: u16| {
                let listen = format!("127.0.0.1:{port}");
                ["-web.listen-address", &listen, "-nginx.scrape-uri", &status].map(String::from).to_vec()
            };
            // An nginx comes and goes with each cell; the exporter asks until the first is there.
            let retries = BTreeMap::from([
                ("NGINX_RETRIES".to_owned(), "1000000".to_owned()),
                ("NGINX_RETRY_INTERVAL".to_owned(), "200ms".to_owned()),
            ]);
            let service = Service::NginxExporter;
            self.exporter(guardian, service, "nginx", args, retries, &stack.cpus.stack).await?;
        }
        let file = self.folder.join("processes.json");
        std::fs::write(&file, serde_json::to_vec(&processes())?)?;
        let args = |port: u16| {
            let listen = format!("127.0.0.1:{port}");
            let config = file.display().to_string();
            let flags = ["-recheck", "-threads=false", "-gather-smaps=false", "-children=false"];
            let named = ["-web.listen-address", &listen, "-config.path", &config];
            named.into_iter().chain(flags).map(String::from).collect()
        };
        let service = Service::ProcessExporter;
        self.exporter(guardian, service, "process", args, BTreeMap::new(), &stack.cpus.stack).await?;
        Ok(())
    }

    async fn exporter(
        &mut self,
        guardian: &Guardian,
        service: Service,
        job: &'static str,
        args: impl FnOnce(u16) -> Vec<String>,
        env: BTreeMap<String, String>,
        cpus: &[usize],
    ) -> anyhow::Result<()> {
        let name = service.programs()[0];
        let Some(program) = service.find() else {
            self.missing.push(format!("Nothing of {job}: {name} is not installed ({}).", service.install()));
            return Ok(());
        };
        let port = free_port()?;
        let log = guardian.folder().join(format!("{name}.log"));
        let spawn = Spawn { program, args: args(port), env, log, cpus: cpus.to_vec(), ..Spawn::default() };
        let process = guardian.spawn(spawn).await?;
        if job != "nginx" {
            until_serving(name, &process, port, b"").await?;
        }
        self.exporters.insert(job, format!("127.0.0.1:{port}"));
        self.processes.push((name.to_owned(), process));
        Ok(())
    }

    /// Where an edge is to tell how it is.
    #[must_use]
    pub const fn status_port(&self) -> u16 {
        self.status_port
    }

    /// (name, process) of everything that only watches.
    pub fn watched(&self) -> impl Iterator<Item = (String, i32)> {
        let own = std::iter::once(("prometheus".to_owned(), self.server.process.pid));
        own.chain(self.processes.iter().map(|(name, process)| (name.clone(), process.pid)))
    }

    /// Scrapes this deployment, and the generator at `load`, a few seconds from now.
    ///
    /// # Errors
    /// When the lists of targets cannot be written.
    pub fn aim(&self, deployment: &Deployment, load: &str) -> anyhow::Result<()> {
        let mut of: BTreeMap<&str, Vec<(String, String)>> = BTreeMap::new();
        let pods = deployment.pods.iter().map(|pod| (pod.name.clone(), pod.admin.clone()));
        of.insert("pushlab", pods.collect());
        of.insert("pushlab-load", vec![("load".to_owned(), load.to_owned())]);
        let edge = deployment.edge.as_ref().map(|edge| edge.program());
        if edge == Some("haproxy") {
            of.insert("haproxy", vec![("haproxy".to_owned(), format!("127.0.0.1:{}", self.status_port))]);
        }
        for (job, address) in &self.exporters {
            if *job != "nginx" || edge == Some("nginx") {
                of.insert(job, vec![((*job).to_owned(), address.clone())]);
            }
        }
        self.targets(of)
    }

    /// The same, and waits until every pod was scraped.
    ///
    /// # Errors
    /// When a pod is not scraped in time: which one, and why.
    pub async fn watch(&self, deployment: &Deployment, load: &str) -> anyhow::Result<()> {
        self.aim(deployment, load)?;
        let begun = Instant::now();
        loop {
            let scraped = self.api.targets().await?;
            let waits = deployment.pods.iter().find_map(|pod| {
                let own = scraped.iter().find(|target| target.labels.get("instance") == Some(&pod.admin));
                let own = own.filter(|target| target.labels["job"] == "pushlab");
                match own {
                    Some(target) if target.health == "up" => None,
                    Some(target) => Some(format!("{} is {}: {}", pod.name, target.health, target.last_error)),
                    None => Some(format!("{} is not known to it", pod.name)),
                }
            });
            match waits {
                None => return Ok(()),
                Some(why) if begun.elapsed() > PATIENCE => bail!("Prometheus does not scrape: {why}"),
                Some(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// Scrapes only what lasts: the cell is over.
    ///
    /// # Errors
    /// When the lists cannot be written.
    pub fn rest(&self) -> anyhow::Result<()> {
        let lasting = self.exporters.iter().filter(|(job, _)| **job != "nginx");
        self.targets(lasting.map(|(job, address)| (*job, vec![((*job).to_owned(), address.clone())])).collect())
    }

    /// Job → (pod, address) of its targets; a job that is not named has none.
    fn targets(&self, mut of: BTreeMap<&str, Vec<(String, String)>>) -> anyhow::Result<()> {
        for job in JOBS {
            let all = of.remove(job).unwrap_or_default().into_iter();
            let all: Vec<_> = all
                .map(|(pod, address)| json!({"targets": [address], "labels": {"namespace": NAMESPACE, "pod": pod}}))
                .collect();
            let file = self.folder.join("targets").join(format!("{job}.json"));
            let part = file.with_extension("part");
            std::fs::write(&part, serde_json::to_vec(&all)?)?;
            std::fs::rename(part, file)?;
        }
        Ok(())
    }
}

/// Prometheus' configuration (JSON is YAML); paths are relative to its file.
fn config() -> serde_json::Value {
    let every = format!("{SCRAPE_S}s");
    let job = |job: &str| {
        // Its exporter reads every process of the machine, which takes its time where many run.
        let every = if job == "process" { "2s" } else { every.as_str() };
        json!({
            "job_name": job,
            "scrape_interval": every,
            "scrape_timeout": every,
            "file_sd_configs": [{"files": [format!("targets/{job}.json")], "refresh_interval": "1s"}],
        })
    };
    json!({
        "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
        "rule_files": ["rules/*"],
        "scrape_configs": JOBS.map(job),
    })
}

/// What the process exporter counts (JSON is YAML): an nginx that was reloaded keeps its old workers while they have
/// streams. It sees every nginx of this machine.
fn processes() -> serde_json::Value {
    json!({"process_names": [
        {"name": "nginx-old", "cmdline": ["^nginx: worker process is shutting down"]},
        {"name": "nginx-worker", "cmdline": ["^nginx: worker process"]},
        {"name": "haproxy", "comm": ["haproxy"]},
    ]})
}

/// A user for the exporter: those of newer versions refuse one without a password.
async fn grant(url: &str) -> anyhow::Result<()> {
    let mut database = sqlx::MySqlConnection::connect(url).await?;
    for statement in [
        "create user if not exists 'exporter'@'127.0.0.1' identified by 'exporter'",
        "grant process, replication client, select on *.* to 'exporter'@'127.0.0.1'",
    ] {
        database.execute(statement).await?;
    }
    Ok(database.close().await?)
}
