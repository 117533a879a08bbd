-- Payments that came otherwise than by Stripe, as an operator notes them: each of a whole invoice, which never changes.
-- One that was noted by mistake is taken back by another record; neither is changed or removed.

create table noted_payments (
  id integer primary key generated always as identity,
  invoice integer not null references invoices,
  undoes integer unique references noted_payments,
  paid_on date,
  note text check (length(note) between 1 and 200),
  noted_by integer not null references accounts,
  noted_at timestamptz not null default now(),
  check ((undoes is null) = (paid_on is not null))
);
comment on column noted_payments.undoes is 'the payment that this takes back; null: it is one';
comment on column noted_payments.note is 'of a payment: what its account sees';
create index noted_payments_by_invoice on noted_payments (invoice);

create view standing_payments as
  select id, invoice, paid_on, note from noted_payments p
  where undoes is null and not exists (select from noted_payments u where u.undoes = p.id);

-- What is noted and what goes to Stripe take turns: an invoice is paid one way or the other. One lock for all, since a
-- month of ten thousand invoices is sent in one transaction.
create function check_noted_payment() returns trigger language plpgsql as $$
declare
  standing integer;
begin
  perform pg_advisory_xact_lock(hashtextextended('berth.payments', 0));
  select id into standing from standing_payments where invoice = new.invoice;
  if new.undoes is not null and standing is distinct from new.undoes then
    raise exception 'payment % of invoice % does not stand', new.undoes, new.invoice using errcode = 'restrict_violation';
  elsif new.undoes is null and standing is not null then
    raise exception 'invoice % is noted as paid already', new.invoice using errcode = 'restrict_violation';
  elsif new.undoes is null and exists (select from stripe_invoices s
      where s.invoice = new.invoice and livemode and status not in ('void', 'uncollectible')) then
    raise exception 'invoice % is Stripe''s to collect', new.invoice using errcode = 'restrict_violation';
  end if;
  return new;
end $$;
create trigger noted_payments_check before insert on noted_payments for each row execute function check_noted_payment();
create trigger noted_payments_append_only before update or delete on noted_payments
  for each row execute function refuse_change();
create trigger noted_payments_no_truncate before truncate on noted_payments
  for each statement execute function refuse_change();

create function leave_out_paid() returns trigger language plpgsql as $$
begin
  perform pg_advisory_xact_lock(hashtextextended('berth.payments', 0));
  if exists (select from standing_payments where invoice = new.invoice) then
    return null;
  end if;
  return new;
end $$;
create trigger stripe_invoices_unpaid before insert on stripe_invoices for each row execute function leave_out_paid();

grant select, insert on noted_payments to berth_gateway;
grant select on standing_payments to berth_gateway;
