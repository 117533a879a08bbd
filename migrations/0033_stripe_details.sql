-- What Stripe was told of who pays, so that it is told again when that is another, and only then.

alter table stripe_customers add column details jsonb;
comment on column stripe_customers.details is '{name, address} of the account, as Stripe was told; null: it was told of none';
grant update (details) on stripe_customers to berth_gateway;
