import { finished } from 'node:stream/promises'
import type { WebSocket } from 'ws'
import { CLOSED, INPUT_WINDOW_BYTES, OUTPUT_WINDOW_BYTES, type ToBrowser } from '../../../web/terminal/protocol.ts'
import type { App } from '../../app.ts'
import { lobbyLine } from '../../commands/machine-document.ts'
import { isLeftAsleep, isWaking, type Machine, MachineNotReadyError, stageOf } from '../../machines.ts'
import { type MachineProcess, openOnMachine } from '../../ssh/pool/open-on-machine.ts'
import { MachineUnreachableError } from '../../ssh/pool/target.ts'
import { attachCommand } from './hold.ts'
import { offState, readMessage, type TerminalSize } from './messages.ts'

export type VisitOptions = {
  app: App
  socket: WebSocket
  accountId: number
  machineId: number
  machineName: string
  /** the held session's name, checked */
  session: string
  size: TerminalSize
}

/** A size that a hand drags comes as dozens of changes. */
const RESIZE_EVERY_MS = 50
const CHANNEL_WINDOW_BYTES = 128 * 1024
/** A browser that answers nothing is gone; as are those whose network is. */
const HEARTBEAT_MS = 25_000
/** The machine said its sshd listens; a first knock that fails all the same is repeated. */
const ATTEMPTS = 5
/** The machine's row is looked at anyway. */
const RECHECK_MS = 30_000
/** Given for the closing handshake; ws itself would wait for 30 s. */
const CLOSING_MS = 1_000

/**
 * One browser's visit to one held session:
 *
 *   waiting   until the machine can be reached; `off` as long as it stays off, which somebody may change meanwhile
 *   attached  `exe-hold attach` runs in the machine, on a terminal of the browser's size
 *   over      the program ended, the machine was lost, or the browser left: leaving is all that exe-hold sees of it
 *
 * Memory is bounded by the two windows of the protocol, whatever either side does: more is sent only when the browser
 * has shown what it got and the socket has taken it, and a browser that sends more than it may is sent away. Nothing
 * that it sends is left unread, for the news that it has shown something comes the same way.
 */
export class TerminalVisit {
  readonly #options: VisitOptions
  readonly #leave = new AbortController()
  #size: TerminalSize
  #remote: MachineProcess | undefined
  #unseenBytes = 0
  #typedBytes = 0
  #takenBytes = 0
  #resizeTimer: NodeJS.Timeout | undefined
  #told = ''
  #isAlive = true

