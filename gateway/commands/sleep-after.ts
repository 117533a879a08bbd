import { defineCommand } from './command.ts'
import { machineNames } from './complete.ts'
import { readDefaults } from './defaults.ts'
import { idleTimeOf, parseIdleTime, settingOf } from './idle-time.ts'
import { reachable, recordEvent } from './machine-steps.ts'
import { sayDuration } from './values.ts'

export const sleepAfter = defineCommand({
  name: 'sleep-after',
  group: 'machines',
  onMachines: true,
  summary: 'how long a machine may be idle before it sleeps, or never',
  description:
    'Without DURATION what it is. With default it follows your account again (defaults write sleep-after). Idle is a machine without a session, request or WebSocket that carried something in the last 10 minutes, a hold, a program started over SSH, or much to do; why NAME shows what there is.',
  arguments: {
    name: { label: 'NAME', complete: machineNames },
    duration: { label: 'DURATION|never|default', optional: true, complete: () => ['never', 'default', '30m', '2h'] },
  },
  examples: ['sleep-after demo 30m', 'sleep-after demo never'],
  async run({ app, caller }, { args }) {
    const machine = await reachable(app, caller, args.name)
    const typed = args.duration
    let setting: Parameters<typeof idleTimeOf>[0] = machine
    if (typed !== undefined) {
      setting = settingOf(typed === 'default' ? undefined : parseIdleTime(typed))
      const { sleepAfterSeconds, sleepNever } = setting
      await app.sql.begin(async (tx) => {
        await tx`update machines set sleep_after_seconds = ${sleepAfterSeconds}, sleep_never = ${sleepNever}
          where id = ${machine.id}`
        await recordEvent(tx, caller, 'machine.sleep_after', machine, { after: typed })
      })
    }
    const { seconds, isDefault } = idleTimeOf(setting, await readDefaults(app.sql, machine.accountId))
    const whose = isDefault ? ', as your account has it' : ''
    return {
      json: { vm_name: machine.name, sleep_after_seconds: seconds, is_default: isDefault },
      text:
        seconds === null
          ? `${machine.name} never sleeps for being idle${whose}\n`
          : `${machine.name} sleeps when it was idle for ${sayDuration(seconds * 1000)}${whose}\n`,
    }
  },
})
