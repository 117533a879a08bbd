import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { chownSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs'
import { connect, createServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { afterEach, beforeAll, beforeEach, expect, test } from 'vitest'
import { buildInit } from '../../init/build.ts'
import { type AgentChannel, type ChannelError, connectAgent } from './channel.ts'
import { encodeFrame, FrameReader } from './frames.ts'
import { type AgentEvent, fieldTag, type MachineIdentity, messageType } from './messages.ts'

let exeInit = ''
let directory = ''
let path = ''
const agents: ChildProcess[] = []
const channels: AgentChannel[] = []

beforeAll(() => {
  exeInit = buildInit('exe-init')
}, 120_000)

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'berth-channel-'))
  path = join(directory, 'agent.sock')
  mkdirSync(join(directory, 'root/etc'), { recursive: true })
})

afterEach(() => {
  for (const channel of channels.splice(0)) channel.close()
  for (const agent of agents.splice(0)) agent.kill('SIGKILL')
  rmSync(directory, { recursive: true })
})

/** The agent itself, in its rehearsal: it writes below a directory and leaves this machine alone. */
function startAgent(): ChildProcess {
  const agent = spawn(exeInit, ['agent', '--socket', path, '--root', join(directory, 'root')], { stdio: 'ignore' })
  agents.push(agent)
  return agent
}

/** The agent's socket is there a moment before the agent listens on it. */
async function connected(): Promise<Socket> {
  for (;;) {
    const socket = connect(path)
    try {
      await once(socket, 'connect')
      // A host that comes later takes its place.
      socket.on('error', () => {})
      return socket
    } catch {
      await sleep(10)
    }
  }
}

function open(options = {}): AgentChannel {
  const channel = connectAgent(path, options)
  channels.push(channel)
  return channel
}

const rootFile = (name: string) => readFileSync(join(directory, 'root', name), 'utf8')

const identity: MachineIdentity = {
  hostname: 'demo',
  loginUser: 'dev',
  authorizedKeys: ['ssh-ed25519 AAAA gateway', 'ssh-ed25519 BBBB owner@home'],
  environment: { GREETING: 'two "words" 100% é', EMPTY: '' },
  hostKey: `-----BEGIN OPENSSH PRIVATE KEY-----\n${'A'.repeat(70)}\n-----END OPENSSH PRIVATE KEY-----\n`,
  machineId: '0123456789abcdef0123456789abcdef',
}

test('an identity arrives whole: keys, host key, variables, names, the login user', async () => {
  startAgent()
  const channel = open()
  expect(await channel.ready()).toMatchObject({ version: 1, identified: false })
  writeFileSync(join(directory, 'root/etc/passwd'), 'root:x:0:0::/root:/bin/sh\nlow:x:1003:1003::/:/bin/sh')
  writeFileSync(join(directory, 'root/etc/hosts'), '127.0.0.1 localhost\n127.0.1.1 old\n')
  expect(await channel.identify(identity)).toEqual({ loginUid: 1004 })
  expect(rootFile('exe/run/ssh/authorized_keys')).toBe('ssh-ed25519 AAAA gateway\nssh-ed25519 BBBB owner@home\n')
  expect(rootFile('exe/run/ssh/host_key')).toBe(identity.hostKey)
  expect(statSync(join(directory, 'root/exe/run/ssh/host_key')).mode & 0o777).toBe(0o600)
  const session = rootFile('exe/run/ssh/session.conf')
  expect(session.match(/"GREETING=two \\"words\\" 100% é"/g)).toHaveLength(2)
  expect(session).toContain('\nMatch User dev\n  SetEnv "LANG=C.UTF-8"')
  expect(session).toContain('"XDG_RUNTIME_DIR=/run/user/1004"')
  expect(rootFile('run/systemd/system.conf.d/berth-machine.conf')).toContain(
    '"GREETING=two \\"words\\" 100%% é" "EMPTY="',
  )
  expect(rootFile('exe/run/etc/machine-id')).toBe(`${identity.machineId}\n`)
  expect(rootFile('exe/run/etc/hosts')).toMatch(/127.0.0.1 localhost\n127.0.1.1\tdemo\n$/)
  expect(rootFile('etc/passwd')).toContain('/bin/sh\nnobody:*:65534:')
  expect(rootFile('etc/passwd')).toContain('dev:*:1004:1004::/home/dev:/bin/sh\n')
})

