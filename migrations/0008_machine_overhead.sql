-- What a machine takes beside its own memory, so that admission does not promise it to another.
alter table hosts add column machine_overhead_bytes bigint not null default 0;
comment on column hosts.memory_bytes is 'what machines may have of it, with their overhead: what the server itself needs is not in it';
comment on column hosts.machine_overhead_bytes is 'what the hypervisor of each machine may take beside the machine''s memory';
grant update (machine_overhead_bytes) on hosts to berth_vmhost;
