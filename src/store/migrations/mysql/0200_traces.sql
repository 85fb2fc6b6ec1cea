-- The trace of the like an event tells of, for whoever publishes it from the outbox. MySQL cannot add a column if it is not there.
set @add = if(
    exists(select 1 from information_schema.columns
           where table_schema = database() and table_name = 'outbox' and column_name = 'traceparent'),
    'do 0',
    'alter table outbox add column traceparent varchar(255) null, add column tracestate varchar(1024) null'
);
prepare add_columns from @add;
execute add_columns;
deallocate prepare add_columns;
