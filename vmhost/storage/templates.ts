import { createHash, randomBytes } from 'node:crypto'
import { chmod, chown, mkdir, readdir, readFile, rename, rm, stat, utimes, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { z } from 'zod'
import { run } from './command.ts'
import { renameForGood, sync } from './durable.ts'
import { StorageError } from './errors.ts'
import { beginMemory, findMemory, keepMemory, memoryBytes, memoryFolder, type SavedMemory } from './memory.ts'
import type { Volume } from './volume.ts'

/**
 * Templates: guests that are nobody's, booted as far as that is good for, that new machines go on from.
 *
 *     templates/<key>/           template.json, root.raw, memory/ as a sleeper's; root's, and never written to again
 *     templates/.new/            the directory of the hypervisor that one is being made with
 *     templates/.kept-… .gone-…  whole but for its name, half removed
 *
 *     nothing --begin--> .new --its memory and disk are whole--> .kept-<key> --its name--> <key>
 *     <key> --dropped--> .gone-… --> nothing
 *
 * A key is the hash of all that a guest made of it must have in common with it (`TemplateKey`); another image, kernel,
 * hypervisor, size or setting is another key. Whatever has its final name is whole, and what has another is swept when a
 * vmhost starts. All of it is cache: whoever finds none boots from the image.
 */
export type TemplateFiles = {
  /** @returns undefined when there is none, or a damaged one, which is removed; notes that it was asked for */
  find(key: TemplateKey): Promise<Template | undefined>
  /** Begins one in place of whatever was begun before, whose hypervisor must be gone. One at a time. */
  begin(image: Pick<TemplateImage, 'disk'>, uid: number): Promise<TemplateDraft>
  /** Directory of the hypervisor that one is made with. */
  readonly workDirectory: string
  remove(id: string): Promise<void>
  /** All that there are, the one that was asked for last first. */
  list(): Promise<ListedTemplate[]>
  /** Removes what was left half done; no hypervisor may be there any more. */
  sweep(): Promise<void>
}

/** What a template and a machine that is made of it have in common. */
export type TemplateKey = {
  /** of the disk that both are made from */
  readonly imageHash: string
  /** hash of the boot set */
  readonly bootSet: string
  /** see driver.ts */
  readonly stateVersion: string
  readonly cpus: number
  readonly memoryBytes: number
  /** what it can be given while it runs: its devices and its memory map are made for that */
  readonly most: { readonly cpus: number; readonly memoryBytes: number }
  /** the template's own, with the settings that all machines of this server have */
  readonly commandLine: string
  /** its image's own programs have started, or none of them has: see reconcile/templating.ts */
  readonly isStarted: boolean
}

export type TemplateImage = {
  readonly name: string
  /** raw disk */
  readonly disk: string
}

export type Template = {
  readonly id: string
  readonly directory: string
  readonly disk: string
  readonly diskBytes: number
  readonly saved: SavedMemory
}

export type ListedTemplate = {
  readonly id: string
  readonly usedAt: Date
  /** of its memory; its disk is the image's but for some blocks */
  readonly bytes: number
  /** undefined: its record is damaged */
  readonly record: z.infer<typeof recordSchema> | undefined
}

/** One that is being made. */
export type TemplateDraft = {
  /** of the hypervisor; the machine's own */
  readonly directory: string
  readonly disk: string
  /** An empty folder for the guest to be saved to. @returns its path */
  beginMemory(): Promise<string>
  /** From here on it is one. Its hypervisor is gone. */
  keep(key: TemplateKey, imageName: string): Promise<Template>
  drop(): Promise<void>
}

const recordName = 'template.json'
const recordSchema = z.object({
  format: z.literal(1),
  imageName: z.string(),
  imageHash: z.string(),
  bootSet: z.string(),
  stateVersion: z.string(),
  madeAt: z.iso.datetime(),
})
const diskName = 'root.raw'

/** Names a template by its content. */
export function templateId(key: TemplateKey): string {
  const { imageHash, bootSet, stateVersion, cpus, memoryBytes, most, commandLine, isStarted } = key
  const size = [cpus, memoryBytes, most.cpus, most.memoryBytes]
  const parts = [2, imageHash, bootSet, stateVersion, ...size, commandLine, isStarted]
  return createHash('sha256').update(JSON.stringify(parts)).digest('hex').slice(0, 32)
}

export async function openTemplates(volume: Pick<Volume, 'path'>): Promise<TemplateFiles> {
  const folder = join(volume.path, 'templates')
  await mkdir(folder, { recursive: true })
  // The hypervisor that makes one passes through on its way to the kernel, and sees nothing else.
  await chmod(folder, 0o711)
  return new FolderOfTemplates(folder)
}

class FolderOfTemplates implements TemplateFiles {
  readonly workDirectory: string
  readonly #folder: string

  constructor(folder: string) {
    this.#folder = folder
    this.workDirectory = join(folder, '.new')
  }

  async find(key: TemplateKey): Promise<Template | undefined> {
    const id = templateId(key)
    const directory = join(this.#folder, id)
    const disk = join(directory, diskName)
    const found = await stat(disk).catch(() => undefined)
    if (!found) return undefined
    const [record, { saved }] = await Promise.all([readRecord(directory), findMemory(directory)])
    if (!record || !saved || !fits(saved, key)) {
      await this.remove(id)
      return undefined
    }
    const now = new Date()
    await utimes(join(directory, recordName), now, now)
    return { id, directory, disk, diskBytes: found.size, saved }
  }

  async begin({ disk: source }: Pick<TemplateImage, 'disk'>, uid: number): Promise<TemplateDraft> {
    const directory = this.workDirectory
    await rm(directory, { recursive: true, force: true })
    await mkdir(directory, { mode: 0o750 })
    await chown(directory, 0, uid)
    const disk = join(directory, diskName)
    try {
      await run('cp', ['--reflink=always', '--', source, disk])
      await chmod(disk, 0o600)
      await chown(disk, uid, uid)
    } catch (error) {
      await rm(directory, { recursive: true, force: true })
      throw error
    }
    return {
      directory,
      disk,
      beginMemory: () => beginMemory(directory),
      keep: (key, imageName) => this.#keep(key, imageName),
      drop: () => rm(directory, { recursive: true, force: true }),
    }
  }

  async #keep(key: TemplateKey, imageName: string): Promise<Template> {
    const id = templateId(key)
    const { imageHash, bootSet, stateVersion, cpus, memoryBytes, commandLine } = key
    const work = join(this.#folder, `.kept-${id}`)
    const disk = join(work, diskName)
    await rm(work, { recursive: true, force: true })
    await mkdir(work, { mode: 0o700 })
    await rename(join(this.workDirectory, diskName), disk)
    await chown(disk, 0, 0)
    await rename(join(this.workDirectory, 'memory.new'), join(work, 'memory.new'))
    const madeAt = new Date().toISOString()
    const saved = { format: 1 as const, bootSet, stateVersion, cpus, memoryBytes, commandLine, boot: 1, at: madeAt }
    await keepMemory(work, saved)
    const record = { format: 1, imageName, imageHash, bootSet, stateVersion, madeAt }
    await writeFile(join(work, recordName), `${JSON.stringify(record)}\n`, { mode: 0o600, flush: true })
    await Promise.all([sync(disk), sync(work)])
    await this.remove(id)
    await renameForGood(work, join(this.#folder, id))
    await rm(this.workDirectory, { recursive: true, force: true })
    const kept = await this.find(key)
    if (!kept) throw new StorageError('storage.failed', 'The template vanished while it was made')
    return kept
  }

  async remove(id: string): Promise<void> {
    const grave = join(this.#folder, `.gone-${id}-${randomBytes(4).toString('hex')}`)
    try {
      await renameForGood(join(this.#folder, id), grave)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return
      throw error
    }
    await rm(grave, { recursive: true, force: true })
  }

  async list(): Promise<ListedTemplate[]> {
    const ids = (await readdir(this.#folder)).filter((name) => /^[0-9a-f]{32}$/.test(name))
    const all = await Promise.all(
      ids.map(async (id) => {
        const directory = join(this.#folder, id)
        const noted = await stat(join(directory, recordName)).catch(() => undefined)
        const [record, bytes] = await Promise.all([readRecord(directory), memoryBytes(directory)])
        return { id, usedAt: noted?.mtime ?? new Date(0), bytes, record }
      }),
    )
    return all.sort((a, b) => b.usedAt.getTime() - a.usedAt.getTime())
  }

  async sweep(): Promise<void> {
    for (const name of await readdir(this.#folder)) {
      if (name.startsWith('.')) await rm(join(this.#folder, name), { recursive: true, force: true })
    }
  }
}

/** Where a guest that goes on from a template is read from. */
export function templateMemory({ directory }: Pick<Template, 'directory'>): string {
  return memoryFolder(directory)
}

function fits(saved: SavedMemory, key: TemplateKey): boolean {
  return (['bootSet', 'stateVersion', 'cpus', 'memoryBytes', 'commandLine'] as const).every(
    (name) => saved[name] === key[name],
  )
}

async function readRecord(directory: string): Promise<z.infer<typeof recordSchema> | undefined> {
  try {
    return recordSchema.parse(JSON.parse(await readFile(join(directory, recordName), 'utf8')))
  } catch {
    return undefined
  }
}