test('what the image runs is kept for PID 1, and nobody else reads it', async () => {
  startAgent()
  const channel = open()
  const service = { arguments: ['/bin/serve', 'two words', ''], uid: 33, gid: 34, workingDirectory: '/srv' }
  await channel.identify({ ...identity, environment: { A: 'b' }, service })
  expect(rootFile('exe/run/service')).toBe('33\0' + '34\0/srv\0' + '3\0/bin/serve\0two words\0\0A=b\0')
  expect(statSync(join(directory, 'root/exe/run/service')).mode & 0o777).toBe(0o600)
  await expect(channel.identify({ ...identity, service: { ...service, arguments: ['a\0b'] } })).rejects.toMatchObject({
    code: 'agent.refused',
    message: expect.stringContaining('bad service'),
  })
  await channel.identify(identity)
  expect(() => rootFile('exe/run/service')).toThrow(/ENOENT/)
})

test('whoever is let in has a shell, the tools’ own where the image has none', async () => {
  startAgent()
  const channel = open()
  mkdirSync(join(directory, 'root/bin'))
  writeFileSync(join(directory, 'root/bin/sh'), '', { mode: 0o755 })
  writeFileSync(
    join(directory, 'root/etc/passwd'),
    'root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/sbin/nologin\n',
  )
  await channel.identify({ ...identity, loginUser: 'root' })
  expect(() => rootFile('exe/run/etc/passwd')).toThrow(/ENOENT/)
  rmSync(join(directory, 'root/bin/sh'))
  await channel.identify(identity)
  expect(rootFile('exe/run/etc/passwd')).toBe(
    'root:x:0:0::/root:/exe/bin/sh\nnobody:x:65534:65534::/:/sbin/nologin\ndev:*:1000:1000::/home/dev:/exe/bin/sh\n',
  )
})

test('a host that comes anew is served, though nobody ended the connection of the one before', async () => {
  startAgent()
  const before = await connected()
  // As a hypervisor that was restored leaves it: neither bytes nor an end ever come.
  const channel = open()
  await channel.ready({ timeoutMs: 10_000 })
  await channel.ping()
  before.destroy()
  await channel.ping()
})

test('takes processors into use that were added', async () => {
  const processors = join(directory, 'root/sys/devices/system/cpu')
  for (const [name, online] of Object.entries({ cpu0: undefined, cpu1: '1', cpu2: '0', cpufreq: '0' })) {
    mkdirSync(join(processors, name), { recursive: true })
    if (online !== undefined) writeFileSync(join(processors, name, 'online'), `${online}\n`)
  }
  startAgent()
  const { cpuCount } = await open().online()
  expect(cpuCount).toBeGreaterThan(0)
  expect(readFileSync(join(processors, 'cpu2/online'), 'utf8')).toMatch(/^1/)
  expect(readFileSync(join(processors, 'cpufreq/online'), 'utf8')).toBe('0\n')
})

test('a second identity changes everything in place and adds no second user', async () => {
  startAgent()
  const channel = open()
  await channel.identify(identity)
  const shown = statSync(join(directory, 'root/exe/run/etc/machine-id')).ino
  await channel.identify({ ...identity, machineId: 'f'.repeat(32), environment: { PATH: '/bin', LANG: 'de' } })
  // Bound over files of the disk: the inode must stay.
  expect(statSync(join(directory, 'root/exe/run/etc/machine-id')).ino).toBe(shown)
  expect(rootFile('exe/run/etc/machine-id')).toBe(`${'f'.repeat(32)}\n`)
  expect(rootFile('exe/run/ssh/session.conf')).toMatch(/^SetEnv "PATH=\/bin" "LANG=de"\n/)
  expect(rootFile('etc/passwd').match(/^dev:/gm)).toHaveLength(1)
})

