-- What could not be done for one account, so that all others' is done once.

create table billing_failures (
  account_id integer not null references accounts,
  task text not null check (task in ('invoice', 'limit')),
  month date not null check (extract(day from month) = 1),
  attempts integer not null default 1,
  problem text not null,
  first_at timestamptz not null,
  last_at timestamptz not null,
  next_attempt_at timestamptz not null,
  primary key (account_id, task, month)
);
comment on column billing_failures.attempts is '0: it waits for an earlier month';

grant select, insert, update, delete on billing_failures to berth_gateway;
