-- The foundation: people, their keys, machines as wanted and as seen, servers with leases, addresses, events.
-- Who writes what is said by grants at the end: the gateway (role berth_gateway) writes what is wanted,
-- a vmhost (role berth_vmhost), which is root on its server, writes what is. Neither can write the other's columns.

create table settings (
  key text primary key,
  value text not null
);
comment on table settings is 'Facts of the whole installation that are no secret: gateway_public_key, ssh_host_public_key';

create table secrets (
  name text primary key,
  ciphertext bytea not null,
  created_at timestamptz not null default now()
);
comment on table secrets is 'AES-256-GCM under the data directory''s secret.key: nonce (12) || ciphertext || tag (16), name as associated data';

-- People -------------------------------------------------------------------------------------------------------

create table accounts (
  id integer primary key generated always as identity,
  email text unique check (email = lower(email) and email like '_%@_%'),
  is_owner boolean not null default false,
  plan text not null default 'house',
  defaults jsonb not null default '{}',
  max_machines integer,
  suspended_at timestamptz,
  created_at timestamptz not null default now()
);

create table keys (
  id integer primary key generated always as identity,
  account_id integer not null references accounts on delete cascade,
  name text not null check (length(name) between 1 and 100),
  algorithm text not null,
  public_key bytea not null unique,
  fingerprint text not null unique,
  comment text not null default '',
  created_at timestamptz not null default now(),
  last_used_at timestamptz,
  unique (account_id, name)
);
comment on column keys.public_key is 'the SSH wire form (RFC 4253, 6.6), as a client offers it';
comment on column keys.fingerprint is 'SHA256:… as ssh-keygen -l prints it';

-- A recorded name is one that people type without thinking (their local user name); it leads to the lobby.
create table lobby_names (
  name text not null check (length(name) between 1 and 64),
  account_id integer not null references accounts on delete cascade,
  created_at timestamptz not null default now(),
  primary key (name, account_id)
);

create table invitations (
  id integer primary key generated always as identity,
  code_hash bytea not null unique,
  account_id integer references accounts on delete cascade,
  makes_owner boolean not null default false,
  uses_left integer not null check (uses_left >= 0),
  expires_at timestamptz not null,
  created_at timestamptz not null default now()
);
comment on column invitations.code_hash is 'SHA-256 of the join code';
comment on column invitations.account_id is 'who invites; null: the installation itself, at first start';

create table email_codes (
  id integer primary key generated always as identity,
  email text not null,
  public_key bytea not null,
  code_hash bytea not null,
  attempts_left integer not null default 5,
  expires_at timestamptz not null
);
create index email_codes_expiry on email_codes (expires_at);

-- Mail waits here until it was sent; without BERTH_SMTP it is kept for the owner to read.
create table mails (
  id integer primary key generated always as identity,
  recipient text not null,
  subject text not null,
  body text not null,
  created_at timestamptz not null default now(),
  sent_at timestamptz,
  attempts integer not null default 0,
  next_attempt_at timestamptz not null default now(),
  last_error text
);
create index mails_unsent on mails (next_attempt_at) where sent_at is null;

-- Servers ------------------------------------------------------------------------------------------------------

create table hosts (
  id integer primary key generated always as identity,
  name text not null unique,
  lease_epoch bigint not null default 0,
  lease_expires_at timestamptz not null default now(),
  boot_id uuid,
  draining boolean not null default false,
  cpus integer not null default 0,
  memory_bytes bigint not null default 0,
  store_bytes bigint not null default 0,
  store_free_bytes bigint not null default 0,
  memory_overcommit numeric(4, 2) not null default 1.0,
  hypervisor text not null default '',
  accelerator text not null default '',
  accelerator_reason text not null default '',
  nested boolean not null default false,
  images jsonb not null default '[]',
  doctor jsonb not null default '[]',
  version text not null default '',
  started_at timestamptz
);
comment on column hosts.images is '[{name, hash, sizeBytes, loginUser, description}] that this server can make machines of';
comment on column hosts.doctor is '[{check, ok, message, remedy}] as the server last saw itself';
comment on column hosts.lease_epoch is 'grows by one each time a vmhost takes the lease: a writer of an older epoch has lost it';

-- Machines -----------------------------------------------------------------------------------------------------

