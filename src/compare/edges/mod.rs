//! The edges: nginx and HAProxy configurations as small templates, rendered with pod addresses, and the running edge.
//!
//! A template says only what differs from the common one, so that two edges can be told apart by reading; what was
//! rendered is kept beside the results, so that it can be diffed.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use minijinja::{Environment, UndefinedBehavior, context};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::stack::guardian::Spawn;
use super::stack::processes::Guardian;
use super::stack::services::{Running, Service, free_port, until_serving};

/// What stands between clients and pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Edge {
    /// Nothing: the generator spreads its connections over the pods round robin. The control.
    Direct,
    /// nginx, round robin.
    NginxRr,
    /// nginx, `least_conn`.
    NginxLeastConn,
    /// nginx, `random two least_conn`.
    NginxRandomTwo,
    /// nginx, round robin, HTTP/1.0 to the pods.
    NginxHttp10,
    /// nginx, round robin, gzip for event streams.
    NginxGzip,
    /// HAProxy, `leastconn`, with `option http-no-delay`.
    HaproxyLeastconn,
    /// HAProxy, `leastconn`, without `option http-no-delay`.
    HaproxyCorked,
}

/// File name → text of every template.
const TEMPLATES: [(&str, &str); 9] = [
    ("nginx.conf", include_str!("nginx.conf")),
    ("nginx-rr.conf", include_str!("nginx-rr.conf")),
    ("nginx-least-conn.conf", include_str!("nginx-least-conn.conf")),
    ("nginx-random-two.conf", include_str!("nginx-random-two.conf")),
    ("nginx-http10.conf", include_str!("nginx-http10.conf")),
    ("nginx-gzip.conf", include_str!("nginx-gzip.conf")),
    ("haproxy.cfg", include_str!("haproxy.cfg")),
    ("haproxy-leastconn.cfg", include_str!("haproxy-leastconn.cfg")),
    ("haproxy-corked.cfg", include_str!("haproxy-corked.cfg")),
];

impl Edge {
    /// All of them, the control first.
    pub const ALL: [Self; 8] = [
        Self::Direct,
        Self::NginxRr,
        Self::NginxLeastConn,
        Self::NginxRandomTwo,
        Self::NginxHttp10,
        Self::NginxGzip,
        Self::HaproxyLeastconn,
        Self::HaproxyCorked,
    ];

    /// Its name in plans, files and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::NginxRr => "nginx-rr",
            Self::NginxLeastConn => "nginx-least-conn",
            Self::NginxRandomTwo => "nginx-random-two",
            Self::NginxHttp10 => "nginx-http10",
            Self::NginxGzip => "nginx-gzip",
            Self::HaproxyLeastconn => "haproxy-leastconn",
            Self::HaproxyCorked => "haproxy-corked",
        }
    }

    /// The server it needs.
    #[must_use]
    pub const fn service(self) -> Option<Service> {
        match self {
            Self::Direct => None,
            Self::HaproxyLeastconn | Self::HaproxyCorked => Some(Service::HaProxy),
            _ => Some(Service::Nginx),
        }
    }

    /// Whether buffering of responses can be switched: nginx only.
    #[must_use]
    pub fn buffers(self) -> bool {
        self.service() == Some(Service::Nginx)
    }

    /// What its balancing method counts, for the report.
    #[must_use]
    pub const fn counts(self) -> &'static str {
        match self {
            Self::Direct => "nothing: connections are dealt out in turn by the generator",
            Self::NginxRr | Self::NginxHttp10 | Self::NginxGzip => "nothing: requests are dealt out in turn",
            Self::NginxLeastConn => "requests in flight per upstream block; every reload starts from zero",
            Self::NginxRandomTwo => "requests in flight of two pods chosen at random; every reload starts from zero",
            Self::HaproxyLeastconn | Self::HaproxyCorked => {
                "sessions per server; servers can be added without a reload"
            }
        }
    }
}

impl fmt::Display for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An edge and its switches.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EdgeConfig {
    /// Which.
    pub edge: Edge,
    /// nginx' `proxy_buffering`.
    pub buffering: bool,
    /// Whether a stream answered 503 is tried on another pod.
    pub retry503: bool,
    /// nginx' `proxy_max_temp_file_size`; none: its default, 1 GiB.
    pub max_temp_file: Option<String>,
    /// A stream (or a pod asked for one) that is silent for this many seconds is given up, and nginx leaves its pod out
    /// for a while. More than a heartbeat, less than the two after which viewers go away by themselves: their hanging up
    /// would be no failure of the pod's, so that a pod that hangs, having the fewest connections, would get them all again.
    pub silence_s: u32,
}

/// One and a half heartbeats, in whole seconds.
#[must_use]
pub fn silence_s(heartbeat: Duration) -> u32 {
    u32::try_from(heartbeat.as_millis() * 3 / 2 / 1_000).unwrap_or(u32::MAX).max(2)
}

impl EdgeConfig {
    /// An edge as recommended: buffering off, 503 rules on.
    #[must_use]
    pub const fn new(edge: Edge) -> Self {
        Self { edge, buffering: false, retry503: true, max_temp_file: None, silence_s: 15 }
    }

