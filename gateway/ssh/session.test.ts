import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { connect } from 'node:net'
import ssh2 from 'ssh2'
import { describe, expect, it } from 'vitest'
import { startTestGateway, type TestGateway } from '../../test/gateway.ts'
import { serverAlgorithms } from './transport/algorithms.ts'
import { type ChannelEnd, deafSink } from './transport/channel-end.ts'
import { Link } from './transport/link.ts'
import { encode, message } from './transport/wire.ts'

const KIBIBYTE = 1024
/** More sessions than anybody gets. */
const ASKED = 40

/** Opens sessions, and sends on each what the gateway takes, though nobody there reads it. */
async function press(gateway: TestGateway, key: string): Promise<{ sessions: number; refusal: string; bytes: number }> {
  const client = new ssh2.Client()
  const ready = Promise.withResolvers<Link>()
  let answered = Promise.withResolvers<void>()
  client.on('error', ready.reject)
  client.once('ready', () => {
    const onGlobalReply = () => answered.resolve()
    ready.resolve(new Link(client, { onChannelOpen() {}, onGlobalRequest() {}, onGlobalReply, onLost() {} }))
  })
  const sock = connect(gateway.port, '127.0.0.1')
  client.connect({ sock, username: 'lobby', privateKey: readFileSync(key), algorithms: serverAlgorithms })
  const link = await ready.promise
  /** All that was sent before has been handled. */
  const settled = async () => {
    answered = Promise.withResolvers()
    link.send(encode(message.globalRequest, 'none', true))
    await answered.promise
  }

  const open: ChannelEnd[] = []
  let refusal = ''
  for (let asked = 0; asked < ASKED && refusal === ''; asked++) {
    const end = link.open('session', 2 ** 20, 32 * KIBIBYTE, Buffer.alloc(0), {
      ...deafSink,
      onOpen: () => open.push(end),
      onRefused: (_reason, description) => {
        refusal = description
      },
    })
    await settled()
  }
  for (const end of open) end.sendRequest('exec', false, 'ls')
  await settled()
  let bytes = 0
  for (let before = -1; before < bytes; ) {
    before = bytes
    for (const end of open) {
      while (end.sendWindowBytes > 0) {
        const piece = Math.min(end.sendWindowBytes, 32 * KIBIBYTE)
        end.sendData(Buffer.alloc(piece))
        bytes += piece
      }
    }
    await settled()
  }
  const gone = once(sock, 'close')
  sock.destroy()
  await gone
  return { sessions: open.length, refusal, bytes }
}

describe('what the lobby holds for a client that sends what nobody reads', () => {
  it('is little for one who has no account, and refused with a sentence beyond', async () => {
    await using gateway = await startTestGateway()
    await gateway.addAccount({ owner: true })
    const { sessions, refusal, bytes } = await press(gateway, gateway.makeKey('stranger'))
    expect(refusal).toBe('at most 2 sessions at once on one connection of the lobby')
    expect(sessions).toBe(2)
    expect(bytes).toBeLessThanOrEqual(2 * 512 * KIBIBYTE)
  })

  it('is bounded for a member, too', async () => {
    const hang = async () => await new Promise<number>(() => {})
    await using gateway = await startTestGateway({ lobby: { runLine: hang, runLobby: hang } })
    const key = gateway.makeKey('id')
    await gateway.addAccount({ keys: [key] })
    const { sessions, refusal, bytes } = await press(gateway, key)
    expect(refusal).toBe('at most 16 sessions at once on one connection of the lobby')
    expect(sessions).toBe(16)
    expect(bytes).toBeLessThanOrEqual(16 * 512 * KIBIBYTE)
  })
})

it('sessions that the client has closed make room for others', async () => {
  await using gateway = await startTestGateway()
  const key = gateway.makeKey('id')
  const account = await gateway.addAccount({ keys: [key] })
  const client = new ssh2.Client()
  client.connect({ host: '127.0.0.1', port: gateway.port, username: 'lobby', privateKey: readFileSync(key) })
  await once(client, 'ready')
  for (let n = 0; n < ASKED; n++) {
    const output = await new Promise<string>((resolve, reject) => {
      client.exec(`number ${n}`, (error, channel) => {
        if (error) return reject(error)
        let text = ''
        channel.on('data', (bytes: Buffer) => {
          text += bytes
        })
        channel.on('close', () => resolve(text))
      })
    })
    expect(output).toBe(`lobby of ${account}: number ${n}\n`)
  }
  client.end()
})
