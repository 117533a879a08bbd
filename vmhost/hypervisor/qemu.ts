import { execFile, spawn } from 'node:child_process'
import { closeSync, openSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { confine, groupName } from './cgroup.ts'
import { destroy, prepareDirectory } from './directory.ts'
import {
  type Accelerator,
  type Hypervisor,
  type HypervisorDriver,
  HypervisorError,
  hypervisorUid,
  type MachineSpec,
} from './driver.ts'
import { kvmGroups, privileges } from './privileges.ts'
import { kvmProblem } from './probe.ts'
import { awaitExit, endProcess, findProcesses, identify, yieldToOom } from './process.ts'
import { noProcessors, type Processors } from './processor.ts'
import { files, type QemuSettings, qemuArguments } from './qemu-command.ts'
import { machineTypesOf } from './qemu-machine-types.ts'
import { QemuProcess } from './qemu-process.ts'
import { isUnreadable, machineType, openState, type SavedState, stateVersion } from './qemu-state.ts'
import { readSavedBy, saverInWords, saverIsAway } from './saved-by.ts'

const execFileAsync = promisify(execFile)

export type QemuDriverOptions = {
  readonly accelerator: Accelerator
  readonly version: string
  /** cgroup v2 limits; only where `prepareCgroups` found controllers */
  readonly cgroups: boolean
  /** those that guests were saved under here; without it the one of now alone is known */
  readonly processors?: Pick<Processors, 'obstacle'>
  /** until QEMU answers after its start; default 60 s, which only a server on its knees reaches */
  readonly startLimitMs?: number
  /** until a QEMU that is already there answers; default 30 s */
  readonly adoptLimitMs?: number
}

const binary = 'qemu-system-x86_64'
const versionLimitMs = 10_000
const startLimitMs = 60_000
const adoptLimitMs = 30_000
/** What the slowest disk reads in a millisecond: a saved guest has as much more time as it is large. */
const restoredPerMsBytes = 30_000
/** A control socket that closes and the end of its process are seen in either order. */
const exitEventLimitMs = 200

/** @returns e.g. `7.2.22`. @throws HypervisorError when QEMU is not installed */
export async function qemuVersion(): Promise<string> {
  const { stdout } = await execFileAsync(binary, ['--version'], {
    timeout: versionLimitMs,
    killSignal: 'SIGKILL',
  }).catch((error: unknown) => {
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

export function qemuDriver(options: QemuDriverOptions): HypervisorDriver {
  const hasType = machineTypesOf(binary)
  return {
    name: 'qemu',
    version: options.version,
    accelerator: options.accelerator,
    stateVersion: stateVersion(machineType(options.version), options.accelerator),
    obstacle: (state) => obstacle(state, options, hasType),
    start: (spec) => start(spec, options),
    adopt: (machineId, directory, _, signal) => adopt(machineId, directory, options, signal),
    destroy,
  }
}

/**
 * A guest goes on as the kind of machine that it was, which the releases of QEMU that follow have too, and under the
 * accelerator that it had: every QEMU can emulate, and an emulated processor is the same on every server.
 */
async function obstacle(
  state: string,
  { accelerator, processors }: QemuDriverOptions,
  hasType: (type: string) => Promise<boolean>,
): Promise<string | undefined> {
  const saved = readSavedBy(state)
  if (saved?.hypervisor !== 'qemu') return saverIsAway(state)
  const words = `Its memory was saved by ${saverInWords(state)}`
  if (saved.accelerator === 'kvm') {
    if (accelerator !== 'kvm' || kvmProblem() !== undefined) return `${words}, which its server does not use now`
    const missing = await (processors ?? noProcessors).obstacle(saved.processor ?? '')
    if (missing !== undefined) return `${words}, ${missing}`
  }
  try {
    if (await hasType(saved.version)) return undefined
  } catch (error) {
    if (!(error instanceof HypervisorError)) throw error
    return `${words}, and the QEMU on its server does not work now`
  }
  return `${words}, which the QEMU on its server now cannot read`
}

/** What a guest goes on as; one that boots is of the newest kind. */
function machineOf(
  { restoreFrom, stateVersion: state }: MachineSpec,
  options: QemuDriverOptions,
): Pick<QemuSettings, 'machineType' | 'accelerator'> {
  const saved = restoreFrom === undefined || state === undefined ? undefined : readSavedBy(state)
  if (!saved) return { machineType: machineType(options.version), accelerator: options.accelerator }
  return { machineType: saved.version, accelerator: saved.accelerator }
}

async function start(spec: MachineSpec, options: QemuDriverOptions): Promise<Hypervisor> {
  const uid = hypervisorUid(spec.machineId)
  const machine = machineOf(spec, options)
  const groups = groupsFor(machine.accelerator)
  // The directory is about to be emptied: a living hypervisor in it would lose its sockets.
  const [already] = await findProcesses(uid, spec.directory)
  if (already) throw new HypervisorError('hypervisor.start', `QEMU already runs in ${spec.directory}`)
  const consoles = ['in', 'out'].map((end) => `${files.consoleFifo}.${end}`)
  const fifos = spec.restoreFrom === undefined ? consoles : [...consoles, files.stateFifo]
  await prepareDirectory(spec.directory, uid, fifos, uid)
  const log = openSync(join(spec.directory, files.log), 'w', 0o600)
  const vhost = openVhost()
  const failed = new AbortController()
  let saved: SavedState | undefined
  try {
    saved =
      spec.restoreFrom === undefined ? undefined : openState(spec.restoreFrom, join(spec.directory, files.stateFifo))
    const stdio: ('ignore' | number)[] = ['ignore', log, log]
    const pass = (one: number) => stdio.push(one) - 1
    const settings = {
      ...machine,
      ...(vhost === undefined ? {} : { vhostDescriptor: pass(vhost) }),
      ...(saved ? { stateDescriptor: pass(saved.descriptor) } : {}),
    }
    const limitMs = (options.startLimitMs ?? startLimitMs) + (saved ? saved.sizeBytes / restoredPerMsBytes : 0)
    const child = spawn('setpriv', [...privileges(uid, groups), binary, ...qemuArguments(spec, settings)], {
      cwd: spec.directory,
      env: { PATH: process.env.PATH ?? '/usr/bin:/bin', LC_ALL: 'C' },
      stdio,
      detached: true,
    })
    const exited = new Promise<string>((resolve) => {
      child.once('error', (error) => resolve(error.message))
      child.once('exit', (code, signal) => resolve(signal ? `ended by ${signal}` : `exit status ${code}`))
    })
    // Or whoever unpacks would go on for a QEMU that has ended.
    saved?.close()
    // Detached and without a reference: neither the end of this process nor its kill -9 touches it.
    child.unref()
    exited.then(() => failed.abort())
    const identity = child.pid === undefined ? undefined : await identify(child.pid)
    try {
      if (!identity) throw new HypervisorError('hypervisor.gone', await exited)
      await limit(spec, identity.pid, options)
      const running = new QemuProcess(spec.machineId, spec.directory, identity, exited)
      await running.attach(limitMs, failed.signal)
      if (saved) await Promise.race([running.restored(limitMs), saved.failed])
      return running
    } catch (error) {
      // Ended by somebody else's signal, not by itself: nothing is wrong with the machine.
      const killed = identity && (await awaitExit(identity, exitEventLimitMs)) && (await exited).startsWith('ended by')
      if (identity) await endProcess(identity)
      if (killed) throw new HypervisorError('hypervisor.gone', 'QEMU was killed while it started', { cause: error })
      const said = await lastWords(spec.directory)
      const isRefusal = spec.restoreFrom !== undefined && saved?.isCutOff === false
      const isLost = isRefusal && (await isUnreadable(spec.restoreFrom, said))
      const code = isLost ? 'hypervisor.unreadable' : 'hypervisor.start'
      throw new HypervisorError(code, `QEMU did not start${said ? `: ${said}` : ''}`, { cause: error })
    }
  } finally {
    closeSync(log)
    if (vhost !== undefined) closeSync(vhost)
    saved?.close()
  }
}

async function adopt(
  machineId: number,
  directory: string,
  options: QemuDriverOptions,
  signal: AbortSignal | undefined,
): Promise<Hypervisor | undefined> {
  const [identity] = await findProcesses(hypervisorUid(machineId), directory)
  if (!identity) return undefined
  const running = new QemuProcess(machineId, directory, identity, undefined)
  try {
    await running.attach(options.adoptLimitMs ?? adoptLimitMs, signal)
    await running.endSaving()
    // The vmhost before may have been killed while this one yielded: nobody else would ever take that back.
    await running.yieldToOthers(false)
    return running
  } catch (error) {
    // Or the next one to try would wait for this connection's end.
    running.release()
    throw error
  }
}

function groupsFor(accelerator: Accelerator): readonly number[] {
  if (accelerator !== 'kvm') return []
  const found = kvmGroups()
  if ('problem' in found) throw new HypervisorError('hypervisor.start', found.problem)
  return found.groups
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
  await yieldToOom(pid)
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
