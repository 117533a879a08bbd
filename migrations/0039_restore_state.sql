-- A restore wants its machine running. Where its server says that it was not carried out, the machine is what it was: one
-- that was stopped is not started for it, one that slept sleeps on, and one that is paused stays so.

alter table machines add column restore_state_before text;
comment on column machines.restore_state_before is
  'what was wanted of the machine when the restore under way was asked for; null: none is under way, or something else was asked for since';

create or replace function end_restore() returns trigger language plpgsql as $$
declare
  had checkpoints%rowtype;
begin
  if new.observed_restore_problem is not null then
    select * into had from checkpoints where id = new.restore_from;
    -- Another size was asked for meanwhile where it is not the checkpoint's any more.
    if new.cpus = had.observed_cpus then
      new.cpus := coalesce(new.restore_cpus_before, new.cpus);
    end if;
    if new.memory_bytes = had.observed_memory_bytes then
      new.memory_bytes := coalesce(new.restore_memory_bytes_before, new.memory_bytes);
    end if;
    new.desired_state := coalesce(new.restore_state_before, new.desired_state);
  end if;
  new.restore_cpus_before := null;
  new.restore_memory_bytes_before := null;
  new.restore_state_before := null;
  return new;
end $$;

create function overtake_restore() returns trigger language plpgsql as $$
begin
  new.restore_state_before := null;
  return new;
end $$;
create trigger overtake_restore before update of desired_state, desired_boot on machines
  for each row when (new.desired_restore = old.desired_restore and old.restore_state_before is not null)
  execute function overtake_restore();

grant update (restore_state_before) on machines to berth_gateway;
