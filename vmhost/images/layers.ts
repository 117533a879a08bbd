import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { pipeline } from 'node:stream'
import { createGunzip, createZstdDecompress, type ZstdDecompress } from 'node:zlib'
import { blobPath } from './blobs.ts'
import type { Layer } from './documents.ts'
import { ImageError, sayBytes } from './errors.ts'
import { limits } from './limits.ts'
import { readTar } from './tar-reader.ts'
import {
  ending,
  headerOf,
  linkHeader,
  type PlacedFile,
  type Plan,
  padding,
  planTree,
  storedBytes,
} from './tar-writer.ts'
import { addMountPoints, applyLayer, type Change, type DirectoryNode, emptyTree, find, keptAttributes } from './tree.ts'

/**
 * From layers to the tree that they make, and from there to one archive.
 *
 * The layers are unpacked twice: once to know which of their files are left in the end, and once to write those. That
 * costs time and no disk, and what a layer has of files that a later one takes away is never written.
 */
export type Merged = {
  readonly plan: Plan
  readonly root: DirectoryNode
  /** files that say who there is, and what a system of its own would need: by their paths */
  readonly texts: ReadonlyMap<string, string>
}

type Text = { readonly layer: number; readonly index: number; readonly text: string }

const KEPT_TEXTS = new Set(['etc/passwd', 'etc/group'])
const keptTextMost = 1 << 20
const chunkBytes = 1 << 18

/**
 * Reads all layers and finds what they make together. Their digests, unpacked, are those of the configuration, or it throws.
 * @param diffIds one for each layer
 * @param mostBytes what they may be, unpacked
 * @param onBytes hears of what was read of the packed layers
 * @throws ImageError
 */
export async function mergeLayers(
  folder: string,
  layers: readonly Layer[],
  diffIds: readonly string[],
  mostBytes: number,
  onBytes: (bytes: number) => void,
): Promise<Merged> {
  const root = emptyTree()
  const texts = new Map<string, Text>()
  const total = { unpackedBytes: 0, entries: 0, attributesBytes: 0 }
  for (const [number, layer] of layers.entries()) {
    const diffId = diffIds[number] ?? ''
    const [algorithm = ''] = diffId.split(':')
    const hash = createHash(algorithm)
    const changes: Change[] = []
    const watched = (async function* () {
      for await (const chunk of unpacked(folder, layer, onBytes)) {
        total.unpackedBytes += chunk.length
        if (total.unpackedBytes > mostBytes)
          throw new ImageError('image.too_large', `The image is larger than ${sayBytes(mostBytes)}, unpacked`)
        hash.update(chunk)
        yield chunk
      }
    })()
    for await (const { content, ...entry } of readTar(watched)) {
      if (++total.entries > limits.entries)
        throw new ImageError('image.too_large', `The image has more than ${limits.entries} files`)
      const change = { ...entry, attributes: keptAttributes(entry) }
      for (const [name, value] of change.attributes) total.attributesBytes += name.length + value.length
      if (total.attributesBytes > limits.allAttributesBytes) {
        const most = sayBytes(limits.allAttributesBytes)
        throw new ImageError('image.too_large', `The image has more than ${most} of extended attributes`)
      }
      changes.push(change)
      const path = change.path.replace(/^(?:\.?\/)+/, '')
      if (change.type !== 'file' || !KEPT_TEXTS.has(path) || change.sizeBytes > keptTextMost) continue
      const parts: Buffer[] = []
      for await (const part of content()) parts.push(part)
      texts.set(path, { layer: number, index: changes.length - 1, text: Buffer.concat(parts).toString('latin1') })
    }
    if (`${algorithm}:${hash.digest('hex')}` !== diffId)
      throw new ImageError('image.digest', `Layer ${number + 1} of the image is not what its configuration says`)
    applyLayer(root, number, changes)
  }
  addMountPoints(root)
  return {
    plan: planTree(root),
    root,
    texts: new Map([...texts].filter(isThere(root)).map(([path, { text }]) => [path, text])),
  }
}

/** A later layer may have taken it away, or put something else in its place. */
function isThere(root: DirectoryNode): (entry: [string, Text]) => boolean {
  return ([path, { layer, index }]) => {
    const node = find(root, path)
    return node?.type === 'file' && node.layer === layer && node.index === index
  }
}

