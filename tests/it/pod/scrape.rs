//! What a scrape of a full pod costs.

use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::pod_process::PodProcess;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "half a minute: 10,000 viewers, the time and the size of a scrape"]
async fn a_scrape_with_ten_thousand_viewers_is_short_and_small() {
    const VIEWERS: usize = 10_000;
    let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let pod = PodProcess::start(&[]);
    let post = pod.post().await;
    let mut viewers = Vec::with_capacity(VIEWERS);
    let ask = format!("GET /posts/{post}/likes HTTP/1.1\r\nhost: a\r\naccept: text/event-stream\r\n\r\n");
    for _ in 0..VIEWERS {
        let mut viewer = TcpStream::connect(pod.listen).await.unwrap();
        viewer.write_all(ask.as_bytes()).await.unwrap();
        assert!(viewer.read(&mut [0; 512]).await.unwrap() > 0);
        viewers.push(viewer);
    }
    pod.metric_becomes("pushlab_connections", "sse", 10_000.0).await;
    let (client, url) = (reqwest::Client::new(), format!("http://{}/metrics", pod.admin));
    let (mut took, mut bytes) = (Vec::new(), 0);
    for _ in 0..100 {
        // Every other one with a fan-out under way.
        let like = client.post(pod.url(&format!("/posts/{post}/likes"))).send();
        if took.len() % 2 == 0 {
            assert_eq!(like.await.unwrap().status(), 200);
        }
        let began = Instant::now();
        let text = client.get(&url).send().await.unwrap().text().await.unwrap();
        took.push(began.elapsed());
        bytes = text.len();
    }
    took.sort_unstable();
    println!("scrape with {VIEWERS} viewers: {bytes} bytes, median {:?}, worst of 100 {:?}", took[50], took[99]);
    assert!(bytes < 200_000 && took[50].as_millis() < 20, "{bytes} bytes, {:?}", took[50]);
}