test('keys are replaced, and a key that would be two lines is refused', async () => {
  startAgent()
  const channel = open()
  await channel.updateKeys(['ssh-ed25519 CCCC'])
  expect(rootFile('exe/run/ssh/authorized_keys')).toBe('ssh-ed25519 CCCC\n')
  await expect(channel.updateKeys(['a\nb'])).rejects.toMatchObject({ code: 'agent.refused', message: 'bad key' })
  expect(rootFile('exe/run/ssh/authorized_keys')).toBe('ssh-ed25519 CCCC\n')
})

test.each([
  [{ hostname: 'UPPER' }, 'bad host name'],
  [{ hostname: '' }, 'bad host name'],
  [{ loginUser: '0day' }, 'bad login user'],
  [{ loginUser: 'a:b' }, 'bad login user'],
  [{ machineId: 'x' }, 'bad machine id'],
  [{ hostKey: '' }, 'bad host key'],
  [{ authorizedKeys: ['a\nb'] }, 'bad key'],
  [{ address: 'dhcp' }, 'ip=: there is no autoconfiguration here, so no "dhcp"'],
])('a bad identity %j is refused with the reason', async (part, message) => {
  startAgent()
  await expect(open().identify({ ...identity, ...part })).rejects.toMatchObject({ code: 'agent.refused', message })
})

test('a variable that cannot be written is refused before anything is sent', async () => {
  await expect(open().identify({ ...identity, environment: { A: 'x\ny' } })).rejects.toMatchObject({
    code: 'agent.invalid',
  })
})

test('a freeze ends by itself, and thaw says so', async () => {
  startAgent()
  const channel = open()
  await channel.freeze(60_000)
  expect(await channel.thaw()).toEqual({ wasFrozen: true })
  expect(await channel.thaw()).toEqual({ wasFrozen: false })
  await channel.freeze(1)
  // The agent looks at its deadlines before it takes the next request, so this answer comes after the thaw.
  await channel.ping()
  await expect.poll(() => channel.thaw(), { interval: 5 }).toEqual({ wasFrozen: false })
  await expect(channel.freeze(60_001)).rejects.toMatchObject({ code: 'agent.refused' })
})

test('a report has the machine’s own numbers', async () => {
  startAgent()
  const server = createServer().listen(0, '0.0.0.0')
  await once(server, 'listening')
  const address = server.address()
  const report = await open().report()
  server.close()
  expect(report.listeningPorts).toContain(typeof address === 'object' ? address?.port : 0)
  expect(report.memoryTotalBytes).toBeGreaterThan(report.memoryAvailableBytes)
  expect(report.cpuBusyMs).toBeGreaterThan(0)
  expect(report.diskTotalBytes).toBeGreaterThan(0)
  expect(report.processCount).toBeGreaterThan(1)
})

test('a report counts what was started over SSH, but neither a shell that waits for a command nor what others started', async () => {
  startAgent()
  const channel = open()
  const before = (await channel.report()).sshProcessCount
  const run = (program: string, words: string[], env = {}) => {
    const child = spawn(program, words, { stdio: ['pipe', 'pipe', 'ignore'], env: { PATH: process.env.PATH, ...env } })
    agents.push(child)
    return child
  }
  const ssh = { SSH_CONNECTION: '10.42.0.1 1 10.42.0.2 22' }
  run('sleep', ['60'])
  run('sleep', ['60'], ssh)
  await expect.poll(async () => (await channel.report()).sshProcessCount - before, { timeout: 60_000 }).toBe(1)
  // A login shell in a terminal of its own, as sshd starts one; who started it is a program like any other.
  const terminal = `import os, pty, sys
child, terminal = pty.fork()
if child == 0: os.execvp('sh', ['-sh'])
prompt = os.read(terminal, 100)
print('prompt', flush=True)
sys.stdin.read()`
  await once(run('python3', ['-c', terminal], ssh).stdout, 'data')
  expect((await channel.report()).sshProcessCount - before).toBe(2)
})

test('the channel comes back when the agent does, and says lost and hello', async () => {
  const first = startAgent()
  const channel = open()
  const events: string[] = []
  channel.on((event) => events.push(event.type))
  await channel.ping()
  const lost = new Promise<void>((resolve) => channel.on((event) => event.type === 'lost' && resolve()))
  first.kill('SIGKILL')
  await lost
  startAgent()
  await channel.ping()
  expect(events).toEqual(['hello', 'lost', 'hello'])
})

