import { spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import { StorageError } from './errors.ts'

/**
 * What the removal of a file would give back, in bytes: its blocks that no other file shares.
 * @throws StorageError
 * @see https://docs.kernel.org/filesystems/fiemap.html, FIEMAP_EXTENT_SHARED
 */
export async function heldBytes(path: string): Promise<number> {
  const child = spawn('filefrag', ['-s', '-v', '--', path], {
    env: { ...process.env, LC_ALL: 'C' },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let said = ''
  child.stderr.on('data', (chunk: Buffer) => {
    said = `${said}${chunk}`.slice(0, 500)
  })
  const ended = new Promise<number | null>((resolve, reject) => {
    child.once('error', reject)
    child.once('close', resolve)
  })
  ended.catch(() => {})
  let blockBytes = 0
  let blocks = 0
  // A disk that was written to at random has hundreds of thousands of lines.
  for await (const line of createInterface({ input: child.stdout })) {
    const size = /\(\d+ blocks? of (\d+) bytes\)/.exec(line)?.[1]
    if (size !== undefined) blockBytes = Number(size)
    const extent = /^\s*\d+:\s*\d+\.\.\s*\d+:\s*\d+\.\.\s*\d+:\s*(\d+):(.*)$/.exec(line)
    if (extent && !/\bshared\b/.test(extent[2] ?? '')) blocks += Number(extent[1])
  }
  const status = await ended.catch((cause: unknown) => {
    throw new StorageError('storage.failed', 'filefrag could not be run', { cause })
  })
  if (status !== 0 || blockBytes === 0) throw new StorageError('storage.failed', `filefrag: ${said.trim() || status}`)
  return blocks * blockBytes
}
