-- Every statement here may run twice: a pod that dies half way through a migration leaves it to the next one.

-- The row every like of a post locks first. Count and version are raised together, under its lock.
create table if not exists posts (
    id         bigint unsigned not null auto_increment primary key,
    title      varchar(200)    not null,
    likes      bigint unsigned not null default 0,
    version    bigint unsigned not null default 0,
    created_at bigint unsigned not null comment 'Unix time in microseconds',
    changed_at bigint unsigned not null comment 'Unix time in microseconds'
) engine = InnoDB default charset = utf8mb4;

-- One like per user and post. No foreign key: it would take a shared lock on the post, and two likes would deadlock.
create table if not exists likes (
    post_id  bigint unsigned not null,
    user     varbinary(128)  not null,
    liked_at bigint unsigned not null,
    primary key (post_id, user)
) engine = InnoDB default charset = utf8mb4;

-- Answers already given, by Idempotency-Key. The scope names method and path, thereby the post.
create table if not exists idempotency_keys (
    who          varbinary(130)  not null,
    scope        varbinary(128)  not null,
    value        varbinary(64)   not null,
    payload_hash binary(20)      not null,
    likes        bigint unsigned not null,
    version      bigint unsigned not null,
    prev         bigint unsigned not null,
    changed      bool            not null,
    created_at   bigint unsigned not null,
    primary key (who, scope, value),
    key by_age (created_at)
) engine = InnoDB default charset = utf8mb4;

-- One row. Versions compare only within one epoch.
create table if not exists epoch (
    id    tinyint unsigned not null primary key,
    value int unsigned     not null
) engine = InnoDB default charset = utf8mb4;
