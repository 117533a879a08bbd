import { readFile, writeFile } from 'node:fs/promises'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { z } from 'zod'
import { type Hypervisor, hypervisorUid, type MachineSize, type MachineSpec } from '../hypervisor/driver.ts'
import { macFor } from '../network/address.ts'
import type { MachineNetwork } from '../network/types.ts'
import { unlessShort } from '../storage/errors.ts'
import { grownShape, memoryFolder, type SavedMemory } from '../storage/memory.ts'
import type { BootSet, DiskImage, MachineFiles } from '../storage/store.ts'
import { type Template, templateMemory } from '../storage/templates.ts'
import { makeHostKey, publicPart } from './identity.ts'
import { ownFiles } from './ownership.ts'
import type { MachineRow, Observation } from './rows.ts'
import { addressIn, type CheckedMachine, checkMachine, commandLine, MachineError } from './specification.ts'
import type { World } from './world.ts'

/**
 * The steps to a hypervisor with a guest in it: booted from its disk, gone on from a template, or restored from its
 * memory. What they have begun when they fail is taken away by whoever called them.
 */
export type Starting = {
  readonly row: MachineRow
  readonly world: World
  observe(seen: Observation): void
  /** what its disk is made from, where it has none yet */
  readonly image: DiskImage | undefined
  /** from here on the host's network has something for it */
  connecting(network: MachineNetwork): void
}

export type Started = {
  readonly hypervisor: Hypervisor
  readonly files: MachineFiles
  readonly runsWith: RunsWith
  readonly startedAt: Date
  /** that its guest, which stands still, goes on from */
  readonly template?: Template
}

const runsWithName = 'started.json'
const runsWithSchema = z.object({
  bootSet: z.string().regex(/^[0-9a-f]{8,64}$/),
  commandLine: z.string(),
  cpus: z.number().int().positive(),
  memoryBytes: z.number().int().positive(),
  ...grownShape,
  /** of the template that it went on from instead of booting; as long as it is not ready, it may stand still for that */
  template: z.string().optional(),
})
/** What a guest was started with, by whichever vmhost, and given since: it must be restored with that. `bootSet` is its hash. */
export type RunsWith = z.infer<typeof runsWithSchema>

/** @returns undefined for one that was started before there was such a note */
export async function readRunsWith(directory: string): Promise<RunsWith | undefined> {
  const text = await readFile(join(directory, runsWithName), 'utf8').catch(unlessShort(() => ''))
  try {
    return runsWithSchema.parse(JSON.parse(text))
  } catch {
    return undefined
  }
}

export async function noteRunsWith(directory: string, runsWith: RunsWith): Promise<void> {
  await writeFile(join(directory, runsWithName), JSON.stringify(runsWith), { mode: 0o600 })
}

/** What it runs with by its hypervisor's word: a vmhost may have been ended before it could note what it gave. */
export function grownTo(runsWith: RunsWith, { cpus, memoryBytes }: MachineSize): RunsWith {
  if (cpus === runsWith.cpus && memoryBytes === runsWith.memoryBytes) return runsWith
  return { ...runsWith, startedCpus: runsWith.startedCpus ?? runsWith.cpus, cpus, memoryBytes }
}

/**
 * What a machine can be given while it runs. Memory is as good as nothing until it is there; each processor that may
 * come takes some of the guest's, so a small machine on a large server can have many times its own, but not all.
 */
export function mostFor({ cpus, memoryBytes }: MachineSize, world: Pick<World, 'memoryBytes'>): MachineSize {
  const server = { cpus: Math.max(2, availableParallelism()), memoryBytes: world.memoryBytes }
  return {
    cpus: Math.max(cpus, Math.min(server.cpus, Math.max(8, 2 * cpus))),
    memoryBytes: Math.max(memoryBytes, server.memoryBytes),
  }
}

/** What a machine was restored with is not to be had here any more; the message says what. */
export class LostMemoryError extends Error {
  override readonly name = 'LostMemoryError'
}

/** Makes the machine's disk when it has none, and boots from it. */
export async function bootFromDisk(starting: Starting): Promise<Started> {
  const { row, world } = starting
  const machine = checkMachine(row, { network: world.guest.network, memoryBytes: world.memoryBytes })
  const there = await ownFiles(world.store, row)
  const connecting = await connect(starting, machine)
  const [files, bootSet] = await Promise.all([disk(machine, there, starting), world.store.currentBoot()])
  sayWhatItIs(starting, files)
  const { cpus, memoryBytes } = machine
  const spec = {
    cpus,
    memoryBytes,
    most: mostFor({ cpus, memoryBytes }, world),
    commandLine: commandLine(machine, world.guest, world.driver.accelerator === 'tcg'),
  }
  return start(starting, { files, bootSet, connecting, spec })
}

/**
 * Makes the machine's disk of a template's, and has its guest, which stands still then, go on from there: it waits to be
 * told who it is, as one that boots does at that point. For a machine that has no disk yet.
 */
