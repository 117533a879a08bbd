/**
 * Money: what a month of an account of 1,000 machines takes to read over millions of facts, whether that, and appending,
 * takes longer when there are ten times as many, and a run of invoices for many accounts.
 *
 *     node test/bench/billing.ts [facts in millions, 30] [accounts to invoice, 10000] [folder, the system's for temporary files]
 *
 * Facts are generated in SQL with the triggers off, into tables that a crash would empty, and what they sum to is added up once, by ledger_usage, as a migration would; the rows that the benchmark reads are
 * those that the triggers would have made (usage.test.ts). What is appended in the end goes through them.
 */
import { chmodSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pino } from 'pino'
import { closeDueMonths } from '../../gateway/billing/closing.ts'
import { readMonth, readRange } from '../../gateway/billing/usage.ts'
import { connect } from '../../migrations/connect.ts'
import { embeddedUrl, startEmbedded, stopEmbedded } from '../../migrations/embedded.ts'
import { migrate } from '../../migrations/migrate.ts'
import { LedgerRows } from '../../vmhost/meter/ledger-rows.ts'
import { backendsSeconds } from './backends.ts'
import { spread, surroundings } from './ssh-lab.ts'

const [millions = 30, accounts = 10_000] = process.argv.slice(2, 4).map(Number)
const CALLS = 100
/** The account that is measured has three million facts a month: of each machine a piece of its time every 20 minutes, and a reading every hour; in a trial a quarter of them. */
const MACHINES = 1000
const PIECES_A_DAY = millions < 3 ? 18 : 72
const READINGS_A_DAY = PIECES_A_DAY / 3
const MONTH_FACTS = MACHINES * 31 * (PIECES_A_DAY + READINGS_A_DAY)
/** What a server of many machines appends at once. */
const BATCHES = 20
const BATCH = { pieces: 500, readings: 200 }
const MONTH = '2026-03'
const MONTH_MS = 31 * 86_400_000
const say = (text: string) => console.error(`${((performance.now() - began) / 1000).toFixed(0).padStart(5)} s  ${text}`)

const began = performance.now()
const directory = mkdtempSync(join(process.argv[4] ?? tmpdir(), 'berth-bench-'))
chmodSync(directory, 0o755)
await startEmbedded(directory)
try {
  console.log(JSON.stringify(await measured()))
} finally {
  await stopEmbedded(directory)
  rmSync(directory, { recursive: true, force: true })
}

async function measured() {
  const owner = connect({ url: embeddedUrl(directory, 'berth'), role: 'owner', max: 2 })
  const gateway = connect({ url: embeddedUrl(directory, 'berth'), role: 'berth_gateway', max: 4 })
  await migrate(owner)
  await owner`insert into hosts (name, lease_epoch) values ('server1', 1)`
  await owner`insert into accounts (created_at) select '2025-01-01' from generate_series(1, ${accounts + 1})`
  await owner`insert into machines (account_id, host_id, name, image, cpus, memory_bytes, disk_bytes)
    select 1, 1, 'big' || n, 'base', 2, 1, 1 from generate_series(1, ${MACHINES}) as n`
  const vmhost = connect({ url: embeddedUrl(directory, 'berth'), role: 'berth_vmhost', max: 1 })
  await hurry(owner)
  const figures: Record<string, ReturnType<typeof spread>> = {}

  const months = Math.max(1, Math.round((millions * 1e6) / MONTH_FACTS))
  const few = Math.max(1, Math.round(months / 10))
  // The months before the one that is read, newest first, so that it is read among a tenth of them and among all.
  await facts(owner, 0, few)
  const before = { ...(await queries(gateway)), appending: await append(vmhost, 0) }
  say(
    `${few * (MONTH_FACTS / 1e6)} million facts: ${before.cycle.median.toFixed(1)} ms, ${before.appending.median.toFixed(1)} ms`,
  )
  await facts(owner, few, months)
  const after = { ...(await queries(gateway)), appending: await append(vmhost, 1) }
  say(
    `${months * (MONTH_FACTS / 1e6)} million facts: ${after.cycle.median.toFixed(1)} ms, ${after.appending.median.toFixed(1)} ms`,
  )
  figures['facts, millions'] = spread([(months * MONTH_FACTS) / 1e6])
  figures['usage of 1,000 machines over a month, 95th percentile, ms'] = spread([percentile(after.all, 0.95)])
  figures['usage of 1,000 machines over a month, ms'] = after.cycle
  figures['usage of 1,000 machines over a month, core-ms'] = spread([after.coreMs])
  figures['usage of 1,000 machines over 7 days, ms'] = after.week
  figures['appending 500 pieces and 200 readings, ms'] = after.appending
  if (months >= 10) {
    figures['the same month among a tenth of the facts, ms'] = before.cycle
    figures['appending the same to a tenth of the facts, ms'] = before.appending
    figures['growth with ten times the facts'] = spread([after.cycle.median / before.cycle.median])
    figures['growth of appending with ten times the facts'] = spread([after.appending.median / before.appending.median])
  }

  await invoiceable(owner)
  const startedAt = performance.now()
  const coreBefore = coreSeconds()
  const numbers = await closeDueMonths(
    gateway,
    new Date('2026-04-01T03:00:00Z'),
    new AbortController().signal,
    pino({ level: 'silent' }),
  )
  figures['invoices written'] = spread([numbers.length])
  figures['invoice run, s'] = spread([(performance.now() - startedAt) / 1000])
  figures['invoice run, core-seconds'] = spread([coreSeconds() - coreBefore])
  say(`${numbers.length} invoices in ${figures['invoice run, s'].median.toFixed(0)} s`)
  await Promise.all([owner.end(), gateway.end(), vmhost.end()])
  return { title: 'billing', where: await surroundings(), figures }
}

