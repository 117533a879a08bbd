import type { Machine } from '../machines.ts'
import { isReady } from '../machines.ts'
import { admitStart } from './admission.ts'
import type { Context, Result } from './command.ts'
import { defineCommand } from './command.ts'
import { machineNames } from './complete.ts'
import { CommandError } from './error.ts'
import { statusOf } from './machine-document.ts'
import { eachMachine, recordEvent, untilSettled, untilSshWorks, whilePatient } from './machine-steps.ts'
import { sayDuration, sayList } from './values.ts'

const NAMES = { names: { label: 'NAME', repeated: true, complete: machineNames } } as const
const NO_WAIT = { 'no-wait': { type: 'boolean', summary: 'return at once' } } as const

export const start = defineCommand({
  name: 'start',
  group: 'machines',
  onMachines: true,
  summary: 'start machines that are off; returns when SSH works',
  flags: NO_WAIT,
  arguments: NAMES,
  examples: ['start demo'],
  run: (context, { flags, args }) =>
    power(context, args.names, 'is running', async (machine) => {
      const settled = isReady(machine) || (machine.desiredState === 'running' && machine.observedState !== 'failed')
      // A machine that is on its way up already is only waited for.
      if (!settled) await boot(context, machine, 'machine.started')
      return await wait(context, machine, flags['no-wait'] === true)
    }),
})

export const restart = defineCommand({
  name: 'restart',
  aliases: ['reboot'],
  group: 'machines',
  onMachines: true,
  summary: 'stop in order and start again; also the way out of failed',
  flags: NO_WAIT,
  arguments: NAMES,
  examples: ['restart demo'],
  run: (context, { flags, args }) =>
    power(context, args.names, 'is running again', async (machine) => {
      await boot(context, machine, 'machine.restarted')
      return await wait(context, machine, flags['no-wait'] === true)
    }),
})

export const stop = defineCommand({
  name: 'stop',
  aliases: ['shutdown'],
  group: 'machines',
  onMachines: true,
  summary: 'shut machines down in order; off until start',
  flags: NO_WAIT,
  arguments: NAMES,
  examples: ['stop demo', 'stop web-1 web-2'],
  run: (context, { flags, args }) =>
    power(context, args.names, 'is stopped', async (machine) => {
      const { app, caller, progress } = context
      await app.sql.begin(async (tx) => {
        const rows = await tx`update machines set desired_state = 'stopped'
          where id = ${machine.id} and desired_state not in ('stopped', 'trashed', 'gone') returning id`
        if (rows.length) await recordEvent(tx, caller, 'machine.stopped', machine)
      })
      if (flags['no-wait']) return 'stopping'
      progress.show(`${machine.name}: shutting down`)
      const settled = await whilePatient(context, async (waiting) => {
        await untilSettled(waiting, machine, (seen) => {
          if (seen?.desiredState !== 'stopped') throw overtaken(machine.name)
          // A failure seen here is one of before: the server makes a failed machine a stopped one like any other.
          return seen.observedState === 'stopped'
        })
        return true
      })
      if (!settled) return 'stopping'
      app.pool.forget(machine.id)
      return 'stopped'
    }),
})

/** Wants another start. Its number tells this start from the one before, whose end may still be reported. */
async function boot({ app, caller }: Context, machine: Machine, kind: string): Promise<void> {
  await app.sql.begin(async (tx) => {
    const [account] = await tx`select from accounts where id = ${caller.accountId} and suspended_at is null`
    if (!account) {
      throw new CommandError('account.suspended', 4, 'this account is suspended', {
        wayOn: 'the operator can lift that, with: account unsuspend',
      })
    }
    await admitStart(tx, machine)
    const rows = await tx`update machines set desired_state = 'running', desired_boot = desired_boot + 1
      where id = ${machine.id} and desired_state not in ('trashed', 'gone') returning id`
    if (rows.length === 0) throw overtaken(machine.name)
    await recordEvent(tx, caller, kind, machine)
  })
  app.pool.forget(machine.id)
}

async function wait(context: Context, machine: Machine, noWait: boolean): Promise<string> {
  if (noWait) return 'starting'
  const ready = await whilePatient(context, (waiting) => untilSshWorks(waiting, machine.id))
  return ready ? statusOf(ready) : 'starting'
}

async function power(
  context: Context,
  names: readonly string[],
  outcome: string,
  step: (machine: Machine) => Promise<string>,
): Promise<Result> {
  const startedAt = Date.now()
  const { done, failed: failures } = await eachMachine(context, names, step)
  const [only] = failures
  if (only && done.length === 0 && failures.length === 1) throw only.error
  const vms = done.map(({ name, value }) => ({ vm_name: name, status: value }))
  const errors = Object.fromEntries(failures.map(({ name, error }) => [name, error.message]))
  const [first] = vms
  const waited = vms.every((vm) => vm.status !== 'starting' && vm.status !== 'stopping')
  const many = done.length > 1 ? outcome.replace(/^is/, 'are') : outcome
  const tail = waited
    ? `${many} after ${sayDuration(Date.now() - startedAt)}`
    : `${done.length > 1 ? 'are' : 'is'} ${first?.status}`
  return {
    json: vms.length === 1 && failures.length === 0 ? first : { vms, errors },
    text: done.length ? `${sayList(done.map(({ name }) => name))} ${tail}\n` : '',
    failures: failures.map(({ error }) => error),
  }
}

function overtaken(name: string): CommandError {
  return new CommandError('machine.overtaken', 1, `something else was asked of ${name} meanwhile`, {
    wayOn: `ls ${name}`,
  })
}
