-- Two more sums of usage_days, so that the month of an account with a thousand machines is read from a thousand rows and
-- 31: each machine's month, and each day of an account.

create table usage_machine_months (
  account_id integer not null,
  month date not null check (extract(day from month) = 1),
  machine_id integer not null,
  cpu numeric not null default 0,
  memory numeric not null default 0,
  disk numeric not null default 0,
  checkpoints numeric not null default 0,
  direct numeric not null default 0,
  gateway numeric not null default 0,
  primary key (account_id, month, machine_id)
) with (fillfactor = 80);

create table usage_account_days (
  account_id integer not null,
  day date not null,
  cpu numeric not null default 0,
  memory numeric not null default 0,
  disk numeric not null default 0,
  checkpoints numeric not null default 0,
  direct numeric not null default 0,
  gateway numeric not null default 0,
  primary key (account_id, day)
) with (fillfactor = 50);

-- Adds what some new facts sum to, one row a machine and day. Appending is done in turn (append_in_turn), so that two
-- servers do not wait for each other's accounts.
create function add_usage(used usage_days[]) returns void language plpgsql as $$
begin
  insert into usage_days as u select * from unnest(used) order by account_id, day, machine_id
    on conflict (account_id, day, machine_id) do update set cpu = u.cpu + excluded.cpu,
      memory = u.memory + excluded.memory, disk = u.disk + excluded.disk,
      checkpoints = u.checkpoints + excluded.checkpoints, direct = u.direct + excluded.direct,
      gateway = u.gateway + excluded.gateway;
  insert into usage_machine_months as u
    select account_id, date_trunc('month', day)::date, machine_id, sum(cpu), sum(memory), sum(disk), sum(checkpoints),
      sum(direct), sum(gateway) from unnest(used) group by 1, 2, 3 order by 1, 2, 3
    on conflict (account_id, month, machine_id) do update set cpu = u.cpu + excluded.cpu,
      memory = u.memory + excluded.memory, disk = u.disk + excluded.disk,
      checkpoints = u.checkpoints + excluded.checkpoints, direct = u.direct + excluded.direct,
      gateway = u.gateway + excluded.gateway;
  insert into usage_account_days as u
    select account_id, day, sum(cpu), sum(memory), sum(disk), sum(checkpoints), sum(direct), sum(gateway)
      from unnest(used) group by 1, 2 order by 1, 2
    on conflict (account_id, day) do update set cpu = u.cpu + excluded.cpu,
      memory = u.memory + excluded.memory, disk = u.disk + excluded.disk,
      checkpoints = u.checkpoints + excluded.checkpoints, direct = u.direct + excluded.direct,
      gateway = u.gateway + excluded.gateway;
  insert into late_usage select distinct account_id, date_trunc('month', day)::date, now() from unnest(used)
    where day < date_trunc('month', now() at time zone 'utc')
    on conflict (account_id, month) do update set at = excluded.at;
end $$;

create or replace function count_spans() returns trigger language plpgsql security definer
  set search_path = public, pg_temp as $$
begin
  perform add_usage(array_agg(row(account_id, day, machine_id, cpu, memory, disk, checkpoints, 0, 0)::usage_days)) from (
    select m.account_id, (s.started_at at time zone 'utc')::date as day, m.id as machine_id,
      coalesce(sum(micros * s.cpus) filter (where s.state = 'running'), 0) as cpu,
      coalesce(sum(micros * s.memory_bytes) filter (where s.state = 'running'), 0) as memory,
      sum(micros * s.disk_bytes) as disk, sum(micros * s.checkpoint_bytes) as checkpoints
    from added s join machines m on m.id = s.machine_id
      cross join lateral (select (extract(epoch from s.ended_at - s.started_at) * 1000000)::bigint::numeric as micros) t
    group by 1, 2, 3) as used;
  return null;
end $$;

create or replace function count_readings() returns trigger language plpgsql security definer
  set search_path = public, pg_temp as $$
begin
  perform add_usage(array_agg(row(account_id, day, machine_id, 0, 0, 0, 0, direct, gateway)::usage_days)) from (
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
    )
    select m.account_id, (c.at at time zone 'utc')::date as day, m.id as machine_id, sum(c.direct) as direct,
      sum(c.gateway) as gateway
    from counted c join machines m on m.id = c.machine_id group by 1, 2, 3) as used;
  return null;
end $$;

-- Nothing is appended while what is there is summed.
lock table machine_spans, transfer_readings in share row exclusive mode;
insert into usage_machine_months
  select account_id, date_trunc('month', day)::date, machine_id, sum(cpu), sum(memory), sum(disk), sum(checkpoints),
    sum(direct), sum(gateway) from usage_days group by 1, 2, 3;
insert into usage_account_days
  select account_id, day, sum(cpu), sum(memory), sum(disk), sum(checkpoints), sum(direct), sum(gateway)
  from usage_days group by 1, 2;

-- Sums that are not what usage_days says, for billing recompute.
create function wrong_usage_sums(account integer, since date, until date) returns integer language sql stable as $$
  select count(*)::integer from (
    select machine_id, sum(cpu), sum(memory), sum(disk), sum(checkpoints), sum(direct), sum(gateway) from (
      select date_trunc('month', day)::date as month, machine_id, cpu, memory, disk, checkpoints, direct, gateway
        from usage_days where account_id = account and day >= since and day < until
      union all select month, machine_id, -cpu, -memory, -disk, -checkpoints, -direct, -gateway
        from usage_machine_months where account_id = account and month >= since and month < until) as m
    group by month, machine_id having (sum(cpu), sum(memory), sum(disk), sum(checkpoints), sum(direct), sum(gateway)) <> (0, 0, 0, 0, 0, 0)
    union all
    select null, sum(cpu), sum(memory), sum(disk), sum(checkpoints), sum(direct), sum(gateway) from (
      select day, cpu, memory, disk, checkpoints, direct, gateway
        from usage_days where account_id = account and day >= since and day < until
      union all select day, -cpu, -memory, -disk, -checkpoints, -direct, -gateway
        from usage_account_days where account_id = account and day >= since and day < until) as d
    group by day having (sum(cpu), sum(memory), sum(disk), sum(checkpoints), sum(direct), sum(gateway)) <> (0, 0, 0, 0, 0, 0)) as wrong
$$;

grant select on usage_machine_months, usage_account_days to berth_gateway;
