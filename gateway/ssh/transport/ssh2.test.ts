import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { type AddressInfo, connect } from 'node:net'
import { join } from 'node:path'
import ssh2, { type Algorithms, type Connection, type ServerChannel, type Session } from 'ssh2'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type Keys, makeKeys, type Outcome, run, sshArguments } from '../relay/fixtures.ts'
import { serverAlgorithms } from './algorithms.ts'
import { type ChannelEnd, deafSink } from './channel-end.ts'
import { type IncomingOpen, Link, type LinkOwner } from './link.ts'
import { checkSsh2 } from './native.ts'
import { disconnectWithMessage, transportOf } from './protocol.ts'
import { disconnectReason, encode } from './wire.ts'

let keys: Keys & Disposable

beforeAll(() => {
  keys = makeKeys()
})

afterAll(() => keys[Symbol.dispose]())

test('the patch is applied and the native part is built for this Node', () => {
  expect(checkSsh2).not.toThrow()
})

test('ciphers that are collected between callbacks do not abort the process', async () => {
  // Memory for what a socket reads is asked for outside of any callback, and may start a collection there
  const program = `
    const { AESGCMCipher } = require('ssh2/lib/protocol/crypto/build/Release/sshcrypto.node')
    for (let i = 0; i < 3000; i++) new AESGCMCipher('aes-128-gcm', Buffer.alloc(16), Buffer.alloc(12))
    const net = require('node:net')
    const server = net.createServer((socket) => socket.resume()).listen(0, () => {
      const client = net.connect(server.address().port)
      let count = 0
      const next = () => {
        if (count++ < 4000) client.write(Buffer.alloc(65536), next)
        else {
          console.log('alive')
          process.exit()
        }
      }
      next()
    })`
  const outcome = await run(process.execPath, ['-e', program])
  expect(outcome.stdout.toString()).toBe('alive\n')
})

describe('key exchange', () => {
  test('is post-quantum between two of us', async () => {
    await using server = await serve()
    const client = await server.client({})
    expect(client.negotiated.kex).toBe('mlkem768x25519-sha256')
  })

  test('is post-quantum with the OpenSSH that is installed, when that can', async () => {
    await using server = await serve({ onSession: answerExec })
    const outcome = await server.ssh(['-n', '-v', '-o', 'LogLevel=DEBUG1'], 'true')
    const able = execFileSync('ssh', ['-Q', 'kex'], { encoding: 'utf8' }).includes('mlkem768x25519-sha256')
    const kex = able ? 'mlkem768x25519-sha256' : 'curve25519-sha256'
    expect(outcome.stderr.toString()).toContain(`kex: algorithm: ${kex}`)
    expect(outcome.stderr.toString()).not.toContain('post-quantum')
  })

  test('refuses a public value of the wrong length', async () => {
    await using server = await serve()
    const client = await server.client({})
    // The client's own value in the next exchange is one byte short
    const protocol = transportOf(client.ssh).protocol as unknown as { _kex: object; rekey(): void }
    const exchange = Object.getPrototypeOf(protocol._kex) as { getPublicKey: () => Buffer }
    const { getPublicKey } = exchange
    exchange.getPublicKey = () => Buffer.alloc(1184 + 31)
    try {
      const error = new Promise<Error>((resolve) => server.clients[0]?.once('error', resolve))
      protocol.rekey()
      expect((await error).message).toContain('bad public value length: 1215')
    } finally {
      exchange.getPublicKey = getPublicKey
    }
  })

  test('does not offer group exchange', async () => {
    await using server = await serve()
    const outcome = await server.ssh(['-o', 'LogLevel=DEBUG2'], 'true')
    const offered = /peer server KEXINIT proposal[\s\S]*?KEX algorithms: (\S+)/
      .exec(outcome.stderr.toString())?.[1]
      ?.split(',')
    expect(offered).toContain('mlkem768x25519-sha256')
    expect(offered?.filter((name) => name.includes('group-exchange'))).toEqual([])
  })

  test('advertises the signatures it takes, and pings', async () => {
    await using server = await serve({ onSession: answerExec })
    const outcome = await server.ssh(['-v', '-o', 'LogLevel=DEBUG2'], 'true')
    const algorithms = /server-sig-algs=<([^>]*)>/.exec(outcome.stderr.toString())?.[1]?.split(',')
    expect(algorithms).toEqual([
      'ssh-ed25519',
      'sk-ssh-ed25519@openssh.com',
      'sk-ecdsa-sha2-nistp256@openssh.com',
      'ecdsa-sha2-nistp256',
      'ecdsa-sha2-nistp384',
      'ecdsa-sha2-nistp521',
      'rsa-sha2-512',
      'rsa-sha2-256',
    ])
    expect(outcome.stderr.toString()).toContain('ping@openssh.com')
  })
})

