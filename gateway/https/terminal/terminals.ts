import type { IncomingMessage } from 'node:http'
import type { Duplex } from 'node:stream'
import { type WebSocket, WebSocketServer } from 'ws'
import { CLOSED, INPUT_WINDOW_BYTES, SESSION_NAME } from '../../../web/terminal/protocol.ts'
import { findSession } from '../../accounts/web-sessions.ts'
import type { App } from '../../app.ts'
import { COOKIE, cookieOf } from '../access/fields.ts'
import { ownOrigin } from '../access/foreign.ts'
import type { LiveGrant } from '../access/grants.ts'
import { readSize } from './messages.ts'
import { TerminalVisit } from './visit.ts'

export type TerminalsOptions = {
  app: App
  /** grows with each piece of news about what was taken away; see Grants */
  generation(): number
  /** lets news of this machine reach the grants */
  follow(machineName: string): unknown
}

/** Of one account at one gateway; each may hold 2 MiB on the way. */
const ACCOUNT_MOST = 50
/** News that come faster than Postgres answers: the page tries again by itself. */
const READS_MOST = 5
const PATH = /^\/terminal\/([a-z][a-z0-9-]{0,39})\/([^/?]+)\/socket\?/

type Live = { accountId: number; grant: LiveGrant; visit: TerminalVisit }

/**
 * The WebSockets of web terminals. Only pages of the control host may open one (their Origin is compared byte for
 * byte: machines are on the same site), and only for the account that is signed in, on machines that it reaches over
 * SSH as well. What was taken away since ends them, as it does every other live visit (access/grants.ts).
 */
export class Terminals {
  readonly #options: TerminalsOptions
  readonly #live = new Set<Live>()
  readonly #server = new WebSocketServer({
    noServer: true,
    clientTracking: false,
    perMessageDeflate: false,
    maxPayload: INPUT_WINDOW_BYTES,
  })
  #isClosed = false

  constructor(options: TerminalsOptions) {
    this.#options = options
  }

  /** For an upgrade that came to the control host. */
  upgrade(request: IncomingMessage, socket: Duplex, head: Buffer): void {
    socket.on('error', () => {})
    const place = placeOf(request.url ?? '')
    if (!place) refuse(socket, '404 Not Found')
    else if (request.headers.origin !== ownOrigin(request.headers)) refuse(socket, '403 Forbidden')
    else if (this.#isClosed) refuse(socket, '503 Service Unavailable')
    else this.#accept(request, socket, head, place)
  }

  live(): LiveGrant[] {
    return [...this.#live].map(({ grant }) => grant)
  }

  end(isOver: (grant: LiveGrant) => boolean): void {
    for (const { grant, visit } of [...this.#live]) if (isOver(grant)) visit.end(CLOSED.takenAway)
  }

  /** Sends all away; another gateway, or this one when it is back, shows them the same sessions. */
  close(): void {
    this.#isClosed = true
    for (const { visit } of [...this.#live]) visit.end(CLOSED.restart)
  }

  /** Whatever is wrong is said over the WebSocket from here on: a browser shows its page nothing of a failed handshake. */
  #accept(request: IncomingMessage, socket: Duplex, head: Buffer, place: Place): void {
    this.#server.handleUpgrade(request, socket, head, (accepted) => {
      accepted.on('error', () => {})
      this.#begin(accepted, request, place).catch((error: unknown) => {
        this.#options.app.log.error({ err: error }, 'a web terminal could not begin')
        accepted.close(CLOSED.failed)
      })
    })
  }

  async #begin(socket: WebSocket, request: IncomingMessage, place: Place): Promise<void> {
    const { app, generation, follow } = this.#options
    const cookie = cookieOf([{ name: 'cookie', value: request.headers.cookie ?? '' }], COOKIE)
    await follow(place.machine)
    for (let reads = 1; ; reads++) {
      const before = generation()
      const session = cookie === undefined ? undefined : await findSession(app.sql, cookie)
      if (session === undefined) return socket.close(CLOSED.signedOut)
      const { accountId } = session
      const machine = accountId === null ? undefined : await app.machines.find(place.machine, { accountId })
      // Taken away while it was looked up: this would be nowhere to be found when live visits are looked at.
      if (before !== generation()) {
        if (reads < READS_MOST) continue
        return socket.close(CLOSED.failed)
      }
      if (accountId === null || !machine) return say(socket, `There is no machine called ${place.machine} for you.`)
      if (socket.readyState !== socket.OPEN) return
      if (this.#isClosed) return socket.close(CLOSED.restart)
      if ([...this.#live].filter((live) => live.accountId === accountId).length >= ACCOUNT_MOST) {
        return say(socket, `You have ${ACCOUNT_MOST} terminals open; close one.`)
      }
      const { id: machineId, name: machineName } = machine
      const visit = new TerminalVisit({ app, socket, accountId, machineId, machineName, ...place })
      const live = { accountId, visit, grant: { key: `terminal:${session.id}`, machineId } }
      this.#live.add(live)
      socket.once('close', () => this.#live.delete(live))
      return await visit.run()
    }
  }
}

type Place = { machine: string; session: string; size: { columns: number; rows: number } }

function placeOf(url: string): Place | undefined {
  const [, machine = '', session = ''] = PATH.exec(url) ?? []
  const asked = new URLSearchParams(url.slice(url.indexOf('?')))
  const size = readSize(Number(asked.get('columns')), Number(asked.get('rows')))
  return machine !== '' && SESSION_NAME.test(session) && size ? { machine, session, size } : undefined
}

function refuse(socket: Duplex, status: string): void {
  socket.end(`HTTP/1.1 ${status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n`)
}

function say(socket: WebSocket, text: string): void {
  socket.send(JSON.stringify({ state: 'refused', text }))
  socket.close(CLOSED.done)
}
