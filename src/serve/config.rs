//! What a pod is told: flags, `PUSHLAB_*` variables, and the ecosystem's own `DATABASE_URL` and `NATS_URL`.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use clap::ValueEnum;

use super::auth::AuthConfig;
use super::likes::FailAt;
use super::rates::RateConfig;
use super::tls::TlsConfig;
use crate::store::WriteStrategy;

/// Options of `pushlab serve`. Durations are written `20ms`, `30s`, `5m`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "On start one JSON line per pod goes to stdout once it is ready to serve: \
    {\"pod\":\"pod-1\",\"listen\":\"127.0.0.1:41234\",\"admin\":\"127.0.0.1:41235\"}. Logs go to stderr (RUST_LOG). \
    SIGTERM drains; a second one ends the process at once. SIGHUP reads --log-filter-file again. Traces are exported by OTLP \
    when OTEL_EXPORTER_OTLP_ENDPOINT is set (docs/tracing.md).")]
pub struct Config {
    /// Public address: API, SSE and STOMP on one port (port 0: any free one, announced on stdout)
    #[arg(long, env = "PUSHLAB_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,

    /// Address of /livez, /readyz, /metrics and /debug/connections: keep it private
    #[arg(long, env = "PUSHLAB_ADMIN_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:9090")]
    pub admin_listen: SocketAddr,

    /// Where likes are kept: mysql://user:password@host/database (MySQL, MariaDB) or sqlite:PATH (embedded)
    #[arg(long, env = "DATABASE_URL", value_name = "URL", default_value = "sqlite:pushlab.db", hide_env_values = true)]
    pub database_url: String,

    /// What carries events between pods: nats://host:4222, or `local` for pods of this one process
    #[arg(long, env = "NATS_URL", value_name = "URL", default_value = "local", hide_env_values = true)]
    pub nats_url: String,

    /// How long a pod waits at its start for a database and a broker that are starting too
    #[arg(long, env = "PUSHLAB_START_TIMEOUT", value_name = "DURATION", value_parser = duration, default_value = "10s")]
    pub start_timeout: Duration,

    /// How a like is written. All but `pessimistic` need MariaDB or MySQL
    #[arg(long, env = "PUSHLAB_WRITE", value_name = "STRATEGY", value_enum, default_value = "pessimistic")]
    pub write: WriteStrategy,

    /// When an event is published. `outbox` needs MariaDB 10.6 or MySQL 8, and a NATS with JetStream (nats-server -js)
    #[arg(long, env = "PUSHLAB_PUBLISH", value_name = "WHEN", value_enum, default_value = "after-commit")]
    pub publish: Publish,