describe('new keys', () => {
  test('come after so many bytes, while data goes both ways', async () => {
    await using server = await serve({ rekeyBytes: 1_000_000, onSession: answerExec })
    let exchanges = 0
    server.onClient = (client) => client.on('rekey', () => exchanges++)
    const input = Buffer.alloc(5_000_000, 'x')
    const outcome = await server.ssh([], 'cat', input)
    expect(outcome.stdout.equals(input)).toBe(true)
    expect(exchanges).toBeGreaterThan(3)
  })

  test('come after so much time, at the next packet', async () => {
    await using server = await serve({ rekeyMs: 50 })
    const client = await server.client({})
    const exchanged = once(server.clients[0] as Connection, 'rekey')
    const timer = setInterval(() => transportOf(client.ssh).protocol.sendPayload(keepalive), 20)
    await exchanged
    clearInterval(timer)
  })

  test('that are used up by what waited for them keep its order', async () => {
    await using server = await serve({ rekeyBytes: 64 * 1024, onSession: answerExec })
    const input = Buffer.from(Array.from({ length: 300_000 }, (_, index) => String(index)).join())
    const outcome = await server.ssh(['-o', 'RekeyLimit=128K'], 'cat', input)
    expect(outcome.stdout.equals(input)).toBe(true)
  })
})

describe('sign-in', () => {
  test('goes on when a client asks for the service again for each key', async () => {
    const script = `
import sys, paramiko
transport = paramiko.Transport(('127.0.0.1', int(sys.argv[1])))
transport.start_client()
try: transport.auth_publickey('demo', paramiko.RSAKey.generate(2048))
except paramiko.AuthenticationException: pass
transport.auth_publickey('demo', paramiko.Ed25519Key.from_private_key_file(sys.argv[2]))
print('in' if transport.is_authenticated() else 'out')
transport.close()
`
    await using server = await serve({ refuse: 'ssh-rsa' })
    const outcome = await run('/usr/bin/python3', ['-c', script, String(server.port), keys.clientKey])
    expect(outcome.stdout.toString()).toBe('in\n')
  })

  test('gives signatures of FIDO keys and the algorithm of RSA keys as they were sent', async () => {
    const rsa = join(keys.directory, 'rsa')
    execFileSync('ssh-keygen', ['-q', '-t', 'rsa', '-N', '', '-f', rsa])
    await using server = await serve({ onSession: answerExec })
    const outcome = await run('ssh', [
      ...sshArguments({ ...keys, clientKey: rsa }, server.port),
      'demo@127.0.0.1',
      'true',
    ])
    expect(outcome.status).toBe(0)
    expect(server.offered).toContainEqual({ algorithm: 'ssh-rsa', requested: 'rsa-sha2-512', hash: 'sha512' })
  })
})

