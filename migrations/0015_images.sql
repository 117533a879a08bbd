-- Machines made of container images: how far a server is with one, and what the image says of itself.

alter table machines add column observed_web_port integer check (observed_web_port between 1 and 65535);
comment on column machines.observed_web_port is 'what its image exposes; web_port decides when it is set';
comment on column machines.image is 'the name of an image that its server has, or an OCI reference';
comment on column machines.observed_stage is 'where a start is: waiting, image, disk, network, boot, ssh, ready';

-- One row a machine while its image is fetched and made into a disk. Of its own, because machines are news with every
-- change and this is none: whoever shows it looks.
create table image_pulls (
  machine_id integer primary key references machines on delete cascade,
  at timestamptz not null default now(),
  step text not null check (step in ('waiting', 'resolving', 'fetching', 'reading', 'unpacking', 'making')),
  done_bytes bigint,
  total_bytes bigint,
  layers_done integer,
  layers integer
);

grant update (observed_web_port) on machines to berth_vmhost;
grant select, insert, update, delete on image_pulls to berth_vmhost;
grant select on image_pulls to berth_gateway;
