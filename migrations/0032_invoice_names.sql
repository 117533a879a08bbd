-- An invoice says what its machines were called when it was closed, whatever they are called later.

alter table invoices add column names jsonb not null default '{}';
comment on column invoices.names is '{machine: name}, of those on its lines, as they were called when it was closed; of an invoice from before that was kept, as they were called then';

-- It was not kept until now; what they are called at this moment is the nearest there is.
alter table invoices disable trigger invoices_append_only;
update invoices set names = kept.names from (
  select on_lines.invoice, jsonb_object_agg(machines.id::text, machines.name) as names
  from (select distinct invoice, (machine->>0)::integer as machine_id
    from invoice_lines cross join jsonb_array_elements(machines) as machine) as on_lines
    join machines on machines.id = on_lines.machine_id
  group by on_lines.invoice) as kept
where kept.invoice = invoices.number;
alter table invoices enable trigger invoices_append_only;
