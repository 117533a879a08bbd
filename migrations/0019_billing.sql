-- What the ledger's facts cost: rates and plans that the past cannot be changed under, usage by machine and day added up
-- as facts come in, invoices, credits, limits.
--
-- Amounts are whole millionths of a USD (micros). Quantities are whole numbers too, of units so small that no fact needs
-- a fraction: microseconds times vCPUs or bytes, and bytes.

-- So that one constraint can hold a name and a range.
create extension if not exists btree_gist;

-- Plans and rates ----------------------------------------------------------------------------------------------

create table plans (
  name text primary key check (name ~ '^[a-z][a-z0-9-]{0,29}$' and name not in ('others', 'default', 'none')),
  charged boolean not null,
  machines_most integer check (machines_most >= 0),
  cpus_most integer check (cpus_most >= 0),
  memory_bytes_most bigint check (memory_bytes_most >= 0),
  disk_bytes_most bigint check (disk_bytes_most >= 0),
  created_at timestamptz not null default now()
);
comment on column plans.charged is 'false: nothing is, and what is shown is what it would cost';
comment on column plans.machines_most is 'caps on what an account has, all its machines together; null: none';
insert into plans (name, charged) values ('house', false), ('usage', true);

create table rates (
  id integer primary key generated always as identity,
  plan text not null references plans,
  kind text not null check (kind in ('fee', 'cpu', 'memory', 'disk', 'transfer')),
  micros bigint not null check (micros >= 0),
  included bigint not null default 0 check (included >= 0),
  effective tstzrange not null,
  constraint rates_fee_includes_nothing check (kind <> 'fee' or included = 0),
  -- Days are whole under one rate, so that what was used in a day needs no further division.
  constraint rates_by_day check (not isempty(effective)
    and (lower_inf(effective) or (lower_inc(effective) and (lower(effective) at time zone 'utc')::time = '00:00'))
    and (upper_inf(effective) or (not upper_inc(effective) and (upper(effective) at time zone 'utc')::time = '00:00'))),
  constraint rates_one_at_a_time exclude using gist (plan with =, kind with =, effective with &&)
);
comment on table rates is 'A plan without a rate for something has that of plan usage';
comment on column rates.micros is 'per month (fee), vCPU-hour, GiB-hour, GiB-month, or GB of 10^9 bytes';
comment on column rates.included is 'of the same unit, a month, in the fee';
insert into rates (plan, kind, micros, effective) values
  ('usage', 'cpu', 40000, '(,)'), ('usage', 'memory', 6000, '(,)'),
  ('usage', 'disk', 80000, '(,)'), ('usage', 'transfer', 70000, '(,)');

create table account_plans (
  id integer primary key generated always as identity,
  account_id integer references accounts,
  plan text not null references plans,
  effective tstzrange not null,
  constraint account_plans_by_day check (not isempty(effective)
    and (lower_inf(effective) or (lower_inc(effective) and (lower(effective) at time zone 'utc')::time = '00:00'))
    and (upper_inf(effective) or (not upper_inc(effective) and (upper(effective) at time zone 'utc')::time = '00:00'))),
  constraint account_plans_one_at_a_time exclude using gist ((coalesce(account_id, 0)) with =, effective with &&)
);
comment on column account_plans.account_id is 'null: every account that none is named for, but the operator''s. Without any row: house';

-- What was effective stays so: a row may be ended in the future, or replaced before it begins, and that is all.
create function refuse_other_past() returns trigger language plpgsql as $$
declare
  past constant tstzrange := tstzrange(null, now());
  changes boolean;
begin
  if tg_op = 'INSERT' then
    changes := new.effective && past;
  elsif tg_op = 'UPDATE' then
    changes := old.effective * past <> new.effective * past
      or to_jsonb(old) - 'effective' <> to_jsonb(new) - 'effective';
  else
    changes := old.effective && past;
  end if;
  if changes then
    raise exception '% change from tomorrow on, and never what was', tg_table_name using errcode = 'restrict_violation';
  end if;
  if tg_op = 'DELETE' then
    return old;
  end if;
  return new;
