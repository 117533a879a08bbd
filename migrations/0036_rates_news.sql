-- The operator's page of rates follows what it shows: plans, and rates of any. Both change by a statement at a time, and
-- seldom. Who sells is in settings, which are told already.

create function tell_rates() returns trigger language plpgsql as $$
begin
  perform pg_notify('rates', tg_table_name);
  return null;
end $$;
create trigger tell_rates after insert or update or delete on plans for each statement execute function tell_rates();
create trigger tell_rates after insert or update or delete on rates for each statement execute function tell_rates();
