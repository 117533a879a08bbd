import type { PendingQuery, Row } from 'postgres'
import type { Sql } from '../../migrations/connect.ts'
import type { App, Caller } from '../app.ts'
import { defineCommand } from './command.ts'
import { machineNames } from './complete.ts'
import { CommandError, usageError } from './error.ts'
import { noSuchMachine } from './machine-steps.ts'
import { harmless, table, wrap } from './text.ts'
import { parseInstant, sayBytes, shown } from './values.ts'
import { quoteWord } from './words.ts'

type Event = {
  id: number
  at: Date
  accountId: number | null
  machineId: number | null
  machine: string | null
  actor: string
  address: string | null
  via: 'ssh' | 'exec' | 'web' | null
  command: string | null
  kind: string
  detail: Record<string, unknown>
}

const SHOWN = 30
const MOST = 1000
/** What `--kind` takes of a family: `machine` is all that begins with `machine.`. */
const KIND = /^[a-z]+([._-][a-z]+)*$/
const FAMILIES = [
  ...['machine', 'share', 'domain', 'token', 'key', 'browser', 'account', 'billing', 'invoice'],
  ...['defaults', 'invitation', 'host'],
]
const ACTORS = ['you', 'operator', 'gateway', 'host', 'token']

export const audit = defineCommand({
  name: 'audit',
  group: 'you',
  summary: 'who did what, when, from where, by which command',
  description:
    'The newest at the bottom, times in UTC. With NAME only what concerns that machine, under any name it had, also when it is gone. What Berth does by itself is there too: gateway and host are who did it then. The operator sees all accounts.',
  flags: {
    last: { type: 'integer', short: 'n', min: 1, max: MOST, summary: `how many; ${SHOWN} unless given` },
    before: { type: 'integer', min: 1, value: 'ID', summary: 'older than that one, as the last line says' },
    kind: {
      type: 'string',
      repeated: true,
      value: 'KIND',
      summary: 'what was done: machine.created, or all of machine',
      complete: () => FAMILIES,
    },
    actor: {
      type: 'string',
      value: 'WHO',
      summary: 'you, operator, gateway, host, token, token:7, account:2 or an e-mail address',
      complete: () => ACTORS,
    },
    since: { type: 'string', value: '2h', summary: 'how long ago at most, or from a day or instant on, in UTC' },
    until: { type: 'string', value: '2026-11-01', summary: 'how long ago at least, or before that day or instant' },
    account: { type: 'string', value: 'ACCOUNT', summary: 'of one account, for the operator' },
  },
  arguments: { name: { label: 'NAME', optional: true, complete: machineNames } },
  examples: ['audit', 'audit demo -n 100', 'audit --kind share --since 7d', 'audit --actor token --since 2026-11-01'],
  async run({ app, caller }, { flags, args }) {
    const { sql } = app
    const now = new Date()
    const wanted = [
      ...(caller.isOwner ? [] : [sql`account_id = ${caller.accountId}`]),
      ...(flags.account === undefined ? [] : [sql`account_id = ${await accountOf(app, caller, flags.account)}`]),
      ...(args.name === undefined ? [] : [sql`machine_id = any(${await machineIds(app, caller, args.name)})`]),
      ...(flags.kind.length === 0
        ? []
        : [
            sql`(${anyOf(
              sql,
              flags.kind.map((kind) => kindIs(sql, kind)),
            )})`,
          ]),
      ...(flags.actor === undefined ? [] : [actorIs(sql, caller, flags.actor)]),
      ...(flags.since === undefined ? [] : [sql`at >= ${parseInstant(flags.since, '--since', now)}`]),
      ...(flags.until === undefined ? [] : [sql`at < ${parseInstant(flags.until, '--until', now)}`]),
      ...(flags.before === undefined ? [] : [sql`id < ${flags.before}`]),
    ]
    const count = flags.last ?? SHOWN
    // Indexes events_by_machine and events_by_account; the operator's are in the order of the primary key. One more
    // than is shown tells whether there are older ones.
    const newest = await sql<Event[]>`
      select id, at, account_id as "accountId", machine_id as "machineId", machine_name as machine, actor, address, via,
        command, kind, detail
      from events where ${allOf(sql, wanted)}
      order by id desc limit ${count + 1}`
    const events = newest.slice(0, count).toReversed()
    const older = newest.length > count ? (events[0]?.id ?? null) : null
    const who = await names(app, caller, events)
    return {
      json: { events: events.map((event) => eventDocument(event, who, caller)), older },
      text: (view) => {
        if (events.length === 0)
          return wanted.length > (caller.isOwner ? 0 : 1) ? 'nothing like that\n' : 'nothing yet\n'
        const body = table(
          events,
          [
            { title: 'when', value: (event) => event.at.toISOString().slice(0, 19).replace('T', ' ') },
            { title: 'what', value: (event) => event.kind },
            { title: 'machine', value: (event) => event.machine ?? '', flexible: true },
            { title: 'who', value: (event) => who(event).name, flexible: true, optional: 1 },
            { title: 'from', value: (event) => sayFrom(event, who(event).isHidden), optional: 3 },
            { title: 'by', value: (event) => event.command ?? '', flexible: true, optional: 2 },
            { title: 'detail', value: (event) => sayDetail(event.detail), flexible: true, optional: 4 },
          ],
          view,
        )
        if (older === null) return body
        // The same question, so that what was asked for is asked for again.
        const given = (['last', 'actor', 'since', 'until', 'account'] as const).flatMap((name) =>
          flags[name] === undefined ? [] : [`--${name}`, String(flags[name])],
        )
        const words = [args.name ?? [], flags.kind.flatMap((kind) => ['--kind', kind]), given].flat()
        const line = `older ones: ${['audit', ...words, '--before', String(older)].map(quoteWord).join(' ')}`
        const lines = view.terminal ? wrap(line, view.columns) : [line]
        return `${body}${lines.map(view.style.dim).join('\n')}\n`
      },
    }
  },
})

