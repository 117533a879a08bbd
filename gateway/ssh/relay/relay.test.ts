import { spawn } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import pty from 'node-pty'
import type { ExecInfo } from 'ssh2'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { MachineUnreachableError } from '../pool/target.ts'
import {
  type Gateway,
  type Keys,
  type Machine,
  makeKeys,
  run,
  ssh,
  sshArguments,
  startFakeMachine,
  startGateway,
  startMachine,
} from './fixtures.ts'

let keys: Keys & Disposable
let machine: Machine
let gateway: Gateway

beforeAll(async () => {
  keys = makeKeys()
  machine = await startMachine(keys)
  gateway = await startGateway(keys, machine)
})

afterAll(async () => {
  await gateway[Symbol.asyncDispose]()
  await machine[Symbol.asyncDispose]()
  keys[Symbol.dispose]()
})

describe('a command', () => {
  test('has its output, its errors and its exit status apart', async () => {
    const outcome = await ssh(keys, gateway.port, ['echo out; echo err >&2; exit 7'])
    expect(outcome).toMatchObject({ status: 7, stdout: Buffer.from('out\n'), stderr: Buffer.from('err\n') })
  })

  // Linux takes 128 KiB in one argument of a program, so the shell of a real machine can run no longer command
  test('of 120 KB and of any bytes arrives as it was typed', async () => {
    const outcome = await run('/usr/bin/python3', ['-c', anyBytes(), String(gateway.port), keys.clientKey])
    expect(outcome.stdout.toString()).toBe(createHash('sha256').update(allBytes(120_000)).digest('hex'))
  })

  test('of 200 KB reaches the machine', async () => {
    const seen = Promise.withResolvers<Buffer>()
    await using fake = await startFakeMachine(keys, (session) => {
      session.on('exec', (accept, _reject, { commandBytes }: ExecInfo & { commandBytes?: Buffer }) => {
        if (commandBytes !== undefined) seen.resolve(commandBytes)
        const channel = accept()
        channel.exit(0)
        channel.end()
      })
    })
    await using front = await startGateway(keys, fake)
    await run('/usr/bin/python3', [
      '-c',
      paramiko(`channel.exec_command(b'x' * 200_000)`),
      String(front.port),
      keys.clientKey,
    ])
    expect((await seen.promise).equals(Buffer.alloc(200_000, 'x'))).toBe(true)
  })

  test('that is killed ends with its signal', async () => {
    const outcome = await run('/usr/bin/python3', ['-c', exitSignal(), String(gateway.port), keys.clientKey])
    expect(outcome.stdout.toString().trim()).toBe('TERM False')
  })

  test('gets the environment byte for byte', async () => {
    const outcome = await ssh(keys, gateway.port, ['printf %s "$LATIN" | od -An -tx1'], {
      ssh: ['-o', 'SendEnv=LATIN'],
      env: { LATIN: 'caf\u00e9' },
    })
    expect(outcome.stdout.toString().trim()).toBe('63 61 66 c3 a9')
  })

  test('reads its input to the end and may answer after it', async () => {
    const input = randomBytes(3_000_000)
    const outcome = await ssh(keys, gateway.port, ['cat; sleep 0.1; echo after'], { input })
    expect(outcome.stdout.subarray(0, input.length).equals(input)).toBe(true)
    expect(outcome.stdout.subarray(input.length).toString()).toBe('after\n')
  })

  test('that closes its output early leaves the client its exit status', async () => {
    const outcome = await ssh(keys, gateway.port, ['exec >&- 2>&-; cat >/dev/null; exit 5'], { input: 'x'.repeat(100) })
    expect(outcome.status).toBe(5)
  })

  test('that nobody feeds any more does not hang', async () => {
    const outcome = await ssh(keys, gateway.port, ['head -c 1'], { input: Buffer.alloc(20_000_000) })
    expect(outcome.stdout.length).toBe(1)
    expect(outcome.status).toBe(0)
  })
})

