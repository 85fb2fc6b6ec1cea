//! Something that runs already: only URLs are known; nothing is started, pinned, killed or added.

use std::time::Duration;

use anyhow::{Context, bail};

/// Where it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Urls {
    /// Base URLs of the service.
    pub base: Vec<String>,
    /// Admin URLs of all its pods; without them the ledger cannot compare counters.
    pub admin: Vec<String>,
}

impl Urls {
    /// Asks each base URL once, so that a wrong one is told before the plan begins.
    ///
    /// # Errors
    /// Which URL does not answer, and why.
    pub async fn check(&self) -> anyhow::Result<()> {
        if self.base.is_empty() {
            bail!("--stack remote needs --base-url, for example --base-url http://lab.example:8080");
        }
        let client = reqwest::Client::builder().timeout(Duration::from_secs(5)).build()?;
        for url in self.base.iter().chain(&self.admin) {
            client
                .get(url)
                .send()
                .await
                .with_context(|| format!("{url} does not answer; is it up, and is the URL right?"))?;
        }
        Ok(())
    }
}
