-- Codes count by whoever asks for them too: a stranger who asks for somebody's codes uses up his own.
alter table email_codes add column client text not null default '';
comment on column email_codes.client is 'who asked: an IPv4 address, an IPv6 /64, or account:<id>';
create index email_codes_by_email on email_codes (email);
