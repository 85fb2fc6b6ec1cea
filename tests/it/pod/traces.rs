//! Traces over real pods (processes of their own), a real NATS and a real database, received by a collector over OTLP.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use nix::sys::signal::Signal;
use sqlx::{Connection, Executor, MySqlConnection};
use tokio::task::JoinSet;

use super::client::{Next, Stomp};
use crate::collector::{Collector, Seen};
use crate::otelcol::Otelcol;
use crate::pod_process::{PATIENCE, PodProcess};
use crate::servers::{MariaDb, NatsServer, until};

/// A caller's trace and span.
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn pod(name: &str, database: &str, nats: &NatsServer, flags: &[&str], otel: &[(&str, &str)]) -> PodProcess {
    let nats = nats.url();
    let fixed =
        ["--pod-name", name, "--database-url", database, "--nats-url", &nats, "--drain", "200ms", "--drain-grace", "0"];
    PodProcess::with(&[&fixed[..], flags].concat(), otel)
}

fn unix_nanos() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(now.as_nanos()).unwrap()
}

/// A reader of the post's stream who has its first event; it ends with the stream.
async fn sse_viewer(pod: &PodProcess, post: u64) -> reqwest::Response {
    let request = reqwest::Client::new().get(pod.url(&format!("/posts/{post}/likes")));
    let mut stream = request.header("accept", "text/event-stream").send().await.unwrap();
    let mut text = String::new();
    while !text.contains("data:") {
        let piece = tokio::time::timeout(PATIENCE, stream.chunk()).await.expect("a snapshot").unwrap().unwrap();
        text.push_str(std::str::from_utf8(&piece).unwrap());
    }
    stream
}

fn named<'a>(spans: &'a [Seen], name: &str, pod: &str) -> &'a Seen {
    let mut found = spans.iter().filter(|span| span.name == name && span.attributes["pushlab.pod"] == pod);
    let span = found.next().unwrap_or_else(|| panic!("no {name} of {pod}: {spans:#?}"));
    assert!(found.next().is_none(), "more than one {name} of {pod}: {spans:#?}");
    span
}

/// The share of the time between these that lies within one of the spans.
fn covered(spans: &[&Seen], from: u64, to: u64) -> f64 {
    let mut spans: Vec<(u64, u64)> = spans.iter().map(|span| (span.from.max(from), span.to.min(to))).collect();
    spans.sort_unstable();
    let (mut reached, mut within) = (from, 0);
    for (begin, end) in spans {
        within += end.saturating_sub(begin.max(reached));
        reached = reached.max(end);
    }
    within as f64 / (to - from) as f64
}

