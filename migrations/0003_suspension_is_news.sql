-- A suspension ends an account's connections as the removal of their key does, so it is told on the same channel.
create function tell_suspension() returns trigger language plpgsql as $$
begin
  perform pg_notify('keys', new.id::text);
  return null;
end $$;
create trigger tell_suspension after update of suspended_at on accounts for each row
  when (old.suspended_at is distinct from new.suspended_at) execute function tell_suspension();
