import { constants } from 'node:fs'
import { access, readFile } from 'node:fs/promises'
import { freemem, totalmem } from 'node:os'
import type { DoctorFinding } from '../migrations/schema.ts'
import { prepareCgroups } from './hypervisor/cgroup.ts'
import type { AcceleratorChoice } from './hypervisor/probe.ts'
import { spaceProblem } from './storage/space.ts'
import type { Store } from './storage/store.ts'

export type DoctorContext = {
  readonly store: Store
  readonly accelerator: AcceleratorChoice
  readonly unknownDisks: readonly number[]
}

const GiB = 2 ** 30
const memoryLeastBytes = 0.5 * GiB

/** Looks at the server and says what is not as it should be, and what to do about it. Reads only. */
export async function examine(context: DoctorContext): Promise<DoctorFinding[]> {
  return [
    kvm(context.accelerator),
    reflink(context.store),
    await space(context.store),
    memory(),
    await cgroups(),
    await forwarding(),
    await artifacts(context.store),
    await tun(),
    disks(context.unknownDisks),
  ]
}

function kvm({ accelerator, reason, proved }: AcceleratorChoice): DoctorFinding {
  if (accelerator === 'kvm' && proved) return good('kvm', `Machines run under KVM: ${reason}`)
  const remedy =
    'Use a server with hardware virtualisation, switch it on in the firmware, and load kvm_intel or kvm_amd'
  const message = accelerator === 'kvm' ? `KVM is used unproved: ${reason}` : `Machines are emulated: ${reason}`
  return bad('kvm', message, remedy)
}

function reflink(store: Store): DoctorFinding {
  const { kind, path, backingFile } = store.volume
  if (kind === 'native') return good('reflink', `Disks share their blocks in ${path}`)
  return good('reflink', `Disks share their blocks in an XFS volume, ${backingFile}, mounted at ${path}`)
}

async function space(store: Store): Promise<DoctorFinding> {
  const seen = await store.space()
  const problem = spaceProblem(seen)
  if (problem === undefined)
    return good('space', `${(seen.freeBytes / GiB).toFixed(1)} GiB are free for machines' disks`)
  const remedy = 'Remove machines, empty the trash, or give the server more disk; the volume grows by itself'
  return bad('space', problem, remedy)
}

function memory(): DoctorFinding {
  const free = `${(freemem() / GiB).toFixed(1)} of ${(totalmem() / GiB).toFixed(1)} GiB of memory are free`
  if (freemem() >= memoryLeastBytes) return good('memory', free)
  return bad('memory', free, 'Stop machines or give the server more memory')
}

async function cgroups(): Promise<DoctorFinding> {
  const problem = await prepareCgroups()
  if (problem === undefined) return good('cgroup', "Machines' hypervisors have limits of memory, CPU and threads")
  const remedy = 'Boot with systemd.unified_cgroup_hierarchy=1, or on a Debian 11 or newer'
  return bad('cgroup', `Machines' hypervisors have no limits of their own: ${problem}`, remedy)
}

async function forwarding(): Promise<DoctorFinding> {
  const value = await readFile('/proc/sys/net/ipv4/ip_forward', 'utf8').catch(() => '')
  if (value.trim() === '1') return good('forwarding', 'The kernel forwards packets')
  return bad(
    'forwarding',
    'The kernel does not forward packets: machines have no internet',
    'sysctl -w net.ipv4.ip_forward=1',
  )
}

async function artifacts(store: Store): Promise<DoctorFinding> {
  const images = await store.images()
  const boot = await store.currentBoot().catch(() => undefined)
  if (images.length > 0 && boot)
    return good('artifacts', `Kernel and images are there: ${images.map(({ name }) => name).join(', ')}`)
  return bad(
    'artifacts',
    boot ? 'There is no image to make machines from' : 'There is no guest kernel',
    'npm run setup',
  )
}

async function tun(): Promise<DoctorFinding> {
  const there = await access('/dev/net/tun', constants.R_OK | constants.W_OK).then(
    () => true,
    () => false,
  )
  return there
    ? good('tun', 'Machines can have network cards')
    : bad('tun', '/dev/net/tun is missing: machines cannot have network cards', 'modprobe tun')
}

function disks(unknown: readonly number[]): DoctorFinding {
  if (unknown.length === 0) return good('disks', 'Every disk in the store belongs to a machine')
  const list = unknown.slice(0, 10).join(', ')
  const remedy = 'Restore the newer database, or remove the folders by hand when nothing in them is wanted'
  return bad('disks', `The database does not know the machines of these folders in the store: ${list}`, remedy)
}

function good(check: string, message: string): DoctorFinding {
  return { check, ok: true, message }
}

function bad(check: string, message: string, remedy: string): DoctorFinding {
  return { check, ok: false, message, remedy }
}
