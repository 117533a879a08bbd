-- What tokens may run at POST /exec. Those that were made before this could run nothing there, and still cannot.

alter table tokens
  alter column commands drop default,
  alter column commands drop not null,
  add column made_by_token integer references tokens on delete cascade,
  add column made_by_key integer references keys on delete cascade;
comment on column tokens.commands is 'lobby commands it may run, by name or family; null: none were named, and it may run all but what signs a person in';
comment on column tokens.made_by_token is 'the token that asked for this one, which ends with it; null: a person did, or made_by_key';
comment on column tokens.made_by_key is 'the key that signed the offline token that asked for this one';
create index tokens_by_maker on tokens (made_by_token);
create index tokens_by_making_key on tokens (made_by_key);
