-- Load: what machines did, sampled every 10 s. Samples are kept for a day, their sums over 5 minutes for a month and
-- over an hour for two years. Nobody pays by them, so they may have gaps: what nobody saw is not made up.
--
-- A sum is what its samples add up to, exactly: both are written in one statement, and only of samples that were not
-- there yet, so a repeat adds nothing, and what arrives late still counts. Whatever is old goes by the partition.

create schema partitions;
comment on schema partitions is 'Parts of public tables by time, made ahead and dropped by keep_load_partitions()';
grant usage on schema partitions to berth_gateway, berth_vmhost;

create table load_samples (
  machine_id integer not null,
  at timestamptz not null,
  ms integer not null check (ms > 0),
  cpus integer not null,
  cpu_ms integer not null check (cpu_ms >= 0),
  memory_limit_bytes bigint not null,
  memory_held_bytes bigint not null,
  memory_used_bytes bigint,
  disk_ms integer check (disk_ms > 0),
  disk_read_bytes bigint check (disk_read_bytes >= 0),
  disk_written_bytes bigint check (disk_written_bytes >= 0),
  network_ms integer check (network_ms > 0),
  network_out_bytes bigint check (network_out_bytes >= 0),
  network_in_bytes bigint check (network_in_bytes >= 0),
  filesystem_used_bytes bigint,
  filesystem_bytes bigint,
  primary key (machine_id, at)
) partition by range (at);
comment on table load_samples is 'What a machine did within 10 s, and what it held at their end; none while it does not run';
comment on column load_samples.at is 'when the 10 s began';
comment on column load_samples.ms is 'of which cpu_ms speaks, up to the end of the 10 s or so; the like for disk_ms and network_ms';
comment on column load_samples.cpu_ms is 'that its hypervisor computed: the machine and what it takes to run it';
comment on column load_samples.memory_used_bytes is 'by its guest''s word, without what is in the balloon; memory_held_bytes: that its hypervisor holds of the server''s';
comment on column load_samples.disk_read_bytes is 'that its guest asked for, from the cache of its server too';
comment on column load_samples.network_out_bytes is 'that it sent, with the 14 bytes of Ethernet';

create table load_sums (
  machine_id integer not null,
  step_seconds integer not null,
  at timestamptz not null,
  samples integer not null,
  ms bigint not null,
  cpus integer not null,
  cpu_ms bigint not null,
  cpu_most real not null,
  memory_limit_bytes bigint not null,
  memory_held_sum bigint not null,
  memory_held_most bigint not null,
  memory_used_samples integer not null,
  memory_used_sum bigint,
  memory_used_most bigint,
  disk_ms bigint,
  disk_read_bytes bigint,
  disk_read_most real,
  disk_written_bytes bigint,
  disk_written_most real,
  network_ms bigint,
  network_out_bytes bigint,
  network_out_most real,
  network_in_bytes bigint,
  network_in_most real,
  filesystem_used_bytes bigint,
  filesystem_bytes bigint,
  primary key (machine_id, step_seconds, at)
) partition by list (step_seconds);
create table partitions.load_minutes partition of load_sums for values in (300) partition by range (at);
create table partitions.load_hours partition of load_sums for values in (3600) partition by range (at);
comment on table load_sums is 'What the samples of 5 minutes, and of an hour, add up to';
comment on column load_sums.cpu_most is 'the busiest sample, in processors; the like for other columns, in bytes, and in bytes a second';
comment on column load_sums.memory_limit_bytes is 'the most that there was; the like for cpus and filesystems';

create table load_marks (
  machine_id integer not null,
  at timestamptz not null,
  state text not null check (state in ('running', 'asleep', 'stopped', 'failed')),
  primary key (machine_id, at)
) partition by range (at);
comment on table load_marks is 'When a machine was seen to begin to run, on each start and wake anew, and when not to run any more';

-- Makes the partitions that will be needed and drops those that hold nothing but what is too old: at most four of a
-- table at once, and none when somebody else is at it, or reads for longer than two seconds.
create function keep_load_partitions() returns integer language plpgsql security definer
  set search_path = public, pg_temp set timezone = 'utc' set lock_timeout = '2s' as $$
declare
  kind record;
  starts timestamptz;
  part text;
  done integer := 0;
begin
  if not pg_try_advisory_xact_lock(hashtextextended('berth.load_partitions', 0)) then
    return 0;
  end if;
  for kind in select * from (values
    ('public', 'load_samples', interval '6 hours', interval '1 day', interval '1 day', 100),
    ('partitions', 'load_minutes', interval '7 days', interval '31 days', interval '14 days', 50),
    ('partitions', 'load_hours', interval '56 days', interval '732 days', interval '112 days', 50),
    ('public', 'load_marks', interval '56 days', interval '732 days', interval '112 days', 100)
  ) as k(home, parent, step, kept, ahead, fill) loop
    for starts in select generate_series(date_bin(kind.step, now() - interval '2 hours', '1970-01-01 00:00Z'),
      now() + kind.ahead, kind.step) loop
      part := kind.parent || to_char(starts, '_YYYYMMDD_HH24');
      if to_regclass(format('partitions.%I', part)) is null then
        execute format('create table partitions.%I partition of %I.%I for values from (%L) to (%L) with (fillfactor = %s)',
          part, kind.home, kind.parent, starts, starts + kind.step, kind.fill);
        done := done + 1;
      end if;
    end loop;
    for part in select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
      where i.inhparent = to_regclass(format('%I.%I', kind.home, kind.parent))
        and to_timestamp(right(c.relname, 11), 'YYYYMMDD_HH24') + kind.step <= now() - kind.kept
      order by 1 limit 4 loop
      execute format('drop table partitions.%I', part);
      done := done + 1;
    end loop;
  end loop;
  return done;