    /// The configuration file for these pods (name, address).
    ///
    /// # Errors
    /// When the template is broken, or there is none (`direct`).
    pub fn render(&self, pods: &[(String, String)], port: u16, folder: &Path) -> anyhow::Result<String> {
        self.render_with(pods, port, None, folder)
    }

    /// The same, with its status on a port of its own (`--observe`).
    fn render_with(
        &self,
        pods: &[(String, String)],
        port: u16,
        status: Option<u16>,
        folder: &Path,
    ) -> anyhow::Result<String> {
        let mut env = Environment::new();
        env.set_undefined_behavior(UndefinedBehavior::Strict);
        for (name, text) in TEMPLATES {
            env.add_template(name, text)?;
        }
        let ending = match self.edge.service() {
            Some(Service::Nginx) => "conf",
            Some(_) => "cfg",
            None => bail!("direct has no configuration"),
        };
        let pods: Vec<_> = pods.iter().map(|(name, address)| context!(name, address)).collect();
        let values = context! {
            pods, port, status,
            folder => folder.display().to_string(),
            root => nix::unistd::geteuid().is_root(),
            connections => connections(),
            sessions => connections() / 2 - 100, // HAProxy counts clients alone, nginx both sides
            buffering => if self.buffering { "on" } else { "off" },
            retry503 => self.retry503,
            max_temp_file => self.max_temp_file,
            silence => self.silence_s,
        };
        let mut text = env.get_template(&format!("{}.{ending}", self.edge))?.render(values)?;
        text.push('\n');
        Ok(text)
    }
}

/// Connections an edge may hold: two sockets per stream, within the open-files limit.
fn connections() -> u64 {
    let (soft, _) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap_or((1_024, 0));
    soft.saturating_sub(64).clamp(1_024, 32_768)
}

/// An edge that serves.
#[derive(Debug)]
pub struct RunningEdge {
    /// Its server.
    pub server: Running,
    config: EdgeConfig,
    folder: PathBuf,
    file: PathBuf,
}

impl RunningEdge {
    /// Starts it in a folder of its own below the guardian's; none for `direct`. With `status` it tells how it is on
    /// that port: nginx' `stub_status`, HAProxy's own metrics.
    ///
    /// # Errors
    /// When the server is not installed, refuses its configuration, or does not serve.
    pub async fn start(
        guardian: &Guardian,
        config: &EdgeConfig,
        pods: &[(String, String)],
        status: Option<u16>,
        cpus: &[usize],
    ) -> anyhow::Result<Option<Self>> {
        let Some(service) = config.edge.service() else { return Ok(None) };
        let port = free_port()?;
        let folder = guardian.folder().join(format!("edge-{port}"));
        std::fs::create_dir_all(&folder)?;
        let file = folder.join("edge.conf");
        std::fs::write(&file, config.render_with(pods, port, status, &folder)?)?;
        let program = service.require()?;
        let (args, log) = (arguments(service, &folder, &file), folder.join("log"));
        let process = guardian.spawn(Spawn { program, args, log, cpus: cpus.to_vec(), ..Spawn::default() }).await?;
        until_serving(config.edge.name(), &process, port, b"").await?;
        let server = Running { process, url: format!("http://127.0.0.1:{port}"), port, status_port: status };
        Ok(Some(Self { server, config: config.clone(), folder, file }))
    }

    /// The name under which its configuration is kept beside the results: one per combination of switches.
    #[must_use]
    pub fn file_name(&self) -> String {
        let EdgeConfig { edge, buffering, retry503, max_temp_file, silence_s } = &self.config;
        let ending = if edge.buffers() { "conf" } else { "cfg" };
        let mut name = edge.name().to_owned();
        if edge.buffers() {
            name.push_str(if *buffering { "-buffering-on" } else { "-buffering-off" });
        }
        if !retry503 {
            name.push_str("-no-503-rule");
        }
        if let Some(size) = max_temp_file {
            name.push_str(&format!("-temp-{size}"));
        }
        if *silence_s != EdgeConfig::new(*edge).silence_s {
            name.push_str(&format!("-silence-{silence_s}s"));
        }
        format!("{name}.{ending}")
    }

