import { and, eq, gt, inArray, ne, sql as raw } from 'drizzle-orm'
import type { Database } from '../migrations/connect.ts'
import { accounts, addresses, cannotRestore, hosts, machineNames, machines } from '../migrations/schema.ts'
import type { LifeRow } from './activity/life.ts'
import type { Watches } from './activity/watches.ts'
import { askAgain } from './fault.ts'
import type { News } from './news.ts'
import type { MachineTarget } from './ssh/pool/target.ts'

/** A machine's row and the address it has; `address` is null once the machine is gone. */
export type Machine = typeof machines.$inferSelect & { address: string | null }

/** The account decides access, and what its token was limited to; a Caller will do. */
export type Seeker = {
  accountId: number
  scope?: { machineId: number | undefined; tag: string | undefined }
}

/** Which machines an account may see and reach. Trashed machines have no name: only `byId` finds them. */
export type MachineAccess = {
  /** @returns undefined when there is none of that name that this account may reach: the two cases look the same */
  find(name: string, seeker: Seeker): Promise<Machine | undefined>
  /** all machines an account sees, by name */
  list(seeker: Seeker): Promise<Machine[]>
  /** @returns undefined when the account does not see it or it is gone */
  byId(machineId: number, seeker: Seeker): Promise<Machine | undefined>
  /**
   * Waits until SSH to the machine can be tried. A machine that is starting is waited for, one that sleeps is woken:
   * only for whoever may reach it.
   * @param knock who comes for it, for the record of what woke it: `an SSH session`
   * @param onStage hears the machine once at the beginning of a wait and whenever its stage changes
   * @throws MachineNotReadyError when it is off, paused, failed, trashed, its server has no memory for it or has not now
   *   what it takes to restore it, or `timeoutMs` (default 5 minutes) has passed
   */
  whenReady(
    machineId: number,
    seeker: Seeker,
    options: { signal: AbortSignal; knock: string; timeoutMs?: number; onStage?: (machine: Machine) => void },
  ): Promise<Machine>
  /**
   * Where a session to a ready machine goes.
   * @param user guest user; the image's login user unless given
   * @throws MachineNotReadyError when the machine has not told its host key or has no address
   */
  target(machine: Machine, seeker: Seeker, user?: string): MachineTarget
}

/** `message` is for the person: what is wrong and what to type. */
export class MachineNotReadyError extends Error {
  override readonly name = 'MachineNotReadyError'
  readonly code:
    | 'machine.not_found'
    | 'machine.off'
    | 'machine.paused'
    | 'machine.failed'
    | 'machine.timeout'
    | 'machine.no_room'
    | 'machine.cannot_restore'
    | 'account.suspended'
    | 'account.over_limit'

  constructor(code: MachineNotReadyError['code'], message: string, options?: ErrorOptions) {
    super(message, options)
    this.code = code
  }
}

/** A start under software emulation with a cold disk takes tens of seconds; nobody waits longer than this for one. */
const READY_TIMEOUT_MS = 300_000
/** Between notifications the row is looked at anyway. */
const RECHECK_MS = 5_000
/** A server whose lease has run out may be a vmhost that is being replaced: for so long it is believed to come back. */
const SERVER_BACK_MS = 10_000

/** What a server lacks to restore a machine, it will not have within this time; one that starts and has it wakes the machine itself. */
const CANNOT_RESTORE_MS = 10_000

/** A row that the news overtook is read again; beyond so often it is taken as it is. */
const READS_MOST = 5

export type MachineAccessOptions = {
  db: Database
  news: News
  watches: Watches
  /** where the platform's sshd listens in every guest; tests put a stand-in elsewhere */
  sshPort?: number
}

