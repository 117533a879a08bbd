import { constants } from 'node:fs'
import { access } from 'node:fs/promises'
import type { DoctorFinding } from '../migrations/schema.ts'
import type { HypervisorChoice } from './hypervisor/choose.ts'
import { describeMemory } from './memory/describe.ts'
import type { Figures } from './memory/keeper.ts'
import type { LedgerTroubles } from './meter/meter.ts'
import { parseCidr } from './network/address.ts'
import { findClosed, findOutwards } from './network/forwarding.ts'
import { type Kernel, readKernel } from './network/kernel.ts'
import { describeResolvers, type ResolverSettings } from './network/resolvers.ts'
import { spaceProblem } from './storage/space.ts'
import type { Store } from './storage/store.ts'

export type DoctorContext = {
  readonly store: Store
  readonly hypervisor: Pick<HypervisorChoice, 'accelerator' | 'reason' | 'proved' | 'concerns'>
  readonly memory: Figures
  readonly unknownDisks: readonly number[]
  readonly ledger: LedgerTroubles
  /** why hypervisors have no limits; undefined: they have */
  readonly cgroupProblem: string | undefined
  readonly settings: ResolverSettings
}

const GiB = 2 ** 30

/** Looks at the server and says what is not as it should be, and what to do about it. Reads only. */
export async function examine(context: DoctorContext): Promise<DoctorFinding[]> {
  const kernel = await readKernel()
  return [
    kvm(context.hypervisor),
    ...context.hypervisor.concerns.map(({ message, remedy }) => bad('hypervisor', message, remedy)),
    reflink(context.store),
    await space(context.store),
    describeMemory(context.memory),
    cgroups(context.cgroupProblem),
    await forwarding(context.settings.allow, kernel),
    resolvers(context.settings, kernel),
    await artifacts(context.store),
    await tun(),
    disks(context.unknownDisks, context.store),
    ledger(context.ledger),
  ]
}

function kvm({ accelerator, reason, proved }: DoctorContext['hypervisor']): DoctorFinding {
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

function cgroups(problem: string | undefined): DoctorFinding {
  if (problem === undefined) return good('cgroup', "Machines' hypervisors have limits of memory, CPU and threads")
  const remedy = 'Boot with systemd.unified_cgroup_hierarchy=1, or on a Debian 11 or newer'
  return bad('cgroup', `Machines' hypervisors have no limits of their own: ${problem}`, remedy)
}

/** By device, as Berth switches it on: the kernel's one switch for all (`ip_forward`) may be off, and usually is. */
export async function forwarding(allow: readonly string[], kernel: Kernel): Promise<DoctorFinding> {
  const outwards = findOutwards(allow.map(parseCidr), kernel)
  if (outwards.length === 0) {
    const remedy = 'Give it one: ip route add default via ADDRESS-OF-ITS-ROUTER'
    return bad('forwarding', 'This server has no default route: machines have no internet', remedy)
  }
  const closed = await findClosed(outwards)
  if (closed.length === 0) return good('forwarding', `Machines' packets are forwarded by ${outwards.join(', ')}`)
  const switches = closed.map((device) => `net.ipv4.conf.${device}.forwarding=1`).join(' ')
  return bad(
    'forwarding',
    `${closed.join(', ')} does not forward packets: machines do not get out there`,
    `sysctl -w ${switches}. Berth does this by itself every minute: something else switches it off, such as net.ipv4.ip_forward=0 in /etc/sysctl.d`,
  )
}

function resolvers(settings: ResolverSettings, kernel: Kernel): DoctorFinding {
  const problems = describeResolvers(settings, kernel)
  if (problems.length === 0) return good('resolvers', `Machines may ask ${settings.resolvers.join(', ')} for names`)
  return bad('resolvers', problems.join('. '), 'Set it in berth.env and start Berth again')
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

function disks(unknown: readonly number[], { volume }: Store): DoctorFinding {
  if (unknown.length === 0) return good('disks', 'Every disk in the store belongs to a machine')
  const list = unknown.slice(0, 10).join(', ')
  const remedy =
    'Restore the newer database; or move the folders elsewhere, or remove them when nothing in them is wanted, and start again what failed because of them'
  return bad(
    'disks',
    `The database does not know the machines of these folders in ${volume.path}/machines: ${list}`,
    remedy,
  )
}

/** What machines use is in the ledger, or is not going to be. */
export function ledger({ away, aside }: LedgerTroubles): DoctorFinding {
  if (away) {
    const message = `Nothing that machines of this server use is in the ledger since ${away.since.toISOString()}: ${away.why}`
    return bad('ledger', message, 'It waits, and is sent when this is mended or the upgrade of the database has ended')
  }
  if (aside) {
    const remedy = 'Each line says what it is and why; when it is dealt with, move the file elsewhere'
    return bad('ledger', `The ledger has not taken some of what machines have used, which is in ${aside}`, remedy)
  }
  return good('ledger', 'What machines use is in the ledger')
}

function good(check: string, message: string): DoctorFinding {
  return { check, ok: true, message }
}

function bad(check: string, message: string, remedy: string): DoctorFinding {
  return { check, ok: false, message, remedy }
}
