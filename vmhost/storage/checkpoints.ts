import { randomBytes } from 'node:crypto'
import { chmod, chown, mkdir, readdir, readFile, rename, rm, stat, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { z } from 'zod'
import { run } from './command.ts'
import { renameForGood, sync } from './durable.ts'
import { StorageError } from './errors.ts'
import { heldBytes } from './extents.ts'
import { beginMemory, findMemory, forgetMemory, keepMemory, memoryFolder, type SavedMemory } from './memory.ts'
import type { MachineFiles } from './store.ts'
import type { Volume } from './volume.ts'

/**
 * Checkpoints: what a machine's disk, or its disk and memory, held at one instant.
 *
 *     checkpoints/<id>/                root.raw, checkpoint.json and, where it has memory, memory/ as a sleeper's
 *     checkpoints/.new-… .gone-…       half made, half removed: swept when a vmhost starts
 *     machines/<id>/restore.new/       what a machine is to become, being made; restore/ is whole, and about to be it
 *
 * They are root's, and nothing is ever written to them again: machines that are made of one, or go back to one, get
 * copies that share its blocks. Whatever has its final name is whole.
 */
export type Checkpoints = {
  /** Begins one, in place of what an earlier try has left. */
  begin(id: number): Promise<Draft>
  /** @returns undefined when there is none of this id with this token */
  find(id: number, token: string): Promise<Checkpoint | undefined>
  /** Removes it; nothing happens when there is none, and another's is left alone. */
  remove(id: number, token: string): Promise<void>
  /** What removing it would give back, in bytes. Walks through its whole disk. */
  heldBytes(checkpoint: Checkpoint): Promise<number>
  /**
   * Makes the files of a new machine: disk, memory where there is one, and an identity of its own.
   * @throws StorageError; nothing half made is left
   */
  makeMachine(checkpoint: Checkpoint, machine: CopiedMachine): Promise<void>
  /**
   * Puts what a checkpoint holds in the place of what a machine has, whose hypervisor is gone. Whoever is cut off calls
   * it again before anything else is done with that machine.
   * @throws StorageError; the machine has all that it had, then. Anything else: it is to be called again
   */
  restoreMachine(checkpoint: Checkpoint, machine: RestoredMachine): Promise<void>
  /** Boot sets that memories in checkpoints need. */
  bootSets(): Promise<string[]>
  /** Removes what was left half done. */
  sweep(): Promise<void>
}

/** One that is being made. */
export type Draft = {
  /** Copies the disk as it is in this moment. Takes milliseconds, whatever its size, where all of it was written out. */
  takeDisk(disk: string): Promise<void>
  /** Moves what a guest was saved to here: `memory.new/` in its machine's directory. */
  moveMemory(folder: string, saved: SavedMemory): Promise<void>
  /** Copies the memory that a machine sleeps with. */
  copyMemory(directory: string, saved: SavedMemory): Promise<void>
  /** From here on it is one. */
  keep(token: string, files: Pick<MachineFiles, 'record'>): Promise<Checkpoint>
  drop(): Promise<void>
}

const recordSchema = z.object({
  format: z.literal(1),
  token: z.uuid(),
  takenAt: z.iso.datetime(),
  /** machine.json of the machine that it was taken of, as that was then; see store.ts */
  machine: z.record(z.string(), z.unknown()),
})

export type Checkpoint = {
  readonly id: number
  readonly directory: string
  readonly disk: string
  readonly diskBytes: number
  readonly takenAt: Date
  /** what its memory needs, where it has one */
  readonly saved?: SavedMemory
  readonly record: z.infer<typeof recordSchema>
}

export type RestoredMachine = {
  /** the machine's own */
  readonly directory: string
  readonly uid: number
  /** number of the boot that goes on, or begins */
  readonly boot: number
  /** number of the restore; see `readRestored` */
  readonly restore: number
  /** its memory is left out */
  readonly diskOnly?: boolean
}

export type CopiedMachine = RestoredMachine & {
  readonly diskBytes: number
  /** private, OpenSSH's format */
  readonly hostKey: string
  readonly token: string
}

const diskName = 'root.raw'
const recordName = 'checkpoint.json'
const restoredName = 'restored.json'
/** Within a machine's directory: what it is about to become. */
const restoreNames = { unfinished: 'restore.new', whole: 'restore' } as const
const restoredSchema = z.object({ restore: z.number().int().nonnegative() })

/** Number of the last restore that has come to its end in a machine's files; 0: none. */
export async function readRestored(directory: string): Promise<number> {
  try {
    return restoredSchema.parse(JSON.parse(await readFile(join(directory, restoredName), 'utf8'))).restore
  } catch {
    return 0
  }
}

export async function openCheckpoints(volume: Pick<Volume, 'path'>): Promise<Checkpoints> {
  const folder = join(volume.path, 'checkpoints')
  await mkdir(folder, { recursive: true })
  await chmod(folder, 0o700)
  return new CheckpointFiles(folder, join(volume.path, 'machines'))
}

class CheckpointFiles implements Checkpoints {
  readonly #folder: string
  readonly #machines: string

  constructor(folder: string, machines: string) {
    this.#folder = folder
    this.#machines = machines
  }

  async begin(id: number): Promise<Draft> {
    const work = join(this.#folder, `.new-${checked(id)}`)
    await rm(work, { recursive: true, force: true })
    await mkdir(work, { mode: 0o700 })
    return new CheckpointDraft(work, this.#directoryOf(id), async (token) => {
      const kept = await this.find(id, token)
      if (!kept) throw new StorageError('storage.failed', 'The checkpoint vanished while it was made')
      return kept
    })
  }

  async find(id: number, token: string): Promise<Checkpoint | undefined> {
    const directory = this.#directoryOf(id)
    const disk = join(directory, diskName)
    const found = await stat(disk).catch(() => undefined)
    if (!found) return undefined
    const record = await readRecord(directory)
    if (record.token !== token) return undefined
    const { saved, damaged } = await findMemory(directory)
    if (damaged) throw new StorageError('storage.failed', `The memory of the checkpoint in ${directory} is damaged`)
    const takenAt = new Date(record.takenAt)
    return { id, directory, disk, diskBytes: found.size, takenAt, record, ...(saved ? { saved } : {}) }
  }

  async remove(id: number, token: string): Promise<void> {
    await rm(join(this.#folder, `.new-${checked(id)}`), { recursive: true, force: true })
    const directory = this.#directoryOf(id)
    // A damaged one has lost its token, and can be nobody else's.
    const record = await readRecord(directory).catch(() => undefined)
    if (record && record.token !== token) return
    const grave = join(this.#folder, `.gone-${id}-${randomBytes(4).toString('hex')}`)
    try {
      await renameForGood(directory, grave)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return
      throw error
    }
    await rm(grave, { recursive: true, force: true })
  }

  async heldBytes({ disk, directory, saved }: Checkpoint): Promise<number> {
    const folder = memoryFolder(directory)
    const memory = saved ? (await readdir(folder)).map((name) => join(folder, name)) : []
    let sum = 0
    for (const file of [disk, ...memory]) sum += await heldBytes(file)
    return sum
  }

  async makeMachine(checkpoint: Checkpoint, machine: CopiedMachine): Promise<void> {
    const { directory, uid, diskBytes } = machine
    if (diskBytes < checkpoint.diskBytes) {
      const least = Math.ceil(checkpoint.diskBytes / 2 ** 20)
      throw new StorageError('storage.invalid', `The disk that it is made of needs ${least} MiB`)
    }
    // The name that `Store.sweep` takes for half made.
    const work = join(directory, '..', `.new-${directory.slice(directory.lastIndexOf('/') + 1)}`)
    await rm(work, { recursive: true, force: true })
    try {
      await mkdir(work, { mode: 0o750 })
      await chown(work, 0, uid)
      await layDisk(checkpoint, join(work, diskName), uid, diskBytes)
      await layMemory(checkpoint, work, machine)
      await writeFile(join(work, 'host_key'), machine.hostKey, { mode: 0o600, flush: true })
      const systemId = randomBytes(16).toString('hex')
      const record = { ...checkpoint.record.machine, systemId, token: machine.token }
      await writeFile(join(work, 'machine.json'), `${JSON.stringify(record)}\n`, { mode: 0o600, flush: true })
      await writeFile(join(work, restoredName), restoredText(machine), { mode: 0o600, flush: true })
      await sync(work)
      await renameForGood(work, directory)
    } catch (error) {
      await rm(work, { recursive: true, force: true })
      throw asFull(error)
    }
  }

  async restoreMachine(checkpoint: Checkpoint, machine: RestoredMachine): Promise<void> {
    const { directory } = machine
    const whole = join(directory, restoreNames.whole)
    // Whoever was cut off in the middle of it needs no more space, and the machine has lost something already.
    if ((await readRestored(whole)) !== machine.restore) await layRestore(checkpoint, machine)
    // In this order: a memory never lies beside a disk that it does not belong to.
    if (await isThere(join(whole, diskName))) {
      await forgetMemory(directory)
      await renameForGood(join(whole, diskName), join(directory, diskName))
    }
    if (await isThere(memoryFolder(whole))) await renameForGood(memoryFolder(whole), memoryFolder(directory))
    await renameForGood(join(whole, restoredName), join(directory, restoredName))
    await rm(whole, { recursive: true, force: true })
  }

  async bootSets(): Promise<string[]> {
    const names = (await readdir(this.#folder)).filter((name) => /^[1-9]\d*$/.test(name))
    const found = await Promise.all(names.map((name) => findMemory(join(this.#folder, name))))
    return [...new Set(found.flatMap(({ saved }) => (saved ? [saved.bootSet] : [])))]
  }

  async sweep(): Promise<void> {
    for (const name of await readdir(this.#folder)) {
      if (!/^\.(new|gone)-/.test(name)) continue
      await rm(join(this.#folder, name), { recursive: true, force: true })
    }
    for (const name of await readdir(this.#machines)) {
      const { unfinished, whole } = restoreNames
      await rm(join(this.#machines, name, unfinished), { recursive: true, force: true })
      // One that has its number yet is gone on with.
      if (!(await isThere(join(this.#machines, name, whole, restoredName))))
        await rm(join(this.#machines, name, whole), { recursive: true, force: true })
    }
  }

  #directoryOf(id: number): string {
    return join(this.#folder, String(checked(id)))
  }
}

class CheckpointDraft implements Draft {
  readonly #work: string
  readonly #target: string
  readonly #kept: (token: string) => Promise<Checkpoint>
  #takenAt = new Date()

  constructor(work: string, target: string, kept: (token: string) => Promise<Checkpoint>) {
    this.#work = work
    this.#target = target
    this.#kept = kept
  }

  async takeDisk(disk: string): Promise<void> {
    const copy = join(this.#work, diskName)
    try {
      await run('cp', ['--reflink=always', '--', disk, copy])
      this.#takenAt = new Date()
    } catch (error) {
      throw asFull(error)
    }
  }

  async moveMemory(folder: string, saved: SavedMemory): Promise<void> {
    await rename(folder, join(this.#work, 'memory.new'))
    await keepMemory(this.#work, saved)
  }

  async copyMemory(directory: string, saved: SavedMemory): Promise<void> {
    await shareMemory(directory, this.#work, saved)
  }

  async keep(token: string, { record: machine }: Pick<MachineFiles, 'record'>): Promise<Checkpoint> {
    const disk = join(this.#work, diskName)
    await chmod(disk, 0o600)
    await chown(disk, 0, 0)
    const record = { format: 1, token, takenAt: this.#takenAt.toISOString(), machine }
    await writeFile(join(this.#work, recordName), `${JSON.stringify(record)}\n`, { mode: 0o600, flush: true })
    await Promise.all([sync(disk), sync(this.#work)])
    await renameForGood(this.#work, this.#target)
    return this.#kept(token)
  }

  async drop(): Promise<void> {
    await rm(this.#work, { recursive: true, force: true })
  }
}

/** Makes all that a machine is to become, beside what it is. @throws StorageError; nothing is left then */
async function layRestore(checkpoint: Checkpoint, machine: RestoredMachine): Promise<void> {
  const work = join(machine.directory, restoreNames.unfinished)
  const whole = join(machine.directory, restoreNames.whole)
  for (const folder of [work, whole]) await rm(folder, { recursive: true, force: true })
  try {
    await mkdir(work, { mode: 0o700 })
    await layDisk(checkpoint, join(work, diskName), machine.uid)
    await layMemory(checkpoint, work, machine)
    await writeFile(join(work, restoredName), restoredText(machine), { mode: 0o600, flush: true })
    await sync(work)
    await renameForGood(work, whole)
  } catch (error) {
    await rm(work, { recursive: true, force: true })
    throw asFull(error)
  }
}

async function layDisk({ disk }: Checkpoint, target: string, uid: number, diskBytes?: number): Promise<void> {
  await run('cp', ['--reflink=always', '--', disk, target])
  if (diskBytes !== undefined) await truncate(target, diskBytes)
  await chmod(target, 0o600)
  await chown(target, uid, uid)
  await sync(target)
}

async function layMemory(checkpoint: Checkpoint, directory: string, machine: RestoredMachine): Promise<void> {
  const { saved } = checkpoint
  if (!saved || machine.diskOnly) return
  await shareMemory(checkpoint.directory, directory, { ...saved, boot: machine.boot })
}

/** A memory as another directory's, under its own record. */
async function shareMemory(from: string, to: string, saved: SavedMemory): Promise<void> {
  const source = memoryFolder(from)
  const folder = await beginMemory(to)
  // The record is the copy's own.
  const names = (await readdir(source)).filter((name) => name !== 'saved.json')
  for (const name of names) {
    await run('cp', ['--reflink=always', '--', join(source, name), join(folder, name)])
    await chmod(join(folder, name), 0o600)
  }
  await keepMemory(to, saved)
}

async function readRecord(directory: string): Promise<z.infer<typeof recordSchema>> {
  try {
    return recordSchema.parse(JSON.parse(await readFile(join(directory, recordName), 'utf8')))
  } catch (cause) {
    throw new StorageError('storage.failed', `The checkpoint in ${directory} is damaged`, { cause })
  }
}

async function isThere(path: string): Promise<boolean> {
  return (await stat(path).catch(() => undefined)) !== undefined
}

function checked(id: number): number {
  if (!Number.isSafeInteger(id) || id < 1) throw new RangeError(`${id} is no checkpoint's id`)
  return id
}

function restoredText({ restore }: RestoredMachine): string {
  return `${JSON.stringify({ restore })}\n`
}

function asFull(error: unknown): unknown {
  if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') return error
  return new StorageError('storage.full', "The server's disk is full", { cause: error })
}
