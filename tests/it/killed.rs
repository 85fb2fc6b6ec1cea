//! Real pods that die at a named place between COMMIT and publish: the event arrives or is found, and nothing counts twice.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::jetstream;
use pushlab::compare::edges::{Edge, EdgeConfig, RunningEdge};
use pushlab::compare::stack::guardian::Spawn;
use pushlab::compare::stack::processes::{Guardian, Process};
use pushlab::domain::{PostId, Update, Version};
use pushlab::serve::likes::{Likes, LikesOptions};
use pushlab::serve::watch::WatchOptions;
use pushlab::store::{LikeOp, LikeRequest, LikeStore, StoreOptions};
use reqwest::{Method, Response};
use serde_json::Value;

use crate::likes::Pod;
use crate::pod_process::PATIENCE;
use crate::servers::{MariaDb, NatsServer, until};

const PUSHLAB: &str = env!("CARGO_BIN_EXE_pushlab");

/// What the pods have in common, and what starts them.
struct Lab {
    guardian: Guardian,
    nats: NatsServer,
    database: String,
    http: reqwest::Client,
}

/// A pod in a process of its own.
struct Child {
    address: String,
    process: Process,
}

impl Lab {
    async fn start() -> Self {
        pushlab::serve::tls::provide();
        Self {
            guardian: Guardian::start(Path::new(PUSHLAB)).await.unwrap(),
            nats: NatsServer::with_jetstream(),
            database: MariaDb::shared().database().await,
            http: reqwest::Client::new(),
        }
    }

    async fn pod(&self, name: &str, flags: &[&str]) -> Child {
        let (nats, database) = (self.nats.url(), self.database.as_str());
        let fixed = ["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--pod-name", name];
        let servers = ["--database-url", database, "--nats-url", &nats, "--trust-user-header", "X-User"];
        let args = [&fixed[..], &servers, flags].concat().into_iter().map(String::from).collect();
        let log = self.guardian.folder().join(format!("{name}.log"));
        let spawn = Spawn { program: PUSHLAB.into(), args, log, lines: true, ..Spawn::default() };
        let mut process = self.guardian.spawn(spawn).await.unwrap();
        let address = process.announced(name).await.unwrap().listen;
        Child { address, process }
    }

    /// A pod without sockets in this process, which tells what reaches its viewers.
    async fn watcher(&self, options: WatchOptions) -> Pod {
        let target = pushlab::broker::BrokerTarget::Nats { url: self.nats.url(), name: "watcher".into() };
        Pod::new(&self.store(true).await, &target, options).await
    }

    async fn store(&self, outbox: bool) -> LikeStore {
        LikeStore::connect(&self.database, StoreOptions { outbox, ..StoreOptions::default() }).await.unwrap()
    }

    async fn send(&self, to: &Child, method: Method, path: &str, key: Option<&str>) -> reqwest::Result<Response> {
        let mut request = self.http.request(method, format!("http://{}{path}", to.address)).header("X-User", "ann");
        if let Some(key) = key {
            request = request.header("Idempotency-Key", key);
        }
        request.send().await
    }
}

async fn was_killed(mut pod: Child) {
    let ended = tokio::time::timeout(PATIENCE, pod.process.wait()).await.expect("it dies");
    assert_eq!(ended.how, "SIGKILL", "{}", pod.process.log_tail());
}

async fn state(store: &LikeStore, post: PostId) -> (u64, u64) {
    let state = store.read(&[post]).await.unwrap()[0].state;
    (state.likes, state.version.0)
}

