-- The ledger's facts: what state and size a machine was in and when, and what its network counters read. From them
-- alone every bill is computed, and can be computed again. Only vmhosts append; nobody changes or removes.
--
-- Both tables refuse what cannot be true (time that is accounted for twice, a counter that falls) and take a repeat for
-- what it is: a row that is there already, word for word, is left out in silence, so whoever does not know whether its
-- rows arrived sends them again. Neither grows slower with its history: what a new row is compared with is one step in
-- an index, and the tables are in the order of time, where a BRIN index finds a month in.
--
-- They are not partitioned: nothing is ever dropped from a ledger, and a primary key over all of time is what makes a
-- repeat harmless. No foreign keys: a fact stays one, whatever becomes of the rows that it is about.

create table machine_spans (
  machine_id integer not null,
  host_id integer not null,
  started_at timestamptz not null,
  ended_at timestamptz not null,
  during tstzrange not null generated always as (tstzrange(started_at, ended_at, '[)')) stored,
  state text not null check (state in ('creating', 'running', 'asleep', 'stopped', 'failed')),
  cpus integer not null check (cpus > 0),
  memory_bytes bigint not null check (memory_bytes > 0),
  disk_bytes bigint not null check (disk_bytes >= 0),
  checkpoint_bytes bigint not null default 0 check (checkpoint_bytes >= 0),
  primary key (machine_id, started_at),
  constraint machine_spans_forwards check (started_at < ended_at),
  constraint machine_spans_in_one_day check
    (ended_at at time zone 'utc' <= date_trunc('day', started_at at time zone 'utc') + interval '1 day')
);
create index machine_spans_by_time on machine_spans using brin (started_at) with (autosummarize = on);
comment on table machine_spans is 'Closed pieces of a machine''s time in one state and size, none across midnight UTC; none while it is in the trash, or gone';
comment on column machine_spans.during is 'half open: from started_at to before ended_at, where the next piece may start';
comment on column machine_spans.state is 'running: it had a hypervisor, whether it was ready or not; creating: until it was ready for the first time';
comment on column machine_spans.cpus is 'that it ran with, or would; the like for memory_bytes, what it was promised';
comment on column machine_spans.disk_bytes is 'provisioned; 0 while there is no disk yet';
comment on column machine_spans.checkpoint_bytes is 'that its checkpoints hold and no other file';

create table transfer_readings (
  series uuid not null,
  sequence bigint not null check (sequence >= 0),
  machine_id integer not null,
  host_id integer not null,
  host_boot uuid not null,
  at timestamptz not null,
  direct_out_bytes bigint not null check (direct_out_bytes >= 0),
  direct_out_packets bigint not null check (direct_out_packets >= 0),
  direct_in_bytes bigint not null check (direct_in_bytes >= 0),
  direct_in_packets bigint not null check (direct_in_packets >= 0),
  gateway_out_bytes bigint not null check (gateway_out_bytes >= 0),
  gateway_out_packets bigint not null check (gateway_out_packets >= 0),
  gateway_in_bytes bigint not null check (gateway_in_bytes >= 0),
  gateway_in_packets bigint not null check (gateway_in_packets >= 0),
  primary key (series, sequence)
);
create index transfer_readings_by_machine on transfer_readings (machine_id, at);
create index transfer_readings_by_time on transfer_readings using brin (at) with (autosummarize = on);
comment on table transfer_readings is 'What a machine''s counters read, absolute. What it used is each reading less the one before in its series, and the whole of the first: a series begins at zero';
comment on column transfer_readings.series is 'one life of a machine''s counters, which ends with the host''s boot at the latest; a machine has many, one after the other';
comment on column transfer_readings.sequence is 'orders the readings of a series, with gaps: their times may repeat, or be wrong by what a clock was';
comment on column transfer_readings.direct_out_bytes is 'out: what left the machine; as its network card hands it over, without the 14 bytes of Ethernet; direct: by the host to others';
comment on column transfer_readings.gateway_out_bytes is 'between the machine and its server itself: SSH and HTTPS that the gateway carries';

