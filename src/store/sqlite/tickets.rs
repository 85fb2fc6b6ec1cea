//! Tickets that were used.

use super::Sqlite;
use crate::store::StoreError;

impl Sqlite {
    pub(in crate::store) async fn use_ticket(&self, id: u128, expires_at: u64) -> Result<bool, StoreError> {
        let insert = "insert or ignore into used_tickets (id, expires_at) values (?, ?)";
        let (id, end) = (id.to_be_bytes(), expires_at.cast_signed());
        let done = self
            .run(&self.inner.writer, move |conn| {
                Box::pin(sqlx::query(insert).bind(id.to_vec()).bind(end).execute(conn))
            })
            .await?;
        Ok(done.rows_affected() == 1)
    }

    pub(in crate::store) async fn sweep_tickets(&self, now: u64) -> Result<u64, StoreError> {
        let now = now.cast_signed();
        let delete =
            "delete from used_tickets where id in (select id from used_tickets where expires_at < ? limit 1000)";
        let mut swept = 0;
        loop {
            let done = self
                .run(&self.inner.writer, move |conn| Box::pin(sqlx::query(delete).bind(now).execute(conn)))
                .await?
                .rows_affected();
            swept += done;
            if done < 1000 {
                return Ok(swept);
            }
        }
    }
}
