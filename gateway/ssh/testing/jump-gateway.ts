/** For tests: a process that serves jumps to a port of its own, which sends zeros without end once it has been sent anything. */
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { type AddressInfo, createServer } from 'node:net'
import ssh2 from 'ssh2'
import { MachineWatch } from '../../activity/watch.ts'
import type { App, Caller } from '../../app.ts'
import { serveJumps } from '../jump.ts'
import { serverAlgorithms } from '../transport/algorithms.ts'

const [hostKey = ''] = process.argv.slice(2)
const zeros = Buffer.alloc(64 * 1024)
const port = createServer((socket) => {
  const send = () => {
    while (socket.write(zeros));
  }
  socket.on('error', () => {})
  socket.once('data', () => {
    socket.on('drain', send)
    send()
  })
})
port.listen(0, '127.0.0.1')
await once(port, 'listening')

const watch = new MachineWatch(1, { nowMs: 0, wake: async () => true, look: () => {} })
const machine = { id: 1, accountId: 1, name: 'demo' }
const app = {
  watches: { of: () => watch },
  settings: { machineDomain: 'example.com' },
  machines: {
    find: async () => machine,
    whenReady: async () => machine,
    target: () => ({ name: 'demo', address: '127.0.0.1', port: (port.address() as AddressInfo).port }),
  },
} as unknown as App

const server = new ssh2.Server(
  { hostKeys: [readFileSync(hostKey)], algorithms: serverAlgorithms, maxChannels: 512 } as ssh2.ServerConfig,
  (client) => {
    client.on('error', () => {})
    client.on('authentication', (context) => context.accept())
    client.on('ready', () => serveJumps(client, app, { accountId: 1 } as Caller))
  },
)
server.listen(0, '127.0.0.1')
await once(server, 'listening')
console.log((server.address() as AddressInfo).port)
