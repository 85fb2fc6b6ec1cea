//! The store against a real MariaDB and a real file: counted once, in bounded time, back without a restart.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use pushlab::domain::{PostId, Version};
use pushlab::store::{
    IdempotencyKey, LikeOp, LikeOutcome, LikeRequest, LikeStore, StoreError, StoreOptions, Who, WriteStrategy,
};
use sqlx::{Connection, Executor, MySqlConnection};
use tokio::task::JoinSet;

use crate::pod_process::PATIENCE;
use crate::proxy::Proxy;
use crate::servers::MariaDb;

/// A database, and how likes are written into it.
#[derive(Clone)]
pub(crate) struct Target {
    url: String,
    write: WriteStrategy,
}

impl Target {
    pub(crate) async fn mariadb(write: WriteStrategy) -> Self {
        Self { url: MariaDb::shared().database().await, write }
    }

    pub(crate) async fn connect(&self) -> LikeStore {
        LikeStore::connect(&self.url, patient(self.write)).await.unwrap()
    }
}

/// Enough for a test in which everybody wants the same row at once, on a machine that does something else, too.
pub(crate) fn patient(write: WriteStrategy) -> StoreOptions {
    StoreOptions {
        write,
        optimistic_retries: 200,
        acquire_timeout: Duration::from_secs(30),
        lock_timeout: Duration::from_secs(30),
        operation_timeout: Duration::from_secs(30),
        ..StoreOptions::default()
    }
}

/// Runs a test on MariaDB with these strategies, and on SQLite.
macro_rules! on_both {
    (@one $name:ident [$($write:ident)*]) => {
        #[allow(non_snake_case, reason = "a strategy's name is its variant's")]
        mod $name {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $write() {
                    super::$name(&super::Target::mariadb(pushlab::store::WriteStrategy::$write).await).await;
                }
            )*
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                let folder = tempfile::tempdir().unwrap();
                let url = format!("sqlite:{}", folder.path().join("likes.db").display());
                super::$name(&super::Target { url, write: Default::default() }).await;
            }
        }
    };
    ($writes:tt $($name:ident)*) => { $( on_both!(@one $name $writes); )* };
}

on_both! {
    [Pessimistic]
    pods_that_start_at_once_agree
    old_keys_are_swept
    reads_take_many_posts
}

on_both! {
    [Pessimistic Optimistic Atomic Combining]
    each_of_300_concurrent_likes_gets_a_version_of_its_own
    a_key_counts_once_however_often_it_is_sent
    a_user_has_one_like
    the_count_never_falls_below_zero
    unknown_posts_and_bad_requests_are_refused
}

async fn connect(target: &Target) -> LikeStore {
    target.connect().await
}

async fn plain(url: &str) -> LikeStore {
    LikeStore::connect(url, StoreOptions::default()).await.unwrap()
}

pub(crate) async fn new_post(store: &LikeStore) -> PostId {
    store.create_post("a title").await.unwrap().id
}

pub(crate) fn like(post: PostId) -> LikeRequest {
    LikeRequest::anonymous_like(post)
}

pub(crate) fn unlike(post: PostId) -> LikeRequest {
    LikeRequest { op: LikeOp::Unlike, ..like(post) }
}

pub(crate) fn keyed(post: PostId, value: &str, payload: &[u8]) -> LikeRequest {
    LikeRequest { key: Some(IdempotencyKey::new("POST /posts/x/likes", value, payload).unwrap()), ..like(post) }
}

pub(crate) async fn state(store: &LikeStore, post: PostId) -> (u64, u64) {
    let state = store.read(&[post]).await.unwrap()[0].state;
    (state.likes, state.version.0)
}

/// Sends all at once, over the stores in turn.
pub(crate) async fn all(stores: &[LikeStore], requests: Vec<LikeRequest>) -> Vec<Result<LikeOutcome, StoreError>> {
    let mut tasks = JoinSet::new();
    for (i, request) in requests.into_iter().enumerate() {
        let store = stores[i % stores.len()].clone();
        tasks.spawn(async move { store.apply(&request).await });
    }
    tasks.join_all().await
}

