import { mkdir, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { z } from 'zod'
import { renameForGood, replaceFile, sync } from './durable.ts'
import { unlessShort } from './errors.ts'

/**
 * The memory of a machine that sleeps, beside its disk.
 *
 *     memory.new/   being written
 *     memory/       whole: the machine sleeps, and goes on from here
 *     memory.used/  a guest was restored from it, or the disk has moved on without it: never good for anything again
 *
 *     nothing --begin--> memory.new --keep--> memory --spend--> memory.used --forget--> nothing
 *
 * A guest that goes on twice from one memory would find a disk that its other self has changed, and destroy it. So the
 * name is given and taken away durably: before a hypervisor that was saved is ended, and before one that was restored runs.
 */
const names = { unfinished: 'memory.new', whole: 'memory', used: 'memory.used' } as const
const recordName = 'saved.json'
/** Why a machine has lost its memory; there until that was told. */
const lossName = 'lost'

/** Of a guest that was given more while it ran. */
export const grownShape = {
  /** processors that it was started with, where it has more by now */
  startedCpus: z.number().int().positive().optional(),
}

const savedSchema = z.object({
  format: z.literal(1),
  /** what the hypervisor must be: see vmhost/hypervisor/driver.ts */
  stateVersion: z.string().min(1).max(200),
  bootSet: z.string().regex(/^[0-9a-f]{8,64}$/),
  commandLine: z.string().max(4096),
  cpus: z.number().int().positive(),
  memoryBytes: z.number().int().positive(),
  ...grownShape,
  /** how much of that it used, and uses again when it wakes; what lies on the disk may be packed */
  usedBytes: z.number().int().nonnegative().optional(),
  /** number of the boot that goes on */
  boot: z.number().int().positive(),
  at: z.iso.datetime(),
})
/** What a saved guest was, and needs again. Kept with it across upgrades. */
export type SavedMemory = z.infer<typeof savedSchema>

export type FoundMemory = {
  /** the machine sleeps, and this is what it sleeps with */
  readonly saved?: SavedMemory
  /** `memory/` is there and cannot be read */
  readonly damaged: boolean
  readonly used: boolean
  readonly unfinished: boolean
}

/**
 * @param directory the machine's own
 * @throws an ErrnoException when this process has not now what it takes to look, which says nothing of what is there
 */
export async function findMemory(directory: string): Promise<FoundMemory> {
  const there = new Set(await readdir(directory).catch(unlessShort(() => [])))
  const whole = there.has(names.whole)
  const saved = whole ? await readRecord(join(directory, names.whole, recordName)) : undefined
  return {
    ...(saved ? { saved } : {}),
    damaged: whole && !saved,
    used: there.has(names.used),
    unfinished: there.has(names.unfinished),
  }
}

/** Where a restored guest is read from. */
export function memoryFolder(directory: string): string {
  return join(directory, names.whole)
}

/**
 * Makes an empty folder for a guest to be saved to. It is root's, and nobody else comes into it: who took over a hypervisor
 * can neither lay links where root writes, nor change what is restored.
 * @returns its path
 */
export async function beginMemory(directory: string): Promise<string> {
  const folder = join(directory, names.unfinished)
  await rm(folder, { recursive: true, force: true })
  await mkdir(folder, { mode: 0o700 })
  return folder
}

/** What was begun is whole, and from here on it is the machine: its hypervisor may be ended, and must not run on. */
export async function keepMemory(directory: string, saved: SavedMemory): Promise<void> {
  const folder = join(directory, names.unfinished)
  await writeFile(join(folder, recordName), `${JSON.stringify(saved)}\n`, { mode: 0o600 })
  for (const name of await readdir(folder)) await sync(join(folder, name))
  await sync(folder)
  await rm(join(directory, names.used), { recursive: true, force: true })
  await renameForGood(folder, join(directory, names.whole))
}

/** A guest that was restored from it is about to run: whatever happens from here on, none is restored from it again. */
export async function spendMemory(directory: string): Promise<void> {
  const used = join(directory, names.used)
  await rm(used, { recursive: true, force: true })
  await renameForGood(join(directory, names.whole), used)
}

/**
 * Nothing is left of it, whichever of its names it has; for good when this returns.
 * @param keepMark what was being written is emptied, and stays as the sign that its guest was lying down
 */
export async function forgetMemory(directory: string, { keepMark = false } = {}): Promise<void> {
  const { saved, damaged, used, unfinished } = await findMemory(directory)
  const folder = join(directory, names.unfinished)
  if (keepMark && !unfinished) await mkdir(folder, { mode: 0o700 })
  if (saved || damaged) await spendMemory(directory)
  if (saved || damaged || used) await rm(join(directory, names.used), { recursive: true, force: true })
  if (!unfinished) return
  if (keepMark) for (const name of await readdir(folder)) await rm(join(folder, name), { recursive: true, force: true })
  else await rm(folder, { recursive: true, force: true })
}

/** @param why a sentence for the machine's owner */
export async function noteLoss(directory: string, why: string): Promise<void> {
  await replaceFile(join(directory, lossName), why)
}

/** @returns undefined when there is none that was not told yet */
export async function readLoss(directory: string): Promise<string | undefined> {
  return (await readFile(join(directory, lossName), 'utf8').catch(unlessShort(() => ''))) || undefined
}

export async function forgetLoss(directory: string): Promise<void> {
  await rm(join(directory, lossName), { force: true })
}

/** What a sleeper's memory takes on the disk, in bytes. */
export async function memoryBytes(directory: string): Promise<number> {
  const folder = memoryFolder(directory)
  const files = await readdir(folder).catch(() => [])
  const sizes = await Promise.all(files.map(async (name) => (await stat(join(folder, name))).blocks * 512))
  return sizes.reduce((sum, size) => sum + size, 0)
}

async function readRecord(path: string): Promise<SavedMemory | undefined> {
  const text = await readFile(path, 'utf8').catch(unlessShort(() => ''))
  try {
    return savedSchema.parse(JSON.parse(text))
  } catch {
    return undefined
  }
}
