import type { Socket } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { HypervisorError } from './driver.ts'
import { connectToOwn } from './own-socket.ts'

/**
 * QEMU Machine Protocol: one JSON document a line, answers matched by id, events between them.
 * The other side is a process that a machine may have taken over: every line and every wait has a limit.
 * @see https://www.qemu.org/docs/master/interop/qmp-spec.html
 */
export type QmpClient = {
  /** @throws HypervisorError `hypervisor.refused` with QEMU's own words, `hypervisor.timeout`, `hypervisor.gone` */
  execute(command: string, args?: object, timeoutMs?: number): Promise<unknown>
  /** Resolves when the connection has ended, from either side. */
  readonly closed: Promise<void>
  close(): void
}

export type QmpEvent = { readonly event: string; readonly data: Readonly<Record<string, unknown>> }

export type QmpOptions = {
  onEvent: (event: QmpEvent) => void
  /** until QEMU greets and has taken the handshake, waiting for the socket to appear included */
  timeoutMs: number
  /** ends the wait for a QEMU that will never answer: it is gone, or nobody wants to know any more */
  signal?: AbortSignal
  /** whose the socket must be; see own-socket.ts */
  uid?: number
}

const lineMostBytes = 1 << 20
const answerLimitMs = 10_000
const lookAgainMs = 5
/** A hypervisor that starts listens within some 60 ms, and somebody waits for its machine. */
const lookAgainMostMs = 20

/** Connects and leaves QMP's negotiation mode. One client at a time: QEMU keeps a second one waiting. */
export async function connectQmp(path: string, options: QmpOptions): Promise<QmpClient> {
  const deadline = Date.now() + options.timeoutMs
  const socket = await open(path, deadline, options)
  const client = new Client(socket, options.onEvent)
  const leave = () => client.close()
  if (options.signal?.aborted) leave()
  else options.signal?.addEventListener('abort', leave, { once: true })
  try {
    await client.greeted(Math.max(deadline - Date.now(), 1))
    await client.execute('qmp_capabilities', undefined, Math.max(deadline - Date.now(), 1))
    return client
  } catch (error) {
    client.close()
    throw error
  } finally {
    options.signal?.removeEventListener('abort', leave)
  }
}

async function open(path: string, deadline: number, { signal, uid }: QmpOptions): Promise<Socket> {
  for (let waitMs = lookAgainMs; ; waitMs = Math.min(waitMs * 2, lookAgainMostMs)) {
    const failure = await new Promise<Error | Socket>((resolve) => {
      const socket = connectToOwn(path, uid)
      socket.once('connect', () => resolve(socket.off('error', resolve)))
      socket.once('error', resolve)
    })
    if (!(failure instanceof Error)) return failure
    if (signal?.aborted) throw new HypervisorError('hypervisor.gone', 'QEMU has ended', { cause: failure })
    if (Date.now() + waitMs > deadline) {
      throw new HypervisorError('hypervisor.timeout', 'QEMU does not listen on its control socket', { cause: failure })
    }
    await sleep(waitMs, undefined, { ref: true })
  }
}

type Pending = { resolve(value: unknown): void; reject(error: Error): void }

class Client implements QmpClient {
  readonly closed: Promise<void>
  readonly #socket: Socket
  readonly #onEvent: (event: QmpEvent) => void
  readonly #pending = new Map<number, Pending>()
  #nextId = 1
  #held: Buffer[] = []
  #heldBytes = 0
  #greeting = Promise.withResolvers<void>()

  constructor(socket: Socket, onEvent: (event: QmpEvent) => void) {
    this.#socket = socket
    this.#onEvent = onEvent
    this.#greeting.promise.catch(() => {})
    this.closed = new Promise((resolve) => {
      socket.once('close', () => {
        const gone = new HypervisorError('hypervisor.gone', 'QEMU closed its control socket')
        this.#greeting.reject(gone)
        for (const pending of this.#pending.values()) pending.reject(gone)
        this.#pending.clear()
        resolve()
      })
    })
    socket.on('error', () => {})
    socket.on('data', (chunk: Buffer) => this.#take(chunk))
  }

  async greeted(timeoutMs: number): Promise<void> {
    await limited(this.#greeting.promise, timeoutMs, 'QEMU does not greet')
  }

  async execute(command: string, args?: object, timeoutMs = answerLimitMs): Promise<unknown> {
    if (this.#socket.destroyed) throw new HypervisorError('hypervisor.gone', 'QEMU closed its control socket')
    const id = this.#nextId++
    const answer = new Promise<unknown>((resolve, reject) => this.#pending.set(id, { resolve, reject }))
    this.#socket.write(`${JSON.stringify({ execute: command, ...(args ? { arguments: args } : {}), id })}\n`)
    try {
      return await limited(answer, timeoutMs, `QEMU does not answer ${command}`)
    } finally {
      this.#pending.delete(id)
    }
  }

  close(): void {
    this.#socket.destroy()
  }

  #take(chunk: Buffer): void {
    let from = 0
    for (let end = chunk.indexOf(10); end >= 0; end = chunk.indexOf(10, from)) {
      this.#held.push(chunk.subarray(from, end))
      from = end + 1
      const line = Buffer.concat(this.#held).toString('utf8')
      this.#held = []
      this.#heldBytes = 0
      this.#line(line)
    }
    this.#held.push(chunk.subarray(from))
    this.#heldBytes += chunk.length - from
    if (this.#heldBytes > lineMostBytes) this.#socket.destroy()
  }

  #line(line: string): void {
    const message = parse(line)
    if (!message) return
    if ('QMP' in message) this.#greeting.resolve()
    else if (typeof message.event === 'string') {
      this.#onEvent({ event: message.event, data: asObject(message.data) })
    } else if (typeof message.id === 'number') {
      const pending = this.#pending.get(message.id)
      this.#pending.delete(message.id)
      if ('error' in message) {
        const text = String(asObject(message.error).desc ?? 'no reason given')
        pending?.reject(new HypervisorError('hypervisor.refused', `QEMU refused: ${text}`))
      } else pending?.resolve(message.return)
    }
  }
}

function parse(line: string): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(line)
    return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : undefined
  } catch {
    return undefined
  }
}

export function asObject(value: unknown): Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {}
}

async function limited<T>(promise: Promise<T>, timeoutMs: number, what: string): Promise<T> {
  const { promise: late, reject } = Promise.withResolvers<never>()
  const timer = setTimeout(
    () => reject(new HypervisorError('hypervisor.timeout', `${what} within ${Math.ceil(timeoutMs / 1000)} s`)),
    timeoutMs,
  )
  try {
    return await Promise.race([promise, late])
  } finally {
    clearTimeout(timer)
  }
}
