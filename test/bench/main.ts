/**
 * `npm run bench [-- NAME..]`: every target of SPECIFICATION.md, measured, one table at the end and all figures as
 * JSON on standard output. Exit status 1 when a target was missed.
 */
import { spawn } from 'node:child_process'
import { join } from 'node:path'
import { type Spread, show } from './ssh-lab.ts'

type Target = { figure: string; limit: number; kind: 'at least' | 'at most' }
type Bench = { name: string; file: string; parameters: string[]; targets: Target[] }

const atLeast = (figure: string, limit: number): Target => ({ figure, limit, kind: 'at least' })
const atMost = (figure: string, limit: number): Target => ({ figure, limit, kind: 'at most' })

const BENCHES: Bench[] = [
  {
    name: 'ssh-bulk',
    file: 'ssh-bulk.ts',
    parameters: ['4', '5'],
    targets: [
      atLeast('down, gateway to direct', 0.92),
      atLeast('up, gateway to direct', 1.0),
      atLeast('down, gateway to ssh -J', 1.3),
      atLeast('up, gateway to ssh -J', 1.3),
      atMost('down, gateway core-seconds per GiB', 1.2),
      atMost('up, gateway core-seconds per GiB', 1.2),
    ],
  },
  {
    name: 'ssh-idle',
    file: 'ssh-idle.ts',
    parameters: ['500', '60'],
    targets: [atMost('per session after the silence, KiB', 100)],
  },
  {
    name: 'machines',
    file: 'machines.ts',
    parameters: ['5'],
    targets: [
      atMost('new to by hand', 1.15),
      atMost('ssh true, pooled to direct', 0.4),
      atMost('ssh true, first to direct', 1.0),
      atMost('gateway, idle, MiB', 150),
      atMost('start to ready, s', 5),
      atMost('20 new at once, failed', 0),
      atMost('20 new at once, s', 300),
      atMost('20 ssh at once, failed', 0),
      atMost('100 ssh in a row, failed', 0),
    ],
  },
  {
    name: 'sleep',
    file: 'sleep.ts',
    parameters: ['5'],
    targets: [
      atMost('wake over SSH to by hand', 1.3),
      atMost('wake over HTTPS to by hand', 1.3),
      atMost('memory on disk to used', 1.1),
      atMost('silence at a checkpoint to writing its memory', 1.2),
    ],
  },
  {
    name: 'fork',
    file: 'fork.ts',
    parameters: ['5'],
    targets: [
      atMost('fork to by hand', 1.3),
      atMost('fork to booting', 0.3),
      atMost('new to restoring by hand', 1.3),
      atMost('new to booting', 0.3),
    ],
  },
  {
    name: 'wakes',
    file: 'wakes.ts',
    parameters: ['1', '20'],
    targets: [
      atMost('hypervisors of those asleep', 0),
      atMost('wakes at once, failed', 0),
      atMost('wakes at once, slowest to median', 3),
    ],
  },
  {
    name: 'sleepers',
    file: 'sleepers.ts',
    parameters: ['1000', '600'],
    targets: [
      atMost('hypervisors of those asleep', 0),
      atMost('gateway and vmhost for 100 more, MiB', 2),
      atMost('reconcile loop, share of a core, %', 1),
    ],
  },
  {
    name: 'idle',
    file: 'idle.ts',
    parameters: ['5', '300'],
    targets: [atMost('idle machine beyond its use and its emulation, MiB', 40)],
  },
  {
    name: 'crowd',
    file: 'crowd.ts',
    parameters: ['20', '6', '300'],
    targets: [atMost('of a crowd not reached', 0)],
  },
  {
    name: 'https',
    file: 'https.ts',
    parameters: ['5', '4'],
    targets: [
      atMost('small, CPU a request to nginx', 1.15),
      atMost('small, CPU a request to caddy', 0.45),
      atMost('large, CPU a request to nginx', 1 / 0.7),
      atMost('added latency, median, ms', 0.5),
      atMost('added latency, 99th percentile, ms', 3),
      atMost('idle WebSockets, KiB each', 75),
      atMost('new request beside them, ms', 10),
      atMost('unread over HTTP/1.1, MiB', 4),
      atMost('unread over HTTP/2, MiB', 4),
    ],
  },
  {
    name: 'dashboard',
    file: 'dashboard.ts',
    parameters: ['5'],
    targets: [
      atMost('first load, script, KiB', 150),
      atMost('interactive at a fourfold slowdown, ms', 1_000),
      atMost('frames missing beyond an empty page’s', 0),
      atMost('slowest change of state seen, ms', 300),
    ],
  },
  {
    name: 'metering',
    file: 'metering.ts',
    parameters: ['10', '200'],
    targets: [atMost('metering, % of a core', 2)],
  },
  {
    name: 'billing',
    file: 'billing.ts',
    parameters: ['30', '10000'],
    targets: [
      atMost('usage of 1,000 machines over a month, 95th percentile, ms', 50),
      atMost('growth with ten times the facts', 1.5),
      atMost('growth of appending with ten times the facts', 1.5),
      atMost('invoice run, s', 300),
    ],
  },
]

const wanted = process.argv.slice(2)
const unknown = wanted.find((name) => !BENCHES.some((bench) => bench.name === name))
if (unknown) {
  console.error(`no benchmark ${unknown}; there are ${BENCHES.map(({ name }) => name).join(', ')}`)
  process.exit(2)
}

const results: { title: string; where: Record<string, string>; figures: Record<string, Spread> }[] = []
const table: string[] = []
let missed = 0
for (const bench of BENCHES.filter(({ name }) => wanted.length === 0 || wanted.includes(name))) {
  const result = await measure(bench)
  results.push(result)
  for (const { figure, limit, kind } of bench.targets) {
    const measured = result.figures[figure]
    const met = measured !== undefined && (kind === 'at least' ? measured.median >= limit : measured.median <= limit)
    if (!met) missed++
    table.push(
      `| ${figure} | ${kind} ${limit} | ${measured ? show(measured) : 'not measured'} | ${met ? 'met' : 'missed'} |`,
    )
  }
}
console.error(['| measure | target | median (min to max) | |', '|---|---|---|---|', ...table].join('\n'))
console.log(JSON.stringify(results, null, 2))
process.exitCode = missed === 0 ? 0 : 1

async function measure({ file, parameters }: Bench): Promise<(typeof results)[number]> {
  const child = spawn(process.execPath, [join(import.meta.dirname, file), ...parameters], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  let printed = ''
  child.stdout.on('data', (chunk: Buffer) => {
    printed += chunk
  })
  const status = await new Promise<number | null>((resolve) => child.once('close', resolve))
  if (status !== 0) throw new Error(`${file} ended with status ${status}`)
  return JSON.parse(printed.trim().split('\n').at(-1) ?? '') as (typeof results)[number]
}
