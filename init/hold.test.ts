import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, mkdtempSync, readdirSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type IPty, spawn as spawnPty } from 'node-pty'
import { afterEach, beforeAll, beforeEach, expect, test } from 'vitest'
import { buildInit } from './build.ts'

let hold = ''
let directory = ''
const terminals: IPty[] = []
const clients: ChildProcess[] = []

beforeAll(() => {
  hold = buildInit('exe-hold')
}, 120_000)

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'berth-hold-'))
})

afterEach(() => {
  for (const { name, state } of sessions()) if (state === 'running') run('kill', name, 'KILL')
  for (const terminal of terminals.splice(0)) terminal.kill('SIGKILL')
  for (const client of clients.splice(0)) client.kill('SIGKILL')
  rmSync(directory, { recursive: true, force: true })
})

const env = () => ({ ...process.env, EXE_HOLD_DIRECTORY: directory, SHELL: '/bin/sh', PS1: '$ ' })

function run(...args: string[]) {
  const { status, stdout, stderr } = spawnSync(hold, args, { env: env(), encoding: 'utf8', timeout: 60_000 })
  return { status, stdout, stderr }
}

type Session = { name: string; state: string; pid: number; exit_code: number | null; attached: number; command: string }
const sessions = (): Session[] => JSON.parse(run('ls', '--json').stdout || '{"sessions":[]}').sessions
const statusOf = (name: string) => JSON.parse(run('status', name, '--json').stdout)

/** A terminal of its own for exe-hold, as ssh -t gives it. */
function attach(name: string, command: string[] = [], size = { cols: 80, rows: 24 }) {
  const terminal = spawnPty(hold, ['attach', name, ...(command.length ? ['--', ...command] : [])], {
    ...size,
    env: env(),
  })
  terminals.push(terminal)
  let output = ''
  let wake = () => {}
  terminal.onData((text) => {
    output += text
    wake()
  })
  const exit = new Promise<number>((resolve) => terminal.onExit(({ exitCode }) => resolve(exitCode)))
  const shows = async (pattern: RegExp) => {
    while (!pattern.test(output)) await new Promise<void>((resolve) => (wake = resolve))
  }
  return { terminal, exit, shows, output: () => output, forget: () => (output = '') }
}

function follow(...args: string[]) {
  const client = spawn(hold, args, { env: env(), stdio: ['ignore', 'pipe', 'pipe'] })
  clients.push(client)
  let output = ''
  const exit = once(client, 'close').then(([code]) => code as number)
  client.stdout.on('data', (chunk: Buffer) => {
    output += chunk
  })
  return { client, exit, output: () => output, stdout: client.stdout }
}

test('run shows the output as it comes and exits as the process did', async () => {
  expect(run('run', 'a', '--', 'sh', '-c', 'echo out; echo err >&2; exit 7')).toMatchObject({
    status: 7,
    stdout: 'out\nerr\n',
  })
  expect(run('wait', 'a').status).toBe(7)
  expect(run('logs', 'a').stdout).toBe('out\nerr\n')
  expect(statusOf('a')).toMatchObject({ kind: 'process', state: 'ended', exit_code: 7, signal: null })
  expect(run('run', 'b', '--', 'sh', '-c', 'kill -9 $$').status).toBe(137)
  expect(statusOf('b')).toMatchObject({ state: 'ended', exit_code: null, signal: 9 })
  expect(run('run', 'c', '--', '/no/such/program')).toMatchObject({ status: 127 })
  expect(run('logs', 'c').stdout).toContain('No such file')
})

test('a process goes on when its client is killed, and can be waited for', async () => {
  const script = 'echo started; read -r line < fifo; echo "got $line"; exit 4'
  execFileSync('mkfifo', [join(directory, 'fifo')])
  const { client, stdout, exit } = follow('run', 'long', '--', 'sh', '-c', `cd ${directory}; ${script}`)
  await once(stdout, 'data')
  client.kill('SIGKILL')
  await exit
  expect(statusOf('long')).toMatchObject({ state: 'running', command: expect.stringContaining('echo started') })
  const waiting = follow('wait', 'long')
  writeFileSync(join(directory, 'fifo'), 'word\n')
  expect(await waiting.exit).toBe(4)
  expect(waiting.output()).toBe('')
  expect(run('logs', 'long').stdout).toBe('started\ngot word\n')
})

test('the client’s pipes are not kept open by what it started', async () => {
  // sshd ends a session when nobody holds its pipes any more; this is that.
  const client = spawn('sh', ['-c', `${hold} run server -- sleep 60 & sleep 0.1; kill -9 $!; wait`], {
    env: env(),
    stdio: ['pipe', 'pipe', 'pipe'],
  })
  await once(client, 'close')
  await expect.poll(() => statusOf('server').state).toBe('running')
})

