/**
 * `ssh NAME true`, whole command: directly, through the gateway over the pooled connection (warm), and as the first
 * after a restart of the gateway with nothing connected.
 *
 *   node test/bench/ssh-true.ts [rounds, default 20]
 */

import { ssh } from '../../gateway/ssh/relay/fixtures.ts'
import { report, type Spread, show, spread, startGatewayProcess, startLab, surroundings } from './ssh-lab.ts'

const rounds = Number(process.argv[2] ?? 20)
await using lab = await startLab()
const times: Record<'direct' | 'warm' | 'first', number[]> = { direct: [], warm: [], first: [] }

await timed(lab.gateway.port)
for (let round = 0; round < rounds; round++) {
  times.direct.push(await timed(lab.target.port, 'root'))
  times.warm.push(await timed(lab.gateway.port))
  await using fresh = await startGatewayProcess(lab.keys, lab.target)
  times.first.push(await timed(fresh.port))
}

const figures: Record<string, Spread> = {}
for (const [name, values] of Object.entries(times)) figures[`${name}, ms`] = spread(values)
const ratio = (values: number[]) => spread(values.map((value, index) => value / (times.direct[index] ?? Number.NaN)))
figures['warm to direct'] = ratio(times.warm)
figures['first to direct'] = ratio(times.first)
const rows = Object.fromEntries(Object.entries(figures).map(([name, figure]) => [name, show(figure)]))
report(`ssh NAME true, ${rounds} rounds`, await surroundings(), rows, figures)

async function timed(port: number, user = 'demo'): Promise<number> {
  const startedAt = performance.now()
  const outcome = await ssh(lab.keys, port, ['true'], { ssh: ['-l', user] })
  if (outcome.status !== 0) throw new Error(outcome.stderr.toString())
  return performance.now() - startedAt
}