export async function goOnFromTemplate(starting: Starting, image: DiskImage, template: Template): Promise<Started> {
  const { row, world } = starting
  const { saved } = template
  const machine = checkMachine(row, { network: world.guest.network, memoryBytes: world.memoryBytes })
  const bootSet = await world.store.keptBoot(saved.bootSet)
  if (!bootSet) throw new LostMemoryError('the kernel of the template is not on this server any more')
  const connecting = await connect(starting, machine, saved.commandLine)
  const ofTemplate = { ...image, path: template.disk, sizeBytes: template.diskBytes }
  const files = await disk(machine, undefined, { world, image: ofTemplate })
  sayWhatItIs(starting, files)
  const spec = { ...saved, restoreFrom: templateMemory(template) }
  return { ...(await start(starting, { files, bootSet, connecting, spec, template })), template }
}

/**
 * Restores a guest, to which the driver knows no obstacle and which stands still then, with what it was saved with.
 * @throws LostMemoryError when that is not to be had any more
 */
export async function restoreMemory(starting: Starting, saved: SavedMemory): Promise<Started> {
  const { row, world } = starting
  const machine = checkMachine(row, { network: world.guest.network, memoryBytes: world.memoryBytes })
  const files = await ownFiles(world.store, row)
  if (!files) throw new MachineError('Its disk is not on this server any more')
  const bootSet = await world.store.keptBoot(saved.bootSet)
  if (!bootSet) throw new LostMemoryError('the kernel that it was saved with is not on this server any more')
  const connecting = await connect(starting, machine, saved.commandLine)
  const restoreFrom = memoryFolder(files.directory)
  return start(starting, { files, bootSet, connecting, spec: { ...saved, restoreFrom } })
}

/**
 * What the host's network is to have for a machine.
 * @param startedWith its kernel's command line, when that goes on: a card keeps the MAC that it had then
 */
export function networkOf(
  { id, address }: Pick<CheckedMachine, 'id' | 'address'>,
  startedWith?: string,
): MachineNetwork {
  const first = startedWith === undefined ? undefined : addressIn(startedWith)
  const network = { machineId: id, address, uid: hypervisorUid(id) }
  if (first === undefined) return network
  return first === address ? { ...network, goesOn: true } : { ...network, mac: macFor(first) }
}

/** The network is made ready while the disk is. */
async function connect({ row, world, connecting }: Starting, machine: CheckedMachine, startedWith?: string) {
  const network = networkOf(machine, startedWith)
  connecting(network)
  const card = world.network.ensureMachine(network)
  card.catch(() => {})
  // A process of this machine's that could not be adopted, or was started a moment before a kill -9.
  await world.driver.destroy(row.id, world.store.directoryOf(row.id))
  // In an object: whoever awaits this shall not wait for the card.
  return { card }
}

async function start(
  { row, world, observe }: Starting,
  wanted: {
    files: MachineFiles
    bootSet: BootSet
    connecting: { card: Promise<{ tap: string; mac: string }> }
    spec: Pick<MachineSpec, 'cpus' | 'memoryBytes' | 'most' | 'commandLine' | 'restoreFrom' | 'stateVersion'> &
      Pick<RunsWith, 'startedCpus'>
    template?: Template
  },
): Promise<Started> {
  const { files, bootSet, connecting, spec, template } = wanted
  const { cpus, memoryBytes, most, startedCpus, commandLine, restoreFrom, stateVersion } = spec
  const card = await connecting.card
  const from = template ? { template: template.id } : {}
  const runsWith: RunsWith = { bootSet: bootSet.hash, commandLine, cpus, memoryBytes, startedCpus, ...from }
  await noteRunsWith(files.directory, runsWith)
  observe({ observedStage: 'boot' })
  const startedAt = new Date()
  const hypervisor = await world.driver.start({
    machineId: row.id,
    directory: files.directory,
    cpus,
    memoryBytes,
    most,
    kernel: bootSet.kernel,
    initrd: bootSet.initrd,
    commandLine,
    disk: files.disk,
    tools: bootSet.tools,
    network: card,
    ...(restoreFrom === undefined ? {} : { restoreFrom }),
    ...(stateVersion === undefined ? {} : { stateVersion }),
  })
  return { hypervisor, files, runsWith, startedAt }
}

function sayWhatItIs({ observe }: Starting, { hostKey, record: { loginUser, settings } }: MachineFiles): void {
  observe({ observedStage: 'network', observedHostKey: publicPart(hostKey), observedLoginUser: loginUser })
  if (settings) observe({ observedWebPort: settings.webPort })
}

async function disk(
  machine: MachineRow,
  there: MachineFiles | undefined,
  { world: { store }, image }: Pick<Starting, 'world' | 'image'>,
): Promise<MachineFiles> {
  if (there) {
    if (machine.diskBytes > there.diskBytes) await store.growDisk(machine.id, machine.diskBytes)
    return there
  }
  // Never a fresh disk in place of one that was lost: that would look like everything in it had been deleted.
  if (machine.hostKey !== null) throw new MachineError('Its disk is not on this server any more')
  if (!image) throw new MachineError('Its disk is gone')
  const hostKey = makeHostKey(machine.name).privateKey
  const { diskBytes, token } = machine
  return store.createMachine(machine.id, { image, diskBytes, uid: hypervisorUid(machine.id), hostKey, token })
}
