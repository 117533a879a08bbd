-- A cookie is good at the host that it was got at, and at no other: whoever comes to own a domain that once led to a
-- machine gets nothing of his visitors that opens the machine elsewhere. Whoever has a cookie from before gets another.
delete from site_sessions;
alter table site_sessions add column host text not null;
comment on column site_sessions.host is 'where the cookie was got, lower case and without a port, which browsers do not tell cookies apart by';
