/**
 * SSH bulk: zeros each way over one channel, aes128-gcm; directly to an sshd of the host, through the gateway, and
 * through `ssh -J` with an OpenSSH as the jump host, in turn.
 *
 *   node test/bench/ssh-bulk.ts [GiB, default 4] [rounds, default 5]
 */

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { sshArguments, startMachine } from '../../gateway/ssh/relay/fixtures.ts'
import { cpuSeconds, report, type Spread, show, spread, startLab, surroundings } from './ssh-lab.ts'

const gib = 2 ** 30
const sizeBytes = Number(process.argv[2] ?? 4) * gib
const rounds = Number(process.argv[3] ?? 5)
const nodeArguments = process.env.BENCH_NODE_ARGUMENTS?.split(' ') ?? []

await using lab = await startLab(nodeArguments)
await using jump = await startMachine(lab.keys)

const cipher = ['-o', 'Ciphers=aes128-gcm@openssh.com']
const direct = [...sshArguments(lab.keys, lab.target.port, cipher), 'root@127.0.0.1']
const gateway = [...sshArguments(lab.keys, lab.gateway.port, cipher), 'demo@127.0.0.1']
const proxy = `ssh ${sshArguments(lab.keys, jump.target.port, cipher).join(' ')} -W 127.0.0.1:${lab.target.port} root@127.0.0.1`
const jumped = [
  ...sshArguments(lab.keys, lab.target.port, [...cipher, '-o', `ProxyCommand=${proxy}`]),
  'root@127.0.0.1',
]

const routes = { direct, gateway, jumped }
type Route = keyof typeof routes
const speeds: Record<string, number[]> = {}
const cpu: Record<string, number[]> = {}

// Warm: the pooled connection is there and the code compiled
for (const direction of ['down', 'up'] as const) await transfer('gateway', direction, gib / 4)

for (let round = 0; round < rounds; round++) {
  for (const direction of ['down', 'up'] as const) {
    for (const route of Object.keys(routes) as Route[]) {
      const before = cpuSeconds(lab.gateway.pid)
      const seconds = await transfer(route, direction, sizeBytes)
      add(speeds, `${direction} ${route}`, sizeBytes / 2 ** 20 / seconds)
      if (route === 'gateway') add(cpu, direction, (cpuSeconds(lab.gateway.pid) - before) / (sizeBytes / gib))
    }
  }
}

const figures: Record<string, Spread> = {}
for (const [name, values] of Object.entries(speeds)) figures[`${name}, MiB/s`] = spread(values)
for (const direction of ['down', 'up']) {
  const by = (route: Route) => speeds[`${direction} ${route}`] ?? []
  figures[`${direction}, gateway to direct`] = ratio(by('gateway'), by('direct'))
  figures[`${direction}, gateway to ssh -J`] = ratio(by('gateway'), by('jumped'))
  figures[`${direction}, gateway core-seconds per GiB`] = spread(cpu[direction] ?? [])
}
const rows = Object.fromEntries(Object.entries(figures).map(([name, figure]) => [name, show(figure)]))
report(`SSH bulk, ${sizeBytes / gib} GiB, ${rounds} rounds`, await surroundings(), rows, figures)

/** @returns seconds from exec to exit of the client */
async function transfer(route: Route, direction: 'down' | 'up', bytes: number): Promise<number> {
  // In large pieces, so that making zeros costs next to nothing beside moving them
  const zeros = `dd if=/dev/zero bs=1M count=${Math.round(bytes / 2 ** 20)} status=none`
  const client = `exec ssh ${routes[route].map((argument) => `'${argument}'`).join(' ')}`
  const command = direction === 'down' ? `${client} '${zeros}' > /dev/null` : `${zeros} | ${client} 'cat > /dev/null'`
  const startedAt = performance.now()
  const child = spawn('sh', ['-c', command], { stdio: ['ignore', 'ignore', 'inherit'] })
  const [status] = (await once(child, 'exit')) as [number | null]
  if (status !== 0) throw new Error(`${direction} by ${route} ended with status ${status}`)
  return (performance.now() - startedAt) / 1000
}

function ratio(ours: readonly number[], theirs: readonly number[]): Spread {
  return spread(ours.map((value, index) => value / (theirs[index] ?? Number.NaN)))
}

function add(lists: Record<string, number[]>, name: string, value: number): void {
  const list = lists[name] ?? []
  list.push(value)
  lists[name] = list
}
