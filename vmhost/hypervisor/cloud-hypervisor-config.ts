import { relative } from 'node:path'
import { z } from 'zod'
import { HypervisorError, type MachineSpec } from './driver.ts'

/** Names within a machine's directory. What Cloud Hypervisor makes itself lies in `run/`, the only folder that its user may write. */
export const files = {
  run: 'run',
  api: 'run/api.sock',
  agent: 'run/agent.sock',
  /** a guest on its way to the directory that it is saved to, and from one that it is restored from */
  save: 'run/save',
  restore: 'run/restore',
  /** FIFOs that it writes into and this vmhost reads from, so that no guest can fill the disk */
  console: 'console.out',
  events: 'events',
  log: 'hypervisor.log',
  /** what a vmhost knew of the guest that Cloud Hypervisor itself forgets: see `GuestNote` */
  note: 'guest',
} as const

/** A guest as Cloud Hypervisor saves it, and beside it, in `releaseFile`, which release that was. */
export const savedFiles = { config: 'config.json', state: 'state.json', memory: 'memory-ranges' } as const
export const releaseFile = 'release'

/**
 * Each process has one guest and a vsock of its own, so all guests may have the same context id; 0 to 2 are taken.
 * @see vsock(7)
 */
const guestContextId = 3

/**
 * What Cloud Hypervisor is told of a machine. Paths are relative to the machine's directory, its working directory:
 * its user need not be able to walk down to it from the root, so the data directory may lie in /root.
 * @param landlock where the kernel has it (6.2): the process then reaches the paths named here and no others
 * @see https://github.com/cloud-hypervisor/cloud-hypervisor/blob/main/vmm/src/api/openapi/cloud-hypervisor.yaml
 */
export function vmConfig(spec: MachineSpec, landlock: boolean): object {
  const inside = (path: string) => relative(spec.directory, path)
  const room = wholeModules((spec.most?.memoryBytes ?? 0) - spec.memoryBytes)
  return {
    cpus: { boot_vcpus: spec.cpus, max_vcpus: Math.max(spec.cpus, spec.most?.cpus ?? 0) },
    memory: {
      size: spec.memoryBytes,
      // From a memfd: only such memory is saved with the holes that balloon and free page reporting have made.
      shared: true,
      // Addresses alone, which cost nothing; by ACPI, for which the guest's kernel needs no driver.
      ...(room > 0 ? { hotplug_method: 'Acpi', hotplug_size: room } : {}),
    },
    payload: payload(spec),
    disks: [rootDisk(inside(spec.disk)), ...(spec.tools ? [toolsDisk(inside(spec.tools))] : [])],
    ...(spec.network ? { net: [{ id: 'net', num_queues: 2, ...spec.network }] } : {}),
    rng: { src: randomness },
    balloon: { size: 0, deflate_on_oom: true, free_page_reporting: true },
    vsock: { id: 'vsock', cid: guestContextId, socket: files.agent },
    pvpanic: true,
    ...consoles,
    ...confinement(spec, landlock),
  }
}

/**
 * A saved guest's own configuration, made the machine's of this specification. What it was saved with and stays as it
 * is: the processors, the memory and the devices, by whose names its state is found again.
 * @param text config.json as Cloud Hypervisor wrote it. A guest may have taken that over, so nothing of it is passed on
 *   that `vmConfig` would not have said: every path in it is one that Landlock lets the next process reach
 * @throws HypervisorError `hypervisor.unreadable` when it is none, another when it is of another machine's size
 */
