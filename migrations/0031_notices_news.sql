-- Open pages of an account follow what it is told, and that somebody has read it.

create function tell_notice() returns trigger language plpgsql as $$
begin
  perform pg_notify('notices', new.account_id::text);
  return null;
end $$;
create trigger tell_notice after insert on notices for each row execute function tell_notice();
create trigger tell_notice_read after update on notices for each row
  when (old.read_at is distinct from new.read_at) execute function tell_notice();
