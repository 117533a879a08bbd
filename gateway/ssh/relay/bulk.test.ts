import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { type Keys, type Machine, makeKeys, ssh, startGateway, startMachine } from './fixtures.ts'

let keys: Keys & Disposable
let machine: Machine
const content = randomBytes(12_000_000)
let file: string

beforeAll(async () => {
  keys = makeKeys()
  machine = await startMachine(keys)
  file = join(keys.directory, 'content')
  writeFileSync(file, content)
})

afterAll(async () => {
  await machine[Symbol.asyncDispose]()
  keys[Symbol.dispose]()
})

const ciphers = ['aes128-gcm@openssh.com', 'chacha20-poly1305@openssh.com', 'aes128-ctr']

describe.each(ciphers)('bulk data of a client with %s', (cipher) => {
  test.each([
    ['in pieces of any size', {}],
    ['with new keys on the way', { rekeyBytes: 1_500_000 }],
  ])('passes unharmed %s, both ways at once', async (_how, server) => {
    await using front = await startGateway(keys, machine, { server })
    await using chopped = await startChopper(front.port)
    const options = ['-o', `Ciphers=${cipher}`]
    const both = await ssh(keys, chopped.port, ['cat'], { ssh: options, input: content })
    expect(both.stdout.equals(content)).toBe(true)
  })

  test('that was tampered with ends the connection; what came before it is what was sent', async () => {
    await using front = await startGateway(keys, machine)
    await using chopped = await startChopper(front.port, { flipAtBytes: 6_000_000 })
    const command = `head -c 9000000 > ${file}.up; echo done`
    const options = ['-o', `Ciphers=${cipher}`]
    const outcome = await ssh(keys, chopped.port, [command], { ssh: options, input: content })
    expect(outcome.status).toBe(255)
    expect(outcome.stdout.toString()).toBe('')
  })
})

test('two channels of one connection have their data apart', async () => {
  await using front = await startGateway(keys, machine)
  const control = join(keys.directory, 'control-bulk')
  const options = ['-S', control, '-o', 'ControlPersist=5', '-o', 'ControlMaster=auto']
  await ssh(keys, front.port, ['true'], { ssh: options })
  const outcomes = await Promise.all(
    Array.from({ length: 3 }, async (_, index) => {
      const input = content.subarray(index * 1000)
      return (await ssh(keys, front.port, ['cat'], { ssh: options, input })).stdout.equals(input)
    }),
  )
  await ssh(keys, front.port, ['-O', 'exit'], { ssh: options })
  expect(outcomes).toEqual([true, true, true])
})

test('a reader that is slow gets everything', async () => {
  await using front = await startGateway(keys, machine)
  const slow = `cat ${file} | (sleep 0.3; cat)`
  const down = await ssh(keys, front.port, [slow])
  expect(down.stdout.equals(content)).toBe(true)
  const up = await ssh(keys, front.port, [`(sleep 0.5; sha256sum) | cut -c1-64; sha256sum < ${file} | cut -c1-64`], {
    input: content,
  })
  const [received, sent] = up.stdout.toString().trim().split('\n')
  expect(received).toBe(sent)
})

/** A way to a port that passes bytes on in pieces that nobody sent, and may flip one bit of what goes there. */
async function startChopper(
  port: number,
  { flipAtBytes }: { flipAtBytes?: number } = {},
): Promise<{ port: number } & AsyncDisposable> {
  const sockets = new Set<Socket>()
  const server = createServer((near) => {
    const far = connect(port, '127.0.0.1')
    for (const [from, to] of [
      [near, far],
      [far, near],
    ] as const) {
      sockets.add(from)
      from.setNoDelay(true)
      from.on('error', () => {})
      from.on('close', () => to.destroy())
      void chop(from, to, from === near ? flipAtBytes : undefined)
    }
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    port: (server.address() as AddressInfo).port,
    [Symbol.asyncDispose]: async () => {
      for (const socket of sockets) socket.destroy()
      await new Promise<void>((resolve) => server.close(() => resolve()))
    },
  }
}

async function chop(from: Socket, to: Socket, flipAtBytes = Number.POSITIVE_INFINITY): Promise<void> {
  let passedBytes = 0
  try {
    for await (const bytes of from as AsyncIterable<Buffer>) {
      const flipAt = flipAtBytes - passedBytes
      if (flipAt >= 0 && flipAt < bytes.length) bytes[flipAt] = (bytes[flipAt] as number) ^ 1
      passedBytes += bytes.length
      for (let start = 0; start < bytes.length; ) {
        const piece = bytes.subarray(start, start + 1 + Math.floor(Math.random() * 40_000))
        start += piece.length
        if (!to.write(piece)) await once(to, 'drain')
        await new Promise((resolve) => setImmediate(resolve))
      }
    }
    to.end()
  } catch {
    to.destroy()
  }
}
