import { writeFileSync } from 'node:fs'
import { Socket } from 'node:net'
import { setPriority } from 'node:os'
import { pipeline } from 'node:stream/promises'
import { fetchBlob, removeDamaged } from './blobs.ts'
import type { Login } from './credentials.ts'
import { describe, type ImageDescription } from './description.ts'
import { type ImageConfig, type Manifest, parseConfig, parseManifest } from './documents.ts'
import { ImageError, type ImageErrorCode, sayBytes } from './errors.ts'
import { archiveOf, type Merged, mergeLayers } from './layers.ts'
import { layersAtOnce, leastBytesAMinute, limits, resolveMostMs } from './limits.ts'
import { createReach, type Reach } from './reach.ts'
import { parseReference } from './reference.ts'
import { openRegistry, type Registry } from './registry.ts'

/**
 * The process that has to do with what strangers say: it talks to registries, unpacks layers and reads archives, as a
 * user of its own that owns nothing but the folder of blobs. What it gives to the vmhost, which is root, is a description
 * and one archive, made new.
 *
 *     resolve: what the reference leads to        -> Resolved
 *     fetch:   its layers, into the folder        -> nothing
 *     merge:   what they make together            -> Inspected
 *     write:   one archive of that, to descriptor 3 -> nothing
 *
 * One request at a time, in this order; it ends with the vmhost.
 */
export type Job = {
  readonly reference: string
  readonly login: Login | undefined
  /** hosts with ports that the operator has listed */
  readonly listed: readonly string[]
  readonly blobs: string
  readonly uid: number
  /** of the disk that it is for */
  readonly diskBytes: number
}
export type Request =
  | { readonly do: 'resolve'; readonly job: Job }
  | { readonly do: 'fetch' }
  | { readonly do: 'merge' }
  | { readonly do: 'write' }
export type Resolved = { readonly digest: string; readonly packedBytes: number; readonly layers: readonly Blobs[] }
type Blobs = { readonly digest: string; readonly sizeBytes: number }
export type Inspected = {
  readonly inodes: number
  readonly contentBytes: number
  readonly root: { readonly mode: number; readonly uid: number; readonly gid: number; readonly modifiedAt: number }
  readonly description: ImageDescription
}
export type Progress = {
  readonly step: 'fetching' | 'reading' | 'unpacking'
  readonly doneBytes: number
  readonly totalBytes: number
  readonly layersDone: number
  readonly layers: number
}
export type Reply =
  | { readonly done: Resolved | Inspected | null }
  | { readonly failed: { readonly message: string; readonly code?: ImageErrorCode; readonly system?: string } }
  | { readonly progress: Progress }

/** Where the archive goes: whoever unpacks it holds the other end. */
const archiveDescriptor = 3
const progressEveryMs = 250

class Work {
  readonly #job: Job
  readonly #reach: Reach
  readonly #registry: Registry
  readonly #signal = new AbortController()
  #manifest: Manifest | undefined
  #config: ImageConfig | undefined
  #merged: Merged | undefined
  #saidAt = 0
  /** it was given up for being too slow */
  #slow: ImageError | undefined

  constructor(job: Job) {
    const reference = parseReference(job.reference)
    this.#job = job
    this.#reach = createReach(job.listed)
    const { signal } = this.#signal
    this.#registry = openRegistry({ reference, login: job.login, reach: this.#reach, signal })
  }

  async resolve(): Promise<Resolved> {
    const tooSlow = setTimeout(() => this.#giveUp(), resolveMostMs)
    try {
      return await this.#resolve()
    } catch (error) {
      throw this.#slow ?? error
    } finally {
      clearTimeout(tooSlow)
    }
  }

  async #resolve(): Promise<Resolved> {
    const reference = parseReference(this.#job.reference)
    const name = reference.text
    let document = await this.#registry.manifest(reference.digest ?? reference.tag ?? 'latest')
    let manifest = parseManifest(document.bytes, document.contentType, name)
    if (manifest.kind === 'index') {
      document = await this.#registry.manifest(manifest.chosen.digest)
      manifest = parseManifest(document.bytes, document.contentType, name)
      if (manifest.kind === 'index') throw new ImageError('image.invalid', `${name} is a list of lists of images`)
    }
    const packedBytes = manifest.layers.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0)
    if (packedBytes > limits.packedBytes)
      throw new ImageError(
        'image.too_large',
        `${name} has ${sayBytes(packedBytes)} to fetch; the most is ${sayBytes(limits.packedBytes)}`,
      )
    const config = await this.#registry.small(manifest.config.digest, limits.configBytes)
    this.#manifest = manifest
    this.#config = parseConfig(config, manifest.layers.length, name)
    return { digest: document.digest, packedBytes, layers: manifest.layers }
  }

