import { readFileSync } from 'node:fs'
import { text } from 'node:stream/consumers'
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest'
import { MachineWatch } from '../../activity/watch.ts'
import { type Keys, type Machine, makeKeys, startFakeMachine, startMachine } from '../relay/fixtures.ts'
import { silentLog } from '../transport/log.ts'
import { transportOf } from '../transport/protocol.ts'
import { encode, message } from '../transport/wire.ts'
import { openOnMachine } from './open-on-machine.ts'
import { MachinePool, type MachinePoolOptions } from './pool.ts'

let keys: Keys & Disposable
let machine: Machine
let pool: MachinePool

beforeAll(async () => {
  keys = makeKeys()
  machine = await startMachine(keys)
})

afterAll(async () => {
  await machine[Symbol.asyncDispose]()
  keys[Symbol.dispose]()
})

beforeEach(() => {
  pool = makePool()
})

afterEach(() => pool.close())

function makePool(options: Partial<MachinePoolOptions> = {}): MachinePool {
  return new MachinePool({ privateKey: readFileSync(keys.gatewayKey), log: silentLog, ...options })
}

test('whoever comes while a connection is being made waits for it', async () => {
  const taken = await Promise.all(Array.from({ length: 10 }, () => pool.reserve(machine.target)))
  expect(new Set(taken).size).toBe(1)
  expect(pool.connections).toBe(1)
})

test('signing in takes one request, which is signed already', async () => {
  const requests: [string, boolean][] = []
  await using fake = await startFakeMachine(keys, () => {}, {
    authentication: (context) => {
      requests.push([context.method, context.method === 'publickey' && context.signature !== undefined])
      context.accept()
    },
  })
  await pool.warm(fake.target)
  expect(requests).toEqual([['publickey', true]])
})

test('accounts and guest users do not share connections', async () => {
  await pool.warm(machine.target)
  await pool.warm({ ...machine.target, accountId: 2 })
  expect(pool.connections).toBe(2)
})

test('a machine that came back with another host key is not reached over the old connection', async () => {
  await pool.warm(machine.target)
  const other = { ...machine.target, hostKey: Buffer.alloc(51) }
  await expect(pool.warm(other)).rejects.toMatchObject({ code: 'machine.host_key_mismatch' })
})

test('a full connection gets a second beside it', async () => {
  pool = makePool({ maxChannelsPerConnection: 2 })
  for (let count = 0; count < 5; count++) await pool.reserve(machine.target)
  expect(pool.connections).toBe(3)
})

test('an idle connection is closed', async () => {
  pool = makePool({ idleTimeoutMs: 10 })
  await pool.warm(machine.target)
  await expect.poll(() => pool.connections).toBe(0)
})

test('an idle connection to a machine that sleeps is kept for whoever wakes it', async () => {
  const watch = new MachineWatch(1, { nowMs: 0, wake: async () => true, look: () => {} })
  const row = {
    desiredBoot: 1,
    observedBoot: 1,
    observedStage: 'ready',
    desiredRestore: 0,
    observedRestore: 0,
  } as const
  const see = (desiredState: 'running' | 'asleep') =>
    watch.see({ ...row, desiredState, observedState: 'running', observedReadyAt: new Date(0) })
  see('running')
  pool = makePool({ idleTimeoutMs: 50, watches: { of: () => watch } })
  await pool.warm(machine.target)
  see('asleep')
  await new Promise((resolve) => setTimeout(resolve, 200))
  expect(pool.connections).toBe(1)
  const session = openOnMachine(pool, machine.target, { command: 'echo here' })
  await new Promise((resolve) => setTimeout(resolve, 50))
  expect(pool.connections).toBe(1)
  see('running')
  expect(await text((await session).stdout)).toBe('here\n')
  await expect.poll(() => pool.connections).toBe(0)
})

