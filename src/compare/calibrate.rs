//! What this machine can do at most: the write path alone, and raw `write(2)` to many sockets.
//!
//! A cell's *offered ÷ capacity* says how near to the edge its figures were taken.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Deserialize;

use super::plan::Planned;
use super::stack::{Cpus, Deployment};
use crate::affinity;

/// Sockets of the raw-write calibration.
const SOCKETS: usize = 100;
/// Bytes of one raw write: about one event of either transport.
const EVENT: usize = 150;
/// Callers of the write-path calibration at a time.
const CALLERS: usize = 32;

/// Most likes per second to one post, to many posts, and most raw deliveries per second.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Capacity {
    /// Likes per second to one post.
    pub hot_likes: f64,
    /// Likes per second to a hundred posts.
    pub spread_likes: f64,
    /// Writes of one event per second by one thread to a hundred sockets.
    pub raw_writes: f64,
}

impl Capacity {
    /// Measures it; the pods must be up and idle. Takes about three seconds.
    ///
    /// # Errors
    /// When the pods do not answer.
    pub async fn measure(deployment: &Deployment, cpus: &Cpus) -> anyhow::Result<Self> {
        let urls: Vec<_> = deployment.pods.iter().map(|pod| format!("http://{}", pod.listen)).collect();
        let cpus = cpus.clone();
        let raw = tokio::task::spawn_blocking(move || raw_writes(&cpus, Duration::from_millis(600))).await??;
        let time = Duration::from_secs(1);
        let hot_likes = likes(&urls, 1, time).await?;
        let spread_likes = likes(&urls, 100, time).await?;
        Ok(Self { hot_likes, spread_likes, raw_writes: raw })
    }

    /// The load a cell offers, as a share of this: the larger one of likes and deliveries.
    #[must_use]
    pub fn share(&self, planned: &Planned) -> Option<f64> {
        let likes = if planned.posts == 1 { self.hot_likes } else { self.spread_likes };
        let deliveries = planned.rate * f64::from(planned.viewers) / f64::from(planned.posts);
        (likes > 0.0 && self.raw_writes > 0.0).then(|| (planned.rate / likes).max(deliveries / self.raw_writes))
    }

    /// As named values with units.
    #[must_use]
    pub fn named(&self) -> BTreeMap<String, f64> {
        let rounded = |value: f64| value.round();
        BTreeMap::from([
            ("likes_per_s_one_post".to_owned(), rounded(self.hot_likes)),
            ("likes_per_s_hundred_posts".into(), rounded(self.spread_likes)),
            ("raw_writes_per_s_one_thread".into(), rounded(self.raw_writes)),
        ])
    }
}

#[derive(Deserialize)]
struct Created {
    id: u64,
}

/// Makes posts over HTTP; their ids.
///
/// # Errors
/// When the pod refuses.
pub async fn create_posts(client: &reqwest::Client, base: &str, count: usize) -> anyhow::Result<Vec<u64>> {
    let mut ids = Vec::new();
    for _ in 0..count {
        let sent = client.post(format!("{base}/posts")).json(&serde_json::json!({ "title": "lab" })).send().await?;
        let made: Created = sent.error_for_status()?.json().await.context("the answer to POST /posts")?;
        ids.push(made.id);
    }
    Ok(ids)
}

/// Closed loop over all pods: likes per second.
async fn likes(urls: &[String], posts: usize, time: Duration) -> anyhow::Result<f64> {
    let client = reqwest::Client::builder().timeout(Duration::from_secs(5)).build()?;
    let posts = Arc::new(create_posts(&client, &urls[0], posts).await?);
    let done = Arc::new(AtomicU64::new(0));
    let begun = Instant::now();
    let callers = (0..CALLERS).map(|caller| {
        let (client, url, posts, done) =
            (client.clone(), urls[caller % urls.len()].clone(), Arc::clone(&posts), Arc::clone(&done));
        tokio::spawn(async move {
            for turn in 0_usize.. {
                if begun.elapsed() > time {
                    break;
                }
                let post = posts[(caller + turn * CALLERS) % posts.len()];
                let sent = client.post(format!("{url}/posts/{post}/likes")).send().await;
                if sent.is_ok_and(|answer| answer.status().is_success()) {
                    done.fetch_add(1, Ordering::Relaxed);
                }
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await?;
    }
    #[expect(clippy::cast_precision_loss, reason = "a count of seconds")]
    Ok(done.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64())
}

/// One thread writes an event to each of a hundred sockets in turn, another one reads them.
fn raw_writes(cpus: &Cpus, time: Duration) -> anyhow::Result<f64> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let (mut near, mut far) = (Vec::new(), Vec::new());
    for _ in 0..SOCKETS {
        let one = TcpStream::connect(listener.local_addr()?)?;
        one.set_nodelay(true)?;
        one.set_write_timeout(Some(Duration::from_secs(1)))?;
        near.push(one);
        let other = listener.accept()?.0;
        other.set_nonblocking(true)?;
        far.push(other);
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ = affinity::pin(&cpus.generator);
            let mut buffer = [0; 64 * 1_024];
            while !stop.load(Ordering::Relaxed) {
                let read: usize = far.iter_mut().filter_map(|socket| socket.read(&mut buffer).ok()).sum();
                if read == 0 {
                    std::thread::yield_now();
                }
            }
        });
        let written = scope.spawn(|| {
            let _ = affinity::pin(&cpus.stack);
            let (event, begun, mut writes) = ([b'x'; EVENT], Instant::now(), 0_u32);
            while begun.elapsed() < time {
                for socket in &mut near {
                    if socket.write_all(&event).is_err() {
                        return 0.0;
                    }
                }
                writes += u32::try_from(SOCKETS).unwrap_or_default();
            }
            f64::from(writes) / begun.elapsed().as_secs_f64()
        });
        let rate = written.join().unwrap_or(0.0);
        stop.store(true, Ordering::Relaxed);
        Ok(rate)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::plan::Plan;

    #[test]
    fn raw_writes_are_counted() {
        let rate = raw_writes(&Cpus::default(), Duration::from_millis(50)).unwrap();
        assert!(rate > 1_000.0, "{rate}");
    }

    #[test]
    fn the_share_is_the_narrower_of_likes_and_deliveries() {
        let capacity = Capacity { hot_likes: 1_000.0, spread_likes: 2_000.0, raw_writes: 50_000.0 };
        let cells = Plan::load("seed").unwrap().0.expand(None);
        let share = |rate: f64, viewers, posts| {
            let found = cells.iter().find(|c| (c.rate, c.viewers, c.posts) == (rate, viewers, posts));
            capacity.share(found.unwrap()).unwrap()
        };
        assert!((share(1_000.0, 1, 1) - 1.0).abs() < 1e-9);
        assert!((share(1_000.0, 1_000, 1) - 20.0).abs() < 1e-9);
        assert!((share(1_000.0, 1_000, 100) - 0.5).abs() < 1e-9);
    }
}
