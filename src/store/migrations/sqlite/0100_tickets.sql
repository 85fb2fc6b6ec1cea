-- The same table as in mysql/0100_tickets.sql.
create table if not exists used_tickets (
    id         blob    not null primary key,
    expires_at integer not null
) strict, without rowid;