test('failures have sentences and codes, and are not remembered', async () => {
  const nobody = { ...machine.target, port: 1 }
  await expect(pool.warm(nobody)).rejects.toMatchObject({
    code: 'machine.unreachable',
    message:
      'Machine demo does not answer over SSH; if it is only busy, try again; to see: logs demo; to start it anew: restart demo',
  })
  const stranger = { ...machine.target, user: 'nobody-here' }
  await expect(pool.warm(stranger)).rejects.toMatchObject({
    code: 'machine.authentication_failed',
    message: 'Machine demo does not let user nobody-here in.',
  })
  expect(pool.connections).toBe(0)
  await pool.warm(machine.target)
})

test('a machine that does not say anything fails in time', async () => {
  pool = makePool({ connectTimeoutMs: 50 })
  await using silent = await startFakeMachine(keys, () => {}, { authentication: () => {} })
  await expect(pool.warm(silent.target)).rejects.toMatchObject({ code: 'machine.unreachable' })
})

test('a machine that stops answering loses its connection', async () => {
  pool = makePool({ keepaliveIntervalMs: 20 })
  const upstream = await pool.reserve(machine.target)
  const process_ = await openOnMachine(pool, machine.target, { command: 'echo $PPID' })
  const pid = Number(await text(process_.stdout))
  process.kill(pid, 'SIGSTOP')
  try {
    await expect.poll(() => upstream.lost).toBe(true)
  } finally {
    process.kill(pid, 'SIGKILL')
  }
})

test('channels that a machine opens on a shared connection are refused', async () => {
  const refused = Promise.withResolvers<string>()
  await using fake = await startFakeMachine(keys, (session, client) => {
    session.on('shell', (accept) => {
      accept()
      client.x11('127.0.0.1', 1, (error) => refused.resolve(error?.message ?? 'opened'))
    })
  })
  await openOnMachine(pool, fake.target, {})
  expect(await refused.promise).toContain('did not ask')
})

test('a forgotten machine and a closed pool have no connections', async () => {
  await pool.warm(machine.target)
  pool.forget(machine.target.machineId)
  expect(pool.connections).toBe(0)
  pool.close()
  await expect(pool.warm(machine.target)).rejects.toMatchObject({ code: 'pool.closed' })
})

test('a process on a machine has its streams, its environment and its end', async () => {
  const command = 'cat; echo "$NAME" >&2; exit 5'
  const child = await openOnMachine(pool, machine.target, { command, env: { NAME: 'value' } })
  child.stdin.end('typed')
  expect(await text(child.stdout)).toBe('typed')
  expect(await text(child.stderr)).toBe('value\n')
  expect(await child.exit).toEqual({ status: 5, signal: null })
})

test('output that a machine sends after its end is dropped, and harms nobody', async () => {
  await using fake = await startFakeMachine(keys, (session, client) => {
    session.on('exec', (accept) => {
      const channel = accept()
      const { id } = (channel as unknown as { outgoing: { id: number } }).outgoing
      const { protocol } = transportOf(client)
      channel.write('in time')
      protocol.sendPayload(encode(message.channelEof, id))
      protocol.sendPayload(encode(message.channelExtendedData, id, 1, 'late'))
      protocol.sendPayload(encode(message.channelData, id, 'late'))
      channel.exit(3)
      channel.close()
    })
  })
  for (const round of [1, 2]) {
    const child = await openOnMachine(pool, fake.target, { command: String(round) })
    child.stderr.resume()
    expect(await text(child.stdout)).toBe('in time')
    expect(await child.exit).toEqual({ status: 3, signal: null })
  }
})

test('a process does not wait for a connection that died without a word', async () => {
  const first = await openOnMachine(pool, machine.target, { command: 'echo $PPID' })
  const pid = Number(await text(first.stdout))
  process.kill(pid, 'SIGSTOP')
  try {
    const second = await openOnMachine(pool, machine.target, { command: 'echo well' })
    expect(await text(second.stdout)).toBe('well\n')
  } finally {
    process.kill(pid, 'SIGKILL')
  }
})

