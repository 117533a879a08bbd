-- Certificates that all gateways of the installation serve. One row a name; renewed in place under an advisory lock.

create table certificates (
  name text primary key check (name = lower(name) and length(name) between 1 and 253),
  issuer text not null,
  chain text not null,
  sealed_key bytea not null,
  not_before timestamptz not null,
  not_after timestamptz not null,
  renew_at timestamptz not null check (renew_at < not_after)
);
comment on column certificates.issuer is 'own:<fingerprint of Berth''s root>, or the ACME directory''s URL';
comment on column certificates.chain is 'PEM, the leaf first';
comment on column certificates.sealed_key is 'PKCS #8 PEM under secret.key: nonce (12) || ciphertext || tag (16), certificate:<name> as associated data';
create index certificates_by_renewal on certificates (renew_at);

grant select, insert, update, delete on certificates to berth_gateway;
