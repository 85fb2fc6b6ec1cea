//! Q8: no sticky session is needed: a like on one pod reaches a viewer on every other.

use std::time::Duration;

use crate::compare::calibrate::create_posts;
use crate::compare::stack::Deployment;
use crate::domain::Update;

/// Likes on each sound pod with the viewer on the next one, past the edge. Returns what did not hold, in sentences.
///
/// # Errors
/// When a pod does not answer at all.
pub async fn check(deployment: &Deployment, sound_from: usize) -> anyhow::Result<Vec<String>> {
    let client = reqwest::Client::builder().connect_timeout(Duration::from_secs(5)).build()?;
    let pods = &deployment.pods[sound_from.min(deployment.pods.len())..];
    let mut broken = Vec::new();
    for (number, liking) in pods.iter().enumerate() {
        let watching = &pods[(number + 1) % pods.len()];
        let post = create_posts(&client, &format!("http://{}", liking.listen), 1).await?[0];
        let url = |pod: &str| format!("http://{pod}/posts/{post}/likes");
        let request = client.get(url(&watching.listen)).header("accept", "text/event-stream");
        let mut stream = request.send().await?.error_for_status()?;
        let seen = tokio::time::timeout(Duration::from_secs(5), async {
            let mut text = Vec::new();
            until(&mut stream, &mut text, 0).await?;
            client.post(url(&liking.listen)).send().await?.error_for_status()?;
            until(&mut stream, &mut text, 1).await
        });
        match seen.await {
            Ok(Ok(true)) => {}
            Ok(Err(error)) => return Err(error.into()),
            Ok(Ok(false)) | Err(_) => {
                broken
                    .push(format!("Q8: a like on {} did not reach a viewer on {} in 5 s", liking.name, watching.name));
            }
        }
    }
    Ok(broken)
}

/// Reads on until a version is there; false when the stream ended before.
async fn until(stream: &mut reqwest::Response, text: &mut Vec<u8>, version: u64) -> reqwest::Result<bool> {
    loop {
        let lines = text.split(|byte| *byte == b'\n').filter_map(|line| line.strip_prefix(b"data: "));
        if lines.filter_map(|json| Update::from_json(json).ok()).any(|update| update.version().0 >= version) {
            return Ok(true);
        }
        match stream.chunk().await? {
            Some(chunk) => text.extend_from_slice(&chunk),
            None => return Ok(false),
        }
    }
}
