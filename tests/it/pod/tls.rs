//! TLS at the pod: the same streams, over HTTP/1.1 and HTTP/2, and WebSocket.

use std::path::PathBuf;
use std::sync::Arc;

use futures_util::{SinkExt, StreamExt};
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_tungstenite::tungstenite::Message;

use super::canary::sung;
use super::{PATIENCE, TestPods};
use crate::pod_process::PodProcess;

/// A pod with a certificate of its own for `localhost`.
struct Secured {
    pods: TestPods,
    folder: tempfile::TempDir,
    certificate: CertificateDer<'static>,
}

/// Writes a new certificate and its key.
fn certify(folder: &tempfile::TempDir) -> (PathBuf, PathBuf, CertificateDer<'static>) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    (certificate, key, made.cert.der().clone())
}

impl Secured {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (file, key, certificate) = certify(&folder);
        let flags = ["--tls-cert", file.to_str().unwrap(), "--tls-key", key.to_str().unwrap()];
        let pods = TestPods::start(&flags).await;
        Self { pods, folder, certificate }
    }

    fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.pods.addresses[0].port())
    }

    fn client(&self) -> reqwest::Client {
        let root = reqwest::Certificate::from_der(&self.certificate).unwrap();
        reqwest::Client::builder().tls_certs_only([root]).build().unwrap()
    }

    async fn connect(&self, protocol: &[u8]) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![protocol.to_vec()];
        let socket = TcpStream::connect(self.pods.addresses[0]).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TlsConnector::from(Arc::new(config)).connect(name, socket).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(protocol));
        stream
    }

    async fn post(&self) -> u64 {
        let body = serde_json::json!({ "title": "a post" });
        let answer = self.client().post(self.url("/posts")).json(&body).send().await.unwrap();
        answer.json::<Value>().await.unwrap()["id"].as_u64().unwrap()
    }

    async fn like(&self, post: u64) {
        let answer = self.client().post(self.url(&format!("/posts/{post}/likes"))).send().await.unwrap();
        assert_eq!(answer.status(), 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_within_tls_is_the_same_over_http_1_1_and_2() {
    let pod = Secured::start().await;
    let post = pod.post().await;
    let path = format!("/posts/{post}/likes");
    let mut first = pod.client().get(pod.url(&path)).header("accept", "text/event-stream").send().await.unwrap();
    assert_eq!(first.headers()["content-type"], "text/event-stream");

    let io = hyper_util::rt::TokioIo::new(pod.connect(b"h2").await);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get(pod.url(&path)).header("accept", "text/event-stream");
    let request = request.body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap();
    let mut second = sender.send_request(request).await.unwrap();
    assert_eq!(second.headers()["content-type"], "text/event-stream");

    pod.like(post).await;
    let (mut one, mut two) = (String::new(), String::new());
    while !one.contains("\"version\":1") {
        let piece = timeout(PATIENCE, first.chunk()).await.expect("an event").unwrap().expect("no end");
        one.push_str(std::str::from_utf8(&piece).unwrap());
    }
    while !two.contains("\"version\":1") {
        let frame = timeout(PATIENCE, second.body_mut().frame()).await.expect("a frame").unwrap().unwrap();
        two.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
    }
    let events = |text: &str| text.lines().filter(|line| !line.starts_with("retry")).collect::<Vec<_>>().join("\n");
    assert_eq!(events(&one), events(&two));
    pod.pods.metric_becomes(0, "pushlab_fallback_streams_total", "", 2.0).await;
    drop((first, second, sender));
    pod.pods.metric_becomes(0, "pushlab_connections", "sse", 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stomp_runs_within_tls() {
    let pod = Secured::start().await;
    let post = pod.post().await;
    let stream = pod.connect(b"http/1.1").await;
    let url = pod.url("/stomp").replace("https://", "wss://");
    let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await.unwrap();
    let frames = format!(
        "CONNECT\naccept-version:1.2\nhost:test\n\n\0SUBSCRIBE\nid:s\ndestination:/topic/posts.{post}.likes\n\n\0\
         SEND\ndestination:/app/posts.{post}.like\nreceipt:r\n\n\0"
    );
    socket.send(Message::text(frames)).await.unwrap();
    let mut seen = String::new();
    while !(seen.contains("receipt-id:r") && seen.contains("\"version\":1")) {
        let message = timeout(PATIENCE, socket.next()).await.expect("a message").unwrap().unwrap();
        seen.push_str(message.to_text().unwrap());
    }
    socket.send(Message::text("DISCONNECT\nreceipt:bye\n\n\0")).await.unwrap();
    let mut last = String::new();
    while let Some(Ok(message)) = timeout(PATIENCE, socket.next()).await.expect("an end") {
        if let Message::Text(text) = message {
            last = text.to_string();
        }
    }
    assert!(last.contains("receipt-id:bye"), "{last}");
    pod.pods.metric_becomes(0, "pushlab_connections", "stomp", 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_agrees_and_plain_http_is_not_served() {
    let pod = Secured::start().await;
    let post = pod.post().await;
    let certificate = pod.folder.path().join("cert.pem");
    for (flag, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let url = pod.url(&format!("/posts/{post}/likes"));
        let mut command = tokio::process::Command::new("curl");
        command
            .args(["-sS", "--max-time", "20", flag, "-w", " %{http_version}", "--cacert"])
            .arg(&certificate)
            .arg(url);
        let output = command.output().await.expect("curl: apt-get install curl");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.starts_with("{\"changedAt\"") || text.contains("\"likes\":0"), "{text} {output:?}");
        assert!(text.ends_with(&format!(" {version}")), "{text}");
    }
    assert!(pod.pods.http.get(pod.pods.url(0, "/")).send().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_taken_on_sighup() {
    let folder = tempfile::tempdir().unwrap();
    let (file, key, _) = certify(&folder);
    let pod = PodProcess::start(&["--tls-cert", file.to_str().unwrap(), "--tls-key", key.to_str().unwrap()]);
    let (_, _, renewed) = certify(&folder);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        pod.signal(nix::sys::signal::Signal::SIGHUP);
        let mut roots = RootCertStore::empty();
        roots.add(renewed.clone()).unwrap();
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let socket = TcpStream::connect(pod.listen).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        if TlsConnector::from(Arc::new(config)).connect(name, socket).await.is_ok() {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "the old certificate is still served");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_and_a_canary_go_through_tls_and_believe_no_certificate_they_cannot_check() {
    let pod = Secured::start().await;
    let roots = pod.folder.path().join("cert.pem").to_str().unwrap().to_owned();
    let url = pod.url("");
    let probe = |roots: Option<&str>| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_pushlab"));
        command
            .args(["probe", "--base-url", &url])
            .env_remove("SSL_CERT_FILE")
            .envs(roots.map(|file| ("SSL_CERT_FILE", file)));
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, said) = probe(Some(&roots));
    assert!(code == Some(0) && said.contains("both transports"), "{said}");
    let (code, said) = probe(None);
    assert!(code == Some(1) && said.contains("SSL_CERT_FILE"), "{said}");

    let singer = PodProcess::with(&["--canary", &url, "--canary-period", "1s"], &[("SSL_CERT_FILE", &roots)]);
    let singer = TestPods::of(&singer);
    for transport in ["sse", "stomp"] {
        sung(&singer, transport, "seen").await;
    }
}
