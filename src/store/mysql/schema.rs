//! Tables, brought up to date by one pod at a time.

use std::time::Duration;

use sqlx::mysql::{MySqlConnectOptions, MySqlConnection};
use sqlx::{Connection, Executor};
use tokio::time::{Instant, sleep, timeout_at};

use crate::store::{StoreError, StoreOptions, sql};

/// Longest wait for another pod's migration.
const LOCK_SECONDS: u32 = 30;

/// Waits for the database, then migrates under a named lock of our own: sqlx asks for a lock with an endless wait (−1),
/// which MariaDB does not know, and then goes on without one.
pub(super) async fn migrate(connect: &MySqlConnectOptions, options: &StoreOptions) -> Result<(), StoreError> {
    let deadline = Instant::now() + options.startup_timeout;
    let mut conn = loop {
        let cause = match timeout_at(deadline, MySqlConnection::connect_with(connect)).await {
            Ok(Ok(conn)) => break conn,
            Ok(Err(sqlx::Error::Io(e))) => e.to_string(),
            Ok(Err(e)) => return Err(unavailable(&e)),
            Err(_) => "it did not answer".into(),
        };
        if Instant::now() + Duration::from_millis(100) >= deadline {
            return Err(StoreError::Unavailable { cause });
        }
        sleep(Duration::from_millis(100)).await;
    };
    let work = async {
        let held: Option<i64> = sqlx::query_scalar("select get_lock(concat('pushlab.', left(database(), 48)), ?)")
            .bind(LOCK_SECONDS)
            .fetch_one(&mut conn)
            .await
            .map_err(|e| unavailable(&e))?;
        if held != Some(1) {
            return Err(StoreError::Unavailable { cause: "another pod is migrating the database".into() });
        }
        // A pod that died half way left its mark; our statements may run twice.
        let _ = conn.execute("delete from _sqlx_migrations where success = false").await;
        let mut migrator = sqlx::migrate!("src/store/migrations/mysql");
        migrator.set_locking(false).set_ignore_missing(true);
        migrator.run_direct(None, &mut conn, false).await.map_err(|e| unavailable(&e))?;
        let first: u32 = rand::random();
        let draw = sqlx::query("insert ignore into epoch (id, value) values (1, ?)").bind(first);
        draw.execute(&mut conn).await.map_err(|e| unavailable(&e))?;
        Ok(())
    };
    let limit = options.startup_timeout + Duration::from_secs(LOCK_SECONDS.into());
    let done = timeout_at(Instant::now() + limit, work).await.unwrap_or(Err(StoreError::Timeout(limit)));
    // Closing the connection gives the lock back.
    let _ = timeout_at(Instant::now() + Duration::from_secs(1), conn.close()).await;
    done
}

/// The epoch's row; [`migrate`] has put one there.
pub(super) async fn epoch(conn: &mut MySqlConnection) -> Result<u32, sqlx::Error> {
    sqlx::query_scalar(sql::EPOCH).fetch_one(conn).await
}

fn unavailable(error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Unavailable { cause: error.to_string() }
}
