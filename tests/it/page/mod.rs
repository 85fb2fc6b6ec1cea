//! The page in a real Chromium, before two real pods behind nginx: it counts, it heals by itself, it says what is wrong.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use pushlab::compare::edges::{Edge, EdgeConfig, RunningEdge};
use pushlab::compare::stack::guardian::Spawn;
use pushlab::compare::stack::processes::{Guardian, Process};
use serde_json::{Value, json};

use crate::pod_process::PATIENCE;
use crate::servers::{MariaDb, NatsServer};
use browser::Browser;

mod browser;
mod signed_in;

const PUSHLAB: &str = env!("CARGO_BIN_EXE_pushlab");

/// What there is to see, for conditions and for messages.
const VIEW: &str = "const side = id => ({ state: document.getElementById(id).dataset.state, lost: Number(document.getElementById(id).dataset.lost ?? 0), \
    count: document.querySelector(`#${id} .count`)?.textContent, why: document.querySelector(`#${id} .why`)?.textContent, pod: document.querySelector(`#${id} .pod`)?.textContent, \
    recovered: Number(document.querySelector(`#${id} [data-field=recovered]`)?.dataset.ms ?? -1) }); \
    return { sse: side('sse'), stomp: side('stomp'), said: document.getElementById('said').textContent, \
    bad: document.getElementById('said').classList.contains('bad'), trouble: document.getElementById('trouble').textContent, \
    announced: document.getElementById('announce').textContent };";

/// One `pushlab serve`.
struct Pod {
    listen: String,
    admin: String,
    process: Process,
}

/// A browser, nginx and two pods with a broker and a database.
struct Lab {
    guardian: Guardian,
    pods: Vec<Pod>,
    edge: RunningEdge,
    browser: Browser,
    http: reqwest::Client,
    _nats: NatsServer,
}

impl Lab {
    async fn start(database: &str) -> Self {
        Self::with(database, "").await
    }

