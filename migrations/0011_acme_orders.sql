-- Orders placed with the directory, which has bounds of its own. They outlive the domain that they were for: who takes
-- a domain away and adds it again has asked twice.
create table acme_orders (
  id integer primary key generated always as identity,
  account_id integer references accounts on delete set null,
  at timestamptz not null default now()
);
comment on column acme_orders.account_id is 'whose domain it was for; null: the installation itself';
create index acme_orders_by_time on acme_orders (at);
create index acme_orders_by_account on acme_orders (account_id, at);

grant select, insert, delete on acme_orders to berth_gateway;