describe('a session', () => {
  test('has the terminal modes of the client, decoded and as they came', async () => {
    const seen = Promise.withResolvers<Record<string, unknown> & { modes: Record<string, number> }>()
    await using server = await serve({
      onSession: (session) => {
        session.on('pty', (accept, _reject, asked) => {
          seen.resolve(asked as never)
          accept?.()
        })
        session.on('exec', (accept) => finish(accept()))
      },
    })
    await run('script', [
      '-qec',
      ['ssh', '-tt', ...sshArguments(keys, server.port), 'demo@127.0.0.1', 'true'].join(' '),
      '/dev/null',
    ])
    const { modes, modesBinary } = await seen.promise
    expect(modes).toMatchObject({ VINTR: 3, ECHO: 1, TTY_OP_OSPEED: 38400 })
    expect((modesBinary as Buffer).at(-1)).toBe(0)
  })

  test('has command and environment as bytes', async () => {
    const command = Promise.withResolvers<Buffer>()
    const value = Promise.withResolvers<Buffer>()
    await using server = await serve({
      onSession: (session) => {
        session.on('env', (accept, _reject, asked) => {
          value.resolve((asked as unknown as { valBytes: Buffer }).valBytes)
          accept?.()
        })
        session.on('exec', (accept, _reject, asked) => {
          command.resolve((asked as unknown as { commandBytes: Buffer }).commandBytes)
          finish(accept())
        })
      },
    })
    const client = await server.raw()
    await client.exec(Buffer.alloc(200_000, 0xe9), { NAME: Buffer.from([0xff, 0xe9]) })
    expect((await command.promise).equals(Buffer.alloc(200_000, 0xe9))).toBe(true)
    expect((await value.promise).equals(Buffer.from([0xff, 0xe9]))).toBe(true)
  })

  test('can be accepted after the end of its input', async () => {
    await using server = await serve({
      onSession: (session) => {
        session.on('exec', (accept) => {
          session.once('eof', () => {
            const channel = accept()
            channel.resume().on('end', () => finish(channel, 9))
          })
        })
      },
    })
    expect(await server.ssh(['-n'], 'anything')).toMatchObject({ status: 9 })
  })

  test('that overruns its window is ended', async () => {
    await using server = await serve({ onSession: (session) => session.on('exec', (accept) => void accept()) })
    const client = await server.raw()
    const channel = await client.exec('cat')
    const error = once(server.clients[0] as Connection, 'error')
    // What nobody reads is taken up to ssh2's own 2 MiB, and its window once more
    for (let sent = 0; sent <= 6 * 2 ** 20; sent += 32 * 1024) channel.sendData(Buffer.alloc(32 * 1024))
    expect(((await error) as [Error])[0].message).toContain('Channel window exceeded')
  })

  test('takes no more than its server says before somebody reads, and all of it then', async () => {
    const accepted = Promise.withResolvers<ServerChannel>()
    await using server = await serve({
      sessionWindow: 64 * 1024,
      onSession: (session) => session.on('exec', (accept) => accepted.resolve(accept())),
    })
    const client = await server.raw()
    const end = await client.exec('cat')
    const size = 1_000_000
    let sent = 0
    const pump = () => {
      while (sent < size && end.sendWindowBytes > 0) {
        const now = Math.min(end.sendWindowBytes, size - sent, 32 * 1024)
        sent += now
        end.sendData(Buffer.alloc(now))
      }
      if (sent === size) end.sendEof()
    }
    end.sink = { ...deafSink, onRoom: pump }
    pump()
    const channel = await accepted.promise
    await expect.poll(() => sent - channel.readableLength).toBe(0)
    // What it holds, and its window once more
    expect(sent).toBeLessThanOrEqual(2 * 64 * 1024)
    let received = 0
    for await (const bytes of channel) received += bytes.length
    expect(received).toBe(size)
  })

  test('of a client that does not read holds its writer back', async () => {
    const written = Promise.withResolvers<ServerChannel>()
    await using server = await serve({
      onSession: (session) =>
        session.on('exec', (accept) => {
          const channel = accept()
          const fill = () => channel.write(Buffer.alloc(256 * 1024), fill)
          fill()
          written.resolve(channel)
        }),
    })
    const client = await server.raw()
    await client.exec('anything')
    client.socket.pause()
    await written.promise
    const { socket } = transportOf(server.clients[0] as Connection)
    await expect.poll(() => socket.writableLength).toBeGreaterThan(1024 * 1024)
    await new Promise((resolve) => setTimeout(resolve, 300))
    expect(socket.writableLength).toBeLessThan(2 * 1024 * 1024)
  })
})

describe('the outputs of a session', () => {
  test('arrive whole and apart when both have to wait for the client', async () => {
    const size = 3_000_000
    await using server = await serve({
      onSession: (session) =>
        session.on('exec', async (accept) => {
          const channel = accept()
          const write = (to: NodeJS.WritableStream, bytes: Buffer) =>
            new Promise<void>((resolve) => to.write(bytes, () => resolve()))
          // One that waited is done when the other begins to wait; then both wait at once
          await write(channel, Buffer.alloc(size, 'a'))
          await write(channel.stderr, Buffer.alloc(size, 'b'))
          await Promise.all([write(channel, Buffer.alloc(size, 'c')), write(channel.stderr, Buffer.alloc(size, 'd'))])
          finish(channel, 3)
        }),
    })
    const { status, stdout, stderr } = await server.ssh(['-n'], 'anything')
    expect([status, stdout.length, stderr.length]).toEqual([3, 2 * size, 2 * size])
    expect(stdout.equals(Buffer.concat([Buffer.alloc(size, 'a'), Buffer.alloc(size, 'c')]))).toBe(true)
    expect(stderr.equals(Buffer.concat([Buffer.alloc(size, 'b'), Buffer.alloc(size, 'd')]))).toBe(true)
  })
})