describe('a terminal', () => {
  test('has the size, the modes and the signals of the client', async () => {
    const terminal = pty.spawn('ssh', [...sshArguments(keys, gateway.port), '-tt', 'demo@127.0.0.1', terminalProbe], {
      cols: 91,
      rows: 33,
      name: 'xterm-256color',
    })
    let seen = ''
    const ended = new Promise<number>((resolve) => terminal.onExit(({ exitCode }) => resolve(exitCode)))
    terminal.onData((text) => {
      seen += text
      if (text.includes('ready')) terminal.resize(120, 40)
      if (text.includes('resized')) terminal.write('\x03')
    })
    expect(await ended).toBe(42)
    expect(seen).toContain('33 91')
    expect(seen).toContain('xterm-256color')
    expect(seen).toContain('resized 40 120')
    expect(seen).toContain('interrupted')
    // node-pty turns IUTF8 on, and the client sends it among the modes
    expect(seen).toMatch(/[^-]iutf8/)
  })

  test('passes a break on', async () => {
    const outcome = await run('/usr/bin/python3', ['-c', sendBreak(), String(gateway.port), keys.clientKey])
    expect(outcome.stdout.toString()).toContain('break reply True')
  })

  // sshd takes signals for users other than root only
  test('passes a signal on', async () => {
    const seen = Promise.withResolvers<string>()
    await using fake = await startFakeMachine(keys, (session) => {
      session.on('signal', (_accept, _reject, { name }) => seen.resolve(name))
      session.on('exec', (accept) => accept())
    })
    await using front = await startGateway(keys, fake)
    await run('/usr/bin/python3', ['-c', sendSignal(), String(front.port), keys.clientKey])
    expect(await seen.promise).toBe('USR1')
  })
})

describe('files', () => {
  test.each([
    ['sftp', []],
    ['the old protocol', ['-O']],
  ])('go both ways with scp over %s', async (_name, options) => {
    const bytes = randomBytes(5_000_000)
    const from = join(keys.directory, 'from')
    const there = join(keys.directory, 'there')
    const back = join(keys.directory, 'back')
    writeFileSync(from, bytes)
    const common = [...options, ...sshArguments(keys, gateway.port).map((each) => (each === '-p' ? '-P' : each))]
    expect(await run('scp', [...common, from, `demo@127.0.0.1:${there}`])).toMatchObject({ status: 0 })
    expect(await run('scp', [...common, `demo@127.0.0.1:${there}`, back])).toMatchObject({ status: 0 })
    expect(readFileSync(back).equals(bytes)).toBe(true)
  })

  test('go with rsync and git', async () => {
    const source = join(keys.directory, 'tree')
    await run('sh', [
      '-c',
      `mkdir -p ${source} && cd ${source} && git init -q . && echo hi > a && git add a && \
      git -c user.name=a -c user.email=a@b commit -qm a`,
    ])
    const command = `ssh ${sshArguments(keys, gateway.port).join(' ')}`
    const env = { GIT_SSH_COMMAND: command }
    const cloned = await run('git', ['clone', '-q', `demo@127.0.0.1:${source}`, `${source}-clone`], { env })
    expect(cloned).toMatchObject({ status: 0 })
    const synced = await run('rsync', ['-a', '-e', command, `demo@127.0.0.1:${source}/`, `${source}-sync`])
    expect(synced).toMatchObject({ status: 0 })
    expect(readFileSync(`${source}-sync/a`, 'utf8')).toBe('hi\n')
  })
})

describe('many at once', () => {
  test('20 clients at once share one connection to the machine', async () => {
    const before = gateway.pool.connections
    const outcomes = await Promise.all(
      Array.from({ length: 20 }, (_, index) => ssh(keys, gateway.port, [`echo ${index}`])),
    )
    expect(outcomes.map(({ stdout }) => Number(stdout))).toEqual([...Array(20).keys()])
    expect(gateway.pool.connections).toBe(Math.max(before, 1))
  })

  test('ControlMaster carries twenty sessions at once over one connection', async () => {
    const path = join(keys.directory, 'control')
    const master = spawn('ssh', [...sshArguments(keys, gateway.port), '-M', '-N', '-S', path, 'demo@127.0.0.1'])
    try {
      await expect
        .poll(async () => (await ssh(keys, gateway.port, ['-O', 'check'], { ssh: ['-S', path] })).status)
        .toBe(0)
      const before = gateway.clients.length
      const outcomes = await Promise.all(
        Array.from({ length: 20 }, (_, index) =>
          ssh(keys, gateway.port, [`echo ${index}; exit 3`], { ssh: ['-S', path] }),
        ),
      )
      expect(outcomes.every(({ status }) => status === 3)).toBe(true)
      expect(outcomes.map(({ stdout }) => Number(stdout))).toEqual([...Array(20).keys()])
      expect(gateway.clients.length).toBe(before)
    } finally {
      master.kill()
      await once(master, 'exit')
    }
  })

  test('channels beyond the limit are refused with a message', async () => {
    await using small = await startGateway(keys, machine, { relay: { maxChannels: 1 } })
    const path = join(keys.directory, 'control-small')
    const options = ['-S', path]
    const loud = sshArguments(keys, small.port, ['-o', 'LogLevel=INFO'])
    const master = spawn('ssh', [...loud, '-M', '-S', path, 'demo@127.0.0.1', 'cat'])
    const said: Buffer[] = []
    master.stderr.on('data', (bytes: Buffer) => said.push(bytes))
    try {
      await expect.poll(async () => (await ssh(keys, small.port, ['-O', 'check'], { ssh: options })).status).toBe(0)
      const refused = await ssh(keys, small.port, ['true'], { ssh: [...options, '-o', 'ControlMaster=no'] })
      expect(refused.stderr.toString()).toContain('Session open refused by peer')
      expect(Buffer.concat(said).toString()).toContain('At most 1 channels on one connection.')
    } finally {
      master.kill()
      await once(master, 'exit')
    }
  })
})