async fn pods_that_start_at_once_agree(url: &Target) {
    let mut tasks = JoinSet::new();
    for _ in 0..6 {
        let url = url.clone();
        tasks.spawn(async move { connect(&url).await.epoch().await.unwrap() });
    }
    let epochs: BTreeSet<u32> = tasks.join_all().await.into_iter().map(|epoch| epoch.0).collect();
    assert_eq!(epochs.len(), 1, "{epochs:?}");
    let store = connect(url).await;
    let other = store.new_epoch().await.unwrap();
    assert_eq!(connect(url).await.epoch().await.unwrap(), other);
    assert!(!epochs.contains(&other.0));
}

async fn each_of_300_concurrent_likes_gets_a_version_of_its_own(url: &Target) {
    let stores = [connect(url).await, connect(url).await, connect(url).await];
    let post = new_post(&stores[0]).await;
    let outcomes = all(&stores, vec![like(post); 300]).await;
    let outcomes: Vec<LikeOutcome> = outcomes.into_iter().map(Result::unwrap).collect();
    let versions: BTreeSet<u64> = outcomes.iter().map(|o| o.state.version.0).collect();
    assert_eq!(versions, (1..=300).collect());
    for o in &outcomes {
        assert!(o.changed && !o.replayed && o.committed_at > 0);
        assert_eq!((o.state.likes, o.prev), (o.state.version.0, Version(o.state.version.0 - 1)));
    }
    assert_eq!(state(&stores[0], post).await, (300, 300));
    every_version_is_published_once(&outcomes);
}

/// The events that the callers are to publish follow each other without a gap, whoever shared a commit with whom.
pub(crate) fn every_version_is_published_once(outcomes: &[LikeOutcome]) {
    let mut events: Vec<_> = outcomes.iter().filter_map(|o| o.publish.as_ref()).map(|publish| publish.event).collect();
    events.sort_by_key(|event| event.version);
    let mut known = Version(0);
    for event in &events {
        assert!(event.prev == known && event.version > known && event.committed_at > 0, "{event:?} after {known}");
        known = event.version;
    }
    let newest = outcomes.iter().map(|o| o.state.version).max();
    assert_eq!(Some(known), newest);
}

async fn a_key_counts_once_however_often_it_is_sent(url: &Target) {
    let stores = [connect(url).await, connect(url).await];
    let post = new_post(&stores[0]).await;
    let outcomes = all(&stores, vec![keyed(post, "k", b""); 50]).await;
    let outcomes: Vec<LikeOutcome> = outcomes.into_iter().map(Result::unwrap).collect();
    assert_eq!(outcomes.iter().filter(|o| !o.replayed).count(), 1);
    assert!(outcomes.iter().all(|o| o.changed && o.state.version == Version(1) && o.state.likes == 1));
    assert_eq!(state(&stores[0], post).await, (1, 1));

    // Another like in between: the replay still gives the first answer.
    stores[0].apply(&like(post)).await.unwrap();
    let again = connect(url).await.apply(&keyed(post, "k", b"")).await.unwrap();
    assert!(again.replayed && again.state.version == Version(1));
    assert_eq!(stores[1].apply(&keyed(post, "k", b"other")).await, Err(StoreError::KeyMismatch));
    // Another user's key is another key.
    let user = LikeRequest { who: Who::User("a".into()), ..keyed(post, "k", b"") };
    assert_eq!(stores[1].apply(&user).await.unwrap().state.version, Version(3));
}

