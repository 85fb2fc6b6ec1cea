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

/// A connection, or none because the server has no more.
async fn filler(url: &str) -> Option<MySqlConnection> {
    MySqlConnection::connect(url).await.ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_without_a_free_connection_is_a_clear_503_and_heals_by_itself() {
    let mariadb = MariaDb::start();
    let root_url = mariadb.database().await;
    // Root alone gets one connection more than there are.
    let mut root = MySqlConnection::connect(&root_url).await.unwrap();
    let (server, name) = root_url.rsplit_once('/').unwrap();
    for user in ["pod", "other"] {
        let user = format!("create user {user}@'%' identified by 'pod'; grant all on {name}.* to {user}@'%'");
        root.execute(sqlx::AssertSqlSafe(user)).await.unwrap();
    }
    let [pod, other] =
        ["pod", "other"].map(|user| format!("{}/{name}", server.replace("root@", &format!("{user}:pod@"))));
    let pods = TestPods::start(&["--database-url", &pod]).await;
    let post = pods.post().await;
    let mut viewer = Sse::open(&pods, 0, &format!("/posts/{post}/likes")).await;
    assert_eq!(viewer.json().await["likes"], 0);

    // Somebody else takes all connections there are, the pod's included.
    root.execute("set global max_connections = 10").await.unwrap();
    let (mut held, deadline) = (Vec::new(), Instant::now() + PATIENCE);
    loop {
        let own = "select cast(id as unsigned) from information_schema.processlist where user = 'pod'";
        let own: Vec<u64> = sqlx::query_scalar(own).fetch_all(&mut root).await.unwrap();
        match filler(&other).await {
            Some(more) => held.push(more),
            None if own.is_empty() => break,
            None => {}
        }
        assert!(Instant::now() < deadline, "the pod keeps {own:?}");
        for id in own {
            let _ = root.execute(sqlx::AssertSqlSafe(format!("kill connection {id}"))).await;
        }
        while let Some(more) = filler(&other).await {
            held.push(more);
        }
    }
    let (status, problem, later) = like(&pods, post).await;
    assert_eq!((status, later), (503, true), "{problem}");
    println!("{problem}");
    assert!(pods.metric(0, "pushlab_timeouts_total", "kind=\"pool\"").await > 0.5);
    // One comes free while a like waits for it, and nothing of what was refused is done later.
    let (liked, ()) = tokio::join!(like(&pods, post), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        held.clear();
    });
    assert_eq!((liked.0, &liked.1["likes"]), (200, &1.into()), "{}", liked.1);
    assert_eq!(viewer.until(1).await["likes"], 1, "the stream went on");
}