export function restoredConfig(text: string, spec: MachineSpec, landlock: boolean): object {
  const saved = parseSaved(text)
  if (saved.cpus.boot_vcpus !== spec.cpus || saved.memory.size !== spec.memoryBytes) {
    const had = `${saved.cpus.boot_vcpus} processors and ${saved.memory.size / 2 ** 20} MiB`
    throw new HypervisorError('hypervisor.start', `The saved guest has ${had}, which the machine has not`)
  }
  const inside = (path: string) => relative(spec.directory, path)
  const paths = new Map([['root', inside(spec.disk)], ...(spec.tools ? [['tools', inside(spec.tools)] as const] : [])])
  const disks = saved.disks.map(({ id, ...disk }) => {
    const path = paths.get(id)
    if (path === undefined) throw new HypervisorError('hypervisor.start', `The saved guest has a disk called ${id}`)
    return { ...disk, id, path, image_type: 'Raw' }
  })
  if (disks.length !== paths.size || (saved.net ?? []).length !== (spec.network ? 1 : 0)) {
    throw new HypervisorError('hypervisor.start', 'The saved guest has other devices than the machine')
  }
  // The tap's own address as it was then: it would be set again, which only root may.
  const net = saved.net?.map(({ host_mac: _, ...card }) => ({ ...card, ...spec.network }))
  return {
    cpus: saved.cpus,
    memory: saved.memory,
    payload: payload(spec),
    disks,
    ...(net ? { net } : {}),
    rng: { ...saved.rng, src: randomness },
    balloon: saved.balloon,
    vsock: { ...saved.vsock, socket: files.agent },
    pvpanic: true,
    ...consoles,
    ...confinement(spec, landlock),
  }
}

/**
 * Memory is added to a guest that runs in modules of this size, as the blocks are in which Linux takes it.
 * @see https://github.com/cloud-hypervisor/cloud-hypervisor/blob/main/docs/hotplug.md
 */
const moduleBytes = 128 * 2 ** 20

/** @returns as much of it as is whole modules */
export function wholeModules(bytes: number): number {
  return Math.max(0, bytes - (bytes % moduleBytes))
}

function payload(spec: MachineSpec): object {
  return {
    kernel: relative(spec.directory, spec.kernel),
    ...(spec.initrd ? { initramfs: relative(spec.directory, spec.initrd) } : {}),
    cmdline: spec.commandLine,
  }
}

const randomness = '/dev/urandom'

/** `image_type` said outright: a guest must not be able to have its disk taken for another format at the next boot. */
function rootDisk(path: string): object {
  return { id: 'root', serial: 'root', path, image_type: 'Raw' }
}

function toolsDisk(path: string): object {
  return { id: 'tools', serial: 'tools', path, image_type: 'Raw', readonly: true }
}

/** The console is what the process has as its standard output: one end of a FIFO, which stays the same over reboots. */
const consoles = { console: { mode: 'Tty' }, serial: { mode: 'Null' } } as const

/** What it opens besides what its configuration names: its folder, and what kind of tap it has been given. */
function confinement(spec: MachineSpec, landlock: boolean): object {
  if (!landlock) return { landlock_enable: false, landlock_rules: null }
  const tap = spec.network ? [{ path: `/sys/class/net/${spec.network.tap}`, access: 'r' }] : []
  return { landlock_enable: true, landlock_rules: [{ path: files.run, access: 'rw' }, ...tap] }
}

const no = z.literal(false).nullish()
const none = z.null().optional()
/**
 * What else is in these devices passes through as it is; of what may name a file or a socket besides the paths that are
 * replaced, there is none.
 */
const savedShape = z.looseObject({
  cpus: z.looseObject({ boot_vcpus: z.number() }),
  memory: z.looseObject({ size: z.number(), zones: none }),
  disks: z.array(
    z.looseObject({
      id: z.string(),
      image_type: z.literal('Raw').nullish(),
      vhost_user: no,
      vhost_socket: none,
      backing_files: no,
    }),
  ),
  net: z
    .array(z.looseObject({ host_mac: z.unknown().optional(), vhost_user: no, vhost_socket: none, fds: none }))
    .nullish(),
  rng: z.looseObject({}),
  balloon: z.looseObject({ size: z.number() }),
  vsock: z.looseObject({ cid: z.number() }),
})

function parseSaved(text: string): z.infer<typeof savedShape> {
  const { data: saved, error: cause } = savedShape.safeParse(parseJson(text))
  if (saved) return saved
  throw new HypervisorError('hypervisor.unreadable', 'The saved guest cannot be read', { cause })
}

/** @throws HypervisorError `hypervisor.unreadable`: a part of a saved guest that is no JSON, which all but its memory is */
export function parseJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch (cause) {
    throw new HypervisorError('hypervisor.unreadable', 'The saved guest cannot be read', { cause })
  }
}