async fn a_user_has_one_like(url: &Target) {
    let store = connect(url).await;
    let post = new_post(&store).await;
    let mine = |op| LikeRequest { op, who: Who::User("ann".into()), once: true, ..like(post) };
    let outcomes = all(std::slice::from_ref(&store), vec![mine(LikeOp::Like); 20]).await;
    assert_eq!(outcomes.into_iter().filter(|o| o.as_ref().unwrap().changed).count(), 1);
    assert_eq!(state(&store, post).await, (1, 1));
    // One more with a key: its answer is kept, and nothing else.
    let kept = LikeRequest { key: keyed(post, "mine", b"").key, ..mine(LikeOp::Like) };
    for replayed in [false, true] {
        let outcome = store.apply(&kept).await.unwrap();
        assert!(!outcome.changed && outcome.replayed == replayed && outcome.state.version == Version(1), "{outcome:?}");
    }
    assert_eq!(state(&store, post).await, (1, 1));
    let back = store.apply(&mine(LikeOp::Unlike)).await.unwrap();
    assert!(back.changed && back.state.likes == 0 && back.state.version == Version(2));
    assert!(!store.apply(&mine(LikeOp::Unlike)).await.unwrap().changed);

    // Her like was taken back by somebody unknown: hers is gone all the same, and she may like again.
    store.apply(&mine(LikeOp::Like)).await.unwrap();
    store.apply(&unlike(post)).await.unwrap();
    assert!(!store.apply(&mine(LikeOp::Unlike)).await.unwrap().changed);
    assert!(store.apply(&mine(LikeOp::Like)).await.unwrap().changed);
}

async fn the_count_never_falls_below_zero(url: &Target) {
    let store = connect(url).await;
    let post = new_post(&store).await;
    let outcome = store.apply(&unlike(post)).await.unwrap();
    assert!(!outcome.changed);
    assert_eq!((outcome.state.likes, outcome.state.version, outcome.prev), (0, Version(0), Version(0)));
    let mixed = (0..60).map(|i| if i % 3 == 0 { like(post) } else { unlike(post) }).collect();
    let outcomes = all(std::slice::from_ref(&store), mixed).await;
    let changed = outcomes.iter().filter(|o| o.as_ref().unwrap().changed).count() as u64;
    let (likes, version) = state(&store, post).await;
    assert_eq!(version, changed);
    assert_eq!(likes, 20 - (changed - 20));
}

async fn unknown_posts_and_bad_requests_are_refused(url: &Target) {
    let store = connect(url).await;
    let nobody = PostId::new(4711).unwrap();
    assert_eq!(store.apply(&like(nobody)).await, Err(StoreError::UnknownPost));
    assert_eq!(store.apply(&keyed(nobody, "k", b"")).await, Err(StoreError::UnknownPost));
    assert_eq!(store.post(nobody).await, Err(StoreError::UnknownPost));
    assert_eq!(store.read(&[nobody]).await.unwrap(), []);
    assert_eq!(store.apply(&LikeRequest { once: true, ..like(nobody) }).await, Err(StoreError::UserRequired));
    assert_eq!(unlike(nobody).check_repeatable(), Err(StoreError::KeyRequired));
    assert!(matches!(store.create_post(&"x".repeat(201)).await, Err(StoreError::Limit(_))));
    let title = "ä".repeat(200);
    let post = store.create_post(&title).await.unwrap();
    assert_eq!(store.post(post.id).await.unwrap(), post);
}

async fn old_keys_are_swept(url: &Target) {
    let store = connect(url).await;
    let post = new_post(&store).await;
    store.apply(&keyed(post, "k", b"")).await.unwrap();
    assert_eq!(store.sweep_keys().await.unwrap(), 0);
    assert_eq!(store.sweep_keys_older_than(Duration::ZERO).await.unwrap(), 1);
    assert!(!store.apply(&keyed(post, "k", b"")).await.unwrap().replayed);
}

async fn reads_take_many_posts(url: &Target) {
    let store = connect(url).await;
    let mut posts = Vec::new();
    for _ in 0..20 {
        posts.push(new_post(&store).await);
    }
    store.apply(&like(posts[7])).await.unwrap();
    for n in [1, 2, 8, 9, 20] {
        let read = store.read(&posts[..n]).await.unwrap();
        let ids: BTreeSet<PostId> = read.iter().map(|s| s.state.post_id).collect();
        assert_eq!(ids, posts[..n].iter().copied().collect());
        assert!(read.iter().all(|s| s.changed_at > 0 && s.state.likes == u64::from(s.state.post_id == posts[7])));
    }
}

