import { spawn } from 'node:child_process'
import { closeSync, constants, openSync } from 'node:fs'

/**
 * Locks a file for as long as this process lives (flock(2), taken by flock(1) on a descriptor that this process
 * keeps). The kernel gives it back however the process ends; hypervisors do not inherit it.
 * @returns undefined when another process has it
 */
export async function lockFile(path: string): Promise<Disposable | undefined> {
  const descriptor = openSync(path, constants.O_RDWR | constants.O_CREAT, 0o600)
  const child = spawn('flock', ['-x', '-n', '3'], { stdio: ['ignore', 'ignore', 'inherit', descriptor] })
  const locked = await new Promise<boolean>((resolve, reject) => {
    child.once('error', reject)
    child.once('exit', (code) => resolve(code === 0))
  })
  if (locked) return { [Symbol.dispose]: () => closeSync(descriptor) }
  closeSync(descriptor)
  return undefined
}