test('a server that a script leaves behind keeps its output', async () => {
  execFileSync('mkfifo', [join(directory, 'go')])
  const script = `(read -r x < ${directory}/go; echo later; echo "alive $?") & echo done`
  expect(run('run', 'script', '--', 'sh', '-c', script)).toMatchObject({ status: 0, stdout: 'done\n' })
  writeFileSync(join(directory, 'go'), 'x\n')
  await expect.poll(() => run('logs', 'script').stdout).toBe('done\nlater\nalive 0\n')
})

test('a terminal outlives its client and shows its screen to the next one', async () => {
  const first = attach('work')
  await first.shows(/[$#] $/)
  first.terminal.write('WORD=kept; echo "seen $((40+2))"\r')
  await first.shows(/seen 42/)
  first.terminal.kill('SIGKILL')
  await first.exit
  await expect.poll(() => statusOf('work').attached).toBe(0)
  const second = attach('work')
  await second.shows(/seen 42/)
  second.terminal.write('echo "still $WORD" $EXE_HOLD\r')
  await second.shows(/still kept work/)
  second.terminal.write('exit 9\r')
  expect(await second.exit).toBe(9)
})

test('two people see and type in one terminal, which has the size of whoever typed or changed it last', async () => {
  const one = attach('pair')
  await one.shows(/[$#] $/)
  const two = attach('pair', [], { cols: 100, rows: 30 })
  await expect.poll(() => statusOf('pair').attached).toBe(2)
  two.terminal.write('stty size\r')
  await one.shows(/30 100/)
  one.terminal.resize(71, 19)
  await expect
    .poll(() => {
      one.terminal.write('stty size\r')
      return two.output()
    })
    .toMatch(/19 71/)
  // What one of them typed last must have arrived before the other types.
  one.terminal.write('echo "quiet $((1+1))"\r')
  await two.shows(/quiet 2/)
  two.terminal.write('echo typed; stty size\r')
  await one.shows(/typed\r\n30 100/)
  // An answer that every terminal gives by itself is not somebody who types.
  execFileSync('mkfifo', [join(directory, 'go')])
  two.terminal.write(`read -r x < ${directory}/go; echo answered; stty size\r`)
  await one.shows(/\/go; /)
  one.terminal.write('\x1b[0n')
  await one.shows(/\^\[\[0n/)
  writeFileSync(join(directory, 'go'), 'x\n')
  await one.shows(/answered\r\n30 100/)
  one.terminal.write('\x15exit\r')
  expect(await Promise.all([one.exit, two.exit])).toEqual([0, 0])
})

test('attaching draws a full-screen program again', async () => {
  const first = attach('draw', ['sh', '-c', 'trap "echo redrawn" WINCH; echo ready; while :; do sleep 0.05; done'])
  await first.shows(/ready/)
  first.forget()
  const second = attach('draw')
  await second.shows(/redrawn/)
  run('kill', 'draw')
  await Promise.all([first.exit, second.exit])
})

test('a replay asks the next terminal nothing', async () => {
  const first = attach('ask', ['sh', '-c', 'printf "\\033[6n\\033[c\\033]11;?\\007asked\\n"; cat'])
  await first.shows(/asked/)
  expect(first.output()).toContain('\x1b[6n')
  const second = attach('ask')
  await second.shows(/asked/)
  expect(second.output()).not.toMatch(/\x1b\[6n|\x1b\[c|\x1b\]11/)
})

test('a reader that stands still holds up neither the program nor the others', async () => {
  const stuck = spawn(
    hold,
    ['run', 'flood', '--', 'sh', '-c', 'head -c 30000000 /dev/zero | tr "\\0" x; echo; echo end'],
    {
      env: env(),
      stdio: ['ignore', 'pipe', 'ignore'],
    },
  )
  clients.push(stuck)
  await expect.poll(() => statusOf('flood')?.state, { timeout: 60_000 }).toBe('ended')
  expect(statusOf('flood').output_bytes).toBe(30_000_005)
  const kept = run('logs', 'flood').stdout
  expect(kept.endsWith('x\nend\n')).toBe(true)
  expect(kept.length).toBeLessThanOrEqual(512 * 1024)
})

test('logs -f follows until the end', async () => {
  execFileSync('mkfifo', [join(directory, 'go')])
  const runner = follow('run', 'f', '--', 'sh', '-c', `echo one; read -r x < ${directory}/go; echo two`)
  await once(runner.stdout, 'data')
  const logs = follow('logs', 'f', '-f')
  await once(logs.stdout, 'data')
  expect(run('logs', 'f').stdout).toBe('one\n')
  writeFileSync(join(directory, 'go'), 'x\n')
  expect(await logs.exit).toBe(0)
  expect(logs.output()).toBe('one\ntwo\n')
})

test('kill ends a terminal with HUP, a process with TERM, and either as asked', async () => {
  const shell = attach('shell')
  await shell.shows(/[$#] $/)
  expect(run('kill', 'shell').status).toBe(0)
  expect(await shell.exit).toBe(129)
  const process = follow('run', 'sleeper', '--', 'sh', '-c', 'echo up; sleep 60')
  await once(process.stdout, 'data')
  run('kill', 'sleeper')
  expect(await process.exit).toBe(143)
  const stubborn = follow('run', 'stubborn', '--', 'sh', '-c', 'trap "" TERM; echo up; sleep 60 & wait; wait')
  await once(stubborn.stdout, 'data')
  run('kill', 'stubborn', 'SIGKILL')
  expect(await stubborn.exit).toBe(137)
})

test('a name is taken while its session runs and free when it ended', async () => {
  const first = follow('run', 'one', '--', 'sh', '-c', 'echo up; sleep 60')
  await once(first.stdout, 'data')
  expect(run('run', 'one', '--', 'true')).toMatchObject({ status: 1, stderr: expect.stringContaining('already') })
  run('kill', 'one')
  await first.exit
  expect(run('run', 'one', '--', 'echo', 'again')).toMatchObject({ status: 0, stdout: 'again\n' })
  expect(sessions().map((session) => session.name)).toEqual(['one'])
})

test('a name is free for the next in the very moment that its program ends', async () => {
  for (let round = 0; round < 8; round++) {
    const ending = follow('run', 'again', '--', 'sh', '-c', 'head -c 400000 /dev/zero')
    await ending.exit
    expect(run('run', 'again', '--', 'echo', 'next')).toMatchObject({ status: 0, stdout: 'next\n' })
    const terminal = attach('again', ['sh', '-c', 'head -c 400000 /dev/zero; echo up'])
    expect(await terminal.exit).toBe(0)
    expect(terminal.output()).toContain('up')
  }
})

test('twenty at once with one name start one session', async () => {
  const all = await Promise.all(
    Array.from({ length: 20 }, () => follow('run', 'race', '--', 'sh', '-c', 'echo ran; sleep 0.5').exit),
  )
  expect(all.filter((code) => code === 0)).toHaveLength(1)
  expect(all.filter((code) => code === 1)).toHaveLength(19)
})

test('a holder that was killed leaves a name that can be used again', async () => {
  const client = follow('run', 'gone', '--', 'sh', '-c', 'echo up; sleep 60')
  await once(client.stdout, 'data')
  const holder = Number(execFileSync('ps', ['-o', 'ppid=', '-p', String(statusOf('gone').pid)], { encoding: 'utf8' }))
  const program = statusOf('gone').pid
  process.kill(holder, 'SIGKILL')
  expect(await client.exit).toBe(1)
  process.kill(-program, 'SIGKILL')
  expect(run('status', 'gone').status).toBe(3)
  expect(run('run', 'gone', '--', 'echo', 'new').stdout).toBe('new\n')
})

test('usage, names and missing sessions get their own exit status', () => {
  for (const args of [
    [],
    ['fly'],
    ['attach'],
    ['run', 'x'],
    ['attach', '../x'],
    ['attach', '.x'],
    ['kill', 'x', 'NOPE'],
  ])
    expect([args, run(...args).status]).toEqual([args, 2])
  expect(run('attach', 'x', '--cols', '0').status).toBe(2)
  for (const command of ['status', 'wait', 'logs', 'kill'])
    expect([command, run(command, 'nobody').status]).toEqual([command, 3])
  expect(run('--help').stdout).toContain('exe-hold attach NAME')
})

test('an attach to a process without a terminal says what to use', async () => {
  const client = follow('run', 'plain', '--', 'sh', '-c', 'echo up; sleep 60')
  await once(client.stdout, 'data')
  expect(run('attach', 'plain')).toMatchObject({ status: 1, stderr: expect.stringContaining('logs -f') })
})

test('nobody else’s directory is used, and its files are one’s own', async () => {
  expect(run('run', 'x', '--', 'true').status).toBe(0)
  // The holder of what has just ended takes its socket away.
  for (const name of readdirSync(directory))
    expect((statSync(join(directory, name), { throwIfNoEntry: false })?.mode ?? 0) & 0o077).toBe(0)
  chmodSync(directory, 0o755)
  expect(run('ls')).toMatchObject({ status: 1, stderr: expect.stringContaining('mode 0700') })
  chmodSync(directory, 0o700)
  const link = `${directory}-link`
  symlinkSync(directory, link)
  const refused = spawnSync(hold, ['ls'], { env: { ...env(), EXE_HOLD_DIRECTORY: link }, encoding: 'utf8' })
  rmSync(link)
  expect(refused.status).toBe(1)
})

test('there is a limit to sessions, and ended ones are forgotten from the oldest on', async () => {
  for (let i = 0; i < 70; i++) expect(run('run', `e${i}`, '--', 'true').status).toBe(0)
  // A holder notes its session's end a moment after the client has seen it.
  const begun = () => run('run', 'e70', '--', 'true').status
  await expect.poll(() => (begun() === 0 ? sessions().length : 0)).toBeOneOf([64, 65])
  expect(run('status', 'e0').status).toBe(3)
  expect(run('status', 'e69').status).toBe(0)
})
