import { defineCommand } from './command.ts'
import { machineNames } from './complete.ts'
import { usageError } from './error.ts'
import { reachable, recordEvent } from './machine-steps.ts'
import { paused, refuseUnlessOn, rouse, untilAwake } from './power-steps.ts'
import { sayDuration } from './values.ts'

const HOUR_MS = 3_600_000
const LONGEST_MS = 366 * 24 * HOUR_MS

export const hold = defineCommand({
  name: 'hold',
  group: 'machines',
  onMachines: true,
  summary: 'keep a machine awake for a time, whatever it does',
  description: 'One that sleeps is woken. sleep and pause end a hold. Only a server short of memory goes against one.',
  flags: {
    for: { type: 'duration', value: '1h', summary: 'for how long; 1h unless given' },
    end: { type: 'boolean', summary: 'no longer' },
    'no-wait': { type: 'boolean', summary: 'do not wait for one that sleeps' },
  },
  arguments: { name: { label: 'NAME', complete: machineNames } },
  examples: ['hold demo', 'hold demo --for 8h', 'hold demo --end'],
  async run(context, { flags, args }) {
    const { app, caller } = context
    if (flags.end && flags.for !== undefined) throw usageError('--for and --end exclude each other')
    const machine = await reachable(app, caller, args.name)
    const { id, name } = machine
    if (flags.end) {
      await app.sql.begin(async (tx) => {
        await tx`update machines set hold_until = null where id = ${id}`
        await recordEvent(tx, caller, 'machine.hold_ended', machine)
      })
      return { json: { vm_name: name, hold_until: null }, text: `${name} is held awake no longer\n` }
    }
    const forMs = flags.for ?? HOUR_MS
    if (forMs > LONGEST_MS) throw usageError('--for is at most a year', `for good: sleep-after ${name} never`)
    refuseUnlessOn(machine)
    if (machine.desiredState === 'paused') throw paused(name)
    const [row] = await app.sql.begin(async (tx) => {
      await recordEvent(tx, caller, 'machine.held', machine, { for: sayDuration(forMs) })
      return await tx<{ until: Date }[]>`update machines set hold_until = now() + ${forMs} * interval '1 millisecond'
        where id = ${id} returning hold_until as until`
    })
    await rouse(context, machine, { from: ['asleep'], kind: 'machine.woken' })
    if (machine.desiredState === 'asleep') await untilAwake(context, machine, flags['no-wait'] === true)
    return {
      json: { vm_name: name, hold_until: row?.until.toISOString() ?? null },
      text: `${name} is held awake for ${sayDuration(forMs)}; to end that: hold ${name} --end\n`,
    }
  },
})