    /// What this pod serves
    #[arg(
        long,
        env = "PUSHLAB_ROLES",
        value_name = "ROLES",
        value_enum,
        value_delimiter = ',',
        default_value = "api,sse,stomp"
    )]
    pub roles: Vec<Role>,

    /// Name in `X-Pushlab-Pod` and in logs; with --pods N it is the first pod's and the others count on
    #[arg(long, env = "PUSHLAB_POD_NAME", value_name = "NAME", default_value = "pod-1")]
    pub pod_name: String,

    /// Embedded: this many pods in one process, with the same database and broker (other ports follow the first; 0 stays 0)
    #[arg(long, env = "PUSHLAB_PODS", value_name = "N", default_value = "1")]
    pub pods: NonZeroUsize,

    /// Sends a heart-beat when a connection was silent this long (SSE comment, STOMP end-of-line); 0 sends none
    #[arg(long, env = "PUSHLAB_HEARTBEAT", value_name = "DURATION", value_parser = duration, default_value = "10s")]
    pub heartbeat: Duration,

    /// After SIGTERM open streams are ended one by one over this time
    #[arg(long, env = "PUSHLAB_DRAIN", value_name = "DURATION", value_parser = duration, default_value = "20s")]
    pub drain: Duration,

    /// After SIGTERM the pod answers on for this long, refusing new streams, so that the edge stops choosing it
    #[arg(long, env = "PUSHLAB_DRAIN_GRACE", value_name = "DURATION", value_parser = duration, default_value = "2s")]
    pub drain_grace: Duration,

    /// Whether streams carry `X-Accel-Buffering: no` (tells nginx not to buffer this answer)
    #[arg(long, env = "PUSHLAB_ACCEL_BUFFERING", value_enum, default_value = "no")]
    pub accel_buffering: AccelBuffering,

    /// How a stream that cannot be served now is answered: 503 (an edge sends it elsewhere), or a delayed, ended 200
    #[arg(long, env = "PUSHLAB_BUSY_STREAM", value_enum, default_value = "refuse")]
    pub busy_stream: BusyStream,

    /// Ends a stream at this age (± 20 %), so that pods rebalance; 0 never does
    #[arg(long, env = "PUSHLAB_MAX_AGE", value_name = "DURATION", value_parser = duration, default_value = "0")]
    pub max_age: Duration,

    /// Streams this pod holds at most; more are refused
    #[arg(long, env = "PUSHLAB_MAX_CONNECTIONS", value_name = "N", default_value = "100000")]
    pub max_connections: usize,

    /// TCP connections of requests, idle ones included, this pod holds at most; more are answered 503 and closed
    #[arg(long, env = "PUSHLAB_MAX_HTTP_CONNECTIONS", value_name = "N", default_value = "10000")]
    pub max_http_connections: usize,

    /// Threads that write to viewers
    #[arg(long, env = "PUSHLAB_ENGINE_THREADS", value_name = "N", default_value = "1")]
    pub engine_threads: NonZeroUsize,

    /// Pins every thread of this process to these cores, e.g. `1` or `0-2,5` (default: no pinning)
    #[arg(long, env = "PUSHLAB_CPUS", value_name = "LIST")]
    pub cpus: Option<CpuList>,

    /// Whether quiet posts are read again now and then, which heals events lost by the broker
    #[arg(long, env = "PUSHLAB_ANTI_ENTROPY", value_enum, default_value = "on")]
    pub anti_entropy: Switch,

    /// How events reach STOMP sessions: by one broker connection per pod, or by one per session (SSE always has the first)
    #[arg(long, env = "PUSHLAB_FANOUT", value_enum, default_value = "hub")]
    pub fanout: Fanout,

    /// What a viewer is given that comes back with the last version it saw (Last-Event-ID, or `last-version` in SUBSCRIBE)
    #[arg(long, env = "PUSHLAB_RESUME", value_enum, default_value = "snapshot")]
    pub resume: ResumePolicy,

    /// With --resume replay: events kept per watched post (40 bytes each); whoever missed more gets the state
    #[arg(long, env = "PUSHLAB_REPLAY_DEPTH", value_name = "N", default_value = "128", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub replay_depth: u16,

    /// What happens to updates that a viewer is too slow for
    #[arg(long, env = "PUSHLAB_MAILBOX", value_enum, default_value = "conflate")]
    pub mailbox: MailboxPolicy,

    /// With --mailbox drop-oldest or disconnect: updates that may wait for a viewer, per post
    #[arg(long, env = "PUSHLAB_MAILBOX_DEPTH", value_name = "N", default_value = "64")]
    pub mailbox_depth: NonZeroUsize,

    /// A change waits this long for newer ones of its post, so that fewer are sent; 0 sends at once
    #[arg(long, env = "PUSHLAB_FLUSH", value_name = "DURATION", value_parser = duration, default_value = "0")]
    pub flush: Duration,

    /// Rows that repairs read per second at most, over one connection of their own; with more posts each is read less often
    #[arg(long, env = "PUSHLAB_ANTI_ENTROPY_RATE", value_name = "ROWS/S", default_value = "2000", value_parser = clap::value_parser!(u32).range(1..))]
    pub anti_entropy_rate: u32,

    /// Ends a viewer that took no byte for this long
    #[arg(long, env = "PUSHLAB_WRITE_TIMEOUT", value_name = "DURATION", value_parser = duration, default_value = "30s")]
    pub write_timeout: Duration,

    /// A stream that its peer ends without a word after at least this silence counts as cut by a proxy (pushlab_timeouts_total, idle_cut); longer than --heartbeat, as streams are silent that long anyhow
    #[arg(long, env = "PUSHLAB_IDLE_CUT", value_name = "DURATION", value_parser = duration, default_value = "15s")]
    pub idle_cut: Duration,

    /// Likes a post of its own through this public URL and watches it over SSE and STOMP: like → view as users have it (metrics pushlab_canary_*). On one pod, or a few
    #[arg(long, env = "PUSHLAB_CANARY", value_name = "URL", value_parser = super::canary::base_url)]
    pub canary: Option<String>,

    /// With --canary: one like per this time
    #[arg(long, env = "PUSHLAB_CANARY_PERIOD", value_name = "DURATION", value_parser = duration, default_value = "10s")]
    pub canary_period: Duration,

    /// With --canary and --auth jwt: file with the canary's token, read again for every like and stream, as tokens are renewed
    #[arg(long, env = "PUSHLAB_CANARY_TOKEN_FILE", value_name = "FILE", requires = "canary")]
    pub canary_token_file: Option<std::path::PathBuf>,

    /// Origins that may open streams and send likes from a browser, besides the pod's own (may be repeated, or one list with commas)
    #[arg(long = "origin", env = "PUSHLAB_ORIGIN", value_name = "ORIGIN", value_delimiter = ',', value_parser = super::origin::exact)]
    pub origins: Vec<String>,

    /// Laboratory only: believe this header to name the user (for PUT and DELETE /posts/{id}/likes/me)
    #[arg(long, env = "PUSHLAB_TRUST_USER_HEADER", value_name = "HEADER")]
    pub trust_user_header: Option<http::HeaderName>,

    /// After the database was restored from a backup: start a new epoch, so that viewers forget the versions they know
    #[arg(long, env = "PUSHLAB_NEW_EPOCH")]
    pub new_epoch: bool,

    /// A file with what to log, as in RUST_LOG and instead of it; SIGHUP reads it again
    #[arg(long, env = "PUSHLAB_LOG_FILTER_FILE", value_name = "FILE")]
    pub log_filter_file: Option<std::path::PathBuf>,

    /// Logs as JSON lines
    #[arg(long, env = "PUSHLAB_LOG_JSON")]
    pub log_json: bool,

    /// For test suites only: /ws/echo, and STOMP as a plain broker (any /topic, /queue or /exchange name, login guest/guest); refused beside production flags
    #[arg(long, env = "PUSHLAB_CONFORMANCE")]
    pub conformance: bool,

    /// With --conformance: STOMP over plain TCP here as well (port 0: any free one, announced on stdout as "stomp")
    #[arg(long, env = "PUSHLAB_CONFORMANCE_STOMP", value_name = "ADDR", requires = "conformance")]
    pub conformance_stomp: Option<SocketAddr>,

    /// Who asks
    #[command(flatten)]
    pub auth: AuthConfig,

    /// How often
    #[command(flatten)]
    pub rates: RateConfig,

    /// Without an edge
    #[command(flatten)]
    pub tls: TlsConfig,

    /// Laboratory only: a broken pod. It answers every stream at once, with 503 or with a 200 that ends
    #[arg(long = "break", env = "PUSHLAB_BREAK", value_enum, value_name = "HOW")]
    pub broken: Option<Broken>,

    /// Writes docs/metrics.md to stdout and ends
    #[arg(long, hide = true)]
    pub describe_metrics: bool,

    /// Laboratory only: the process kills itself at the first like or update that comes to this place
    #[arg(long, env = "PUSHLAB_FAIL_AT", value_enum, value_name = "PLACE", hide = true)]
    pub fail_at: Option<FailAt>,
}