end $$;
create trigger rates_past before insert or update or delete on rates for each row execute function refuse_other_past();
create trigger rates_no_truncate before truncate on rates for each statement execute function refuse_change();
create trigger account_plans_past before insert or update or delete on account_plans
  for each row execute function refuse_other_past();
create trigger account_plans_no_truncate before truncate on account_plans
  for each statement execute function refuse_change();

-- A plan's name was replaced by its history; and a machine's account never changes, since its bills are computed from it.
alter table accounts drop column plan;
revoke update (account_id) on machines from berth_gateway;

-- Usage --------------------------------------------------------------------------------------------------------

-- What some machines used, computed from the facts alone. Indexes: the primary key of machine_spans, none of which is
-- longer than its day, and transfer_readings_by_machine; the reading before is one step in that table's primary key.
create function ledger_usage(machine_ids integer[], since timestamptz, until timestamptz)
returns table (machine_id integer, day date, cpu numeric, memory numeric, disk numeric, checkpoints numeric,
  direct numeric, gateway numeric) language sql stable as $$
  select used.machine_id, used.day, sum(used.cpu), sum(used.memory), sum(used.disk), sum(used.checkpoints),
    sum(used.direct), sum(used.gateway)
  from (
    select s.machine_id, (greatest(s.started_at, since) at time zone 'utc')::date as day,
      case when s.state = 'running' then micros * s.cpus else 0 end as cpu,
      case when s.state = 'running' then micros * s.memory_bytes else 0 end as memory,
      micros * s.disk_bytes as disk, micros * s.checkpoint_bytes as checkpoints,
      0::numeric as direct, 0::numeric as gateway
    from machine_spans s cross join lateral (select
      (extract(epoch from least(s.ended_at, until) - greatest(s.started_at, since)) * 1000000)::bigint::numeric as micros) t
    where s.machine_id = any(machine_ids) and s.started_at < until and s.ended_at > since
      and s.started_at >= date_trunc('day', since at time zone 'utc') at time zone 'utc'
    union all
    select r.machine_id, (r.at at time zone 'utc')::date, 0, 0, 0, 0,
      r.direct_out_bytes - coalesce(p.direct_out_bytes, 0), r.gateway_out_bytes - coalesce(p.gateway_out_bytes, 0)
    from transfer_readings r left join lateral (
      select direct_out_bytes, gateway_out_bytes from transfer_readings e
      where e.series = r.series and e.sequence < r.sequence order by e.sequence desc limit 1) p on true
    where r.machine_id = any(machine_ids) and r.at >= since and r.at < until
  ) as used group by used.machine_id, used.day
$$;
comment on function ledger_usage is 'microseconds times vCPUs, microseconds times bytes, and bytes; by machine and UTC day';

create table usage_days (
  account_id integer not null,
  day date not null,
  machine_id integer not null,
  cpu numeric not null default 0,
  memory numeric not null default 0,
  disk numeric not null default 0,
  checkpoints numeric not null default 0,
  direct numeric not null default 0,
  gateway numeric not null default 0,
  primary key (account_id, day, machine_id)
) with (fillfactor = 80);
comment on table usage_days is 'ledger_usage, added up as facts are appended: each row can be proved from them (billing recompute)';

-- The same one by one, as invoices name it.
create view usage as
  select account_id, machine_id, day, kind, class, quantity from usage_days cross join lateral (values
    ('cpu', '', cpu), ('memory', '', memory), ('disk', 'provisioned', disk), ('disk', 'checkpoints', checkpoints),
    ('transfer', 'direct', direct), ('transfer', 'gateway', gateway)) as one (kind, class, quantity)
  where quantity <> 0;

-- Accounts for which facts of a month came in after it had ended; the latest of them. An invoice may have been without.
create table late_usage (
  account_id integer not null,
  month date not null,
  at timestamptz not null,
  primary key (account_id, month)
);