describe('new keys', () => {
  test.each(['up and down', 'down', 'up'])('are agreed while data goes %s', async (direction) => {
    await using busy = await startGateway(keys, machine, { server: { rekeyBytes: 2_000_000 } })
    const bytes = 30_000_000
    const options = { ssh: ['-o', 'RekeyLimit=3M'] }
    if (direction === 'down') {
      const outcome = await ssh(keys, busy.port, [`head -c ${bytes} /dev/zero`], options)
      expect(outcome.stdout.equals(Buffer.alloc(bytes))).toBe(true)
      return
    }
    const input = randomBytes(bytes)
    const command = direction === 'up' ? 'cat > /dev/null; echo done' : 'cat'
    const outcome = await ssh(keys, busy.port, [command], { ...options, input })
    expect(outcome.stdout.equals(direction === 'up' ? Buffer.from('done\n') : input)).toBe(true)
  })
})

describe('a machine that cannot be reached', () => {
  test('is told on stderr with status 255', async () => {
    const target = { ...machine.target, port: 1 }
    await using gone = await startGateway(keys, { target })
    const outcome = await ssh(keys, gone.port, ['true'])
    expect(outcome).toMatchObject({
      status: 255,
      stderr: Buffer.from(
        'Machine demo does not answer over SSH; if it is only busy, try again; to see: logs demo; to start it anew: restart demo\n',
      ),
    })
  })

  test('with another host key is not talked to', async () => {
    const target = {
      ...machine.target,
      hostKey: Buffer.concat([machine.target.hostKey.subarray(0, 19), randomBytes(32)]),
    }
    await using gone = await startGateway(keys, { target })
    const outcome = await ssh(keys, gone.port, ['true'])
    expect(outcome.stderr.toString()).toContain('a host key that is not its own')
    expect(outcome.status).toBe(255)
  })

  test('gives the reason that routing gave', async () => {
    await using asleep = await startGateway(keys, machine, {
      relay: {
        resolve: () => Promise.reject(new MachineUnreachableError('machine.unreachable', 'Machine demo is stopped.')),
      },
    })
    const outcome = await ssh(keys, asleep.port, ['true'], { ssh: ['-tt'] })
    expect(outcome.stderr.toString()).toBe('Machine demo is stopped.\r\n')
    expect(outcome.status).toBe(255)
    const forward = await ssh(keys, asleep.port, ['-W', '127.0.0.1:22'], {})
    expect(forward.status).not.toBe(0)
  })

  test('is waited for: input and requests are held meanwhile', async () => {
    const { promise, resolve } = Promise.withResolvers<void>()
    await using waking = await startGateway(keys, machine, {
      relay: { resolve: () => promise.then(() => machine.target) },
    })
    const outcome = ssh(keys, waking.port, ['cat; exit 4'], { input: 'held' })
    await expect.poll(() => waking.relays[0]?.channelCount).toBe(1)
    resolve()
    expect(await outcome).toMatchObject({ status: 4, stdout: Buffer.from('held') })
  })
})

