import { readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'

/** What a hypervisor alone writes to, or a vmhost while that is there: its disk, and its memory when it is put to sleep. */
const written = ['root.raw', 'memory.new', 'memory', 'memory.used']

/**
 * The last sign of life that a machine's hypervisor has left. For a vmhost that finds it gone and did not see it go.
 * @param directory the machine's own
 * @returns milliseconds since 1970; undefined: none
 */
export async function lastSign(directory: string): Promise<number | undefined> {
  const times = await Promise.all(written.map((name) => lastChange(join(directory, name))))
  const last = Math.max(0, ...times.flat())
  return last > 0 ? last : undefined
}

/** Of a file, or of the files in a folder: the folder itself changes when it is renamed or taken away. */
async function lastChange(path: string): Promise<number[]> {
  const names = await readdir(path).catch((error: NodeJS.ErrnoException) => (error.code === 'ENOTDIR' ? [''] : []))
  return Promise.all(
    names.map((name) =>
      stat(join(path, name)).then(
        ({ mtimeMs }) => mtimeMs,
        () => 0,
      ),
    ),
  )
}
