-- Events to be published, written in the transaction they tell of. A published one is deleted: what is here is not.
create table if not exists outbox (
    id         bigint unsigned not null auto_increment primary key,
    post_id    bigint unsigned not null,
    likes      bigint unsigned not null,
    version    bigint unsigned not null,
    prev       bigint unsigned not null,
    created_at bigint unsigned not null comment 'Unix time in microseconds'
) engine = InnoDB default charset = utf8mb4;

-- Likes that were answered and are not counted yet (--write event). A counted one is deleted.
create table if not exists pending_likes (
    id         bigint unsigned not null auto_increment primary key,
    post_id    bigint unsigned not null,
    unlikes    bool            not null,
    created_at bigint unsigned not null comment 'Unix time in microseconds',
    key by_post (post_id, id)
) engine = InnoDB default charset = utf8mb4;