type Condition = PendingQuery<Row[]>
const anyOf = (sql: Sql, conditions: Condition[]) => conditions.reduce((all, one) => sql`${all} or ${one}`)
const allOf = (sql: Sql, conditions: Condition[]) => conditions.reduce((all, one) => sql`${all} and ${one}`, sql`true`)

function kindIs(sql: Sql, typed: string): Condition {
  if (!KIND.test(typed)) {
    throw usageError(`--kind wants what audit calls it, such as machine.created or machine, not ${shown(typed)}`)
  }
  // The pattern has no sign that LIKE knows but _, which stands for itself often enough.
  return sql`kind = ${typed} or kind like ${`${typed.replaceAll('_', '\\_')}.%`}`
}

function actorIs(sql: Sql, caller: Caller, typed: string): Condition {
  if (typed === 'you') return sql`actor = ${`account:${caller.accountId}`}`
  if (typed === 'gateway') return sql`actor = 'gateway'`
  if (typed === 'host' || typed === 'token' || typed === 'reader') return sql`actor like ${`${typed}:%`}`
  if (typed === 'visitor') return sql`actor = 'visitor'`
  if (typed === 'operator')
    return sql`actor in (select 'account:' || id from accounts where is_owner
      union all select 'token:' || t.id from tokens t join accounts a on a.id = t.account_id where a.is_owner)`
  if (/^(account|token):\d{1,9}$/.test(typed) || /^host:[\w.-]{1,100}$/.test(typed)) return sql`actor = ${typed}`
  if (typed.includes('@')) {
    // Whoever has no part in what the caller sees is found as little as who is not there.
    const email = typed.replace(/^reader:/, '').toLowerCase()
    return sql`(actor = ${`reader:${email}`} or actor in (select 'account:' || id from accounts where email = ${email}))`
  }
  throw usageError(
    `--actor wants you, operator, gateway, host, token, token:7, account:2 or an e-mail address, not ${shown(typed)}`,
  )
}

/** @throws CommandError 'account.not_found' (3), for whoever is not the operator of another account too */
async function accountOf({ sql }: App, caller: Caller, typed: string): Promise<number> {
  const [found] = await sql<{ id: number }[]>`
    select id from accounts where (id::text = ${typed} or email = ${typed.toLowerCase()})
      and (${caller.isOwner} or id = ${caller.accountId})`
  if (found) return found.id
  throw new CommandError('account.not_found', 3, `no account ${shown(typed)}`, {
    wayOn: caller.isOwner ? 'account ls lists them' : 'without --account it is the record of yours',
  })
}

