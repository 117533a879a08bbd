import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { type AddressInfo, connect, type Socket } from 'node:net'
import ssh2, { type Client, type Connection } from 'ssh2'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type Keys, makeKeys } from '../relay/fixtures.ts'
import { serverAlgorithms } from './algorithms.ts'
import { Link } from './link.ts'
import { type Protocol, transportOf } from './protocol.ts'
import { encode, message } from './wire.ts'

/** What may wait for a peer that does not read, with the answers to the last piece read before reading stopped. */
const boundBytes = 5 * 2 ** 20

const ping = encode(192, Buffer.alloc(30_000))
const unknown = Buffer.of(191)
const globalRequest = encode(message.globalRequest, 'none', true)
const channelOpen = encode(message.channelOpen, 'none', 1, 0, 32_768)
const serviceRequest = encode(5, 'ssh-userauth')

let keys: Keys & Disposable

beforeAll(() => {
  keys = makeKeys()
})

afterAll(() => keys[Symbol.dispose]())

describe('a peer that does not read is not read either, and goes on when it reads:', () => {
  test.each([
    ['pings', ping],
    ['messages of unknown numbers', unknown],
    ['global requests', globalRequest],
  ])('%s, before it signs in', async (_name, payload) => {
    await using pair = await connected()
    await expectHeldBack(pair.server, pair.client, payload)
  })

  test.each([
    ['pings', ping],
    ['global requests', globalRequest],
    ['channels that nobody serves', channelOpen],
  ])('%s, signed in to the lobby', async (_name, payload) => {
    await using pair = await connected({ signedIn: true })
    await expectHeldBack(pair.server, pair.client, payload)
  })

  test.each([
    ['pings', ping],
    ['messages of unknown numbers', unknown],
  ])('%s, being relayed', async (_name, payload) => {
    await using pair = await connected({ signedIn: true })
    new Link(pair.server, { onChannelOpen() {}, onGlobalRequest() {}, onGlobalReply() {}, onLost() {} })
    await expectHeldBack(pair.server, pair.client, payload)
  })

  test('pings, being a machine', async () => {
    await using pair = await connected()
    await expectHeldBack(pair.client, pair.server, ping)
  })
})

test('a peer that puts new keys off and goes on asking is cut off', async () => {
  await using pair = await connected({ signedIn: true, rekeyBytes: 1_000_000 })
  const failed = Promise.withResolvers<Error>()
  const ended = Promise.withResolvers<void>()
  pair.server.once('error', failed.resolve).once('close', ended.resolve)
  const server = transportOf(pair.server)
  const client = transportOf(pair.client)
  client.socket.pause()
  while (server.protocol._destruct !== undefined) {
    expect(server.protocol.queuedBytes).toBeLessThan(10 * 2 ** 20)
    client.protocol.sendPayload(ping)
    await turn()
  }
  expect((await failed.promise).message).toContain('too much waits for new keys')
  client.socket.resume()
  await ended.promise
})

test('a client that asks for the service of signing in again and again is disconnected', async () => {
  await using pair = await connected()
  const ended = once(transportOf(pair.server).socket, 'end')
  for (let sent = 0; sent < 100; sent++) transportOf(pair.client).protocol.sendPayload(serviceRequest)
  await ended
})

/** Sends messages that are answered until their receiver reads no more, and then reads all the answers. */
async function expectHeldBack(receiver: Connection | Client, sender: Connection | Client, payload: Buffer) {
  const { socket } = transportOf(receiver)
  const { socket: senderSocket, protocol } = transportOf(sender)
  const answers = countReceived(protocol)
  senderSocket.pause()
  let sent = 0
  while (!socket.isPaused()) {
    expect(socket.writableLength).toBeLessThan(boundBytes)
    // Within what the sender's own end writes before it reads no more itself, until it has and reads again
    senderSocket.cork()
    for (let size = 0; size < 500_000 && senderSocket.writableLength < 500_000; size += payload.length + 512) {
      protocol.sendPayload(payload)
      sent++
    }
    senderSocket.uncork()
    await turn()
  }
  expect(socket.writableLength).toBeLessThan(boundBytes)
  senderSocket.resume()
  await expect.poll(answers, { timeout: 60_000 }).toBe(sent)
  expect(socket.isPaused()).toBe(false)
}

function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve))
}

/** Counts messages, and does nothing else with them. */
function countReceived(protocol: Protocol): () => number {
  let count = 0
  const { _decipher } = protocol as unknown as { _decipher: { _onPayload: (payload: Buffer) => void } }
  _decipher._onPayload = () => {
    count++
  }
  return () => count
}

type Pair = { server: Connection; client: Client } & AsyncDisposable

/** Two ends of a connection after the key exchange. */
async function connected(options: { signedIn?: boolean; rekeyBytes?: number } = {}): Promise<Pair> {
  const { signedIn = false, ...config } = options
  const accepted = Promise.withResolvers<Connection>()
  const reached = Promise.withResolvers<void>()
  const listener = new ssh2.Server(
    { hostKeys: [readFileSync(keys.hostKey)], algorithms: serverAlgorithms, ...config },
    (connection) => {
      connection.on('error', () => {})
      connection.on('authentication', (context) => context.accept())
      accepted.resolve(connection)
    },
  )
  listener.listen(0, '127.0.0.1')
  await once(listener, 'listening')
  const socket: Socket = connect((listener.address() as AddressInfo).port, '127.0.0.1')
  const client = new ssh2.Client()
  client.on('error', reached.reject)
  client.on('ready', reached.resolve)
  client.connect({
    sock: socket,
    username: 'demo',
    algorithms: serverAlgorithms,
    // Without an answer nothing is tried
    authHandler: (_methods, _partial, next) => {
      if (signedIn) next('none')
      else reached.resolve()
    },
  })
  const server = await accepted.promise
  await reached.promise
  return {
    server,
    client,
    [Symbol.asyncDispose]: async () => {
      socket.destroy()
      transportOf(server).socket.destroy()
      await new Promise<void>((resolve) => listener.close(() => resolve()))
    },
  }
}