test('what an earlier host process left in the stream harms nobody', async () => {
  startAgent()
  const stale = await connected()
  // Half a hello, then gone: the agent serves the next one.
  const hello = encodeFrame({ type: messageType.hello, id: 0, fields: [{ tag: 1, bytes: Buffer.alloc(16, 7) }] })
  stale.end(hello.subarray(0, 9))
  await open().ping()
})

test('a powerOff is answered and announced', async () => {
  startAgent()
  const channel = open()
  const begun = new Promise<AgentEvent>((resolve) => channel.on((event) => event.type === 'poweroff' && resolve(event)))
  await channel.powerOff()
  await begun
})

test('calls have a limit, a signal, and an end with the channel', async () => {
  const channel = open()
  await expect(channel.ping({ timeoutMs: 30 })).rejects.toMatchObject({ code: 'agent.timeout' })
  const stop = new AbortController()
  const aborted = channel.ping({ signal: stop.signal })
  stop.abort(new Error('no longer wanted'))
  await expect(aborted).rejects.toThrow('no longer wanted')
  const waiting = channel.ping()
  channel.close()
  await expect(waiting).rejects.toMatchObject({ code: 'agent.closed' })
  await expect(channel.ping()).rejects.toMatchObject({ code: 'agent.closed' })
  const ended = connectAgent(path, { signal: AbortSignal.abort() })
  await expect(ended.ping()).rejects.toMatchObject({ code: 'agent.closed' })
})

/** A machine that answers what the test says, for what no real agent would do. */
type Asked = { type: number; id: number; nonce?: Buffer }

async function pretend(answer: (frame: Asked, socket: Socket) => void) {
  const server = createServer((socket) => hear(socket, answer))
  server.listen(path)
  await once(server, 'listening')
  return server
}

function hear(socket: Socket, answer: (frame: Asked, socket: Socket) => void): void {
  const reader = new FrameReader()
  socket.on('error', () => {})
  socket.on('data', (chunk: Buffer) => {
    for (const frame of reader.push(chunk)) {
      const nonce = frame.fields.find((field) => field.tag === fieldTag.nonce)?.bytes
      answer({ type: frame.type, id: frame.id, ...(nonce ? { nonce } : {}) }, socket)
    }
  })
}

/** An agent that has nothing against anything. */
function answerAll(socket: Socket): void {
  hear(socket, ({ id, nonce }) => {
    socket.write(nonce ? helloAnswer(nonce) : encodeFrame({ type: messageType.ok, id, fields: [] }))
  })
}

const helloAnswer = (nonce: Buffer) =>
  encodeFrame({ type: messageType.ok, id: 0, fields: [{ tag: fieldTag.nonce, bytes: nonce }] })

test('answers meant for an earlier host process are not taken for one’s own', async () => {
  const server = await pretend((frame, socket) => {
    if (frame.nonce) {
      socket.write(helloAnswer(Buffer.alloc(16, 1)))
      socket.write(
        encodeFrame({ type: messageType.stage, id: 0, fields: [{ tag: fieldTag.stage, bytes: Buffer.from('sshd') }] }),
      )
      setImmediate(() => socket.write(helloAnswer(frame.nonce ?? Buffer.alloc(0))))
    } else socket.write(encodeFrame({ type: messageType.ok, id: frame.id, fields: [] }))
  })
  const channel = open()
  const events: AgentEvent[] = []
  channel.on((event) => events.push(event))
  await channel.ping()
  expect(events.map((event) => event.type)).toEqual(['hello'])
  server.close()
})

test('a guest that reboots is greeted again, and what was asked of it before fails', async () => {
  let boots = 0
  const server = await pretend((frame, socket) => {
    if (frame.nonce) {
      boots++
      socket.write(helloAnswer(frame.nonce))
    } else if (boots === 1) socket.write(encodeFrame({ type: messageType.born, id: 0, fields: [] }))
    else socket.write(encodeFrame({ type: messageType.ok, id: frame.id, fields: [] }))
  })
  const channel = open()
  await expect(channel.ping()).rejects.toMatchObject({ code: 'agent.lost' })
  await channel.ping()
  expect(boots).toBe(2)
  server.close()
})

