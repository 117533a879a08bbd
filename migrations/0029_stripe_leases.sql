-- Stripe is asked outside of any transaction: who asks about a record holds it by a lease instead of a lock.

create table stripe_leases (
  about text primary key,
  holder uuid not null,
  until timestamptz not null
);
comment on table stripe_leases is 'who asks Stripe about something; given back at the end, lapsed after a kill';
comment on column stripe_leases.about is 'account 12 live, invoice 7 test, rounds live';
grant select, insert, delete on stripe_leases to berth_gateway;
grant update (holder, until) on stripe_leases to berth_gateway;

alter table stripe_invoices
  add column wishes integer not null default 0,
  add column carried_cents bigint not null default 0,
  add column lost_cents bigint not null default 0;
comment on column stripe_invoices.wishes is 'times that collect was set: one that came while Stripe was at the last is still there afterwards';
comment on column stripe_invoices.carried_cents is 'of the total, put off by Stripe to the account''s next invoice, being below its least charge; negative: of earlier ones, charged with this';
comment on column stripe_invoices.disputed is 'by who paid it, and not decided yet';
comment on column stripe_invoices.lost_cents is 'given to who disputed it';
grant update (wishes, carried_cents, lost_cents) on stripe_invoices to berth_gateway;

create index stripe_invoices_paid on stripe_invoices (refreshed_at) where status = 'paid';
-- Of many events about one thing those that came before the look are handled with it.
create index stripe_events_about on stripe_events (coalesce(object, payment_intent)) where handled_at is null;
