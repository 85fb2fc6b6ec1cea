//! A connection on loan from the pool, given back in bounded time.

use std::ops::{Deref, DerefMut};

use sqlx::pool::PoolConnection;
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::COMMIT_PATIENCE;

/// The pool pings a connection that comes back, without a limit of time: on a network that has gone silent its place
/// would stay taken for a quarter of an hour. Here the ping has a limit, and a broken connection is not said good-bye to.
#[derive(Debug)]
pub(super) struct Lease {
    conn: PoolConnection<sqlx::MySql>,
    broken: bool,
}

impl Lease {
    pub(super) const fn new(conn: PoolConnection<sqlx::MySql>) -> Self {
        Self { conn, broken: false }
    }

    /// The connection is of no use any more: it will be closed (the database then rolls back) and its place be free.
    pub(super) const fn discard(&mut self) {
        self.broken = true;
    }
}

impl Deref for Lease {
    type Target = PoolConnection<sqlx::MySql>;

    fn deref(&self) -> &Self::Target {
        &self.conn
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.conn
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Dropped before its end, this future closes the socket and frees the place.
        let back = self.conn.return_to_pool();
        match Handle::try_current() {
            Ok(runtime) if !self.broken => drop(runtime.spawn(async { timeout(COMMIT_PATIENCE, back).await })),
            _ => drop(back),
        }
    }
}
