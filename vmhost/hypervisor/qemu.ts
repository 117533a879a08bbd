import { execFile, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { chmodSync, closeSync, openSync, statSync } from 'node:fs'
import { chown, lchown, mkdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { confine, setWeight, unconfine } from './cgroup.ts'
import {
  type Accelerator,
  type GuestState,
  type Hypervisor,
  type HypervisorDriver,
  HypervisorError,
  type HypervisorEvent,
  hypervisorUid,
  type MachineSpec,
} from './driver.ts'
import { awaitExit, findProcesses, identify, isAlive, type ProcessIdentity, setNice, signalProcess } from './process.ts'
import { files, qemuArguments } from './qemu-command.ts'
import { asObject, connectQmp, type QmpClient, type QmpEvent } from './qmp.ts'

const execFileAsync = promisify(execFile)

export type QemuDriverOptions = {
  readonly accelerator: Accelerator
  readonly version: string
  /** cgroup v2 limits; only where `prepareCgroups` found controllers */
  readonly cgroups: boolean
  /** until QEMU answers after its start; default 60 s, which only a server on its knees reaches */
  readonly startLimitMs?: number
  /** until a QEMU that is already there answers; default 30 s */
  readonly adoptLimitMs?: number
}

const binary = 'qemu-system-x86_64'
const startLimitMs = 60_000
const adoptLimitMs = 30_000
const quitLimitMs = 10_000
const killLimitMs = 10_000
/** A control socket that closes and the end of its process are seen in either order. */
const exitEventLimitMs = 200
/** How often a process that this vmhost did not start is looked at; its QMP socket closing tells sooner. */
const watchEveryMs = 1_000
/**
 * The least there is: twenty that yield still take a seventh of what two that do not get. @see sched(7), cgroup-v2 "cpu.weight"
 */
const yieldingNice = 19
const yieldingWeight = 1
/** Guests go before Postgres and the gateway when the kernel must kill somebody. */
const oomScoreAdjustment = 300

/** @returns e.g. `7.2.22`. @throws HypervisorError when QEMU is not installed */
export async function qemuVersion(): Promise<string> {
  const { stdout } = await execFileAsync(binary, ['--version']).catch((error: unknown) => {
    throw new HypervisorError(
      'hypervisor.start',
      `${binary} cannot be run: is the package qemu-system-x86 installed?`,
      {
        cause: error,
      },
    )
  })
  return /version ([0-9.]+)/.exec(stdout)?.[1] ?? 'unknown'
}

/** Lets the hypervisors' users open what Debian's udev rules let everybody open; a server without udev has neither. */
export function openDevices(): void {
  for (const path of ['/dev/net/tun', '/dev/kvm']) {
    try {
      if ((statSync(path).mode & 0o006) !== 0o006) chmodSync(path, 0o666)
    } catch {
      // No such device here; who needs it says so.
    }
  }
}

export function qemuDriver(options: QemuDriverOptions): HypervisorDriver {
  return {
    name: 'qemu',
    version: options.version,
    accelerator: options.accelerator,
    start: (spec) => start(spec, options),
    adopt: (machineId, directory) => adopt(machineId, directory, options),
    destroy,
  }
}

async function start(spec: MachineSpec, options: QemuDriverOptions): Promise<Hypervisor> {
  const uid = hypervisorUid(spec.machineId)
  // The directory is about to be emptied: a living hypervisor in it would lose its sockets.
  const [already] = await findProcesses(uid, spec.directory)
  if (already) throw new HypervisorError('hypervisor.start', `QEMU already runs in ${spec.directory}`)
  await prepareDirectory(spec.directory, uid)
  const log = openSync(join(spec.directory, files.log), 'w', 0o600)
  const vhost = openVhost()
  const failed = new AbortController()
  try {
    const stdio: ('ignore' | number)[] = ['ignore', log, log, ...(vhost === undefined ? [] : [vhost])]
    const settings = { accelerator: options.accelerator, ...(vhost === undefined ? {} : { vhostDescriptor: 3 }) }
    const child = spawn('setpriv', [...privileges(uid), binary, ...qemuArguments(spec, settings)], {
      cwd: spec.directory,
      env: { PATH: process.env.PATH ?? '/usr/bin:/bin', LC_ALL: 'C' },
      stdio,
      detached: true,
    })
    const exited = new Promise<string>((resolve) => {
      child.once('error', (error) => resolve(error.message))
      child.once('exit', (code, signal) => resolve(signal ? `ended by ${signal}` : `exit status ${code}`))
    })
    // Detached and without a reference: neither the end of this process nor its kill -9 touches it.
    child.unref()
    exited.then(() => failed.abort())
    const identity = child.pid === undefined ? undefined : await identify(child.pid)
    try {
      if (!identity) throw new HypervisorError('hypervisor.gone', await exited)
      await limit(spec, identity.pid, options)
      const running = new QemuProcess(spec.machineId, spec.directory, identity, exited)
      await running.attach(options.startLimitMs ?? startLimitMs, failed.signal)
      return running
    } catch (error) {
      // Ended by somebody else's signal, not by itself: nothing is wrong with the machine.
      const killed = identity && (await awaitExit(identity, exitEventLimitMs)) && (await exited).startsWith('ended by')
      if (identity) await end(identity)
      if (killed) throw new HypervisorError('hypervisor.gone', 'QEMU was killed while it started', { cause: error })
      const said = await lastWords(spec.directory)
      throw new HypervisorError('hypervisor.start', `QEMU did not start${said ? `: ${said}` : ''}`, { cause: error })
    }
  } finally {
    closeSync(log)
    if (vhost !== undefined) closeSync(vhost)
  }
}

async function adopt(
  machineId: number,
  directory: string,
  options: QemuDriverOptions,
): Promise<Hypervisor | undefined> {
  const [identity] = await findProcesses(hypervisorUid(machineId), directory)
  if (!identity) return undefined
  const running = new QemuProcess(machineId, directory, identity, undefined)
  await running.attach(options.adoptLimitMs ?? adoptLimitMs)
  // The vmhost before may have been killed while this one yielded: nobody else would ever take that back.
  await running.yieldToOthers(false)
  return running
}

async function destroy(machineId: number, directory: string): Promise<number> {
  const found = await findProcesses(hypervisorUid(machineId), directory)
  await Promise.all(found.map(end))
  await unconfine(groupName(machineId, directory))
  return found.length
}

async function end(identity: ProcessIdentity): Promise<void> {
  await signalProcess(identity, 'SIGKILL')
  if (!(await awaitExit(identity, killLimitMs))) {
    throw new HypervisorError('hypervisor.timeout', `Process ${identity.pid} does not end, even by SIGKILL`)
  }
}

class QemuProcess implements Hypervisor {
  readonly machineId: number
  readonly agent: { readonly socketPath: string }
  readonly consolePath: string
  readonly #directory: string
  readonly #identity: ProcessIdentity
  readonly #listeners = new Set<(event: HypervisorEvent) => void>()
  readonly #gone = Promise.withResolvers<string>()
  #qmp: QmpClient | undefined
  #watch: NodeJS.Timeout | undefined
  #released = false

  constructor(machineId: number, directory: string, identity: ProcessIdentity, exited: Promise<string> | undefined) {
    this.machineId = machineId
    this.#directory = directory
    this.#identity = identity
    this.agent = { socketPath: join(directory, files.agent) }
    this.consolePath = join(directory, `${files.consoleFifo}.out`)
    exited?.then((detail) => this.#ended(detail))
    this.#gone.promise.then((detail) => this.#emit({ type: 'exited', detail }))
  }

  get pid(): number {
    return this.#identity.pid
  }

  /** Connects to QMP; QEMU is there and answers when this returns. */
  async attach(timeoutMs: number, signal?: AbortSignal): Promise<void> {
    const qmp = await connectQmp(join(this.#directory, files.qmp), {
      timeoutMs,
      onEvent: (event) => this.#onEvent(event),
      ...(signal ? { signal } : {}),
    })
    this.#qmp = qmp
    const look = () => {
      isAlive(this.#identity).then((alive) => {
        if (!alive) this.#ended('the process is gone')
      })
    }
    qmp.closed.then(async () => {
      if (this.#released) return
      if (await awaitExit(this.#identity, 1_000)) this.#ended('the process is gone')
    })
    this.#watch = setInterval(look, watchEveryMs)
    this.#watch.unref()
  }

  async state(): Promise<GuestState> {
    const status = asObject(await this.#execute('query-status')).status
    switch (status) {
      case 'shutdown':
        return 'shutdown'
      case 'guest-panicked':
        return 'panicked'
      case 'io-error':
        return 'ioError'
      case 'running':
        return 'running'
      default:
        return 'paused'
    }
  }

  on(listener: (event: HypervisorEvent) => void): () => void {
    this.#listeners.add(listener)
    return () => {
      this.#listeners.delete(listener)
    }
  }

  async resume(): Promise<void> {
    await this.#execute('cont')
  }

  async powerButton(): Promise<void> {
    await this.#execute('system_powerdown')
  }

  async setBalloon(targetBytes: number): Promise<void> {
    const { 'base-memory': whole } = asObject(await this.#execute('query-memory-size-summary'))
    // QEMU's `balloon` takes what the guest keeps, not what it gives back.
    await this.#execute('balloon', { value: Math.max(Number(whole) - targetBytes, 2 ** 20) })
  }

  async balloon(): Promise<number> {
    const { 'base-memory': whole } = asObject(await this.#execute('query-memory-size-summary'))
    return Number(whole) - Number(asObject(await this.#execute('query-balloon')).actual)
  }

  async diskGrown(sizeBytes: number): Promise<void> {
    await this.#execute('block_resize', { 'node-name': 'root', size: sizeBytes })
  }

  async yieldToOthers(yields: boolean): Promise<void> {
    await setNice(this.pid, yields ? yieldingNice : 0)
    await setWeight(groupName(this.machineId, this.#directory), yields ? yieldingWeight : 100)
  }

  async quit(limitMs = quitLimitMs): Promise<void> {
    await this.#execute('quit', undefined, limitMs).catch(() => {})
    if (!(await awaitExit(this.#identity, limitMs))) await signalProcess(this.#identity, 'SIGKILL')
    await this.#awaitGone()
  }

  async kill(): Promise<void> {
    await signalProcess(this.#identity, 'SIGKILL')
    await this.#awaitGone()
  }

  release(): void {
    this.#released = true
    clearInterval(this.#watch)
    this.#listeners.clear()
    this.#qmp?.close()
  }

  async #awaitGone(): Promise<void> {
    if (!(await awaitExit(this.#identity, killLimitMs))) {
      throw new HypervisorError('hypervisor.timeout', `QEMU (process ${this.pid}) does not end, even by SIGKILL`)
    }
    this.#ended('ended')
    await unconfine(groupName(this.machineId, this.#directory))
  }

  async #execute(command: string, args?: object, timeoutMs?: number): Promise<unknown> {
    if (!this.#qmp) throw new HypervisorError('hypervisor.gone', 'QEMU is not connected')
    return this.#qmp.execute(command, args, timeoutMs)
  }

  #ended(detail: string): void {
    clearInterval(this.#watch)
    this.#qmp?.close()
    this.#gone.resolve(detail)
  }

  #onEvent({ event, data }: QmpEvent): void {
    const byGuest = data.guest === true
    switch (event) {
      case 'GUEST_PANICKED':
        this.#emit({ type: 'panicked' })
        return
      case 'SHUTDOWN':
        // A reset announces itself as SHUTDOWN too when it is taken for one (-no-reboot); not with reboot=reset.
        if (data.reason === 'guest-panic') return
        this.#emit({ type: 'shutdown', byGuest })
        return
      case 'RESET':
        this.#emit({ type: 'reset', byGuest })
        return
      case 'RESUME':
        this.#emit({ type: 'resumed' })
        return
      case 'BLOCK_IO_ERROR':
        if (data.action === 'stop') this.#emit({ type: 'ioError', noSpace: data.nospace === true })
        return
    }
  }

  #emit(event: HypervisorEvent): void {
    if (this.#released) return
    for (const listener of [...this.#listeners]) listener(event)
  }
}

/**
 * The user of its own, no group but the one that /dev/kvm is open to, no capability, no way to gain any.
 * @see setpriv(1)
 */
function privileges(uid: number): string[] {
  return [
    `--reuid=${uid}`,
    `--regid=${uid}`,
    '--clear-groups',
    '--no-new-privs',
    '--inh-caps=-all',
    '--ambient-caps=-all',
    '--bounding-set=-all',
    '--',
  ]
}

/**
 * Lays out what QEMU needs in the machine's directory. The directory is root's and closed to QEMU's user but for
 * `run/`: nothing that root writes to (log, console) can be replaced by a link by a QEMU that was taken over.
 */
async function prepareDirectory(directory: string, uid: number): Promise<void> {
  const run = join(directory, files.run)
  // Emptied and made anew: no leftover of an earlier run, and no trap laid by one.
  await rm(run, { recursive: true, force: true })
  await mkdir(`${run}.new`, { recursive: true, mode: 0o700 })
  await chown(`${run}.new`, uid, uid)
  await rename(`${run}.new`, run)
  for (const end of ['in', 'out']) {
    const fifo = join(directory, `${files.consoleFifo}.${end}`)
    if ((await stat(fifo).catch(() => undefined))?.isFIFO()) continue
    await execFileAsync('mkfifo', ['-m', '600', fifo])
    await lchown(fifo, uid, uid)
  }
}

/** vhost moves packets in the kernel; opened here because its device is root's alone. */
function openVhost(): number | undefined {
  try {
    return openSync('/dev/vhost-net', 'r+')
  } catch {
    return undefined
  }
}

async function limit(spec: MachineSpec, pid: number, options: QemuDriverOptions): Promise<void> {
  if (options.cgroups) await confine(groupName(spec.machineId, spec.directory), pid, spec)
  await writeFile(`/proc/${pid}/oom_score_adj`, String(oomScoreAdjustment)).catch(() => {})
}

/** Two data directories on one server may each have a machine 1. */
function groupName(machineId: number, directory: string): string {
  return `vm${machineId}-${createHash('sha256').update(directory).digest('hex').slice(0, 8)}`
}

async function lastWords(directory: string): Promise<string> {
  const text = await readFile(join(directory, files.log), 'utf8').catch(() => '')
  const lines = text.split('\n').filter((line) => line.trim() !== '' && !line.includes('warning:'))
  return lines
    .slice(-2)
    .map((line) => line.replace(/^qemu-system-x86_64: /, ''))
    .join(' ')
    .slice(0, 300)
}
