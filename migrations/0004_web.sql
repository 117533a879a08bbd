-- Who may see what a machine shows over HTTPS: sign-ins of browsers, shares, links, tokens.
-- Every secret that a browser or a program holds is here as its SHA-256 only.

alter table accounts add column email_proved_at timestamptz;
comment on column accounts.email_proved_at is 'when somebody who reads that mailbox signed in here; null: the address is only what was typed, and opens nothing';

alter table machines
  add column web_port integer check (web_port between 1 and 65535),
  add column web_public boolean not null default false;
comment on column machines.web_port is 'what https://NAME.domain/ shows; null: the image''s, else 8000';
comment on column machines.web_public is 'the primary port is open to everybody';

-- A browser that is signed in at the control host: as an account, or as the reader of a mailbox who has none here.
create table web_sessions (
  id integer primary key generated always as identity,
  token_hash bytea not null unique,
  account_id integer references accounts on delete cascade,
  email text check (email = lower(email) and email like '_%@_%'),
  address text not null default '',
  created_at timestamptz not null default now(),
  last_used_at timestamptz not null default now(),
  expires_at timestamptz not null,
  check (account_id is not null or email is not null)
);
comment on column web_sessions.email is 'proved by the code that signed in; null when a link from the lobby did';
create index web_sessions_by_account on web_sessions (account_id);
create index web_sessions_by_email on web_sessions (email);
create index web_sessions_by_expiry on web_sessions (expires_at);

-- What `browser` prints: signs one browser in, once.
create table sign_in_links (
  token_hash bytea primary key,
  account_id integer not null references accounts on delete cascade,
  expires_at timestamptz not null
);

-- A machine shared with whoever reads a mailbox; pending until one of them accepts.
create table shares (
  id integer primary key generated always as identity,
  machine_id integer not null references machines on delete cascade,
  email text not null check (email = lower(email) and email like '_%@_%'),
  token_hash bytea not null unique,
  account_id integer references accounts on delete cascade,
  created_at timestamptz not null default now(),
  accepted_at timestamptz,
  unique (machine_id, email)
);
comment on column shares.account_id is 'who accepted it; null while pending, or when a reader without an account did';
comment on column shares.token_hash is 'of the link in the invitation mail';
create index shares_by_account on shares (account_id);
create index shares_by_email on shares (email);

create table share_links (
  id integer primary key generated always as identity,
  machine_id integer not null references machines on delete cascade,
  token_hash bytea not null unique,
  uses_left integer check (uses_left >= 0),
  used integer not null default 0,
  created_at timestamptz not null default now(),
  expires_at timestamptz
);
comment on column share_links.uses_left is 'browsers that may still be let in; null: any number';
comment on column share_links.expires_at is 'ends the link and everybody''s access by it; null: only its removal does';
create index share_links_by_machine on share_links (machine_id);

-- The way of a signed-in browser from the control host to one machine's host: shown once, within a minute.
create table site_codes (
  code_hash bytea primary key,
  session_id integer not null references web_sessions on delete cascade,
  machine_id integer not null references machines on delete cascade,
  host text not null,
  path text not null,
  state_hash bytea not null,
  expires_at timestamptz not null
);
comment on column site_codes.state_hash is 'of the cookie that the browser got when it set out: nobody else''s browser can be sent on this way';

-- The cookie of one machine's host, good for that machine alone.
create table site_sessions (
  id integer primary key generated always as identity,
  token_hash bytea not null unique,
  machine_id integer not null references machines on delete cascade,
  session_id integer references web_sessions on delete cascade,
  link_id integer references share_links on delete cascade,
  created_at timestamptz not null default now(),
  expires_at timestamptz not null,
  check (num_nonnulls(session_id, link_id) = 1)
);
create index site_sessions_by_session on site_sessions (session_id);
create index site_sessions_by_link on site_sessions (link_id);
create index site_sessions_by_expiry on site_sessions (expires_at);

-- What programs show. Those minted offline with an SSH key are nowhere: their signature is the proof.
create table tokens (
  id integer primary key generated always as identity,
  token_hash bytea not null unique,
  account_id integer not null references accounts on delete cascade,
  label text not null default '',
  machine_id integer references machines on delete cascade,
  tag text,
  commands text[] not null default '{}',
  created_at timestamptz not null default now(),
  last_used_at timestamptz,
  expires_at timestamptz not null
);
comment on column tokens.machine_id is 'the one machine it opens; null: all of the account, or those with the tag';
comment on column tokens.commands is 'lobby commands it may run; none unless named';
create index tokens_by_account on tokens (account_id);

-- News of what was taken away: whoever was let in is looked at again. What is new needs none.
create function tell_grants() returns trigger language plpgsql as $$
begin
  perform pg_notify('grants', tg_table_name);
  return null;
end $$;
create trigger tell_sign_out after delete on web_sessions for each statement execute function tell_grants();
create trigger tell_unshare after delete or update on shares for each statement execute function tell_grants();
create trigger tell_link after delete on share_links for each statement execute function tell_grants();
create trigger tell_link_change after update of expires_at on share_links for each statement execute function tell_grants();
create trigger tell_site_sign_out after delete on site_sessions for each statement execute function tell_grants();
create trigger tell_token after delete on tokens for each statement execute function tell_grants();

grant select, insert, update, delete on web_sessions, sign_in_links, shares, share_links, site_codes, site_sessions, tokens
  to berth_gateway;
grant insert (web_port, web_public), update (web_port, web_public) on machines to berth_gateway;
