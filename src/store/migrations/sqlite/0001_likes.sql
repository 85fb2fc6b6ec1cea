-- The same tables as in mysql/0001_likes.sql.
create table if not exists posts (
    id         integer primary key autoincrement,
    title      text    not null,
    likes      integer not null default 0,
    version    integer not null default 0,
    created_at integer not null,
    changed_at integer not null
) strict;

create table if not exists likes (
    post_id  integer not null,
    user     text    not null,
    liked_at integer not null,
    primary key (post_id, user)
) strict, without rowid;

create table if not exists idempotency_keys (
    who          text    not null,
    scope        text    not null,
    value        text    not null,
    payload_hash blob    not null,
    likes        integer not null,
    version      integer not null,
    prev         integer not null,
    changed      integer not null,
    created_at   integer not null,
    primary key (who, scope, value)
) strict, without rowid;

create index if not exists idempotency_keys_by_age on idempotency_keys (created_at);

create table if not exists epoch (
    id    integer primary key,
    value integer not null
) strict;