  constructor(options: VisitOptions) {
    this.#options = options
    this.#size = options.size
    const { socket } = options
    const heartbeat = setInterval(() => this.#beat(), HEARTBEAT_MS)
    heartbeat.unref()
    socket.on('message', (bytes: Buffer, isBinary) => {
      // ws hands messages on until the handshake of closing is over, which a browser may never answer.
      if (this.#leave.signal.aborted) return
      this.#isAlive = true
      if (isBinary) this.#type(bytes)
      else this.#hear(bytes)
    })
    socket.on('pong', () => {
      this.#isAlive = true
    })
    socket.on('error', () => {})
    socket.on('close', () => {
      clearInterval(heartbeat)
      clearTimeout(this.#resizeTimer)
      this.#leave.abort()
      this.#remote?.close()
    })
  }

  /** Sends the browser away: from now on nothing of it is heard and nothing of the machine shown, whatever it answers. */
  end(code: number, reason?: string): void {
    const { socket } = this.#options
    clearTimeout(this.#resizeTimer)
    this.#leave.abort()
    this.#remote?.close()
    socket.close(code, reason)
    const late = setTimeout(() => socket.terminate(), CLOSING_MS)
    late.unref()
    socket.once('close', () => clearTimeout(late))
  }

  /** @returns when the visit is over; never rejects */
  async run(): Promise<void> {
    const { app, socket, session, machineName } = this.#options
    const { signal } = this.#leave
    try {
      const machine = await this.#reachable()
      if (!machine) return
      const remote = await this.#attach(machine)
      if (signal.aborted) {
        remote.close()
        return
      }
      this.#remote = remote
      this.#tell({ state: 'attached' })
      const shown = [this.#show(remote.stdout), this.#show(remote.stderr)]
      const end = await remote.exit
      await Promise.all(shown)
      const how = end.status === null ? `by signal ${end.signal}` : `with status ${end.status}`
      this.#finish({ state: 'ended', text: `The program in session ${session} ended ${how}.` })
    } catch (error) {
      if (signal.aborted) return
      if (error instanceof MachineUnreachableError) {
        // What can be typed at a lobby does not help here; that it is tried again says the page.
        const text = this.#remote
          ? `The connection to ${machineName} was lost.`
          : `${machineName} does not answer over SSH.`
        this.#finish({ state: 'unreachable', text })
        return
      }
      app.log.error({ err: error, machine: this.#options.machineId }, 'a web terminal failed')
      this.#finish({ state: 'unreachable', text: 'Something went wrong at Berth. It has been noted.' })
    } finally {
      // A browser that does not answer the closing handshake is ended by ws after its own limit.
      if (socket.readyState === socket.OPEN) socket.close(CLOSED.done)
    }
  }

  /** @returns undefined when there is no coming in, which was told */
  async #reachable(): Promise<Machine | undefined> {
    const { app, accountId, machineId, machineName } = this.#options
    const { signal } = this.#leave
    for (;;) {
      try {
        return await app.machines.whenReady(
          machineId,
          { accountId },
          {
            signal,
            knock: 'a web terminal',
            onStage: (seen) => {
              const what = isWaking(seen) ? 'waking' : `starting: ${stageOf(seen)}`
              this.#tell({ state: 'waiting', text: `${machineName} is ${what}.` })
            },
          },
        )
      } catch (error) {
        if (!(error instanceof MachineNotReadyError)) throw error
        if (error.code === 'machine.timeout') continue
        if (error.code === 'machine.no_room') {
          this.#tell({ state: 'waiting', text: `${error.message}.` })
          continue
        }
        if (error.code === 'machine.cannot_restore') {
          this.#tell({ state: 'waiting', text: `${error.message}.` })
          await this.#untilWanted()
          continue
        }
        const machine = await app.machines.byId(machineId, { accountId })
        const off = machine && offState(machine, (command) => lobbyLine(app.settings, command))
        if (!off) {
          this.#finish({ state: 'refused', text: `${machineName} is not there any more.` })
          return undefined
        }
        this.#tell(off)
        await this.#news()
        signal.throwIfAborted()
      }
    }
  }

  /** A machine that its server cannot restore is not knocked at again: its server, or its owner, wants it when it can come. */
  async #untilWanted(): Promise<void> {
    const { app, accountId, machineId } = this.#options
    for (let isLeft = true; isLeft; ) {
      await this.#news()
      this.#leave.signal.throwIfAborted()
      const machine = await app.machines.byId(machineId, { accountId })
      isLeft = machine !== undefined && isLeftAsleep(machine)
    }
  }

  async #attach(machine: Machine): Promise<MachineProcess> {
    const { app, accountId, session } = this.#options
    const target = app.machines.target(machine, { accountId })
    for (let attempt = 1; ; attempt++) {
      try {
        return await openOnMachine(app.pool, target, {
          command: attachCommand(session),
          // Little: Ctrl-C should not have to wait for a megabyte that was printed before.
          windowBytes: CHANNEL_WINDOW_BYTES,
          pty: { term: 'xterm-256color', ...this.#size },
          env: { COLORTERM: 'truecolor' },
        })
      } catch (error) {
        if (attempt === ATTEMPTS || !(error instanceof MachineUnreachableError)) throw error
        await new Promise((resolve) => setTimeout(resolve, attempt * 200))
        this.#leave.signal.throwIfAborted()
      }
    }
  }

  /** Resolves when something about the machine changed, or the browser left. */
  #news(): Promise<void> {
    const { app, machineId } = this.#options
    const { signal } = this.#leave
    return new Promise((resolve) => {
      const stops = [
        app.news.on('machines', (id) => id === String(machineId) && done()),
        app.news.onRescan(() => done()),
      ]
      const timer = setTimeout(() => done(), RECHECK_MS)
      const done = () => {
        clearTimeout(timer)
        for (const stop of stops) stop()
        signal.removeEventListener('abort', done)
        resolve()
      }
      signal.addEventListener('abort', done)
      if (signal.aborted) done()
    })
  }

  // To the browser ---------------------------------------------------------------------------------------------------

  /** @returns when all of an output was sent */
  async #show(output: MachineProcess['stdout']): Promise<void> {
    const { socket } = this.#options
    const goOn = () => {
      if (this.#hasRoom()) output.resume()
    }
    output.on('data', (bytes: Buffer) => {
      this.#unseenBytes += bytes.length
      socket.send(bytes, goOn)
      if (!this.#hasRoom()) output.pause()
    })
    this.#onSeen.push(goOn)
    await finished(output, { writable: false }).catch(() => {})
  }

  readonly #onSeen: (() => void)[] = []

  #hasRoom(): boolean {
    // The second for a browser that says it has seen what it never read.
    return this.#unseenBytes < OUTPUT_WINDOW_BYTES && this.#options.socket.bufferedAmount < OUTPUT_WINDOW_BYTES
  }

  #tell(message: ToBrowser): void {
    const text = JSON.stringify(message)
    if ('state' in message) {
      if (text === this.#told) return
      this.#told = text
    }
    this.#options.socket.send(text)
  }

  #finish(message: ToBrowser): void {
    this.#tell(message)
    this.#options.socket.close(CLOSED.done)
  }

  // From the browser -------------------------------------------------------------------------------------------------

  #type(bytes: Buffer): void {
    const remote = this.#remote
    this.#typedBytes += bytes.length
    if (!remote || this.#typedBytes > INPUT_WINDOW_BYTES) {
      this.#refuse(
        remote ? 'More was sent than there was room for.' : 'Something was sent before there was a terminal.',
      )
      return
    }
    remote.stdin.write(bytes, () => this.#took(bytes.length))
  }

  #took(bytes: number): void {
    this.#takenBytes += bytes
    if (this.#takenBytes < INPUT_WINDOW_BYTES / 4) return
    this.#typedBytes -= this.#takenBytes
    this.#tell({ taken: this.#takenBytes })
    this.#takenBytes = 0
  }

  #hear(bytes: Buffer): void {
    const message = readMessage(bytes)
    if (!message) this.#refuse('A message was not understood.')
    else if ('resize' in message) this.#resize(message.resize)
    else if ('seen' in message) {
      this.#unseenBytes = Math.max(0, this.#unseenBytes - message.seen)
      for (const goOn of this.#onSeen) goOn()
    } else if (this.#options.socket.bufferedAmount < OUTPUT_WINDOW_BYTES) this.#tell({ pong: message.ping })
  }

  #resize([columns, rows]: [number, number]): void {
    this.#size = { columns, rows }
    this.#resizeTimer ??= setTimeout(() => {
      this.#resizeTimer = undefined
      this.#remote?.resize(this.#size.columns, this.#size.rows)
    }, RESIZE_EVERY_MS)
  }

  #refuse(reason: string): void {
    this.end(CLOSED.violation, reason)
  }

  #beat(): void {
    if (!this.#isAlive) {
      this.#options.socket.terminate()
      return
    }
    this.#isAlive = false
    this.#options.socket.ping()
  }
}
