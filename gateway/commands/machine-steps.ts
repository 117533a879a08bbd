import type { Sql } from '../../migrations/connect.ts'
import { noteEvent } from '../accounts/events.ts'
import type { App, Caller } from '../app.ts'
import { type Machine, stageOf } from '../machines.ts'
import type { Context, Result } from './command.ts'
import { CommandError, usageError, wayOnOf } from './error.ts'
import { watchImage } from './image-progress.ts'
import { sayList, shown } from './values.ts'

/** A start under emulation on a busy server; nobody waits longer. */
const READY_TIMEOUT_MS = 600_000
/** An orderly stop has 20 s in the guest before it is ended. */
const SETTLE_TIMEOUT_MS = 180_000
const RECHECK_MS = 5_000
/** Whoever takes so long to sign in is busy; nobody waits for that longer than the other. */
const BUSY_MS = 5_000
const BUSY_TIMEOUT_MS = 180_000
/** The machine said its sshd listens; a first knock that fails all the same is repeated. */
const WARM_ATTEMPTS = 5

/** What a transaction and the pool have in common. */
export type Tx = Pick<Sql, 'unsafe'>

/**
 * The machine of that name among those the caller can reach.
 * @throws CommandError 'machine.not_found' (3) that names those there are
 */
export async function reachable(app: App, caller: Caller, name: string): Promise<Machine> {
  const machine = await app.machines.find(name, caller)
  if (machine) return machine
  throw await noSuchMachine(app, caller, name)
}

export async function noSuchMachine(app: App, caller: Caller, name: string): Promise<CommandError> {
  const names = (await app.machines.list(caller)).map((machine) => machine.name)
  return new CommandError('machine.not_found', 3, `no machine called ${shown(name)}`, {
    wayOn: names.length ? `machines you can reach: ${sayList(names)}` : 'you have no machine yet; to make one: new',
    machineName: name,
  })
}

/**
 * Appends to the record that `audit` shows.
 * @param accountId whose record, where it is not the caller's own: the operator changes others' accounts
 */
export async function recordEvent(
  sql: Tx,
  caller: Caller,
  kind: string,
  machine: { id: number; name: string } | null,
  detail: Record<string, unknown> = {},
  accountId = caller.accountId,
): Promise<void> {
  const { scope, address, command, sessionId } = caller
  const via = sessionId === undefined ? caller.via : 'web'
  const actor = scope?.tokenId === undefined ? `account:${caller.accountId}` : `token:${scope.tokenId}`
  await noteEvent(sql, { accountId, actor, kind, machine, address, via, command: command ?? null, detail })
}

/**
 * Waits until SSH to the machine works: the stages are shown, and the gateway's own sign-in at its sshd is the proof,
 * which also leaves a connection in the pool.
 * @throws MachineNotReadyError, MachineUnreachableError, CommandError 'interrupted'
 */
export async function untilSshWorks(context: Context, machineId: number): Promise<Machine> {
  const { app, caller, progress, signal } = context
  using _watch = watchServer(context, machineId)
  using image = watchImage(context, machineId)
  const machine = await app.machines.whenReady(machineId, caller, {
    signal,
    knock: 'a command of the lobby',
    timeoutMs: READY_TIMEOUT_MS,
    onStage: (seen) => {
      progress.show(`${seen.name}: ${stageOf(seen)}`)
      image.show(seen.observedStage === 'image' ? seen.name : undefined)
    },
  })
  progress.show(`${machine.name}: signing in`)
  const busyUntilMs = performance.now() + BUSY_TIMEOUT_MS
  for (let attempt = 1; ; attempt++) {
    const triedAtMs = performance.now()
    try {
      await app.pool.warm(app.machines.target(machine, caller))
      return machine
    } catch (error) {
      signal.throwIfAborted()
      const nowMs = performance.now()
      // Its sshd listens, and takes long among many that come up at once: that is no failure of its own.
      const isBusy = nowMs - triedAtMs >= BUSY_MS && nowMs < busyUntilMs
      if (attempt >= WARM_ATTEMPTS && !isBusy) throw error
      await new Promise((resolve) => setTimeout(resolve, attempt * 200))
    }
  }
}

/**
 * A wait for whoever cannot wait long (`patienceMs`): what was asked for goes on without them.
 * @returns undefined when they could wait no longer
 */
export async function whilePatient<T>(
  context: Context,
  step: (context: Context) => Promise<T>,
): Promise<T | undefined> {
  const { patienceMs } = context.io
  if (patienceMs === undefined) return await step(context)
  const late = new AbortController()
  const { promise: isLate, resolve } = Promise.withResolvers<undefined>()
  const timer = setTimeout(() => {
    resolve(undefined)
    late.abort()
  }, patienceMs)
  const waited = step({ ...context, signal: AbortSignal.any([context.signal, late.signal]) })
  // When it is late nobody hears of its end.
  waited.catch(() => {})
  try {
    return await Promise.race([waited, isLate])
  } finally {
    clearTimeout(timer)
  }
}

