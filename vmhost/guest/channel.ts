import { randomBytes } from 'node:crypto'
import type { Socket } from 'node:net'
import { connectToOwn } from '../hypervisor/own-socket.ts'
import { environmentsProblem } from './environment.ts'
import { number, numberIn, parseReport, plain, stageIn, text, textIn } from './fields.ts'
import { encodeFrame, type Field, type Frame, FrameReader, maxFrameBytes } from './frames.ts'
import {
  type AgentEvent,
  type AgentHello,
  fieldTag,
  type MachineIdentity,
  type MachineReport,
  messageType,
} from './messages.ts'

/**
 * The host's end of a machine's control channel.
 *
 * States: `connecting` (no socket; tried again with backoff until closed), `greeting` (socket open, a hello with a
 * fresh nonce sent, everything but the answer to it and `fatal` dropped, because QEMU keeps what was meant for an
 * earlier host process), `open` (requests flow), `closed` (for good).
 * connecting -> greeting on connect; greeting -> open on the matching answer; open -> greeting when an agent says
 * `born` (the guest rebooted, or its agent was restarted, and what it was asked fails; or it has not taken a request since
 * it has forgotten the hello, and is asked again); any -> connecting when the socket ends; any -> closed by `close()` or
 * the signal.
 */
export type AgentChannel = {
  /** Waits until in step with an agent; at once when it is. */
  ready(options?: CallOptions): Promise<AgentHello>
  /**
   * Tells the machine who it is; the clock and fresh entropy go with it. During the boot the machine waits for this;
   * later (after a restore) it changes everything in place and makes sshd take the new host key.
   * @returns the login user's uid
   */
  identify(identity: MachineIdentity, options?: CallOptions): Promise<{ loginUid: number }>
  /** Replaces the authorized keys; holds for the next sign-in. */
  updateKeys(authorizedKeys: readonly string[], options?: CallOptions): Promise<void>
  /** Freezes the root filesystem (FIFREEZE); the machine thaws it by itself after `deadlineMs`, at most 60 s. */
  freeze(deadlineMs: number, options?: CallOptions): Promise<void>
  /** @returns whether it was still frozen: false means that the deadline had passed and the copy is worth nothing */
  thaw(options?: CallOptions): Promise<{ wasFrozen: boolean }>
  /** Grows the root filesystem to the size of its disk. */
  grow(options?: CallOptions): Promise<{ sizeBytes: number }>
  /** Has its kernel use the processors that were added while it runs, where they are there already. @returns how many it uses then */
  online(options?: CallOptions): Promise<{ cpuCount: number }>
  report(options?: CallOptions): Promise<MachineReport>
  /** Begins an orderly shutdown and returns; the machine switches itself off after `limitMs` (default 20 s) at the latest. */
  powerOff(limitMs?: number, options?: CallOptions): Promise<void>
  /** The same, ending in a reboot. */
  reboot(limitMs?: number, options?: CallOptions): Promise<void>
  ping(options?: CallOptions): Promise<void>
  /** @returns what ends the subscription */
  on(listener: (event: AgentEvent) => void): () => void
  close(): void
}

export type CallOptions = {
  signal?: AbortSignal
  /** until the answer is there, the time until the agent answers hellos included; default 30 s */
  timeoutMs?: number
}

export type ChannelOptions = {
  /** ends the channel */
  signal?: AbortSignal
  log?: { debug(fields: object, message: string): void; warn(fields: object, message: string): void }
  /** under Cloud Hypervisor the socket is the hypervisor's, and this is the port in the guest that it asks for */
  vsockPort?: number
  /** whose the socket must be; see own-socket.ts */
  uid?: number
}

export type ChannelErrorCode =
  | 'agent.timeout'
  | 'agent.lost'
  | 'agent.closed'
  | 'agent.busy'
  | 'agent.refused'
  | 'agent.invalid'

/**
 * `agent.refused`: the machine answered with an error, which is the message. `agent.busy`: too much that was asked of
 * it before has not been read or answered yet; nothing was sent.
 */
