/** Clients that leave, or that read slowly, while nothing can be read of them or written to them. */
import { once } from 'node:events'
import { constants } from 'node:http2'
import { setImmediate } from 'node:timers/promises'
import { expect, it, vi } from 'vitest'
import { session } from '../testing/client2.ts'
import { get, rawOrigin, type World, world } from '../testing/world.ts'
import { Upstream } from './upstream.ts'

const MEBIBYTE = 1 << 20

/** Resolves when the machine takes no more of what it is sent. */
async function untilMachineIsFull(send: () => void): Promise<void> {
  const written = vi.spyOn(Upstream.prototype, 'write')
  send()
  while (!written.mock.results.some(({ value }) => value === false)) await setImmediate()
  written.mockRestore()
}

const connections = async ({ https }: World) =>
  /^berth_https_connections (\d+)$/m.exec(await https.metrics.registry.metrics())?.[1]

it('an HTTP/2 client that is gone is noticed while its windows are full, and the machine let go', async () => {
  await using origin = await rawOrigin((wire) => {
    wire.socket.write('HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n')
    wire.socket.write(Buffer.alloc(MEBIBYTE))
  })
  await using proxy = await world({ originPort: origin.port })
  using client = session(proxy, { initialWindowSize: 16_384 })
  const stuck = client.request({ ':path': '/', ':authority': 'demo.example.test' })
  stuck.on('error', () => {})
  await once(stuck, 'response')
  const machine = await origin.accept()
  client.destroy()
  await machine.toEnd()
})

it('a client that left a tunnel is noticed in the time of a stall, also when the machine in it reads nothing', async () => {
  await using origin = await rawOrigin()
  await using proxy = await world({ originPort: origin.port, limits: { stallMs: 300 } })
  const wire = await proxy.dial()
  wire.send(get('/', 'Connection: Upgrade', 'Upgrade: echo'))
  const machine = await origin.accept()
  await machine.until('\r\n\r\n')
  machine.socket.pause()
  machine.send('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n')
  await wire.until('\r\n\r\n')
  await untilMachineIsFull(() => wire.socket.write(Buffer.alloc(64 * MEBIBYTE)))
  wire.socket.destroy()
  await expect.poll(() => connections(proxy), { timeout: 60_000, interval: 20 }).toBe('0')
})

it('requests sent ahead by a client that left hold nothing for longer than a stall', async () => {
  await using origin = await rawOrigin()
  await using proxy = await world({ originPort: origin.port, limits: { stallMs: 300 } })
  const wire = await proxy.dial()
  wire.send(get())
  const machine = await origin.accept()
  await machine.until('\r\n\r\n')
  wire.send(get('/ahead').repeat(10_000))
  await new Promise((resolve) => wire.socket.once('drain', resolve))
  wire.socket.destroy()
  await machine.toEnd()
})

it.each([
  ['the gateway', 'nobody.example.test'],
  ['the control host', 'example.test'],
])('what %s answers waits no longer than a stall for who does not take it', async (_who, host) => {
  const closed = Promise.withResolvers<void>()
  await using origin = await rawOrigin()
  await using proxy = await world({
    originPort: origin.port,
    limits: { stallMs: 300 },
    controlHost(request, response) {
      if (request.httpVersionMajor === 1) response.once('close', closed.resolve)
      response.end(Buffer.alloc(64 * MEBIBYTE))
    },
  })
  using client = session(proxy, { initialWindowSize: 0 })
  const stuck = client.request({ ':path': '/', ':authority': host })
  stuck.on('error', () => {})
  await once(stuck, 'close')
  expect(stuck.rstCode).toBe(constants.NGHTTP2_CANCEL)
  if (host !== 'example.test') return
  const { socket } = await proxy.dial({ serverName: host })
  socket.removeAllListeners('data')
  socket.pause()
  socket.write(`GET / HTTP/1.1\r\nHost: ${host}\r\n\r\n`)
  await closed.promise
})

const HUNDREDS = 400

it.each([
  ['the machine’s', 'demo.example.test', 'x'.repeat(15_000)],
  ['the gateway’s own', 'nobody.example.test', ''],
])('answers of %s wait in front of a client that sends requests ahead and takes none', async (_whose, host, body) => {
  await using origin = await rawOrigin((wire, bytes) => {
    const asked = bytes.split('\r\n\r\n').length - 1
    wire.send(`HTTP/1.1 200 OK\r\nContent-Length: ${body.length}\r\n\r\n${body}`.repeat(asked))
  })
  await using proxy = await world({ originPort: origin.port })
  const { socket } = await proxy.dial({ serverName: host })
  socket.removeAllListeners('data')
  socket.pause()
  const ahead = `GET / HTTP/1.1\r\nHost: ${host}\r\nAccept: text/html\r\nX-Long: ${'x'.repeat(4096)}\r\n\r\n`
  const answered = () => proxy.finished.length
  let sent = 0
  // Until the client's own end of the connection is full: that is all that the gateway takes of it.
  while (socket.writableLength < MEBIBYTE && sent < 100 * HUNDREDS) {
    for (let n = 0; n < HUNDREDS; n++) socket.write(ahead)
    sent += HUNDREDS
    for (let before = -1; before !== answered(); await new Promise((resolve) => setTimeout(resolve, 50)))
      before = answered()
  }
  expect(sent).toBeLessThan(100 * HUNDREDS)
  let answers = 0
  let rest = ''
  socket.on('data', (bytes: Buffer) => {
    const parts = (rest + bytes.toString('latin1')).split('HTTP/1.1 ')
    answers += parts.length - 1
    rest = parts.at(-1)?.slice(-8) ?? ''
  })
  socket.resume()
  await expect.poll(() => answers, { timeout: 60_000 }).toBe(sent)
})

it('a slow reader gets all of a last answer, however long it takes', async () => {
  await using origin = await rawOrigin((wire) => {
    wire.socket.write(`HTTP/1.1 200 OK\r\nContent-Length: ${16 * MEBIBYTE}\r\n\r\n`)
    wire.socket.write(Buffer.alloc(16 * MEBIBYTE))
  })
  await using proxy = await world({ originPort: origin.port, limits: { lingerMs: 100 } })
  const { socket } = await proxy.dial()
  socket.removeAllListeners('data')
  let bytes = 0
  socket.on('data', (chunk: Buffer) => {
    bytes += chunk.length
    if (proxy.finished.length > 0) return
    socket.pause()
    setTimeout(() => proxy.finished.length === 0 && socket.resume(), 1)
  })
  socket.write(get('/', 'Connection: close'))
  await expect.poll(() => proxy.finished.length, { timeout: 60_000, interval: 1 }).toBe(1)
  // Longer than a connection lingers: there is no event to wait for when it does not close.
  await new Promise((resolve) => setTimeout(resolve, 600))
  socket.resume()
  await once(socket, 'end')
  expect(bytes).toBeGreaterThan(16 * MEBIBYTE)
})
