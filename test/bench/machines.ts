/**
 * Whole machines, in the product as its README starts it:
 *   - `new` until SSH works, against the same started by hand (by-hand.ts), in turn
 *   - `ssh NAME true` through the gateway, warm and first after a restart of the gateway, against the guest directly
 *   - 20 `new` at once, 20 `ssh` at once to one machine, 100 in a row
 *   - memory of the idle gateway
 *
 *   node test/bench/machines.ts [rounds, default 5]
 */
import { execFile } from 'node:child_process'
import { readFileSync, readlinkSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { macFor } from '../../vmhost/network/address.ts'
import { type Product, SERVER_ADDRESS, startProduct } from '../e2e/product.ts'
import type { ByHand } from './by-hand.ts'
import { report, rssBytes, type Spread, show, spread, surroundings } from './ssh-lab.ts'

const run = promisify(execFile)
const rounds = Number(process.argv[2] ?? 5)
const MIB = 2 ** 20
const AT_ONCE = 20
const HAND_ADDRESS = '10.77.0.2'
const HAND_GATEWAY = '10.77.0.1'

await using product = await startProduct()
const times: Record<string, number[]> = {}
const figures: Record<string, Spread> = {}

await made('warm-up')
await byHand()
for (let round = 0; round < rounds; round++) {
  add('new, ms', await made(`round${round}`))
  add('by hand, ms', await byHand())
}
ratio('new to by hand', 'new, ms', 'by hand, ms')

const guest = await directly('warm-up')
await timed(() => guest.ssh())
await timed(() => product.ssh([`warm-up@${SERVER_ADDRESS}`, 'true']))
for (let round = 0; round < rounds * 2; round++) {
  add('ssh true, pooled, ms', await timed(() => product.ssh([`warm-up@${SERVER_ADDRESS}`, 'true'])))
  add('ssh true, directly, ms', await timed(() => guest.ssh()))
}
ratio('ssh true, pooled to direct', 'ssh true, pooled, ms', 'ssh true, directly, ms')
for (let round = 0; round < rounds; round++) {
  await restartGateway()
  add('ssh true, first, ms', await timed(() => product.ssh([`warm-up@${SERVER_ADDRESS}`, 'true'])))
  add('ssh true, directly again, ms', await timed(() => guest.ssh()))
}
ratio('ssh true, first to direct', 'ssh true, first, ms', 'ssh true, directly again, ms')
await restartGateway()
for (let round = 0; round < rounds; round++) {
  await product.stop()
  const startedAt = performance.now()
  await product.start()
  add('start to ready, s', (performance.now() - startedAt) / 1000)
}
figures['gateway, idle, MiB'] = spread([rssBytes(product.processes().gateway ?? 0) / MIB])

const burst = performance.now()
const machines = Array.from({ length: AT_ONCE }, (_, n) => `many${n}`)
const twenty = await Promise.all(
  machines.map((name) =>
    product.lobby(`new ${name} --image minimal --cpu 1 --memory 512M --disk 2G`, { timeoutMs: 600_000 }),
  ),
)
for (const { status, stdout, stderr } of twenty) if (status !== 0) console.error(`new failed: ${stdout}${stderr}`)
figures['20 new at once, failed'] = spread([twenty.filter(({ status }) => status !== 0).length])
figures['20 new at once, s'] = spread([(performance.now() - burst) / 1000])
await Promise.all(machines.map((name) => product.lobby(`rm --now ${name}`)))

const sessions = await Promise.all(machines.map((_, n) => product.ssh([`warm-up@${SERVER_ADDRESS}`, `echo ${n}`])))
figures['20 ssh at once, failed'] = spread([sessions.filter(({ stdout }, n) => stdout.trim() !== String(n)).length])
let failed = 0
for (let n = 0; n < 100; n++) if ((await product.ssh([`warm-up@${SERVER_ADDRESS}`, 'true'])).status !== 0) failed++
figures['100 ssh in a row, failed'] = spread([failed])

for (const [name, values] of Object.entries(times)) figures[name] = spread(values)
const rows = Object.fromEntries(Object.entries(figures).map(([name, figure]) => [name, show(figure)]))
report(`Machines, ${rounds} rounds`, await surroundings(), rows, figures)

/** @returns ms from exec of `ssh lobby new` to the end of the first `ssh NAME true` */
async function made(name: string): Promise<number> {
  const startedAt = performance.now()
  const lobby = await product.lobby(`new ${name} --image minimal --cpu 1 --memory 512M --disk 2G`)
  if (lobby.status !== 0) throw new Error(lobby.stderr)
  const first = await product.ssh([`${name}@${SERVER_ADDRESS}`, 'true'])
  if (first.status !== 0) throw new Error(first.stderr)
  const tookMs = performance.now() - startedAt
  if (name !== 'warm-up') await product.lobby(`rm --now ${name}`)
  return tookMs
}

/** The same files, in the mount and network namespaces of the vmhost. */
async function byHand(): Promise<number> {
  const { vmhost } = product.processes()
  const store = join(product.dataDirectory, 'store')
  const image = JSON.parse(
    readFileSync(join(product.dataDirectory, 'artifacts/images/minimal/image.json'), 'utf8'),
  ) as { hash: string }
  const boot = readlinkSync(join(product.dataDirectory, 'artifacts/boot/current'))
  const [host] = await product.sql()<{ accelerator: 'kvm' | 'tcg' }[]>`select accelerator from hosts`
  const sample = await directly('warm-up')
  const line = readFileSync(join(`/proc/${sample.pid}`, 'cmdline'), 'utf8').split('\0')
  const hand: ByHand = {
    image: join(store, `images/minimal-${image.hash}.raw`),
    boot: join(store, 'boot', boot),
    directory: join(store, 'by-hand'),
    accelerator: host?.accelerator ?? 'tcg',
    cpus: 1,
    memoryBytes: 512 * MIB,
    diskBytes: 2 * 2 ** 30,
    address: HAND_ADDRESS,
    gateway: HAND_GATEWAY,
    mac: macFor(HAND_ADDRESS),
    commandLine: (line[line.indexOf('-append') + 1] ?? '').replace(
      /ip=[\d.]+:[\d.]+:[\d.]+/,
      `ip=${HAND_ADDRESS}:${HAND_GATEWAY}:${HAND_GATEWAY}`,
    ),
    key: join(product.home, 'id_ed25519'),
  }
  const { stdout } = await run('nsenter', [
    ...[
      '-t',
      String(vmhost),
      '-m',
      '-n',
      process.execPath,
      join(import.meta.dirname, 'by-hand.ts'),
      JSON.stringify(hand),
    ],
  ])
  return Number(stdout)
}

/** A machine's sshd without the gateway: from the server itself, with the owner's key. */
async function directly(name: string) {
  const [machine] = await product.sql()<{ id: number; address: string }[]>`
    select id, host(address) as address from machine_names n join machines m on m.id = n.machine_id
    join addresses a on a.machine_id = m.id where n.name = ${name}`
  if (!machine) throw new Error(`no machine ${name}`)
  const pid = product
    .processes()
    .hypervisors.find((candidate) =>
      readFileSync(`/proc/${candidate}/cmdline`, 'utf8').includes(`guest=vm${machine.id},`),
    )
  const options = product.sshOptions.filter(
    (word, index, all) => !word.startsWith('Port=') && !all[index + 1]?.startsWith('Port='),
  )
  return {
    pid,
    ssh: () =>
      product.outside('nsenter', [
        `--net=/run/netns/${product.serverNamespace}`,
        'ssh',
        ...options,
        `dev@${machine.address}`,
        'true',
      ]),
  }
}

async function restartGateway() {
  const { gateway } = product.processes()
  if (gateway) process.kill(gateway, 'SIGKILL')
  // Its port answers again when a banner comes, which makes no upstream connection.
  for (;;) {
    const { stdout } = await product.outside('bash', ['-c', `exec 3<>/dev/tcp/${SERVER_ADDRESS}/2222 && head -c 7 <&3`])
    if (stdout === 'SSH-2.0') return
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
}

async function timed(action: () => ReturnType<Product['ssh']>): Promise<number> {
  const startedAt = performance.now()
  const done = await action()
  if (done.status !== 0) throw new Error(done.stderr)
  return performance.now() - startedAt
}

function add(name: string, value: number) {
  const list = times[name] ?? []
  list.push(value)
  times[name] = list
}

function ratio(name: string, ours: string, theirs: string) {
  figures[name] = spread((times[ours] ?? []).map((value, index) => value / (times[theirs]?.[index] ?? Number.NaN)))
}
