/** What the benchmarks of whole machines share: the product's machines from outside, and the same done by hand. */
import { execFile } from 'node:child_process'
import { existsSync, readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { basename, join } from 'node:path'
import { setTimeout as wait } from 'node:timers/promises'
import { promisify } from 'node:util'
import { macFor } from '../../vmhost/network/address.ts'
import type { SavedMemory } from '../../vmhost/storage/memory.ts'
import { type Product, SERVER_ADDRESS } from '../e2e/product.ts'
import type { ByHand } from './by-hand.ts'
import type { RestoreByHand, RestoredByHand } from './restore-by-hand.ts'
import { report, type Spread, show, spread, surroundings } from './ssh-lab.ts'

const run = promisify(execFile)

export const MIB = 2 ** 20
/** The machine that every measure is about. */
export const SIZE = '--image minimal --cpu 1 --memory 512M --disk 2G'
const MEMORY_BYTES = 512 * MIB
const DISK_BYTES = 2 * 2 ** 30
const NOISE_MIB = 16
const TEMPLATE_LIMIT_MS = 600_000
const HAND_ADDRESS = '10.77.0.2'
const HAND_GATEWAY = '10.77.0.1'
const MACHINES_GATEWAY = '10.42.0.1'

export type Machine = { id: number; address: string }

/** @throws with what it said, unless it ended well */
export async function lobby(product: Product, line: string, timeoutMs = 600_000): Promise<string> {
  const { status, stdout, stderr } = await product.lobby(line, { timeoutMs })
  if (status !== 0) throw new Error(`${line}: ${stdout}${stderr}`)
  return stdout
}

/** Runs a command in a machine, through the gateway. */
export async function inside(product: Product, name: string, command: string, timeoutMs = 600_000): Promise<string> {
  const { status, stdout, stderr } = await product.ssh([`${name}@${SERVER_ADDRESS}`, command], { timeoutMs })
  if (status !== 0) throw new Error(`${name}: ${command}: ${stderr}`)
  return stdout
}

export async function findMachine(product: Product, name: string): Promise<Machine> {
  const [machine] = await product.sql()<Machine[]>`
    select m.id, host(address) as address from machine_names n join machines m on m.id = n.machine_id
    join addresses a on a.machine_id = m.id where n.name = ${name}`
  if (!machine) throw new Error(`no machine ${name}`)
  return machine
}

export function hypervisorOf(product: Product, id: number): number {
  const isIts = (pid: number) => readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(`guest=vm${id},`)
  const pid = product.processes().hypervisors.find(isIts)
  if (pid === undefined) throw new Error(`machine ${id} does not run`)
  return pid
}

/** Proportional set size: what is shared counts in parts. @see proc_pid_smaps(5) */
export function pssBytes(pid: number): number {
  return Number(/^Pss:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8'))?.[1]) * 1024
}

/** What a guest has of its memory in use: MemTotal less MemAvailable, and what its balloon holds is not its. */
export async function usedBytes(product: Product, name: string): Promise<number> {
  const text = await inside(product, name, 'cat /proc/meminfo /proc/vmstat')
  const value = (label: string) => Number(new RegExp(`^${label}:?\\s+(\\d+)`, 'm').exec(text)?.[1] ?? 0)
  const balloonBytes = (value('balloon_inflate') - value('balloon_deflate')) * 4096
  return (value('MemTotal') - value('MemAvailable')) * 1024 - balloonBytes
}

/** Until its init has started all it starts: before, it has little time for anything else. */
export async function settled(product: Product, name: string): Promise<void> {
  // A systemd that is not there yet answers at once, that it is offline.
  const look = 'case $(systemctl is-system-running --wait) in running | degraded) exit 0 ;; esac'
  await inside(product, name, `for n in $(seq 600); do ${look}; sleep 1; done 2> /dev/null; exit 1`)
}

/** Waits for the template that the first `new` is the reason to make. @returns its folder in the store */
export async function templateMade(product: Product): Promise<string> {
  const all = product.storePath('templates')
  for (const until = performance.now() + TEMPLATE_LIMIT_MS; performance.now() < until; await wait(1_000)) {
    const [id] = existsSync(all) ? readdirSync(all).filter((name) => /^[0-9a-f]+$/.test(name)) : []
    if (id !== undefined) return `templates/${id}`
  }
  throw new Error('no template was made')
}

/** Makes machines as people do: the first boots, the others go on from the template that is made of it. */
export async function makeMany(product: Product, names: readonly string[]): Promise<void> {
  for (const [index, name] of names.entries()) {
    await lobby(product, `new ${name} ${SIZE}`)
    if (index > 0) continue
    await settled(product, name)
    await templateMade(product)
  }
  for (const name of names) await settled(product, name)
}

/**
 * Memory that cannot be given back, nor packed, until a guest uses so much: 16 MiB of noise again and again, which is
 * farther apart than what packs it looks back. An emulated guest makes 10 MiB of noise in a second.
 */
export async function fill(product: Product, name: string, toBytes: number): Promise<void> {
  const missing = Math.round((toBytes - (await usedBytes(product, name))) / MIB / NOISE_MIB) - 1
  if (missing < 0) return
  const noise = `head -c ${NOISE_MIB}M /dev/urandom > /dev/shm/noise`
  const again = `for n in $(seq ${missing}); do cat /dev/shm/noise; done > /dev/shm/filled`
  await inside(product, name, `sudo mount -o remount,size=90% /dev/shm && ${noise} && ${again}`)
}

/** @returns ms from exec of the client to its end. @throws unless it ended well */
export async function timed(action: () => ReturnType<Product['ssh']>): Promise<number> {
  const startedAt = performance.now()
  const { status, stderr } = await action()
  if (status !== 0) throw new Error(stderr)
  return performance.now() - startedAt
}

export function sshTrue(product: Product, name: string): Promise<number> {
  return timed(() => product.ssh([`${name}@${SERVER_ADDRESS}`, 'true'], { timeoutMs: 600_000 }))
}

/** @returns ms from exec of the lobby's client for `line` to the end of the first `ssh NAME true` */
export async function made(product: Product, line: string, name: string): Promise<number> {
  const startedAt = performance.now()
  await lobby(product, line)
  await sshTrue(product, name)
  return performance.now() - startedAt
}

export async function accelerator(product: Product): Promise<'kvm' | 'tcg'> {
  const [host] = await product.sql()<{ accelerator: 'kvm' | 'tcg' }[]>`select accelerator from hosts`
  return host?.accelerator ?? 'tcg'
}

/**
 * Boots by hand what the machine `like` is, in the namespaces of the vmhost.
 * @param disk what it boots from; a fresh disk of its image unless given
 * @returns ms until `ssh true` has ended
 */
export async function bootByHand(product: Product, like: string, disk?: string): Promise<number> {
  const store = join(product.dataDirectory, 'store')
  const image = JSON.parse(
    readFileSync(join(product.dataDirectory, 'artifacts/images/minimal/image.json'), 'utf8'),
  ) as { hash: string }
  const boot = basename(readlinkSync(join(product.dataDirectory, 'artifacts/boot/current')))
  const { id } = await findMachine(product, like)
  const line = readFileSync(join('/proc', String(hypervisorOf(product, id)), 'cmdline'), 'utf8').split('\0')
  const hand: ByHand = {
    image: disk ?? join(store, `images/minimal-${image.hash}.raw`),
    boot: join(store, 'boot', boot),
    directory: join(store, 'by-hand'),
    accelerator: await accelerator(product),
    cpus: 1,
    memoryBytes: MEMORY_BYTES,
    diskBytes: DISK_BYTES,
    address: HAND_ADDRESS,
    gateway: HAND_GATEWAY,
    mac: macFor(HAND_ADDRESS),
    commandLine: (line[line.indexOf('-append') + 1] ?? '').replace(
      /ip=[\d.]+:[\d.]+:[\d.]+/,
      `ip=${HAND_ADDRESS}:${HAND_GATEWAY}:${HAND_GATEWAY}`,
    ),
    key: join(product.home, 'id_ed25519'),
  }
  const script = join(import.meta.dirname, 'by-hand.ts')
  const vmhost = String(product.processes().vmhost)
  const { stdout } = await run('nsenter', ['-t', vmhost, '-m', '-n', process.execPath, script, JSON.stringify(hand)])
  return Number(stdout)
}

/**
 * Restores by hand what lies in a folder of the store, with the vmhost's files and a network of its own.
 * @param folder of a machine or a checkpoint: `root.raw` and `memory/`
 * @param address that the guest had when it was saved; undefined: the one that its kernel was started with
 */
export async function restoreByHand(
  product: Product,
  folder: string,
  address: string | undefined,
  wanted: Pick<RestoreByHand, 'until' | 'fork' | 'isNobody'>,
): Promise<RestoredByHand> {
  const namespace = `${product.serverNamespace}-hand`
  const store = join(product.dataDirectory, 'store')
  const saved = JSON.parse(readFileSync(product.storePath(`${folder}/memory/saved.json`), 'utf8')) as SavedMemory
  const [, first = '', firstGateway = ''] = / ip=([\d.]+):[\d.]+:([\d.]+):/.exec(saved.commandLine) ?? []
  const hand: RestoreByHand = {
    memory: join(store, folder, 'memory'),
    disk: join(store, folder, 'root.raw'),
    boots: join(store, 'boot'),
    directory: join(store, 'by-hand'),
    address: address ?? first,
    // A card keeps the one that it was started with.
    mac: macFor(first),
    gateway: address === undefined ? firstGateway : MACHINES_GATEWAY,
    gatewayMac: macFor(MACHINES_GATEWAY),
    key: join(product.home, 'id_ed25519'),
    ...wanted,
  }
  const script = join(import.meta.dirname, 'restore-by-hand.ts')
  await run('ip', ['netns', 'add', namespace])
  try {
    await run('ip', ['-n', namespace, 'link', 'set', 'lo', 'up'])
    const { stdout } = await run('nsenter', [
      ...['-t', String(product.processes().vmhost), '-m', `--net=/run/netns/${namespace}`],
      ...[process.execPath, script, JSON.stringify(hand)],
    ])
    return JSON.parse(stdout) as RestoredByHand
  } finally {
    await run('ip', ['netns', 'delete', namespace])
  }
}

/** Processes that a process has started and that have not ended, theirs included. */
export function childrenOf(pid: number): number[] {
  const parents = readdirSync('/proc').filter((name) => /^\d+$/.test(name))
  const own = parents.filter((name) => {
    try {
      const stat = readFileSync(`/proc/${name}/stat`, 'utf8')
      return Number(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[1]) === pid
    } catch {
      return false
    }
  })
  return own.map(Number).flatMap((child) => [child, ...childrenOf(child)])
}

/** Figures while they are taken, by name; each is said as it comes, since all of them may take an hour. */
export type Book = {
  add(name: string, value: number): void
  /** of each round's two */
  ratio(name: string, ours: string, theirs: string): void
  /** Prints all of them. */
  close(title: string): Promise<void>
}

export function openBook(): Book {
  const taken = new Map<string, number[]>()
  const of = (name: string) => taken.get(name) ?? []
  return {
    add(name, value) {
      taken.set(name, [...of(name), value])
      console.error(`${new Date().toISOString().slice(11, 19)}  ${name}: ${value.toFixed(2)}`)
    },
    ratio: (name, ours, theirs) =>
      void taken.set(
        name,
        of(ours).map((value, index) => value / (of(theirs)[index] ?? Number.NaN)),
      ),
    async close(title) {
      const figures: Record<string, Spread> = {}
      for (const [name, values] of taken) figures[name] = spread(values)
      const rows = Object.fromEntries(Object.entries(figures).map(([name, figure]) => [name, show(figure)]))
      report(title, await surroundings(), rows, figures)
    },
  }
}
