/**
 * Machines that look lived in, for the dashboard's pictures and measurements: rows as a vmhost has them, what they did in
 * the last hour, what the months have cost. Nothing is behind them, and nobody starts them.
 */
import { randomUUID } from 'node:crypto'
import { addMonths, monthOf, startOfMonth } from '../gateway/billing/calendar.ts'
import { cut, ledgerOver, type Reading, type Span } from '../gateway/billing/testing/ledger.ts'
import type { World } from '../gateway/commands/testing/world.ts'

export type FleetMachine = {
  name: string
  state?: 'running' | 'asleep' | 'paused' | 'stopped' | 'failed'
  /** what keeps it awake, put it to sleep, or is wrong with it */
  because?: string
  /** since when it is asleep or idle */
  sinceMinutes?: number
  image?: string
  cpus?: number
  memoryGib?: number
  diskGib?: number
  tags?: string[]
  comment?: string
  ageDays?: number
  /** processors in use so many minutes ago; none: it did not run then */
  load?: (minutesAgo: number) => number | undefined
  /** the part of a day that it is awake; some of each unless given. @param day its midnight, in UTC */
  awake?: (day: Date) => number
  /** what leaves it in a day that it is awake: GB to the outside, and a quarter as much through the gateway */
  sendsGb?: number
}

const GIB = 2 ** 30
const DAY_MS = 86_400_000

/**
 * @param everySeconds how often their load was looked at
 * @param months that they have cost something in, this one included
 */
export async function addFleet(
  { gateway, vmhost }: Pick<World, 'gateway' | 'vmhost'>,
  accountId: number,
  fleet: readonly FleetMachine[],
  { everySeconds = 300, months = 1 }: { everySeconds?: number; months?: number } = {},
): Promise<Map<string, number>> {
  vmhost.paused = true
  const { sql, database } = gateway
  const now = Date.now()
  const rows = await sql<{ id: number; name: string }[]>`
    with given as (select * from jsonb_to_recordset(${sql.json(fleet.map((one) => rowOf(one, now)) as never)}) as g(
      name text, image text, cpus integer, memory_bytes bigint, disk_bytes bigint, tags text[], comment text, created_at timestamptz,
      desired text, observed text, reason text, awake_because text, idle_since timestamptz, asleep_because text, asleep_at timestamptz)),
    made as (
      insert into machines (account_id, host_id, name, image, cpus, memory_bytes, disk_bytes, tags, comment, created_at,
        sleep_after_seconds, desired_state, observed_state, observed_boot, observed_stage, observed_reason, observed_ready_at,
        observed_awake_because, observed_idle_since, observed_asleep_because, observed_asleep_at, observed_login_user)
      select ${accountId}, ${vmhost.hostId}, name, image, cpus, memory_bytes, disk_bytes, tags, comment, created_at, 1800,
        desired, observed, 1, 'ready', reason, case when observed = 'running' then now() end, awake_because, idle_since,
        asleep_because, asleep_at, 'dev' from given returning id, name),
    named as (insert into machine_names (name, machine_id) select name, id from made),
    placed as (insert into addresses (address, machine_id) select '10.42.0.1'::inet + id, id from made)
    select id, name from made`
  const ids = new Map(rows.map(({ id, name }) => [name, id]))
  await addLoad(vmhost.hostId, database.as('berth_vmhost'), fleet, ids, everySeconds)
  await addCosts(gateway, fleet, ids, now, months)
  return ids
}

function rowOf(machine: FleetMachine, now: number) {
  const { state = 'running', because = null, sinceMinutes } = machine
  const since = sinceMinutes === undefined ? null : new Date(now - sinceMinutes * 60_000)
  const sleeps = state === 'asleep' || state === 'paused'
  return {
    ...{ name: machine.name, image: machine.image ?? 'base', cpus: machine.cpus ?? 2 },
    ...{ memory_bytes: (machine.memoryGib ?? 4) * GIB, disk_bytes: (machine.diskGib ?? 20) * GIB },
    ...{ tags: machine.tags ?? [], comment: machine.comment ?? '' },
    created_at: new Date(now - (machine.ageDays ?? 60) * DAY_MS),
    desired: state === 'failed' ? 'running' : state,
    observed: state === 'paused' ? 'asleep' : state,
    reason: state === 'failed' ? because : null,
    awake_because: state === 'running' ? because : null,
    idle_since: state === 'running' ? since : null,
    ...{ asleep_because: sleeps ? because : null, asleep_at: sleeps ? since : null },
  }
}

