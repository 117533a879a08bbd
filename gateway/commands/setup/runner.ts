import { finished } from 'node:stream/promises'
import type { App } from '../../app.ts'
import type { Machine } from '../../machines.ts'
import { openOnMachine } from '../../ssh/pool/open-on-machine.ts'
import { NO_SESSION, resumeSetupCommand, startSetupCommand } from './hold.ts'

/**
 * Setup scripts are `waiting` until the machine answers, then `running` inside it under the session holder, then
 * `done` or `failed`. The gateway starts them and waits for their end, but does not carry them: a gateway that is
 * killed leaves the script running, and its successor (or another gateway) takes up the waiting here.
 *
 * - waiting -> running: by one UPDATE, which only one gateway wins; the winner starts the script.
 * - running -> done, failed: whoever waits for the holder's session writes its exit status down; several may.
 * - running, and the holder knows nothing of it: the winner died before it could start the script, or the machine was
 *   restarted while it ran. On the machine's first boot it is started again, later it has failed: a script that ran
 *   halfway is not run twice behind its author's back.
 */
const PARALLEL = 16
/** Only the answer of `resumeSetupCommand` is read; a script's own output stays in the holder. */
const ANSWER_LIMIT = 64
const RETRY_MS = 5_000

export type Setups = { close(): Promise<void> }

/** Runs the setup scripts of this installation until closed. Call it once in each gateway, when news are heard. */
export function startSetups(app: App): Setups {
  const closing = new AbortController()
  const active = new Map<number, Promise<void>>()
  const look = async (machineId?: number) => {
    if (closing.signal.aborted) return
    const rows = await app.sql<{ id: number; account_id: number }[]>`
      select id, account_id from machines
      where setup_state in ('waiting', 'running') and desired_state = 'running' and observed_state = 'running'
        and observed_ready_at is not null ${machineId === undefined ? app.sql`` : app.sql`and id = ${machineId}`}
      order by id limit 1000`
    for (const row of rows) {
      if (active.has(row.id) || active.size >= PARALLEL) continue
      const work = carry(app, row.id, row.account_id, closing.signal)
        .catch((error: unknown) => {
          if (!closing.signal.aborted) app.log.warn({ err: error, machine: row.id }, 'a setup script is tried again')
          // The connection broke, or the machine stopped: what it is now says the next look.
          setTimeout(() => lookSafely(row.id), RETRY_MS).unref()
        })
        .finally(() => {
          active.delete(row.id)
          // Others may have waited for a place.
          if (active.size === PARALLEL - 1) lookSafely()
        })
      active.set(row.id, work)
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
      closing.abort()
      await Promise.allSettled(active.values())
    },
  }
}

async function carry(app: App, machineId: number, accountId: number, signal: AbortSignal): Promise<void> {
  const seeker = { accountId }
  const [won] = await app.sql`
    update machines set setup_state = 'running' where id = ${machineId} and setup_state = 'waiting' returning id`
  const machine = await app.machines.whenReady(machineId, seeker, { signal, timeoutMs: 60_000 })
  if (machine.setupState !== 'running' || machine.setupScript === null) return
  const run = async () => (await runOn(app, machine, startSetupCommand(), signal, machine.setupScript ?? '')).status
  if (won) return await note(app, machine, await run())
  const { status, answer } = await runOn(app, machine, resumeSetupCommand(), signal, '')
  if (answer.trim() !== NO_SESSION) return await note(app, machine, status)
  await note(app, machine, machine.observedBoot > 1 ? null : await run())
}

/** @returns the exit status, null when a signal ended it, and the beginning of what was printed */
async function runOn(app: App, machine: Machine, command: string, signal: AbortSignal, input: string) {
  const target = app.machines.target(machine, { accountId: machine.accountId })
  const remote = await openOnMachine(app.pool, target, { command })
  const gone = Promise.withResolvers<never>()
  gone.promise.catch(() => {})
  const stop = () => {
    remote.close()
    gone.reject(new Error('the gateway ends'))
  }
  signal.addEventListener('abort', stop, { once: true })
  if (signal.aborted) stop()
  try {
    let answer = ''
    remote.stdin.on('error', () => {})
    remote.stdin.end(input)
    remote.stdout.on('data', (chunk: Buffer) => {
      if (answer.length < ANSWER_LIMIT) answer += chunk.toString('utf8', 0, ANSWER_LIMIT)
    })
    remote.stderr.resume()
    const read = Promise.all([remote.exit, finished(remote.stdout, { writable: false }).catch(() => {})])
    const [end] = await Promise.race([read, gone.promise])
    if (end.status === null && end.signal === null) throw new Error('the connection ended without an exit status')
    return { status: end.status, answer }
  } finally {
    signal.removeEventListener('abort', stop)
    remote.close()
  }
}

async function note(app: App, machine: Machine, status: number | null): Promise<void> {
  const state = status === 0 ? 'done' : 'failed'
  const rows = await app.sql`
    update machines set setup_state = ${state}, setup_exit_status = ${status}, setup_ended_at = now()
    where id = ${machine.id} and setup_state = 'running' returning id`
  if (rows.length === 0) return
  await app.sql`
    insert into events (account_id, machine_id, machine_name, actor, kind, detail)
    values (${machine.accountId}, ${machine.id}, ${machine.name}, 'gateway', 'machine.setup_ended', ${app.sql.json({ status })})`
}
