import { isReady, type Machine } from '../machines.ts'
import type { Context } from './command.ts'
import { defineCommand } from './command.ts'
import { recordEvent, untilSettled, whilePatient } from './machine-steps.ts'
import { boot, NAMES, NO_WAIT, overtaken, paused, power, rouse, wait } from './power-steps.ts'

export const start = defineCommand({
  name: 'start',
  group: 'machines',
  onMachines: true,
  summary: 'start machines that are off, wake those that sleep; returns when SSH works',
  flags: NO_WAIT,
  arguments: NAMES,
  examples: ['start demo'],
  run: (context, { flags, args }) =>
    power(context, args.names, 'is running', async (machine) => {
      const noWait = flags['no-wait'] === true
      if (machine.desiredState === 'paused') throw paused(machine.name)
      if (machine.desiredState === 'asleep') {
        await rouse(context, machine, { from: ['asleep'], kind: 'machine.woken' })
        return await wait(context, machine, noWait, 'waking')
      }
      const settled = isReady(machine) || (machine.desiredState === 'running' && machine.observedState !== 'failed')
      // A machine that is on its way up already is only waited for.
      if (!settled) await boot(context, machine, 'machine.started')
      return await wait(context, machine, noWait, 'starting')
    }),
})

export const restart = defineCommand({
  name: 'restart',
  aliases: ['reboot'],
  group: 'machines',
  onMachines: true,
  summary: 'stop in order and start again; also the way out of failed',
  description: 'One that sleeps starts from its disk: what it had in memory is gone.',
  flags: NO_WAIT,
  arguments: NAMES,
  examples: ['restart demo'],
  run: (context, { flags, args }) =>
    power(context, args.names, 'is running again', async (machine) => {
      await boot(context, machine, 'machine.restarted')
      const outcome = await wait(context, machine, flags['no-wait'] === true, 'starting')
      await tellLost(context, machine)
      return outcome
    }),
})

export const stop = defineCommand({
  name: 'stop',
  aliases: ['shutdown'],
  group: 'machines',
  onMachines: true,
  summary: 'shut machines down in order; off until start',
  description:
    'Of one that sleeps the disk is in order, but what runs in it is not asked to end: what it had in memory is gone. To have it end in order: wake it first.',
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
      await tellLost(context, machine)
      if (flags['no-wait']) return { status: 'stopping' }
      progress.show(`${machine.name}: shutting down`)
      const settled = await whilePatient(context, async (waiting) => {
        await untilSettled(waiting, machine, (seen) => {
          if (seen?.desiredState !== 'stopped') throw overtaken(machine.name)
          // A failure seen here is one of before: the server makes a failed machine a stopped one like any other.
          return seen.observedState === 'stopped'
        })
        return true
      })
      if (!settled) return { status: 'stopping' }
      app.pool.forget(machine.id)
      return { status: 'stopped' }
    }),
})

/** Of what ends a sleep in any way but by waking. */
export async function tellLost(context: Context, { name, observedState }: Machine): Promise<void> {
  if (observedState === 'asleep') await context.remark(`${name} slept: what it had in memory is gone\n`)
}
