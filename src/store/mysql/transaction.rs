//! BEGIN and COMMIT in bounded time; what failed is rolled back as a whole.

use sqlx::mysql::MySqlConnection;
use sqlx::{Connection, MySqlTransaction};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout, timeout_at};

use super::COMMIT_PATIENCE;
use super::failure::Failure;

/// What a transaction has come to before its COMMIT.
pub(super) struct Prepared<T> {
    pub(super) value: T,
    /// Something was written: COMMIT. Otherwise ROLLBACK.
    pub(super) dirty: bool,
}

pub(super) async fn begin(conn: &mut MySqlConnection, deadline: Instant) -> Result<MySqlTransaction<'_>, Failure> {
    match timeout_at(deadline, conn.begin()).await {
        Ok(begun) => Ok(begun?),
        Err(_) => Err(Failure::TimedOut),
    }
}

/// COMMIT, or ROLLBACK when nothing was written or something failed: then it has happened before this returns, or the
/// failure says that the connection is unusable.
pub(super) async fn end<T>(
    transaction: MySqlTransaction<'_>,
    prepared: Result<Result<Prepared<T>, Failure>, Elapsed>,
    deadline: Instant,
) -> Result<Prepared<T>, Failure> {
    let prepared = match prepared {
        Ok(Ok(prepared)) => prepared,
        // Dropping the transaction would roll back too, but later: others wait for the row.
        Ok(Err(failure)) if failure.leaves_connection_unusable() => return Err(failure),
        Ok(Err(failure)) => {
            return Err(if rollback(transaction).await { failure } else { Failure::Broken("rollback failed".into()) });
        }
        Err(_) => return Err(Failure::TimedOut),
    };
    if !prepared.dirty {
        rollback(transaction).await;
        return Ok(prepared);
    }
    match timeout_at(deadline.max(Instant::now() + COMMIT_PATIENCE), transaction.commit()).await {
        Ok(Ok(())) => Ok(prepared),
        // An error in the database's own words: it has not committed.
        Ok(Err(e)) if e.as_database_error().is_some() => Err(e.into()),
        Ok(Err(e)) => Err(Failure::Unknown(e.to_string())),
        Err(_) => Err(Failure::Unanswered),
    }
}

/// Ends a transaction within `COMMIT_PATIENCE`; false when the connection is no longer usable.
async fn rollback(transaction: MySqlTransaction<'_>) -> bool {
    matches!(timeout(COMMIT_PATIENCE, transaction.rollback()).await, Ok(Ok(())))
}