impl Config {
    /// Whether the pod has this role.
    #[must_use]
    pub fn serves(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }
}

/// When an event is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Publish {
    /// Right after the commit; one that is lost there is found by anti-entropy
    AfterCommit,
    /// It is written in the like's own transaction and published until the broker acknowledges it
    Outbox,
}

/// What a pod can serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Posts and likes over HTTP
    Api,
    /// Streams over Server-Sent Events
    Sse,
    /// STOMP over WebSocket
    Stomp,
}

impl Role {
    /// As in `--roles`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Sse => "sse",
            Self::Stomp => "stomp",
        }
    }
}

/// How events reach STOMP sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Fanout {
    /// One broker connection per pod, one subscription per post, fanned out here
    Hub,
    /// A broker connection with its subscriptions per session, as Spring's StompBrokerRelay has; for comparison
    Relay,
}

/// What a viewer is given that comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ResumePolicy {
    /// The newest state, marked as a snapshot
    Snapshot,
    /// The events it missed, one by one, while they are kept; else the newest state
    Replay,
}

/// What happens to updates that a viewer is too slow for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MailboxPolicy {
    /// Only the newest of each post waits
    Conflate,
    /// Some wait; when there are too many the oldest is dropped
    DropOldest,
    /// Some wait; when there are too many the viewer is disconnected and comes back for a snapshot
    Disconnect,
}

