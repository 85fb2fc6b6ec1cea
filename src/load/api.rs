//! The few requests that are not load: making posts, asking for states.

use anyhow::{Context, bail};
use serde::Deserialize;

use crate::domain::PostId;

#[derive(Deserialize)]
struct Created {
    id: Option<PostId>,
    #[serde(rename = "postId")]
    post_id: Option<PostId>,
}

#[derive(Deserialize)]
struct State {
    likes: u64,
    version: u64,
}

fn url(base: &str, path: &str) -> String {
    format!("{}{path}", base.trim_end_matches('/'))
}

/// Makes `count` posts.
///
/// # Errors
/// When the service cannot be reached or refuses.
pub(super) async fn create_posts(client: &reqwest::Client, base: &str, count: u32) -> anyhow::Result<Vec<PostId>> {
    let mut posts = Vec::new();
    for number in 1..=count {
        let body = format!(r#"{{"title":"load {number}"}}"#);
        let request = client.post(url(base, "/posts")).header("content-type", "application/json").body(body);
        let answer =
            request.send().await.with_context(|| format!("{base} cannot be reached; is the service running?"))?;
        let status = answer.status();
        let text = answer.text().await.unwrap_or_default();
        if !status.is_success() {
            bail!("{base}: POST /posts was answered {status}: {text}");
        }
        let made: Created = serde_json::from_str(&text).with_context(|| format!("{base}: POST /posts: {text}"))?;
        posts.push(made.id.or(made.post_id).with_context(|| format!("{base}: POST /posts: no id in {text}"))?);
    }
    Ok(posts)
}

/// (likes, version) of each post.
///
/// # Errors
/// When the service cannot be reached or does not know one.
pub(super) async fn states(client: &reqwest::Client, base: &str, posts: &[PostId]) -> anyhow::Result<Vec<(u64, u64)>> {
    let mut states = Vec::with_capacity(posts.len());
    for post in posts {
        let path = format!("/posts/{post}/likes");
        let request = client.get(url(base, &path)).header("accept", "application/json");
        let answer =
            request.send().await.with_context(|| format!("{base} cannot be reached; is the service running?"))?;
        let status = answer.status();
        if !status.is_success() {
            bail!("{base}: GET {path} was answered {status}");
        }
        let text = answer.text().await?;
        let state: State = serde_json::from_str(&text).with_context(|| format!("{base}: GET {path}: {text}"))?;
        states.push((state.likes, state.version));
    }
    Ok(states)
}