create table machines (
  id integer primary key generated always as identity,
  account_id integer not null references accounts,
  host_id integer not null references hosts,
  name text not null check (name ~ '^[a-z]([a-z0-9]|-(?=[a-z0-9])){0,39}$'),
  image text not null,
  cpus integer not null check (cpus between 1 and 256),
  memory_bytes bigint not null check (memory_bytes > 0),
  disk_bytes bigint not null check (disk_bytes > 0),
  env jsonb not null default '{}',
  command text not null default 'auto',
  tags text[] not null default '{}',
  comment text not null default '',
  sleep_after_seconds integer check (sleep_after_seconds > 0),
  setup_script text,
  setup_state text check (setup_state in ('waiting', 'running', 'done', 'failed')),
  setup_exit_status integer,
  setup_ended_at timestamptz,
  created_at timestamptz not null default now(),
  desired_state text not null default 'running'
    check (desired_state in ('running', 'stopped', 'asleep', 'paused', 'trashed', 'gone')),
  desired_boot integer not null default 1,
  trashed_at timestamptz,
  -- written by the vmhost only
  observed_state text not null default 'creating'
    check (observed_state in ('creating', 'running', 'asleep', 'stopped', 'trashed', 'gone', 'failed')),
  observed_boot integer not null default 0,
  observed_reason text,
  observed_stage text not null default 'waiting',
  observed_stage_at timestamptz not null default now(),
  observed_host_key bytea,
  observed_login_user text,
  observed_ready_at timestamptz,
  observed_started_at timestamptz,
  observed_cpus integer,
  observed_memory_bytes bigint,
  observed_at timestamptz not null default now()
);
comment on column machines.desired_boot is 'grows by one for each restart asked for; observed_boot follows it';
comment on column machines.observed_stage is 'where a start is: waiting, disk, network, boot, ssh, ready';
comment on column machines.observed_host_key is 'ed25519 public key of the machine''s sshd in SSH wire form';

create index machines_by_host on machines (host_id) where observed_state <> 'gone';
create index machines_by_account on machines (account_id) where observed_state <> 'gone';

-- Names in use. A name leaves this table when its machine goes into the trash, so that it is free at once.
create table machine_names (
  name text primary key,
  machine_id integer not null unique references machines on delete cascade
);

-- Addresses in use; an address outlives the trash, because an untrashed machine keeps its own.
create table addresses (
  address inet primary key,
  machine_id integer not null unique references machines on delete cascade
);

-- A machine's console as the gateway shows it, the last 256 KiB of each; the whole log is a file on the server.
create table console_chunks (
  machine_id integer not null references machines on delete cascade,
  seq bigint not null,
  boot integer not null,
  at timestamptz not null default now(),
  bytes bytea not null check (length(bytes) between 1 and 65536),
  primary key (machine_id, seq)
);

-- What the guest said last: one row a machine, replaced.
create table machine_reports (
  machine_id integer primary key references machines on delete cascade,
  at timestamptz not null,
  report jsonb not null
);
comment on column machine_reports.report is 'bounded to 16 KiB by the vmhost: cpu, memory, load, listening ports, tx_bytes';

create table events (
  id bigint primary key generated always as identity,
  at timestamptz not null default now(),
  account_id integer,
  machine_id integer,
  machine_name text,
  actor text not null,
  address text,
  kind text not null,
  detail jsonb not null default '{}'
);
comment on column events.actor is 'account:<id>, host:<name>, gateway or system';
create index events_by_machine on events (machine_id, id);
create index events_by_account on events (account_id, id);

create function refuse_change() returns trigger language plpgsql as $$
begin
  raise exception '% is append only', tg_table_name using errcode = 'restrict_violation';
end $$;
create trigger events_append_only before update or delete on events for each row execute function refuse_change();
create trigger events_no_truncate before truncate on events for each statement execute function refuse_change();

-- Machine names and recorded names exclude each other. Both sides take the same advisory lock on the name first,
-- so that two transactions which write the two tables at the same moment cannot both pass.
create function machine_name_free() returns trigger language plpgsql as $$
begin
  perform pg_advisory_xact_lock(hashtextextended('berth.name.' || new.name, 0));
  if exists (select from lobby_names where name = new.name) then
    raise exception 'the name % leads to the lobby', new.name using errcode = 'unique_violation', constraint = 'lobby_names_pkey';
  end if;
  return new;
