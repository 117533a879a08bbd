import { finished } from 'node:stream/promises'
import type { App } from '../../app.ts'
import type { Machine } from '../../machines.ts'
import { openOnMachine } from '../../ssh/pool/open-on-machine.ts'
import { HELD, NO_SESSION, resumeSetupCommand, startSetupCommand } from './hold.ts'

/**
 * Setup scripts are `waiting` until the machine answers, then `running` inside it under the session holder, then
 * `done` or `failed`. The gateway starts them and waits for their end, but does not carry them: a gateway that is
 * killed leaves the script running, and its successor (or another gateway) takes up the waiting here.
 *
 * - waiting -> running: by one UPDATE, which only one gateway wins; the winner starts the script.
 * - running -> done, failed: whoever waits for the holder's session writes its exit status down; several may.
 * - running, and the holder knows nothing of it: the winner died before it could start the script, or the machine booted
 *   anew while it ran, which nobody but the machine may have asked for. On the first boot a script of which no event says
 *   that the machine had it is started again, any other has failed: one that ran halfway is not run twice behind its
 *   author's back, and one that reboots its machine does not do so for ever.
 *
 * The script is forgotten with its end: it may hold passwords, and nobody needs it again.
 */
/**
 * Places for machines that are given their script or asked about it. A place is given back when the machine answers:
 * a script that never ends costs a channel, which is little beside the machine it runs in, and keeps nobody waiting.
 */
const PLACES = 16
/** Of the places, for one account: a guest can be made never to answer, and many of them must not take every place. */
const PLACES_PER_ACCOUNT = 4
/** How long a place is held by a machine that does not answer; then it is another's turn. */
const PLACE_LIMIT_MS = 60_000
/** Only the first line is read; a script's own output stays in the holder. */
const ANSWER_LIMIT = 64
const RETRY_MS = 5_000
/** The event that a machine has its script: from then on it may have run. */
const STARTED = 'machine.setup_started'

export type Setups = { close(): Promise<void> }

/** Runs the setup scripts of this installation until closed. Call it once in each gateway, when news are heard. */
export function startSetups(app: App): Setups {
  const closing = new AbortController()
  const active = new Map<number, Promise<void>>()
  /** Machine to account, of those that have a place. */
  const places = new Map<number, number>()
  /** Machines whose last try failed a moment ago. */
  const resting = new Set<number>()
  let passedOver = false

  const hasPlace = (accountId: number) =>
    places.size < PLACES && [...places.values()].filter((id) => id === accountId).length < PLACES_PER_ACCOUNT
  const look = async (machineId?: number) => {
    if (closing.signal.aborted) return
    // In no order: a machine that fails again and again must not be the first to be tried each time.
    const rows = await app.sql<{ id: number; account_id: number }[]>`
      select id, account_id from machines
      where setup_state in ('waiting', 'running') and desired_state = 'running' and observed_state = 'running'
        and observed_ready_at is not null ${machineId === undefined ? app.sql`` : app.sql`and id = ${machineId}`}
      order by random()`
    for (const row of rows) {
      if (closing.signal.aborted) return
      if (active.has(row.id) || resting.has(row.id)) continue
      if (hasPlace(row.account_id)) active.set(row.id, work(row))
      else passedOver = true
    }
  }
  const work = async ({ id, account_id: accountId }: { id: number; account_id: number }) => {
    const late = new AbortController()
    const limit = setTimeout(() => late.abort(new Error('the machine does not take its script')), PLACE_LIMIT_MS)
    places.set(id, accountId)
    const release = () => {
      clearTimeout(limit)
      if (!places.delete(id) || !passedOver) return
      passedOver = false
      lookSafely()
    }
    try {
      await carry(app, id, accountId, AbortSignal.any([closing.signal, late.signal]), release)
    } catch (error) {
      if (!closing.signal.aborted) app.log.warn({ err: error, machine: id }, 'a setup script is tried again')
      // The connection broke, or the machine stopped: what it is now says the next look.
      resting.add(id)
      setTimeout(() => {
        resting.delete(id)
        lookSafely(id)
      }, RETRY_MS).unref()
    } finally {
      active.delete(id)
      release()
    }
  }
  const lookSafely = (machineId?: number) => {
    look(machineId).catch((error: unknown) => app.log.warn({ err: error }, 'could not look for setup scripts'))
  }
  const stopNews = app.news.on('machines', (id) => lookSafely(Number(id)))
  const stopRescan = app.news.onRescan(() => lookSafely())
  lookSafely()
  return {
    async close() {
      stopNews()
      stopRescan()
      closing.abort(new Error('the gateway ends'))
      await Promise.allSettled(active.values())
    },
  }
}

