/**
 * `GET /events` on the control host: what a signed-in browser is told by itself, as server-sent events.
 *
 *     machines  {full?, set: {NUMBER: as ls --json has it}, gone: [NUMBER]}   at first all, then what changed
 *     costs     {NUMBER: millionths of a dollar}                              this month, looked at each minute
 *     news      {what: keys|shares|audit|notices}                             worth another look
 *               {what: day}                                                   another one begins, in UTC
 *               {what: hosts|accounts|rates}                                  the same, for operators alone
 *     stale     {since}                                                       the database is not heard
 *     alive     {}                                                            each 15 s, and when it is heard again
 *     end       {}                                                            this browser was signed out
 *
 * `GET /events?once` answers with what a stream would begin with, and ends: a page asks for it along with its script, and
 * listens from there on (`?after=ID`).
 *
 *     {id, set: {NUMBER: as ls --json has it}, costs?: {NUMBER: millionths of a dollar}}
 *
 * An account's machines are read once for all of its browsers, by that account's own right, and again when Postgres says
 * that one of them changed: another's are nowhere on the way. A browser that comes back says which event it heard last
 * (`Last-Event-ID`, or `?after=`) and is told what is newer.
 */
import type { IncomingMessage, ServerResponse } from 'node:http'
import { findSession } from '../../accounts/web-sessions.ts'
import type { App } from '../../app.ts'
import { type Day, dayOf } from '../../billing/calendar.ts'
import { SELLER } from '../../billing/parties.ts'
import { answerWithin, faultOf } from '../../fault.ts'
import { COOKIE, cookieOf } from '../access/fields.ts'
import { askerOf, ownOrigin } from '../access/foreign.ts'
import { sendDocument } from '../exec/answer.ts'
import { LiveRuns } from '../exec/live.ts'
import { EventStream, TOPICS, type Topic } from './event-stream.ts'
import { Feed } from './feed.ts'
import { LeaseWatch } from './lease-watch.ts'
import { readCosts, readDocuments, readSomeDocuments } from './machine-documents.ts'
import { Snapshot } from './snapshot.ts'

const PATH = '/events'

export type EventLimits = {
  /** streams of one browser, of one account and of all together */
  perSession: number
  perAccount: number
  all: number
  beatMs: number
  costsMs: number
  /** between two news of servers, two of accounts, and two of rates */
  operatorsMs: number
  /** how long a feed is kept that nobody hears, for those who come back */
  idleMs: number
}

const EVENT_LIMITS: EventLimits = {
  perSession: 16,
  perAccount: 64,
  all: 2_000,
  beatMs: 15_000,
  costsMs: 60_000,
  operatorsMs: 2_000,
  idleMs: 120_000,
}

/** News come in bursts: a start is a handful of changes. */
const GATHER_MS = 20
/** After a look that failed. */
const AGAIN_MS = 1_000
const LOOK_UP_MS = 10_000
const RETRY_S = 5
const OPERATORS: ReadonlySet<Topic> = new Set(['hosts', 'accounts', 'rates'])

type Channel = {
  accountId: number
  isOwner: boolean
  /** addresses that its browsers' people read */
  emails: Set<string>
  feed: Feed
  streams: Map<EventStream | Snapshot, number>
  /** machines that changed and were not read yet; undefined: all may have */
  changed: Set<number> | undefined
  timer: NodeJS.Timeout | undefined
  isReading: boolean
  costs: string
  costsTimer: NodeJS.Timeout | undefined
  /** since when the database is not heard */
  staleSince: Date | undefined
  readAt: Date
  idleTimer: NodeJS.Timeout | undefined
}

export class Events {
  readonly #app: App
  readonly #limits: EventLimits
  readonly #live: LiveRuns
  readonly #channels = new Map<number, Channel>()
  readonly #perSession = new Map<number, number>()
  readonly #stop: (() => void)[]
  readonly #beat: NodeJS.Timeout
  readonly #leases: LeaseWatch
  /** the topics of operators that were told just now, and whether there is more to tell of each */
  readonly #pauses = new Map<Topic, { isNews: boolean; timer: NodeJS.Timeout }>()
  readonly #now: () => Date
  /** in UTC */
  #day: Day
  #count = 0
  #isClosed = false