-- Facts are appended in turn (append_in_turn), so what these read of other facts does not change under them. They run as
-- their owner: a vmhost appends facts and writes no usage.
create function count_spans() returns trigger language plpgsql security definer set search_path = public, pg_temp as $$
begin
  with used as (
    insert into usage_days as u (account_id, day, machine_id, cpu, memory, disk, checkpoints)
    select m.account_id, (s.started_at at time zone 'utc')::date, m.id,
      coalesce(sum(micros * s.cpus) filter (where s.state = 'running'), 0),
      coalesce(sum(micros * s.memory_bytes) filter (where s.state = 'running'), 0),
      sum(micros * s.disk_bytes), sum(micros * s.checkpoint_bytes)
    from added s join machines m on m.id = s.machine_id
      cross join lateral (select (extract(epoch from s.ended_at - s.started_at) * 1000000)::bigint::numeric as micros) t
    group by 1, 2, 3 order by 1, 2, 3
    on conflict (account_id, day, machine_id) do update set cpu = u.cpu + excluded.cpu,
      memory = u.memory + excluded.memory, disk = u.disk + excluded.disk, checkpoints = u.checkpoints + excluded.checkpoints
    returning account_id, day)
  insert into late_usage select distinct account_id, date_trunc('month', day)::date, now() from used
    where day < date_trunc('month', now() at time zone 'utc')
    on conflict (account_id, month) do update set at = excluded.at;
  return null;
end $$;

create function count_readings() returns trigger language plpgsql security definer set search_path = public, pg_temp as $$
begin
  with counted as (
    select a.machine_id, a.at, a.direct_out_bytes - coalesce(p.direct_out_bytes, 0) as direct,
      a.gateway_out_bytes - coalesce(p.gateway_out_bytes, 0) as gateway
    from added a left join lateral (
      select direct_out_bytes, gateway_out_bytes from transfer_readings e
      where e.series = a.series and e.sequence < a.sequence order by e.sequence desc limit 1) p on true
    union all
    -- A reading that was there and follows one that came late was counted against the one before that.
    select n.machine_id, n.at, coalesce(o.direct_out_bytes, 0) - a.direct_out_bytes,
      coalesce(o.gateway_out_bytes, 0) - a.gateway_out_bytes
    from added a cross join lateral (
      select series, sequence, machine_id, at from transfer_readings l
      where l.series = a.series and l.sequence > a.sequence order by l.sequence limit 1) n
    left join lateral (
      select direct_out_bytes, gateway_out_bytes from transfer_readings e
      where e.series = a.series and e.sequence < a.sequence
        and not exists (select from added x where x.series = e.series and x.sequence = e.sequence)
      order by e.sequence desc limit 1) o on true
    where not exists (select from added x where x.series = n.series and x.sequence = n.sequence)
  ), used as (
    insert into usage_days as u (account_id, day, machine_id, direct, gateway)
    select m.account_id, (c.at at time zone 'utc')::date, m.id, sum(c.direct), sum(c.gateway)
    from counted c join machines m on m.id = c.machine_id
    group by 1, 2, 3 order by 1, 2, 3
    on conflict (account_id, day, machine_id) do update set direct = u.direct + excluded.direct,
      gateway = u.gateway + excluded.gateway
    returning account_id, day)
  insert into late_usage select distinct account_id, date_trunc('month', day)::date, now() from used
    where day < date_trunc('month', now() at time zone 'utc')
    on conflict (account_id, month) do update set at = excluded.at;
  return null;
end $$;

create trigger machine_spans_count after insert on machine_spans referencing new table as added
  for each statement execute function count_spans();
create trigger transfer_readings_count after insert on transfer_readings referencing new table as added
  for each statement execute function count_readings();

insert into usage_days
  select m.account_id, u.day, u.machine_id, u.cpu, u.memory, u.disk, u.checkpoints, u.direct, u.gateway
  from ledger_usage((select array_agg(id) from machines), '2000-01-01', '3000-01-01') u
  join machines m on m.id = u.machine_id;

-- Invoices -----------------------------------------------------------------------------------------------------

create table credits (
  id integer primary key generated always as identity,
  account_id integer not null references accounts,
  micros bigint not null check (micros > 0),
  reason text not null check (length(reason) between 1 and 200),
  granted_by integer references accounts,
  granted_at timestamptz not null default now()
);
comment on column credits.granted_by is 'null: an invoice came out below zero, and this is what is left of it';
create index credits_by_account on credits (account_id);

