-- Machines that sleep: how long they may be idle, what keeps them awake, and what put them to sleep.

alter table machines
  add column sleep_never boolean not null default false,
  add column hold_until timestamptz,
  add column observed_awake_because text,
  add column observed_idle_since timestamptz,
  add column observed_asleep_because text,
  add column observed_asleep_at timestamptz,
  add column observed_saved_bytes bigint;
comment on column machines.sleep_after_seconds is 'idle for this long, it is put to sleep; null: as long as its account''s default says, never without one';
comment on column machines.sleep_never is 'never for being idle, whatever its account''s default is';
comment on column machines.hold_until is 'until then it is not idle, whatever it does';
comment on column machines.observed_awake_because is 'what keeps a running machine from being idle, for people; null: nothing';
comment on column machines.observed_idle_since is 'nothing has kept it awake since then; null: something does, or it does not run';
comment on column machines.observed_asleep_because is 'what put it to sleep, for people; null: it does not sleep';
comment on column machines.observed_saved_bytes is 'what its memory takes on the disk while it sleeps';

-- The last time that something was carried to or from a machine, by any gateway. Of its own, because machines are
-- news with every change and this is none.
create table machine_activity (
  machine_id integer primary key references machines on delete cascade,
  at timestamptz not null,
  what text not null check (what in ('ssh', 'https', 'websocket'))
);

grant insert (sleep_never), update (sleep_never, hold_until) on machines to berth_gateway;
grant select, insert, update on machine_activity to berth_gateway;
grant select on machine_activity to berth_vmhost;
grant select (defaults) on accounts to berth_vmhost;
-- desired_state, which it may write since 0001, becomes `asleep` where a machine is idle or its server short of memory.
grant update (observed_awake_because, observed_idle_since, observed_asleep_because, observed_asleep_at,
  observed_saved_bytes) on machines to berth_vmhost;
