-- Checkpoints: a machine's disk, or its disk and memory, at one instant; machines that go back to one, or are made of one.

create table checkpoints (
  id integer primary key generated always as identity,
  machine_id integer not null references machines on delete cascade,
  account_id integer not null references accounts,
  comment text not null default '' check (length(comment) <= 200),
  for_copy boolean not null default false,
  disk_only boolean not null default false,
  token uuid not null default gen_random_uuid(),
  created_at timestamptz not null default now(),
  desired_state text not null default 'kept' check (desired_state in ('kept', 'gone')),
  -- written by the vmhost only
  observed_state text not null default 'waiting' check (observed_state in ('waiting', 'kept', 'failed', 'gone')),
  observed_reason text,
  observed_taken_at timestamptz,
  observed_disk_bytes bigint,
  observed_cpus integer,
  observed_memory_bytes bigint,
  observed_saved_bytes bigint,
  observed_held_bytes bigint,
  observed_still_ms integer
);
comment on column checkpoints.for_copy is 'taken for a copy: it goes by itself as soon as no machine is to be made of it';
comment on column checkpoints.token is 'of its files: ids repeat after an older database was restored';
comment on column checkpoints.observed_reason is 'why it failed, for people';
comment on column checkpoints.observed_disk_bytes is 'size of the disk in it';
comment on column checkpoints.observed_memory_bytes is 'of the machine that it is, where it has its memory; null: the disk alone';
comment on column checkpoints.observed_saved_bytes is 'what that memory takes on the disk';
comment on column checkpoints.observed_held_bytes is 'what its removal would give back: blocks that no other file has';
comment on column checkpoints.observed_still_ms is 'for how long its machine stood still when it was taken';

create index checkpoints_by_machine on checkpoints (machine_id) where observed_state <> 'gone';

alter table machines
  add column restore_from integer references checkpoints,
  add column restore_keeps integer references checkpoints,
  add column desired_restore integer not null default 0,
  add column observed_restore integer not null default 0,
  add column observed_restore_problem text;
comment on column machines.desired_restore is
  'grows by one each time it is to become what restore_from holds; observed_restore follows it. One that begins with 1 is made of it';
comment on column machines.observed_restore_problem is 'why it was left as it was instead, for people; null: the last restore was carried out';
comment on column machines.restore_keeps is 'the checkpoint that its state before is kept as';

create index machines_restored on machines (restore_from) where observed_restore < desired_restore;

-- Whoever follows a machine hears of its checkpoints, and one that is to be made of a checkpoint hears that it is there.
create function tell_checkpoint() returns trigger language plpgsql as $$
begin
  perform pg_notify('machines', new.machine_id::text);
  -- Index machines_restored.
  perform pg_notify('machines', id::text) from machines where restore_from = new.id and observed_restore < desired_restore;
  return null;
end $$;
create trigger tell_checkpoint after insert or update of desired_state, observed_state on checkpoints
  for each row execute function tell_checkpoint();

grant select on checkpoints to berth_gateway, berth_vmhost;
grant insert (machine_id, account_id, comment, for_copy, disk_only), update (comment, desired_state)
  on checkpoints to berth_gateway;
-- desired_state only of one that was taken for a copy, or whose machine is gone.
grant update (desired_state, observed_state, observed_reason, observed_taken_at, observed_disk_bytes, observed_cpus,
  observed_memory_bytes, observed_saved_bytes, observed_held_bytes, observed_still_ms) on checkpoints to berth_vmhost;
grant insert (restore_from, desired_restore), update (restore_from, restore_keeps, desired_restore)
  on machines to berth_gateway;
grant update (observed_restore, observed_restore_problem) on machines to berth_vmhost;