/// A like on pod-1 in the caller's trace, seen by viewers of both pods; its spans come directly, or through a Collector.
async fn a_like_is_one_trace(protocol: &'static str, stomp: bool, through_otelcol: bool) {
    let (collector, nats, url) = (Collector::start().await, NatsServer::start(), MariaDb::shared().database().await);
    let otelcol = through_otelcol.then(|| Otelcol::start(&collector.endpoint(), protocol));
    let endpoint = otelcol.as_ref().map_or_else(|| collector.endpoint(), |otelcol| otelcol.endpoint(protocol));
    // Nothing is sent before the end: what arrives was flushed by the drain.
    let otel = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
        ("OTEL_BSP_SCHEDULE_DELAY", "600000"),
        ("OTEL_RESOURCE_ATTRIBUTES", "k8s.namespace.name=lab"),
    ];
    let mut pods = [pod("pod-1", &url, &nats, &[], &otel), pod("pod-2", &url, &nats, &[], &otel)];
    let post = pods[0].post().await;
    let mut streams = Vec::new();
    for pod in [0, 1, 1] {
        streams.push(sse_viewer(&pods[pod], post).await);
    }
    let (mut viewer, _) = Stomp::watching(pods[1].listen, post).await;

    // Somebody has the post's row, so that there is a wait to be seen.
    let mut holder = MySqlConnection::connect(&url).await.unwrap();
    holder.execute("begin").await.unwrap();
    let lock = format!("select * from posts where id = {post} for update");
    holder.execute(sqlx::AssertSqlSafe(lock)).await.unwrap();
    let mut liker = Stomp::open(pods[0].listen).await;
    let mut posting = JoinSet::new();
    if stomp {
        let headers = format!("destination:/app/posts.{post}.like\ntraceparent:{PARENT}\ntracestate:vendor=1");
        liker.send(&format!("SEND\n{headers}\n\n\0")).await;
    } else {
        let request = reqwest::Client::new().post(pods[0].url(&format!("/posts/{post}/likes")));
        let request = request.header("traceparent", PARENT).header("tracestate", "vendor=1");
        posting.spawn(async move { assert_eq!(request.send().await.unwrap().status(), 200) });
    }
    // (innodb_trx would tell it plainly, but is not renewed for somebody who reads it ten times per second.)
    let waits = format!(
        "select count(*) from information_schema.processlist where db = '{}' and info like 'select%from posts%for update' \
         and id <> connection_id()",
        url.rsplit('/').next().unwrap()
    );
    let deadline = Instant::now() + PATIENCE;
    let mut watching = MySqlConnection::connect(&url).await.unwrap();
    while sqlx::query_scalar::<_, i64>(sqlx::AssertSqlSafe(waits.clone())).fetch_one(&mut watching).await.unwrap() == 0
    {
        assert!(Instant::now() < deadline, "nobody waits for the row");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let waited_for = unix_nanos();
    holder.execute("commit").await.unwrap();
    posting.join_all().await;
    let Next::Frame(frame) = viewer.next().await else { panic!("closed") };
    assert_eq!(frame.json()["version"], 1);
    for stream in &mut streams {
        let piece = tokio::time::timeout(PATIENCE, stream.chunk()).await.expect("an event").unwrap().unwrap();
        assert!(std::str::from_utf8(&piece).unwrap().contains("\"version\":1"));
    }
    for pod in &pods {
        pod.signal(Signal::SIGTERM);
    }
    drop((viewer, liker, streams));
    for pod in &mut pods {
        assert!(pod.ended().await.success(), "{}", pod.log());
    }

    if let Some(otelcol) = &otelcol {
        until("the Collector sends all on", || collector.of(TRACE).len() >= 8).await;
        let log = otelcol.log();
        assert!(log.lines().filter(|line| line.contains("Trace ID") && line.ends_with(TRACE)).count() == 8, "{log}");
        println!("{log}");
    }
    let spans = collector.of(TRACE);
    let name = if stomp { "SEND /app/posts.{id}.like" } else { "POST /posts/{id}/likes" };
    let root = named(&spans, name, "pod-1");
    assert_eq!(root.parent, SPAN, "the caller's span");
    assert_eq!(root.attributes["http.response.status_code"], "200");
    let of = |name| named(&spans, name, "pod-1");
    let (lock, commit, publish) = (of("lock wait"), of("commit"), of("publish likes"));
    for part in [lock, commit, publish] {
        assert_eq!(part.parent, root.id, "{}", part.name);
    }
    let mut ours = BTreeSet::from([root.id.clone(), lock.id.clone(), commit.id.clone(), publish.id.clone()]);
    let mut writes = Vec::new();
    for (pod, sse, stomp) in [("pod-1", "1", None), ("pod-2", "2", Some("1"))] {
        let (hop, fan_out) = (named(&spans, "receive likes", pod), named(&spans, "fan-out", pod));
        assert_eq!((&hop.parent, &fan_out.parent), (&publish.id, &hop.id), "{pod}");
        assert_eq!(fan_out.attributes["pushlab.writes.sse"], sse, "{pod}");
        assert_eq!(fan_out.attributes.get("pushlab.writes.stomp").map(String::as_str), stomp, "{pod}");
        let first = fan_out.events.iter().filter(|event| event.0 == "first write").map(|event| event.1).min();
        let first = first.expect("a first write");
        assert!(hop.to <= fan_out.from && fan_out.from <= first && first <= fan_out.to, "{pod}: {spans:#?}");
        // It came after it was sent; the sender's clock is the same here.
        assert!((publish.from..=publish.to).contains(&hop.from), "{pod}: {spans:#?}");
        writes.push(first);
        ours.extend([hop.id.clone(), fan_out.id.clone()]);
    }
    // Without a gap from the wait for the row to the publication, and the wait is where it was.
    assert_eq!((lock.to, commit.to), (commit.from, publish.from));
    assert!(lock.from < waited_for && waited_for < lock.to, "{spans:#?}");
    assert!(root.from <= lock.from && commit.to <= root.to, "{spans:#?}");
    // One span per pod and event, whatever the number of viewers; nothing else.
    assert_eq!(spans.iter().map(|span| span.id.clone()).collect::<BTreeSet<_>>(), ours);
    let over = if protocol == "grpc" { "grpc" } else { "http" };
    for span in &spans {
        let said = |key: &str| span.resource.get(key).map(String::as_str);
        assert_eq!((said("service.name"), said("k8s.namespace.name")), (Some("pushlab"), Some("lab")));
        assert_eq!(said("service.instance.id"), span.attributes.get("pushlab.pod").map(String::as_str));
        assert_eq!((span.state.as_str(), span.over, span.failed), ("vendor=1", over, false), "{}", span.name);
    }
    // From the click to the first write on the other pod. The like's own span covers the way to the lock; without it, of a like
    // of 3 ms, 92 to 94 % were seen.
    let (hop, fan_out) = (named(&spans, "receive likes", "pod-2"), named(&spans, "fan-out", "pod-2"));
    let share = covered(&[root, lock, commit, publish, hop, fan_out], root.from, writes[1]);
    println!("{name} over {protocol}: {:.1} % of {} µs", share * 100.0, (writes[1] - root.from) / 1000);
    assert!(share >= 0.95, "{share} of the time is covered: {spans:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_is_one_trace_over_two_pods() {
    a_like_is_one_trace("grpc", false, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_send_is_one_trace_over_two_pods() {
    a_like_is_one_trace("http/protobuf", true, false).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "10 s; needs an OpenTelemetry Collector (PUSHLAB_OTELCOL=path): the same through a real one, over both protocols"]
async fn a_like_is_one_trace_for_a_real_collector() {
    for (protocol, stomp) in [("grpc", false), ("http/protobuf", true)] {
        a_like_is_one_trace(protocol, stomp, true).await;
    }
}

/// What a pod sends over NATS for one like in the caller's trace.
async fn sent_headers(nats: &NatsServer, otel: &[(&str, &str)], parent: &str) -> Option<async_nats::HeaderMap> {
    let listener = async_nats::connect(nats.url()).await.unwrap();
    let mut messages = listener.subscribe("likes.*").await.unwrap();
    listener.flush().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let database = format!("sqlite:{}", folder.path().join("likes.db").display());
    let pod = pod("pod-1", &database, nats, &[], otel);
    let post = pod.post().await;
    let request = reqwest::Client::new().post(pod.url(&format!("/posts/{post}/likes")));
    assert_eq!(request.header("traceparent", parent).send().await.unwrap().status(), 200);
    tokio::time::timeout(PATIENCE, messages.next()).await.expect("an event").unwrap().headers
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_are_sent_for_sampled_likes_only() {
    let (collector, nats) = (Collector::start().await, NatsServer::start());
    let endpoint = collector.endpoint();
    let on = ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str());
    let headers = sent_headers(&nats, &[on], PARENT).await.expect("headers");
    let parent = headers.get("traceparent").unwrap().as_str();
    assert!(parent.starts_with(&format!("00-{TRACE}-")) && parent.ends_with("-01") && !parent.contains(SPAN));
    assert!(headers.get("pushlab-sent-at").is_some());
    // Off; said to be off; not sampled by the caller; not sampled here.
    let never = ("OTEL_TRACES_SAMPLER", "always_off");
    let ratio = [on, ("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0")];
    let unsampled = PARENT.replace("-01", "-00");
    for (otel, parent) in [
        (&[][..], PARENT),
        (&[on, ("OTEL_SDK_DISABLED", "true")], PARENT),
        (&[on, ("OTEL_TRACES_EXPORTER", "none")], PARENT),
        (&[on], &unsampled),
        (&[on, never], PARENT),
        (&ratio, PARENT),
    ] {
        assert_eq!(sent_headers(&nats, otel, parent).await, None, "{otel:?} {parent}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_never_answers_costs_nobody_anything() {
    // It takes connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    for protocol in ["grpc", "http/protobuf"] {
        let otel = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "64"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "16"),
        ];
        let mut pod = PodProcess::with(&["--drain", "100ms", "--drain-grace", "0"], &otel);
        let post = pod.post().await;
        let _viewer = sse_viewer(&pod, post).await;
        let http = reqwest::Client::new();
        for _ in 0..100 {
            let answer = http.post(pod.url(&format!("/posts/{post}/likes"))).send().await.unwrap();
            assert_eq!(answer.status(), 200);
        }
        let dropped = pod.metric("pushlab_trace_spans_total", "dropped").await;
        assert!(dropped > 300.0, "{dropped} of about 500 were dropped: the queue holds 64, a batch 16");
        pod.signal(Signal::SIGTERM);
        assert!(pod.ended().await.success());
        assert!(pod.log().contains("the collector did not take all spans"), "{}", pod.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_goes_on_from_the_outbox_of_a_pod_that_died() {
    let (collector, nats) = (Collector::start().await, NatsServer::with_jetstream());
    let (url, endpoint) = (MariaDb::shared().database().await, collector.endpoint());
    let otel = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("OTEL_BSP_SCHEDULE_DELAY", "50")];
    let outbox = ["--publish", "outbox", "--anti-entropy", "off"];
    let dies = [&outbox[..], &["--fail-at", "after-commit:kill"]].concat();
    let (one, two) = (pod("pod-1", &url, &nats, &dies, &otel), pod("pod-2", &url, &nats, &outbox, &otel));
    let post = two.post().await;
    let _viewer = sse_viewer(&two, post).await;
    let request = reqwest::Client::new().post(one.url(&format!("/posts/{post}/likes")));
    assert!(request.header("traceparent", PARENT).send().await.is_err(), "it dies before it answers");
    // (Its fan-out may find that the read which follows a join has told the viewer already.)
    until("the other pod's hop", || collector.of(TRACE).iter().any(|span| span.name == "receive likes")).await;
    let spans = collector.of(TRACE);
    assert!(spans.iter().all(|span| span.attributes["pushlab.pod"] == "pod-2"), "{spans:#?}");
    let (publish, hop) = (named(&spans, "publish likes", "pod-2"), named(&spans, "receive likes", "pod-2"));
    assert_eq!(hop.parent, publish.id);
    // The like's own span died with its pod; what was laid down names it, and it is not the caller's.
    assert!(!publish.parent.is_empty() && publish.parent != SPAN);
    assert!(publish.to - publish.from >= 1_000_000_000, "it waited for the sweep");
    assert!(collector.all().iter().all(|span| span.trace == TRACE || span.name != "receive likes"));
}

#[test]
fn a_variable_that_cannot_be_followed_is_refused_with_a_hint() {
    for (variable, value, hint) in [
        ("OTEL_TRACES_SAMPLER", "sometimes", "parentbased_traceidratio"),
        ("OTEL_TRACES_SAMPLER", "traceidratio", "OTEL_TRACES_SAMPLER_ARG"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "http/protobuf"),
        ("OTEL_TRACES_EXPORTER", "jaeger", "otlp or none"),
    ] {
        let output = assert_cmd::Command::new(env!("CARGO_BIN_EXE_pushlab"))
            .args(["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"])
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
            .env(variable, value)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(hint), "{variable}={value}: {said}");
    }
}
