/**
 * A server with 1,000 machines that sleep: what they take of its memory, and what its vmhost and the vmhost's Postgres
 * back ends do for them, in the product as its README starts it.
 *
 * One machine is made, and sleeps, as any. The others are its copies: files that share its blocks, disk and memory
 * with its record under `machines/`, and rows that SQL writes, with names, addresses and tokens of their own; to the
 * vmhost, which is started anew over them, they are sleepers like any, and at the end some of them wake.
 *
 *   node test/bench/sleepers.ts [sleepers, default 1000] [seconds, default 600]
 */
import { execFile } from 'node:child_process'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as wait } from 'node:timers/promises'
import { promisify } from 'node:util'
import { hypervisorUid } from '../../vmhost/hypervisor/driver.ts'
import { startProduct } from '../e2e/product.ts'
import { childrenOf, findMachine, lobby, MIB, openBook, pssBytes, SIZE, settled, sshTrue } from './product-lab.ts'
import { cpuSeconds } from './ssh-lab.ts'

const run = promisify(execFile)
const count = Number(process.argv[2] ?? 1000)
const seconds = Number(process.argv[3] ?? 600)
/** What starts, and what compiles, has come to its end. */
const CALM_S = 60
const LOOK_MS = 5_000

await using product = await startProduct()
const book = openBook()

await lobby(product, `new seed ${SIZE}`)
await settled(product, 'seed')
await lobby(product, 'sleep seed')
const { id } = await findMachine(product, 'seed')
const before = await memoryAfterStart()
await copySleepers(count - 1)
const startedAt = performance.now()
const after = await memoryAfterStart()
book.add('start to ready with all of them, s', (performance.now() - startedAt) / 1000 - CALM_S)
const [seen] = await product.sql()<{ asleep: number }[]>`
  select count(*) as asleep from machines where observed_state = 'asleep' and desired_state = 'asleep'`
book.add('asleep', seen?.asleep ?? 0)
book.add('hypervisors of those asleep', product.processes().hypervisors.length)
book.add('gateway and vmhost beside one sleeper, MiB', before / MIB)
book.add('gateway and vmhost for 100 more, MiB', (((after - before) / (count - 1)) * 100) / MIB)

const work = await workOver(seconds)
book.add('vmhost, share of a core, %', (work.vmhost / seconds) * 100)
book.add('its Postgres back ends, share of a core, %', (work.postgres / seconds) * 100)
book.add('reconcile loop, share of a core, %', ((work.vmhost + work.postgres) / seconds) * 100)

for (const name of ['s1', `s${count - 1}`]) book.add('wake of one of them, ms', await sshTrue(product, name))
await book.close(`${count} machines that sleep, ${seconds} s`)

/** @returns bytes of gateway and vmhost together, a while after a start */
async function memoryAfterStart(): Promise<number> {
  await product.stop()
  await product.start()
  await wait(CALM_S * 1000)
  const { gateway = 0, vmhost = 0 } = product.processes()
  return pssBytes(gateway) + pssBytes(vmhost)
}

async function copySleepers(copies: number): Promise<void> {
  const rows = await product.sql()<{ id: number; token: string }[]>`
    insert into machines (account_id, host_id, name, image, cpus, memory_bytes, disk_bytes, desired_state, desired_boot,
      observed_state, observed_boot, observed_host_key, observed_login_user, observed_disk_bytes,
      observed_asleep_because, observed_asleep_at, observed_saved_bytes, observed_web_port)
    select account_id, host_id, 's' || n, image, cpus, memory_bytes, disk_bytes, desired_state, desired_boot,
      observed_state, observed_boot, observed_host_key, observed_login_user, observed_disk_bytes,
      observed_asleep_because, observed_asleep_at, observed_saved_bytes, observed_web_port
    from machines, generate_series(1, ${copies}::int) n where id = ${id} returning id, token`
  await product.sql()`
    insert into machine_names (name, machine_id) select name, id from machines where name ~ '^s[0-9]+$'`
  await product.sql()`
    insert into addresses (address, machine_id)
    select '10.42.128.0'::inet + substr(name, 2)::int, id from machines where name ~ '^s[0-9]+$'`
  const folder = product.storePath('machines')
  const record = JSON.parse(readFileSync(join(folder, String(id), 'machine.json'), 'utf8')) as object
  for (const copy of rows) {
    const own = join(folder, String(copy.id))
    await run('cp', ['-a', '--reflink=always', join(folder, String(id)), own])
    writeFileSync(join(own, 'machine.json'), JSON.stringify({ ...record, token: copy.token }))
    const uid = String(hypervisorUid(copy.id))
    await run('chown', ['-R', `--from=${hypervisorUid(id)}`, uid, own])
    await run('chgrp', ['-R', uid, own])
  }
}

/** CPU seconds of the vmhost, programs that it ran included, and of the Postgres back ends that it talks to. */
async function workOver(time: number): Promise<{ vmhost: number; postgres: number }> {
  const { vmhost = 0 } = product.processes()
  const ours = () => [vmhost, ...childrenOf(vmhost)].reduce((sum, pid) => sum + cpuWithEnded(pid), 0)
  const first = new Map<number, number>()
  const last = new Map<number, number>()
  const look = async (isFirst: boolean) => {
    const backends = await product.sql()<{ pid: number }[]>`
      select pid from pg_stat_activity where application_name = 'berth vmhost'`
    for (const { pid } of backends) {
      // One that has just ended has done what it was seen to do last.
      const used = existsSync(`/proc/${pid}/stat`) ? cpuSeconds(pid) : (last.get(pid) ?? 0)
      // One that came later did all of its work in this time.
      if (!first.has(pid)) first.set(pid, isFirst ? used : 0)
      last.set(pid, used)
    }
  }
  const vmhostBefore = ours()
  await look(true)
  for (const until = performance.now() + time * 1000; performance.now() < until; ) {
    await wait(Math.min(LOOK_MS, Math.max(0, until - performance.now())))
    await look(false)
  }
  const postgres = [...last].reduce((sum, [pid, used]) => sum + used - (first.get(pid) ?? 0), 0)
  return { vmhost: ours() - vmhostBefore, postgres }
}

/** User and system time of a process, and of its children that have ended (proc(5), stat: fields 14 to 17). */
function cpuWithEnded(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return fields.slice(11, 15).reduce((sum, ticks) => sum + Number(ticks), 0) / 100
}