export function createMachineAccess({ db, news, watches, sshPort = 22 }: MachineAccessOptions): MachineAccess {
  const visible = ({ accountId, scope }: Seeker) =>
    and(
      eq(machines.accountId, accountId),
      ne(machines.observedState, 'gone'),
      scope?.machineId === undefined ? undefined : eq(machines.id, scope.machineId),
      scope?.tag === undefined ? undefined : raw`${scope.tag} = any(${machines.tags})`,
    )
  // addresses_pkey would not help: the lookup is by machine_id, which is unique and so indexed.
  const rows = () =>
    db
      .select({ machine: machines, address: raw<string | null>`host(${addresses.address})` })
      .from(machines)
      .leftJoin(addresses, eq(addresses.machineId, machines.id))
  const flat = ({ machine, address }: { machine: typeof machines.$inferSelect; address: string | null }): Machine => ({
    ...machine,
    address,
  })

  const hasLiveServer = async ({ hostId }: Machine): Promise<boolean> => {
    const found = await db
      .select({ id: hosts.id })
      .from(hosts)
      .where(and(eq(hosts.id, hostId), gt(hosts.leaseExpiresAt, raw`now()`)))
    return found.length > 0
  }

  const access: MachineAccess = {
    async find(name, seeker) {
      const found = await askAgain(() =>
        rows()
          .innerJoin(machineNames, eq(machineNames.machineId, machines.id))
          .where(and(eq(machineNames.name, name), visible(seeker))),
      )
      return found[0] && flat(found[0])
    },

    async list(seeker) {
      const found = await rows()
        .where(and(visible(seeker), inArray(machines.id, db.select({ id: machineNames.machineId }).from(machineNames))))
        .orderBy(machines.name)
      return found.map(flat)
    },

    async byId(machineId, seeker) {
      const found = await askAgain(() => rows().where(and(eq(machines.id, machineId), visible(seeker))))
      return found[0] && flat(found[0])
    },

    async whenReady(machineId, seeker, { signal, knock, timeoutMs = READY_TIMEOUT_MS, onStage }) {
      const beganAt = performance.now()
      let deadline = beganAt + timeoutMs
      let lastStage: string | undefined
      let isRefused = false
      let hasWoken = false
      for (let reads = 1; ; reads++) {
        const { generation } = watches.of(machineId)
        // Listening begins before the row is read: a change between the two would be missed otherwise.
        const change = nextChange(news, machineId, signal, Math.min(RECHECK_MS, deadline - performance.now()))
        try {
          const machine = await access.byId(machineId, seeker)
          if (!machine)
            throw new MachineNotReadyError('machine.not_found', 'the machine is gone; ls lists those there are')
          if (isReady(machine)) {
            // What waits for it in this gateway goes first, and nothing is sent to the start before.
            if (watches.see(machineId, machine, generation) || reads > READS_MOST) return machine
            continue
          }
          if (machine.desiredState === 'asleep') {
            // Newer than what this wait has done: its server looked for memory, and found none.
            if (hasWoken && machine.observedState === 'asleep' && machine.observedReason !== null)
              throw isLeftAsleep(machine) ? cannotWake(machine) : noRoom(machine)
            // Its server has just said so to whoever came before, and would say nothing else.
            if (isLeftAsleep(machine) && Date.now() - machine.observedAt.getTime() < CANNOT_RESTORE_MS)
              throw cannotWake(machine)
            const isWoken = await watches.wake(machineId, knock)
            hasWoken ||= isWoken
            // Another gateway may have been quicker; but not twice.
            if (isRefused && !isWoken) throw await unwakable(db, machine)
            isRefused = !isWoken
            continue
          }
          isRefused = false
          // The failure of the start before stays in the row while the new start waits for its turn.
          const stale =
            machine.observedBoot < machine.desiredBoot &&
            (performance.now() - beganAt < SERVER_BACK_MS || (await hasLiveServer(machine)))
          refuseUnlessStarting(machine, stale)
          if (machine.observedStage !== lastStage) {
            lastStage = machine.observedStage
            onStage?.(machine)
          }
          // An image takes as long as its registry does, which gives up by itself.
          if (machine.observedStage === 'image') deadline = performance.now() + timeoutMs
          if (performance.now() >= deadline) {
            throw new MachineNotReadyError(
              'machine.timeout',
              `${machine.name} is still ${isWaking(machine) ? 'waking' : 'starting'} after ${Math.round(timeoutMs / 1000)} s (${stageOf(machine)}); see: logs ${machine.name}`,
            )
          }
          await change.happened
          signal.throwIfAborted()
        } finally {
          change.stop()
        }
      }
    },

    target(machine, seeker, user) {
      if (!machine.address || !machine.observedHostKey) {
        throw new MachineNotReadyError(
          'machine.failed',
          `${machine.name} has no address or host key yet; try again in a moment`,
        )
      }
      return {
        machineId: machine.id,
        name: machine.name,
        address: machine.address,
        port: sshPort,
        hostKey: machine.observedHostKey,
        user: user ?? machine.observedLoginUser ?? 'root',
        accountId: seeker.accountId,
      }
    },
  }
  return access
}

