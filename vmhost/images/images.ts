import { randomBytes } from 'node:crypto'
import { chmod, chown, mkdir, readdir, readFile, rm, stat, utimes, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Logger } from 'pino'
import { z } from 'zod'
import { makeDisk } from '../install/images.ts'
import { Slots } from '../reconcile/slots.ts'
import { renameForGood, sync } from '../storage/durable.ts'
import { StorageError } from '../storage/errors.ts'
import { type ImageSettings, imageSettingsSchema } from '../storage/image-settings.ts'
import type { Space } from '../storage/space.ts'
import { readRegistries } from './credentials.ts'
import { ImageError, sayBytes } from './errors.ts'
import { pullsAtOnce, pullsOfAccount } from './limits.ts'
import { type Pull, startPull } from './process.ts'
import { parseReference, type Reference } from './reference.ts'
import { Room } from './room.ts'
import type { Inspected, Progress, Resolved } from './worker.ts'

/**
 * Disks made from container images.
 *
 *     store/oci/images/<digest>/{root.raw,image.json}   what machines are cloned from
 *     store/oci/blobs/                                  layers as they were sent (blobs.ts); the worker's own
 *     store/oci/work/<random>/                          half made: swept when a vmhost starts
 *
 * What has its final name is whole. A tag is looked up again for each machine; a disk that its digest has is used as it
 * is. A disk is kept while a machine was made of it here and for some days after it was last asked for, and layers for
 * some days and up to a share of the store: all of that is cache, and goes when space is short.
 */
export type Images = {
  /**
   * The disk for a reference, fetched and made unless it is there. Those who want the same at the same time wait for one;
   * it is given up when nobody waits any more.
   * @throws ImageError, StorageError
   */
  ensure(text: string, wanted: Wanted): Promise<OciImage>
  /**
   * Removes what was left half done, and what nobody has used for long.
   * @param inUse digests that a machine here was made of
   */
  sweep(inUse: ReadonlySet<string>): Promise<void>
  /**
   * Its space is needed: removes all that can be fetched again, but for what was asked for a moment ago.
   * @param inUse as in `sweep`: a machine's disk shares its blocks, so that little would come of it
   * @returns whether there was anything to give
   */
  giveUp(inUse: ReadonlySet<string>): Promise<boolean>
}

export type Wanted = {
  readonly accountId: number
  /** the machine's disk: what cannot fit is not fetched */
  readonly diskBytes: number
  readonly signal: AbortSignal
  readonly onProgress?: (progress: ImageProgress) => void
}
export type ImageProgress =
  | Progress
  | { readonly step: 'waiting' | 'resolving' | 'making'; readonly doneBytes?: undefined }

const recordSchema = z.object({
  format: z.literal(1),
  /** as it was asked for first */
  reference: z.string(),
  /** of the manifest for this platform */
  digest: z.string(),
  sizeBytes: z.number().int().positive(),
  loginUser: z.string(),
  init: z.boolean(),
  settings: imageSettingsSchema,
  madeAt: z.iso.datetime(),
})
type ImageRecord = z.infer<typeof recordSchema>

export type OciImage = {
  /** everything spelled out */
  readonly name: string
  /** digest of the manifest, its hexadecimal digits */
  readonly hash: string
  readonly sizeBytes: number
  readonly loginUser: string
  readonly init: boolean
  /** the raw disk */
  readonly path: string
  readonly settings: ImageSettings
}

export type ImagesOptions = {
  /** the store */
  readonly directory: string
  /** the operator's file of registries */
  readonly registriesPath: string
  readonly space: () => Promise<Space>
  readonly log: Pick<Logger, 'info' | 'warn'>
}

/** Below the numbers of hypervisors' users (hypervisorUid); nobody else's. */
export const workerUid = 1_999_999

const dayMs = 86_400_000
const imageKeptMs = 7 * dayMs
const blobKeptMs = 3 * dayMs
/** Its machine may be about to get its disk. */
const justAskedMs = 10 * 60_000
/** Of the store, what layers may take. */
const blobShare = 0.1
const blobMostBytes = 20 * 2 ** 30

type Making = {
  readonly promise: Promise<OciImage>
  readonly abort: AbortController
  readonly waiters: Set<Wanted>
  progress: ImageProgress
}

export async function openImages(options: ImagesOptions): Promise<Images> {
  const directory = join(options.directory, 'oci')
  await mkdir(join(directory, 'images'), { recursive: true })
  await mkdir(join(directory, 'work'), { recursive: true })
  await mkdir(join(directory, 'blobs'), { recursive: true })
  for (const name of ['images', 'work']) await chmod(join(directory, name), 0o700)
  // The worker passes through here on its way to the blobs, and sees nothing else.
  await chmod(directory, 0o711)
  await chmod(join(directory, 'blobs'), 0o700)
  await chown(join(directory, 'blobs'), workerUid, workerUid)
  return new ImageStore(directory, options)
}

class ImageStore implements Images {
  readonly #directory: string
  readonly #options: ImagesOptions
  readonly #slots = new Slots(pullsAtOnce)
  readonly #slotsOf = new Map<number, Slots>()
  readonly #making = new Map<string, Making>()
  readonly #room: Room

