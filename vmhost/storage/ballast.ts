import { rm, stat, statfs } from 'node:fs/promises'
import { join } from 'node:path'
import { run } from './command.ts'

/**
 * A file of nothing, beside the database, on a filesystem that machines' disks lie on too. Without it machines could
 * fill that to the last block, and Postgres would end for want of one: then nobody could remove anything any more.
 * A volume needs none: it leaves a tenth of its filesystem.
 *
 *     kept --nearly full: machines stand still--> given up --space again--> kept
 *
 * What is free is always counted as if it were kept, so that what it leaves is nobody's but the server's own programs'.
 */
export type Ballast = { readonly path: string; readonly sizeBytes: number }

const MiB = 2 ** 20
const GiB = 2 ** 30

export async function planBallast(dataDirectory: string): Promise<Ballast> {
  const { blocks, bsize } = await statfs(dataDirectory)
  return {
    path: join(dataDirectory, 'ballast'),
    sizeBytes: Math.min(GiB, Math.floor((blocks * bsize) / 50 / MiB) * MiB),
  }
}

/** What of it is not there now. */
export async function missingBytes({ path, sizeBytes }: Ballast): Promise<number> {
  const found = await stat(path).catch(() => undefined)
  return Math.max(0, sizeBytes - (found ? found.blocks * 512 : 0))
}

/** Makes it whole; nothing happens when it is. @throws StorageError when there is no space for it */
export async function keepBallast(ballast: Ballast): Promise<void> {
  if ((await missingBytes(ballast)) > 0) await run('fallocate', ['-l', String(ballast.sizeBytes), ballast.path])
}

export async function giveUpBallast({ path }: Ballast): Promise<void> {
  await rm(path, { force: true })
}
