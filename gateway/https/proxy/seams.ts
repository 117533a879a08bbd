import type { MachineWatch } from '../../activity/watch.ts'
import type { Site } from '../host.ts'
import type { Identity } from './fields.ts'
import type { Field } from './head.ts'

/** What the rest of the gateway decides for the proxy. Functions may answer at once: a promise costs the hot path. */
export type MaybePromise<T> = T | Promise<T>

/** A machine as the proxy needs it. */
export type Route = {
  machineId: number
  name: string
  /** where its ports are reached */
  address: string
  /** the port `https://NAME.domain/` shows */
  primaryPort: number
  /** false: `wake` is called first, once the request was authorised */
  awake: boolean
  /** what is carried is noted here, and connections live through the machine's sleep; without it they know of none */
  watch?: MachineWatch
}

/** One request at a machine's host, before it is let in. */
export type Visit = {
  route: Route
  /** the machine's port that was asked for */
  port: number
  /** host as compared: lower case, no port */
  host: string
  /** `https://host[:port]` as a browser would write this page's origin */
  origin: string
  method: string
  /** path and query, as sent */
  target: string
  fields: readonly Field[]
  remoteAddress: string
  /** set when a protocol change is asked for, e.g. `websocket` */
  upgrade: string | undefined
}

/** Ours to say instead of the machine: a redirect to sign in, a refusal. */
export type Answer = {
  status: number
  fields?: readonly (readonly [name: string, value: string])[]
  body?: { type: string; text: string }
}

/** A page for people, or JSON for programs, is made from this. Never a stack. */
export type Problem = {
  status: number
  /** for programs: `machine.not_found`, `port.refused` … */
  code: string
  title: string
  detail: string
  retryAfterS?: number
  /** the browser is told to forget the cookies of the whole domain */
  clearCookies?: boolean
  /** header fields that belong to the status */
  fields?: Answer['fields']
  /** what the machine listens on, when nothing listens on the port that was asked for */
  listeningPorts?: readonly number[]
  route?: Route
  /** for the log alone */
  cause?: unknown
}

export type Access =
  | {
      allow: true
      /** how it was let in: `cookie` brings the rules against other sites' pages with it */
      by: 'cookie' | 'credential' | 'public'
      identity?: Identity
      /** Authorization held the credential and is not passed on */
      stripAuthorization?: boolean
      /** what `HttpsServer.revoke` is asked about while the exchange lives */
      grant?: string
      /** Unix milliseconds: what let it in is over by itself then, and so is the exchange */
      endsAtMs?: number
    }
  | { allow: false; answer: Answer }
  | { allow: false; problem: Problem }

export type Seams = {
  /**
   * The machine a name or a custom domain leads to.
   * @returns undefined when there is none; the answer is then 404
   */
  resolve(site: Exclude<Site, { kind: 'control' }>): MaybePromise<Route | undefined>
  authorize(visit: Visit): MaybePromise<Access>
  /**
   * Wakes the visit's machine, or waits for its start: a person for moments, then told to come again, a program longer.
   * @returns where it is now
   * @throws WakeError
   */
  wake?(visit: Visit, signal: AbortSignal): Promise<Route>
  /** which ports the machine listens on, for the page that says so */
  listeningPorts?(route: Route): MaybePromise<readonly number[]>
  /** the page for a problem, as HTML, and the fields it is sent with; a plain one unless given */
  page?(problem: Problem): { text: string; fields: NonNullable<Answer['fields']> }
}

export type WakeErrorOptions = ErrorOptions & {
  /** for programs; `machine.not_awake` unless given */
  code?: string
  /** how the page is headed */
  title?: string
  /** when to come again; undefined where waiting does not help */
  retryAfterS?: number | undefined
}

/** The machine could not be woken; `message` is for the person. */
export class WakeError extends Error {
  override readonly name = 'WakeError'
  readonly code: string
  readonly title: string | undefined
  readonly retryAfterS: number | undefined

  constructor(message: string, { code = 'machine.not_awake', title, retryAfterS, ...options }: WakeErrorOptions = {}) {
    super(message, options)
    this.code = code
    this.title = title
    this.retryAfterS = retryAfterS
  }
}
