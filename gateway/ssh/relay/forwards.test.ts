import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { connect, createServer, type Server, type Socket } from 'node:net'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from 'vitest'
import {
  freePort,
  type Gateway,
  type Keys,
  type Machine,
  makeKeys,
  run,
  ssh,
  sshArguments,
  startGateway,
  startMachine,
} from './fixtures.ts'

let keys: Keys & Disposable
let machine: Machine
let gateway: Gateway
let echo: Server
let echoPort: number

beforeAll(async () => {
  keys = makeKeys()
  machine = await startMachine(keys)
  gateway = await startGateway(keys, machine)
  // Answers only after the end of what it was sent, so it tells a half-close from a close
  echo = createServer({ allowHalfOpen: true }, (socket) => {
    const seen: Buffer[] = []
    socket.on('data', (bytes) => seen.push(bytes))
    socket.on('end', () => socket.end(Buffer.concat([Buffer.from('heard '), ...seen])))
    socket.on('error', () => {})
  })
  echo.listen(0, '127.0.0.1')
  await once(echo, 'listening')
  echoPort = (echo.address() as { port: number }).port
})

afterAll(async () => {
  echo.close()
  await gateway[Symbol.asyncDispose]()
  await machine[Symbol.asyncDispose]()
  keys[Symbol.dispose]()
})

test('-L carries connections with their half-closes', async () => {
  const port = await freePort()
  await using _client = await forwarding(['-L', `${port}:127.0.0.1:${echoPort}`])
  expect(await ask(port, 'x'.repeat(300_000))).toBe(`heard ${'x'.repeat(300_000)}`)
})

test('300 connections at once go through one forward, and a pooled connection takes no more than its share', async () => {
  const port = await freePort()
  const before = gateway.pool.connections
  await using _client = await forwarding(['-L', `${port}:127.0.0.1:${echoPort}`])
  const sockets = await Promise.all(Array.from({ length: 300 }, () => opened(port)))
  await expect.poll(() => gateway.relays.at(-1)?.channelCount).toBe(300)
  expect(gateway.pool.connections - before).toBe(before === 0 ? 3 : 2)
  const answers = sockets.map((socket, index) => {
    socket.end(String(index))
    return collect(socket)
  })
  expect(await Promise.all(answers)).toEqual(sockets.map((_, index) => `heard ${index}`))
})

test('-D serves SOCKS', async () => {
  const port = await freePort()
  await using _client = await forwarding(['-D', String(port)])
  const socket = await opened(port)
  socket.write(Buffer.from([5, 1, 0]))
  await once(socket, 'data')
  socket.write(Buffer.from([5, 1, 0, 1, 127, 0, 0, 1, echoPort >> 8, echoPort & 255]))
  await once(socket, 'data')
  socket.end('hi')
  const [answer] = (await once(socket, 'data')) as [Buffer]
  expect(answer.toString()).toBe('heard hi')
})

test('-W joins standard input and output to a connection', async () => {
  const outcome = await ssh(keys, gateway.port, [], { ssh: ['-W', `127.0.0.1:${echoPort}`], input: 'hi' })
  expect(outcome.stdout.toString()).toBe('heard hi')
})

test('a connection that the machine cannot make is refused with its own words', async () => {
  const outcome = await ssh(keys, gateway.port, [], { ssh: ['-o', 'LogLevel=INFO', '-W', '127.0.0.1:1'] })
  expect(outcome.stderr.toString()).toContain('open failed: connect failed: Connection refused')
})

test('-R listens on the machine, and the connection is its own', async () => {
  const port = await freePort()
  const before = gateway.pool.connections
  await using _client = await forwarding(['-R', `${port}:127.0.0.1:${echoPort}`])
  expect(await ask(port, 'hi')).toBe('heard hi')
  expect(gateway.pool.connections).toBe(before + 1)
})

test('a client for which a machine listened ends with the connection to it, and the next one listens anew', async () => {
  const port = await freePort()
  const again = await startMachine(keys)
  await using other = await startGateway(keys, again)
  const lost = await forwarding(['-R', `${port}:127.0.0.1:${echoPort}`], other)
  let said = ''
  lost.process.stderr?.on('data', (bytes: Buffer) => {
    said += bytes
  })
  const ended = once(lost.process, 'exit')
  // As when the machine restarts
  other.pool.forget(again.target.machineId)
  expect(await ended).toEqual([255, null])
  expect(said).toContain('The connection to machine demo was lost.')
  await using _next = await forwarding(['-R', `${port}:127.0.0.1:${echoPort}`], other)
  expect(await ask(port, 'hi')).toBe('heard hi')
  await again[Symbol.asyncDispose]()
})

test('-R 0 tells the port that the machine chose, and cancelling ends it', async () => {
  const control = join(keys.directory, 'forwards')
  await using _client = await forwarding(['-M', '-S', control])
  const forward = ['-S', control, '-O', 'forward', '-R', `0:127.0.0.1:${echoPort}`]
  const { stdout } = await ssh(keys, gateway.port, [], { ssh: forward })
  const port = Number(stdout)
  expect(await ask(port, 'hi')).toBe('heard hi')
  const cancel = ['-S', control, '-O', 'cancel', '-R', `0:127.0.0.1:${echoPort}`]
  await ssh(keys, gateway.port, [], { ssh: cancel })
  await expect.poll(() => ask(port, 'hi').catch((error: Error) => error.message)).toContain('ECONNREFUSED')
})