type Owner = ReturnType<typeof connect>

/** Nobody minds a crash here. What is measured reads and appends the same rows by the same plans. */
async function hurry(owner: Owner) {
  for (const setting of [`max_wal_size = '8GB'`, `maintenance_work_mem = '512MB'`, 'autovacuum = off'])
    await owner.unsafe(`alter system set ${setting}`)
  await owner`select pg_reload_conf()`
  for (const table of ['machine_spans', 'transfer_readings']) await owner`alter table ${owner(table)} set unlogged`
}

/** What was filled, and nothing else: a table that is known to be empty is read whole by whatever is planned then. */
async function settle(owner: Owner) {
  const filled = ['machine_spans', 'transfer_readings', 'usage_days', 'usage_machine_months', 'usage_account_days']
  for (const table of [...filled, 'accounts', 'machines', 'account_plans']) await owner`vacuum analyze ${owner(table)}`
}

/** Facts of the big account, by how many months before the one that is measured. */
async function facts(owner: Owner, from: number, to: number) {
  const tables = ['machine_spans', 'transfer_readings']
  for (const table of tables) await owner`alter table ${owner(table)} disable trigger user`
  for (let back = from; back < to; back++) {
    const starts = new Date(Date.parse(`${MONTH}-01T00:00:00Z`) - back * MONTH_MS)
    await owner`
      insert into machine_spans (machine_id, host_id, started_at, ended_at, state, cpus, memory_bytes, disk_bytes, checkpoint_bytes)
      select m, 1, at, at + interval '1 day' / ${PIECES_A_DAY}::integer, case when (n + m) % 3 = 0 then 'asleep' else 'running' end, 1 + m % 4,
        ${2 ** 30}::bigint * (1 + m % 8), ${2 ** 30}::bigint * 20, 4096 * (n % 7)
      from generate_series(0, 31 * ${PIECES_A_DAY}::integer - 1) as n
      cross join lateral (select ${starts}::timestamptz + n * interval '1 day' / ${PIECES_A_DAY}::integer as at) t
      cross join generate_series(1, ${MACHINES}::integer) as m`
    // One series a machine and month.
    await owner`
      insert into transfer_readings
      select md5(m || ' ' || ${back}::integer)::uuid, n, m, 1, md5('boot')::uuid,
        ${starts}::timestamptz + n * interval '1 day' / ${READINGS_A_DAY}::integer, n::bigint * 100003 * m, n * 70, n * 9000, n * 6, n * 70001, n * 50, n * 4000, n * 3
      from generate_series(0, 31 * ${READINGS_A_DAY}::integer - 1) as n cross join generate_series(1, ${MACHINES}::integer) as m`
    await owner`
      select add_usage(array_agg(row(1, u.day, u.machine_id, u.cpu, u.memory, u.disk, u.checkpoints, u.direct, u.gateway)::usage_days))
      from ledger_usage((select array_agg(id) from machines where account_id = 1),
        ${starts}, ${new Date(starts.getTime() + MONTH_MS)}) u`
    say(`month ${back + 1} of ${to}`)
  }
  for (const table of tables) await owner`alter table ${owner(table)} enable trigger user`
  await settle(owner)
}

