import { randomBytes } from 'node:crypto'
import {
  chmod,
  chown,
  mkdir,
  readdir,
  readFile,
  realpath,
  rename,
  rm,
  stat,
  truncate,
  writeFile,
} from 'node:fs/promises'
import { basename, join } from 'node:path'
import { z } from 'zod'
import { run } from './command.ts'
import { renameForGood, replaceFile, sync } from './durable.ts'
import { StorageError, unlessShort } from './errors.ts'
import { type ImageSettings, imageSettingsSchema } from './image-settings.ts'
import { measureSpace, type Space, spaceProblem } from './space.ts'
import type { Volume } from './volume.ts'

/**
 * Files of machines, and copies of what set-up made that machines depend on.
 *
 *     images/<name>-<hash>.raw   disks that machines are cloned from; of container images: oci/, see ../images/
 *     boot/<hash>/               kernel, initramfs and tools disk, kept as long as a machine runs, or sleeps, with them
 *     machines/<id>/             root's, but root.raw and run/, which are the machine's own
 *     machines/.new-… .gone-…    half made, half removed: swept when a vmhost starts
 *
 * Whatever has its final name is whole.
 */
export type Store = {
  readonly volume: Volume
  /** Images that set-up has made, as they are now. */
  images(): Promise<Image[]>
  /** The kernel, initramfs and tools disk that machines start with now, copied into the store. */
  currentBoot(): Promise<BootSet>
  /** One that machines were started with before; undefined when it is not kept any more. */
  keptBoot(hash: string): Promise<BootSet | undefined>
  /** Copies an image into the store unless it is there; callers at the same time share one copy. */
  importImage(image: Pick<Image, 'name' | 'hash'>): Promise<string>
  /**
   * @throws StorageError `storage.full`, `storage.invalid` (disk smaller than the image, files of another token in its
   *   place); nothing half made is left
   */
  createMachine(machineId: number, wanted: NewMachine): Promise<MachineFiles>
  /** What there is of a machine; undefined when it has no disk here. */
  findMachine(machineId: number): Promise<MachineFiles | undefined>
  /** Notes in a machine's files that they are those of the row with this token. */
  claimMachine(machineId: number, token: string): Promise<void>
  /** Makes the disk larger, never smaller. @returns its size now */
  growDisk(machineId: number, diskBytes: number): Promise<number>
  /** Removes a machine's files; nothing happens when there are none. */
  removeMachine(machineId: number): Promise<void>
  listMachines(): Promise<number[]>
  /** Removes what was left half done, images that were replaced, and boot sets that nobody in `bootInUse` runs or sleeps with. */
  sweep(bootInUse: ReadonlySet<string>): Promise<void>
  directoryOf(machineId: number): string
  space(): Promise<Space>
}

export type BootSet = {
  readonly hash: string
  readonly kernel: string
  readonly initrd: string
  readonly tools: string
}

const imageSchema = z.object({
  name: z.string().regex(/^[a-z][a-z0-9-]{0,39}$/),
  hash: z.string().regex(/^[0-9a-f]{8,64}$/),
  sizeBytes: z.number().int().positive(),
  loginUser: z.string().regex(/^[a-z_][a-z0-9_-]{0,31}$/),
  init: z.boolean(),
  description: z.string().max(500),
})
/** As set-up describes it in image.json. */
export type Image = z.infer<typeof imageSchema>

/** What a machine's disk is cloned from: an image of set-up's, or one that lies elsewhere in the store. */
export type DiskImage = Pick<Image, 'name' | 'hash' | 'sizeBytes' | 'loginUser' | 'init'> & {
  /** the raw disk of one that is not set-up's */
  readonly path?: string
  readonly settings?: ImageSettings
}

const machineSchema = z.object({
  image: z.string(),
  imageHash: z.string(),
  loginUser: z.string(),
  init: z.boolean(),
  /** of a container image */
  settings: imageSettingsSchema.optional(),
  /** for /etc/machine-id: 32 hexadecimal digits */
  systemId: z.string().regex(/^[0-9a-f]{32}$/),
  /** of the row that it belongs to; machines have one since migration 0007 */
  token: z.uuid().optional(),
})
/** What is known of a machine's disk beside its bytes; kept with it. */
export type MachineRecord = z.infer<typeof machineSchema>

export type MachineFiles = {
  readonly directory: string
  readonly disk: string
  readonly diskBytes: number
  readonly record: MachineRecord
  /** the machine's private host key, OpenSSH's format */
  readonly hostKey: string
}

export type NewMachine = {
  readonly image: DiskImage
  readonly diskBytes: number
  readonly uid: number
  readonly hostKey: string
  readonly token: string
}

const bootFiles = ['vmlinuz', 'initrd', 'tools.erofs', 'boot.json'] as const

