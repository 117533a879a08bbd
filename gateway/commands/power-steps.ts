/** What the commands have in common that turn machines on and off, or put them to sleep. */
import type { Machine } from '../machines.ts'
import { admitStart, overLimit } from './admission.ts'
import type { Context, Result } from './command.ts'
import { machineNames } from './complete.ts'
import { CommandError } from './error.ts'
import { statusOf } from './machine-document.ts'
import { eachMachine, recordEvent, type Tx, tellEach, untilSshWorks, whilePatient } from './machine-steps.ts'
import { sayDuration, sayList } from './values.ts'

export const NAMES = { names: { label: 'NAME', repeated: true, complete: machineNames } } as const
export const NO_WAIT = { 'no-wait': { type: 'boolean', summary: 'return at once' } } as const

/** On its way, and waited for no longer. */
const UNDER_WAY = ['starting', 'stopping', 'waking', 'falling asleep']

export type Outcome = {
  /** what it is now, or is becoming */
  status: string
  /** further members of its document */
  detail?: Record<string, unknown>
}

/**
 * Does one thing to each machine, and tells of all of them in one sentence.
 * @param outcome of one that arrived, as `is running`
 */
export async function power(
  context: Context,
  names: readonly string[],
  outcome: string,
  step: (machine: Machine) => Promise<Outcome>,
): Promise<Result> {
  const startedAt = Date.now()
  const { done, failed } = await eachMachine(context, names, step)
  const vms = done.map(({ name, value }) => ({ vm_name: name, status: value.status, ...value.detail }))
  const [first] = vms
  const waited = vms.every((vm) => !UNDER_WAY.includes(vm.status))
  const many = done.length > 1 ? outcome.replace(/^is/, 'are') : outcome
  const tail = waited
    ? `${many} after ${sayDuration(Date.now() - startedAt)}`
    : `${done.length > 1 ? 'are' : 'is'} ${first?.status}`
  return {
    ...tellEach(vms, failed),
    text: done.length ? `${sayList(done.map(({ name }) => name))} ${tail}\n` : '',
  }
}

/** Wants another start. Its number tells this start from the one before, whose end may still be reported. */
export async function boot({ app, caller }: Context, machine: Machine, kind: string): Promise<void> {
  await app.sql.begin(async (tx) => {
    await refuseSuspended(tx, caller.accountId)
    await admitStart(tx, machine)
    const rows = await tx`update machines set desired_state = 'running', desired_boot = desired_boot + 1
      where id = ${machine.id} and desired_state not in ('trashed', 'gone') returning id`
    if (rows.length === 0) throw overtaken(machine.name)
    await recordEvent(tx, caller, kind, machine)
  })
  app.pool.forget(machine.id)
}

/**
 * Wants a sleeper awake, and nothing of one that is.
 * @param from which of the two kinds of sleep it may be woken from
 * @param kind of the event
 */
export async function rouse(
  { app, caller }: Context,
  machine: Machine,
  { from, kind }: { from: readonly ('asleep' | 'paused')[]; kind: string },
): Promise<void> {
  await app.sql.begin(async (tx) => {
    await refuseSuspended(tx, caller.accountId)
    const rows = await tx`update machines set desired_state = 'running'
      where id = ${machine.id} and desired_state in ${tx(from)} returning id`
    if (rows.length) await recordEvent(tx, caller, kind, machine)
  })
}

/** @returns undefined when whoever asked cannot wait any longer */
export async function untilAwake(context: Context, machine: Machine, noWait: boolean): Promise<Machine | undefined> {
  return noWait ? undefined : await whilePatient(context, (waiting) => untilSshWorks(waiting, machine.id))
}

/** @param under what it is as long as nobody waits for it */
export async function wait(context: Context, machine: Machine, noWait: boolean, under: string): Promise<Outcome> {
  const ready = await untilAwake(context, machine, noWait)
  return { status: ready ? statusOf(ready) : under }
}

/** Or one that is over its hard limit. */
export async function refuseSuspended(tx: Tx, accountId: number): Promise<void> {
  const [account] = await tx.unsafe<{ suspended: boolean; over: boolean }[]>(
    'select suspended_at is not null as suspended, over_limit_at is not null as over from accounts where id = $1',
    [accountId],
  )
  if (account?.suspended === false && !account.over) return
  if (account?.suspended === false) throw overLimit()
  throw new CommandError('account.suspended', 4, 'this account is suspended', {
    wayOn: 'the operator can lift that, with: account unsuspend',
  })
}

export function overtaken(name: string): CommandError {
  return new CommandError('machine.overtaken', 1, `something else was asked of ${name} meanwhile`, {
    wayOn: `ls ${name}`,
  })
}

/** @throws CommandError for one that is off, or has failed: it has nothing that could sleep or wake */
export function refuseUnlessOn({ name, desiredState, observedState, observedReason }: Machine): void {
  if (desiredState === 'stopped') {
    throw new CommandError('machine.off', 1, `${name} is off`, {
      wayOn: `to start it: start ${name}`,
      machineName: name,
    })
  }
  if (observedState === 'failed') {
    throw new CommandError('machine.failed', 1, `${name} failed: ${observedReason ?? 'no reason was reported'}`, {
      wayOn: `to try again: restart ${name}`,
      machineName: name,
    })
  }
}

export function paused(name: string): CommandError {
  return new CommandError('machine.paused', 1, `${name} is paused, and nothing else wakes it`, {
    wayOn: `resume ${name}`,
    machineName: name,
  })
}