/** Whether sshd of the start that is wanted listens: after `restart` the old one may still answer for a moment. */
export function isReady(machine: LifeRow): boolean {
  return (
    machine.desiredState === 'running' &&
    machine.observedState === 'running' &&
    machine.observedBoot === machine.desiredBoot &&
    machine.observedRestore === machine.desiredRestore &&
    machine.observedReadyAt !== null
  )
}

/** What a start, or a wake, is doing, as a person reads it. */
export function stageOf(machine: Machine): string {
  return isWaking(machine) ? 'reading its memory' : stageInWords(machine.observedStage)
}

/** Whether a machine that is wanted awake goes on from its memory; only then it has a time at which it fell asleep. */
export function isWaking({ desiredState, observedState, observedReadyAt, observedAsleepAt }: Machine): boolean {
  if (desiredState !== 'running' || observedReadyAt !== null) return false
  return observedState === 'asleep' || (observedState === 'running' && observedAsleepAt !== null)
}

function stageInWords(stage: string): string {
  const words: Record<string, string> = {
    waiting: 'waiting for its server',
    image: 'fetching its image',
    disk: 'making its disk',
    network: 'setting up its network',
    boot: 'booting',
    ssh: 'starting SSH',
    ready: 'ready',
  }
  return words[stage] ?? stage
}

function refuseUnlessStarting(machine: Machine, isFailureStale: boolean): void {
  const { name } = machine
  switch (machine.desiredState) {
    case 'trashed':
    case 'gone':
      throw new MachineNotReadyError('machine.not_found', `${name} is in the trash; to have it back: untrash ${name}`)
    case 'stopped':
      throw new MachineNotReadyError('machine.off', `${name} is off; to start it: start ${name}`)
    case 'paused':
      throw new MachineNotReadyError('machine.paused', `${name} is paused; to wake it: resume ${name}`)
    default:
  }
  if (machine.observedState === 'failed' && !isFailureStale) {
    throw new MachineNotReadyError(
      'machine.failed',
      `${name} failed: ${machine.observedReason ?? 'no reason was reported'}; to try again: restart ${name}`,
    )
  }
}

function noRoom({ name, observedReason }: Machine): MachineNotReadyError {
  const reason = (observedReason ?? '').replace(/^Its /, 'its ')
  return new MachineNotReadyError('machine.no_room', `${name} cannot wake now: ${reason}; try again in a while`)
}

/** Whether it was wanted awake, and sleeps on because its server has not now what it takes to restore it. */
export function isLeftAsleep({ desiredState, observedState, observedAsleepBecause, observedReason }: Machine): boolean {
  const isAsleep = desiredState === 'asleep' && observedState === 'asleep'
  return isAsleep && observedAsleepBecause === cannotRestore && observedReason !== null
}

function cannotWake({ name, observedReason }: Machine): MachineNotReadyError {
  const reason = (observedReason ?? '').replace(/^Its /, 'its ')
  return new MachineNotReadyError(
    'machine.cannot_restore',
    `${name} cannot wake now: ${reason}; its memory is kept, and whatever comes for it later has it tried again; to give its memory up and start it from its disk: restart ${name}`,
  )
}

async function unwakable(db: Database, { name, accountId }: Machine): Promise<MachineNotReadyError> {
  const [account] = await db.select({ over: accounts.overLimitAt }).from(accounts).where(eq(accounts.id, accountId))
  if (account?.over) {
    return new MachineNotReadyError(
      'account.over_limit',
      `${name} sleeps, and its account has reached its limit for the month: nothing wakes it`,
    )
  }
  return new MachineNotReadyError('account.suspended', `${name} sleeps, and its account is suspended: nothing wakes it`)
}

function nextChange(news: News, machineId: number, signal: AbortSignal, timeoutMs: number) {
  const { promise, resolve } = Promise.withResolvers<void>()
  const wake = () => resolve()
  const timer = setTimeout(wake, Math.max(0, timeoutMs))
  const stopNews = news.on('machines', (id) => {
    if (id === String(machineId)) resolve()
  })
  const stopRescan = news.onRescan(wake)
  signal.addEventListener('abort', wake, { once: true })
  if (signal.aborted) wake()
  return {
    happened: promise,
    stop() {
      clearTimeout(timer)
      stopNews()
      stopRescan()
      signal.removeEventListener('abort', wake)
      resolve()
    },
  }
}