/** A person who waits is told when the server itself is silent, instead of watching seconds go by. */
function watchServer({ app, progress }: Context, machineId: number) {
  const timer = setInterval(async () => {
    const rows = await app.sql<{ name: string; silent: number }[]>`
      select hosts.name, extract(epoch from now() - lease_expires_at)::float as silent from hosts
      join machines on machines.host_id = hosts.id where machines.id = ${machineId} and lease_expires_at < now()`.catch(
      () => [],
    )
    const [row] = rows
    if (row) progress.show(`waiting for server ${row.name}, silent for ${Math.round(row.silent)} s`)
  }, RECHECK_MS)
  timer.unref()
  return { [Symbol.dispose]: () => clearInterval(timer) }
}

/**
 * Waits until what was asked for is what is.
 * @param settled looks at the machine, undefined once it is gone; may throw to give up with a reason
 * @throws CommandError 'machine.timeout' (1) after `timeoutMs`, three minutes unless given
 */
export async function untilSettled(
  context: Context,
  machine: { id: number; name: string },
  settled: (machine: Machine | undefined) => boolean,
  timeoutMs = SETTLE_TIMEOUT_MS,
): Promise<void> {
  const { app, caller } = context
  await untilNews(context, machine, async () => settled(await app.machines.byId(machine.id, caller)), timeoutMs)
}

/**
 * Looks at something of a machine now and whenever there is news of it, until that is as it should be.
 * @throws CommandError 'machine.timeout' (1) after `timeoutMs`
 */
export async function untilNews(
  { app, signal }: Context,
  machine: { id: number; name: string },
  isOver: () => Promise<boolean>,
  timeoutMs: number,
): Promise<void> {
  const deadline = performance.now() + timeoutMs
  for (;;) {
    // Listening begins before the row is read, or a change between the two would be missed.
    const { promise, resolve } = Promise.withResolvers<void>()
    const stops = [
      app.news.on('machines', (id) => id === String(machine.id) && resolve()),
      app.news.onRescan(() => resolve()),
    ]
    const timer = setTimeout(resolve, RECHECK_MS)
    const onAbort = () => resolve()
    signal.addEventListener('abort', onAbort, { once: true })
    try {
      signal.throwIfAborted()
      if (await isOver()) return
      if (performance.now() > deadline) {
        throw new CommandError('machine.timeout', 1, `${machine.name} is taking long; it goes on without you`, {
          wayOn: `to see how far it is: ls ${machine.name}`,
        })
      }
      await promise
    } finally {
      clearTimeout(timer)
      signal.removeEventListener('abort', onAbort)
      for (const stop of stops) stop()
    }
  }
}

/** Each is looked for in the database, whose answers everybody else waits for. */
const MACHINES_A_LINE = 500

/**
 * A machine named twice is meant once.
 * @throws CommandError (usage) for more than one line may name
 */
export function namedOnce(names: readonly string[]): string[] {
  const unique = [...new Set(names)]
  if (unique.length <= MACHINES_A_LINE) return unique
  throw usageError(
    `one line may name ${MACHINES_A_LINE} machines, and this one names ${unique.length}`,
    'name the others in another line',
  )
}

type Failed = { name: string; error: CommandError }
type Each<T> = { done: { name: string; value: T }[]; failed: Failed[] }

/** Does one thing to each of several machines, at the same time; those that fail do not stop the others. */
export async function eachMachine<T>(
  context: Context,
  names: readonly string[],
  step: (machine: Machine) => Promise<T>,
): Promise<Each<T>> {
  return await eachName(context, names, async (name) => await step(await reachable(context.app, context.caller, name)))
}

/** The same for names that need not be those of machines there are. One given twice is done once. */
export async function eachName<T>(
  context: Context,
  names: readonly string[],
  step: (name: string) => Promise<T>,
): Promise<Each<T>> {
  const unique = namedOnce(names)
  const done: { name: string; value: T }[] = []
  const failed: Failed[] = []
  await Promise.all(
    unique.map(async (name) => {
      try {
        done.push({ name, value: await step(name) })
      } catch (error) {
        failed.push({ name, error: context.asCommandError(error) })
      }
    }),
  )
  const byOrder = (a: { name: string }, b: { name: string }) => unique.indexOf(a.name) - unique.indexOf(b.name)
  return { done: done.sort(byOrder), failed: failed.sort(byOrder) }
}

/**
 * What became of several: the document of the only one, else all that went well and, by name, why others did not.
 * @throws CommandError of the only one
 */
export function tellEach(vms: readonly unknown[], failed: readonly Failed[]): Pick<Result, 'json' | 'failures'> {
  const [first] = failed
  if (first && vms.length === 0 && failed.length === 1) throw first.error
  const errors = Object.fromEntries(failed.map(({ name, error }) => [name, error.message]))
  const document = { vms, errors }
  return {
    // Where nothing was done it is an error document as well.
    json: vms.length === 1 && failed.length === 0 ? vms[0] : { ...document, ...(vms.length ? {} : errorOf(first)) },
    failures: failed.map(({ error }) => error),
  }
}

function errorOf(failed: Failed | undefined): Record<string, unknown> {
  return failed ? { error: failed.error.message, code: failed.error.code, ...wayOnOf(failed.error) } : {}
}
