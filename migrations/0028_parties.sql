-- Who sells and who buys, as invoices name them: what was so when an invoice was closed stays on it.
-- The seller is the installation's, in settings (billing_seller).

alter table accounts add column billing_details jsonb;
comment on column accounts.billing_details is '{name, address, tax_id}, each if it was given, for invoices';
alter table invoices add column seller jsonb, add column buyer jsonb;
comment on column invoices.seller is '{name, address, tax_id}; null: nothing was set when it was closed';
comment on column invoices.buyer is 'the same of the account, and its email';
