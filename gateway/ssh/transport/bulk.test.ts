import { createRequire } from 'node:module'
import { describe, expect, test } from 'vitest'
import { field, fieldCount, stopped } from './bulk.ts'
import { encode, message } from './wire.ts'

const require = createRequire(import.meta.url)
const { CIPHER_INFO, MAC_INFO, createCipher, createDecipher } = require('ssh2/lib/protocol/crypto.js') as {
  CIPHER_INFO: Record<string, { keyLen: number; ivLen: number }>
  MAC_INFO: Record<string, { len: number }>
  createCipher(config: object): Cipher
  createDecipher(config: object): Decipher
}
type Cipher = { outSeqno: number; allocPacket(bytes: number): Buffer; encrypt(packet: Buffer): void }
type Decipher = {
  inSeqno: number
  decrypt(chunk: Buffer, start: number, end: number): void
  relay?(cipher: Cipher, chunk: Buffer, start: number, end: number, output: Buffer, job: Uint32Array): boolean
}

const aead = ['aes128-gcm@openssh.com', 'aes256-gcm@openssh.com', 'chacha20-poly1305@openssh.com']
const all = [
  ...aead.map((cipher) => [cipher, 'hmac-sha2-256'] as const),
  ['aes128-ctr', 'hmac-sha2-256-etm@openssh.com'] as const,
  ['aes128-ctr', 'hmac-sha2-512'] as const,
]
const pairs = aead.flatMap((from) => aead.map((to) => [from, to] as const))

// Of every length of padding, one byte and none among them
const sizes = [0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89]
const messages = sizes.map((size) => encode(message.channelData, 7, Buffer.alloc(size, size)))

describe('packets of one channel', () => {
  test.each(pairs)('from %s to %s pass whole, wherever a read ends', (from, to) => {
    const stream = encrypted(from, messages)
    for (let cut = 0; cut <= stream.length; cut++) {
      const relay = startRelay(from, to)
      const chunk = Buffer.from(stream)
      const first = relay.pass(chunk, 0, cut)
      expect(first.stop).toBe(stopped.incomplete)
      const second = relay.pass(chunk, first.nextStart, stream.length)
      expect([second.stop, second.nextStart]).toEqual([stopped.incomplete, stream.length])
      expect(first.dataBytes + second.dataBytes).toBe(sizes.reduce((sum, size) => sum + size))
      const expected = sizes.map((size) => encode(message.channelData, 99, Buffer.alloc(size, size)))
      expect(relay.received()).toEqual(expected)
    }
  })

  test.each(pairs)('from %s to %s: others are handed out in their place', (from, to) => {
    const data = encode(message.channelData, 7, Buffer.alloc(50))
    const others = [
      encode(message.channelData, 8, Buffer.alloc(50)),
      encode(message.channelExtendedData, 7, 1, Buffer.alloc(50)),
      encode(message.channelWindowAdjust, 7, 1000),
      // Says that it has more than it has
      encode(message.channelData, 7, { raw: Buffer.of(0, 0, 0, 9, 1, 2, 3) }),
      encode(message.channelEof, 7),
      Buffer.of(80),
    ]
    const stream = encrypted(
      from,
      others.flatMap((other) => [data, other]),
    )
    const relay = startRelay(from, to)
    let start = 0
    for (const other of others) {
      const passed = relay.pass(stream, start, stream.length)
      expect([passed.stop, passed.packets]).toEqual([stopped.foreign, 1])
      expect(passed.payload).toEqual(other)
      start = passed.nextStart
    }
    expect(start).toBe(stream.length)
    expect(relay.received().length).toBe(others.length)
  })

  test.each(pairs)('from %s to %s: one that was tampered with stops behind the good ones', (from, to) => {
    const stream = encrypted(from, [messages[8], messages[9], messages[10]] as Buffer[])
    for (const fromEnd of [1, 16, 17, 40]) {
      const chunk = Buffer.from(stream)
      chunk[chunk.length - fromEnd] = (chunk[chunk.length - fromEnd] as number) ^ 1
      const relay = startRelay(from, to)
      expect(relay.pass(chunk, 0, chunk.length)).toMatchObject({ stop: stopped.invalid, packets: 2 })
      expect(relay.received().length).toBe(2)
    }
  })

  test.each(pairs)('from %s to %s: one over the limits is left as it was, for the ordinary way', (from, to) => {
    const large = encode(message.channelData, 7, Buffer.alloc(5000, 1))
    for (const limit of [{ budget: 5000 }, { outputBytes: 6000 }]) {
      const relay = startRelay(from, to)
      const stream = encrypted(from, [large, large])
      const passed = relay.pass(stream, 0, stream.length, limit)
      expect(passed).toMatchObject({ stop: stopped.limit, packets: limit.outputBytes === undefined ? 0 : 1 })
      relay.ordinary(stream, passed.nextStart)
      expect(relay.payloads).toEqual(limit.outputBytes === undefined ? [large, large] : [large])
    }
  })

  test('that were begun the ordinary way are not passed', () => {
    const [cipher] = aead as [string]
    const stream = encrypted(cipher, messages)
    const relay = startRelay(cipher, cipher)
    relay.ordinary(stream.subarray(0, 3), 0)
    expect(() => relay.pass(stream, 3, stream.length)).toThrow('ordinary way')
  })
})

