import { defineCommand } from './command.ts'
import { machineNames } from './complete.ts'
import { validTags } from './labels.ts'
import { reachable, recordEvent } from './machine-steps.ts'

export const tag = defineCommand({
  name: 'tag',
  group: 'machines',
  onMachines: true,
  summary: 'add tags to a machine, or take them away',
  flags: { delete: { type: 'boolean', short: 'd', aliases: ['d'], summary: 'take them away' } },
  arguments: { name: { label: 'NAME', complete: machineNames }, tags: { label: 'TAG', repeated: true } },
  examples: ['tag demo web staging', 'tag -d demo staging'],
  async run({ app, caller }, { flags, args }) {
    const machine = await reachable(app, caller, args.name)
    const given = validTags(args.tags)
    const tags = await app.sql.begin(async (tx) => {
      const [row] = await tx<{ tags: string[] }[]>`select tags from machines where id = ${machine.id} for no key update`
      const now = row?.tags ?? []
      const next = flags.delete ? now.filter((one) => !given.includes(one)) : validTags([...now, ...given])
      await tx`update machines set tags = ${next} where id = ${machine.id}`
      await recordEvent(tx, caller, 'machine.tagged', machine, { tags: next })
      return next
    })
    const words = tags.length === 0 ? 'no tags' : `the ${tags.length === 1 ? 'tag' : 'tags'} ${tags.join(' ')}`
    return { json: { vm_name: machine.name, tags }, text: `${machine.name} has ${words}\n` }
  },
})
