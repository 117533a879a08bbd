import type { Socket as UdpSocket } from 'node:dgram'
import type { AddressInfo, Server, Socket } from 'node:net'
import type { Log } from '../log.ts'
import { addressGroup } from '../ssh/limits.ts'
import { serveListener } from '../start/listeners.ts'
import {
  EDNS_UDP_BYTES,
  type Query,
  RCODE,
  type Reply,
  readQuery,
  udpLimit,
  writeRefusal,
  writeReply,
} from './message.ts'

/** Bounds on what strangers can make the name server hold. */
export type DnsLimits = {
  /** queries being answered, of both transports together; more are told to ask elsewhere (SERVFAIL) */
  pending: number
  connections: number
  connectionsPerAddress: number
  /** queries of one connection being answered; it is not read from while there are so many */
  pipelined: number
  /** a connection without a query for so long is closed (RFC 7766, 6.2.3) */
  idleMs: number
  /** a connection is closed when it is so old, whatever it does */
  lifeMs: number
}

const LIMITS: DnsLimits = {
  pending: 1000,
  connections: 200,
  connectionsPerAddress: 20,
  pipelined: 20,
  idleMs: 10_000,
  lifeMs: 120_000,
}
const TCP_MESSAGE_BYTES = 65_535
const QUIET_MS = 10_000

export type DnsOptions = {
  /** bound already; half-open connections allowed, for what was asked before the end is still answered */
  udp: readonly UdpSocket[]
  tcp: readonly Server[]
  answer(query: Query): Promise<Reply>
  log: Log
  limits?: Partial<DnsLimits>
}

export type DnsServer = {
  udpAddresses: AddressInfo[]
  tcpAddresses: AddressInfo[]
  close(): Promise<void>
}

/** Serves DNS over UDP and TCP (RFC 1035, 4.2; RFC 7766). */
export function serveDns(options: DnsOptions): DnsServer {
  const limits = { ...LIMITS, ...options.limits }
  const state: State = { ...options, limits, pending: 0, quietUntilMs: 0, connections: new Map() }
  for (const socket of options.udp) serveUdp(socket, state)
  for (const listener of options.tcp) serveListener(listener, (socket) => serveConnection(socket, state))
  return {
    udpAddresses: options.udp.map((socket) => socket.address()),
    tcpAddresses: options.tcp.flatMap((server) => server.address() ?? []).filter((at) => typeof at === 'object'),
    async close() {
      const closed = options.tcp.map((server) => new Promise((resolve) => server.close(resolve)))
      const silent = options.udp.map((socket) => new Promise<void>((resolve) => socket.close(resolve)))
      for (const socket of state.connections.keys()) socket.destroy()
      await Promise.all([...closed, ...silent])
    },
  }
}

type State = {
  answer: DnsOptions['answer']
  log: Log
  limits: DnsLimits
  pending: number
  quietUntilMs: number
  /** with the group of addresses that each is counted under */
  connections: Map<Socket, string>
}

function serveUdp(socket: UdpSocket, state: State): void {
  socket.on('message', (bytes, { address, port }) => {
    // Nobody asks from port 0: a reply could not be sent.
    if (port === 0) return
    void respond(bytes, state, udpLimit).then((response) => {
      if (!response) return
      try {
        socket.send(response, port, address, ignore)
      } catch {
        // Closed meanwhile.
      }
    })
  })
  // An ICMP message about an earlier reply: that asker is gone, the socket is not.
  socket.on('error', (error) => state.log.debug({ err: error }, 'a reply could not be delivered'))
}

function serveConnection(socket: Socket, state: State): void {
  const { limits, connections } = state
  const group = addressGroup(socket.remoteAddress ?? '')
  const same = [...connections.values()].filter((one) => one === group).length
  if (connections.size >= limits.connections || same >= limits.connectionsPerAddress) {
    socket.destroy()
    return
  }
  connections.set(socket, group)
  const life = setTimeout(() => socket.destroy(), limits.lifeMs)
  socket.once('close', () => {
    clearTimeout(life)
    connections.delete(socket)
  })
  socket.on('error', ignore)
  socket.setTimeout(limits.idleMs, () => socket.destroy())
  let held: Buffer = Buffer.alloc(0)
  let open = 0
  let ended = false
  const proceed = (): void => {
    while (open < limits.pipelined && !socket.writableNeedDrain && held.length >= 2) {
      const length = held.readUInt16BE(0)
      if (held.length < 2 + length) break
      const message = held.subarray(2, 2 + length)
      held = held.subarray(2 + length)
      open++
      void respond(message, state, () => TCP_MESSAGE_BYTES).then((response) => {
        open--
        // Whoever sends what is no query by TCP does not know what they are talking to.
        if (!response) return socket.destroy()
        const head = Buffer.alloc(2)
        head.writeUInt16BE(response.length)
        socket.write(Buffer.concat([head, response]))
        proceed()
      })
    }
    if (ended && open === 0) socket.end()
    else if (open >= limits.pipelined || socket.writableNeedDrain) socket.pause()
    else socket.resume()
  }
  // A client that asks and never reads is not read from.
  socket.on('drain', proceed)
  socket.on('data', (bytes) => {
    // At most one message is incomplete, so this holds two messages' bytes and one read.
    held = held.length === 0 ? bytes : Buffer.concat([held, bytes])
    proceed()
  })
  socket.on('end', () => {
    ended = true
    proceed()
  })
}

/** @returns undefined for what gets no answer; never rejects */
async function respond(bytes: Buffer, state: State, limitOf: (query: Query) => number): Promise<Buffer | undefined> {
  const query = readQuery(bytes)
  if (!query) return undefined
  if ('rcode' in query) return writeRefusal(query)
  const limitBytes = limitOf(query)
  if (query.edns && query.edns.version !== 0) return writeReply(query, empty(RCODE.badVersion), EDNS_UDP_BYTES)
  if (state.pending >= state.limits.pending) return writeReply(query, empty(RCODE.serverFailure), limitBytes)
  state.pending++
  try {
    return writeReply(query, await state.answer(query), limitBytes)
  } catch (error) {
    // However many ask, the log hears of it now and then.
    if (performance.now() > state.quietUntilMs) {
      state.quietUntilMs = performance.now() + QUIET_MS
      state.log.warn({ err: error, name: query.name }, 'a name could not be looked up')
    }
    return writeReply(query, empty(RCODE.serverFailure), limitBytes)
  } finally {
    state.pending--
  }
}

function empty(rcode: number): Reply {
  return { rcode, authoritative: false, answers: [], authority: [] }
}

function ignore(): void {}
