import { nameTaken } from './admission.ts'
import { defineCommand } from './command.ts'
import { machineNames } from './complete.ts'
import { usageError } from './error.ts'
import { validComment, validTags } from './labels.ts'
import { httpsUrl, sshDest, sshLine } from './machine-document.ts'
import { reachable, recordEvent } from './machine-steps.ts'
import { validName } from './names/valid.ts'

export const rename = defineCommand({
  name: 'rename',
  aliases: ['mv'],
  group: 'machines',
  summary: 'another name; the old one is free at once',
  arguments: { old: { label: 'OLD', complete: machineNames }, new: { label: 'NEW' } },
  examples: ['rename quiet-otter api'],
  async run({ app, caller }, { args }) {
    const machine = await reachable(app, caller, args.old)
    const name = validName(args.new)
    if (name === machine.name) throw usageError(`${name} is its name already`)
    try {
      await app.sql.begin(async (tx) => {
        await tx`update machines set name = ${name} where id = ${machine.id}`
        await tx`delete from lobby_names where account_id = ${caller.accountId} and name = ${name}
          and name <> ${caller.sshName} and not exists (select from keys where account_id = ${caller.accountId}
            and comment like ${name} || '@%')`
        await tx`update machine_names set name = ${name} where machine_id = ${machine.id}`
        await recordEvent(tx, caller, 'machine.renamed', { id: machine.id, name }, { was: machine.name })
      })
    } catch (error) {
      throw nameTaken(error, name)
    }
    return {
      json: {
        old_name: machine.name,
        new_name: name,
        ssh_dest: sshDest(app.settings, name),
        https_url: httpsUrl(app.settings, name),
      },
      text: `${machine.name} is called ${name} now: ${sshLine(app.settings, name)}\n`,
    }
  },
})

export const tag = defineCommand({
  name: 'tag',
  group: 'machines',
  summary: 'add tags to a machine, or take them away',
  flags: { delete: { type: 'boolean', short: 'd', summary: 'take them away' } },
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
    const text = tags.length ? `${machine.name} has the tags ${tags.join(' ')}\n` : `${machine.name} has no tags\n`
    return { json: { vm_name: machine.name, tags }, text }
  },
})

export const comment = defineCommand({
  name: 'comment',
  group: 'machines',
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
