import { execFileSync } from 'node:child_process'
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statfsSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { createServer, type Server } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Duplex, Transform } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import { makeTinyGuest } from '../../hypervisor/tiny-guest.ts'
import { isMounted } from '../../storage/volume.ts'
import { Agent } from '../agent.ts'
import { artifactsFolder, TestServer } from '../server.ts'
import { GuestMemory, type Held, heldByDisk, holdOnDisk } from './guest-memory.ts'
import type { Control } from './steps.ts'

/**
 * A server to break: the real vmhost process with real QEMU and a real XFS volume, on guests of a few bytes, and what
 * can be done to it at any step that steps.ts counts.
 */

const MiB = 2 ** 20
export const machineSize = { cpus: 1, memory_bytes: 128 * MiB, disk_bytes: 16 * MiB }
const preload = new URL('./steps.ts', import.meta.url).href
/** The least that leaves a volume of a GiB, of which the filesystem keeps a tenth. */
const diskMiB = 1_400

export type Step = { readonly step: string; readonly nth: number; readonly when: 'before' | 'after' }

export class FaultLab implements AsyncDisposable {
  readonly server: TestServer
  readonly #home: string
  readonly #artifacts: string
  readonly #agents: Server
  #round = 0

  private constructor(server: TestServer, home: string, artifacts: string) {
    this.server = server
    this.#home = home
    this.#artifacts = artifacts
    this.#agents = serveAgents(home)
  }

  static async make(): Promise<FaultLab> {
    const home = mkdtempSync(join(tmpdir(), 'berth-faults-'))
    mkdirSync(join(home, 'still'))
    const artifacts = await makeArtifacts()
    const server = await TestServer.make(artifacts, undefined, (dataDirectory) => {
      const disk = join(home, 'disk')
      writeFileSync(disk, '')
      truncateSync(disk, diskMiB * MiB)
      execFileSync('mkfs.ext4', ['-q', '-m', '0', disk])
      execFileSync('mount', ['-o', 'loop', disk, dataDirectory])
    })
    const lab = new FaultLab(server, home, artifacts)
    lab.#control({})
    await lab.start()
    return lab
  }

