//! What an error of the database or the driver means for the operation.

use std::time::Duration;

use sqlx::mysql::MySqlDatabaseError;

use crate::store::StoreError;

/// Why an attempt did not succeed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The answer is final.
    Refused(StoreError),
    /// A deadlock or the like: the whole transaction is rolled back and may be repeated.
    Contended,
    /// The row is no longer at the version that was read; nothing was written.
    Overtaken,
    /// The row stayed locked for the whole lock time-out.
    LockTimeout,
    /// The connection is dead; nothing was committed on it.
    Broken(String),
    /// The operation's time has passed; nothing was committed.
    TimedOut,
    /// The connection broke after COMMIT was sent.
    Unknown(String),
    /// COMMIT was sent and not answered in time.
    Unanswered,
}

/// How often an operation was tried, and why again.
#[derive(Debug, Default)]
pub(super) struct Tries {
    /// After deadlocks.
    pub(super) lock_errors: u32,
    /// After somebody else was quicker.
    pub(super) overtaken: u32,
    /// After the connection was found dead.
    pub(super) broken: u32,
}

fn number(error: &sqlx::Error) -> Option<u16> {
    error.as_database_error()?.try_downcast_ref::<MySqlDatabaseError>().map(MySqlDatabaseError::number)
}

/// Whether the server has as many connections as it takes: in all, or of this user.
pub(super) fn is_full(error: &sqlx::Error) -> bool {
    matches!(number(error), Some(1040 | 1203 | 1226))
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        let Some(number) = number(&error) else { return Self::Broken(error.to_string()) };
        match number {
            // Deadlock; duplicate key in a race; "record has changed since last read" (MariaDB).
            1213 | 1062 | 1020 => Self::Contended,
            1205 => Self::LockTimeout,
            // Server shutdown, too many connections, killed, idle transaction ended, disconnected for inactivity.
            1053 | 1040 | 1317 | 1927 | 4031 => Self::Broken(error.to_string()),
            _ => Self::Refused(StoreError::Unavailable { cause: error.to_string() }),
        }
    }
}

impl Failure {
    pub(super) const fn leaves_connection_unusable(&self) -> bool {
        matches!(self, Self::Broken(_) | Self::TimedOut | Self::Unknown(_) | Self::Unanswered)
    }

    pub(super) fn into_store_error(self, limit: Duration) -> StoreError {
        match self {
            Self::Refused(error) => error,
            Self::Contended | Self::Overtaken | Self::LockTimeout => StoreError::Contended,
            Self::Broken(cause) => StoreError::Unavailable { cause },
            Self::TimedOut => StoreError::Timeout(limit),
            Self::Unknown(cause) => StoreError::OutcomeUnknown { cause },
            Self::Unanswered => StoreError::OutcomeUnknown { cause: "no answer to COMMIT in time".into() },
        }
    }
}