end $$;
select keep_load_partitions();

-- What a vmhost has of its machines, as JSON arrays of these columns. A repeat changes nothing.
-- Returns how many samples are new; null: another vmhost has taken over the server.
create function add_load(host integer, epoch bigint, given_samples jsonb, given_marks jsonb) returns integer
  language plpgsql security definer set search_path = public, pg_temp as $$
declare
  new_samples integer;
begin
  perform from hosts where id = host and lease_epoch = epoch;
  if not found then
    return null;
  end if;
  -- A run that an earlier vmhost saw began at the same time, up to how exactly that can be told.
  insert into load_marks
    select given.machine_id, given.at, given.state
    from jsonb_to_recordset(given_marks) as given(machine_id integer, at timestamptz, state text)
      join machines on machines.id = given.machine_id and machines.host_id = host
      left join lateral (
        select l.at, l.state from load_marks l
        where l.machine_id = given.machine_id and l.at <= given.at + interval '2 seconds'
        order by l.at desc limit 1) last on true
    where last.state is distinct from given.state
      or (given.state = 'running' and last.at < given.at - interval '2 seconds')
    on conflict do nothing;
  with added as (
    insert into load_samples as l
      select given.* from jsonb_to_recordset(given_samples) as given(machine_id integer, at timestamptz, ms integer,
        cpus integer, cpu_ms integer, memory_limit_bytes bigint, memory_held_bytes bigint, memory_used_bytes bigint,
        disk_ms integer, disk_read_bytes bigint, disk_written_bytes bigint, network_ms integer,
        network_out_bytes bigint, network_in_bytes bigint, filesystem_used_bytes bigint, filesystem_bytes bigint)
        join machines on machines.id = given.machine_id and machines.host_id = host
      order by given.machine_id, given.at
      on conflict do nothing
      returning l.*
  ), summed as (
    insert into load_sums as s
      select machine_id, step, date_bin(make_interval(secs => step), at, '1970-01-01 00:00Z'), count(*), sum(ms), max(cpus),
        sum(cpu_ms), max(cpu_ms::real / ms), max(memory_limit_bytes), sum(memory_held_bytes), max(memory_held_bytes),
        count(memory_used_bytes), sum(memory_used_bytes), max(memory_used_bytes), sum(disk_ms), sum(disk_read_bytes),
        max(disk_read_bytes * 1000.0 / disk_ms)::real, sum(disk_written_bytes), max(disk_written_bytes * 1000.0 / disk_ms)::real,
        sum(network_ms), sum(network_out_bytes), max(network_out_bytes * 1000.0 / network_ms)::real, sum(network_in_bytes),
        max(network_in_bytes * 1000.0 / network_ms)::real, max(filesystem_used_bytes), max(filesystem_bytes)
      from added cross join (values (300), (3600)) as steps(step)
      group by 1, 2, 3 order by 1, 2, 3
      on conflict (machine_id, step_seconds, at) do update set
        samples = s.samples + excluded.samples, ms = s.ms + excluded.ms, cpus = greatest(s.cpus, excluded.cpus),
        cpu_ms = s.cpu_ms + excluded.cpu_ms, cpu_most = greatest(s.cpu_most, excluded.cpu_most),
        memory_limit_bytes = greatest(s.memory_limit_bytes, excluded.memory_limit_bytes),
        memory_held_sum = s.memory_held_sum + excluded.memory_held_sum,
        memory_held_most = greatest(s.memory_held_most, excluded.memory_held_most),
        memory_used_samples = s.memory_used_samples + excluded.memory_used_samples,
        memory_used_sum = coalesce(s.memory_used_sum + excluded.memory_used_sum, s.memory_used_sum, excluded.memory_used_sum),
        memory_used_most = greatest(s.memory_used_most, excluded.memory_used_most),
        disk_ms = coalesce(s.disk_ms + excluded.disk_ms, s.disk_ms, excluded.disk_ms),
        disk_read_bytes = coalesce(s.disk_read_bytes + excluded.disk_read_bytes, s.disk_read_bytes, excluded.disk_read_bytes),
        disk_read_most = greatest(s.disk_read_most, excluded.disk_read_most),
        disk_written_bytes =
          coalesce(s.disk_written_bytes + excluded.disk_written_bytes, s.disk_written_bytes, excluded.disk_written_bytes),
        disk_written_most = greatest(s.disk_written_most, excluded.disk_written_most),
        network_ms = coalesce(s.network_ms + excluded.network_ms, s.network_ms, excluded.network_ms),
        network_out_bytes =
          coalesce(s.network_out_bytes + excluded.network_out_bytes, s.network_out_bytes, excluded.network_out_bytes),
        network_out_most = greatest(s.network_out_most, excluded.network_out_most),
        network_in_bytes =
          coalesce(s.network_in_bytes + excluded.network_in_bytes, s.network_in_bytes, excluded.network_in_bytes),
        network_in_most = greatest(s.network_in_most, excluded.network_in_most),
        filesystem_used_bytes = greatest(s.filesystem_used_bytes, excluded.filesystem_used_bytes),
        filesystem_bytes = greatest(s.filesystem_bytes, excluded.filesystem_bytes)
  )
  select count(*) into new_samples from added;
  return new_samples;
end $$;

revoke execute on function keep_load_partitions(), add_load(integer, bigint, jsonb, jsonb) from public;
grant execute on function keep_load_partitions(), add_load(integer, bigint, jsonb, jsonb) to berth_vmhost;
grant select on load_samples, load_sums, load_marks to berth_gateway;