/** @param onHeld called when the machine has the script, or knows of it */
async function carry(
  app: App,
  machineId: number,
  accountId: number,
  signal: AbortSignal,
  onHeld: () => void,
): Promise<void> {
  const seeker = { accountId }
  const [won] = await app.sql`
    update machines set setup_state = 'running' where id = ${machineId} and setup_state = 'waiting' returning id`
  const knock = 'its setup script'
  const machine = await app.machines.whenReady(machineId, seeker, { signal, knock, timeoutMs: PLACE_LIMIT_MS })
  if (machine.setupState !== 'running' || machine.setupScript === null) return
  const input = machine.setupScript
  const run = async () => {
    let noted: Promise<void> | undefined
    const onStart = () => {
      onHeld()
      noted ??= noteStart(app, machine)
      noted.catch(() => {})
    }
    try {
      return (await runOn(app, machine, startSetupCommand(), signal, input, onStart)).status
    } finally {
      await noted
    }
  }
  if (won) return await note(app, machine, await run())
  const { status, answer } = await runOn(app, machine, resumeSetupCommand(), signal, '', onHeld)
  if (answer.trim() !== NO_SESSION) return await note(app, machine, status)
  const mayHaveRun = machine.observedBoot > 1 || (await wasStarted(app, machine))
  await note(app, machine, mayHaveRun ? null : await run())
}

/** @returns the exit status, null when a signal ended it, and the beginning of what was printed */
async function runOn(
  app: App,
  machine: Machine,
  command: string,
  signal: AbortSignal,
  input: string,
  onHeld: () => void,
) {
  const target = app.machines.target(machine, { accountId: machine.accountId })
  const opening = openOnMachine(app.pool, target, { command })
  const gone = Promise.withResolvers<never>()
  gone.promise.catch(() => {})
  const stop = () => {
    // Also what is only opened after this.
    opening.then((remote) => remote.close()).catch(() => {})
    gone.reject(signal.reason)
  }
  signal.addEventListener('abort', stop, { once: true })
  if (signal.aborted) stop()
  try {
    const remote = await Promise.race([opening, gone.promise])
    let answer = ''
    remote.stdin.on('error', () => {})
    remote.stdin.end(input)
    remote.stdout.on('data', (chunk: Buffer) => {
      if (answer.length < ANSWER_LIMIT) answer += chunk.toString('utf8', 0, ANSWER_LIMIT)
      if (answer.startsWith(HELD)) onHeld()
    })
    remote.stderr.resume()
    const read = Promise.all([remote.exit, finished(remote.stdout, { writable: false }).catch(() => {})])
    read.catch(() => {})
    const [end] = await Promise.race([read, gone.promise])
    if (end.status === null && end.signal === null) throw new Error('the connection ended without an exit status')
    return { status: end.status, answer }
  } finally {
    signal.removeEventListener('abort', stop)
    opening.then((remote) => remote.close()).catch(() => {})
  }
}

async function noteStart({ sql }: App, { id, accountId, name }: Machine): Promise<void> {
  await sql`insert into events (account_id, machine_id, machine_name, actor, kind)
    values (${accountId}, ${id}, ${name}, 'gateway', ${STARTED})`
}

/** Index events_by_machine. */
async function wasStarted({ sql }: App, { id }: Machine): Promise<boolean> {
  return (await sql`select from events where machine_id = ${id} and kind = ${STARTED} limit 1`).length > 0
}

async function note(app: App, machine: Machine, status: number | null): Promise<void> {
  const state = status === 0 ? 'done' : 'failed'
  const rows = await app.sql`
    update machines set setup_state = ${state}, setup_exit_status = ${status}, setup_ended_at = now(),
      setup_script = null
    where id = ${machine.id} and setup_state = 'running' returning id`
  if (rows.length === 0) return
  await app.sql`
    insert into events (account_id, machine_id, machine_name, actor, kind, detail)
    values (${machine.accountId}, ${machine.id}, ${machine.name}, 'gateway', 'machine.setup_ended', ${app.sql.json({ status })})`
}
