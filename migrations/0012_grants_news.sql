-- A statement that took nothing away is nobody's news: anybody may sign out of a machine's host with a cookie that he
-- made up, and each time every gateway forgot whom it had let in.
drop trigger tell_sign_out on web_sessions;
drop trigger tell_unshare on shares;
drop trigger tell_link on share_links;
drop trigger tell_link_change on share_links;
drop trigger tell_site_sign_out on site_sessions;
drop trigger tell_token on tokens;

-- Equal notifications of one transaction are sent once, however many rows there are.
create trigger tell_sign_out after delete on web_sessions for each row execute function tell_grants();
create trigger tell_unshare after delete or update on shares for each row execute function tell_grants();
create trigger tell_link after delete on share_links for each row execute function tell_grants();
create trigger tell_link_change after update on share_links for each row
  when (old.expires_at is distinct from new.expires_at) execute function tell_grants();
create trigger tell_site_sign_out after delete on site_sessions for each row execute function tell_grants();
create trigger tell_token after delete on tokens for each row execute function tell_grants();
