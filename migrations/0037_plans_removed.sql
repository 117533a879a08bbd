-- A plan that was made by mistake can be removed, with its rates, as long as nobody was ever on it or is to be. What an
-- account was on, and what an invoice was computed by, stays: the references of account_plans and invoice_lines refuse it.

alter table rates drop constraint rates_plan_fkey,
  add constraint rates_plan_fkey foreign key (plan) references plans on delete cascade;

create or replace function refuse_other_past() returns trigger language plpgsql as $$
declare
  past constant tstzrange := tstzrange(null, now());
  changes boolean;
begin
  if tg_op = 'INSERT' then
    changes := new.effective && past;
  elsif tg_op = 'UPDATE' then
    changes := old.effective * past <> new.effective * past
      or to_jsonb(old) - 'effective' <> to_jsonb(new) - 'effective';
  else
    -- Rates of a plan that is gone by now went with it: they were nobody's.
    changes := old.effective && past and exists (select from plans where name = old.plan);
  end if;
  if changes then
    raise exception '% change from tomorrow on, and never what was', tg_table_name using errcode = 'restrict_violation';
  end if;
  if tg_op = 'DELETE' then
    return old;
  end if;
  return new;
end $$;

create function keep_first_plans() returns trigger language plpgsql as $$
begin
  raise exception 'plan % is where accounts and rates of other plans come from', old.name using errcode = 'restrict_violation';
end $$;
create trigger plans_first before delete on plans for each row when (old.name in ('house', 'usage'))
  execute function keep_first_plans();

grant delete on plans to berth_gateway;