/** What a vmhost does every few minutes, in the month after. @param time whether it did so before */
async function append(vmhost: Owner, time: number) {
  const rows = new LedgerRows(vmhost, { hostId: 1, hostName: 'server1', epoch: 1 })
  const tookMs: number[] = []
  for (let batch = 0; batch < BATCHES; batch++) {
    const at = Date.parse(`${MONTH}-01T00:00:00Z`) + MONTH_MS + (time * BATCHES + batch) * 300_000
    const size = { cpus: 2, memoryBytes: 2 ** 31, diskBytes: 2 ** 34, checkpointBytes: 0 }
    const pieces = Array.from({ length: BATCH.pieces }, (_, index) => {
      return { machineId: index + 1, state: 'running' as const, ...size, startedAt: at, endedAt: at + 300_000 }
    })
    const readings = Array.from({ length: BATCH.readings }, (_, index) => {
      const id = String(index).padStart(12, '0')
      const sequence = time * BATCHES + batch
      const figures = {
        directOutBytes: sequence * 1e6,
        directOutPackets: sequence,
        directInBytes: 0,
        directInPackets: 0,
      }
      const gateway = { gatewayOutBytes: sequence, gatewayOutPackets: 0, gatewayInBytes: 0, gatewayInPackets: 0 }
      const boot = '00000000-0000-4000-8000-000000000000'
      return {
        series: `00000000-0000-4000-9000-${id}`,
        sequence,
        machineId: index + 1,
        boot,
        at,
        ...figures,
        ...gateway,
      }
    })
    const startedAt = performance.now()
    await rows.appendSpans(pieces)
    await rows.appendReadings(readings)
    tookMs.push(performance.now() - startedAt)
  }
  return spread(tookMs)
}

async function queries(gateway: Owner) {
  const timed = async (query: () => Promise<unknown>) => {
    await query()
    const tookMs: number[] = []
    for (let call = 0; call < CALLS; call++) {
      const startedAt = performance.now()
      await query()
      tookMs.push(performance.now() - startedAt)
    }
    return tookMs
  }
  const coreBefore = coreSeconds()
  const all = await timed(() => readMonth(gateway, 1, MONTH))
  const coreMs = ((coreSeconds() - coreBefore) * 1000) / (CALLS + 1)
  const week = await timed(() =>
    readRange(gateway, 1, new Date('2026-03-20T00:00:00Z'), new Date('2026-03-27T00:00:00Z')),
  )
  return { all, coreMs, cycle: spread(all), week: spread(week) }
}

/** Ten machines each, a month of days, all on plan usage; what their facts sum to, without the facts. */
async function invoiceable(owner: Owner) {
  await owner`alter table account_plans disable trigger user`
  await owner`insert into account_plans (account_id, plan, effective)
    select id, 'usage', tstzrange('2026-03-01Z', null) from accounts where id > 1`
  await owner`alter table account_plans enable trigger user`
  await owner`insert into usage_days (account_id, day, machine_id, cpu, memory, disk, checkpoints, direct, gateway)
    select a, '2026-03-01'::date + d, a * 10 + m, us * (1 + m), us * 1073741824 * m, us * 21474836480,
      us * 4096 * (a % 100), a::bigint * 1000003, d * 7919
    from generate_series(2, ${accounts + 1}::integer) as a cross join generate_series(0, 30) as d
    cross join generate_series(1, 10) as m cross join (select 86400000000::numeric as us) as day`
  await owner`insert into usage_machine_months
    select account_id, '2026-03-01', machine_id, sum(cpu), sum(memory), sum(disk), sum(checkpoints), sum(direct), sum(gateway)
    from usage_days where account_id > 1 group by 1, 3`
  await owner`insert into usage_account_days
    select account_id, day, sum(cpu), sum(memory), sum(disk), sum(checkpoints), sum(direct), sum(gateway)
    from usage_days where account_id > 1 group by 1, 2`
  await settle(owner)
  say(`${accounts} accounts with ten machines each`)
}

/** Of this process and the database's: what they would take if nothing else were there. */
function coreSeconds(): number {
  const { user, system } = process.cpuUsage()
  return (user + system) / 1e6 + backendsSeconds(directory)
}

function percentile(values: readonly number[], part: number): number {
  return values.toSorted((a, b) => a - b)[Math.ceil(values.length * part) - 1] ?? Number.NaN
}
