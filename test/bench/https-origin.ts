/**
 * The machine's side of the HTTPS benchmark: answers with ready bytes, echoes WebSocket-like tunnels, queues 64 MiB at
 * /queued. A bare TCP server, so that its cost is the same small one behind every rival; the same over TLS, to be
 * reached directly. Arguments: port, TLS port, certificate, key.
 */
import { readFileSync } from 'node:fs'
import { createServer, type Socket } from 'node:net'
import { createServer as createTlsServer } from 'node:tls'

const answer = (bytes: number) =>
  Buffer.concat([Buffer.from(`HTTP/1.1 200 OK\r\nContent-Length: ${bytes}\r\n\r\n`), Buffer.alloc(bytes, 120)])
const small = answer(1024)
const large = answer(1 << 20)
const queued = answer(64 << 20)

const [port, tlsPort, cert, key] = process.argv.slice(2)
createServer({ noDelay: true }, serve).listen(Number(port), '127.0.0.1', () => {
  const credentials = { cert: readFileSync(String(cert)), key: readFileSync(String(key)) }
  createTlsServer({ ...credentials, noDelay: true }, serve).listen(Number(tlsPort), '127.0.0.1', () =>
    process.send?.('ready'),
  )
})

function serve(socket: Socket): void {
  let tunnel = false
  socket.on('error', () => {})
  socket.on('data', (bytes) => {
    if (tunnel) {
      socket.write(bytes)
      return
    }
    const line = bytes.toString('latin1', 0, 20)
    if (line.startsWith('GET /large')) socket.write(large)
    else if (line.startsWith('GET /queued')) socket.write(queued)
    else if (line.startsWith('GET /tunnel')) {
      tunnel = true
      socket.write('HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n')
    } else socket.write(small)
  })
}
