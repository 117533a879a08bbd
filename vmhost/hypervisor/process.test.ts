import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from 'vitest'
import { privileges } from './privileges.ts'
import { endProcess, findProcesses, identify } from './process.ts'

const uid = 2_000_047
let directory: string

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'berth-process-'))
  chmodSync(directory, 0o711)
})
afterEach(async () => {
  await Promise.all((await findProcesses(uid, directory)).map(endProcess))
  rmSync(directory, { recursive: true })
})

/** Starts a program in the directory as the user. @returns its pid */
function start(program: readonly string[]): number {
  const child = spawn('setpriv', [...privileges(uid, []), ...program], { cwd: directory, stdio: 'ignore' })
  if (child.pid === undefined) throw new Error('it did not start')
  return child.pid
}

test('a process is found by its user and its directory, and by neither alone', async () => {
  const pid = start(['sleep', '600'])
  await expect.poll(() => findProcesses(uid, directory)).toEqual([await identify(pid)])
  expect(await findProcesses(uid + 1, directory)).toEqual([])
  expect(await findProcesses(uid, tmpdir())).toEqual([])
})

test('one whose first thread has ended is found, and has ended when the others have', async () => {
  const program = join(directory, 'program')
  const source = `#include <pthread.h>
    #include <unistd.h>
    static void *stay(void *nothing) { for (;;) pause(); }
    int main(void) { pthread_t other; pthread_create(&other, 0, stay, 0); pthread_exit(0); }`
  execFileSync('gcc', ['-x', 'c', '-', '-o', program, '-pthread'], { input: source })
  const pid = start([program])
  await expect.poll(() => readFileSync(`/proc/${pid}/stat`, 'latin1')).toMatch(/^\d+ \(program\) Z /)
  const found = await findProcesses(uid, directory)
  expect(found.map((one) => one.pid)).toEqual([pid])
  await Promise.all(found.map(endProcess))
  expect(await findProcesses(uid, directory)).toEqual([])
})

test('who cannot look does not say that there is none', async () => {
  const script = `import { closeSync, openSync } from 'node:fs'
    const { findProcesses } = await import('${new URL('./process.ts', import.meta.url).href}')
    let last
    try { for (;;) last = openSync('/dev/null', 'r') } catch {}
    // All processes can be listed, and not all looked at.
    closeSync(last)
    const words = await findProcesses(${uid}, '/').then((found) => found.length + ' found', (error) => error.code)
    process.stdout.write(words)`
  const command = 'ulimit -n 40; exec "$0" --input-type=module -e "$1"'
  const looking = spawn('sh', ['-c', command, process.execPath, script], { stdio: ['ignore', 'pipe', 'inherit'] })
  let said = ''
  looking.stdout.on('data', (chunk: Buffer) => {
    said += chunk
  })
  await once(looking, 'close')
  expect(said).toBe('EMFILE')
})
