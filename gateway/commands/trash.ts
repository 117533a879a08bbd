import type { App, Caller } from '../app.ts'
import { refuseBeyondCaps } from '../billing/caps.ts'
import type { Machine } from '../machines.ts'
import { admitBack, admitStart, claimName } from './admission.ts'
import type { Completer } from './command.ts'
import { defineCommand } from './command.ts'
import { CommandError } from './error.ts'
import { hostNames, machineDocument, sshLine } from './machine-document.ts'
import { recordEvent, untilSshWorks, whilePatient } from './machine-steps.ts'
import { validName } from './names/valid.ts'
import { table } from './text.ts'
import { sayBytes, sayDuration, sayList, sayWhen, shown } from './values.ts'

/** How long the vmhost keeps what is in the trash, unless its space is needed. */
export const TRASH_DAYS = 7
const TRASH_MS = TRASH_DAYS * 86_400_000

type Trashed = { id: number; name: string; image: string; disk_bytes: number; trashed_at: Date }

/** What an account has in the trash, the newest first. */
async function listTrash({ sql }: App, { accountId }: Caller): Promise<Trashed[]> {
  return await sql<Trashed[]>`
    select id, name, image, disk_bytes, coalesce(trashed_at, created_at) as trashed_at from machines
    where account_id = ${accountId} and desired_state = 'trashed' and observed_state <> 'gone'
    order by trashed_at desc, id desc`
}

/** The machine of that name that was put into the trash last. */
export async function findTrashed(app: App, caller: Caller, name: string): Promise<Machine | undefined> {
  const found = (await listTrash(app, caller)).find((machine) => machine.name === name)
  return found && (await app.machines.byId(found.id, caller))
}

const trashedNames: Completer = async ({ app, caller }) => (await listTrash(app, caller)).map((machine) => machine.name)

export const trash = defineCommand({
  name: 'trash',
  group: 'machines',
  summary: 'what is in the trash, and until when',
  description: 'A machine in the trash is off, costs nothing and goes for good when its time or the disk is up.',
  async run({ app, caller }) {
    const machines = await listTrash(app, caller)
    const goesAt = (machine: Trashed) => new Date(machine.trashed_at.getTime() + TRASH_MS)
    return {
      json: {
        vms: machines.map((machine) => ({
          vm_name: machine.name,
          image: machine.image,
          disk_capacity_bytes: machine.disk_bytes,
          trashed_at: machine.trashed_at.toISOString(),
          goes_at: goesAt(machine).toISOString(),
        })),
      },
      text: (view) =>
        machines.length === 0
          ? 'the trash is empty\n'
          : table(
              machines,
              [
                { title: 'name', value: (m) => m.name, flexible: true },
                { title: 'image', value: (m) => m.image, flexible: true, optional: 1 },
                { title: 'disk', value: (m) => sayBytes(m.disk_bytes), right: true, optional: 2 },
                { title: 'trashed', value: (m) => sayWhen(m.trashed_at) },
                { title: 'goes', value: (m) => sayExpiry(goesAt(m)), optional: 3 },
              ],
              view,
            ),
    }
  },
})

/** Its server empties the trash when it next looks, which takes longer when the server is away. */
function sayExpiry(at: Date): string {
  return at.getTime() <= Date.now() ? 'any moment' : sayWhen(at)
}

export const untrash = defineCommand({
  name: 'untrash',
  aliases: ['restore-trash'],
  group: 'machines',
  summary: 'bring a machine back from the trash, disk, address and all',
  description:
    'It is as it was: running if it was running; one that slept is off. Where several had the name, the last one trashed comes back.',
  flags: {
    as: { type: 'string', value: 'NEW', summary: 'under another name' },
    'no-wait': { type: 'boolean', summary: 'return at once' },
  },
  arguments: { name: { label: 'NAME', complete: trashedNames } },
  examples: ['untrash demo', 'untrash demo --as demo-old'],
  async run(context, { flags, args }) {
    const { app, caller } = context
    const startedAt = Date.now()
    const machine = await findTrashed(app, caller, args.name)
    if (!machine) throw await notInTrash(app, caller, args.name)
    const name = flags.as === undefined ? machine.name : validName(flags.as)
    const { desired, slept } = await app.sql.begin(async (tx) => {
      await admitBack(tx, caller)
      const was = await stateBefore(tx, machine.id)
      const state = was === 'running' ? 'running' : 'stopped'
      if (state === 'running') await admitStart(tx, { ...machine, name })
      const rows = await tx`
        update machines set name = ${name}, desired_state = ${state}, trashed_at = null,
          desired_boot = desired_boot + ${state === 'running' ? 1 : 0}
        where id = ${machine.id} and desired_state = 'trashed' and observed_state <> 'gone' returning id`
      if (rows.length === 0) throw await notInTrash(app, caller, args.name)
      await claimName(tx, caller, { id: machine.id, name })
      await refuseBeyondCaps(tx, caller.accountId)
      await recordEvent(
        tx,
        caller,
        'machine.untrashed',
        { id: machine.id, name },
        name === machine.name ? {} : { was: machine.name },
      )
      return { desired: state, slept: was === 'asleep' || was === 'paused' }
    })
    if (desired === 'running' && !flags['no-wait']) {
      await whilePatient(context, (waiting) => untilSshWorks(waiting, machine.id))
    }
    const back = await app.machines.find(name, caller)
    const line = sshLine(app.settings, name)
    return {
      json: back ? machineDocument(back, app.settings, await hostNames(app)) : { vm_name: name },
      text:
        desired === 'running'
          ? `${name} is back${flags['no-wait'] ? '' : ` after ${sayDuration(Date.now() - startedAt)}`}: ${line}\n`
          : `${name} is back and ${desired}${slept ? '' : ', as it was'}; to start it: start ${name}\n`,
    }
  },
})

/** What was wanted of a machine before the trash, as the record has it. A sleeper's memory is not kept there. */
async function stateBefore(tx: Parameters<typeof admitStart>[0], machineId: number): Promise<string> {
  // Index events_by_machine.
  const [event] = await tx<{ was: string | null }[]>`
    select detail->>'was' as was from events where machine_id = ${machineId} and kind = 'machine.trashed'
    order by id desc limit 1`
  return event?.was || 'running'
}

async function notInTrash(app: App, caller: Caller, name: string): Promise<CommandError> {
  const names = (await listTrash(app, caller)).map((machine) => machine.name)
  return new CommandError('machine.not_found', 3, `nothing called ${shown(name)} is in the trash`, {
    wayOn: names.length ? `in the trash: ${sayList(names)}` : 'the trash is empty',
  })
}
