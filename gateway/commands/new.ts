import { type Machine, MachineNotReadyError } from '../machines.ts'
import { admitMachine, type MachineWish, wouldAdmit } from './admission.ts'
import type { Context, Result } from './command.ts'
import { defineCommand } from './command.ts'
import { readDefaults } from './defaults.ts'
import { environmentOf } from './env.ts'
import { CommandError, usageError } from './error.ts'
import { settingOf } from './idle-time.ts'
import { imageNames } from './images.ts'
import { validComment, validTags } from './labels.ts'
import { hostNames, httpsUrl, lobbyLine, machineDocument, sshDest, sshLine } from './machine-document.ts'
import { recordEvent, untilSshWorks, whilePatient } from './machine-steps.ts'
import { validName } from './names/valid.ts'
import { oneMachineOnly } from './permission.ts'
import { setupLogLine, untilSetupEnded } from './setup/wait.ts'
import { MACHINE_SIZES, parseSize, sayBytes, sayDuration } from './values.ts'

const SCRIPT_LIMIT_BYTES = 64 * 1024

const FLAGS = {
  name: { type: 'string', summary: 'the same as NAME', hidden: true },
  image: {
    type: 'string',
    value: 'REF',
    summary: 'what its disk is made from: base, minimal, or an image of a registry; base unless given',
    complete: imageNames,
  },
  cpu: { type: 'integer', min: 1, max: 256, summary: 'virtual CPUs; 2 unless given' },
  memory: { type: 'size', min: MACHINE_SIZES.memory.min, summary: 'memory; 4G unless given' },
  disk: {
    type: 'size',
    min: MACHINE_SIZES.disk.min,
    value: '20G',
    summary: 'disk; 20G unless given, it takes only what is written',
  },
  env: {
    type: 'string',
    repeated: true,
    value: 'K=V',
    secret: true,
    summary: 'a variable that every session and service sees',
  },
  tag: { type: 'string', repeated: true, value: 'T', summary: 'a word to group machines by' },
  comment: { type: 'string', value: 'S', summary: 'a line about it' },
  command: {
    type: 'string',
    value: 'CMD',
    secret: true,
    summary: "where the image has no init: auto runs the image's own program, none nothing; or a line for its shell",
    complete: () => ['auto', 'none'],
  },
  'setup-script': {
    type: 'string',
    value: '-|S',
    secret: true,
    summary: 'a script run once as its user, - reads it from stdin',
  },
  'sleep-after': {
    type: 'duration',
    never: true,
    summary: 'idle time before it sleeps, or never; as your account has it unless given',
  },
  'no-wait': { type: 'boolean', summary: 'return as soon as it is admitted' },
  'dry-run': { type: 'boolean', summary: 'say what would be made, under which name, and make nothing' },
  'no-email': { type: 'boolean', summary: 'taken for compatibility; no mail is sent', hidden: true },
} as const

export const newMachine = defineCommand({
  name: 'new',
  group: 'machines',
  onMachines: true,
  summary: 'make a machine; returns when SSH works',
  description: 'Without a NAME the machine gets a free one of two words. Ctrl-C stops the waiting, not the making.',
  flags: FLAGS,
  arguments: { name: { label: 'NAME', optional: true } },
  examples: [
    'new',
    'new demo --memory 8G --tag web',
    'new web --image nginx:stable',
    "new api --env PORT=8000 --setup-script 'sudo apt-get install -y nginx'",
  ],
  async run(context, { flags, args }) {
    const { app, caller } = context
    if (caller.scope?.machineId !== undefined) {
      throw oneMachineOnly()
    }
    const startedAt = Date.now()
    if (flags.name !== undefined && args.name !== undefined && flags.name !== args.name) {
      throw usageError(`two names are given, ${args.name} and ${flags.name}`)
    }
    const name = args.name ?? flags.name
    const defaults = await readDefaults(app.sql, caller.accountId)
    const wish: MachineWish = {
      name: name === undefined ? undefined : validName(name),
      image: flags.image ?? defaults.image ?? 'base',
      cpus: flags.cpu ?? Number(defaults.cpu ?? 2),
      memoryBytes: flags.memory ?? parseSize(defaults.memory ?? '4G', 'the default memory', MACHINE_SIZES.memory),
      diskBytes: flags.disk ?? parseSize(defaults.disk ?? '20G', 'the default disk', MACHINE_SIZES.disk),
      env: environmentOf(flags.env),
      tags: validTags([...flags.tag, ...(caller.scope?.tag === undefined ? [] : [caller.scope.tag])]),
      comment: validComment(flags.comment ?? ''),
      command: validCommand(flags.command ?? 'auto'),
      ...settingOf(flags['sleep-after']),
      setupScript: await setupScript(context, flags['setup-script']),
    }
    if (flags['dry-run']) return await tried(context, wish)
    const made = await admitMachine(app, caller, wish)
    if (flags['no-wait']) return await admitted(context, made)
    context.progress.show(`${made.name}: waiting for its server`)
    try {
      const machine = await whilePatient(context, async (waiting) => {
        const answering = await untilSshWorks(waiting, made.id)
        // A script may take hours; its state is in the document.
        if (wish.setupScript === null || context.io.patienceMs !== undefined) return answering
        const after = sayDuration(Date.now() - startedAt)
        await context.remark(`${answering.name} answers after ${after}; its setup script runs\n`)
        return await untilSetupEnded(waiting, answering)
      })
      return machine ? await ready(context, machine, Date.now() - startedAt) : await admitted(context, made)
    } catch (error) {
      if (error instanceof MachineNotReadyError && error.code === 'machine.failed') await giveUpUnmade(context, made)
      if (!context.signal.aborted) throw error
      throw new CommandError('interrupted', 1, `no longer waiting; ${made.name} goes on being made`, {
        wayOn: `to see how far it is: ${lobbyLine(app.settings, `ls ${made.name}`)}`,
        cause: error,
      })
    }
  },
})

