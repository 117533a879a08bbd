import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readFileSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { setTimeout } from 'node:timers/promises'
import { expect, test } from 'vitest'
import { run } from './command.ts'

test('standard output comes back, standard error does not', async () => {
  expect(await run('sh', ['-c', 'echo out; echo err >&2; echo more'])).toBe('out\nmore')
})

test('a failure tells the exit status, the last lines, and what sounded like a reason before those', async () => {
  const script = 'exec 2>&1; echo "error: disk is full" >&2; for i in $(seq 100); do echo "line $i"; done; exit 3'
  const failure = run('sh', ['-c', script])
  await expect(failure).rejects.toThrow(/exit status 3\n[\s\S]*disk is full[\s\S]*line 100$/)
  await expect(failure).rejects.not.toThrow(/line 50/)
})

test('a program that is not there is named', async () => {
  await expect(run('berth-no-such-program', [])).rejects.toThrow('berth-no-such-program')
})

test.each([true, false])('what a killed set-up had started ends with it (confined: %s)', async (confined) => {
  const program = `
    import { run } from ${JSON.stringify(new URL('command.ts', import.meta.url).href)}
    await run('sh', ['-c', 'mount -t tmpfs none /mnt 2>/dev/null; readlink /proc/self/ns/mnt; sleep 300; true'], {
      confined: ${confined},
      onLine: (line) => console.log(line),
    })`.replace('mount -t tmpfs none /mnt 2>/dev/null; ', confined ? 'mount -t tmpfs none /mnt; ' : '')
  const setUp = spawn(process.execPath, ['--input-type=module', '-e', program], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  await once(createInterface({ input: setUp.stdout }), 'line')
  const descendants = descendantsOf(setUp.pid ?? 0)
  expect(descendants.length).toBeGreaterThan(0)
  // The confined mount is nobody else's.
  expect(readFileSync('/proc/self/mounts', 'utf8')).not.toMatch(/^none \/mnt tmpfs/m)
  setUp.kill('SIGKILL')
  await once(setUp, 'exit')
  const direct = confined ? descendants : descendants.slice(0, 1)
  // Their parent-death signal is under way; init collects them.
  const deadline = Date.now() + 10_000
  while (direct.some(isRunning) && Date.now() < deadline) await setTimeout(20)
  expect(direct.filter(isRunning)).toEqual([])
  for (const pid of descendants.filter(isRunning)) process.kill(pid, 'SIGKILL')
})

function descendantsOf(pid: number): number[] {
  const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8')
    .trim()
    .split(' ')
    .filter(Boolean)
    .map(Number)
  return children.flatMap((child) => [child, ...descendantsOf(child)])
}

function isRunning(pid: number): boolean {
  if (!existsSync(`/proc/${pid}`)) return false
  return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'))
}
