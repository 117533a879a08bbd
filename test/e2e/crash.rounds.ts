/**
 * Rounds of kill -9: of gateway, vmhost, Postgres, hypervisors and the launcher at random moments of new, rm and restart.
 * After each round, once things have settled: what is wanted is what is, nothing is left over, and no byte that a
 * guest had synced is lost.
 */

import { execFile } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { promisify } from 'node:util'
import { type Product, SERVER_ADDRESS } from './product.ts'

const run = promisify(execFile)

/** mulberry32: a seed printed with a failure plays the same round again. */
export function random(seed: number) {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = state
    t = Math.imul(t ^ (t >>> 15), t | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}

const VICTIMS = ['gateway', 'vmhost', 'postgres', 'hypervisor', 'launcher'] as const
export type Victim = (typeof VICTIMS)[number]

/** Kills one process by its role, if it is there now. */
export function killOne(product: Product, victim: Victim, pick: () => number) {
  const now = product.processes()
  const pid = victim === 'hypervisor' ? now.hypervisors[Math.floor(pick() * now.hypervisors.length)] : now[victim]
  if (!pid) return false
  try {
    process.kill(pid, 'SIGKILL')
    return true
  } catch {
    return false
  }
}

/** One round: a few commands under way, kills in between. Commands may fail; what they leave may not be wrong. */
export async function crashRound(product: Product, seed: number): Promise<string[]> {
  const pick = random(seed)
  const story: string[] = []
  const commands = [
    `new crash${seed % 1000} --image minimal --memory 512M --cpu 1 --disk 2G`,
    'restart keep',
    `rm --now crash${(seed - 1) % 1000}`,
  ]
  const running = commands.map((line) => product.lobby(line, { timeoutMs: 120_000 }))
  // What a kill would hit may be just coming up again: a round without a kill is none.
  for (let n = 0; n < 3 || story.length === 0; n++) {
    if (n === 20) throw new Error('nothing could be killed')
    await new Promise((resolve) => setTimeout(resolve, pick() * 4_000))
    const victim = VICTIMS[Math.floor(pick() * VICTIMS.length)] ?? 'gateway'
    if (killOne(product, victim, pick)) story.push(victim)
  }
  await Promise.all(running)
  // Nobody starts the launcher anew but its operator.
  if (story.includes('launcher')) await product.start()
  return story
}

/** @returns what is wrong, one sentence each; empty when wanted and actual agree and nothing is left over */
async function disagreements(product: Product): Promise<string[]> {
  const wrong: string[] = []
  const sql = product.sql()
  const machines = await sql<
    {
      id: number
      name: string
      desired_state: string
      observed_state: string
      observed_boot: number
      desired_boot: number
      ready: boolean
    }[]
  >`
    select id, name, desired_state, observed_state, observed_boot, desired_boot, observed_ready_at is not null as ready from machines`
  const alive = machines.filter((m) => m.desired_state !== 'gone')
  for (const m of machines) {
    // A hypervisor that was killed may end as failed with a reason: a state of its own with a way out.
    if (m.observed_state === 'failed') continue
    if (m.observed_state !== m.desired_state)
      wrong.push(`${m.name} should be ${m.desired_state} and is ${m.observed_state}`)
    if (m.desired_state === 'running' && (!m.ready || m.observed_boot !== m.desired_boot))
      wrong.push(`${m.name} is not ready`)
  }
  const expectIds = (what: string, found: number[], wanted: number[]) => {
    const extra = found.filter((id) => !wanted.includes(id))
    const missing = wanted.filter((id) => !found.includes(id))
    if (extra.length) wrong.push(`stray ${what} of ${extra}`)
    if (missing.length) wrong.push(`no ${what} for ${missing}`)
  }
  const runningIds = machines.filter((m) => m.observed_state === 'running').map((m) => m.id)
  const { stdout } = await run('ip', ['-n', product.serverNamespace, '-j', 'link', 'show'])
  const taps = (JSON.parse(stdout) as { ifname: string }[])
    .map(({ ifname }) => /^vm(\d+)$/.exec(ifname)?.[1])
    .filter((id) => id !== undefined)
  const strayTaps = taps.map(Number).filter((id) => !alive.some((m) => m.id === id))
  if (strayTaps.length) wrong.push(`stray tap of ${strayTaps}`)
  if (product.processes().hypervisors.length !== runningIds.length) {
    wrong.push(`${product.processes().hypervisors.length} hypervisors for ${runningIds.length} running machines`)
  }
  expectIds(
    'disk',
    readdirSync(product.storePath('machines'))
      .filter((entry) => /^\d+$/.test(entry))
      .map(Number),
    alive.map((m) => m.id),
  )
  expectIds(
    'address',
    (await sql<{ id: number }[]>`select machine_id as id from addresses`).map(({ id }) => id),
    alive.map((m) => m.id),
  )
  expectIds(
    'name',
    (await sql<{ id: number }[]>`select machine_id as id from machine_names`).map(({ id }) => id),
    alive.filter((m) => m.desired_state !== 'trashed').map((m) => m.id),
  )
  const [hosts] = await sql<
    { n: number; live: number }[]
  >`select count(*)::int as n, count(*) filter (where lease_expires_at > now())::int as live from hosts`
  if (hosts?.n !== 1 || hosts.live !== 1) wrong.push(`${hosts?.n} hosts, ${hosts?.live} with a lease`)
  return wrong
}

/** Waits until everything agrees, and a template that is being made is whole. @throws with what still disagrees after the limit */
export async function settle(product: Product, limitMs = 240_000) {
  const until = Date.now() + limitMs
  for (;;) {
    const wrong = await disagreements(product).catch((error: Error) => [error.message])
    if (wrong.length === 0) return
    if (Date.now() > until)
      throw new Error(`after ${limitMs} ms: ${wrong.join('; ')}\n${product.output().slice(-4_000)}`)
    await new Promise((resolve) => setTimeout(resolve, 500))
  }
}

/** A file of the machine `keep`, written and synced before the kills, must be whole afterwards. */
export async function syncSomething(product: Product, round: number) {
  const written = await product.ssh([
    `keep@${SERVER_ADDRESS}`,
    `head -c 300000 /dev/urandom > r${round} && sha256sum r* > sums && sync`,
  ])
  if (written.status !== 0) throw new Error(`could not write before round ${round}: ${written.stderr}`)
}

export async function checkSynced(product: Product) {
  const sure = await product.ssh([`keep@${SERVER_ADDRESS}`, 'sha256sum --quiet -c sums'])
  if (sure.status !== 0) throw new Error(`synced bytes were lost: ${sure.stdout}${sure.stderr}`)
}
