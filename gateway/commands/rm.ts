import type { Machine } from '../machines.ts'
import type { Context } from './command.ts'
import { defineCommand } from './command.ts'
import { machineNames } from './complete.ts'
import { CommandError, usageError, wayOnOf } from './error.ts'
import { namedOnce, noSuchMachine, recordEvent, untilSettled, whilePatient } from './machine-steps.ts'
import { tellLost } from './power.ts'
import { findTrashed, TRASH_DAYS } from './trash.ts'
import { sayList, shown } from './values.ts'

/** After this long the person need not wait: the server finishes by itself. */
const GONE_TIMEOUT_MS = 30_000

export const rm = defineCommand({
  name: 'rm',
  aliases: ['delete'],
  group: 'machines',
  onMachines: true,
  summary: `put machines into the trash, for ${TRASH_DAYS} days`,
  description:
    'The name is free at once, and untrash brings the machine back. With --now machine and disk are gone for good; that also works on what is in the trash. On a terminal --now asks for the name.',
  flags: {
    now: { type: 'boolean', summary: 'delete for good, disk and all' },
    force: { type: 'boolean', short: 'f', summary: 'do not ask', aliases: ['yes'] },
  },
  arguments: { names: { label: 'NAME', repeated: true, complete: machineNames } },
  examples: ['rm demo', 'rm --now web-1 web-2'],
  async run(context, { flags, args }) {
    const names = namedOnce(args.names)
    if (flags.now && !flags.force) for (const name of names) await confirm(context, name)
    const outcomes: Outcome[] = await Promise.all(names.map((name) => remove(context, name, flags.now === true)))
    const deleted = outcomes.filter((outcome) => !outcome.error).map((outcome) => outcome.name)
    const failures = outcomes.flatMap((outcome) => (outcome.error ? [outcome.error] : []))
    const [first] = failures
    return {
      json: {
        deleted,
        failed: outcomes.filter((outcome) => outcome.error).map((outcome) => outcome.name),
        not_found: outcomes.filter((outcome) => outcome.error?.exit === 3).map((outcome) => outcome.name),
        errors: Object.fromEntries(outcomes.flatMap(({ name, error }) => (error ? [[name, error.message]] : []))),
        // Where nothing was done it is an error document as well.
        ...(first && deleted.length === 0 ? { error: first.message, code: first.code, ...wayOnOf(first) } : {}),
      },
      text: deleted.length ? told(deleted, flags.now === true) : '',
      failures,
    }
  },
})

type Outcome = { name: string; error?: CommandError }

function told(names: string[], now: boolean): string {
  const list = sayList(names)
  const are = names.length === 1 ? 'is' : 'are'
  if (now) return `${list} ${are} gone\n`
  const back = names.length === 1 ? `untrash ${names[0]}` : 'untrash NAME'
  return `${list} ${are} in the trash for ${TRASH_DAYS} days; to have ${names.length === 1 ? 'it' : 'one'} back: ${back}\n`
}

async function confirm(context: Context, name: string): Promise<void> {
  const machine = await removable(context, name, true)
  if (!machine) return
  const answer = await context.ask(`this cannot be undone; type ${name} to delete it and its disk: `)
  if (answer !== undefined && answer.trim() !== name) {
    throw usageError('that is not the name; nothing was deleted', `without asking: rm --now -f ${name}`)
  }
}

async function remove(context: Context, name: string, now: boolean): Promise<Outcome> {
  try {
    const machine = await removable(context, name, now)
    if (!machine) throw await noSuchMachine(context.app, context.caller, name)
    await put(context, machine, now)
    if (!now) await tellLost(context, machine)
    return { name }
  } catch (error) {
    return { name, error: context.asCommandError(error) }
  }
}

async function removable({ app, caller }: Context, name: string, now: boolean): Promise<Machine | undefined> {
  const machine = await app.machines.find(name, caller)
  if (machine || !now) return machine
  return await findTrashed(app, caller, name)
}

/** Wanted state, name and record change together; the name is free for others from that moment. */
async function put(context: Context, machine: Machine, now: boolean): Promise<void> {
  const { app, caller, progress } = context
  await app.sql.begin(async (tx) => {
    const rows = await tx`
      update machines set desired_state = ${now ? 'gone' : 'trashed'}, trashed_at = coalesce(trashed_at, now())
      where id = ${machine.id} and desired_state <> 'gone' and (${now} or desired_state <> 'trashed') returning id`
    // Somebody else was quicker, which is as good.
    if (rows.length === 0) return
    await tx`delete from machine_names where machine_id = ${machine.id}`
    await recordEvent(tx, caller, now ? 'machine.deleted' : 'machine.trashed', machine, { was: machine.desiredState })
  })
  app.pool.forget(machine.id)
  if (!now) return
  progress.show(`${machine.name}: deleting`)
  try {
    await whilePatient(context, (waiting) => untilSettled(waiting, machine, (seen) => !seen, GONE_TIMEOUT_MS))
  } catch (error) {
    if (!(error instanceof CommandError && error.code === 'machine.timeout')) throw error
    await context.remark(`${shown(machine.name)} is being deleted; its server is slow to answer\n`)
  }
}