/** What `mergeLayers` found, as one archive. @param onBytes hears of what was read of the packed layers */
export async function* archiveOf(
  folder: string,
  layers: readonly Layer[],
  plan: Plan,
  onBytes: (bytes: number) => void,
): AsyncGenerator<Buffer, void> {
  for (const placed of plan.first) yield headerOf(placed)
  for (const [number, layer] of layers.entries()) {
    let read = 0
    const counted = (bytes: number) => {
      read += bytes
      onBytes(bytes)
    }
    const wanted = plan.files.get(number)
    if (wanted) yield* filesOf(unpacked(folder, layer, counted), wanted)
    onBytes(layer.sizeBytes - read)
  }
  for (const link of plan.links) yield linkHeader(link)
  yield ending()
}

/** @param wanted by the number of their entry in the layer */
async function* filesOf(
  layer: AsyncGenerator<Buffer, void>,
  wanted: ReadonlyMap<number, PlacedFile>,
): AsyncGenerator<Buffer, void> {
  let left = wanted.size
  let index = 0
  for await (const entry of readTar(layer)) {
    const placed = wanted.get(index++)
    if (!placed) continue
    yield headerOf(placed)
    yield* entry.content()
    yield padding(storedBytes(placed.node))
    // What follows need not be unpacked.
    if (--left === 0) break
  }
  await layer.return()
  if (left > 0) throw new ImageError('image.digest', 'A layer has changed while it was read')
}

async function* unpacked(folder: string, layer: Layer, onBytes: (bytes: number) => void): AsyncGenerator<Buffer, void> {
  const file = createReadStream(blobPath(folder, layer.digest), { highWaterMark: chunkBytes })
  const counted = async function* (source: AsyncIterable<Buffer>) {
    for await (const chunk of source) {
      onBytes(chunk.length)
      yield chunk
    }
  }
  try {
    switch (layer.compression) {
      case 'gzip':
        yield* gunzipped(counted(file))
        return
      case 'zstd':
        yield* framesOf(counted(file))
        return
      default:
        yield* counted(file)
    }
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (error instanceof ImageError || (code !== undefined && !/^(Z_|ZSTD_|ERR_)/.test(code))) throw error
    throw new ImageError('image.invalid', 'A layer is not packed as it says', { cause: error })
  } finally {
    file.destroy()
  }
}

async function* gunzipped(packed: AsyncIterable<Buffer>): AsyncGenerator<Buffer, void> {
  const unpacker = createGunzip({ chunkSize: chunkBytes })
  try {
    // Its errors arrive where it is read.
    for await (const chunk of pipeline(packed, unpacker, () => {})) yield chunk as Buffer
  } finally {
    unpacker.destroy()
  }
}

/**
 * All frames, one after the other. Node's unpacker takes what follows its first frame for nobody's, and layers that can be
 * read by the file (zstd:chunked) have a frame for each, and notes between them.
 * @see RFC 8878, 3
 */
async function* framesOf(packed: AsyncIterable<Buffer>): AsyncGenerator<Buffer, void> {
  const input = packed[Symbol.asyncIterator]()
  let chunk: Buffer = Buffer.alloc(0)
  let frame: ZstdDecompress | undefined
  try {
    for (;;) {
      if (chunk.length === 0) {
        const { done, value } = await input.next()
        if (done) return
        chunk = value
        continue
      }
      const unpacker = createZstdDecompress({ chunkSize: chunkBytes })
      frame = unpacker
      let consumedBytes = 0
      const feed = async () => {
        for (;;) {
          await new Promise<void>((resolve) => unpacker.write(chunk, () => resolve()))
          // It has ended within the chunk, or cannot be read.
          if (unpacker.bytesWritten - consumedBytes < chunk.length) return
          consumedBytes = unpacker.bytesWritten
          const { done, value } = await input.next()
          chunk = done ? Buffer.alloc(0) : value
          if (done) {
            unpacker.end()
            return
          }
        }
      }
      feed().catch((error) => unpacker.destroy(error))
      for await (const part of unpacker) yield part as Buffer
      chunk = chunk.subarray(unpacker.bytesWritten - consumedBytes)
    }
  } finally {
    frame?.destroy()
    await input.return?.()
  }
}
