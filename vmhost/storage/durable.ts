import { open, rename, rm, writeFile } from 'node:fs/promises'
import { dirname } from 'node:path'

/**
 * Waits until a file's bytes, or a directory's names, would be there after a power cut. A filesystem keeps its names in
 * order by itself, but a file that was never synced may have its name and no bytes: they are placed on the disk later.
 * @see fsync(2)
 */
export async function sync(path: string): Promise<void> {
  const handle = await open(path, 'r')
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}

/** Gives what is synced already its final name, for good. Both names are in one directory. @see rename(2) */
export async function renameForGood(from: string, to: string): Promise<void> {
  await rename(from, to)
  await sync(dirname(to))
}

/** Puts a small file in the place of another: after a power cut there is the old one or the new one, whole. */
export async function replaceFile(path: string, content: string, mode = 0o600): Promise<void> {
  try {
    await writeFile(`${path}.new`, content, { mode, flush: true })
    await renameForGood(`${path}.new`, path)
  } catch (error) {
    await rm(`${path}.new`, { force: true })
    throw error
  }
}