  async start(env: Record<string, string> = {}): Promise<void> {
    await this.server.start({ NODE_OPTIONS: `--import=${preload}`, BERTH_FAULTS: this.#home, ...env })
  }

  /** Begins to count. @returns number of the round */
  count(stopAt?: Step): number {
    this.#round++
    rmSync(join(this.#home, 'reached'), { force: true })
    this.#control(stopAt ? { stopAt } : {})
    return this.#round
  }

  /** What was counted in a round, in order. */
  counted(round: number): Omit<Step, 'when'>[] {
    const lines = readFileSync(join(this.#home, 'steps'), 'utf8').split('\n')
    return lines
      .map((line) => line.split('\t'))
      .filter(([of]) => Number(of) === round)
      .map(([, nth, step = '']) => ({ step, nth: Number(nth) }))
  }

  /** Waits until the vmhost stands still at the step it was told. @returns false: `over` came first */
  async reached(over: Promise<unknown>): Promise<boolean> {
    let isOver = false
    over.then(
      () => {
        isOver = true
      },
      () => {
        isOver = true
      },
    )
    const isThere = () => existsSync(join(this.#home, 'reached')) && isStopped(this.server.pid)
    while (!isThere()) {
      if (isOver) return isThere()
      await sleep(5)
    }
    return true
  }

  goOn(): void {
    this.count()
    process.kill(this.server.pid, 'SIGCONT')
  }

  async killVmhost(): Promise<void> {
    await this.server.end('SIGKILL')
    this.count()
  }

  async killHypervisors(): Promise<void> {
    for (const id of await this.machines()) await this.#killHypervisorsOf(id)
  }

  async #killHypervisorsOf(id: number): Promise<void> {
    for (const pid of await this.server.hypervisors(id)) process.kill(pid, 'SIGKILL')
    while ((await this.server.hypervisors(id)).length > 0) await sleep(10)
  }

  /** Nothing runs any more, and of what was not synced nothing is there. @see xfs_io(8), `shutdown` */
  async cutPower(): Promise<void> {
    await this.killVmhost()
    await this.killHypervisors()
    execFileSync('xfs_io', ['-x', '-c', 'shutdown', this.store])
    await unmount(this.store)
  }

  get store(): string {
    return join(this.server.dataDirectory, 'store')
  }

  /** Leaves no block, and no inode, to anybody: `full` in the store, `beneath` on the filesystem under its volume. */
  fill(where: 'full' | 'beneath'): void {
    const folder = this.#filling[where]
    mkdirSync(folder)
    const { bavail, bsize } = statfsSync(folder)
    const tries = [bavail * bsize - 4 * MiB, MiB, 64 * 1024, 4096]
    let files = 0
    for (const bytes of tries) {
      for (; ; files++) {
        try {
          execFileSync('fallocate', ['-l', String(Math.max(bytes, 4096)), join(folder, `${files}`)], { stdio: 'pipe' })
        } catch {
          break
        }
      }
    }
    // Of inodes the volume's file needs none.
    while (where === 'full') {
      try {
        writeFileSync(join(folder, `${files++}`), '')
      } catch {
        return
      }
    }
  }

  empty(): void {
    for (const folder of Object.values(this.#filling)) rmSync(folder, { recursive: true, force: true })
  }

  get #filling() {
    return { full: join(this.store, 'filling'), beneath: join(this.server.dataDirectory, 'filling') }
  }

  /** Waits until no machine stands still for want of space. */
  async goesOn(): Promise<void> {
    const still = () => this.server.sql`select from machines where observed_reason like 'It stands still%'`
    while ((await still()).length > 0) await sleep(100)
  }

  async machines(): Promise<number[]> {
    const rows = await this.server.sql<{ id: number }[]>`select id from machines where observed_state <> 'gone'`
    return rows.map(({ id }) => id)
  }

  diskOf(id: number): string {
    return join(this.store, 'machines', String(id), 'root.raw')
  }

  /** Its guest, where one runs. */
  async guest(id: number): Promise<GuestMemory | undefined> {
    const [pid] = await this.server.hypervisors(id)
    return pid === undefined ? undefined : new GuestMemory(pid, machineSize.memory_bytes)
  }

  /** Its guest does something, in memory and on disk. */
  async write(id: number, epoch: number): Promise<void> {
    const guest = await this.guest(id)
    if (!guest) throw new Error('nobody is there to write')
    const held = { epoch, ran: guest.held.ran + 1 }
    holdOnDisk(this.diskOf(id), held)
    guest.held = held
  }

  /** Every guest that runs in this moment writes, as it might by itself. */
  async haveThemWrite(): Promise<void> {
    for (const id of await this.machines()) {
      const guest = await this.guest(id)
      if (!guest || !(await goesOn(guest))) continue
      const held = guest.held
      await this.write(id, held.epoch)
    }
  }

  /** What a machine holds; `memory` only where it runs. @throws when it stands still */
  async held(id: number): Promise<{ disk: Held; memory?: Held }> {
    const guest = await this.guest(id)
    const disk = heldByDisk(this.diskOf(id))
    if (!guest) return { disk }
    for (const deadline = Date.now() + 5_000; !(await goesOn(guest)); ) {
      if (Date.now() > deadline) throw new Error(`the guest of machine ${id} stands still`)
    }
    return { disk, memory: guest.held }
  }

  /** What is there and should not be: sentences, none when all is well. */
  async leftovers(): Promise<string[]> {
    const rows = await this.server.sql<{ id: number; state: string }[]>`
      select id, observed_state as state from machines where observed_state <> 'gone'`
    const kept = await this.server.sql<{ id: number }[]>`select id from checkpoints where observed_state = 'kept'`
    const wrong: string[] = []
    const stray = (what: string, there: readonly string[], wanted: readonly (string | number)[]) => {
      const extra = there.filter((name) => !wanted.map(String).includes(name))
      if (extra.length > 0) wrong.push(`${what}: ${extra.join(' ')}`)
    }
    const ids = rows.map(({ id }) => id)
    stray('machines', this.server.disks(), ids)
    stray(
      'checkpoints',
      readdirSync(join(this.store, 'checkpoints')),
      kept.map(({ id }) => id),
    )
    stray(
      'taps',
      this.server.taps(),
      rows.filter(({ state }) => state === 'running').map(({ id }) => `vm${id}`),
    )
    for (const { id, state } of rows) {
      const directory = join(this.store, 'machines', String(id))
      const there = existsSync(directory) ? readdirSync(directory) : []
      stray(`machine ${id}`, there, [...ordinary, ...(state === 'asleep' ? ['memory'] : [])])
      const running = await this.server.hypervisors(id)
      if (running.length !== (state === 'running' ? 1 : 0)) wrong.push(`${running.length} hypervisors of machine ${id}`)
    }
    for (const { id } of kept) {
      const directory = join(this.store, 'checkpoints', String(id))
      stray(`checkpoint ${id}`, readdirSync(directory), ['root.raw', 'checkpoint.json', 'memory'])
    }
    return wrong
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.server.end('SIGKILL')
    await this.killHypervisors()
    for (const path of [this.store, this.server.dataDirectory]) await unmount(path)
    await this.server[Symbol.asyncDispose]()
    this.#agents.close()
    for (const folder of [this.#home, this.#artifacts]) rmSync(folder, { recursive: true, force: true })
  }

  #control(control: Omit<Control, 'round'>): void {
    const path = join(this.#home, 'control.json')
    const text: Control = { round: this.#round, ...control }
    writeFileSync(`${path}.new`, JSON.stringify(text))
    renameSync(`${path}.new`, path)
  }
}

/** What lies in a machine's directory, whatever it does. */
const ordinary = [
  ...['root.raw', 'host_key', 'machine.json', 'started.json', 'restored.json', 'identity'],
  ...['run', 'console.in', 'console.out', 'console.log', 'qemu.log'],
]

/** A timer interrupt of the guest's comes every 55 ms, on a processor that others want too. */
async function goesOn(guest: GuestMemory): Promise<boolean> {
  const from = guest.ticks
  for (let looks = 0; looks < 50; looks++) {
    if (guest.ticks !== from) return true
    await sleep(10)
  }
  return false
}

function isStopped(pid: number): boolean {
  try {
    return / T /.test(readFileSync(`/proc/${pid}/stat`, 'latin1').replace(/\(.*\)/, ''))
  } catch {
    return false
  }
}

/** Whoever worked in it was killed a moment ago, and the loop device under it goes in its own time. */
async function unmount(path: string): Promise<void> {
  for (let attempt = 0; await isMounted(path); attempt++) {
    try {
      execFileSync('umount', [path], { stdio: 'pipe' })
      return
    } catch (error) {
      if (attempt > 300) throw error
      await sleep(100)
    }
  }
}

async function makeArtifacts(): Promise<string> {
  const artifacts = artifactsFolder()
  const boot = join(artifacts, 'boot', 'aaaaaaaaaaaaaaaa')
  mkdirSync(boot)
  for (const name of ['initrd', 'tools.erofs', 'boot.json']) writeFileSync(join(boot, name), Buffer.alloc(4096))
  await makeTinyGuest(join(boot, 'vmlinuz'), 'counts')
  symlinkSync('aaaaaaaaaaaaaaaa', join(artifacts, 'boot', 'current'))
  const hash = '0123456789abcdef'
  const folder = join(artifacts, 'images', `minimal-${hash}`)
  mkdirSync(folder)
  writeFileSync(join(folder, 'root.raw'), Buffer.alloc(4 * MiB, 0))
  const image = { name: 'minimal', hash, sizeBytes: 4 * MiB, loginUser: 'dev', init: true, description: '' }
  writeFileSync(join(folder, 'image.json'), JSON.stringify(image))
  symlinkSync(`minimal-${hash}`, join(artifacts, 'images', 'minimal'))
  return artifacts
}

/**
 * The agents of all guests. Whoever connects says first which hypervisor's it wants; one whose guest stands still, or
 * that is gone, hears and says nothing.
 */
function serveAgents(home: string): Server {
  const agents = new Map<number, Agent>()
  const agentOf = (pid: number) => {
    const known = agents.get(pid)
    if (known) return known
    const agent = new Agent()
    agent.stage = 'init'
    // All of it is used: there is nothing that a balloon could take.
    agent.memory = { totalBytes: 60 * MiB, availableBytes: 10 * MiB }
    // What goes on from its memory knows who it was, and has its filesystem frozen.
    if (readFileSync(`/proc/${pid}/cmdline`, 'latin1').includes('-incoming')) {
      agent.hostname = 'somebody'
      agent.frozen = true
    }
    agent.onPowerOff = () => process.kill(pid, 'SIGKILL')
    agents.set(pid, agent)
    return agent
  }
  const server = createServer((socket) => {
    socket.on('error', () => {})
    socket.once('data', (first: Buffer) => {
      const end = first.indexOf('\n')
      const pid = Number(first.subarray(0, end))
      if (!existsSync(`/proc/${pid}`)) {
        socket.destroy()
        return
      }
      const look = setInterval(() => existsSync(`/proc/${pid}`) || socket.destroy(), 50)
      socket.once('close', () => clearInterval(look))
      const heard = new Transform({
        transform: async (chunk, _, done) => {
          while (existsSync(join(home, 'still', String(pid))) && !socket.destroyed) await sleep(5)
          done(null, chunk)
        },
      })
      heard.write(first.subarray(end + 1))
      socket.pipe(heard)
      agentOf(pid).serve(Duplex.from({ readable: heard, writable: socket }))
    })
  })
  return server.listen(join(home, 'agents.sock'))
}