export class ChannelError extends Error {
  override readonly name = 'ChannelError'
  readonly code: ChannelErrorCode
  constructor(code: ChannelErrorCode, message: string, options?: ErrorOptions) {
    super(message, options)
    this.code = code
  }
}

/** The guest's port under AF_VSOCK; `init/protocol.h` has the same. */
export const agentVsockPort = 1024

const defaultTimeoutMs = 30_000
const helloAgainMs = 5_000
const reconnectFirstMs = 20
const reconnectMostMs = 1_000
/** A hypervisor that answers for a guest turns everybody away until the agent listens, at the end of a boot of a second. */
const vsockReconnectMostMs = 100
/** A machine is hostile: what it may make this process read in a second. */
const mostFramesPerSecond = 500
/** Bytes count too, whether they make frames or not: so many are as good as a frame. A report has some 4 KiB. */
const bytesPerFrame = 256
/** And what it may make this process hold for it by not reading, or not answering: four of the largest identities. */
const mostUnreadBytes = 4 * maxFrameBytes
const mostUnanswered = 16

/**
 * Connects to the agent of a machine through its VMM's Unix socket, now and again whenever the connection ends.
 * Returns at once; nothing is thrown when nobody listens yet.
 */
export function connectAgent(socketPath: string, options: ChannelOptions = {}): AgentChannel {
  return new SocketChannel(socketPath, options)
}

type Pending = { frame: Buffer; resolve(fields: Field[]): void; reject(error: Error): void }

class SocketChannel implements AgentChannel {
  readonly #path: string
  readonly #options: ChannelOptions
  readonly #listeners = new Set<(event: AgentEvent) => void>()
  readonly #pending = new Map<number, Pending>()
  /** those of them that are to be asked once more after the next hello */
  readonly #notTaken = new Set<number>()
  readonly #waiting = new Set<{ resolve(hello: AgentHello): void; reject(error: Error): void }>()
  readonly #onAbort = () => this.close()
  #socket: Socket | undefined
  #hello: AgentHello | undefined
  #nonce = Buffer.alloc(0)
  #nextId = 1
  #retryMs = reconnectFirstMs
  #timer: NodeJS.Timeout | undefined
  #throttle: NodeJS.Timeout | undefined
  #secondAt = 0
  #framesThisSecond = 0
  #closed = false

