import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import ssh2 from 'ssh2'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { type GatewayProcess, nodeFlags, rssBytes, startGatewayProcess } from '../../../test/bench/ssh-lab.ts'
import { serverAlgorithms } from '../transport/algorithms.ts'
import { type ChannelEnd, deafSink } from '../transport/channel-end.ts'
import { Link } from '../transport/link.ts'
import { encode } from '../transport/wire.ts'
import { type Keys, type Machine, makeKeys, startMachine } from './fixtures.ts'

const mib = 2 ** 20
const boundBytes = 8 * mib

let keys: Keys & Disposable
let machine: Machine
let gateway: GatewayProcess

beforeAll(async () => {
  keys = makeKeys()
  machine = await startMachine(keys)
  gateway = await startGatewayProcess(keys, machine.target, ['--expose-gc'])
  // What the process needs for any traffic at all is there before the first look
  for (let round = 0; round < 3; round++) {
    await using client = await RawClient.connect(gateway.port)
    const channel = await client.exec('head -c 30000000 /dev/zero', { windowBytes: 2 ** 31 })
    await channel.closed
    const up = await client.exec('head -c 10000000 > /dev/null', { windowBytes: mib })
    up.send(10_000_000)
    await up.closed
    // As many as any test sends: the room that their garbage takes is there, too
    client.flood(200_000)
    await client.answered
  }
})

afterAll(async () => {
  await gateway[Symbol.asyncDispose]()
  await machine[Symbol.asyncDispose]()
  keys[Symbol.dispose]()
})

test('a client with a 2 GiB window that never reads costs less than 8 MiB', async () => {
  await using client = await RawClient.connect(gateway.port)
  await client.exec('cat /dev/zero', { windowBytes: 2 ** 31 })
  expect(await growthWhile(() => void client.socket.pause())).toBeLessThan(boundBytes)
})

test('so does one with 30 such channels at once', async () => {
  await using client = await RawClient.connect(gateway.port)
  expect(
    await growthWhile(async () => {
      await Promise.all(Array.from({ length: 30 }, () => client.exec('cat /dev/zero', { windowBytes: 2 ** 31 })))
      client.socket.pause()
    }),
  ).toBeLessThan(boundBytes)
})

test('so does one that sends requests and reads no answers', async () => {
  await using client = await RawClient.connect(gateway.port)
  expect(
    await growthWhile(() => {
      client.socket.pause()
      client.flood(200_000)
    }),
  ).toBeLessThan(boundBytes)
})

test('so does a machine that stops reading what a client sends', async () => {
  await using own = await startMachine(keys)
  await using front = await startGatewayProcess(keys, own.target)
  await using client = await RawClient.connect(front.port)
  const first = await client.exec('echo $PPID; cat > /dev/null', { windowBytes: mib })
  const pid = Number(await first.output)
  try {
    expect(
      await growthWhile(() => {
        process.kill(pid, 'SIGSTOP')
        first.send(50 * mib)
      }, front),
    ).toBeLessThan(boundBytes)
  } finally {
    process.kill(pid, 'SIGKILL')
  }
})

test.each([
  ['2 GiB', 2 ** 31],
  ['nothing', 0],
])('so do 128 jumps with windows of %s', async (_name, windowBytes) => {
  await using jumps = await startJumpGateway()
  {
    await using warm = await RawClient.connect(jumps.port)
    const jump = await warm.jump(2 ** 31)
    const received = new Promise<void>((resolve) => {
      const enough = jump.receiveWindowBytes - 100 * mib
      jump.sink = { ...deafSink, onData: () => jump.receiveWindowBytes < enough && resolve() }
    })
    jump.sendData(Buffer.of(0))
    await received
  }
  await using client = await RawClient.connect(jumps.port)
  const channels = await Promise.all(Array.from({ length: 128 }, () => client.jump(windowBytes)))
  expect(
    await growthWhile(() => {
      client.socket.pause()
      for (const channel of channels) channel.sendData(Buffer.of(0))
    }, jumps),
  ).toBeLessThan(boundBytes)
})

