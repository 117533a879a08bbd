-- A restore asks for the size of its checkpoint before anybody knows whether it can be carried out. Where its server says
-- that it was not, the machine is to have the size again that it had.

alter table machines
  add column restore_cpus_before integer,
  add column restore_memory_bytes_before bigint;
comment on column machines.restore_cpus_before is
  'what the machine was to have, with restore_memory_bytes_before, when the restore under way was asked for; null: none is under way';

create function end_restore() returns trigger language plpgsql as $$
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
  end if;
  new.restore_cpus_before := null;
  new.restore_memory_bytes_before := null;
  return new;
end $$;
create trigger end_restore before update of observed_restore on machines
  for each row when (new.observed_restore > old.observed_restore) execute function end_restore();

grant update (restore_cpus_before, restore_memory_bytes_before) on machines to berth_gateway;
