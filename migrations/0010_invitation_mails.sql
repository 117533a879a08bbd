-- Mails that an account has sent to strangers are counted as such: what is shared can be taken back, a mail cannot.
alter table mails add column invited_by integer references accounts on delete set null;
comment on column mails.invited_by is 'whose invitation it is; null: it is none';
create index mails_by_inviter on mails (invited_by, created_at) where invited_by is not null;
create index mails_by_invited on mails (recipient, created_at) where invited_by is not null;
