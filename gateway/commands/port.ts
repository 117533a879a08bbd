import { DEFAULT_PORT } from '../https/machines/routes.ts'
import { defineCommand } from './command.ts'
import { machineNames } from './complete.ts'
import { usageError } from './error.ts'
import { httpsUrl } from './machine-document.ts'
import { reachable, recordEvent } from './machine-steps.ts'
import { shown } from './values.ts'
import { controlUrl, visibility } from './web-links.ts'

export const port = defineCommand({
  name: 'port',
  aliases: ['share port'],
  group: 'web',
  onMachines: true,
  summary: 'the port that https://NAME shows; with PORT another one',
  description: `What the machine's image exposes unless set (80, else the lowest from 1024 on), else ${DEFAULT_PORT}. The ports from 3000 to 9999 are also at https://NAME--PORT, for those who may see the machine.`,
  arguments: { name: { label: 'NAME', complete: machineNames }, port: { label: 'PORT', optional: true } },
  examples: ['port demo', 'port demo 5173'],
  async run({ app, caller }, { args }) {
    controlUrl(app.settings)
    const machine = await reachable(app, caller, args.name)
    const [row] = await app.sql<
      { port: number | null }[]
    >`select coalesce(web_port, observed_web_port) as port from machines where id = ${machine.id}`
    let chosen = row?.port ?? DEFAULT_PORT
    if (args.port !== undefined) {
      const asked = /^\d{1,5}$/.test(args.port) ? Number(args.port) : 0
      if (asked < 1 || asked > 65_535)
        throw usageError(`${shown(args.port)} is no port`, 'a port is a number from 1 to 65535')
      chosen = asked
      await app.sql.begin(async (tx) => {
        await tx`update machines set web_port = ${chosen} where id = ${machine.id}`
        await recordEvent(tx, caller, 'machine.port', machine, { port: chosen })
      })
    }
    const url = httpsUrl(app.settings, machine.name)
    return {
      json: {
        ...(args.port === undefined ? {} : { status: 'updated' }),
        vm_name: machine.name,
        port: chosen,
        share: visibility(machine.webPublic),
        https_url: url,
      },
      text: `${url} shows port ${chosen} of ${machine.name}\n`,
    }
  },
})