/** @param artifacts folder that set-up fills; may be a link */
export async function openStore(volume: Volume, artifacts: string): Promise<Store> {
  for (const [folder, mode] of [
    ['', 0o711],
    ['images', 0o700],
    ['boot', 0o755],
    ['machines', 0o711],
  ] as const) {
    await mkdir(join(volume.path, folder), { recursive: true })
    await chmod(join(volume.path, folder), mode)
  }
  return new FileStore(volume, artifacts)
}

class FileStore implements Store {
  readonly volume: Volume
  readonly #artifacts: string
  /** Imports under way, by their target. */
  readonly #importing = new Map<string, Promise<string>>()

  constructor(volume: Volume, artifacts: string) {
    this.volume = volume
    this.#artifacts = artifacts
  }

  async images(): Promise<Image[]> {
    const folder = join(this.#artifacts, 'images')
    const names = (await readdir(folder).catch(() => [])).filter((name) => /^[a-z][a-z0-9-]*$/.test(name)).sort()
    const found = await Promise.all(
      names.map(async (name) => {
        // What cannot be read, or is damaged, is not offered, and holds up nothing else: set-up makes it again.
        const description: unknown = await readFile(join(folder, name, 'image.json'), 'utf8')
          .then((text) => JSON.parse(text))
          .catch(() => undefined)
        const { data } = imageSchema.safeParse(description)
        // Only `<name>` itself is offered, not the `<name>-<hash>` it points at.
        return data?.name === name ? [data] : []
      }),
    )
    return found.flat()
  }

  async currentBoot(): Promise<BootSet> {
    const source = await realpath(join(this.#artifacts, 'boot', 'current')).catch((error: unknown) => {
      throw new StorageError('storage.missing', 'There is no guest kernel on this server: run the set-up', {
        cause: error,
      })
    })
    const hash = basename(source)
    if (!/^[0-9a-f]{8,64}$/.test(hash)) throw new StorageError('storage.invalid', `${source} is no boot set`)
    const target = join(this.volume.path, 'boot', hash)
    await this.#once(target, async () => {
      if (await stat(target).catch(() => undefined)) return
      const work = join(this.volume.path, 'boot', `.new-${hash}`)
      await rm(work, { recursive: true, force: true })
      await mkdir(work, { mode: 0o755 })
      for (const name of bootFiles) {
        await copy(join(source, name), join(work, name))
        await chmod(join(work, name), 0o644)
      }
      await run('sync', ['-f', work])
      await rename(work, target)
    })
    return bootSet(hash, target)
  }

  async keptBoot(hash: string): Promise<BootSet | undefined> {
    if (!/^[0-9a-f]{8,64}$/.test(hash)) return undefined
    const target = join(this.volume.path, 'boot', hash)
    return (await stat(target).catch(() => undefined)) ? bootSet(hash, target) : undefined
  }

  async importImage(image: Pick<Image, 'name' | 'hash'>): Promise<string> {
    const target = join(this.volume.path, 'images', `${image.name}-${image.hash}.raw`)
    return this.#once(target, async () => {
      if (await stat(target).catch(() => undefined)) return
      await this.#refuseWhenFull()
      const work = `${target}.new`
      const source = join(this.#artifacts, 'images', `${image.name}-${image.hash}`, 'root.raw')
      await copy(source, work)
      await chmod(work, 0o600)
      await run('sync', [work])
      await rename(work, target)
    })
  }

  async createMachine(machineId: number, wanted: NewMachine): Promise<MachineFiles> {
    const there = await this.findMachine(machineId)
    if (there?.record.token === wanted.token) return there
    if (there) throw new StorageError('storage.invalid', `${there.directory} is another machine's`)
    const { image, diskBytes, uid } = wanted
    if (diskBytes < image.sizeBytes) {
      const least = Math.ceil(image.sizeBytes / 2 ** 20)
      throw new StorageError('storage.invalid', `The image ${image.name} needs a disk of at least ${least} MiB`)
    }
    await this.#refuseWhenFull()
    const source = image.path ?? (await this.importImage(image))
    const work = join(this.volume.path, 'machines', `.new-${machineId}`)
    await rm(work, { recursive: true, force: true })
    try {
      await mkdir(work, { mode: 0o750 })
      await chown(work, 0, uid)
      const disk = join(work, 'root.raw')
      await run('cp', ['--reflink=always', source, disk])
      await truncate(disk, diskBytes)
      await chmod(disk, 0o600)
      await chown(disk, uid, uid)
      await writeFile(join(work, 'host_key'), wanted.hostKey, { mode: 0o600, flush: true })
      const record: MachineRecord = {
        image: image.name,
        imageHash: image.hash,
        loginUser: image.loginUser,
        init: image.init,
        ...(image.settings ? { settings: image.settings } : {}),
        systemId: randomBytes(16).toString('hex'),
        token: wanted.token,
      }
      await writeFile(join(work, 'machine.json'), recordText(record), { mode: 0o600, flush: true })
      await Promise.all([sync(disk), sync(work)])
      // Before anybody hears of it: a machine whose files a power cut takes is lost, whatever its guest had synced.
      await renameForGood(work, this.directoryOf(machineId))
    } catch (error) {
      await rm(work, { recursive: true, force: true })
      throw asFull(error)
    }
    const made = await this.findMachine(machineId)
    if (!made) throw new StorageError('storage.failed', 'The disk vanished while it was made')
    return made
  }

  async findMachine(machineId: number): Promise<MachineFiles | undefined> {
    const directory = this.directoryOf(machineId)
    const disk = join(directory, 'root.raw')
    const found = await stat(disk).catch(unlessShort(() => undefined))
    if (!found) return undefined
    const read = async () => {
      const record = machineSchema.parse(JSON.parse(await readFile(join(directory, 'machine.json'), 'utf8')))
      const hostKey = await readFile(join(directory, 'host_key'), 'utf8')
      return { directory, disk, diskBytes: found.size, record, hostKey }
    }
    return read().catch(
      unlessShort((cause) => {
        throw new StorageError('storage.failed', `The files of the machine in ${directory} are damaged`, { cause })
      }),
    )
  }

  async claimMachine(machineId: number, token: string): Promise<void> {
    const files = await this.findMachine(machineId)
    if (files) await replaceFile(join(files.directory, 'machine.json'), recordText({ ...files.record, token }))
  }

  async growDisk(machineId: number, diskBytes: number): Promise<number> {
    const disk = join(this.directoryOf(machineId), 'root.raw')
    const { size } = await stat(disk)
    if (diskBytes <= size) return size
    await truncate(disk, diskBytes)
    return diskBytes
  }

  async removeMachine(machineId: number): Promise<void> {
    const grave = join(this.volume.path, 'machines', `.gone-${machineId}-${randomBytes(4).toString('hex')}`)
    try {
      // What was deleted stays deleted: with its name gone, the next vmhost sweeps the rest away.
      await renameForGood(this.directoryOf(machineId), grave)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return
      throw error
    }
    await rm(grave, { recursive: true, force: true })
  }

  async listMachines(): Promise<number[]> {
    const names = await readdir(join(this.volume.path, 'machines'))
    return names.filter((name) => /^[1-9][0-9]*$/.test(name)).map(Number)
  }

  async sweep(bootInUse: ReadonlySet<string>): Promise<void> {
    const unfinished = (name: string) => name.startsWith('.new-') || name.startsWith('.gone-') || name.endsWith('.new')
    const images = new Set((await this.images()).map((image) => `${image.name}-${image.hash}.raw`))
    const current = basename(await realpath(join(this.#artifacts, 'boot', 'current')).catch(() => ''))
    await this.#removeWhere('machines', unfinished)
    // An empty list means that set-up is not to be seen now, not that its images are gone.
    await this.#removeWhere('images', (name) => unfinished(name) || (images.size > 0 && !images.has(name)))
    await this.#removeWhere('boot', (name) => unfinished(name) || (name !== current && !bootInUse.has(name)))
  }

  directoryOf(machineId: number): string {
    if (!Number.isSafeInteger(machineId) || machineId < 1) throw new RangeError(`${machineId} is no machine id`)
    return join(this.volume.path, 'machines', String(machineId))
  }

  space(): Promise<Space> {
    return measureSpace(this.volume)
  }

  async #removeWhere(folder: string, unwanted: (name: string) => boolean): Promise<void> {
    for (const name of await readdir(join(this.volume.path, folder))) {
      const path = join(this.volume.path, folder, name)
      if (unwanted(name) && !this.#importing.has(path.replace(/\.new$/, '')))
        await rm(path, { recursive: true, force: true })
    }
  }

  async #refuseWhenFull(): Promise<void> {
    const problem = spaceProblem(await this.space())
    if (problem) throw new StorageError('storage.full', problem)
  }

  async #once(target: string, make: () => Promise<void>): Promise<string> {
    const running = this.#importing.get(target)
    if (running) return running
    const made = make()
      .then(() => target)
      .finally(() => this.#importing.delete(target))
    this.#importing.set(target, made)
    return made
  }
}

function bootSet(hash: string, folder: string): BootSet {
  return {
    hash,
    kernel: join(folder, 'vmlinuz'),
    initrd: join(folder, 'initrd'),
    tools: join(folder, 'tools.erofs'),
  }
}

/** A copy that keeps holes, and shares blocks when both lie on one filesystem that can. */
async function copy(from: string, to: string): Promise<void> {
  await run('cp', ['--reflink=auto', '--sparse=always', '--', from, to])
}

function recordText(record: MachineRecord): string {
  return `${JSON.stringify(record)}\n`
}

function asFull(error: unknown): unknown {
  if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') return error
  return new StorageError('storage.full', "The server's disk is full", { cause: error })
}
