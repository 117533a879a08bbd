import { defineCommand } from './command.ts'
import { machineNames } from './complete.ts'
import { admitCopy, largerDisk, untilCopied } from './copying.ts'
import { CommandError } from './error.ts'
import { validTags } from './labels.ts'
import { hostNames, machineDocument, sshLine } from './machine-document.ts'
import { reachable } from './machine-steps.ts'
import { validName } from './names/valid.ts'
import { oneMachineOnly } from './permission.ts'
import { MACHINE_SIZES, sayDuration } from './values.ts'

export const cp = defineCommand({
  name: 'cp',
  aliases: ['copy', 'clone', 'fork'],
  group: 'machines',
  onMachines: true,
  summary: 'another machine that is as this one: disk, and what runs in it',
  description:
    'The copy has a name, address and host key of its own, and is private. It goes on with every program where the machine is; connections to others stay with the machine. Of one that is off, with another memory or number of CPUs, or with --disk-only, it boots from a copy of the disk. Without a name it gets a free one of two words.',
  flags: {
    memory: { type: 'size', min: MACHINE_SIZES.memory.min, summary: 'memory; as the machine has it unless given' },
    cpu: { type: 'integer', min: 1, max: 256, summary: 'virtual CPUs; as the machine has them unless given' },
    disk: {
      type: 'size',
      min: MACHINE_SIZES.disk.min,
      value: '40G',
      summary: 'a larger disk',
    },
    'disk-only': { type: 'boolean', summary: 'copy the disk alone: the machine does not stand still, the copy boots' },
    'copy-tags': { type: 'boolean', summary: 'tags too, which is so unless --copy-tags=false' },
    'no-wait': { type: 'boolean', summary: 'return as soon as it is admitted' },
    'no-email': { type: 'boolean', summary: 'taken for compatibility; no mail is sent', hidden: true },
  },
  arguments: {
    name: { label: 'NAME', complete: machineNames },
    new: { label: 'NEW', optional: true },
  },
  examples: ['cp demo', 'cp demo experiment', 'cp demo big --disk-only --memory 16G'],
  async run(context, { flags, args }) {
    const { app, caller } = context
    if (caller.scope?.machineId !== undefined) {
      throw oneMachineOnly()
    }
    const startedAt = Date.now()
    const source = await reachable(app, caller, args.name)
    const cpus = flags.cpu ?? source.cpus
    const memoryBytes = flags.memory === undefined ? source.memoryBytes : Math.ceil(flags.memory / 2 ** 20) * 2 ** 20
    const isOther = cpus !== source.cpus || memoryBytes !== source.memoryBytes
    const isOn = source.observedState === 'running' || source.observedState === 'asleep'
    const tags = flags['copy-tags'] === false ? [] : source.tags
    const copy = await admitCopy(app, caller, source, {
      name: args.new === undefined ? undefined : validName(args.new),
      cpus,
      memoryBytes,
      diskBytes: largerDisk(flags.disk, source.diskBytes),
      tags: validTags([...tags, ...(caller.scope?.tag === undefined ? [] : [caller.scope.tag])]),
      checkpoint: undefined,
      diskOnly: isOther || flags['disk-only'] === true,
    })
    if (isOther && isOn && !flags['disk-only']) {
      await context.remark('with other memory or CPUs nothing that runs goes on in the copy: it boots from its disk\n')
    }
    const ready = flags['no-wait'] ? undefined : await untilCopied(context, source, copy)
    const machine = ready ?? (await app.machines.byId(copy.id, caller))
    if (!machine) throw new CommandError('machine.not_found', 3, `${copy.name} was deleted meanwhile`)
    if (ready?.observedReason) await context.remark(`${ready.name}: ${ready.observedReason}\n`)
    const document = machineDocument(machine, app.settings, await hostNames(app))
    const line = sshLine(app.settings, machine.name)
    return {
      json: { ...document, name: machine.name, ssh: document.ssh_dest, state: document.status },
      text: ready
        ? `${machine.name}, a copy of ${source.name}, is ready after ${sayDuration(Date.now() - startedAt)}: ${line}\n`
        : `${machine.name}, a copy of ${source.name}, is being made; ssh waits for it: ${line}\n`,
    }
  },
})