-- Its row is locked by whoever closes an invoice until that is there, so that no number is left out.
create table invoice_counter (
  only_one boolean primary key default true check (only_one),
  last integer not null
);
insert into invoice_counter (last) values (0);

create table invoices (
  number integer primary key check (number > 0),
  account_id integer not null references accounts,
  month date not null check (extract(day from month) = 1),
  closed_at timestamptz not null,
  total_micros bigint not null check (total_micros >= 0 and total_micros % 10000 = 0),
  unique (account_id, month)
);
comment on column invoices.total_micros is 'whole cents';

create table invoice_lines (
  invoice integer not null references invoices,
  position integer not null check (position > 0),
  kind text not null check (kind in ('fee', 'cpu', 'memory', 'disk', 'transfer', 'credit', 'carried', 'rounding')),
  class text not null default '',
  month date not null check (extract(day from month) = 1),
  plan text references plans,
  rate_id integer references rates,
  quantity numeric not null default 0,
  included numeric not null default 0,
  machines jsonb not null default '[]',
  days jsonb not null default '[]',
  credit_id integer references credits,
  amount_micros bigint not null,
  primary key (invoice, position),
  check ((kind in ('credit', 'carried')) = (credit_id is not null))
);
comment on column invoice_lines.month is 'that was used in; one before the invoice''s own: what came to light later, in figures of what was missing';
comment on column invoice_lines.quantity is 'in the units of usage_days; a fee''s are days';
comment on column invoice_lines.included is 'of the quantity, without charge';
comment on column invoice_lines.machines is '[[machine, quantity as text], ..]: with kind, class and days they name the facts';
comment on column invoice_lines.days is '[[day, quantity as text], ..]';
create index invoice_lines_by_credit on invoice_lines (credit_id) where credit_id is not null;

create table invoice_runs (
  month date primary key check (extract(day from month) = 1),
  started_at timestamptz not null,
  finished_at timestamptz
);

create trigger credits_append_only before update or delete on credits for each row execute function refuse_change();
create trigger credits_no_truncate before truncate on credits for each statement execute function refuse_change();
create trigger invoices_append_only before update or delete on invoices for each row execute function refuse_change();
create trigger invoices_no_truncate before truncate on invoices for each statement execute function refuse_change();
create trigger invoice_lines_append_only before update or delete on invoice_lines
  for each row execute function refuse_change();
create trigger invoice_lines_no_truncate before truncate on invoice_lines
  for each statement execute function refuse_change();

-- Limits -------------------------------------------------------------------------------------------------------

create table spend_limits (
  account_id integer not null references accounts on delete cascade,
  whose text not null check (whose in ('own', 'operator')),
  micros bigint not null check (micros > 0),
  hard boolean not null,
  set_at timestamptz not null default now(),
  primary key (account_id, whose)
);
comment on column spend_limits.whose is 'who set it: the account''s people cannot lift the operator''s';
comment on column spend_limits.hard is 'at the limit its machines are paused; otherwise mail is all';

create table limit_notices (
  account_id integer not null references accounts on delete cascade,
  whose text not null,
  month date not null,
  percent integer not null check (percent in (80, 100)),
  micros bigint not null,
  at timestamptz not null,
  primary key (account_id, whose, month, percent, micros)
);
comment on table limit_notices is 'Mails that were written, so that each is written once for a month and a limit';

alter table accounts add column over_limit_at timestamptz;
comment on column accounts.over_limit_at is 'since when a hard limit is reached: nothing wakes or starts its machines';

-- Grants -------------------------------------------------------------------------------------------------------

grant select on plans, rates, account_plans, usage_days, usage, late_usage, credits, invoice_counter, invoices,
  invoice_lines, invoice_runs, spend_limits, limit_notices to berth_gateway;
grant insert on plans, credits, invoices, invoice_lines, invoice_runs, limit_notices to berth_gateway;
grant update (machines_most, cpus_most, memory_bytes_most, disk_bytes_most) on plans to berth_gateway;
grant insert, update (effective), delete on rates, account_plans to berth_gateway;
grant update (last) on invoice_counter to berth_gateway;
grant update (finished_at) on invoice_runs to berth_gateway;
grant insert, update, delete on spend_limits to berth_gateway;
