-- The operator's pages of servers and accounts follow what they show: it is told when that is other than before, and
-- only then. A server tells figures that nobody looks at every few seconds; that it says nothing any more is no change
-- of its row, which gateways find out by its lease.

create or replace function tell_host() returns trigger language plpgsql as $$
begin
  perform pg_notify('hosts', coalesce(new.id, old.id)::text);
  return null;
end $$;
drop trigger tell_host on hosts;
create trigger tell_host after insert or delete on hosts for each row execute function tell_host();
create trigger tell_host_change after update on hosts for each row
  when ((old.name, old.draining, old.images, old.memory_overcommit, old.cpus, old.memory_bytes, old.memory_used_bytes,
      old.memory_reclaimed_bytes, old.store_bytes, old.store_free_bytes, old.hypervisor, old.accelerator,
      old.accelerator_reason) is distinct from
    (new.name, new.draining, new.images, new.memory_overcommit, new.cpus, new.memory_bytes, new.memory_used_bytes,
      new.memory_reclaimed_bytes, new.store_bytes, new.store_free_bytes, new.hypervisor, new.accelerator,
      new.accelerator_reason)
    or (old.lease_expires_at < now() and new.lease_expires_at > now())
    or new.lease_expires_at < old.lease_expires_at)
  execute function tell_host();

-- What is promised on a server, and what an account has, are sums over its machines.
create function tell_sums() returns trigger language plpgsql as $$
begin
  perform pg_notify('hosts', coalesce(new.host_id, old.host_id)::text);
  perform pg_notify('accounts', coalesce(new.account_id, old.account_id)::text);
  if old.account_id <> new.account_id then perform pg_notify('accounts', old.account_id::text); end if;
  return null;
end $$;
create trigger tell_sums after insert or delete on machines for each row execute function tell_sums();
create trigger tell_sums_change after update on machines for each row
  when ((old.account_id, old.host_id, old.name, old.image, old.cpus, old.memory_bytes, old.disk_bytes,
      old.desired_state, old.observed_state, old.observed_memory_bytes) is distinct from
    (new.account_id, new.host_id, new.name, new.image, new.cpus, new.memory_bytes, new.disk_bytes,
      new.desired_state, new.observed_state, new.observed_memory_bytes))
  execute function tell_sums();

create function tell_account() returns trigger language plpgsql as $$
begin
  perform pg_notify('accounts', coalesce(new.id, old.id)::text);
  return null;
end $$;
create trigger tell_account after insert or delete on accounts for each row execute function tell_account();
create trigger tell_account_change after update on accounts for each row
  when ((old.email, old.is_owner, old.suspended_at, old.max_machines, old.over_limit_at) is distinct from
    (new.email, new.is_owner, new.suspended_at, new.max_machines, new.over_limit_at))
  execute function tell_account();

-- What it pays for and with; 0: every account that no plan is named for.
create function tell_account_of_row() returns trigger language plpgsql as $$
begin
  perform pg_notify('accounts', coalesce(new.account_id, old.account_id, 0)::text);
  return null;
end $$;
create trigger tell_account after insert or update or delete on account_plans for each row
  execute function tell_account_of_row();
create trigger tell_account after insert or update or delete on spend_limits for each row
  execute function tell_account_of_row();
create trigger tell_account after insert on credits for each row execute function tell_account_of_row();
create trigger tell_account after insert on invoices for each row execute function tell_account_of_row();

-- What others share with a person is news for who reads that address, and grants are told only when they are over.
create function tell_share() returns trigger language plpgsql as $$
begin
  perform pg_notify('shares', coalesce(new.email, old.email));
  return null;
end $$;
create trigger tell_share after insert or update or delete on shares for each row execute function tell_share();
