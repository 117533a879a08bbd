import type { Machine } from '../machines.ts'
import type { Context } from './command.ts'
import { defineCommand } from './command.ts'
import { CommandError } from './error.ts'
import { statusOf } from './machine-document.ts'
import { recordEvent, untilSettled, whilePatient } from './machine-steps.ts'
import {
  NAMES,
  NO_WAIT,
  type Outcome,
  overtaken,
  paused,
  power,
  refuseUnlessOn,
  rouse,
  untilAwake,
  wait,
} from './power-steps.ts'

export const sleep = defineCommand({
  name: 'sleep',
  group: 'machines',
  onMachines: true,
  summary: 'put machines to sleep with all that runs in them; whatever comes for them wakes them',
  description:
    'What they had in memory lies on the disk of their server. SSH, a page, or a key typed in an open session wakes a machine, and so does wake. A hold ends.',
  flags: NO_WAIT,
  arguments: NAMES,
  examples: ['sleep demo'],
  run: (context, { flags, args }) =>
    power(context, args.names, 'is asleep', (machine) =>
      layDown(context, machine, 'asleep', flags['no-wait'] === true),
    ),
})

export const wake = defineCommand({
  name: 'wake',
  group: 'machines',
  onMachines: true,
  summary: 'wake machines that sleep; returns when SSH works',
  flags: NO_WAIT,
  arguments: NAMES,
  examples: ['wake demo'],
  run: (context, { flags, args }) =>
    power(context, args.names, 'is running', async (machine) => {
      refuseUnlessOn(machine)
      if (machine.desiredState === 'paused') throw paused(machine.name)
      await rouse(context, machine, { from: ['asleep'], kind: 'machine.woken' })
      return await wait(context, machine, flags['no-wait'] === true, 'waking')
    }),
})

export const pause = defineCommand({
  name: 'pause',
  group: 'machines',
  onMachines: true,
  summary: 'put machines to sleep until resume, whatever comes for them',
  flags: NO_WAIT,
  arguments: NAMES,
  examples: ['pause demo'],
  run: (context, { flags, args }) =>
    power(context, args.names, 'is paused', (machine) =>
      layDown(context, machine, 'paused', flags['no-wait'] === true),
    ),
})

export const resume = defineCommand({
  name: 'resume',
  aliases: ['unpause'],
  group: 'machines',
  onMachines: true,
  summary: 'wake machines that are paused; returns when SSH works',
  flags: NO_WAIT,
  arguments: NAMES,
  examples: ['resume demo'],
  run: (context, { flags, args }) =>
    power(context, args.names, 'is running', async (machine) => {
      refuseUnlessOn(machine)
      await rouse(context, machine, { from: ['paused', 'asleep'], kind: 'machine.resumed' })
      const slept = machine.desiredState !== 'running' || machine.observedState === 'asleep'
      const awake = await untilAwake(context, machine, flags['no-wait'] === true)
      if (!awake) return { status: 'waking' }
      // Its memory could not be had any more, and its server said why.
      const isCold = slept && awake.observedReason !== null
      if (isCold) await context.remark(`${awake.name}: ${awake.observedReason}\n`)
      return { status: statusOf(awake), detail: { cold_booted: isCold ? 'true' : 'false' } }
    }),
})

async function layDown(context: Context, machine: Machine, to: 'asleep' | 'paused', noWait: boolean): Promise<Outcome> {
  const { app, caller, progress } = context
  refuseUnlessOn(machine)
  // What is paused sleeps already, and stays as deep asleep as its owner wanted it.
  const wanted = machine.desiredState === 'paused' ? 'paused' : to
  const from = wanted === 'asleep' ? ['running'] : ['running', 'asleep']
  await app.sql.begin(async (tx) => {
    const rows = await tx`update machines set desired_state = ${wanted}, hold_until = null
      where id = ${machine.id} and desired_state in ${tx(from)} returning id`
    if (rows.length) await recordEvent(tx, caller, wanted === 'asleep' ? 'machine.slept' : 'machine.paused', machine)
  })
  if (noWait) return { status: machine.observedState === 'asleep' ? wanted : 'falling asleep' }
  progress.show(`${machine.name}: falling asleep`)
  const settled = await whilePatient(context, async (waiting) => {
    await untilSettled(waiting, machine, (seen) => isLying(seen, machine, wanted))
    return true
  })
  return { status: settled ? wanted : 'falling asleep' }
}

/** @throws CommandError when it will not come to that */
function isLying(seen: Machine | undefined, before: Machine, wanted: 'asleep' | 'paused'): boolean {
  const { name } = before
  if (!seen) throw overtaken(name)
  refuseUnlessOn(seen)
  if (seen.desiredState === 'running') {
    throw new CommandError('machine.overtaken', 1, `something came for ${name}, and it stays awake`, {
      wayOn: `to see what: why ${name}`,
    })
  }
  if (seen.desiredState !== 'asleep' && seen.desiredState !== 'paused') throw overtaken(name)
  if (seen.observedState === 'asleep') return true
  // Its server tries again by itself; nobody needs to wait for that.
  if (seen.observedReason !== null && seen.observedReason !== before.observedReason) {
    throw new CommandError('machine.awake', 1, `${name} does not fall asleep: ${seen.observedReason}`, {
      wayOn: `it is tried again; to leave it awake: ${wanted === 'paused' ? 'resume' : 'wake'} ${name}`,
    })
  }
  return false
}