describe('a machine that dies', () => {
  test('ends its sessions with a sentence and status 255', async () => {
    await using mortal = await startMachine(keys)
    await using front = await startGateway(keys, mortal)
    const child = spawn('ssh', [...sshArguments(keys, front.port), 'demo@127.0.0.1', 'echo $PPID; cat'])
    const errors: Buffer[] = []
    child.stderr.on('data', (bytes: Buffer) => errors.push(bytes))
    const [line] = (await once(child.stdout, 'data')) as [Buffer]
    process.kill(Number(line), 'SIGKILL')
    const [status] = (await once(child, 'close')) as [number]
    expect(Buffer.concat(errors).toString()).toContain('The connection to machine demo was lost.')
    expect(status).toBe(255)
  })

  test('and comes back is reached again over a new connection', async () => {
    await using mortal = await startMachine(keys)
    await using front = await startGateway(keys, mortal)
    const first = await ssh(keys, front.port, ['echo $PPID'])
    process.kill(Number(first.stdout), 'SIGKILL')
    expect(await ssh(keys, front.port, ['exit 6'])).toMatchObject({ status: 6 })
  })

  test('without a word, the next session does not wait for the dead connection', async () => {
    await using mortal = await startMachine(keys)
    await using front = await startGateway(keys, mortal)
    const first = await ssh(keys, front.port, ['echo $PPID'])
    process.kill(Number(first.stdout), 'SIGSTOP')
    try {
      expect(await ssh(keys, front.port, ['exit 6'])).toMatchObject({ status: 6 })
    } finally {
      process.kill(Number(first.stdout), 'SIGKILL')
    }
  })
})

test('a client that goes away ends what it started with a terminal', async () => {
  const child = spawn('ssh', [...sshArguments(keys, gateway.port), '-tt', 'demo@127.0.0.1', 'echo $$; sleep 1000'])
  const [line] = (await once(child.stdout, 'data')) as [Buffer]
  child.kill('SIGKILL')
  await expect.poll(() => isRunning(Number(line)), { timeout: 60_000 }).toBe(false)
})

const terminalProbe = `stty size; echo $TERM; stty -a; trap 'echo resized $(stty size)' WINCH; \
trap 'echo interrupted; exit 42' INT; echo ready; while :; do sleep 0.1; done`

function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch {
    return false
  }
}

// What the OpenSSH client never asks for or never shows is tried with paramiko.
function paramiko(body: string): string {
  return `
import sys, time, paramiko
from paramiko.common import *
transport = paramiko.Transport(('127.0.0.1', int(sys.argv[1])))
transport.connect(username='demo', pkey=paramiko.Ed25519Key.from_private_key_file(sys.argv[2]))
channel = transport.open_session()
${body}
transport.close()
`
}

/** As many bytes as asked for, every value but 0 and the quote that a shell would end the text at. */
function allBytes(length: number): Buffer {
  return Buffer.alloc(length, Buffer.from([...Array(256).keys()].filter((byte) => byte !== 0 && byte !== 0x27)))
}

function anyBytes(): string {
  return paramiko(`
every = bytes(byte for byte in range(1, 256) if byte != 0x27)
text = (every * (120_000 // len(every) + 1))[:120_000]
channel.exec_command(b"printf %s '" + text + b"' | sha256sum | cut -c1-64 | tr -d '\\n'")
print(channel.makefile().read().decode(), end='')
`)
}

function exitSignal(): string {
  return paramiko(`
seen = []
handler = channel._handle_request
def spy(message):
    copy = paramiko.Message(message.asbytes())
    copy.get_int()
    if copy.get_text() == 'exit-signal':
        copy.get_boolean()
        seen.append((copy.get_text(), copy.get_boolean()))
    return handler(message)
paramiko.Transport._channel_handler_table[MSG_CHANNEL_REQUEST] = lambda self, message: spy(message)
channel.exec_command('kill -TERM $$')
channel.recv(1)
time.sleep(0.2)
print(*seen[0])
`)
}

const requests = `
def request(name, want_reply, *fields):
    message = paramiko.Message()
    message.add_byte(cMSG_CHANNEL_REQUEST)
    message.add_int(channel.remote_chanid)
    message.add_string(name)
    message.add_boolean(want_reply)
    for field in fields:
        message.add_string(field) if isinstance(field, str) else message.add_int(field)
    if want_reply: channel._event_pending()
    transport._send_user_message(message)
    if want_reply: channel._wait_for_event()
`

function sendBreak(): string {
  return paramiko(`${requests}
channel.get_pty()
channel.exec_command('cat')
request('break', True, 500)
print('break reply', not channel.closed)
`)
}

function sendSignal(): string {
  return paramiko(`${requests}
channel.exec_command('cat')
request('signal', False, 'USR1')
time.sleep(0.1)
`)
}
