//! Tickets that were used.

use super::{MySql, SWEEP};
use crate::store::{Lane, StoreError};

impl MySql {
    pub(in crate::store) async fn use_ticket(&self, id: u128, expires_at: u64) -> Result<bool, StoreError> {
        let insert = "insert ignore into used_tickets (id, expires_at) values (?, ?)";
        let id = id.to_be_bytes();
        let done = self
            .run(Lane::Requests, move |conn| {
                Box::pin(sqlx::query(insert).bind(id.to_vec()).bind(expires_at).execute(conn))
            })
            .await?;
        Ok(done.rows_affected() == 1)
    }

    pub(in crate::store) async fn sweep_tickets(&self, now: u64) -> Result<u64, StoreError> {
        let delete = "delete from used_tickets where expires_at < ? limit ?";
        let mut swept = 0;
        loop {
            let done = self
                .run(Lane::Repair, move |conn| Box::pin(sqlx::query(delete).bind(now).bind(SWEEP).execute(conn)))
                .await?;
            swept += done.rows_affected();
            if done.rows_affected() < u64::from(SWEEP) {
                return Ok(swept);
            }
        }
    }
}