test('Unix sockets are forwarded both ways', async () => {
  const near = join(keys.directory, 'near.sock')
  const far = join(keys.directory, 'far.sock')
  const served = join(keys.directory, 'served.sock')
  const server = createServer((socket) => socket.end('served'))
  server.listen(served)
  await once(server, 'listening')
  await using _client = await forwarding(['-L', `${near}:${served}`, '-R', `${far}:${served}`])
  expect(await read(near)).toBe('served')
  expect(await read(far)).toBe('served')
  server.close()
})

test('-A gives the session its agent over a connection of its own; the next session has none', async () => {
  const agent = await startAgent()
  try {
    const env = { SSH_AUTH_SOCK: agent.socket }
    const before = gateway.pool.connections
    const listed = await ssh(keys, gateway.port, ['ssh-add -l; echo $PPID'], { ssh: ['-A'], env })
    expect(listed.stdout.toString()).toContain('(ED25519)')
    const plain = await ssh(keys, gateway.port, ['echo "agent=$SSH_AUTH_SOCK"; echo $PPID'], { env })
    expect(plain.stdout.toString()).toContain('agent=\n')
    await expect.poll(() => gateway.pool.connections).toBeLessThanOrEqual(Math.max(before, 1))
  } finally {
    process.kill(agent.pid)
  }
})

test('a client that asks for its terminal before its agent gets both', async () => {
  const script = `
import sys, paramiko
transport = paramiko.Transport(('127.0.0.1', int(sys.argv[1])))
transport.connect(username='demo', pkey=paramiko.Ed25519Key.from_private_key_file(sys.argv[2]))
channel = transport.open_session()
channel.get_pty(term='vt52')
channel.request_forward_agent(lambda channel: None)
channel.exec_command('test -n "$SSH_AUTH_SOCK" && echo $TERM has agent')
print(channel.makefile().read().decode())
transport.close()
`
  const outcome = await run('/usr/bin/python3', ['-c', script, String(gateway.port), keys.clientKey])
  expect(outcome.stdout.toString()).toContain('vt52 has agent')
})

test('-X reaches the display of the client', async () => {
  const display = createServer((socket) => {
    socket.once('data', (bytes) => socket.end(`display ${bytes.length}`))
    socket.on('error', () => {})
  })
  display.listen(0, '127.0.0.1')
  await once(display, 'listening')
  const number = (display.address() as { port: number }).port - 6000
  try {
    // What an X client says first: byte order, protocol 11.0, name and cookie (the client checks and replaces it)
    const client = `
import os, socket, subprocess, struct
number = int(os.environ['DISPLAY'].split(':')[1].split('.')[0])
listed = subprocess.run(['xauth', 'list', os.environ['DISPLAY']], capture_output=True, text=True).stdout.split()
cookie = bytes.fromhex(listed[2])
s = socket.create_connection(('127.0.0.1', 6000 + number))
s.sendall(struct.pack('<cxHHHHxx', b'l', 11, 0, 18, len(cookie)) + b'MIT-MAGIC-COOKIE-1\\0\\0' + cookie)
print(s.recv(100).decode())
`
    const encoded = Buffer.from(client).toString('base64')
    const outcome = await ssh(keys, gateway.port, [`echo ${encoded} | base64 -d | python3 -`], {
      ssh: ['-Y'],
      env: { DISPLAY: `127.0.0.1:${number}`, XAUTHORITY: join(keys.directory, 'xauthority') },
    })
    expect(outcome.stdout.toString()).toContain('display 48')
  } finally {
    display.close()
  }
})

/** A client that only forwards, ready when its forwards are. */
async function forwarding(
  options: readonly string[],
  through = gateway,
): Promise<{ process: ChildProcess } & AsyncDisposable> {
  const own = ['-v', '-N', '-o', 'ExitOnForwardFailure=yes', '-o', 'LogLevel=DEBUG1', ...options]
  const child = spawn('ssh', [...sshArguments(keys, through.port, own), 'demo@127.0.0.1'])
  let seen = ''
  const wanted = options.includes('-R')
    ? /remote forward success|All remote forwarding requests processed/
    : /Entering interactive/
  await new Promise<void>((resolve, reject) => {
    child.stderr.on('data', (bytes: Buffer) => {
      seen += bytes
      if (wanted.test(seen)) resolve()
    })
    child.on('exit', () => reject(new Error(seen)))
  })
  return {
    process: child,
    [Symbol.asyncDispose]: async () => {
      const gone = once(child, 'exit')
      child.kill()
      await gone
    },
  }
}

async function opened(port: number): Promise<Socket> {
  const socket = connect({ port, host: '127.0.0.1', allowHalfOpen: true })
  await once(socket, 'connect')
  return socket
}

/** Sends text, ends, and reads the answer to its end. */
async function ask(port: number, text: string): Promise<string> {
  const socket = await opened(port)
  socket.end(text)
  return collect(socket)
}

async function read(path: string): Promise<string> {
  const socket = connect(path)
  await once(socket, 'connect')
  return collect(socket)
}

async function collect(socket: Socket): Promise<string> {
  const seen: Buffer[] = []
  for await (const bytes of socket) seen.push(bytes as Buffer)
  return Buffer.concat(seen).toString()
}

async function startAgent(): Promise<{ socket: string; pid: number }> {
  const { stdout } = await run('ssh-agent', ['-s'])
  const socket = /SSH_AUTH_SOCK=([^;]+)/.exec(stdout.toString())?.[1] ?? ''
  const pid = Number(/SSH_AGENT_PID=(\d+)/.exec(stdout.toString())?.[1])
  await run('ssh-add', ['-q', keys.clientKey], { env: { SSH_AUTH_SOCK: socket } })
  return { socket, pid }
}
