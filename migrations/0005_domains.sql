-- Domains that people bring, certificates from an ACME directory, and the challenges that are open at the moment.

-- What an account's DNS shows to claim a domain. It is no secret; that no other account has it is what counts.
alter table accounts add column domain_proof text not null unique default replace(gen_random_uuid()::text, '-', '');

-- A domain of somebody's own, and the one machine that it leads to. Who may have it, DNS said when it was added.
create table custom_domains (
  domain text primary key check (domain = lower(domain) and length(domain) between 3 and 253 and domain like '_%._%'),
  machine_id integer not null references machines on delete cascade,
  wildcard boolean not null default false,
  added_at timestamptz not null default now()
);
comment on column custom_domains.wildcard is 'every name one label below it leads there too';
create index custom_domains_by_machine on custom_domains (machine_id);

-- What is wanted of the directory, and what is held. One gateway at a time works on a row, while its lease runs.
create table acme_certificates (
  name text primary key check (name = lower(name) and length(name) between 1 and 253),
  names text[] not null check (cardinality(names) between 1 and 2),
  domain text unique references custom_domains on delete cascade,
  directory text,
  chain text,
  sealed_key bytea,
  not_before timestamptz,
  not_after timestamptz,
  renew_at timestamptz,
  failures integer not null default 0,
  problem text,
  tried_at timestamptz,
  try_at timestamptz not null default now(),
  leased_until timestamptz not null default now(),
  lease integer not null default 0,
  check (num_nulls(directory, chain, sealed_key, not_before, not_after, renew_at) in (0, 6))
);
comment on column acme_certificates.names is 'subjectAltNames that are wanted; those of the chain may be older';
comment on column acme_certificates.domain is 'null: the installation''s own';
comment on column acme_certificates.directory is 'URL of the directory that issued what is held';
comment on column acme_certificates.sealed_key is 'PKCS #8 PEM under secret.key: nonce (12) || ciphertext || tag (16), acme:<name> as associated data';
comment on column acme_certificates.failures is 'in a row; the waits between tries grow with them';
comment on column acme_certificates.lease is 'grows with each lease: whoever lost it writes nothing any more';
create index acme_certificates_by_try on acme_certificates (try_at);

-- What the directory's servers look for while an order is open. Every gateway answers them, whoever placed the order.
create table acme_challenges (
  id integer primary key generated always as identity,
  kind text not null check (kind in ('dns-01', 'http-01', 'tls-alpn-01')),
  name text not null check (name = lower(name)),
  token text not null default '',
  value text not null,
  expires_at timestamptz not null default now() + interval '1 hour'
);
comment on column acme_challenges.name is 'dns-01: where the TXT record stands; else the host that is asked';
comment on column acme_challenges.value is 'dns-01: the TXT record; else the key authorization (RFC 8555, 8.1)';

create function tell_domain() returns trigger language plpgsql as $$
begin
  perform pg_notify('domains', coalesce(new.domain, old.domain));
  return null;
end $$;
create trigger tell_domain after insert or update or delete on custom_domains for each row execute function tell_domain();

-- A lease alone is nobody's news.
create function tell_certificate() returns trigger language plpgsql as $$
begin
  perform pg_notify('certificates', coalesce(new.name, old.name));
  return null;
end $$;
create trigger tell_certificate after insert or delete on acme_certificates
  for each row execute function tell_certificate();
create trigger tell_certificate_change after update on acme_certificates for each row
  when (old.chain is distinct from new.chain or old.names is distinct from new.names or old.try_at is distinct from new.try_at)
  execute function tell_certificate();

create function tell_challenge() returns trigger language plpgsql as $$
begin
  perform pg_notify('challenges', coalesce(new.id, old.id)::text);
  return null;
end $$;
create trigger tell_challenge after insert or delete on acme_challenges for each row execute function tell_challenge();

grant select, insert, update, delete on custom_domains, acme_certificates, acme_challenges to berth_gateway;
