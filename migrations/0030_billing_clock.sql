-- One clock that was wrong for a moment must not close months: that cannot be taken back. Rounds of billing say here when
-- the last one was whose time was believed, and what waits for the operator's word when one is not.

create table billing_clock (
  one boolean primary key default true check (one),
  last_round_at timestamptz,
  waits_since timestamptz,
  waits_because text,
  waits_from date check (extract(day from waits_from) = 1),
  waits_to date check (extract(day from waits_to) = 1),
  over_month date check (extract(day from over_month) = 1)
);
insert into billing_clock default values;
comment on column billing_clock.last_round_at is 'the newest moment that was believed; written once an hour';
comment on column billing_clock.waits_since is 'null: no month waits to be closed; otherwise those from waits_from to waits_to do';
comment on column billing_clock.over_month is 'the operator''s word: this month and those before it are over, whatever a clock says';

grant select on billing_clock to berth_gateway;
grant update (last_round_at, waits_since, waits_because, waits_from, waits_to, over_month) on billing_clock
  to berth_gateway;

-- Late is also what comes for a month that was closed already, should a clock have closed it before its end.
create or replace function add_usage(used usage_days[]) returns void language plpgsql as $$
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
    where day < greatest(date_trunc('month', now() at time zone 'utc'),
      (select max(month) + interval '1 month' from invoice_runs))
    on conflict (account_id, month) do update set at = excluded.at;
end $$;
