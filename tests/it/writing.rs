//! What only some write strategies do: round trips, bounded retries, shared commits, likes counted later, the outbox.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use pushlab::domain::{PostId, Version};
use pushlab::store::{
    LikeOp, LikeOutcome, LikeRequest, LikeStore, Queue, StoreError, StoreOptions, Who, WriteStrategy,
};
use sqlx::mysql::MySqlRow;
use sqlx::{Connection, MySqlConnection, Row};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::pod_process::PATIENCE;
use crate::proxy::Proxy;
use crate::servers::MariaDb;
use crate::store::{
    all, eventually, every_version_is_published_once, hasty, keyed, like, new_post, patient, state, unlike,
};

async fn open(url: &str, write: WriteStrategy) -> LikeStore {
    open_with(url, patient(write)).await
}

async fn open_with(url: &str, options: StoreOptions) -> LikeStore {
    LikeStore::connect(url, options).await.unwrap()
}

fn ok(outcomes: Vec<Result<LikeOutcome, StoreError>>) -> Vec<LikeOutcome> {
    outcomes.into_iter().map(Result::unwrap).collect()
}

/// The server's own counters of what a like costs: statements by kind, and pings (`admin_commands`).
async fn counters(conn: &mut MySqlConnection) -> BTreeMap<String, i64> {
    let show = "show global status where variable_name in ('Com_begin', 'Com_commit', 'Com_rollback', \
        'Com_stmt_execute', 'Com_stmt_prepare', 'Com_admin_commands', 'Com_set_option')";
    // Not prepared, so that this one is not among what it counts.
    let rows = sqlx::raw_sql(show).fetch_all(conn).await.unwrap();
    let name = |row: &MySqlRow| row.get::<String, _>(0).to_lowercase().trim_start_matches("com_").to_owned();
    rows.iter().map(|row| (name(row), row.get::<String, _>(1).parse().unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_like_costs_five_round_trips_and_no_more() {
    const LIKES: i64 = 100;
    // A server of its own: it counts for all its clients.
    let server = MariaDb::start();
    let mut watcher = MySqlConnection::connect(&server.database().await).await.unwrap();
    for (write, executed) in [
        (WriteStrategy::Pessimistic, 2), // SELECT … FOR UPDATE, UPDATE
        (WriteStrategy::Optimistic, 2),  // SELECT, UPDATE … AND version = ?
        (WriteStrategy::Atomic, 2),      // UPDATE … + 1, SELECT
        (WriteStrategy::Combining, 2),   // alone in its batch
        (WriteStrategy::Event, 1),       // INSERT … SELECT
    ] {
        // One connection, so that the next like waits until it is back: the pool's ping counts too.
        let options = StoreOptions { max_connections: 1, ..patient(write) };
        let store = open_with(&server.database().await, options).await;
        let post = new_post(&store).await;
        for _ in 0..5 {
            store.apply(&like(post)).await.unwrap();
        }
        let before = counters(&mut watcher).await;
        for _ in 0..LIKES {
            store.apply(&like(post)).await.unwrap();
        }
        // A writer that finds somebody waiting keeps its connection, and saves the ping.
        let fewest = if write == WriteStrategy::Combining { 1 } else { LIKES };
        let deadline = Instant::now() + PATIENCE;
        let after = loop {
            let now = counters(&mut watcher).await;
            if now["admin_commands"] - before["admin_commands"] >= fewest || Instant::now() > deadline {
                break now;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let of = |name: &str| after[name] - before[name];
        let found = (of("begin"), of("stmt_execute"), of("commit"));
        assert_eq!(found, (LIKES, executed * LIKES, LIKES), "{write:?}: BEGIN, statements, COMMIT");
        let pings = of("admin_commands");
        // The last ping of those before may be among them.
        assert!((fewest..=LIKES + 1).contains(&pings), "{write:?}: {pings} pings");
        assert_eq!((of("rollback"), of("set_option")), (0, 0), "{write:?}");
        assert!(of("stmt_prepare") < 3, "{write:?}: statements are prepared once");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_overtaken_like_is_tried_a_bounded_number_of_times() {
    let url = MariaDb::shared().database().await;
    let options = StoreOptions { write: WriteStrategy::Optimistic, optimistic_retries: 0, ..StoreOptions::default() };
    let store = open_with(&url, options).await;
    let post = new_post(&store).await;
    let outcomes = all(std::slice::from_ref(&store), vec![like(post); 200]).await;
    let refused = outcomes.iter().filter(|outcome| **outcome == Err(StoreError::Contended)).count();
    let counted: Vec<LikeOutcome> = outcomes.into_iter().flatten().collect();
    assert!(refused > 0 && counted.len() + refused == 200, "{refused}");
    let versions: BTreeSet<u64> = counted.iter().map(|outcome| outcome.state.version.0).collect();
    assert_eq!(versions, (1..=counted.len() as u64).collect(), "nothing of the refused ones is left");
    every_version_is_published_once(&counted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn likes_that_arrive_together_share_commits() {
    let url = MariaDb::shared().database().await;
    let stores = [open(&url, WriteStrategy::Combining).await, open(&url, WriteStrategy::Combining).await];
    let (post, other) = (new_post(&stores[0]).await, new_post(&stores[0]).await);
    // Everything there is, mixed, on two posts.
    let user = |i: usize| Who::User(format!("user {}", i % 40));
    let requests: Vec<LikeRequest> = (0..1_200)
        .map(|i| {
            let post = if i % 12 == 0 { other } else { post };
            match i % 6 {
                0..=2 => like(post),
                3 => unlike(post),
                4 => keyed(post, &format!("key {}", i % 100), b""),
                _ => LikeRequest {
                    op: if i % 4 == 1 { LikeOp::Unlike } else { LikeOp::Like },
                    who: user(i),
                    once: true,
                    ..like(post)
                },
            }
        })
        .collect();
    let outcomes = ok(all(&stores, requests.clone()).await);
    for post in [post, other] {
        let of_post: Vec<LikeOutcome> = outcomes.iter().filter(|o| o.state.post_id == post).cloned().collect();
        every_version_is_published_once(&of_post);
        let mut changed: Vec<&LikeOutcome> = of_post.iter().filter(|o| o.changed && !o.replayed).collect();
        changed.sort_by_key(|outcome| outcome.state.version);
        let versions: Vec<u64> = changed.iter().map(|outcome| outcome.state.version.0).collect();
        assert_eq!(versions, (1..=changed.len() as u64).collect::<Vec<_>>());
        let mut likes = 0;
        for outcome in &changed {
            assert_eq!(outcome.state.likes.abs_diff(likes), 1, "one at a time");
            likes = outcome.state.likes;
        }
        assert_eq!(state(&stores[0], post).await, (likes, changed.len() as u64));
    }
    let commits: u64 =
        stores.iter().map(|store| store.counters().commits.load(std::sync::atomic::Ordering::Relaxed)).sum();
    assert!(commits < 600, "{commits} commits for 1200 likes");
    // Answers were kept for each key, and each user's like is as the last answer to her says.
    let again = ok(all(&stores, requests.iter().filter(|r| r.key.is_some()).cloned().collect()).await);
    assert!(!again.is_empty() && again.iter().all(|outcome| outcome.replayed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_network_costs_those_who_wait_together_bounded_time() {
    let database = MariaDb::shared();
    let proxy = Proxy::start(database.port()).await;
    let url = database.database().await;
    let store = open_with(&proxy.instead_of(&url), StoreOptions { write: WriteStrategy::Combining, ..hasty() }).await;
    let watcher = open(&url, WriteStrategy::Pessimistic).await;
    let (post, frozen) = (new_post(&store).await, CancellationToken::new());
    // A hundred at a time, until a hundred that were sent after the freeze have all succeeded.
    let likes = tokio::spawn({
        let (store, frozen) = (store.clone(), frozen.clone());
        async move {
            let mut outcomes = Vec::new();
            loop {
                let after = frozen.is_cancelled();
                let hundred = all(std::slice::from_ref(&store), vec![like(post); 100]).await;
                let over = after && hundred.iter().all(Result::is_ok);
                outcomes.extend(hundred);
                if over {
                    return outcomes;
                }
            }
        }
    });
    eventually(|| async { if state(&watcher, post).await.1 > 300 { Ok(()) } else { Err("not yet") } }).await;
    proxy.freeze();
    frozen.cancel();
    let outcomes = tokio::time::timeout(PATIENCE, likes).await.expect("nobody waits for ever").unwrap();
    let counted = outcomes.iter().filter(|outcome| outcome.is_ok()).count() as u64;
    let unknown =
        outcomes.iter().filter(|outcome| matches!(outcome, Err(StoreError::OutcomeUnknown { .. }))).count() as u64;
    let (likes, version) = state(&watcher, post).await;
    assert!(likes == version && (counted..=counted + unknown).contains(&version), "{counted} + {unknown}: {version}");
    assert!(store.apply(&like(post)).await.unwrap().changed);
}

/// Counts until nothing is pending; how many were.
async fn count_all(store: &LikeStore, post: PostId) -> usize {
    let mut counted = 0;
    while let Some(some) = store.count_pending(post).await.unwrap() {
        assert!(some.accepted_at.iter().all(|at| *at <= some.committed_at));
        counted += some.accepted_at.len();
    }
    counted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pending_likes_are_counted_once_whoever_counts_them() {
    let url = MariaDb::shared().database().await;
    let stores = [open(&url, WriteStrategy::Event).await, open(&url, WriteStrategy::Event).await];
    let post = new_post(&stores[0]).await;
    let mine = |op| LikeRequest { op, who: Who::User("ann".into()), once: true, ..like(post) };
    // Taken back at 0: kept, then counted as nothing.
    assert!(stores[0].apply(&unlike(post)).await.unwrap().pending);
    let mut requests = vec![like(post); 300];
    requests.extend(vec![keyed(post, "k", b""); 30]);
    requests.extend(vec![mine(LikeOp::Like); 20]);
    let counting = async {
        let mut counted = [0, 0];
        for _ in 0..50 {
            let (a, b) = tokio::join!(stores[0].count_pending(post), stores[1].count_pending(post));
            counted[0] += a.unwrap().map_or(0, |some| some.accepted_at.len());
            counted[1] += b.unwrap().map_or(0, |some| some.accepted_at.len());
        }
        counted
    };
    let (outcomes, counted) = tokio::join!(all(&stores, requests), counting);
    let outcomes = ok(outcomes);
    let (pending, settled): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(|outcome| outcome.pending);
    assert_eq!(pending.iter().filter(|outcome| !outcome.replayed).count(), 302, "300, one key, one user");
    assert!(settled.len() == 19 && settled.iter().all(|outcome| !outcome.changed), "a second like of a user");
    let left = count_all(&stores[0], post).await;
    assert_eq!(counted.iter().sum::<usize>() + left, 303);
    assert_eq!(state(&stores[0], post).await, (302, 302));
    assert_eq!(stores[1].pending_queue().await.unwrap(), Queue::default());

    // The key's answer stays the same after it was counted; her like can be taken back once.
    let again = stores[1].apply(&keyed(post, "k", b"")).await.unwrap();
    assert!(again.pending && again.replayed);
    assert_eq!(stores[1].apply(&keyed(post, "k", b"other")).await, Err(StoreError::KeyMismatch));
    assert!(stores[1].apply(&mine(LikeOp::Unlike)).await.unwrap().pending);
    assert!(!stores[1].apply(&mine(LikeOp::Unlike)).await.unwrap().pending);
    assert_eq!(stores[0].pending_posts().await.unwrap(), [post]);
    let counted = stores[0].count_pending(post).await.unwrap().unwrap();
    let event = counted.publish.unwrap().event;
    assert_eq!((event.prev, event.version, event.likes), (Version(302), Version(303), 301));
    assert_eq!(stores[0].apply(&like(PostId::new(4711).unwrap())).await, Err(StoreError::UnknownPost));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_outbox_has_what_was_committed_and_nobody_claims_a_row_twice() {
    let url = MariaDb::shared().database().await;
    let write = WriteStrategy::Pessimistic;
    let store = open_with(&url, StoreOptions { write, outbox: true, ..StoreOptions::default() }).await;
    let post = new_post(&store).await;
    let outcomes = ok(all(std::slice::from_ref(&store), vec![like(post); 6]).await);
    assert!(outcomes.iter().all(|outcome| outcome.publish.as_ref().is_some_and(|publish| publish.outbox.is_some())));
    store.apply(&keyed(post, "k", b"")).await.unwrap();
    assert!(store.apply(&keyed(post, "k", b"")).await.unwrap().publish.is_none(), "a replay tells nothing");
    assert!(store.apply(&like(PostId::new(4711).unwrap())).await.is_err());
    assert_eq!(store.outbox_queue().await.unwrap().rows, 7);

    // The first claims four and waits for its acknowledgements; the second gets the others meanwhile.
    let (claimed, first_claims) = oneshot::channel();
    let (go_on, acknowledged) = oneshot::channel::<()>();
    let slow = tokio::spawn({
        let store = store.clone();
        async move {
            let publish = |rows: Vec<pushlab::store::ToPublish>| async move {
                let versions: Vec<u64> = rows.iter().map(|row| row.event.version.0).collect();
                claimed.send(versions).unwrap();
                acknowledged.await.unwrap();
                // The last of the four was not acknowledged.
                rows.iter().take(3).filter_map(|row| row.outbox).collect()
            };
            store.publish_left(Duration::ZERO, 4, publish).await
        }
    });
    assert_eq!(first_claims.await.unwrap(), [1, 2, 3, 4]);
    let mut others = Vec::new();
    let taken = store
        .publish_left(Duration::ZERO, 100, |rows| {
            others = rows.clone();
            async move { rows.iter().filter_map(|row| row.outbox).collect() }
        })
        .await
        .unwrap();
    assert_eq!(others.iter().map(|row| row.event.version.0).collect::<Vec<_>>(), [5, 6, 7]);
    assert_eq!(taken, 3);
    go_on.send(()).unwrap();
    assert_eq!(slow.await.unwrap(), Ok(3));
    let old = store.publish_left(Duration::from_secs(60), 100, |_| async { panic!("none is so old") }).await;
    assert_eq!(old, Ok(0));
    let rest = store.publish_left(Duration::ZERO, 100, |rows| async move {
        assert_eq!((rows.len(), rows[0].event.version), (1, Version(4)));
        rows.iter().filter_map(|row| row.outbox).collect()
    });
    assert_eq!(rest.await, Ok(1));
    assert_eq!(store.outbox_queue().await.unwrap(), Queue::default());
}