/// The header that tells nginx not to buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AccelBuffering {
    /// `X-Accel-Buffering: no`
    No,
    /// No such header
    Unset,
}

/// The answer to a stream that cannot be served now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BusyStream {
    /// 503 + Retry-After
    Refuse,
    /// 200 with `retry:` that ends, given only after the retry time: for use without an edge
    End,
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// On
    On,
    /// Off
    Off,
}

/// How a pod is broken for the laboratory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Broken {
    /// Every stream gets 503 at once
    RefuseFast,
    /// Every stream gets a 200 that ends at once, which makes this the pod with the fewest connections
    #[value(name = "polite-200")]
    Polite200,
}

/// Core numbers, as in `0-2,5`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuList(pub Vec<usize>);

impl std::str::FromStr for CpuList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no list of cores: write for example 1 or 0-2,5");
        let mut cores = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last): (usize, usize) = (first.parse().map_err(|_| bad())?, last.parse().map_err(|_| bad())?);
            if first > last || last >= 1024 {
                return Err(bad());
            }
            cores.extend(first..=last);
        }
        Ok(Self(cores))
    }
}

/// A duration as people write it; a bare `0` is zero.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    humantime::parse_duration(text).map_err(|e| format!("{e}: write for example 20ms, 30s or 5m"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        config: Config,
    }

    #[test]
    fn the_flags_of_the_laboratory_are_understood() {
        let line = "serve --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0 --database-url sqlite:x.db --nats-url local \
            --roles api,sse --pod-name pod-2 --pods 3 --heartbeat 10s --drain 20s --accel-buffering unset \
            --busy-stream end --max-age 0 --max-connections 10 --engine-threads 2 --cpus 0-1,3 --anti-entropy off \
            --resume replay --replay-depth 7 --mailbox drop-oldest --mailbox-depth 9 --flush 20ms \
            --break polite-200 --origin http://a.test --trust-user-header X-User";
        let config = Cli::try_parse_from(line.split_whitespace()).unwrap().config;
        assert_eq!(config.roles, [Role::Api, Role::Sse]);
        assert_eq!(config.cpus, Some(CpuList(vec![0, 1, 3])));
        assert_eq!((config.max_age, config.heartbeat), (Duration::ZERO, Duration::from_secs(10)));
        assert_eq!(config.broken, Some(Broken::Polite200));
        assert_eq!((config.resume, config.replay_depth), (ResumePolicy::Replay, 7));
        assert_eq!((config.mailbox, config.mailbox_depth.get()), (MailboxPolicy::DropOldest, 9));
        assert_eq!(config.flush, Duration::from_millis(20));
    }

    #[test]
    fn a_bad_value_is_answered_with_an_example() {
        for bad in [["serve", "--heartbeat", "ten"], ["serve", "--cpus", "3-1"]] {
            let message = Cli::try_parse_from(bad).unwrap_err().to_string();
            assert!(message.contains("for example"), "{message}");
        }
    }
}
