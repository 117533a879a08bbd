import { spawn } from 'node:child_process'
import { closeSync, constants, openSync } from 'node:fs'
import { readFile, rm } from 'node:fs/promises'
import { dirname, join, relative } from 'node:path'
import { confine, groupName } from './cgroup.ts'
import { files } from './cloud-hypervisor-config.ts'
import { CloudHypervisorProcess, type GuestNote, lastLine } from './cloud-hypervisor-process.ts'
import type { CloudHypervisorPrograms } from './cloud-hypervisor-programs.ts'
import { busyLimitMs, forgetUnderWay, savedRelease, stateVersion } from './cloud-hypervisor-state.ts'
import { abilitiesOf } from './cloud-hypervisor-version.ts'
import { destroy, prepareDirectory } from './directory.ts'
import { type Hypervisor, type HypervisorDriver, HypervisorError, hypervisorUid, type MachineSpec } from './driver.ts'
import { kvmGroups, privileges } from './privileges.ts'
import { awaitExit, endProcess, findProcesses, identify, yieldToOom } from './process.ts'
import { noProcessors, type Processors } from './processor.ts'
import { readSavedBy, saverInWords, saverIsAway } from './saved-by.ts'

export type CloudHypervisorDriverOptions = {
  /** absolute path of the program */
  readonly binary: string
  /** the release, e.g. `v53.0` */
  readonly version: string
  /** the kernel has Landlock of Linux 6.2 or newer, and it was seen to work */
  readonly landlock: boolean
  /** where programs of other releases are, for guests that those have saved */
  readonly programs?: Pick<CloudHypervisorPrograms, 'find'>
  /** cgroup v2 limits; only where `prepareCgroups` found controllers */
  readonly cgroups: boolean
  /** false: KVM was found not to work, or is not wanted, and nothing is restored under it; default true */
  readonly isKvmUsed?: boolean
  /** those that guests were saved under here; without it the one of now alone is known */
  readonly processors?: Pick<Processors, 'obstacle'>
  /** tests: another file than /dev/kvm */
  readonly kvmDevice?: string
  /** until it answers after its start; default 60 s, which only a server on its knees reaches */
  readonly startLimitMs?: number
  /** until one that is already there, and is not busy with its guest's memory, answers; default 30 s */
  readonly adoptLimitMs?: number
}

const startLimitMs = 60_000
const adoptLimitMs = 30_000
/** Its control socket goes silent and its end is seen in either order. */
const exitEventLimitMs = 200

export function cloudHypervisorDriver(options: CloudHypervisorDriverOptions): HypervisorDriver {
  return {
    name: 'cloud-hypervisor',
    version: options.version.replace(/^v/, ''),
    accelerator: 'kvm',
    stateVersion: stateVersion(options.version),
    obstacle: (state) => obstacle(state, options),
    start: (spec) => start(spec, options),
    adopt: (machineId, directory, memoryBytes, signal) => adopt(machineId, directory, memoryBytes, options, signal),
    destroy,
  }
}

async function obstacle(state: string, options: CloudHypervisorDriverOptions): Promise<string | undefined> {
  const saved = readSavedBy(state)
  if (saved?.hypervisor !== 'cloud-hypervisor') return saverIsAway(state)
  if ((await programOf(saved.version, options)) === undefined) return saverIsAway(state)
  const words = `Its memory was saved by ${saverInWords(state)}`
  const isKvmUsed = options.isKvmUsed ?? true
  if (!isKvmUsed || 'problem' in kvmGroups(options.kvmDevice))
    return `${words} under KVM, which its server does not use now`
  const missing = await (options.processors ?? noProcessors).obstacle(saved.processor ?? '')
  return missing === undefined ? undefined : `${words}, ${missing}`
}

async function start(spec: MachineSpec, options: CloudHypervisorDriverOptions): Promise<Hypervisor> {
  const uid = hypervisorUid(spec.machineId)
  const access = kvmGroups(options.kvmDevice)
  if ('problem' in access) throw new HypervisorError('hypervisor.start', access.problem)
  // The directory is about to be emptied: a living hypervisor in it would lose its sockets.
  const [already] = await findProcesses(uid, spec.directory)
  if (already) throw new HypervisorError('hypervisor.start', `A hypervisor already runs in ${spec.directory}`)
  const version = spec.restoreFrom === undefined ? options.version : await savedRelease(spec.restoreFrom)
  const program = await programOf(version, options)
  if (program === undefined) {
    throw new HypervisorError('hypervisor.start', `Cloud Hypervisor ${version}, which saved the guest, is not here`)
  }
  await prepareDirectory(spec.directory, uid, [files.console, files.events, files.log], 0)
  await rm(join(spec.directory, files.note), { force: true })
  const failed = new AbortController()
  const { child, exited } = launch({ directory: spec.directory, uid, groups: access.groups, program, version })
  exited.then(() => failed.abort())
  const identity = child.pid === undefined ? undefined : await identify(child.pid)
  if (!identity) throw new HypervisorError('hypervisor.start', `Cloud Hypervisor did not start: ${await exited}`)
  const running = new CloudHypervisorProcess(spec.machineId, spec.directory, identity, exited)
  try {
    if (options.cgroups) await confine(groupName(spec.machineId, spec.directory), identity.pid, spec)
    await yieldToOom(identity.pid)
    await running.attach(options.startLimitMs ?? startLimitMs, undefined, failed.signal)
    await running.begin(spec, options.landlock)
    return running
  } catch (error) {
    // Ended by somebody else's signal, not by itself: nothing is wrong with the machine.
    const killed = (await awaitExit(identity, exitEventLimitMs)) && (await exited).startsWith('ended by')
    await endProcess(identity)
    const said = lastLine(running.lastWords)
    running.release()
    if (killed) {
      throw new HypervisorError('hypervisor.gone', 'Cloud Hypervisor was killed while it started', { cause: error })
    }
    const refused = error instanceof HypervisorError && error.code !== 'hypervisor.gone' ? error.message : said
    const words = `Cloud Hypervisor did not start${refused ? `: ${refused}` : ''}`
    const isProved = error instanceof HypervisorError && error.code === 'hypervisor.unreadable'
    throw new HypervisorError(isProved ? 'hypervisor.unreadable' : 'hypervisor.start', words, { cause: error })
  }
}