describe('packets read the ordinary way', () => {
  test.each(all)('of %s %s arrive whole wherever a read ends, though all reads share one memory', (cipher, mac) => {
    const stream = encrypted(cipher, messages, mac)
    const memory = Buffer.alloc(stream.length)
    for (let cut = 0; cut <= stream.length; cut++) {
      const payloads: Buffer[] = []
      const decipher = decipherOf(cipher, (payload) => payloads.push(Buffer.from(payload)), mac)
      for (const piece of [stream.subarray(0, cut), stream.subarray(cut)]) {
        memory.fill(0xee)
        memory.set(piece)
        decipher.decrypt(memory.subarray(0, piece.length), 0, piece.length)
      }
      expect(payloads).toEqual(messages)
    }
  })
})

function startRelay(from: string, to: string) {
  const payloads: Buffer[] = []
  const written: Buffer[] = []
  const decipher = decipherOf(from, (payload) => payloads.push(Buffer.from(payload)))
  const cipher = cipherOf(to, () => {})
  const receivedByOther: Buffer[] = []
  const other = decipherOf(to, (payload) => receivedByOther.push(Buffer.from(payload)))
  return {
    payloads,
    pass(chunk: Buffer, start: number, end: number, limit: { budget?: number; outputBytes?: number } = {}) {
      const job = new Uint32Array(fieldCount)
      job[field.recipient] = 7
      job[field.newRecipient] = 99
      job[field.budget] = limit.budget ?? 100_000
      job[field.mostInPacket] = 32 * 1024
      const output = Buffer.alloc(limit.outputBytes ?? 10_000)
      if (decipher.relay?.(cipher, chunk, start, end, output, job) !== true) throw new Error('goes the ordinary way')
      const at = (name: keyof typeof field) => job[field[name]] as number
      written.push(output.subarray(0, at('outputLength')))
      const payload = Buffer.from(chunk.subarray(at('payloadPos'), at('payloadPos') + at('payloadLength')))
      const [stop, nextStart] = [at('stop'), at('inputPos')]
      return { stop, nextStart, packets: at('packets'), dataBytes: at('dataBytes'), payload }
    },
    ordinary(chunk: Buffer, start: number) {
      decipher.decrypt(chunk, start, chunk.length)
    },
    received() {
      const bytes = Buffer.concat(written)
      other.decrypt(bytes, 0, bytes.length)
      return receivedByOther
    },
  }
}

function encrypted(cipher: string, payloads: readonly Buffer[], mac?: string): Buffer {
  const written: Buffer[] = []
  const sender = cipherOf(cipher, (bytes) => written.push(Buffer.from(bytes)), mac)
  for (const payload of payloads) {
    const packet = sender.allocPacket(payload.length)
    packet.set(payload, 5)
    sender.encrypt(packet)
  }
  const stream = Buffer.concat(written)
  // What is to be compared is the plain text
  expect(payloads.every((payload) => payload.length < 16 || !stream.includes(payload))).toBe(true)
  return stream
}

function cipherOf(name: string, onWrite: (bytes: Buffer) => void, mac = 'hmac-sha2-256'): Cipher {
  const { info, key, iv, macInfo, macKey } = secretsFor(name, mac)
  return createCipher({
    outbound: { onWrite, seqno: 3, cipherInfo: info, cipherKey: key, cipherIV: iv, macInfo, macKey },
  })
}

function decipherOf(name: string, onPayload: (payload: Buffer) => void, mac = 'hmac-sha2-256'): Decipher {
  const { info, key, iv, macInfo, macKey } = secretsFor(name, mac)
  return createDecipher({
    inbound: {
      // Anything that is given back would end the parsing
      onPayload: (payload: Buffer) => void onPayload(payload),
      seqno: 3,
      decipherInfo: info,
      decipherKey: key,
      decipherIV: iv,
      macInfo,
      macKey,
    },
  })
}

function secretsFor(name: string, mac: string) {
  const info = CIPHER_INFO[name]
  const macInfo = MAC_INFO[mac]
  if (info === undefined || macInfo === undefined) throw new Error(`Unknown ${name} or ${mac}`)
  return {
    info,
    macInfo,
    key: Buffer.from(Array.from({ length: info.keyLen }, (_, index) => index)),
    iv: Buffer.alloc(info.ivLen, 2),
    macKey: Buffer.alloc(macInfo.len, 3),
  }
}