    /// With further flags for its pods.
    async fn with(database: &str, flags: &str) -> Self {
        pushlab::serve::tls::provide();
        let nats = NatsServer::start();
        let guardian = Guardian::start(Path::new(PUSHLAB)).await.unwrap();
        let mut pods = Vec::new();
        for name in ["pod-1", "pod-2"] {
            let line = format!(
                "serve --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0 --heartbeat 1s --pod-name {name} --database-url {database} --nats-url {} {flags}",
                nats.url()
            );
            let args = line.split_whitespace().map(String::from).collect();
            let log = guardian.folder().join(format!("{name}.log"));
            let spawn = Spawn { program: PUSHLAB.into(), args, log, lines: true, ..Spawn::default() };
            let mut process = guardian.spawn(spawn).await.unwrap();
            let said = process.announced(name).await.unwrap();
            pods.push(Pod { listen: said.listen, admin: said.admin, process });
        }
        let named = [("pod-1".to_owned(), pods[0].listen.clone()), ("pod-2".to_owned(), pods[1].listen.clone())];
        let config = EdgeConfig::new(Edge::NginxLeastConn);
        let (edge, browser) =
            tokio::join!(RunningEdge::start(&guardian, &config, &named, None, &[]), Browser::start(&guardian));
        let edge = edge.unwrap().unwrap();
        Self { guardian, pods, edge, browser, http: reqwest::Client::new(), _nats: nats }
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.edge.server.url)
    }

    /// Creates a post on the page itself and waits until both sides are live.
    async fn create(&self) -> u64 {
        self.browser.open(&self.url("/")).await;
        self.until("the form is shown", "document.querySelector('#create button').offsetParent").await;
        self.browser.click("#create button").await;
        self.until("the new post's page opens", "location.search.startsWith('?post=')").await;
        self.live().await;
        self.browser.url().await.rsplit_once('=').unwrap().1.parse().unwrap()
    }

    async fn until(&self, what: &str, condition: &str) {
        self.browser.until(what, condition, VIEW).await;
    }

    async fn live(&self) {
        let open = "['sse', 'stomp'].every(id => document.getElementById(id)?.dataset.state === 'open' \
            && document.querySelector(`#${id} .count`).textContent !== '–')";
        self.until("both sides are live", open).await;
    }

    async fn both_show(&self, likes: u64) {
        let shown = format!("[...document.querySelectorAll('.count')].every(count => count.textContent === '{likes}')");
        self.until(&format!("both sides show {likes}"), &shown).await;
    }

    async fn said(&self, part: &str) {
        self.until(
            &format!("the page says {part:?}"),
            &format!("document.getElementById('said').textContent.includes({})", json!(part)),
        )
        .await;
    }

    async fn view(&self) -> Value {
        self.browser.script(VIEW).await
    }

    /// Open streams of (SSE, STOMP) on this pod.
    async fn streams(&self, pod: usize) -> (u64, u64) {
        let url = format!("http://{}/debug/connections", self.pods[pod].admin);
        let body: Value = self.http.get(url).send().await.unwrap().json().await.unwrap();
        let open = |transport: &str| body[transport]["open"].as_u64().unwrap();
        (open("sse"), open("stomp"))
    }

    /// Waits until the pods hold so many streams of each transport; how they share them.
    async fn streams_become(&self, each: u64) -> [(u64, u64); 2] {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let [a, b] = [self.streams(0).await, self.streams(1).await];
            if (a.0 + b.0, a.1 + b.1) == (each, each) {
                return [a, b];
            }
            assert!(Instant::now() < deadline, "the pods hold {a:?} and {b:?}, not {each} of each transport");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Opens the page anew until both of its streams hang on one pod; that pod.
    async fn on_one_pod(&self) -> usize {
        for _ in 0..20 {
            self.live().await;
            let shared = self.streams_become(1).await;
            if let Some(pod) = shared.iter().position(|streams| *streams == (1, 1)) {
                let (view, name) = (self.view().await, format!("pod-{}", pod + 1));
                assert_eq!((&view["sse"]["pod"], &view["stomp"]["pod"]), (&json!(name), &json!(name)));
                return pod;
            }
            self.browser.open(&self.browser.url().await).await;
        }
        panic!("the two streams never meet on one pod");
    }

    /// +1 from elsewhere, directly at this pod.
    async fn like(&self, pod: usize, post: u64) {
        let url = format!("http://{}/posts/{post}/likes", self.pods[pod].listen);
        assert_eq!(self.http.post(url).send().await.unwrap().status(), 200);
    }

    async fn signal(&self, pod: usize, signal: Signal) {
        self.guardian.signal(self.pods[pod].process.pid, signal).await.unwrap();
    }

    /// Both sides lost their connection, found another by themselves and show the right count; says how long that took.
    async fn heals(&self, how: &str, lost_before: (u64, u64), likes: u64) {
        let (sse, stomp) = lost_before;
        let lost = format!(
            "Number(document.getElementById('sse').dataset.lost) > {sse} && Number(document.getElementById('stomp').dataset.lost) > {stomp}"
        );
        self.until(&format!("{how}: both sides notice"), &lost).await;
        self.live().await;
        self.both_show(likes).await;
        self.until("the time is shown", "document.querySelectorAll('[data-field=recovered][data-ms]').length === 2")
            .await;
        let view = self.view().await;
        for side in ["sse", "stomp"] {
            let took = view[side]["recovered"].as_i64().unwrap();
            println!("{how}: {side} shows the right count {took} ms after it noticed");
            assert!((0..20_000).contains(&took), "{how}: {view}");
        }
    }

    async fn lost(&self) -> (u64, u64) {
        let view = self.view().await;
        (view["sse"]["lost"].as_u64().unwrap(), view["stomp"]["lost"].as_u64().unwrap())
    }

    async fn end(self) {
        let complaints = self.browser.complaints().await;
        self.browser.end().await;
        self.guardian.end().await;
        assert_eq!(complaints, [""; 0], "on the console");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_like_shows_on_both_sides_whichever_way_it_goes() {
    let lab = Lab::start(&MariaDb::shared().database().await).await;
    let post = lab.create().await;
    lab.both_show(0).await;
    let browser = &lab.browser;

    browser.click("#like").await;
    lab.both_show(1).await;
    lab.said("POST: counted; 1 like, version 1, by pod-").await;
    browser.click("[name=by][value=send]").await;
    browser.click("#like").await;
    lab.both_show(2).await;
    lab.said("SEND: counted; 2 likes, version 2").await;
    browser.click("#unlike").await;
    lab.both_show(1).await;
    browser.click("[name=by][value=post]").await;
    browser.click("#unlike").await;
    lab.both_show(0).await;
    lab.said("DELETE: counted; 0 likes, version 4").await;
    browser.click("#unlike").await;
    lab.said("nothing changed").await;

    // Latencies are shown, and drawn on one scale; a screen reader is told in words.
    lab.until(
        "the chart says what it shows",
        "[...document.querySelectorAll('.chart svg')].every(svg => \
         /^Latency of the last 4 changes: median -?[0-9.]+ ms/.test(svg.getAttribute('aria-label')))",
    )
    .await;
    lab.until("the count is announced", "document.getElementById('announce').textContent === '0 likes'").await;

    // By keyboard alone, from the top of the page: skip link, links, then the first button.
    browser.open(&lab.url(&format!("/?post={post}"))).await;
    lab.live().await;
    let mut focused = Value::Null;
    for _ in 0..8 {
        let key = |kind: &str| json!({ "type": kind, "key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9 });
        browser.devtools("Input.dispatchKeyEvent", key("rawKeyDown")).await;
        browser.devtools("Input.dispatchKeyEvent", key("keyUp")).await;
        focused = browser.script("return document.activeElement.id").await;
        if focused == "like" {
            break;
        }
    }
    assert_eq!(focused, "like", "the tab key leads to the button");
    let outline = browser.script("return getComputedStyle(document.activeElement).outlineStyle").await;
    assert_eq!(outline, "solid", "the focus can be seen");
    browser.keys("#like", "\u{E007}").await;
    lab.both_show(1).await;

    // The six connections of HTTP/1.1 are shared by all tabs: five of them still leave one for the likes.
    for _ in 0..4 {
        browser.tab().await;
        browser.open(&lab.url(&format!("/?post={post}"))).await;
        lab.live().await;
    }
    lab.streams_become(5).await;
    browser.click("#like").await;
    lab.both_show(2).await;

    // A phone: nothing is cut off on the right, and what is to be pressed is large enough.
    let phone = json!({ "width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": true });
    browser.devtools("Emulation.setDeviceMetricsOverride", phone).await;
    lab.until("it fits a phone", "document.documentElement.scrollWidth <= 360").await;
    let small = browser.script("return [...document.querySelectorAll('button, fieldset label')].filter(e => e.offsetParent && e.offsetHeight < 40).length").await;
    assert_eq!(small, 0);
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_heal_by_themselves_when_their_pod_is_killed_and_when_it_hangs() {
    let lab = Lab::start(&MariaDb::shared().database().await).await;
    let post = lab.create().await;
    lab.browser.click("#like").await;
    lab.both_show(1).await;

    // It hangs: nothing is closed, so only the missing heart-beats tell.
    let hung = lab.on_one_pod().await;
    let other = 1 - hung;
    let before = lab.lost().await;
    lab.signal(hung, Signal::SIGSTOP).await;
    lab.like(other, post).await;
    lab.heals("SIGSTOP", before, 2).await;
    lab.signal(hung, Signal::SIGCONT).await;

    // It dies.
    let killed = lab.on_one_pod().await;
    let other = 1 - killed;
    let before = lab.lost().await;
    lab.signal(killed, Signal::SIGKILL).await;
    lab.like(other, post).await;
    lab.heals("kill -9", before, 3).await;
    assert_eq!(lab.streams(other).await, (1, 1));
    lab.browser.click("#like").await;
    lab.both_show(4).await;
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_database_is_down_the_page_says_so() {
    let mut mariadb = MariaDb::start();
    let lab = Lab::start(&mariadb.database().await).await;
    let post = lab.create().await;
    mariadb.kill();
    lab.browser.click("#like").await;
    lab.said("POST: 503 Temporarily unavailable: the database").await;
    lab.browser.click("[name=by][value=send]").await;
    lab.browser.click("#like").await;
    lab.said("SEND: 503 Temporarily unavailable: the database").await;
    let view = lab.view().await;
    assert_eq!(
        (&view["bad"], &view["sse"]["state"], &view["stomp"]["state"]),
        (&json!(true), &json!("open"), &json!("open"))
    );

    // The message leads to its meaning, and a page opened now says the same and starts by itself later.
    let meaning = lab.browser.script("return document.querySelector('#said a').href").await;
    let text = lab.http.get(meaning.as_str().unwrap()).send().await.unwrap().text().await.unwrap();
    assert!(text.starts_with("unavailable\n"), "{text}");
    let again = lab.url(&format!("/?post={post}"));
    lab.browser.devtools("Network.enable", json!({})).await;
    lab.browser.devtools("Network.setCacheDisabled", json!({ "cacheDisabled": true })).await;
    lab.browser.open(&again).await;
    let words = "document.getElementById('trouble').textContent.includes('503 Temporarily unavailable')";
    lab.until("without its post the page says why it cannot begin", words).await;
    mariadb.start_again();
    lab.live().await;
    lab.both_show(0).await;
    lab.browser.click("#like").await;
    lab.both_show(1).await;
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "10 s; makes the pictures in docs/ anew (then: pngquant or the like)"]
async fn pictures_of_the_page() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let mut mariadb = MariaDb::start();
    let lab = Lab::start(&mariadb.database().await).await;
    let browser = &lab.browser;
    let screen = async |width: u32, scale: u32, scheme: &str| {
        let metrics = json!({ "width": width, "height": 700, "deviceScaleFactor": scale, "mobile": width < 500 });
        browser.devtools("Emulation.setDeviceMetricsOverride", metrics).await;
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        browser.devtools("Emulation.setEmulatedMedia", features).await;
    };
    screen(1000, 1, "light").await;
    lab.create().await;
    browser.click("#burst").await;
    lab.both_show(20).await;
    browser.click("#burst").await;
    lab.both_show(40).await;
    browser.screenshot(&docs.join("page-light.png")).await;
    screen(1000, 1, "dark").await;
    browser.screenshot(&docs.join("page-dark.png")).await;
    screen(390, 2, "light").await;
    browser.screenshot(&docs.join("page-phone.png")).await;
    screen(1000, 1, "light").await;
    mariadb.kill();
    browser.click("#like").await;
    lab.said("503").await;
    browser.screenshot(&docs.join("page-failure.png")).await;
    lab.end().await;
}
