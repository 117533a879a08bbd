import { createHash, type Hash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { open, rename, rm, stat, truncate, utimes } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Blob } from './documents.ts'
import { ImageError, sayBytes } from './errors.ts'
import type { Registry } from './registry.ts'

/**
 * Layers as they were sent, by digest: a folder that outlives the images made of them, so that the next image of the same
 * family brings only what is new.
 *
 *     sha256-<hex>        whole, and what it is called after
 *     sha256-<hex>.part   the beginning of one: what is fetched next is the rest, also after a kill -9
 */

/** Breaks in a row without a byte between them, before a layer is given up. */
const breaksMost = 4
const waitFirstMs = 500

export function blobPath(folder: string, digest: string): string {
  return join(folder, digest.replace(':', '-'))
}

/**
 * Fetches a blob unless it is there.
 * @param onBytes hears how many more of its bytes are there; below zero when some were given up
 * @returns its path
 * @throws ImageError
 */
export async function fetchBlob(
  folder: string,
  { digest, sizeBytes }: Blob,
  registry: Registry,
  { onBytes, signal }: { onBytes: (bytes: number) => void; signal: AbortSignal },
): Promise<string> {
  const path = blobPath(folder, digest)
  if ((await stat(path).catch(() => undefined))?.size === sizeBytes) {
    // For those who look what was not used for long.
    await utimes(path, new Date(), new Date())
    onBytes(sizeBytes)
    return path
  }
  const part = `${path}.part`
  for (let tries = 1; ; tries++) {
    const resumed = await receive(part, { digest, sizeBytes }, registry, { onBytes, signal })
    if (resumed.digest === digest) break
    await rm(part, { force: true })
    onBytes(-sizeBytes)
    // What lay there from before may have been damaged by a power cut; what came in one piece was sent so.
    if (!resumed.isPatched || tries > 1)
      throw new ImageError('image.digest', `A layer of ${sayBytes(sizeBytes)} is not what its digest says: ${digest}`)
  }
  const file = await open(part, 'r')
  await file.sync().finally(() => file.close())
  await rename(part, path)
  return path
}

/** @returns the digest of what is there now, all of it */
async function receive(
  part: string,
  { digest, sizeBytes }: Blob,
  registry: Registry,
  { onBytes, signal }: { onBytes: (bytes: number) => void; signal: AbortSignal },
): Promise<{ digest: string; isPatched: boolean }> {
  const [algorithm = ''] = digest.split(':')
  const found = (await stat(part).catch(() => undefined))?.size ?? 0
  if (found > sizeBytes) await truncate(part, 0)
  let hash = createHash(algorithm)
  let there = found > sizeBytes ? 0 : found
  const isPatched = there > 0
  if (there > 0) await hashFile(part, hash)
  onBytes(there)
  const file = await open(part, 'a', 0o600)
  try {
    for (let breaks = 0; there < sizeBytes; ) {
      const before = there
      try {
        const { body, offsetBytes } = await registry.blob(digest, there)
        if (offsetBytes !== there) {
          await file.truncate(0)
          onBytes(-there)
          hash = createHash(algorithm)
          there = 0
        }
        for await (const chunk of body as AsyncIterable<Buffer>) {
          if (there + chunk.length > sizeBytes) throw tooLong(digest, sizeBytes)
          await file.write(chunk)
          hash.update(chunk)
          there += chunk.length
          onBytes(chunk.length)
        }
      } catch (error) {
        // Before its first byte came, the registry has tried for as long as is worth it; and a full disk stays full.
        if (signal.aborted || error instanceof ImageError || (error as NodeJS.ErrnoException).code === 'ENOSPC')
          throw error
      }
      if (there >= sizeBytes) break
      breaks = there > before ? 1 : breaks + 1
      if (breaks >= breaksMost) {
        throw new ImageError(
          'image.unreachable',
          `The registry breaks off a layer of ${sayBytes(sizeBytes)} after ${sayBytes(there)}, again and again`,
        )
      }
      await sleep(waitFirstMs * breaks, undefined, { signal })
    }
  } finally {
    await file.close()
  }
  return { digest: `${algorithm}:${hash.digest('hex')}`, isPatched }
}

/**
 * Takes away those that are not what they are called any more: a disk that fails, or was full, may have changed them.
 * @returns how many there were
 */
export async function removeDamaged(folder: string, digests: Iterable<string>): Promise<number> {
  let removed = 0
  for (const digest of new Set(digests)) {
    const path = blobPath(folder, digest)
    const [algorithm = ''] = digest.split(':')
    const hash = createHash(algorithm)
    await hashFile(path, hash)
    if (`${algorithm}:${hash.digest('hex')}` === digest) continue
    await rm(path, { force: true })
    removed++
  }
  return removed
}

async function hashFile(path: string, hash: Hash): Promise<void> {
  for await (const chunk of createReadStream(path, { highWaterMark: 1 << 20 })) hash.update(chunk as Buffer)
}

function tooLong(digest: string, sizeBytes: number): ImageError {
  return new ImageError(
    'image.digest',
    `The registry sends more than the ${sayBytes(sizeBytes)} of the layer ${digest}`,
  )
}