  async fetch(): Promise<void> {
    const { layers } = this.#resolved
    // The same layer twice, such as an empty one, is fetched once.
    const wanted = [...new Map(layers.map((layer) => [layer.digest, layer])).values()]
    const totalBytes = wanted.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0)
    let doneBytes = 0
    let layersDone = 0
    const say = () => this.#say({ step: 'fetching', doneBytes, totalBytes, layersDone, layers: wanted.length })
    const onBytes = (bytes: number) => {
      doneBytes += bytes
      say()
    }
    const waiting = wanted.values()
    const lane = async () => {
      for (const layer of waiting) {
        await fetchBlob(this.#job.blobs, layer, this.#registry, { onBytes, signal: this.#signal.signal })
        layersDone++
        say()
      }
    }
    let seenBytes = 0
    const tooSlow = setInterval(() => {
      if (doneBytes - seenBytes < leastBytesAMinute) this.#giveUp()
      seenBytes = doneBytes
    }, 60_000)
    try {
      await Promise.all(Array.from({ length: layersAtOnce }, lane))
    } catch (error) {
      throw this.#slow ?? error
    } finally {
      clearInterval(tooSlow)
      this.#signal.abort()
      this.#reach.close()
    }
  }

  async merge(): Promise<Inspected> {
    const { layers, config } = this.#resolved
    const counter = this.#counter('reading')
    const mostBytes = Math.min(limits.unpackedBytes, this.#job.diskBytes + limits.unpackedBeyondBytes)
    const merged = await mergeLayers(this.#job.blobs, layers, config.diffIds, mostBytes, counter).catch(
      async (error: unknown) => {
        const digests = layers.map(({ digest }) => digest)
        if (!(error instanceof ImageError) || !(await removeDamaged(this.#job.blobs, digests))) throw error
        const words =
          'A layer that was kept on the server was damaged and is removed: try again, and it is fetched anew'
        throw new ImageError('image.digest', words, { cause: error })
      },
    )
    this.#merged = merged
    const { mode, uid, gid, modifiedAt } = merged.root
    return {
      inodes: merged.plan.inodes,
      contentBytes: merged.plan.contentBytes,
      root: { mode, uid, gid, modifiedAt },
      description: describe(config, merged.root, merged.texts),
    }
  }

  async write(): Promise<void> {
    if (!this.#merged) throw new Error('asked for out of order')
    const { layers } = this.#resolved
    const archive = archiveOf(this.#job.blobs, layers, this.#merged.plan, this.#counter('unpacking'))
    const out = new Socket({ fd: archiveDescriptor, readable: false, writable: true })
    await pipeline(archive, out)
    out.destroy()
  }

  #giveUp(): void {
    const { registry } = parseReference(this.#job.reference)
    this.#slow = new ImageError('image.unreachable', `The registry ${registry} is too slow`)
    this.#signal.abort()
  }

  get #resolved() {
    if (!this.#manifest || !this.#config) throw new Error('asked for out of order')
    return { layers: this.#manifest.layers, config: this.#config }
  }

  #counter(step: 'reading' | 'unpacking'): (bytes: number) => void {
    const { layers } = this.#resolved
    const totalBytes = layers.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0)
    let doneBytes = 0
    return (bytes) => {
      doneBytes += bytes
      this.#say({ step, doneBytes, totalBytes, layersDone: 0, layers: layers.length })
    }
  }

  #say(progress: Progress): void {
    const now = performance.now()
    if (now - this.#saidAt < progressEveryMs && progress.doneBytes < progress.totalBytes) return
    this.#saidAt = now
    send({ progress })
  }
}

function send(reply: Reply): void {
  process.send?.(reply, undefined, {}, () => {})
}

/** Whatever the server needs comes first. */
function stepBack(): void {
  setPriority(10)
  // Before any hypervisor, when there is no memory left.
  writeFileSync('/proc/self/oom_score_adj', '700')
}

/** Root is given up before the first word of a stranger is heard. */
function becomeNobody(uid: number): void {
  if (process.getuid?.() !== 0) return
  process.setgroups?.([])
  process.setgid?.(uid)
  process.setuid?.(uid)
  if (process.getuid?.() !== uid || process.geteuid?.() !== uid) throw new Error('root could not be given up')
}

let work: Work | undefined

async function answer(request: Request): Promise<Resolved | Inspected | null> {
  if (request.do === 'resolve') {
    stepBack()
    becomeNobody(request.job.uid)
    work = new Work(request.job)
    return await work.resolve()
  }
  if (!work) throw new Error('asked for out of order')
  if (request.do === 'fetch') await work.fetch()
  else if (request.do === 'merge') return await work.merge()
  else await work.write()
  return null
}

process.on('message', (request: Request) => {
  answer(request).then(
    (done) => send({ done }),
    (error: unknown) => {
      const { message, code } = error as { message: string; code?: string }
      if (error instanceof ImageError) send({ failed: { message, code: error.code } })
      else send({ failed: { message: String(message), ...(code === undefined ? {} : { system: code }) } })
    },
  )
})
// Its vmhost is gone: the next one begins again, with the bytes that are there.
process.on('disconnect', () => process.exit(0))