/// Nothing but events: what is read now and then is off.
fn events_only() -> WatchOptions {
    WatchOptions { anti_entropy: false, settle: Duration::from_secs(3600), ..WatchOptions::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_an_outbox_the_event_of_a_pod_that_died_after_commit_arrives() {
    let lab = Lab::start().await;
    let dying = lab.pod("pod-1", &["--publish", "outbox", "--fail-at", "after-commit:kill"]).await;
    let watcher = lab.watcher(events_only()).await;
    let post = watcher.store.create_post("").await.unwrap().id;
    let _joined = watcher.join(post).await;
    let path = format!("/posts/{post}/likes");
    assert!(lab.send(&dying, Method::POST, &path, Some("k")).await.is_err(), "nobody is answered");
    was_killed(dying).await;
    assert_eq!(state(&watcher.store, post).await, (1, 1), "it was committed");
    assert_eq!(watcher.version(post), Version(0), "and nobody was told");

    // The sweep of another pod finds the row.
    let other = lab.pod("pod-2", &["--publish", "outbox"]).await;
    until("the event arrives", || watcher.version(post) == Version(1)).await;
    assert!(matches!(watcher.newest(post), Some(Update::Changed(event)) if event.prev == Version(0)));
    // The client asks again with its key.
    let again = lab.send(&other, Method::POST, &path, Some("k")).await.unwrap();
    assert_eq!((again.status().as_u16(), &again.headers()["idempotent-replayed"]), (200, &"true".parse().unwrap()));
    let body: Value = again.json().await.unwrap();
    assert_eq!((&body["likes"], &body["changed"]), (&1.into(), &true.into()));
    assert_eq!(state(&watcher.store, post).await, (1, 1));
    let empty = async || watcher.store.outbox_queue().await.unwrap().rows == 0;
    while !empty().await {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    lab.guardian.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_published_twice_is_stored_once_and_delivered_once() {
    let lab = Lab::start().await;
    let dying = lab.pod("pod-1", &["--publish", "outbox", "--fail-at", "after-publish:kill"]).await;
    let watcher = lab.watcher(events_only()).await;
    let post = watcher.store.create_post("").await.unwrap().id;
    let _joined = watcher.join(post).await;
    // Answered or not: the answer and the death of the pod race.
    let _ = lab.send(&dying, Method::POST, &format!("/posts/{post}/likes"), None).await;
    was_killed(dying).await;
    until("the event arrives", || watcher.version(post) == Version(1)).await;
    assert_eq!(watcher.store.outbox_queue().await.unwrap().rows, 1, "its row was not removed");

    // This process sweeps now, as another pod would.
    let epoch = watcher.store.epoch().await.unwrap();
    let outbox = Some(watcher.broker.events(epoch).await.unwrap());
    let options = LikesOptions { outbox, ..LikesOptions::default() };
    let likes = Likes::start(watcher.store.clone(), watcher.broker.clone(), options);
    let twice = || watcher.watch.counters().duplicate_events.load(Ordering::Relaxed) == 1;
    until("it comes again and goes to nobody", twice).await;
    assert_eq!(watcher.updates.lock().unwrap().len(), 1);
    let client = async_nats::connect(lab.nats.url()).await.unwrap();
    let mut stream = jetstream::new(client).get_stream("pushlab-likes").await.unwrap();
    assert_eq!(stream.info().await.unwrap().state.messages, 1, "the stream knows it by its id");
    likes.idle().await;
    lab.guardian.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_outbox_anti_entropy_finds_what_a_pod_that_died_did_not_publish() {
    let lab = Lab::start().await;
    for write in ["pessimistic", "combining"] {
        let dying = lab.pod("pod-1", &["--write", write, "--fail-at", "after-commit:kill"]).await;
        let quick =
            WatchOptions { quiet: Duration::from_millis(200), settle: Duration::ZERO, ..WatchOptions::default() };
        let watcher = lab.watcher(quick).await;
        let post = watcher.store.create_post("").await.unwrap().id;
        let _joined = watcher.join(post).await;
        let path = format!("/posts/{post}/likes/me");
        assert!(lab.send(&dying, Method::PUT, &path, None).await.is_err());
        was_killed(dying).await;
        until("the state is found", || watcher.version(post) == Version(1)).await;
        assert!(matches!(watcher.newest(post), Some(Update::Snapshot(_))), "by reading");
        // Repeated by its user: she has liked already.
        let other = lab.pod("pod-2", &["--write", write]).await;
        let body: Value = lab.send(&other, Method::PUT, &path, None).await.unwrap().json().await.unwrap();
        assert_eq!((&body["likes"], &body["changed"]), (&1.into(), &false.into()));
        assert_eq!(state(&watcher.store, post).await, (1, 1));
    }
    lab.guardian.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delete_that_nginx_repeats_counts_once() {
    let lab = Lab::start().await;
    let store = lab.store(false).await;
    for (path, key) in [("likes", Some("taken back")), ("likes/me", None)] {
        let dying = lab.pod("pod-1", &["--fail-at", "after-commit:kill"]).await;
        let sound = lab.pod("pod-2", &[]).await;
        let post = store.create_post("").await.unwrap().id;
        for _ in 0..2 {
            store.apply(&LikeRequest::anonymous_like(post)).await.unwrap();
        }
        let who = pushlab::store::Who::User("ann".into());
        let hers = LikeRequest { who, once: true, ..LikeRequest::anonymous_like(post) };
        store.apply(&hers).await.unwrap();
        assert_eq!(state(&store, post).await, (3, 3));
        assert_eq!(hers.op, LikeOp::Like);

        let pods = vec![("pod-1".to_owned(), dying.address.clone()), ("pod-2".to_owned(), sound.address.clone())];
        let edge = RunningEdge::start(&lab.guardian, &EdgeConfig::new(Edge::NginxRr), &pods, None, &[]).await;
        let edge = edge.unwrap().unwrap();
        let front = Child { address: format!("127.0.0.1:{}", edge.server.port), process: sound.process };
        let answer = lab.send(&front, Method::DELETE, &format!("/posts/{post}/{path}"), key).await.unwrap();
        was_killed(dying).await;
        assert_eq!(answer.status(), 200, "nginx has asked the other pod");
        assert_eq!(answer.headers()["x-pushlab-pod"], "pod-2");
        let replayed = answer.headers().contains_key("idempotent-replayed");
        let body: Value = answer.json().await.unwrap();
        assert_eq!((replayed, &body["changed"]), (key.is_some(), &key.is_some().into()), "{path}: {body}");
        assert_eq!(body["likes"], 2);
        assert_eq!(state(&store, post).await, (2, 4), "{path}: it counted once");
        edge.stop(&lab.guardian).await;
    }
    lab.guardian.end().await;
}
