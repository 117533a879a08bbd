-- Whose files lie in a machine's place on its server. Ids repeat after an older database was restored; a token does not.
alter table machines add column token uuid not null default gen_random_uuid();
comment on column machines.token is 'made with the row, and kept by the vmhost beside the machine''s disk: what has another one belongs to another machine';