/**
 * Whom a name means: the machine that has it, else those that had it.
 * @throws CommandError 'machine.not_found' (3)
 */
async function machineIds(app: App, caller: Caller, name: string): Promise<number[]> {
  const { sql } = app
  const own = caller.isOwner ? sql`` : sql`and m.account_id = ${caller.accountId}`
  const [named] = await sql<{ id: number }[]>`
    select m.id from machine_names n join machines m on m.id = n.machine_id where n.name = ${name} ${own}`
  if (named) return [named.id]
  // One that got another name has this one in its record alone. Index events_by_old_name.
  const was = await sql<{ id: number }[]>`
    select m.id from machines m where m.name = ${name} ${own}
    union select m.id from events e join machines m on m.id = e.machine_id
      where e.kind = 'machine.renamed' and e.detail ->> 'was' = ${name} ${own}
    order by id desc limit 100`
  if (was.length === 0) throw await noSuchMachine(app, caller, name)
  return was.map(({ id }) => id)
}

type Who = {
  name: string
  /** where from is not the caller's to know: the operator's address */
  isHidden: boolean
}

/** Actors as people know them. */
async function names({ sql }: App, caller: Caller, events: readonly Event[]): Promise<(event: Event) => Who> {
  const ids = (kind: string) => [
    ...new Set(events.flatMap(({ actor }) => (actor.startsWith(`${kind}:`) ? [Number(actor.split(':')[1])] : []))),
  ]
  const accounts = await sql<{ id: number; email: string | null; isOwner: boolean }[]>`
    select id, email, is_owner as "isOwner" from accounts where id = any(${ids('account')})`
  // One that was taken back is known by the record of its making. Indexes tokens_pkey and events_by_account.
  const tokens = await sql<{ id: number; label: string }[]>`
    select id, label from tokens where id = any(${ids('token')}) and (account_id = ${caller.accountId} or ${caller.isOwner})
    union all
    select (detail ->> 'id')::integer, coalesce(detail ->> 'label', '') from events
      where account_id = ${caller.accountId} and kind = 'token.created' and (detail ->> 'id')::integer = any(${ids('token')})`
  const byAccount = new Map(accounts.map((one) => [`account:${one.id}`, one]))
  const byToken = new Map(tokens.map(({ id, label }) => [`token:${id}`, label]))
  return ({ actor }) => {
    if (actor === `account:${caller.accountId}`) return { name: 'you', isHidden: false }
    const account = byAccount.get(actor)
    if (account?.isOwner && !caller.isOwner) return { name: 'operator', isHidden: true }
    if (account) return { name: harmless(account.email ?? actor), isHidden: false }
    const label = byToken.get(actor)
    // Another's, such as the operator's: what it is called and where it was used from is not the caller's to know.
    if (label === undefined && actor.startsWith('token:') && !caller.isOwner) return { name: actor, isHidden: true }
    return { name: label ? `${actor} ${harmless(label)}` : harmless(actor.replace(/^reader:/, '')), isHidden: false }
  }
}

function eventDocument(event: Event, who: (event: Event) => Who, caller: Caller) {
  const { id, at, kind, machine, machineId, actor, address, via, command, detail } = event
  const { name, isHidden } = who(event)
  return {
    ...{ id, at: at.toISOString(), kind, machine_name: machine, machine_id: machineId },
    ...{ actor, who: name, address: isHidden ? null : address, via, command: isHidden ? null : command, detail },
    ...(caller.isOwner ? { account_id: event.accountId } : {}),
  }
}

function sayFrom({ address, via }: Event, isHidden: boolean): string {
  return [isHidden ? '' : (address ?? ''), via ?? ''].filter(Boolean).join(' ')
}

function sayDetail(detail: Record<string, unknown>): string {
  return harmless(
    Object.entries(detail)
      .filter(([, value]) => value !== '')
      .map(([key, value]) => {
        if (key.endsWith('Bytes') && typeof value === 'number')
          return `${key.slice(0, -'Bytes'.length)} ${sayBytes(value)}`
        return `${key} ${typeof value === 'string' ? value : JSON.stringify(value)}`
      })
      .join(', '),
  ).replaceAll('\n', ' ')
}