async function addLoad(
  hostId: number,
  sql: World['gateway']['sql'],
  fleet: readonly FleetMachine[],
  ids: ReadonlyMap<string, number>,
  everySeconds: number,
): Promise<void> {
  const everyMs = everySeconds * 1000
  const end = Math.floor(Date.now() / everyMs) * everyMs
  const samples = fleet.flatMap(({ name, load, cpus = 2, memoryGib = 4 }) =>
    Array.from({ length: load ? 3_600 / everySeconds : 0 }, (_, index) => {
      const cores = load?.((index * everySeconds) / 60)
      if (cores === undefined) return []
      return {
        ...{ machine_id: ids.get(name), at: new Date(end - index * everyMs), ms: everyMs, cpus },
        cpu_ms: Math.round(Math.min(cores, cpus) * everyMs),
        ...{ memory_limit_bytes: memoryGib * GIB, memory_held_bytes: Math.round(memoryGib * 0.6 * GIB) },
        memory_used_bytes: Math.round(memoryGib * (0.3 + (0.2 * cores) / cpus) * GIB),
        ...{ disk_ms: everyMs, disk_read_bytes: Math.round(cores * everyMs * 200) },
        disk_written_bytes: Math.round(cores * everyMs * (index % 7 === 0 ? 2_000 : 400)),
        ...{ network_ms: everyMs, network_out_bytes: Math.round(cores * everyMs * 900) },
        ...{ network_in_bytes: Math.round(cores * everyMs * 150), filesystem_used_bytes: 6 * GIB },
        filesystem_bytes: 20 * GIB,
      }
    }).flat(),
  )
  const marks = [...ids.values()].map((id) => ({ machine_id: id, at: new Date(end - DAY_MS), state: 'running' }))
  await sql`select add_load(id, lease_epoch, ${sql.json(samples as never)}, ${sql.json(marks as never)})
    from hosts where id = ${hostId}`
}

async function addCosts(
  gateway: World['gateway'],
  fleet: readonly FleetMachine[],
  ids: ReadonlyMap<string, number>,
  now: number,
  months: number,
): Promise<void> {
  const ledger = await ledgerOver(gateway.database)
  const first = startOfMonth(addMonths(monthOf(new Date(now)), 1 - months)).getTime()
  const spans: Span[] = []
  const readings: Reading[] = []
  for (const [index, machine] of fleet.entries()) {
    const { name, cpus = 2, memoryGib = 4, diskGib = 20, ageDays = 60, awake = someOf(index), sendsGb } = machine
    const size = { cpus, memoryBytes: memoryGib * GIB, diskBytes: diskGib * GIB, checkpointBytes: 0 }
    const [machineId, series] = [ids.get(name) ?? 0, randomUUID()]
    const [from, to] = [new Date(Math.max(first, now - ageDays * DAY_MS)), new Date(now)]
    let sentBytes = 0
    for (const day of cut({ machineId, from, to, state: 'running', ...size }, () => new Date(8.64e15))) {
      const part = awake(new Date(Math.floor(day.from.getTime() / DAY_MS) * DAY_MS))
      const slept = new Date(Math.round(day.from.getTime() + (day.to.getTime() - day.from.getTime()) * part))
      spans.push({ ...day, to: slept }, { ...day, from: slept, state: 'asleep' })
      if (sendsGb === undefined) continue
      sentBytes += Math.round((sendsGb * 1e9 * part * (day.to.getTime() - day.from.getTime())) / DAY_MS)
      const at = new Date(day.to.getTime() - 1)
      const [direct, through] = [sentBytes, Math.round(sentBytes / 4)]
      readings.push({ machineId, series, sequence: readings.length, at, direct, gateway: through })
    }
  }
  await ledger.spans(spans.filter(({ from, to }) => from < to))
  await ledger.readings(readings)
}

/** Some ran for more of the day than others, and on some days more. */
const someOf = (index: number) => (day: Date) => 0.1 + ((index * 7 + day.getUTCDate() * 3) % 17) / 20
