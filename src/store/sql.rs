//! The statements that MySQL and SQLite have in common. Positions of the placeholders are part of each one's doc.

/// A post's count and version; (post).
pub(super) const ROW: &str = "select likes, version from posts where id = ?";

/// (likes, version, changed at, post).
pub(super) const SET_ROW: &str = "update posts set likes = ?, version = ?, changed_at = ? where id = ?";

/// Takes back a user's one like; (post, user).
pub(super) const REMOVE_OWN_LIKE: &str = "delete from likes where post_id = ? and user = ?";

/// The answer given to an earlier request with this key; (who, scope, value).
pub(super) const EARLIER: &str = "select payload_hash, likes, version, prev, changed from idempotency_keys \
    where who = ? and scope = ? and value = ?";

/// Keeps an answer for repeats; (who, scope, value, payload hash, likes, version, prev, changed, created at).
pub(super) const KEEP: &str = "insert into idempotency_keys \
    (who, scope, value, payload_hash, likes, version, prev, changed, created_at) values (?, ?, ?, ?, ?, ?, ?, ?, ?)";

/// A new post; (title, created at, changed at).
pub(super) const NEW_POST: &str = "insert into posts (title, created_at, changed_at) values (?, ?, ?)";

/// A post without its count; (post).
pub(super) const POST: &str = "select title, created_at from posts where id = ?";

/// The epoch's one row.
pub(super) const EPOCH: &str = "select value from epoch where id = 1";
