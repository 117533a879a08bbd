import { createHash } from 'node:crypto'
import { mkdir, readFile, rmdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { HypervisorError, hypervisorOverheadBytes, type MachineSize } from './driver.ts'

const root = '/sys/fs/cgroup'
const home = join(root, 'berth')
const wanted = ['cpu', 'memory', 'pids'] as const
/** vCPU threads, up to 64 I/O workers, the main loop; a hypervisor never starts processes. */
const threadsMost = 512
const periodUs = 100_000
const killLimitMs = 10_000
const lookAgainMs = 20

/**
 * Makes the parent of all machines' groups.
 * @returns undefined when limits can be set, else why not, in words
 * @see https://docs.kernel.org/admin-guide/cgroup-v2.html
 */
export async function prepareCgroups(): Promise<string | undefined> {
  const controllers = await readFile(join(root, 'cgroup.controllers'), 'utf8').catch(() => undefined)
  if (controllers === undefined) return `${root} is not a cgroup v2 hierarchy`
  const have = new Set(controllers.trim().split(' '))
  const missing = wanted.filter((name) => !have.has(name))
  if (missing.length > 0) return `cgroup v2 has no ${missing.join(', ')} controller here`
  try {
    const enable = wanted.map((name) => `+${name}`).join(' ')
    await writeFile(join(root, 'cgroup.subtree_control'), enable)
    await mkdir(home, { recursive: true })
    await writeFile(join(home, 'cgroup.subtree_control'), enable)
    return undefined
  } catch (error) {
    return `cgroup v2 cannot be written: ${(error as Error).message}`
  }
}

/** Two data directories on one server may each have a machine 1. */
export function groupName(machineId: number, directory: string): string {
  return `vm${machineId}-${createHash('sha256').update(directory).digest('hex').slice(0, 8)}`
}

/** Puts a process into a group of its own with these limits. Call only where `prepareCgroups` said yes. */
export async function confine(name: string, pid: number, limits: MachineSize): Promise<void> {
  const group = join(home, name)
  await mkdir(group, { recursive: true })
  await setLimits(group, limits)
  await writeFile(join(group, 'pids.max'), String(threadsMost))
  await writeFile(join(group, 'cgroup.procs'), String(pid))
}

/** Other limits for a process that runs. Nothing happens without a group. */
export async function widen(name: string, limits: MachineSize): Promise<void> {
  await setLimits(join(home, name), limits).catch((error: unknown) => {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
  })
}

async function setLimits(group: string, { cpus, memoryBytes }: MachineSize): Promise<void> {
  await writeFile(join(group, 'memory.max'), String(memoryBytes + hypervisorOverheadBytes))
  await writeFile(join(group, 'cpu.max'), `${cpus * periodUs} ${periodUs}`)
}

/** Share of the processors when there are not enough for all; 100 is everybody's. Nothing happens without a group. */
export async function setWeight(name: string, weight: number): Promise<void> {
  await writeFile(join(home, name, 'cpu.weight'), String(weight)).catch(() => {})
}

/**
 * Ends by SIGKILL all that is in a group, which nothing in it can leave, and returns when it is gone. Nothing happens
 * without a group, or on a kernel before 5.14.
 * @param parent of the machines' groups
 * @returns pids of what was in it
 * @throws HypervisorError `hypervisor.timeout`
 * @see https://docs.kernel.org/admin-guide/cgroup-v2.html "cgroup.kill"
 */
export async function killGroup(name: string, parent = home): Promise<number[]> {
  const group = join(parent, name)
  const text = await readFile(join(group, 'cgroup.procs'), 'utf8').catch(() => '')
  const pids = text.split('\n').filter(Boolean).map(Number)
  try {
    await writeFile(join(group, 'cgroup.kill'), '1', { flag: 'r+' })
  } catch {
    return []
  }
  for (const deadline = performance.now() + killLimitMs; await isPopulated(group); await sleep(lookAgainMs)) {
    if (performance.now() > deadline)
      throw new HypervisorError('hypervisor.timeout', `What is in ${group} does not end, even by SIGKILL`)
  }
  return pids
}

async function isPopulated(group: string): Promise<boolean> {
  const events = await readFile(join(group, 'cgroup.events'), 'utf8').catch(() => '')
  return /^populated 1$/m.test(events)
}

/** Removes the group of a process that has ended; nothing happens when there is none. */
export async function unconfine(name: string, parent = home): Promise<void> {
  await rmdir(join(parent, name)).catch(() => {})
}