test('an agent that has forgotten the hello does not take a request, and says so of it', async () => {
  startAgent()
  const socket = await connected()
  const reader = new FrameReader()
  const said: { type: number; id: number }[] = []
  socket.on('data', (chunk: Buffer) => said.push(...reader.push(chunk).map(({ type, id }) => ({ type, id }))))
  socket.write(Buffer.alloc(1))
  socket.write(encodeFrame({ type: messageType.ping, id: 7, fields: [] }))
  await expect.poll(() => said, { timeout: 60_000 }).toEqual([{ type: messageType.born, id: 7 }])
  socket.destroy()
})

test('what was not taken is asked once more after another hello, and what comes meanwhile waits for that', async () => {
  const heard: string[] = []
  const server = await pretend((frame, socket) => {
    if (frame.nonce) {
      heard.push('hello')
      socket.write(helloAnswer(frame.nonce))
    } else {
      heard.push(`request ${frame.id}`)
      const type = heard.filter((one) => one === 'hello').length > 1 ? messageType.ok : messageType.born
      socket.write(encodeFrame({ type, id: frame.id, fields: [] }))
    }
  })
  const channel = open()
  await channel.ready()
  await Promise.all([channel.ping(), channel.ping()])
  await channel.ping()
  expect(heard).toEqual(['hello', 'request 1', 'request 2', 'hello', 'request 1', 'request 2', 'request 3'])
  server.close()
})

test('one that is too old to say that it has forgotten the hello hears another after a request without an answer', async () => {
  let hellos = 0
  const server = await pretend((frame, socket) => {
    if (frame.nonce) {
      hellos++
      socket.write(helloAnswer(frame.nonce))
    } else if (hellos > 1) socket.write(encodeFrame({ type: messageType.ok, id: frame.id, fields: [] }))
  })
  const channel = open()
  await channel.ready()
  await expect(channel.ping({ timeoutMs: 20 })).rejects.toMatchObject({ code: 'agent.timeout' })
  await channel.ping()
  expect(hellos).toBe(2)
  server.close()
})