create function check_span() returns trigger language plpgsql as $$
declare
  latest machine_spans;
begin
  -- Pieces do not overlap, so the one that starts last before this ends is the one that ends last. None is longer than
  -- its day. Index: the primary key.
  select * into latest from machine_spans s
    where s.machine_id = new.machine_id and s.started_at < new.ended_at
      and s.started_at >= date_trunc('day', new.started_at at time zone 'utc') at time zone 'utc'
    order by s.started_at desc limit 1;
  if not found or latest.ended_at <= new.started_at then
    return new;
  end if;
  if latest.started_at = new.started_at and latest.ended_at = new.ended_at and latest.state = new.state
    and latest.host_id = new.host_id and latest.cpus = new.cpus and latest.memory_bytes = new.memory_bytes
    and latest.disk_bytes = new.disk_bytes and latest.checkpoint_bytes = new.checkpoint_bytes then
    return null;
  end if;
  raise exception 'the time of machine % from % to % is accounted for until %',
    new.machine_id, new.started_at, new.ended_at, latest.ended_at
    using errcode = 'exclusion_violation', constraint = 'machine_spans_overlap';
end $$;

-- Whether b may be read after a; both null where there is none.
create function reading_follows(a transfer_readings, b transfer_readings) returns boolean language sql immutable as $$
  select coalesce(a.machine_id = b.machine_id and a.host_id = b.host_id and a.host_boot = b.host_boot
    and a.direct_out_bytes <= b.direct_out_bytes and a.direct_out_packets <= b.direct_out_packets
    and a.direct_in_bytes <= b.direct_in_bytes and a.direct_in_packets <= b.direct_in_packets
    and a.gateway_out_bytes <= b.gateway_out_bytes and a.gateway_out_packets <= b.gateway_out_packets
    and a.gateway_in_bytes <= b.gateway_in_bytes and a.gateway_in_packets <= b.gateway_in_packets, true)
$$;

create function check_reading() returns trigger language plpgsql as $$
declare
  earlier transfer_readings;
  later transfer_readings;
begin
  -- Either may be there: readings that waited arrive after newer ones. Index: the primary key.
  select * into earlier from transfer_readings r
    where r.series = new.series and r.sequence <= new.sequence order by r.sequence desc limit 1;
  if earlier.sequence = new.sequence and earlier.at = new.at
    and reading_follows(earlier, new) and reading_follows(new, earlier) then
    return null;
  end if;
  select * into later from transfer_readings r
    where r.series = new.series and r.sequence > new.sequence order by r.sequence limit 1;
  if earlier.sequence = new.sequence or not reading_follows(earlier, new) or not reading_follows(new, later) then
    raise exception 'reading % of series % does not fit the others', new.sequence, new.series
      using errcode = 'exclusion_violation', constraint = 'transfer_readings_fall';
  end if;
  return new;
end $$;

-- Two writers at once would each not see what the other is about to write. Appending takes milliseconds, once a minute
-- a server: they wait for one another, whatever machines they are about.
create function append_in_turn() returns trigger language plpgsql as $$
begin
  perform pg_advisory_xact_lock(hashtextextended('berth.ledger', 0));
  return null;
end $$;

create trigger machine_spans_in_turn before insert on machine_spans for each statement execute function append_in_turn();
create trigger machine_spans_check before insert on machine_spans for each row execute function check_span();
create trigger machine_spans_append_only before update or delete on machine_spans for each row execute function refuse_change();
create trigger machine_spans_no_truncate before truncate on machine_spans for each statement execute function refuse_change();

create trigger transfer_readings_in_turn before insert on transfer_readings for each statement execute function append_in_turn();
create trigger transfer_readings_check before insert on transfer_readings for each row execute function check_reading();
create trigger transfer_readings_append_only before update or delete on transfer_readings for each row execute function refuse_change();
create trigger transfer_readings_no_truncate before truncate on transfer_readings for each statement execute function refuse_change();

grant select on machine_spans, transfer_readings to berth_gateway;
grant select, insert on machine_spans, transfer_readings to berth_vmhost;
