//! A database that answers and does not do its work: read-only, or its rows locked by somebody else.

use std::time::{Duration, Instant};

use serde_json::Value;
use sqlx::{Connection, Executor, MySqlConnection};

use super::client::Sse;
use super::{PATIENCE, TestPods};
use crate::servers::MariaDb;

/// A like's status, problem and `Retry-After`, in bounded time.
async fn like(pods: &TestPods, post: u64) -> (u16, Value, bool) {
    let asked = pods.http.post(pods.url(0, &format!("/posts/{post}/likes"))).send();
    let answer = tokio::time::timeout(PATIENCE, asked).await.expect("an answer in bounded time").unwrap();
    let (status, later) = (answer.status().as_u16(), answer.headers().contains_key("retry-after"));
    (status, answer.json().await.unwrap_or_default(), later)
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_database_takes_no_writes_likers_are_told_when_to_come_back_and_viewers_stay() {
    let mariadb = MariaDb::start();
    let url = mariadb.database().await;
    let mut root = MySqlConnection::connect(&url).await.unwrap();
    let (server, name) = url.rsplit_once('/').unwrap();
    // Root may write to a read-only server; the pod's user may not.
    let user = format!("create user pod@'%' identified by 'pod'; grant all on {name}.* to pod@'%'");
    root.execute(sqlx::AssertSqlSafe(user)).await.unwrap();
    let url = format!("{}/{name}", server.replace("root@", "pod:pod@"));
    let pods = TestPods::start(&["--database-url", &url]).await;
    let post = pods.post().await;
    let mut viewer = Sse::open(&pods, 0, &format!("/posts/{post}/likes")).await;
    assert_eq!(viewer.json().await["likes"], 0);

    let mut expected = 0;
    for (how, begin, end) in [
        ("read-only", "set global read_only = 1", "set global read_only = 0"),
        ("locked", "lock tables posts write", "unlock tables"),
    ] {
        root.execute(begin).await.unwrap();
        let (status, problem, later) = like(&pods, post).await;
        assert_eq!((status, later), (503, true), "{how}: {problem}");
        assert_eq!((&problem["status"], problem["type"].is_string()), (&503.into(), true), "{how}: {problem}");
        root.execute(end).await.unwrap();
        // Nothing of what was refused is done later.
        let deadline = Instant::now() + PATIENCE;
        expected += 1;
        loop {
            let (status, state, _) = like(&pods, post).await;
            if status == 200 {
                assert_eq!(state["likes"], expected, "{how}");
                break;
            }
            assert!(Instant::now() < deadline, "{how}: {state}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(viewer.until(expected).await["likes"], expected, "{how}: the stream went on");
    }
}