describe('channels', () => {
  test('of a forwarded connection end one side at a time', async () => {
    await using server = await serve({
      onClient: (client) =>
        client.on('tcpip', (accept) => {
          const channel = accept()
          const seen: Buffer[] = []
          // Our end first: the other side must still be heard
          channel.end('first ')
          channel.on('data', (bytes: Buffer) => seen.push(bytes))
          channel.on('end', () => heard.resolve(Buffer.concat(seen).toString()))
        }),
    })
    const heard = Promise.withResolvers<string>()
    const client = await server.raw()
    const closed = Promise.withResolvers<void>()
    const said: Buffer[] = []
    const address = encode(0, '127.0.0.1', 9, '127.0.0.1', 9).subarray(1)
    const end = client.link.open('direct-tcpip', 1000, 32 * 1024, address, {
      ...deafSink,
      onData: (payload) => said.push(Buffer.from(payload.subarray(9))),
      onEof: () => {
        end.sendData(Buffer.from('later'))
        end.sendEof()
      },
      onClose: closed.resolve,
    })
    expect(await heard.promise).toBe('later')
    await closed.promise
    expect(Buffer.concat(said).toString()).toBe('first ')
  })

  test('are bounded in number', async () => {
    await using server = await serve({ maxChannels: 3, onSession: () => {} })
    const client = await server.raw()
    const opened = await Promise.allSettled(Array.from({ length: 5 }, () => client.open()))
    expect(opened.map(({ status }) => status)).toEqual(['fulfilled', 'fulfilled', 'fulfilled', 'rejected', 'rejected'])
  })

  test('of packets too small for any data are refused, and others still sign in', async () => {
    await using server = await serve({ onSession: answerExec })
    const client = await server.raw()
    for (const size of [0, 1, 511]) {
      await expect(client.open(size)).rejects.toThrow(`Packets of ${size} bytes are too small.`)
    }
    expect((await server.ssh([], 'cat', Buffer.from('hello'))).stdout.toString()).toBe('hello')
    await client.open(512)
  })

  test.each([0, 511])('that a peer confirms with packets of %i bytes end its connection', async (size) => {
    const confirm = (link: () => Link) => (open: IncomingOpen) =>
      link()
        .accept(open, deafSink)
        .confirm(2 ** 20, size)
    await using server = await serve()
    const near = await server.raw({ onChannelOpen: confirm(() => near.link) })
    const [connection] = server.clients as [Connection]
    const refused = once(connection, 'error')
    connection.forwardOut('127.0.0.1', 1, '127.0.0.1', 2, () => {})
    expect(String(await refused)).toContain(`Packets of ${size} bytes are too small.`)

    const far = await server.client({})
    const link: Link = new Link(server.clients[1] as Connection, { ...nothing, onChannelOpen: confirm(() => link) })
    const failed = once(far.ssh, 'error')
    far.ssh.exec('anything', () => {})
    expect(String(await failed)).toContain(`Packets of ${size} bytes are too small.`)
  })
})

describe('messages', () => {
  test('of unknown numbers are answered as unimplemented, pings as pongs', async () => {
    await using server = await serve()
    const client = await server.raw()
    const answers: number[] = []
    const protocol = transportOf(client.ssh).protocol as unknown as {
      _packetRW: { read: { read(payload: Buffer): Buffer } }
      sendPayload(payload: Buffer): void
    }
    const read = protocol._packetRW.read.read.bind(protocol._packetRW.read)
    protocol._packetRW.read.read = (payload) => {
      answers.push(payload[0] as number)
      return read(payload)
    }
    protocol.sendPayload(Buffer.of(191))
    protocol.sendPayload(Buffer.of(192, 0, 0, 0, 1, 7))
    await expect.poll(() => answers).toEqual([3, 193])
  })

  test('of refusal reach the person', async () => {
    await using server = await serve({
      onClient: (client) =>
        client.on('ready', () =>
          disconnectWithMessage(client, disconnectReason.tooManyConnections, 'Come back later.'),
        ),
    })
    const outcome = await server.ssh([], 'true')
    expect(outcome.stderr.toString()).toContain('Come back later.')
  })
})

const nothing: LinkOwner = { onChannelOpen() {}, onGlobalRequest() {}, onGlobalReply() {}, onLost() {} }
const keepalive = Buffer.concat([Buffer.of(80, 0, 0, 0, 4), Buffer.from('none'), Buffer.of(0)])

function finish(channel: ServerChannel, status = 0): void {
  channel.exit(status)
  channel.end()
}