    /// The configuration it runs with.
    ///
    /// # Errors
    /// When the file is gone.
    pub fn rendered(&self) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(&self.file)?)
    }

    /// `nginx` or `haproxy`.
    #[must_use]
    pub fn program(&self) -> &'static str {
        self.config.edge.service().map_or("edge", |service| service.programs()[0])
    }

    /// The folder nginx spills responses into.
    #[must_use]
    pub fn spill(&self) -> PathBuf {
        self.folder.join("proxy")
    }

    /// Makes it know these pods: nginx by a reload (its counters start from zero), HAProxy through its runtime socket.
    /// Returns what was done, in words.
    ///
    /// # Errors
    /// When the edge does not take them.
    pub async fn set_pods(&self, guardian: &Guardian, pods: &[(String, String)]) -> anyhow::Result<&'static str> {
        let before = self.rendered()?;
        let Running { port, status_port, .. } = self.server;
        std::fs::write(&self.file, self.config.render_with(pods, port, status_port, &self.folder)?)?;
        if self.config.edge.service() == Some(Service::Nginx) {
            guardian.signal(self.server.process.pid, Signal::SIGHUP).await?;
            return Ok("edge reloaded");
        }
        for (name, address) in pods.iter().filter(|(_, address)| !before.contains(address.as_str())) {
            for backend in ["api", "streams", "stomp"] {
                self.runtime(&format!("add server {backend}/{name} {address}; enable server {backend}/{name}")).await?;
            }
        }
        Ok("servers added at run time")
    }

    /// One command line to HAProxy's runtime socket; anything but the words it answers on success is an error.
    async fn runtime(&self, command: &str) -> anyhow::Result<()> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let socket = self.folder.join("haproxy.sock");
        let mut stream = tokio::net::UnixStream::connect(&socket).await.context("haproxy's runtime socket")?;
        stream.write_all(format!("{command}\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let answer = answer.trim();
        if answer.is_empty() || answer == "New server registered." {
            Ok(())
        } else {
            bail!("haproxy: {command}: {answer}")
        }
    }

    /// Ends it and waits for its end.
    pub async fn stop(mut self, guardian: &Guardian) {
        // nginx' SIGTERM and HAProxy's SIGTERM both end at once; streams are cut, which is what the end of a cell wants.
        if guardian.signal(self.server.process.pid, Signal::SIGTERM).await.is_ok() {
            let ended = tokio::time::timeout(Duration::from_secs(2), self.server.process.wait()).await;
            if ended.is_err() {
                let _ = guardian.signal(self.server.process.pid, Signal::SIGKILL).await;
            }
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn arguments(service: Service, folder: &Path, file: &Path) -> Vec<String> {
    let (folder, file) = (folder.display().to_string(), file.display().to_string());
    match service {
        Service::Nginx => ["-p", &folder, "-e", "stderr", "-c", &file].map(String::from).to_vec(),
        _ => ["-db", "-f", &file].map(String::from).to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods() -> Vec<(String, String)> {
        vec![("pod-1".into(), "127.0.0.1:4001".into()), ("pod-2".into(), "127.0.0.1:4002".into())]
    }

    fn every() -> impl Iterator<Item = EdgeConfig> {
        Edge::ALL.into_iter().filter(|edge| edge.service().is_some()).flat_map(|edge| {
            [(true, true, None), (false, false, None), (true, true, Some("0"))].map(|(buffering, retry503, temp)| {
                EdgeConfig { buffering, retry503, max_temp_file: temp.map(String::from), ..EdgeConfig::new(edge) }
            })
        })
    }

    /// With a status port, as `--observe` has it.
    fn told(config: &EdgeConfig, folder: &Path) -> String {
        config.render_with(&pods(), free_port().unwrap(), Some(free_port().unwrap()), folder).unwrap()
    }

    #[test]
    fn the_real_servers_accept_every_edge() {
        for config in every() {
            let service = config.edge.service().unwrap();
            let Some(program) = service.find() else { continue };
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("edge.conf");
            std::fs::write(&file, told(&config, folder.path())).unwrap();
            let mut args = arguments(service, folder.path(), &file);
            args.insert(0, if service == Service::Nginx { "-t" } else { "-c" }.into());
            let out = std::process::Command::new(program).args(args).output().unwrap();
            let said = String::from_utf8_lossy(&out.stderr).into_owned() + &String::from_utf8_lossy(&out.stdout);
            assert!(out.status.success() && !said.contains("warn") && !said.contains("WARN"), "{config:?}: {said}");
        }
    }

    #[test]
    fn a_like_is_never_repeated_because_of_an_answer() {
        for config in every() {
            let text = config.render(&pods(), 1, Path::new("/tmp/x")).unwrap();
            let (begin, end) = match config.edge.service() {
                Some(Service::Nginx) => ("location / {", "location @stream"),
                _ => ("\nbackend api", "\nbackend streams"),
            };
            let likes = &text[text.find(begin).unwrap()..text.find(end).unwrap()];
            assert!(!likes.contains("503") && likes.contains("conn") | likes.contains("error timeout;"), "{likes}");
            let streams = &text[text.find(end).unwrap()..];
            assert_eq!(streams.contains("http_503") || streams.contains("conn-failure 503"), config.retry503);
        }
    }

    #[test]
    fn a_variant_differs_only_where_it_says() {
        let lines = |edge| {
            let text = EdgeConfig::new(edge).render(&pods(), 1, Path::new("/tmp/x")).unwrap();
            text.lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>()
        };
        let plain = lines(Edge::NginxRr);
        let extra = |edge| lines(edge).into_iter().filter(|line| !plain.contains(line)).collect::<Vec<_>>();
        assert_eq!(extra(Edge::NginxLeastConn), ["least_conn;"; 3]);
        assert_eq!(extra(Edge::NginxRandomTwo), ["random two least_conn;"; 3]);
        assert_eq!(extra(Edge::NginxHttp10), ["proxy_http_version 1.0;"]);
        assert_eq!(extra(Edge::NginxGzip).len(), 4);
    }
}
