import type { App } from '../app.ts'
import type { Completer, Context } from './command.ts'
import { defineCommand } from './command.ts'
import { CommandError, usageError } from './error.ts'
import { recordEvent } from './machine-steps.ts'
import { table } from './text.ts'
import { sayBytes, sayList, shown } from './values.ts'

type HostRow = {
  id: number
  name: string
  live: boolean
  draining: boolean
  cpus: number
  memory_bytes: number
  promised_bytes: number
  memory_available_bytes: number
  memory_used_bytes: number
  memory_reclaimed_bytes: number
  memory_overcommit: string
  store_bytes: number
  store_free_bytes: number
  hypervisor: string
  accelerator: string
  accelerator_reason: string
  machines: number
}

const hostNamesOf: Completer = async ({ app }) => (await listHosts(app)).map((host) => host.name)

async function listHosts(app: App): Promise<HostRow[]> {
  return await app.sql<HostRow[]>`
    select id, name, lease_expires_at > now() as live, draining, cpus, memory_bytes, memory_overcommit, store_bytes,
      store_free_bytes, hypervisor, accelerator, accelerator_reason, memory_available_bytes, memory_used_bytes,
      memory_reclaimed_bytes,
      coalesce((select sum(greatest(m.memory_bytes, observed_memory_bytes) + machine_overhead_bytes) from machines m where host_id = hosts.id and observed_state <> 'gone'
        and (desired_state = 'running' or observed_state in ('creating', 'running'))), 0)::bigint as promised_bytes,
      (select count(*)::int from machines where host_id = hosts.id and observed_state <> 'gone') as machines
    from hosts order by name`
}

export const hostLs = defineCommand({
  name: 'host ls',
  aliases: ['host list'],
  group: 'operator',
  operator: true,
  summary: 'the servers: state, load, what is promised',
  description:
    'Memory: promised to machines that run, used by them, and reclaimed: taken from machines that did not use it, because the server was short.',
  async run({ app }) {
    const hosts = await listHosts(app)
    return {
      json: {
        hosts: hosts.map((host) => ({
          name: host.name,
          status: hostStatus(host),
          cpus: host.cpus,
          memory_bytes: host.memory_bytes,
          memory_promised_bytes: host.promised_bytes,
          memory_used_bytes: host.memory_used_bytes,
          memory_reclaimed_bytes: host.memory_reclaimed_bytes,
          memory_available_bytes: host.memory_available_bytes,
          memory_overcommit: Number(host.memory_overcommit),
          store_bytes: host.store_bytes,
          store_free_bytes: host.store_free_bytes,
          hypervisor: host.hypervisor,
          accelerator: host.accelerator,
          accelerator_reason: host.accelerator_reason,
          machines: host.machines,
        })),
      },
      text: (view) =>
        hosts.length === 0
          ? 'no server yet\n'
          : table(
              hosts,
              [
                { title: 'name', value: (host) => host.name, flexible: true },
                { title: 'status', value: hostStatus },
                { title: 'machines', value: (host) => String(host.machines), right: true },
                { title: 'cpu', value: (host) => String(host.cpus), right: true, optional: 3 },
                {
                  title: 'memory promised',
                  value: (host) =>
                    `${sayBytes(host.promised_bytes)} of ${sayBytes(Math.floor(host.memory_bytes * Number(host.memory_overcommit)))}`,
                  right: true,
                },
                { title: 'used', value: (host) => sayBytes(host.memory_used_bytes), right: true, optional: 1 },
                {
                  title: 'reclaimed',
                  value: (host) => sayBytes(host.memory_reclaimed_bytes),
                  right: true,
                  optional: 1,
                },
                { title: 'disk free', value: (host) => sayBytes(host.store_free_bytes), right: true, optional: 2 },
                {
                  title: 'hypervisor',
                  value: (host) => [host.hypervisor, host.accelerator].filter(Boolean).join(' '),
                  optional: 4,
                },
              ],
              view,
            ),
    }
  },
})

function hostStatus(host: { live: boolean; draining: boolean }): string {
  if (!host.live) return 'silent'
  return host.draining ? 'draining' : 'up'
}

const HOST = { name: { label: 'HOST', complete: hostNamesOf } } as const

export const hostDrain = defineCommand({
  name: 'host drain',
  group: 'operator',
  operator: true,
  summary: 'no new machines on a server',
  arguments: HOST,
  run: async (context, { args }) => setDraining(context, args.name, true),
})

export const hostUndrain = defineCommand({
  name: 'host undrain',
  group: 'operator',
  operator: true,
  summary: 'new machines on it again',
  arguments: HOST,
  run: async (context, { args }) => setDraining(context, args.name, false),
})

export const hostOvercommit = defineCommand({
  name: 'host overcommit',
  group: 'operator',
  operator: true,
  summary: 'how much memory is promised for each GiB there is',
  description:
    '1 promises what there is. More relies on machines that do not use all of theirs: a server that runs short takes what they do not use, and puts those to sleep that are idle longest. Machines that sleep or are off are promised nothing.',
  arguments: { ratio: { label: 'RATIO' }, name: { label: 'HOST', optional: true, complete: hostNamesOf } },
  examples: ['host overcommit 1.5'],
  async run({ app, caller }, { args }) {
    const ratio = Number(args.ratio)
    if (!/^\d{1,2}(\.\d{1,2})?$/.test(args.ratio) || ratio < 0.1 || ratio > 20) {
      throw usageError(`RATIO is a number between 0.1 and 20, not ${shown(args.ratio)}`)
    }
    if (args.name !== undefined) await knownHost(app, args.name)
    const names = await app.sql.begin(async (tx) => {
      const rows = await tx<{ name: string }[]>`
        update hosts set memory_overcommit = ${args.ratio}::numeric where ${args.name === undefined} or name = ${args.name ?? ''} returning name`
      const hosts = rows.map((row) => row.name)
      await recordEvent(tx, caller, 'host.overcommit', null, { hosts, ratio })
      return hosts
    })
    return {
      json: { hosts: names, memory_overcommit: ratio },
      text: `${sayList(names)}: ${ratio} GiB promised for each GiB there is\n`,
    }
  },
})

async function setDraining({ app, caller }: Context, name: string, draining: boolean) {
  await knownHost(app, name)
  await app.sql.begin(async (tx) => {
    await tx`update hosts set draining = ${draining} where name = ${name}`
    await recordEvent(tx, caller, draining ? 'host.draining' : 'host.undrained', null, { host: name })
  })
  const text = draining
    ? `${name} takes no new machines; those on it stay until they are moved or removed\n`
    : `${name} takes new machines again\n`
  return { json: { name, draining }, text }
}

async function knownHost(app: App, name: string): Promise<void> {
  const names = (await listHosts(app)).map((host) => host.name)
  if (names.includes(name)) return
  throw new CommandError('host.not_found', 3, `no server called ${shown(name)}`, {
    wayOn: `servers: ${sayList(names)}`,
  })
}