/**
 * The descriptors with which it writes are made here: a FIFO that was opened so as never to wait stays so for all who
 * have that very description. A child's first three are made to wait again when it is started, so a shell moves these.
 */
const redirect = 'exec "$0" "$@" >&4 2>&5 4>&- 5>&-'

type Launch = {
  readonly directory: string
  readonly uid: number
  readonly groups: readonly number[]
  readonly program: string
  readonly version: string
}

function launch({ directory, uid, groups, program, version }: Launch) {
  const { dropsConsole, outlivesGuest } = abilitiesOf(version)
  const descriptors: number[] = []
  try {
    const pass = (name: string, drops: boolean) => {
      // For reading too: what is in a FIFO, and the right to write into it, outlive the vmhost.
      const flags = constants.O_RDWR | (drops ? constants.O_NONBLOCK : 0)
      const descriptor = openSync(join(directory, name), flags)
      descriptors.push(descriptor)
      return descriptor
    }
    const events = pass(files.events, true)
    const console = pass(files.console, dropsConsole)
    const log = pass(files.log, true)
    // A description of its own, for what is said before the other is in its place.
    const firstWords = pass(files.log, true)
    const parameters = ['--api-socket', `path=${files.api}`, '--event-monitor', 'fd=3']
    if (outlivesGuest) parameters.push('--no-shutdown')
    const path = programPath(directory, program)
    const command = [...privileges(uid, groups), 'sh', '-c', redirect, path, ...parameters]
    const child = spawn('setpriv', command, {
      cwd: directory,
      env: { PATH: process.env.PATH ?? '/usr/bin:/bin', LC_ALL: 'C' },
      stdio: ['ignore', 'ignore', firstWords, events, console, log],
      detached: true,
    })
    const exited = new Promise<string>((resolve) => {
      child.once('error', (error) => resolve(error.message))
      child.once('exit', (code, signal) => resolve(signal ? `ended by ${signal}` : `exit status ${code}`))
    })
    // Detached and without a reference: neither the end of this process nor its kill -9 touches it.
    child.unref()
    return { child, exited }
  } finally {
    for (const descriptor of descriptors) closeSync(descriptor)
  }
}

async function programOf(version: string, options: CloudHypervisorDriverOptions): Promise<string | undefined> {
  return version === options.version ? options.binary : options.programs?.find(version)
}

/** A program in the store is named from the machine's directory: the way from the root may be closed to its user. */
function programPath(directory: string, binary: string): string {
  const store = dirname(dirname(directory))
  return binary.startsWith(`${store}/`) ? relative(directory, binary) : binary
}

async function adopt(
  machineId: number,
  directory: string,
  memoryBytes: number,
  options: CloudHypervisorDriverOptions,
  signal: AbortSignal | undefined,
): Promise<Hypervisor | undefined> {
  const [identity] = await findProcesses(hypervisorUid(machineId), directory)
  if (!identity) return undefined
  const note = await readNote(directory)
  const running = new CloudHypervisorProcess(machineId, directory, identity, undefined)
  try {
    const busyMs = await busyLimitMs(directory, memoryBytes)
    await running.attach(busyMs ?? options.adoptLimitMs ?? adoptLimitMs, note, signal)
    await forgetUnderWay(directory, hypervisorUid(machineId))
    // The vmhost before was killed between making the guest and starting it.
    if (note === undefined && (await running.state()) === 'shutdown') {
      await running.kill()
      return undefined
    }
    // Or while this one yielded: nobody else would ever take that back.
    await running.yieldToOthers(false)
    return running
  } catch (error) {
    running.release()
    throw error
  }
}

async function readNote(directory: string): Promise<GuestNote | undefined> {
  const text = await readFile(join(directory, files.note), 'utf8').catch(() => '')
  return text === 'started' || text === 'panicked' ? text : undefined
}
