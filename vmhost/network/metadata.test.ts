import { once } from 'node:events'
import { request } from 'node:http'
import { connect, type Socket } from 'node:net'
import { afterEach, expect, test } from 'vitest'
import { type MetadataService, serveMetadata } from './metadata.ts'

const names = new Map<string, string>()
const errors: unknown[] = []
let service: MetadataService | undefined

async function start(lookup = async (address: string) => names.get(address)): Promise<MetadataService> {
  const log = { info: () => {}, warn: () => {}, error: (...parts: unknown[]) => void errors.push(parts) }
  service = await serveMetadata({
    address: '127.0.0.1',
    port: 0,
    // Loopback plays the taps: 127.0.0.0/8 are the machines, but for the server's own.
    isMachine: (address) => address !== '127.0.0.1',
    lookup,
    log,
  })
  return service
}

afterEach(async () => {
  await service?.close()
  service = undefined
  names.clear()
  errors.length = 0
})

type Reply = { status: number; headers: NodeJS.Dict<string | string[]>; body: string }

async function ask(port: number, path = '/', from = '127.0.0.2', method = 'GET', body?: string): Promise<Reply> {
  const outgoing = request({ host: '127.0.0.1', port, path, method, localAddress: from, agent: false })
  outgoing.end(body)
  const [response] = await once(outgoing, 'response')
  let text = ''
  for await (const chunk of response) text += chunk
  return { status: response.statusCode, headers: response.headers, body: text }
}

/** Sends `text` as it is. @returns everything answered until the server closed the connection */
async function raw(port: number, text: string, from = '127.0.0.2'): Promise<string> {
  const socket = connect({ host: '127.0.0.1', port, localAddress: from })
  let answer = ''
  socket.setEncoding('utf8').on('data', (chunk: string) => {
    answer += chunk
  })
  socket.on('error', () => {})
  if (text !== '') socket.write(text)
  await once(socket, 'close')
  return answer
}

test('a machine is told its name and address, and a new name with the next request', async () => {
  const { port } = await start()
  names.set('127.0.0.2', 'demo')
  const reply = await ask(port)
  expect(reply).toMatchObject({
    status: 200,
    headers: { 'content-type': 'application/json', 'cache-control': 'no-store' },
  })
  expect(JSON.parse(reply.body)).toEqual({ name: 'demo', source_ip: '127.0.0.2' })
  names.set('127.0.0.2', 'renamed')
  expect(JSON.parse((await ask(port, '/?x=1')).body)).toEqual({ name: 'renamed', source_ip: '127.0.0.2' })
  names.set('127.0.0.3', 'other')
  expect(JSON.parse((await ask(port, '/', '127.0.0.3')).body)).toEqual({ name: 'other', source_ip: '127.0.0.3' })
})

test('anything but / is not found, in JSON, and only GET and HEAD are taken', async () => {
  const { port } = await start()
  names.set('127.0.0.2', 'demo')
  for (const path of ['/latest/meta-data/', '//', '/%2e', '/../']) {
    const reply = await ask(port, path)
    expect([path, reply.status, Object.keys(JSON.parse(reply.body))]).toEqual([path, 404, ['error']])
  }
  expect(await ask(port, '/', '127.0.0.2', 'HEAD')).toMatchObject({ status: 200, body: '' })
  expect(await ask(port, '/', '127.0.0.2', 'POST', 'x=1')).toMatchObject({
    status: 405,
    headers: { allow: 'GET, HEAD', connection: 'close' },
  })
})

test('an address without a machine gets 404, a lookup that fails 503 and a line in the log', async () => {
  const { port } = await start(async (address) => {
    if (address === '127.0.0.3') throw new Error('database gone')
    return undefined
  })
  expect((await ask(port)).status).toBe(404)
  expect(errors).toHaveLength(0)
  const reply = await ask(port, '/', '127.0.0.3')
  expect(reply.status).toBe(503)
  expect(reply.body).not.toContain('database')
  expect(errors).toHaveLength(1)
})

test('whoever is no machine gets not one byte', async () => {
  const { port } = await start()
  names.set('127.0.0.1', 'never')
  expect(await raw(port, 'GET / HTTP/1.1\r\nHost: x\r\n\r\n', '127.0.0.1')).toBe('')
})

test('headers have a bound, and what is no HTTP is told so', async () => {
  const { port } = await start()
  expect(await raw(port, `GET / HTTP/1.1\r\nHost: x\r\nX: ${'y'.repeat(8192)}\r\n\r\n`)).toMatch(/^HTTP\/1\.1 431 /)
  expect(await raw(port, 'SSH-2.0-lost\r\n\r\n')).toMatch(/^HTTP\/1\.1 400 /)
})

test('a machine holds at most 16 connections and leaves the others theirs; a closed one is free again', async () => {
  const { port } = await start()
  names.set('127.0.0.3', 'other')
  const held: Socket[] = []
  for (let index = 0; index < 16; index++) {
    const socket = connect({ host: '127.0.0.1', port, localAddress: '127.0.0.2' })
    await once(socket, 'connect')
    held.push(socket)
  }
  expect(await raw(port, '')).toMatch(/^HTTP\/1\.1 429 /)
  expect((await ask(port, '/', '127.0.0.3')).status).toBe(200)
  names.set('127.0.0.2', 'demo')
  held[0]?.destroy()
  await expect.poll(async () => (await ask(port).catch(() => ({ status: 0 }))).status).toBe(200)
  for (const socket of held) socket.destroy()
})

test('a request that does not come to its end is cut off', { timeout: 60_000 }, async () => {
  const { port } = await start()
  expect(await raw(port, 'GET / HTTP/1.1\r\nHost: x\r\n')).toMatch(/^(HTTP\/1\.1 4|$)/)
})
