//! The current keys, and reading them again: by and by, and when a token names a key that is not there.
//!
//! Invariant: whatever tokens arrive, they cause a reading of the JWKS at most once per [`PAUSE`], and what was known stays when it fails.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use prometheus::IntCounterVec;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::config::KeySource;
use super::keys::KeySet;

/// Shortest time between two readings that tokens cause.
const PAUSE: Duration = Duration::from_secs(10);
/// Shortest time between two readings by and by.
const SHORTEST: Duration = Duration::from_secs(1);
/// A reading must end within this.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Largest JWKS, bytes.
const SIZE: usize = 256 * 1024;

/// The keys, shared by all requests.
pub(super) struct Keys {
    current: RwLock<Arc<KeySet>>,
    source: Option<Source>,
    /// When tokens last caused a reading; held while one is under way.
    asked: Mutex<Option<Instant>>,
    refreshes: IntCounterVec,
}

enum Source {
    File(PathBuf),
    Url { client: reqwest::Client, url: reqwest::Url },
}

impl Keys {
    /// Reads the keys for the first time.
    pub(super) async fn open(source: KeySource, refreshes: IntCounterVec) -> anyhow::Result<Self> {
        let (set, source) = match source {
            KeySource::Secret(secret) => (KeySet::secret(&secret), None),
            KeySource::File(path) => {
                let source = Source::File(path);
                (source.read().await?, Some(source))
            }
            KeySource::Url(url) => {
                super::super::tls::provide();
                // A redirect would leave the place the operator named.
                let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none());
                let client = client.connect_timeout(TIMEOUT).timeout(TIMEOUT).build().context("--jwks")?;
                let source = Source::Url { client, url };
                (source.read().await?, Some(source))
            }
        };
        tracing::info!(keys = set.len(), ignored = set.ignored, "tokens are verified");
        Ok(Self { current: RwLock::new(Arc::new(set)), source, asked: Mutex::default(), refreshes })
    }

    /// The keys that count now.
    pub(super) fn now(&self) -> Arc<KeySet> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Another set of keys than `known`, if there is one to be had now: those who ask together share one reading.
    pub(super) async fn newer(&self, known: &Arc<KeySet>) -> Option<Arc<KeySet>> {
        let source = self.source.as_ref()?;
        let mut asked = self.asked.lock().await;
        let now = self.now();
        if !Arc::ptr_eq(&now, known) {
            return Some(now);
        }
        if asked.is_some_and(|last| last.elapsed() < PAUSE) {
            return None;
        }
        *asked = Some(Instant::now());
        self.read(source).await
    }

    /// Reads the keys every `every`, for ever; returns at once when there is nothing to read.
    pub(super) async fn keep_fresh(&self, every: Duration) {
        let Some(source) = &self.source else { return };
        loop {
            // Pods that started together do not ask together.
            tokio::time::sleep(every.max(SHORTEST).mul_f64(rand::random_range(0.8..=1.2))).await;
            self.read(source).await;
        }
    }

    async fn read(&self, source: &Source) -> Option<Arc<KeySet>> {
        match source.read().await {
            Ok(set) => {
                self.refreshes.with_label_values(&["done"]).inc();
                let set = Arc::new(set);
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&set);
                Some(set)
            }
            Err(error) => {
                self.refreshes.with_label_values(&["failed"]).inc();
                tracing::warn!("the keys stay as they are: {error:#}");
                None
            }
        }
    }
}

impl Source {
    async fn read(&self) -> anyhow::Result<KeySet> {
        let (place, read) = match self {
            Self::File(path) => (path.display().to_string(), tokio::time::timeout(TIMEOUT, read_file(path)).await),
            Self::Url { client, url } => {
                (url.to_string(), tokio::time::timeout(TIMEOUT, fetch(client, url.clone())).await)
            }
        };
        let json = read.map_err(|_| anyhow!("no answer within {TIMEOUT:?}")).and_then(|read| read);
        let set = json.and_then(|json| KeySet::from_jwks(&json).map_err(|what| anyhow!(what)));
        set.with_context(|| format!("--jwks {place}"))
    }
}

async fn read_file(path: &std::path::Path) -> anyhow::Result<Vec<u8>> {
    let json = tokio::fs::read(path).await?;
    if json.len() > SIZE {
        bail!("it is larger than {SIZE} bytes");
    }
    Ok(json)
}

async fn fetch(client: &reqwest::Client, url: reqwest::Url) -> anyhow::Result<Vec<u8>> {
    let mut answer = client.get(url).send().await.map_err(reqwest::Error::without_url)?;
    if answer.status() != http::StatusCode::OK {
        bail!("it answers {}", answer.status());
    }
    let mut json = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(reqwest::Error::without_url)? {
        json.extend_from_slice(&piece);
        if json.len() > SIZE {
            bail!("it is larger than {SIZE} bytes");
        }
    }
    Ok(json)
}