  /** @param now what day it is, by the clock that commands go by */
  constructor(app: App, limits: Partial<EventLimits> = {}, now = () => new Date()) {
    this.#app = app
    this.#now = now
    this.#day = dayOf(now())
    this.#limits = { ...EVENT_LIMITS, ...limits }
    this.#live = new LiveRuns(app)
    this.#leases = new LeaseWatch(app, () => this.#tellOperators('hosts'))
    const { news } = app
    this.#stop = [
      news.on('machines', (id) => void this.#machineChanged(Number(id))),
      news.on('keys', (accountId) => {
        this.#tell('keys', (channel) => channel.accountId === Number(accountId))
        this.#tellOperators('accounts')
      }),
      news.on('shares', (email) => this.#tell('shares', ({ emails }) => emails.has(email))),
      news.on('notices', (id) => this.#tell('notices', ({ accountId }) => accountId === Number(id))),
      news.on('hosts', () => this.#tellOperators('hosts')),
      news.on('accounts', () => this.#tellOperators('accounts')),
      news.on('rates', () => this.#tellOperators('rates')),
      news.on('settings', (key) => key === SELLER && this.#tellOperators('rates')),
      news.on('events', (id) => this.#tell('audit', ({ accountId, isOwner }) => isOwner || accountId === Number(id))),
      news.onRescan((isAgain) => {
        for (const channel of this.#channels.values()) this.#readAll(channel)
        if (isAgain)
          for (const topic of TOPICS) this.#tell(topic, (channel) => channel.isOwner || !OPERATORS.has(topic))
      }),
    ]
    this.#beat = setInterval(() => {
      for (const { streams } of this.#channels.values()) for (const stream of streams.keys()) stream.beat()
      this.#lookAtDay()
    }, this.#limits.beatMs)
    this.#beat.unref()
  }

  /** @returns false when the request is for something else */
  answer(request: IncomingMessage, response: ServerResponse): boolean {
    const { pathname, searchParams } = new URL(request.url ?? '/', 'https://control')
    if (pathname !== PATH) return false
    this.#serve(request, response, searchParams).catch((error: unknown) => {
      const { isAway, message } = faultOf(error, this.#app.log, 'a stream of events failed')
      if (response.headersSent) response.destroy()
      else refuse(response, isAway ? 503 : 500, isAway ? 'database.away' : 'gateway.failed', message)
    })
    return true
  }

  /** Accounts whose machines are followed, for those who hear them now or may come back. */
  get followed(): number {
    return this.#channels.size
  }

  /** Ends all streams: their browsers come back to whoever serves then. */
  close(): void {
    this.#isClosed = true
    clearInterval(this.#beat)
    for (const stop of this.#stop) stop()
    this.#live.close()
    this.#leases.close()
    for (const { timer } of this.#pauses.values()) clearTimeout(timer)
    for (const channel of this.#channels.values()) {
      for (const stream of channel.streams.keys()) stream.end(false)
      forget(channel)
    }
    this.#channels.clear()
  }

  async #serve(request: IncomingMessage, response: ServerResponse, asked: URLSearchParams): Promise<void> {
    if (request.method !== 'GET') return refuse(response, 405, 'request.method', 'GET this', { Allow: 'GET' })
    // Another site's page could not read the stream, but hold places open.
    const asker = askerOf(request.method, request.headers, ownOrigin(request.headers))
    if (asker !== 'own' && asker !== 'unsaid') {
      return refuse(response, 403, 'request.foreign_page', 'Berth’s own pages alone are told')
    }
    const cookie = cookieOf([{ name: 'cookie', value: request.headers.cookie ?? '' }], COOKIE)
    const found = cookie === undefined ? undefined : this.#live.stable(() => findSession(this.#app.sql, cookie))
    const session = found && (await answerWithin(LOOK_UP_MS, found))
    if (!session || session.accountId === null) {
      return refuse(response, 401, 'auth.required', 'sign in first')
    }
    if (this.#isClosed || response.destroyed) return response.destroy() as unknown as undefined
    const { id, accountId, isOwner, emails } = session
    const { perSession, perAccount, all } = this.#limits
    const ofSession = this.#perSession.get(id) ?? 0
    const ofAccount = this.#channels.get(accountId)?.streams.size ?? 0
    if (ofSession >= perSession || ofAccount >= perAccount || this.#count >= all) {
      return refuse(response, 429, 'request.too_many', 'too many pages are open; close one', {
        'Retry-After': String(RETRY_S),
      })
    }
    // Not before it is let in: only a stream that ends gives a channel back.
    const channel = this.#channelOf(accountId, isOwner)
    for (const email of emails) channel.emails.add(email)
    const lastId = request.headers['last-event-id']
    const after = typeof lastId === 'string' && lastId !== '' ? lastId : (asked.get('after') ?? undefined)
    const stream = asked.has('once')
      ? new Snapshot(response, channel.feed, String(request.headers['accept-encoding'] ?? ''))
      : new EventStream(response, channel.feed, channel.feed.positionOf(after))
    this.#count++
    this.#perSession.set(id, ofSession + 1)
    channel.streams.set(stream, id)
    const forgetGrant = this.#live.add({ grant: `session:${id}`, revoke: () => stream.end(true) })
    response.once('close', () => {
      forgetGrant()
      this.#count--
      const left = (this.#perSession.get(id) ?? 1) - 1
      if (left > 0) this.#perSession.set(id, left)
      else this.#perSession.delete(id)
      channel.streams.delete(stream)
      this.#rest(channel)
      this.#watchLeases()
    })
    stream.staleSince = channel.staleSince
    if (channel.costs !== '') stream.costs = channel.costs
    if (channel.feed.isKnown) stream.tell()
    else this.#readAll(channel)
    this.#watchLeases()
  }

  #channelOf(accountId: number, isOwner: boolean): Channel {
    const known = this.#channels.get(accountId)
    if (known) {
      clearTimeout(known.idleTimer)
      known.idleTimer = undefined
      known.isOwner = isOwner
      return known
    }
    const channel: Channel = {
      ...{
        accountId,
        isOwner,
        emails: new Set(),
        feed: new Feed(),
        streams: new Map(),
        changed: undefined,
        timer: undefined,
      },
      ...{ isReading: false, costs: '', costsTimer: undefined, staleSince: undefined, readAt: new Date() },
      idleTimer: undefined,
    }
    this.#channels.set(accountId, channel)
    return channel
  }

  /** Nobody hears it: it is kept for a while, as it is followed on. */
  #rest(channel: Channel): void {
    if (channel.streams.size > 0 || this.#isClosed) return
    channel.idleTimer = setTimeout(() => {
      forget(channel)
      this.#channels.delete(channel.accountId)
    }, this.#limits.idleMs)
    channel.idleTimer.unref()
  }

  /** Whose a machine is, its row says: of one that is in no feed yet, and of one that changed hands. */
  async #machineChanged(id: number): Promise<void> {
    if (this.#channels.size === 0) return
    for (const channel of this.#channels.values()) if (channel.feed.has(id)) this.#read(channel, id)
    try {
      const rows = await this.#app.sql<{ accountId: number }[]>`
        select account_id as "accountId" from machines where id = ${id}`
      const channel = this.#channels.get(rows[0]?.accountId ?? -1)
      if (channel && !channel.feed.has(id)) this.#read(channel, id)
    } catch {
      for (const channel of this.#channels.values()) this.#readAll(channel)
    }
  }

  #tell(topic: Topic, isFor: (channel: Channel) => boolean): void {
    for (const channel of this.#channels.values()) {
      if (isFor(channel)) for (const stream of channel.streams.keys()) stream.news(topic)
    }
  }

  /**
   * Plans and rates begin at midnight, and months do, with nothing written then. A timer for that moment would be wrong
   * where the clock is set, or the server was suspended.
   */
  #lookAtDay(): void {
    const day = dayOf(this.#now())
    if (day === this.#day) return
    this.#day = day
    this.#tell('day', () => true)
  }

  /**
   * Servers and accounts are sums over machines: where many of those come and go, each is news of both. The first is told
   * at once, and what comes soon after it once, all together.
   */
  #tellOperators(topic: Topic): void {
    const pause = this.#pauses.get(topic)
    if (pause) {
      pause.isNews = true
      return
    }
    this.#tell(topic, ({ isOwner }) => isOwner)
    if (topic === 'hosts') this.#watchLeases()
    const timer = setTimeout(() => {
      const isNews = this.#pauses.get(topic)?.isNews
      this.#pauses.delete(topic)
      if (isNews) this.#tellOperators(topic)
    }, this.#limits.operatorsMs)
    timer.unref()
    this.#pauses.set(topic, { isNews: false, timer })
  }

  #watchLeases(): void {
    const isHeard = [...this.#channels.values()].some(({ isOwner, streams }) => isOwner && streams.size > 0)
    if (isHeard && !this.#isClosed) this.#leases.watch()
    else this.#leases.rest()
  }

  #read(channel: Channel, id: number): void {
    channel.changed?.add(id)
    this.#readSoon(channel, GATHER_MS)
  }

  #readAll(channel: Channel): void {
    channel.changed = undefined
    this.#readSoon(channel, 0)
  }

  #readSoon(channel: Channel, ms: number): void {
    if (this.#isClosed || channel.isReading) return
    channel.timer ??= setTimeout(() => void this.#readNow(channel), ms)
  }

  async #readNow(channel: Channel): Promise<void> {
    channel.timer = undefined
    channel.isReading = true
    const { accountId, feed, streams } = channel
    const ids = feed.isKnown ? channel.changed : undefined
    channel.changed = new Set()
    try {
      const at = new Date()
      if (ids === undefined) feed.replace(await answerWithin(LOOK_UP_MS, readDocuments(this.#app, accountId)))
      else {
        const documents = await answerWithin(LOOK_UP_MS, readSomeDocuments(this.#app, accountId, [...ids]))
        feed.update(
          documents,
          [...ids].filter((id) => !documents.has(id)),
        )
      }
      channel.readAt = at
      this.#setStale(channel, undefined)
      for (const stream of streams.keys()) stream.tell()
      channel.isReading = false
      if (channel.changed === undefined || channel.changed.size > 0) this.#readSoon(channel, GATHER_MS)
      if (channel.costsTimer === undefined) void this.#readCosts(channel)
    } catch (error) {
      this.#app.log.warn({ err: error, account: accountId }, 'machines could not be read for their browsers')
      channel.isReading = false
      channel.changed = undefined
      this.#setStale(channel, channel.staleSince ?? channel.readAt)
      this.#readSoon(channel, AGAIN_MS)
    }
  }

  #setStale(channel: Channel, since: Date | undefined): void {
    channel.staleSince = since
    for (const stream of channel.streams.keys()) stream.staleSince = since
  }

  async #readCosts(channel: Channel): Promise<void> {
    channel.costsTimer = setTimeout(() => {
      if (channel.streams.size > 0) void this.#readCosts(channel)
      else channel.costsTimer = undefined
    }, this.#limits.costsMs)
    channel.costsTimer.unref()
    try {
      channel.costs = await readCosts(this.#app, channel.accountId)
      for (const stream of channel.streams.keys()) stream.costs = channel.costs
    } catch (error) {
      // A price that cannot be computed keeps nobody from their machines.
      this.#app.log.warn({ err: error, account: channel.accountId }, 'what machines cost could not be computed')
    }
  }
}

function forget({ timer, costsTimer, idleTimer }: Channel): void {
  for (const one of [timer, costsTimer, idleTimer]) clearTimeout(one)
}

function refuse(
  response: ServerResponse,
  status: number,
  code: string,
  error: string,
  fields: Record<string, string> = {},
): void {
  sendDocument(response, status, { error, code }, fields)
}
