-- How far a machine has been made another size while it runs.

alter table machines
  add column observed_resize_cpus integer,
  add column observed_resize_memory_bytes bigint;
comment on column machines.observed_resize_cpus is
  'the size of its row, with observed_resize_memory_bytes, of which it was given what can be given while it runs; what it has now is in observed_cpus and observed_memory_bytes, and the rest waits for its next start';

grant update (observed_resize_cpus, observed_resize_memory_bytes) on machines to berth_vmhost;