async function tried({ app, caller }: Context, wish: MachineWish): Promise<Result> {
  const { name, host, image, cpus, memoryBytes, diskBytes, tags } = await wouldAdmit(app, caller, wish)
  return {
    json: {
      dry_run: true,
      vm_name: name,
      ssh_dest: sshDest(app.settings, name),
      https_url: httpsUrl(app.settings, name),
      image,
      images: await imageNames({ app, caller }),
      host,
      tags,
      allocated_cpus: cpus,
      memory_capacity_bytes: memoryBytes,
      disk_capacity_bytes: diskBytes,
    },
    text: `${name} would be made on ${host}: ${image}, ${cpus} cpu, ${sayBytes(memoryBytes)} memory, ${sayBytes(diskBytes)} disk; nothing was\n`,
  }
}

/**
 * A machine that failed before it had a disk, its image could not be had, is nothing that anybody would want back.
 * @throws CommandError that says why, when it was one
 */
async function giveUpUnmade({ app, caller }: Context, made: { id: number; name: string }): Promise<void> {
  const reason = await app.sql.begin(async (tx) => {
    const [row] = await tx<{ observed_reason: string | null }[]>`
      update machines set desired_state = 'gone', trashed_at = now() where id = ${made.id}
        and observed_state = 'failed' and observed_host_key is null and desired_state = 'running'
      returning observed_reason`
    if (!row) return undefined
    await tx`delete from machine_names where machine_id = ${made.id}`
    await recordEvent(tx, caller, 'machine.deleted', made, { was: 'failed' })
    return row.observed_reason ?? 'no reason was reported'
  })
  if (reason === undefined) return
  throw new CommandError('machine.not_made', 1, `${made.name} was not made, and nothing is left of it: ${reason}`, {
    wayOn: 'what else there is to make machines from: doc images',
  })
}

async function ready({ app }: Context, machine: Machine, tookMs: number) {
  const document = machineDocument(machine, app.settings, await hostNames(app))
  const { setupState, setupExitStatus } = machine
  if (setupState === 'failed') {
    throw new CommandError('machine.setup_failed', 1, setupFailure(machine.name, setupExitStatus), {
      wayOn: `the machine is there; the script's log: ${setupLogLine(app.settings, machine.name)}`,
      detail: { ...document },
    })
  }
  const line = sshLine(app.settings, machine.name)
  const setup =
    setupState === null
      ? ''
      : `setup script ended with status 0; its log: ${setupLogLine(app.settings, machine.name)}\n`
  return {
    json: document,
    text: (view: { columns: number; style: { bold: (t: string) => string; accent: (t: string) => string } }) => {
      const head = `${machine.name} is ready after ${sayDuration(tookMs)}`
      const joint = head.length + 2 + line.length <= view.columns ? ': ' : ':\n'
      return `${setup}${view.style.bold(machine.name)}${head.slice(machine.name.length)}${joint}${view.style.accent(line)}\n`
    },
  }
}

function setupFailure(name: string, status: number | null): string {
  return status === null
    ? `${name} is ready, but its setup script could not be run to its end`
    : `${name} is ready, but its setup script ended with status ${status}`
}

async function admitted({ app, caller }: Context, made: { id: number; name: string }) {
  const machine = await app.machines.byId(made.id, caller)
  if (!machine) throw new CommandError('machine.not_found', 3, `${made.name} was deleted meanwhile`)
  return {
    json: machineDocument(machine, app.settings, await hostNames(app)),
    text: `${made.name} is being made; ssh waits for it: ${sshLine(app.settings, made.name)}\n`,
  }
}

/** Clients of `POST /exec` send every backslash of a script as two, as exe.dev's take it. */
function unescaped({ caller }: Context, script: string): string {
  return caller.via === 'exec' ? script.replaceAll('\\\\', '\\') : script
}

function validCommand(text: string): string {
  if (text.trim() === '') throw usageError('--command is auto, none or a command line', '--command=auto')
  if (text.length > 4096) throw usageError('--command has at most 4096 characters')
  return text
}

async function setupScript(context: Context, given: string | undefined): Promise<string | null> {
  if (given === undefined) return null
  const text =
    given === '-' ? await context.readStdin(SCRIPT_LIMIT_BYTES, 'the setup script') : unescaped(context, given)
  if (text.trim() === '') throw usageError('the setup script is empty')
  if (Buffer.byteLength(text) > SCRIPT_LIMIT_BYTES) throw usageError('the setup script is longer than 64 KiB')
  return text
}
