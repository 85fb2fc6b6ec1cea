//! A real Chromium, driven over WebDriver (W3C): a handful of JSON posts to chromedriver, which the guardian ends with its browser.

use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine as _;
use pushlab::compare::stack::guardian::Spawn;
use pushlab::compare::stack::processes::{Guardian, Process};
use reqwest::Method;
use serde_json::{Value, json};

use crate::pod_process::PATIENCE;
use crate::servers::program;

/// The key under which WebDriver names an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

const HINT: &str = "apt-get install chromium chromium-driver";

/// One browser with one window.
pub(super) struct Browser {
    http: reqwest::Client,
    session: String,
    _driver: Process,
}

impl Browser {
    pub(super) async fn start(guardian: &Guardian) -> Self {
        let chromium = program(&["chromium", "chromium-browser", "google-chrome"], "PUSHLAB_CHROMIUM", HINT);
        let chromedriver = program(&["chromedriver"], "PUSHLAB_CHROMEDRIVER", HINT);
        let log = guardian.folder().join("chromedriver.log");
        let spawn =
            Spawn { program: chromedriver, args: vec!["--port=0".into()], log, lines: true, ..Spawn::default() };
        let mut driver = guardian.spawn(spawn).await.unwrap();
        let port = loop {
            let line = tokio::time::timeout(PATIENCE, driver.lines.recv()).await;
            let line =
                line.ok().flatten().unwrap_or_else(|| panic!("chromedriver says no port: {}", driver.log_tail()));
            if let Some((_, port)) = line.split_once("successfully on port ") {
                break port.trim_end_matches('.').to_owned();
            }
        };
        let mut args = vec![
            "--headless=new".to_owned(),
            "--window-size=1100,900".into(),
            "--disable-dev-shm-usage".into(),
            "--disable-background-networking".into(),
            "--no-first-run".into(),
            format!("--user-data-dir={}", guardian.folder().join("chromium").display()),
        ];
        if nix::unistd::geteuid().is_root() {
            args.push("--no-sandbox".into());
        }
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": { "binary": chromium, "args": args },
            "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        let http = reqwest::Client::new();
        let driver_url = format!("http://127.0.0.1:{port}/session");
        let answer: Value = http.post(&driver_url).body(wanted.to_string()).send().await.unwrap().json().await.unwrap();
        let id = answer["value"]["sessionId"].as_str().unwrap_or_else(|| panic!("no session: {answer}"));
        Self { http, session: format!("{driver_url}/{id}"), _driver: driver }
    }

    async fn command(&self, method: Method, path: &str, body: &Value) -> Value {
        let url = if path.is_empty() { self.session.clone() } else { format!("{}/{path}", self.session) };
        let mut request = self.http.request(method.clone(), url);
        if method == Method::POST {
            request = request.body(body.to_string());
        }
        let answer = tokio::time::timeout(Duration::from_secs(30), request.send()).await.expect("the browser answers");
        let answer = answer.unwrap();
        let good = answer.status().is_success();
        let mut answer: Value = answer.json().await.unwrap();
        assert!(good, "{path} {body}: {answer}");
        answer["value"].take()
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        self.command(Method::POST, path, &body).await
    }

    pub(super) async fn open(&self, url: &str) {
        self.post("url", json!({ "url": url })).await;
    }

    pub(super) async fn url(&self) -> String {
        self.command(Method::GET, "url", &Value::Null).await.as_str().unwrap().to_owned()
    }

    /// What a function's body returns in the page.
    pub(super) async fn script(&self, body: &str) -> Value {
        self.post("execute/sync", json!({ "script": body, "args": [] })).await
    }

    async fn element(&self, css: &str) -> String {
        let found = self.post("element", json!({ "using": "css selector", "value": css })).await;
        found[ELEMENT].as_str().unwrap_or_else(|| panic!("no {css}: {found}")).to_owned()
    }

    /// As a mouse does: fails when something hides it.
    pub(super) async fn click(&self, css: &str) {
        let element = self.element(css).await;
        self.post(&format!("element/{element}/click"), json!({})).await;
    }

    /// As a keyboard does.
    pub(super) async fn keys(&self, css: &str, keys: &str) {
        let element = self.element(css).await;
        self.post(&format!("element/{element}/value"), json!({ "text": keys })).await;
    }

    /// A further tab, which is then the one spoken to.
    pub(super) async fn tab(&self) {
        let made = self.post("window/new", json!({ "type": "tab" })).await;
        self.post("window", json!({ "handle": made["handle"] })).await;
    }

    /// A command of the DevTools protocol.
    pub(super) async fn devtools(&self, command: &str, params: Value) -> Value {
        self.post("goog/cdp/execute", json!({ "cmd": command, "params": params })).await
    }

    /// The whole page as a PNG.
    pub(super) async fn screenshot(&self, file: &Path) {
        let params = json!({ "format": "png", "captureBeyondViewport": true });
        let shot = self.devtools("Page.captureScreenshot", params).await;
        let png = base64::engine::general_purpose::STANDARD.decode(shot["data"].as_str().unwrap()).unwrap();
        std::fs::write(file, png).unwrap();
    }

    /// Warnings and errors on the console since the last call, but those that report a failed request: while a pod is away
    /// there have to be some.
    pub(super) async fn complaints(&self) -> Vec<String> {
        let entries = self.post("se/log", json!({ "type": "browser" })).await;
        let worse = |entry: &&Value| matches!(entry["level"].as_str(), Some("WARNING" | "SEVERE"));
        let texts = entries.as_array().unwrap().iter().filter(worse).map(|entry| entry["message"].as_str().unwrap());
        let network = ["Failed to load resource", "net::ERR_", "WebSocket connection to", "EventSource's response"];
        texts.filter(|text| !network.iter().any(|part| text.contains(part))).map(str::to_owned).collect()
    }

    /// Waits until the script returns true; what it tells is the script `tell`'s.
    pub(super) async fn until(&self, what: &str, script: &str, tell: &str) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.script(&format!("return Boolean({script})")).await != json!(true) {
            if Instant::now() >= deadline {
                panic!("in vain: {what}; the page: {}", self.script(tell).await);
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// Ends the browser.
    pub(super) async fn end(self) {
        self.command(Method::DELETE, "", &Value::Null).await;
    }
}
