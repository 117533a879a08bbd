import { giveUpLobbyName, nameTaken } from './admission.ts'
import { defineCommand } from './command.ts'
import { machineNames } from './complete.ts'
import { usageError } from './error.ts'
import { httpsUrl, sshDest, sshLine } from './machine-document.ts'
import { reachable, recordEvent } from './machine-steps.ts'
import { validName } from './names/valid.ts'

export const rename = defineCommand({
  name: 'rename',
  aliases: ['mv'],
  group: 'machines',
  onMachines: true,
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
        await giveUpLobbyName(tx, caller, name)
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