/** Sends back what it is sent. */
function answerExec(session: Session): void {
  session.on('exec', (accept) => {
    const channel = accept()
    channel.on('end', () => finish(channel))
    channel.pipe(channel, { end: false })
  })
}

type Offer = { algorithm: string; requested: unknown; hash: string | undefined }

type TestServer = {
  port: number
  clients: Connection[]
  offered: Offer[]
  onClient: (client: Connection) => void
  ssh(options: readonly string[], command: string, input?: Buffer): Promise<Outcome>
  client(options: { algorithms?: Algorithms }): Promise<{ ssh: ssh2.Client; negotiated: { kex: string } }>
  raw(owner?: Partial<LinkOwner>): Promise<RawClient>
} & AsyncDisposable

/** A server of ssh2 as the lobby is one: with its channels, not relayed. */
async function serve(
  options: {
    onSession?: (session: Session) => void
    onClient?: (client: Connection) => void
    refuse?: string
    rekeyBytes?: number
    rekeyMs?: number
    maxChannels?: number
    sessionWindow?: number
  } = {},
): Promise<TestServer> {
  const { onSession, onClient, refuse, ...limits } = options
  const opened: ssh2.Client[] = []
  const server = new ssh2.Server(
    { hostKeys: [readFileSync(keys.hostKey)], algorithms: serverAlgorithms, ...limits },
    (client) => {
      self.clients.push(client)
      client.on('error', () => {})
      client.on('authentication', (context) => {
        if (context.method !== 'publickey') return context.reject(['publickey'])
        const { key, hashAlgo } = context
        const requested = (context as unknown as { requestedAlgo: unknown }).requestedAlgo
        self.offered.push({ algorithm: key.algo, requested, hash: hashAlgo })
        if (key.algo === refuse) context.reject(['publickey'])
        else context.accept()
      })
      if (onSession !== undefined) client.on('session', (accept) => onSession(accept()))
      self.onClient(client)
    },
  )
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  const start = (algorithms: Algorithms) => {
    const client = new ssh2.Client()
    opened.push(client)
    client.on('error', () => {})
    const sock = connect(port, '127.0.0.1')
    client.connect({ sock, username: 'demo', privateKey: readFileSync(keys.clientKey), algorithms })
    return { client, sock }
  }
  const self: TestServer = {
    port,
    clients: [],
    offered: [],
    onClient: onClient ?? (() => {}),
    ssh: (given, command, input) =>
      run('ssh', [...sshArguments(keys, port, given), 'demo@127.0.0.1', command], input === undefined ? {} : { input }),
    client: async ({ algorithms = serverAlgorithms }) => {
      const { client } = start(algorithms)
      const [negotiated] = (await once(client, 'handshake')) as [{ kex: string }]
      await once(client, 'ready')
      return { ssh: client, negotiated }
    },
    raw: async (owner = {}) => {
      const { client, sock } = start(serverAlgorithms)
      const link = Promise.withResolvers<Link>()
      client.once('ready', () => link.resolve(new Link(client, { ...nothing, ...owner })))
      return new RawClient(client, await link.promise, sock)
    },
    [Symbol.asyncDispose]: async () => {
      for (const client of opened) client.destroy()
      for (const client of self.clients) client.end()
      await new Promise<void>((resolve) => server.close(() => resolve()))
    },
  }
  return self
}

/** Says what no library would: every message as it is told to. */
class RawClient {
  readonly ssh: ssh2.Client
  readonly link: Link
  readonly socket: ReturnType<typeof connect>

  constructor(ssh: ssh2.Client, link: Link, socket: ReturnType<typeof connect>) {
    this.ssh = ssh
    this.link = link
    this.socket = socket
  }

  open(packetBytes = 32 * 1024): Promise<ChannelEnd> {
    const { promise, resolve, reject } = Promise.withResolvers<ChannelEnd>()
    const end = this.link.open('session', 2 ** 31, packetBytes, Buffer.alloc(0), {
      ...deafSink,
      onOpen: () => resolve(end),
      onRefused: (_reason, description) => reject(new Error(description)),
    })
    return promise
  }

  async exec(command: string | Buffer, env: Record<string, Buffer> = {}): Promise<ChannelEnd> {
    const end = await this.open()
    for (const [name, value] of Object.entries(env)) end.sendRequest('env', false, name, value)
    const started = Promise.withResolvers<void>()
    end.sink = { ...deafSink, onReply: () => started.resolve() }
    end.sendRequest('exec', true, command)
    await started.promise
    return end
  }
}
