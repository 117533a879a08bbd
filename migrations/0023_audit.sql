-- From where a change came and which command made it: audit shows both. Whoever shows the record live hears of it.

alter table events
  add column via text check (via in ('ssh', 'exec', 'web')),
  add column command text check (length(command) <= 1000);
comment on column events.account_id is 'whose record it is: the account that something was done to, which may not be whose doing it was';
comment on column events.actor is 'account:<id>, token:<id>, reader:<address> of one without an account, visitor, host:<name> or gateway';
comment on column events.via is 'null: nobody asked for it then, or it was written before this was';
comment on column events.command is 'as typed, without what may be secret';

create index events_by_old_name on events ((detail ->> 'was')) where kind = 'machine.renamed';

create function tell_events() returns trigger language plpgsql as $$
begin
  perform pg_notify('events', coalesce(account_id, 0)::text) from (select distinct account_id from added) as a;
  return null;
end $$;
create trigger tell_events after insert on events referencing new table as added
  for each statement execute function tell_events();
