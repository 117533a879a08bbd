-- What an account is told. Mail goes to those that have an address; all find it here, until they say that they read it.

create table notices (
  id integer primary key generated always as identity,
  account_id integer not null references accounts on delete cascade,
  subject text not null check (length(subject) between 1 and 200),
  body text not null,
  at timestamptz not null default now(),
  read_at timestamptz
);
create index notices_by_account on notices (account_id, id);

comment on table limit_notices is 'Notices that were written, so that each is written once for a month and a limit';

grant select, insert on notices to berth_gateway;
grant update (read_at) on notices to berth_gateway;