test('a machine’s reason reaches a log without its escape sequences', async () => {
  const server = await pretend((frame, socket) => {
    if (frame.nonce) socket.write(helloAnswer(frame.nonce))
    else {
      const bytes = Buffer.from(`\x1b[2Jevil\n${'x'.repeat(9000)}`)
      socket.write(encodeFrame({ type: messageType.error, id: frame.id, fields: [{ tag: fieldTag.message, bytes }] }))
    }
  })
  const error = await open()
    .ping()
    .then(
      () => undefined,
      (reason: ChannelError) => reason,
    )
  expect(error?.message).toMatch(/^ \[2Jevil x+$/)
  expect(error?.message.length).toBeLessThanOrEqual(500)
  server.close()
})

test('a machine that floods the channel is read slowly', async () => {
  const event = encodeFrame({ type: messageType.powerOffBegun, id: 0, fields: [] })
  const flood = Buffer.concat(Array.from({ length: 20_000 }, () => event))
  let seen = 0
  let warned = 0
  const server = await pretend((frame, socket) => {
    if (!frame.nonce) return
    socket.write(helloAnswer(frame.nonce))
    for (let i = 0; i < 20; i++) socket.write(flood)
  })
  const channel = open({ log: { debug() {}, warn: () => warned++ } })
  channel.on((happened) => {
    if (happened.type === 'poweroff') seen++
  })
  await expect.poll(() => warned, { timeout: 60_000 }).toBe(1)
  // A read is at most 64 KiB of frames past the limit.
  expect(seen).toBeLessThan(500 + 65_536 / event.length + 1)
  server.close()
})

test.each([
  ['zeros', 0],
  ['what never ends in a frame', 1],
])('so is one that floods it with %s', async (_name, byte) => {
  const flood = Buffer.alloc(1 << 20, byte)
  let taken = 0
  const server = await pretend((frame, socket) => {
    if (!frame.nonce) return
    socket.write(helloAnswer(frame.nonce))
    const more = () =>
      socket.write(flood, (error) => {
        if (error) return
        taken += flood.length
        more()
      })
    more()
  })
  let warned = 0
  const channel = open({ log: { debug() {}, warn: () => warned++ } })
  await channel.ready()
  await expect.poll(() => warned, { timeout: 60_000 }).toBe(3)
  // A part of a MiB each second, and what lies in the buffers of both sides.
  expect(taken).toBeLessThan(3 * (1 << 20))
  channel.close()
  server.close()
})

test('a machine that answers nothing is asked no more than it has room for', async () => {
  const server = await pretend((frame, socket) => {
    if (frame.nonce) socket.write(helloAnswer(frame.nonce))
  })
  const channel = open()
  await channel.ready()
  const asked = Array.from({ length: 16 }, () => channel.ping().catch(() => {}))
  await expect(channel.ping()).rejects.toMatchObject({ code: 'agent.busy' })
  channel.close()
  await Promise.all(asked)
  server.close()
})

test('a machine that reads nothing fills nobody’s memory, also after what it was asked has timed out', async () => {
  const server = await pretend((frame, socket) => {
    if (frame.nonce) socket.write(helloAnswer(frame.nonce), () => socket.pause())
  })
  const channel = open()
  await channel.ready()
  const key = `ssh-ed25519 ${'A'.repeat(200_000)}`
  const codes: string[] = []
  for (let i = 0; i < 20; i++) {
    await channel.updateKeys([key], { timeoutMs: 20 }).catch((error: ChannelError) => codes.push(error.code))
  }
  // A whole identity of the largest kind is never in the way of the next one.
  expect(codes.slice(0, 4)).toEqual(Array(4).fill('agent.timeout'))
  expect(codes.slice(10)).toEqual(Array(10).fill('agent.busy'))
  channel.close()
  server.close()
})

test('under Cloud Hypervisor the guest’s port is asked for first', async () => {
  const asked: string[] = []
  const server = createServer((socket) => {
    socket.once('data', (chunk: Buffer) => {
      asked.push(chunk.toString())
      socket.write('OK 1073741824\n')
      answerAll(socket)
    })
  })
  server.listen(path)
  await once(server, 'listening')
  await open({ vsockPort: 1024 }).ping()
  expect(asked).toEqual(['CONNECT 1024\n'])
  server.close()
})

test('under Cloud Hypervisor a guest whose agent does not listen yet is asked again, soon and not all the time', async () => {
  let refused = 0
  const server = createServer((socket) => {
    socket.once('data', () => {
      if (++refused < 12) {
        socket.destroy()
        return
      }
      socket.write('OK 1073741824\n')
      answerAll(socket)
    })
  })
  server.listen(path)
  await once(server, 'listening')
  const startedAt = performance.now()
  await open({ vsockPort: 1024 }).ping()
  // 20, 40, 80 ms, then 100 ms each: as often as that, and no more often.
  expect(performance.now() - startedAt).toBeGreaterThan(900)
  expect(performance.now() - startedAt).toBeLessThan(5_000)
  server.close()
})

test('what is told a machine goes to a socket of its hypervisor’s own, and nowhere that a link in its place leads', async () => {
  const uid = 2_000_043
  let came = 0
  const other = createServer((socket) => {
    came++
    socket.destroy()
  })
  const elsewhere = join(directory, 'elsewhere.sock')
  other.listen(elsewhere)
  await once(other, 'listening')
  chownSync(elsewhere, uid, uid)
  symlinkSync(elsewhere, path)
  const channel = open({ uid })
  await expect(channel.ping({ timeoutMs: 500 })).rejects.toMatchObject({ code: 'agent.timeout' })
  rmSync(path)
  other.close()
  expect(came).toBe(0)
  startAgent()
  await connected()
  await expect(channel.ping({ timeoutMs: 1_500 })).rejects.toMatchObject({ code: 'agent.timeout' })
  chownSync(path, uid, uid)
  await channel.ping()
})
