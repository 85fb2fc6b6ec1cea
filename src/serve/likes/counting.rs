//! Counts likes that were answered `pending`: a task per post, woken by a like kept here, and by a look at the table for what
//! pods left behind.

use std::time::Duration;

use tokio::time::sleep;

use super::Likes;
use crate::domain::{PostId, unix_micros};
use crate::store::StoreError;

/// The table is looked at about this often while likes are written so,
const LOOK: Duration = Duration::from_secs(1);

/// and this often while they are not: what was kept before a change of the flag is counted too.
const SELDOM: Duration = Duration::from_secs(60);

/// Wakes the posts that have pending likes, for ever.
pub(super) async fn look(likes: Likes, often: bool) {
    let every = if often { LOOK } else { SELDOM };
    loop {
        match likes.store.pending_posts().await {
            Ok(posts) => posts.into_iter().for_each(|post| likes.count(post)),
            Err(error) => tracing::warn!(%error, "pending likes are not looked for now"),
        }
        if let Ok(queue) = likes.store.pending_queue().await {
            likes.metrics.pending_likes.set(i64::try_from(queue.rows).unwrap_or(i64::MAX));
        }
        sleep(every.mul_f64(rand::random_range(0.5..=1.5))).await;
    }
}

impl Likes {
    /// Has the post's pending likes counted, by this pod or by whoever holds the post's row.
    pub(super) fn count(&self, post: PostId) {
        let Some(mut turn) = self.counting.begin(post) else { return };
        let likes = self.clone();
        self.tasks.spawn(async move {
            loop {
                match likes.store.count_pending(post).await {
                    Ok(counted) => {
                        for accepted_at in counted.iter().flat_map(|counted| &counted.accepted_at) {
                            let waited = counted.as_ref().map_or(0, |c| c.committed_at).saturating_sub(*accepted_at);
                            likes.metrics.pending_seconds.observe(Duration::from_micros(waited).as_secs_f64());
                        }
                        if let Some(publish) = counted.as_ref().and_then(|counted| counted.publish.clone()) {
                            likes.publish(publish);
                        }
                        if counted.is_some_and(|counted| counted.more) {
                            continue;
                        }
                    }
                    Err(error) => {
                        if matches!(error, StoreError::OutcomeUnknown { .. }) {
                            likes.find_out_later(post, unix_micros());
                        }
                        // They stay in the table, and the next look finds them.
                        tracing::warn!(%error, %post, "pending likes are not counted now");
                        return;
                    }
                }
                if !turn.again() {
                    return;
                }
            }
        });
    }
}
