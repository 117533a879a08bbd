import { spawn } from 'node:child_process'
import { createInterface } from 'node:readline'

/**
 * Plays rounds of faults (main.ts) in a process of their own.
 *
 * Its mounts are nobody else's: a namespace that is made meanwhile would hold a volume whose power was cut, and the next
 * mount would be that one again. They go with the process, however that ends.
 * @param selections OPERATION=FAULT=PATTERN
 * @param onRound hears a line a round
 * @returns lines of the rounds after which something was not as promised
 * @throws when not all of them could be played
 */
export async function breakOff(selections: readonly string[], onRound: (line: string) => void): Promise<string[]> {
  const main = new URL('./main.ts', import.meta.url).pathname
  const child = spawn('unshare', ['--mount', '--propagation', 'private', '--', process.execPath, main, ...selections], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  const ended = new Promise<number | null>((resolve, reject) => {
    child.once('error', reject)
    child.once('close', resolve)
  })
  const failed: string[] = []
  for await (const line of createInterface({ input: child.stdout })) {
    onRound(line)
    if (line.startsWith('FAILED ')) failed.push(line)
  }
  const status = await ended
  if (status !== 0) throw new Error(`the rounds ended early, with ${status}`)
  return failed
}
