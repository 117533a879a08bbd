import { defineCommand } from './command.ts'
import { machineNames } from './complete.ts'
import { validComment } from './labels.ts'
import { reachable, recordEvent } from './machine-steps.ts'

export const comment = defineCommand({
  name: 'comment',
  group: 'machines',
  onMachines: true,
  summary: 'a line about a machine; an empty one takes it away',
  arguments: { name: { label: 'NAME', complete: machineNames }, text: { label: 'TEXT', repeated: true } },
  examples: ["comment demo 'the one for Tuesday'"],
  async run({ app, caller }, { args }) {
    const machine = await reachable(app, caller, args.name)
    const text = validComment(args.text.join(' '))
    await app.sql.begin(async (tx) => {
      await tx`update machines set comment = ${text} where id = ${machine.id}`
      await recordEvent(tx, caller, 'machine.commented', machine, { comment: text })
    })
    return {
      json: { vm_name: machine.name, comment: text },
      text: text ? `noted about ${machine.name}\n` : `${machine.name} has no comment any more\n`,
    }
  },
})