end $$;
create trigger machine_name_free before insert or update of name on machine_names
  for each row execute function machine_name_free();

create function lobby_name_free() returns trigger language plpgsql as $$
begin
  perform pg_advisory_xact_lock(hashtextextended('berth.name.' || new.name, 0));
  if exists (select from machine_names where name = new.name) then
    raise exception 'a machine is called %', new.name using errcode = 'unique_violation', constraint = 'machine_names_pkey';
  end if;
  return new;
end $$;
create trigger lobby_name_free before insert or update of name on lobby_names
  for each row execute function lobby_name_free();

-- News. Payloads are ids only: whoever hears one reads the row.
create function tell_machine() returns trigger language plpgsql as $$
begin
  perform pg_notify('machines', coalesce(new.id, old.id)::text);
  return null;
end $$;
create trigger tell_machine after insert or delete on machines for each row execute function tell_machine();
create trigger tell_machine_change after update on machines for each row
  when (old is distinct from new) execute function tell_machine();

create function tell_console() returns trigger language plpgsql as $$
begin
  perform pg_notify('console', machine_id::text) from (select distinct machine_id from added) as m;
  return null;
end $$;
create trigger tell_console after insert on console_chunks referencing new table as added
  for each statement execute function tell_console();

create function tell_keys() returns trigger language plpgsql as $$
begin
  perform pg_notify('keys', coalesce(new.account_id, old.account_id)::text);
  return null;
end $$;
create trigger tell_keys after insert or delete or update of public_key, account_id on keys
  for each row execute function tell_keys();

create function tell_settings() returns trigger language plpgsql as $$
begin
  perform pg_notify('settings', new.key);
  return null;
end $$;
create trigger tell_settings after insert or update on settings for each row execute function tell_settings();

create function tell_host() returns trigger language plpgsql as $$
begin
  perform pg_notify('hosts', new.id::text);
  return null;
end $$;
create trigger tell_host after update of draining, images, memory_overcommit on hosts for each row execute function tell_host();

create function tell_mail() returns trigger language plpgsql as $$
begin
  perform pg_notify('mails', new.id::text);
  return null;
end $$;
create trigger tell_mail after insert on mails for each row execute function tell_mail();

-- Grants -------------------------------------------------------------------------------------------------------

grant usage on schema public to berth_gateway, berth_vmhost;
grant select on all tables in schema public to berth_gateway;
grant insert, update, delete on settings, secrets, accounts, keys, lobby_names, invitations, email_codes, mails,
  machine_names, addresses to berth_gateway;
grant insert on events to berth_gateway, berth_vmhost;
grant insert (account_id, host_id, name, image, cpus, memory_bytes, disk_bytes, env, command, tags, comment,
  sleep_after_seconds, setup_script, setup_state, desired_state, desired_boot) on machines to berth_gateway;
grant update (account_id, name, cpus, memory_bytes, disk_bytes, env, tags, comment, sleep_after_seconds,
  setup_script, setup_state, setup_exit_status, setup_ended_at, desired_state, desired_boot, trashed_at)
  on machines to berth_gateway;
grant update (draining, memory_overcommit) on hosts to berth_gateway;

grant select on settings, keys, hosts, machines, machine_names, addresses, console_chunks, machine_reports, events
  to berth_vmhost;
grant select (id, suspended_at) on accounts to berth_vmhost;
grant insert (name) on hosts to berth_vmhost;
grant update (lease_epoch, lease_expires_at, boot_id, cpus, memory_bytes, store_bytes, store_free_bytes, hypervisor,
  accelerator, accelerator_reason, nested, images, doctor, version, started_at) on hosts to berth_vmhost;
-- desired_state only because a guest may power itself off, and a trash that is too old becomes gone.
grant update (desired_state, observed_state, observed_boot, observed_reason, observed_stage, observed_stage_at,
  observed_host_key, observed_login_user, observed_ready_at, observed_started_at, observed_cpus,
  observed_memory_bytes, observed_at) on machines to berth_vmhost;
grant delete on addresses, machine_names to berth_vmhost;
grant insert, update, delete on console_chunks, machine_reports to berth_vmhost;
