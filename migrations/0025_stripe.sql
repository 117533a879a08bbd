-- Payment by Stripe. Everything here can be had from Stripe again; what is owed stays in invoices.
--
-- Test mode and live mode of Stripe know nothing of each other, so rows belong to one of them: an installation that was
-- tried with a test key begins anew with a live one.

create table stripe_modes (
  livemode boolean primary key,
  installation uuid not null default gen_random_uuid(),
  since timestamptz not null default now()
);
comment on column stripe_modes.installation is 'goes into idempotency keys and metadata: several installations may share a Stripe account';
comment on column stripe_modes.since is 'invoices closed before are sent by an operator''s word alone: they were settled otherwise';

create table stripe_customers (
  account_id integer not null references accounts,
  livemode boolean not null references stripe_modes,
  customer text,
  generation integer not null default 0,
  email text,
  method jsonb,
  setup_session text,
  links integer not null default 0,
  refreshed_at timestamptz,
  primary key (account_id, livemode)
);
comment on column stripe_customers.customer is 'Stripe''s cus_..; null: there is none yet';
comment on column stripe_customers.generation is 'of the idempotency key: a next one when Stripe keeps an error under it, or the customer was deleted there';
comment on column stripe_customers.method is 'what is paid with, as people know it: kind, brand, last digits, expiry; null: nothing';
comment on column stripe_customers.setup_session is 'a page of Stripe''s on which something to pay with may be given meanwhile';
comment on column stripe_customers.links is 'pages asked for: the next one''s idempotency key';
create unique index stripe_customers_by_customer on stripe_customers (customer);

create table stripe_invoices (
  invoice integer not null references invoices,
  livemode boolean not null references stripe_modes,
  stripe_id text,
  status text not null default 'waiting' check (status in ('waiting', 'draft', 'open', 'paid', 'void', 'uncollectible')),
  generation integer not null default 0,
  payments_asked integer not null default 0,
  collect boolean not null default false,
  paid_cents bigint not null default 0,
  refunded_cents bigint not null default 0,
  disputed boolean not null default false,
  failure text,
  url text,
  problem text,
  attempts integer not null default 0,
  next_attempt_at timestamptz not null default now(),
  refreshed_at timestamptz,
  primary key (invoice, livemode),
  check ((status = 'waiting') = (stripe_id is null))
);
comment on column stripe_invoices.status is 'waiting: not at Stripe yet; else as Stripe has it';
comment on column stripe_invoices.payments_asked is 'times that Stripe was asked to collect and answered: the next one''s idempotency key';
comment on column stripe_invoices.collect is 'Stripe is to be asked for payment: there is something new to pay with';
comment on column stripe_invoices.failure is 'why the last payment was not had, for people';
comment on column stripe_invoices.url is 'Stripe''s page of the invoice, to pay it on';
comment on column stripe_invoices.problem is 'why it is not at Stripe, or not known what became of it; tried again at next_attempt_at';
create unique index stripe_invoices_by_stripe_id on stripe_invoices (stripe_id);
create index stripe_invoices_due on stripe_invoices (next_attempt_at) where status in ('waiting', 'draft', 'open');

-- What Stripe told. An event says what to look at again and nothing more, so their order does not matter; its number is
-- kept so that a repeat is none.
create table stripe_events (
  id text primary key,
  livemode boolean not null,
  type text not null,
  object text,
  payment_intent text,
  received_at timestamptz not null default now(),
  handled_at timestamptz,
  attempts integer not null default 0,
  next_attempt_at timestamptz not null default now(),
  problem text
);
comment on column stripe_events.object is 'Stripe''s number of what it is about';
create index stripe_events_due on stripe_events (next_attempt_at) where handled_at is null;

create function tell_stripe() returns trigger language plpgsql as $$
begin
  perform pg_notify('stripe', new.id);
  return null;
end $$;
create trigger tell_stripe after insert on stripe_events for each row execute function tell_stripe();

grant select, insert, delete on stripe_events to berth_gateway;
grant update (handled_at, attempts, next_attempt_at, problem) on stripe_events to berth_gateway;
grant select, insert on stripe_modes, stripe_customers, stripe_invoices to berth_gateway;
grant update (customer, generation, email, method, setup_session, links, refreshed_at) on stripe_customers to berth_gateway;
grant update (stripe_id, status, generation, payments_asked, collect, paid_cents, refunded_cents, disputed, failure, url, problem,
  attempts, next_attempt_at, refreshed_at) on stripe_invoices to berth_gateway;
