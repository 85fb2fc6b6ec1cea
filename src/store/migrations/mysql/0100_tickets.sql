-- Tickets that were used, until they would have ended anyway: each opens one stream, whichever pod it comes to.
create table if not exists used_tickets (
    id         binary(16)      not null primary key,
    expires_at bigint unsigned not null comment 'Unix time in seconds',
    key by_end (expires_at)
) engine = InnoDB default charset = utf8mb4;