/// Shorter times than production's, so that the tests are; long enough for fifty likes on a slow disk.
pub(crate) fn hasty() -> StoreOptions {
    StoreOptions {
        acquire_timeout: Duration::from_secs(2),
        lock_timeout: Duration::from_secs(1),
        operation_timeout: Duration::from_secs(4),
        max_connections: 4,
        ..StoreOptions::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_row_ends_in_an_error_and_its_key_in_a_conflict() {
    let url = MariaDb::shared().database().await;
    let store = LikeStore::connect(&url, hasty()).await.unwrap();
    let (post, free) = (new_post(&store).await, new_post(&store).await);
    let mut other = MySqlConnection::connect(&url).await.unwrap();
    other.execute("begin").await.unwrap();
    sqlx::query("select * from posts where id = ? for update").bind(post.get()).execute(&mut other).await.unwrap();

    // In this process the duplicate waits for the first, at most the lock time-out.
    let first = tokio::spawn({
        let store = store.clone();
        async move { store.apply(&keyed(post, "here", b"")).await }
    });
    let started = Instant::now();
    assert_eq!(store.apply(&like(post)).await, Err(StoreError::Contended));
    assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
    assert_eq!(first.await.unwrap(), Err(StoreError::Contended));

    // In another process the first one is inside its transaction: its key is seen before it is committed.
    let insert = "insert into idempotency_keys values ('a', 'POST /posts/x/likes', 'there', '12345678901234567890', 1, 1, 0, 1, 1)";
    other.execute(insert).await.unwrap();
    assert_eq!(store.apply(&keyed(post, "there", b"")).await, Err(StoreError::KeyInFlight));
    // Other posts are not held up, and nothing of the failed ones is left.
    assert!(store.apply(&like(free)).await.is_ok());
    other.execute("rollback").await.unwrap();
    assert_eq!(state(&store, post).await, (0, 0));
    assert!(store.apply(&keyed(post, "here", b"")).await.unwrap().changed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn time_outs_are_counted_by_what_was_waited_for() {
    let url = MariaDb::shared().database().await;
    let proxy = Proxy::start(MariaDb::shared().port()).await;
    let options = StoreOptions { max_connections: 1, acquire_timeout: Duration::from_millis(300), ..hasty() };
    let store = LikeStore::connect(&url, options).await.unwrap();
    let post = new_post(&store).await;
    let mut other = MySqlConnection::connect(&url).await.unwrap();
    other.execute("begin").await.unwrap();
    sqlx::query("select * from posts where id = ? for update").bind(post.get()).execute(&mut other).await.unwrap();
    // One has the only connection and waits for the row, the other waits for the connection.
    let both = all(std::slice::from_ref(&store), vec![like(post); 2]).await;
    assert!(both.iter().all(Result::is_err), "{both:?}");
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let counters = store.counters();
    let counted = [&counters.lock_timeouts, &counters.pool_timeouts, &counters.timeouts].map(read);
    assert_eq!(counted, [1, 1, 0]);
    assert!(counters.acquire.copied().sum >= 0.3 && store.pooled().used + store.pooled().idle >= 1);
    other.execute("rollback").await.unwrap();

    let hung = LikeStore::connect(&proxy.instead_of(&url), hasty()).await.unwrap();
    proxy.swallow(Some(b"for update"));
    assert!(matches!(hung.apply(&like(post)).await, Err(StoreError::Timeout(_))));
    let counters = hung.counters();
    assert_eq!([&counters.lock_timeouts, &counters.pool_timeouts, &counters.timeouts].map(read), [0, 0, 1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_duplicate_gives_up_when_the_first_does_not_end() {
    let url = MariaDb::shared().database().await;
    let options = StoreOptions { lock_timeout: Duration::from_millis(300), ..hasty() };
    let store = LikeStore::connect(&url, options).await.unwrap();
    let post = new_post(&store).await;
    let mut other = MySqlConnection::connect(&url).await.unwrap();
    other.execute("begin").await.unwrap();
    sqlx::query("select * from posts where id = ? for update").bind(post.get()).execute(&mut other).await.unwrap();
    // MariaDB waits a whole second for the row, a duplicate 300 ms for the first.
    let both = all(std::slice::from_ref(&store), vec![keyed(post, "k", b""); 2]).await;
    assert!(both.contains(&Err(StoreError::KeyInFlight)) && both.contains(&Err(StoreError::Contended)), "{both:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_hangs_or_is_down_costs_bounded_time_and_comes_back() {
    let mut server = MariaDb::start();
    let url = server.database().await;
    let store = LikeStore::connect(&url, hasty()).await.unwrap();
    let post = new_post(&store).await;
    // Every connection of the pool is open and idle.
    assert!(all(std::slice::from_ref(&store), vec![like(post); 50]).await.iter().all(Result::is_ok));

    server.signal(Signal::SIGSTOP);
    let started = Instant::now();
    let failed = all(std::slice::from_ref(&store), vec![keyed(post, "hung", b""), like(post), like(post)]).await;
    assert!(failed.iter().all(Result::is_err), "{failed:?}");
    assert!(store.ping().await.is_err() && store.read(&[post]).await.is_err());
    assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
    server.signal(Signal::SIGCONT);
    eventually(|| async { store.apply(&like(post)).await }).await;

    server.kill();
    let started = Instant::now();
    let failed = store.apply(&like(post)).await;
    assert!(matches!(failed, Err(StoreError::Unavailable { .. } | StoreError::Timeout(_))), "{failed:?}");
    assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
    let refused =
        LikeStore::connect(&url, StoreOptions { startup_timeout: Duration::from_millis(500), ..hasty() }).await;
    assert!(matches!(&refused, Err(StoreError::Unavailable { cause }) if cause.contains("refused")), "{refused:?}");
    let before = {
        server.start_again();
        eventually(|| async { store.read(&[post]).await }).await[0].state
    };
    let outcome = eventually(|| async { store.apply(&like(post)).await }).await;
    assert_eq!(outcome.state.likes, before.likes + 1);
    assert_eq!(before.likes, before.version.0);
    // Nothing was counted twice, nothing that was refused: 50, 1 after the hang; an unknown COMMIT would be an error here.
    assert_eq!(before.likes, 51);
    let keyed = store.apply(&keyed(post, "hung", b"")).await.unwrap();
    assert!(keyed.changed && !keyed.replayed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_died_while_idle_cost_no_like() {
    let mut server = MariaDb::start();
    let url = server.database().await;
    let store = LikeStore::connect(&url, hasty()).await.unwrap();
    let post = new_post(&store).await;
    assert!(all(std::slice::from_ref(&store), vec![like(post); 50]).await.iter().all(Result::is_ok));
    server.kill();
    server.start_again();
    let outcomes = all(std::slice::from_ref(&store), vec![like(post); 8]).await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    assert_eq!(state(&store, post).await, (58, 58));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_falls_silent_takes_no_connection_for_long() {
    let database = MariaDb::shared();
    let proxy = Proxy::start(database.port()).await;
    let url = database.database().await;
    let (store, watcher) = (LikeStore::connect(&proxy.instead_of(&url), hasty()).await.unwrap(), plain(&url).await);
    let post = new_post(&store).await;
    let outcomes = tokio::spawn({
        let store = store.clone();
        async move { all(std::slice::from_ref(&store), vec![like(post); 2_000]).await }
    });
    eventually(|| async { if state(&watcher, post).await.1 > 100 { Ok(()) } else { Err("not yet") } }).await;
    // Some connections are in a transaction, some idle, some on their way back into the pool.
    proxy.freeze();
    let _ = outcomes.await;
    let started = Instant::now();
    eventually(|| async { store.apply(&like(post)).await }).await;
    eventually(|| async { store.ping().await }).await;
    assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
    let again = all(std::slice::from_ref(&store), vec![like(post); 50]).await;
    assert!(again.iter().all(Result::is_ok), "{again:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_fall_silent_on_their_way_back_leave_the_pool() {
    let database = MariaDb::shared();
    let proxy = Proxy::start(database.port()).await;
    let store = LikeStore::connect(&proxy.instead_of(&database.database().await), hasty()).await.unwrap();
    let post = new_post(&store).await;
    // COM_PING: what the pool sends when a connection comes back.
    proxy.swallow(Some(&[1, 0, 0, 0, 0x0e]));
    let mut likes = 0;
    while proxy.swallowed() < 4 {
        store.apply(&like(post)).await.unwrap();
        likes += 1;
        tokio::time::sleep(Duration::from_millis(20)).await; // Its way back is a task of its own.
    }
    // All places of the pool are taken.
    proxy.swallow(None);
    eventually(|| async { store.apply(&like(post)).await }).await;
    assert_eq!(state(&store, post).await, (likes + 1, likes + 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_without_an_answer_is_an_unknown_outcome_that_its_key_resolves() {
    let database = MariaDb::shared();
    let proxy = Proxy::start(database.port()).await;
    let store = LikeStore::connect(&proxy.instead_of(&database.database().await), hasty()).await.unwrap();
    let post = new_post(&store).await;
    proxy.swallow(Some(b"COMMIT"));
    let outcome = store.apply(&keyed(post, "k", b"")).await;
    assert!(matches!(outcome, Err(StoreError::OutcomeUnknown { .. })), "{outcome:?}");
    proxy.swallow(None);
    assert_eq!(proxy.swallowed(), 1);
    assert_eq!(store.read_settled(post).await.unwrap().version, Version(1));
    let again = store.apply(&keyed(post, "k", b"")).await.unwrap();
    assert!(again.replayed && again.state.version == Version(1));
    assert_eq!(state(&store, post).await, (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadlock_costs_a_retry_and_nothing_else() {
    let url = MariaDb::shared().database().await;
    let store = LikeStore::connect(&url, StoreOptions::default()).await.unwrap();
    let post = new_post(&store).await;
    // A stranger that takes the locks in the other order: the like's row first, then the post's.
    let mut stranger = MySqlConnection::connect(&url).await.unwrap();
    stranger.execute("begin").await.unwrap();
    sqlx::query("insert into likes values (?, 'ann', 1)").bind(post.get()).execute(&mut stranger).await.unwrap();
    let mine = LikeRequest { who: Who::User("ann".into()), once: true, ..like(post) };
    let ours = tokio::spawn({
        let store = store.clone();
        async move { store.apply(&mine).await }
    });
    // When the post's row is ours, asking for it without waiting fails.
    let mut watcher = MySqlConnection::connect(&url).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    while sqlx::query("select 1 from posts where id = ? for update nowait")
        .bind(post.get())
        .execute(&mut watcher)
        .await
        .is_ok()
    {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    sqlx::query("select 1 from posts where id = ? for update").bind(post.get()).execute(&mut stranger).await.unwrap();
    stranger.execute("rollback").await.unwrap();
    assert!(ours.await.unwrap().unwrap().changed);
    assert!(store.counters().retries.load(std::sync::atomic::Ordering::Relaxed) >= 1);
    assert_eq!(state(&store, post).await, (1, 1));
}

/// Repeats until it succeeds, at most [`PATIENCE`].
pub(crate) async fn eventually<T, E: std::fmt::Debug, F: Future<Output = Result<T, E>>>(attempt: impl Fn() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(e) => assert!(Instant::now() < deadline, "still {e:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