  constructor(path: string, options: ChannelOptions) {
    this.#path = path
    this.#options = options
    if (options.signal?.aborted) {
      this.#closed = true
      return
    }
    options.signal?.addEventListener('abort', this.#onAbort, { once: true })
    this.#connect()
  }

  on(listener: (event: AgentEvent) => void): () => void {
    this.#listeners.add(listener)
    return () => {
      this.#listeners.delete(listener)
    }
  }

  async ready(options: CallOptions = {}): Promise<AgentHello> {
    return within(options, 'an answer to the hello', (limit) => this.#whenOpen(limit))
  }

  async identify(identity: MachineIdentity, options?: CallOptions): Promise<{ loginUid: number }> {
    const problem = environmentsProblem(identity.environment)
    if (problem) throw new ChannelError('agent.invalid', problem)
    const fields = [
      text(fieldTag.hostname, identity.hostname),
      text(fieldTag.loginUser, identity.loginUser),
      ...identity.authorizedKeys.map((line) => text(fieldTag.authorizedKey, line)),
      ...Object.entries(identity.environment).map(([name, value]) => text(fieldTag.environment, `${name}=${value}`)),
      text(fieldTag.hostKey, identity.hostKey),
      ...(identity.userAuthorities ?? []).map((line) => text(fieldTag.userAuthority, line)),
      text(fieldTag.machineId, identity.machineId),
      { tag: fieldTag.entropy, bytes: randomBytes(64) },
    ]
    const { service } = identity
    if (service)
      fields.push(
        ...service.arguments.map((word) => text(fieldTag.serviceArgument, word)),
        number(fieldTag.serviceUid, service.uid),
        number(fieldTag.serviceGid, service.gid),
        text(fieldTag.serviceDirectory, service.workingDirectory),
      )
    if (identity.address !== undefined) fields.push(text(fieldTag.address, identity.address))
    if (identity.bootId !== undefined) fields.push(text(fieldTag.bootId, identity.bootId))
    if (identity.commandLine !== undefined) fields.push(text(fieldTag.commandLine, identity.commandLine))
    // The clock is read when the request leaves, not when it starts to wait for the agent.
    const answer = await this.#call(
      messageType.identify,
      () => [...fields, number(fieldTag.clockMs, Date.now())],
      options,
    )
    return { loginUid: numberIn(answer, fieldTag.loginUid) }
  }

  async updateKeys(authorizedKeys: readonly string[], options?: CallOptions): Promise<void> {
    await this.#call(messageType.keys, () => authorizedKeys.map((line) => text(fieldTag.authorizedKey, line)), options)
  }

  async freeze(deadlineMs: number, options?: CallOptions): Promise<void> {
    await this.#call(messageType.freeze, () => [number(fieldTag.deadlineMs, deadlineMs)], options)
  }

  async thaw(options?: CallOptions): Promise<{ wasFrozen: boolean }> {
    const answer = await this.#call(messageType.thaw, () => [], options)
    return { wasFrozen: numberIn(answer, fieldTag.deadlineMs) > 0 }
  }

  async grow(options?: CallOptions): Promise<{ sizeBytes: number }> {
    return { sizeBytes: numberIn(await this.#call(messageType.grow, () => [], options), fieldTag.sizeBytes) }
  }

  async online(options?: CallOptions): Promise<{ cpuCount: number }> {
    return { cpuCount: numberIn(await this.#call(messageType.online, () => [], options), fieldTag.cpuCount) }
  }

  async report(options?: CallOptions): Promise<MachineReport> {
    return parseReport(await this.#call(messageType.report, () => [], options))
  }

  async powerOff(limitMs = 20_000, options?: CallOptions): Promise<void> {
    await this.#call(messageType.powerOff, () => [number(fieldTag.limitMs, limitMs)], options)
  }

  async reboot(limitMs = 20_000, options?: CallOptions): Promise<void> {
    await this.#call(messageType.reboot, () => [number(fieldTag.limitMs, limitMs)], options)
  }

  async ping(options?: CallOptions): Promise<void> {
    await this.#call(messageType.ping, () => [], options)
  }

  close(): void {
    if (this.#closed) return
    this.#closed = true
    this.#options.signal?.removeEventListener('abort', this.#onAbort)
    clearTimeout(this.#timer)
    clearTimeout(this.#throttle)
    this.#socket?.destroy()
    this.#fail(new ChannelError('agent.closed', 'The control channel was closed'))
    for (const waiter of this.#waiting)
      waiter.reject(new ChannelError('agent.closed', 'The control channel was closed'))
    this.#waiting.clear()
    this.#listeners.clear()
  }

  #connect(): void {
    const socket = connectToOwn(this.#path, this.#options.uid)
    const reader = new FrameReader()
    let greeted = this.#options.vsockPort === undefined
    let greeting = ''
    this.#socket = socket
    const answered = () => {
      this.#retryMs = reconnectFirstMs
      this.#greet()
    }
    socket.on('connect', () => {
      if (greeted) answered()
      else socket.write(`CONNECT ${this.#options.vsockPort}\n`)
    })
    socket.on('data', (chunk: Buffer) => {
      let rest = chunk
      if (!greeted) {
        const end = chunk.indexOf(10)
        greeting += chunk.subarray(0, end < 0 ? chunk.length : end).toString('latin1')
        if (end < 0 && greeting.length < 64) return
        if (!/^OK \d+$/.test(greeting)) {
          socket.destroy()
          return
        }
        greeted = true
        rest = chunk.subarray(end + 1)
        answered()
      }
      const frames = reader.push(rest)
      this.#bound(socket, Math.max(frames.length, chunk.length / bytesPerFrame))
      for (const frame of frames) this.#receive(frame)
    })
    // 'close' follows every 'error' and does what there is to do.
    socket.on('error', (error) => this.#options.log?.debug({ err: error, path: this.#path }, 'control channel'))
    socket.on('close', () => {
      clearTimeout(this.#timer)
      if (this.#closed) return
      if (this.#hello) this.#emit({ type: 'lost' })
      this.#hello = undefined
      this.#socket = undefined
      this.#fail(new ChannelError('agent.lost', 'The control channel was lost'))
      this.#timer = setTimeout(() => this.#connect(), this.#retryMs)
      const mostMs = this.#options.vsockPort === undefined ? reconnectMostMs : vsockReconnectMostMs
      this.#retryMs = Math.min(this.#retryMs * 2, mostMs)
    })
  }

  /** Sends hellos until one is answered: a guest that is reset meanwhile loses what was on its way. */
  #greet(): void {
    clearTimeout(this.#timer)
    this.#hello = undefined
    this.#nonce = randomBytes(16)
    const again = () => {
      this.#sayHello()
      this.#timer = setTimeout(again, helloAgainMs)
    }
    again()
  }

  #sayHello(): void {
    if (!this.#socket || this.#socket.writableLength >= 4096) return
    this.#socket.write(Buffer.alloc(1))
    this.#write({ type: messageType.hello, id: 0, fields: [{ tag: fieldTag.nonce, bytes: this.#nonce }] })
  }

  #write(frame: Frame): void {
    this.#socket?.write(encodeFrame(frame))
  }

  #receive(frame: Frame): void {
    if (this.#closed) return
    switch (frame.type) {
      case messageType.ok:
      case messageType.error:
        if (frame.id === 0) this.#greeted(frame)
        else this.#answer(frame)
        return
      case messageType.born:
        if (frame.id !== 0) {
          if (this.#pending.has(frame.id)) this.#notTaken.add(frame.id)
          if (this.#hello) this.#greet()
          return
        }
        this.#fail(new ChannelError('agent.lost', 'The machine or its agent was started again'))
        this.#greet()
        return
      case messageType.fatal:
        this.#emit({ type: 'fatal', reason: plain(textIn(frame.fields, fieldTag.message) ?? 'no reason was given') })
        return
      case messageType.stage: {
        const stage = stageIn(frame.fields)
        if (!this.#hello || !stage) return
        this.#hello = { ...this.#hello, stage }
        this.#emit({ type: 'stage', stage, uptimeMs: numberIn(frame.fields, fieldTag.uptimeMs) })
        return
      }
      case messageType.powerOffBegun:
        if (this.#hello) this.#emit({ type: 'poweroff' })
        return
      default:
        this.#options.log?.debug({ path: this.#path, type: frame.type }, 'unknown control message')
    }
  }

  #greeted(frame: Frame): void {
    const nonce = frame.fields.find((field) => field.tag === fieldTag.nonce)
    if (this.#hello || !nonce?.bytes.equals(this.#nonce)) return
    clearTimeout(this.#timer)
    const hello: AgentHello = {
      version: numberIn(frame.fields, fieldTag.version),
      bootId: plain(textIn(frame.fields, fieldTag.bootId) ?? ''),
      kernelRelease: plain(textIn(frame.fields, fieldTag.kernel) ?? ''),
      stage: stageIn(frame.fields) ?? 'kernel',
      identified: numberIn(frame.fields, fieldTag.identified) > 0,
      uptimeMs: numberIn(frame.fields, fieldTag.uptimeMs),
    }
    this.#hello = hello
    for (const waiter of this.#waiting) waiter.resolve(hello)
    this.#waiting.clear()
    for (const id of this.#notTaken) {
      const again = this.#pending.get(id)
      if (again) this.#socket?.write(again.frame)
    }
    this.#notTaken.clear()
    this.#emit({ type: 'hello', hello })
  }

  #answer(frame: Frame): void {
    const pending = this.#pending.get(frame.id)
    this.#pending.delete(frame.id)
    if (!pending) return
    if (frame.type === messageType.ok) pending.resolve(frame.fields)
    else
      pending.reject(
        new ChannelError(
          'agent.refused',
          plain(textIn(frame.fields, fieldTag.message) ?? 'The machine refused without a reason'),
        ),
      )
  }

  #call(type: number, fields: () => Field[], options: CallOptions = {}): Promise<Field[]> {
    return within(options, 'an answer from the agent', async (limit) => {
      await this.#whenOpen(limit)
      // Bytes stay when the call that wrote them has run into its limit, so the two are counted apart.
      if (this.#pending.size >= mostUnanswered || (this.#socket?.writableLength ?? 0) > mostUnreadBytes)
        throw new ChannelError('agent.busy', 'The machine does not answer what it was asked before')
      const id = this.#nextId++ % 0xffffffff || this.#nextId++
      const frame = encodeFrame({ type, id, fields: fields() })
      return new Promise<Field[]>((resolve, reject) => {
        this.#pending.set(id, { frame, resolve, reject })
        limit.addEventListener('abort', () => this.#unanswered(id), { once: true })
        this.#socket?.write(frame)
      })
    })
  }

  /** An agent that has forgotten the hello, and is too old to say so, hears no request before another one. */
  #unanswered(id: number): void {
    if (this.#pending.delete(id)) this.#sayHello()
  }

  #whenOpen(limit: AbortSignal): Promise<AgentHello> {
    if (this.#closed) throw new ChannelError('agent.closed', 'The control channel was closed')
    if (this.#hello) return Promise.resolve(this.#hello)
    return new Promise((resolve, reject) => {
      const waiter = { resolve, reject }
      this.#waiting.add(waiter)
      limit.addEventListener('abort', () => this.#waiting.delete(waiter), { once: true })
    })
  }

  #fail(error: Error): void {
    const all = [...this.#pending.values()]
    this.#pending.clear()
    this.#notTaken.clear()
    for (const pending of all) pending.reject(error)
  }

  #emit(event: AgentEvent): void {
    for (const listener of [...this.#listeners]) listener(event)
  }

  /** Stops reading for the rest of the second when a machine sends more than anything here asks for. */
  #bound(socket: Socket, frames: number): void {
    const now = performance.now()
    if (now - this.#secondAt > 1000) {
      this.#secondAt = now
      this.#framesThisSecond = 0
    }
    this.#framesThisSecond += frames
    if (this.#framesThisSecond <= mostFramesPerSecond) return
    this.#options.log?.warn({ path: this.#path }, 'machine floods its control channel; reading pauses')
    socket.pause()
    clearTimeout(this.#throttle)
    this.#throttle = setTimeout(() => socket.resume(), 1000)
  }
}

/** Runs `work` with a limit on its time; whichever of limit, signal and work ends first decides. */
async function within<T>(options: CallOptions, what: string, work: (limit: AbortSignal) => Promise<T>): Promise<T> {
  options.signal?.throwIfAborted()
  const timeoutMs = options.timeoutMs ?? defaultTimeoutMs
  const stop = new AbortController()
  let onAbort: (() => void) | undefined
  let timer: NodeJS.Timeout | undefined
  try {
    const limit = new Promise<never>((_resolve, reject) => {
      timer = setTimeout(
        () => reject(new ChannelError('agent.timeout', `No ${what.replace(/^an? /, '')} within ${timeoutMs / 1000} s`)),
        timeoutMs,
      )
      onAbort = () => reject(options.signal?.reason)
      options.signal?.addEventListener('abort', onAbort, { once: true })
    })
    return await Promise.race([work(stop.signal), limit])
  } finally {
    clearTimeout(timer)
    if (onAbort) options.signal?.removeEventListener('abort', onAbort)
    stop.abort()
  }
}