test('a process on a machine can have a terminal that changes its size', async () => {
  const pty = { term: 'xterm', columns: 100, rows: 30 }
  const command = `trap 'stty size; exit' WINCH; stty size; while :; do sleep 0.05; done`
  const child = await openOnMachine(pool, machine.target, { command, pty })
  let seen = ''
  child.stdout.on('data', (bytes: Buffer) => {
    seen += bytes
    if (seen.includes('30 100') && !seen.includes('40')) child.resize(120, 40)
  })
  await child.exit
  expect(seen).toContain('40 120')
})

test('sizes of a terminal pile up for no machine that does not read', async () => {
  const first = await openOnMachine(pool, machine.target, { command: 'echo $PPID' })
  const pid = Number(await text(first.stdout))
  const pty = { term: 'xterm', columns: 100, rows: 30 }
  // A shell that traps SIGWINCH may miss the one that comes while it answers one.
  const command = 'while :; do stty size; sleep 0.05; done'
  const child = await openOnMachine(pool, machine.target, { command, pty })
  const upstream = await pool.reserve(machine.target)
  pool.unreserve(upstream)
  process.kill(pid, 'SIGSTOP')
  try {
    for (let n = 0; n < 200_000; n++) {
      child.resize(80 + (n % 100), 24)
      if (n % 1000 === 0) await new Promise((resolve) => setImmediate(resolve))
    }
    expect(upstream.link.backlogBytes).toBeLessThan(2 * 1024 * 1024)
    child.resize(123, 45)
  } finally {
    process.kill(pid, 'SIGCONT')
  }
  // The last one counts, once the machine reads again.
  let seen = ''
  child.stdout.on('data', (bytes: Buffer) => {
    seen += bytes
  })
  await expect.poll(() => seen, { timeout: 60_000 }).toContain('45 123')
  child.close()
})

test('what a machine refuses leaves no channel behind', async () => {
  await using strict = await startMachine(keys, ['PermitTTY no'])
  const pty = { term: 'xterm', columns: 80, rows: 24 }
  await expect(openOnMachine(pool, strict.target, { command: 'true', pty })).rejects.toThrow('refused "pty-req"')
  const upstream = await pool.reserve(strict.target)
  pool.unreserve(upstream)
  await expect.poll(() => upstream.channels).toBe(0)
})

test('nobody waits for a machine that says neither yes nor no', async () => {
  await using fake = await startFakeMachine(keys, (session) => void session.on('exec', () => {}))
  const started = openOnMachine(pool, fake.target, { command: 'anything' }, 300)
  await expect(started).rejects.toThrow('The connection to machine demo was lost')
})

test('one machine has a bounded number of connections, whatever it never closes', async () => {
  const own = makePool({ maxChannelsPerConnection: 1 })
  for (let n = 0; n < 31; n++) await own.warm({ ...machine.target, accountId: n + 10 })
  await own.reserve(machine.target)
  await expect(own.reserve(machine.target)).rejects.toThrow('Machine demo has too many sessions')
  expect(own.connections).toBe(32)
  await own.warm({ ...machine.target, machineId: 2 })
  own.close()
})

test('a process that a signal ended says so, and one that is closed ends', async () => {
  const child = await openOnMachine(pool, machine.target, { command: 'kill -KILL $$' })
  child.stdout.resume()
  expect(await child.exit).toEqual({ status: null, signal: 'KILL' })
  const endless = await openOnMachine(pool, machine.target, { command: 'cat /dev/zero' })
  endless.close()
  expect(await endless.exit).toEqual({ status: null, signal: 'PIPE' })
})

test('a reader that stops holds the process back; megabytes pass when it goes on', async () => {
  const child = await openOnMachine(pool, machine.target, { command: 'head -c 5000000 /dev/zero' })
  let bytes = 0
  for await (const piece of child.stdout) {
    bytes += (piece as Buffer).length
    expect(child.stdout.readableLength).toBeLessThan(2 * 1024 * 1024)
  }
  expect(bytes).toBe(5_000_000)
  const up = await openOnMachine(pool, machine.target, { command: 'wc -c' })
  up.stdin.end(Buffer.alloc(5_000_000))
  expect((await text(up.stdout)).trim()).toBe('5000000')
})