  constructor(directory: string, options: ImagesOptions) {
    this.#directory = directory
    this.#room = new Room(options.space)
    this.#options = options
  }

  async ensure(text: string, wanted: Wanted): Promise<OciImage> {
    const reference = parseReference(text)
    wanted.signal.throwIfAborted()
    const making = this.#join(reference, wanted.accountId)
    making.waiters.add(wanted)
    wanted.onProgress?.(making.progress)
    const left = Promise.withResolvers<never>()
    const leave = () => left.reject(wanted.signal.reason)
    wanted.signal.addEventListener('abort', leave, { once: true })
    try {
      return await Promise.race([making.promise, left.promise])
    } finally {
      wanted.signal.removeEventListener('abort', leave)
      making.waiters.delete(wanted)
      if (making.waiters.size === 0) making.abort.abort()
    }
  }

  async sweep(inUse: ReadonlySet<string>): Promise<void> {
    if (this.#making.size === 0) {
      for (const name of await readdir(join(this.#directory, 'work')))
        await rm(join(this.#directory, 'work', name), { recursive: true, force: true })
    }
    await this.#removeImages((hash, idleMs) => idleMs > imageKeptMs && !inUse.has(hash))
    const { totalBytes } = await this.#options.space()
    await this.#removeBlobs(blobKeptMs, Math.min(blobMostBytes, totalBytes * blobShare))
  }

  async giveUp(inUse: ReadonlySet<string>): Promise<boolean> {
    const images = await this.#removeImages((hash, idleMs) => idleMs > justAskedMs && !inUse.has(hash))
    const blobs = await this.#removeBlobs(0, 0)
    return images + blobs > 0
  }

  /** @param accountId of who came first, and waits for its own before it waits with others */
  #join(reference: Reference, accountId: number): Making {
    const there = this.#making.get(reference.text)
    // One that was given up a moment ago is of no use to whoever comes now.
    if (there && !there.abort.signal.aborted) return there
    const abort = new AbortController()
    const making: Making = {
      abort,
      waiters: new Set(),
      progress: { step: 'waiting' },
      promise: Promise.resolve()
        .then(() => this.#make(reference, making, accountId))
        .finally(() => {
          if (this.#making.get(reference.text) === making) this.#making.delete(reference.text)
        }),
    }
    making.promise.catch(() => {})
    this.#making.set(reference.text, making)
    return making
  }

  async #make(reference: Reference, making: Making, accountId: number): Promise<OciImage> {
    const { signal } = making.abort
    using _own = await this.#ownSlots(accountId).acquire(signal)
    using _slot = await this.#slots.acquire(signal)
    const say = (progress: ImageProgress) => {
      making.progress = progress
      for (const { onProgress } of making.waiters) onProgress?.(progress)
    }
    say({ step: 'resolving' })
    const work = join(this.#directory, 'work', randomBytes(8).toString('hex'))
    const tree = join(work, 'tree')
    await mkdir(tree, { recursive: true, mode: 0o700 })
    try {
      const blobs = join(this.#directory, 'blobs')
      const { auths } = await readRegistries(this.#options.registriesPath)
      await using pull = startPull(tree, blobs, say)
      const stop = () => void pull[Symbol.asyncDispose]()
      signal.addEventListener('abort', stop, { once: true })
      try {
        const resolved = await pull.resolve({
          reference: reference.text,
          login: auths[reference.registry],
          listed: Object.keys(auths),
          blobs,
          uid: workerUid,
          diskBytes: mostDisk(making),
        })
        const found = await this.#find(resolved.digest, reference.text)
        if (found) return found
        return await this.#build(reference, making, pull, resolved, { work, tree, say })
      } finally {
        signal.removeEventListener('abort', stop)
      }
    } catch (error) {
      // What came of its processes being ended is of no interest.
      signal.throwIfAborted()
      throw this.#explained(error)
    } finally {
      await rm(work, { recursive: true, force: true })
    }
  }

  #ownSlots(accountId: number): Slots {
    for (const [id, slots] of this.#slotsOf) if (!slots.busyWithin(0)) this.#slotsOf.delete(id)
    const own = this.#slotsOf.get(accountId) ?? new Slots(pullsOfAccount)
    this.#slotsOf.set(accountId, own)
    return own
  }

  async #build(
    reference: Reference,
    making: Making,
    pull: Pull,
    resolved: Resolved,
    at: { work: string; tree: string; say: (progress: ImageProgress) => void },
  ): Promise<OciImage> {
    const { signal } = making.abort
    const onWait = () => at.say({ step: 'waiting' })
    // That it is itself under way keeps nothing.
    if (!(await this.#room.has(resolved.packedBytes))) await this.#removeBlobs(0, 0, 1)
    {
      using _packed = await this.#room.take(resolved.packedBytes, signal, onWait)
      await pull.fetch()
    }
    const inspected = await pull.merge()
    this.#refuseLarger(reference, making, inspected)
    // The files, and the disk that is made of them.
    using _files = await this.#room.take(inspected.contentBytes * 2 + inspected.inodes * 512, signal, onWait)
    await pull.unpack()
    signal.throwIfAborted()
    at.say({ step: 'making' })
    const { mode, uid, gid, modifiedAt } = inspected.root
    await chown(at.tree, uid, gid)
    await chmod(at.tree, mode)
    await utimes(at.tree, modifiedAt, modifiedAt)
    const made = join(at.work, 'image')
    const disk = join(made, 'root.raw')
    const sizeBytes = await makeDisk(disk, at.tree)
    await chmod(disk, 0o600)
    const { loginUser, init, webPort, environment, service } = inspected.description
    const record: ImageRecord = {
      format: 1,
      reference: reference.text,
      digest: resolved.digest,
      sizeBytes,
      loginUser,
      init,
      settings: imageSettingsSchema.parse({ webPort, environment, service }),
      madeAt: new Date().toISOString(),
    }
    await writeFile(join(made, 'image.json'), `${JSON.stringify(record)}\n`, { mode: 0o600, flush: true })
    await sync(disk)
    await sync(made)
    signal.throwIfAborted()
    await renameForGood(made, this.#pathOf(resolved.digest)).catch(async (error: NodeJS.ErrnoException) => {
      // The same disk under two references, made at the same time.
      if (error.code !== 'ENOTEMPTY' && error.code !== 'EEXIST') throw error
    })
    const found = await this.#find(resolved.digest, reference.text)
    if (!found) throw new StorageError('storage.failed', 'The disk of the image vanished while it was made')
    this.#options.log.info({ image: reference.text, digest: resolved.digest, sizeBytes }, 'made the disk of an image')
    return found
  }

  /** Somebody whose disk it would fit into may be waiting too: the others hear it from the store. */
  #refuseLarger(reference: Reference, making: Making, { contentBytes }: Inspected): void {
    const most = mostDisk(making)
    if (contentBytes <= most) return
    const holds = sayBytes(contentBytes)
    throw new ImageError(
      'image.too_large',
      `${reference.text} holds ${holds}, and the machine's disk is ${sayBytes(most)}`,
    )
  }

  async #find(digest: string, name: string): Promise<OciImage | undefined> {
    const directory = this.#pathOf(digest)
    const text = await readFile(join(directory, 'image.json'), 'utf8').catch(() => undefined)
    if (text === undefined) return undefined
    const { data } = recordSchema.safeParse(JSON.parse(text))
    const path = join(directory, 'root.raw')
    // Of another version of Berth's, or damaged: it is made anew.
    if (data?.digest !== digest || (await stat(path).catch(() => undefined))?.size !== data.sizeBytes) {
      await rm(directory, { recursive: true, force: true })
      return undefined
    }
    const { sizeBytes, loginUser, init, settings } = data
    await utimes(join(directory, 'image.json'), new Date(), new Date())
    return { name, hash: hexOf(digest), sizeBytes, loginUser, init, path, settings }
  }

  #pathOf(digest: string): string {
    return join(this.#directory, 'images', hexOf(digest))
  }

  #explained(error: unknown): unknown {
    if (error instanceof ImageError || error instanceof StorageError) return error
    if ((error as NodeJS.ErrnoException).code === 'ENOSPC' || /No space left|full/.test(String(error)))
      return new StorageError('storage.full', "The server's disk is full", { cause: error })
    return error
  }

  async #removeImages(unwanted: (hash: string, idleMs: number) => boolean): Promise<number> {
    const folder = join(this.#directory, 'images')
    let removed = 0
    for (const hash of await readdir(folder)) {
      const used = await stat(join(folder, hash, 'image.json')).catch(() => undefined)
      const idleMs = used ? Date.now() - used.mtimeMs : Number.POSITIVE_INFINITY
      if (!unwanted(hash, idleMs)) continue
      this.#options.log.info({ image: hash }, 'an image that nobody uses is removed')
      await rm(join(folder, hash), { recursive: true, force: true })
      removed++
    }
    return removed
  }

  /** Takes away what is older than that, then the oldest beyond `mostBytes`; nothing that another image is being made of. */
  async #removeBlobs(keptMs: number, mostBytes: number, makingMost = 0): Promise<number> {
    const folder = join(this.#directory, 'blobs')
    if (this.#making.size > makingMost) return 0
    const found = await Promise.all(
      (await readdir(folder)).map(async (name) => ({
        name,
        seen: await stat(join(folder, name)).catch(() => undefined),
      })),
    )
    const newest = found.flatMap(({ name, seen }) => (seen ? [{ name, at: seen.mtimeMs, bytes: seen.size }] : []))
    newest.sort((a, b) => b.at - a.at)
    let kept = 0
    let removed = 0
    for (const { name, at, bytes } of newest) {
      kept += bytes
      if (Date.now() - at <= keptMs && kept <= mostBytes) continue
      await rm(join(folder, name), { force: true })
      removed++
    }
    return removed
  }
}

function mostDisk({ waiters }: Making): number {
  return Math.max(0, ...[...waiters].map(({ diskBytes }) => diskBytes))
}

function hexOf(digest: string): string {
  return digest.replace(/^sha(256|512):/, '')
}