/** Jumps are no part of the bare gateway. */
async function startJumpGateway(): Promise<GatewayProcess> {
  const script = new URL('../testing/jump-gateway.ts', import.meta.url).pathname
  const child = spawn(process.execPath, [...nodeFlags, script, keys.hostKey], { stdio: ['ignore', 'pipe', 'inherit'] })
  const [line] = (await once(createInterface({ input: child.stdout }), 'line')) as [string]
  return {
    port: Number(line),
    pid: child.pid ?? 0,
    [Symbol.asyncDispose]: async () => {
      const gone = once(child, 'exit')
      child.kill()
      await gone
    },
  }
}

/** Highest growth of the gateway's memory until it has not grown for a second. */
async function growthWhile(start: () => void | Promise<void>, of = gateway): Promise<number> {
  const before = rssBytes(of.pid)
  let most = 0
  await start()
  for (let calm = 0; calm < 10; calm++) {
    await sleep(100)
    const growth = rssBytes(of.pid) - before
    if (growth > most + 100_000) calm = 0
    most = Math.max(most, growth)
  }
  return most
}

type RawChannel = { end: ChannelEnd; output: Promise<string>; closed: Promise<void>; send(bytes: number): void }

/** A client that says exactly what it is told to: any window, no reading. */
class RawClient {
  readonly link: Link
  readonly socket: Socket
  #owed = 0
  #answered = Promise.withResolvers<void>()

  constructor(link: Link, socket: Socket) {
    this.link = link
    this.socket = socket
  }

  /** Resolves when the requests of the last flood are answered. */
  get answered(): Promise<void> {
    return this.#answered.promise
  }

  /** Sends global requests that want an answer. */
  flood(count: number): void {
    this.#owed = count
    this.#answered = Promise.withResolvers<void>()
    const request = Buffer.concat([Buffer.of(80, 0, 0, 0, 4), Buffer.from('none'), Buffer.of(1)])
    for (let sent = 0; sent < count; sent++) this.link.send(request)
  }

  /** Opens a channel to port 22 of the machine. */
  jump(windowBytes: number): Promise<ChannelEnd> {
    const { promise, resolve, reject } = Promise.withResolvers<ChannelEnd>()
    const address = encode(0, 'demo', 22, '127.0.0.1', 1).subarray(1)
    const end = this.link.open('direct-tcpip', windowBytes, 32 * 1024, address, {
      ...deafSink,
      onOpen: () => resolve(end),
      onRefused: (_reason, description) => reject(new Error(description)),
    })
    return promise
  }

  static async connect(port: number): Promise<RawClient> {
    const socket = connect(port, '127.0.0.1')
    const client = new ssh2.Client()
    const privateKey = readFileSync(keys.clientKey)
    const ready = Promise.withResolvers<RawClient>()
    client.on('error', ready.reject)
    client.on('ready', () => {
      const onGlobalReply = () => --raw.#owed === 0 && raw.#answered.resolve()
      const link = new Link(client, { onChannelOpen() {}, onGlobalRequest() {}, onGlobalReply, onLost() {} })
      const raw = new RawClient(link, socket)
      ready.resolve(raw)
    })
    client.connect({ sock: socket, username: 'demo', privateKey, algorithms: serverAlgorithms })
    return ready.promise
  }

  async exec(command: string, { windowBytes }: { windowBytes: number }): Promise<RawChannel> {
    const started = Promise.withResolvers<void>()
    const closed = Promise.withResolvers<void>()
    const output = Promise.withResolvers<string>()
    let left = 0
    const piece = Buffer.alloc(32 * 1024)
    const pump = () => {
      while (left > 0 && end.sendWindowBytes > 0) {
        const now = piece.subarray(0, Math.min(left, end.sendWindowBytes))
        left -= now.length
        end.sendData(now)
      }
    }
    const end = this.link.open('session', windowBytes, 32 * 1024, Buffer.alloc(0), {
      ...deafSink,
      onOpen: () => end.sendRequest('exec', true, command),
      onReply: () => started.resolve(),
      onData: (payload) => output.resolve(payload.subarray(9).toString()),
      onRoom: () => pump(),
      onClose: () => {
        end.close()
        closed.resolve()
      },
    })
    await started.promise
    const send = (bytes: number) => {
      left = bytes
      pump()
    }
    return { end, output: output.promise, closed: closed.promise, send }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.socket.destroy()
  }
}
