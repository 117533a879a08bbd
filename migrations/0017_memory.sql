-- What a server does with its memory, and how large a machine's disk has become.

alter table hosts
  add column memory_available_bytes bigint not null default 0,
  add column memory_used_bytes bigint not null default 0,
  add column memory_reclaimed_bytes bigint not null default 0;
comment on column hosts.memory_available_bytes is 'that programs of this server can have, as its kernel says';
comment on column hosts.memory_used_bytes is 'that the hypervisors of its machines hold';
comment on column hosts.memory_reclaimed_bytes is 'that machines have given back, because it was short';

alter table machines add column observed_disk_bytes bigint;
comment on column machines.observed_disk_bytes is 'size of the disk that its guest knows of; null: it was not ready yet since there is this column';

grant update (memory_available_bytes, memory_used_bytes, memory_reclaimed_bytes) on hosts to berth_vmhost;
grant update (observed_disk_bytes) on machines to berth_vmhost;
