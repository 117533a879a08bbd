import type { App, Caller } from '../app.ts'
import { ANOTHER_MACHINE, refuseBeyondCaps } from '../billing/caps.ts'
import type { Machine } from '../machines.ts'
import { admitBack, admitStart, claimName } from './admission.ts'
import type { Completer, Context } from './command.ts'
import { defineCommand } from './command.ts'
import { CommandError, usageError } from './error.ts'
import { hostNames, machineDocument, sshLine } from './machine-document.ts'
import { eachName, namedOnce, recordEvent, tellEach, untilSshWorks, whilePatient } from './machine-steps.ts'
import { validName } from './names/valid.ts'
import { table } from './text.ts'
import { sayBytes, sayDuration, sayList, sayWhen, shown } from './values.ts'

/** How long the vmhost keeps what is in the trash, unless its space is needed. */
export const TRASH_DAYS = 7
const TRASH_MS = TRASH_DAYS * 86_400_000

type Trashed = { id: number; name: string; image: string; disk_bytes: number; trashed_at: Date }

/** What an account has in the trash, the newest first; of that name, where one is given. */
async function listTrash({ sql }: App, { accountId }: Caller, name?: string): Promise<Trashed[]> {
  return await sql<Trashed[]>`
    select id, name, image, disk_bytes, coalesce(trashed_at, created_at) as trashed_at from machines
    where account_id = ${accountId} and desired_state = 'trashed' and observed_state <> 'gone'
      ${name === undefined ? sql`` : sql`and name = ${name}`}
    order by trashed_at desc, id desc`
}

/** The machine of that name that was put into the trash last. */
export async function findTrashed(app: App, caller: Caller, name: string): Promise<Machine | undefined> {
  const [found] = await listTrash(app, caller, name)
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
  summary: 'bring machines back from the trash, disk, address and all',
  description:
    'Each is as it was: running, from its disk, if it was running; one that slept is off. Where several had the name, the last one trashed comes back.',
  flags: {
    as: { type: 'string', value: 'NEW', summary: 'one machine, under another name' },
    'no-wait': { type: 'boolean', summary: 'return at once' },
  },
  arguments: { names: { label: 'NAME', repeated: true, complete: trashedNames } },
  examples: ['untrash demo', 'untrash web-1 web-2', 'untrash demo --as demo-old'],
  async run(context, { flags, args }) {
    const { app, caller } = context
    const startedAt = Date.now()
    const isWaitedFor = flags['no-wait'] !== true
    const as = flags.as === undefined ? undefined : validName(flags.as)
    if (as !== undefined && namedOnce(args.names).length > 1) {
      throw usageError('--as names one machine, and this line brings back several', 'bring that one back by itself')
    }
    const { done, failed } = await eachName(context, args.names, (name) => bringBack(context, name, as, isWaitedFor))
    const hosts = await hostNames(app)
    const found = await Promise.all(done.map(({ value }) => app.machines.find(value.name, caller)))
    const vms = done.map(({ value }, index) => {
      const machine = found[index]
      return machine ? machineDocument(machine, app.settings, hosts) : { vm_name: value.name }
    })
    const took = isWaitedFor ? ` after ${sayDuration(Date.now() - startedAt)}` : ''
    const back = done.map(({ value }) => value)
    return { ...tellEach(vms, failed), text: told(back, took, (name) => sshLine(app.settings, name)) }
  },
})

type Back = { name: string; desired: 'running' | 'stopped'; slept: boolean }

/** @param as under another name than the one it had */
async function bringBack(context: Context, was: string, as: string | undefined, isWaitedFor: boolean): Promise<Back> {
  const { app, caller } = context
  const machine = await findTrashed(app, caller, was)
  if (!machine) throw await notInTrash(app, caller, was)
  const name = as ?? machine.name
  const back = await app.sql.begin(async (tx): Promise<Back | undefined> => {
    await admitBack(tx, caller)
    const before = await stateBefore(tx, machine.id)
    const desired = before === 'running' ? 'running' : 'stopped'
    if (desired === 'running') await admitStart(tx, { ...machine, name })
    const rows = await tx`
      update machines set name = ${name}, desired_state = ${desired}, trashed_at = null,
        desired_boot = desired_boot + ${desired === 'running' ? 1 : 0}
      where id = ${machine.id} and desired_state = 'trashed' and observed_state <> 'gone' returning id`
    // Somebody else was quicker. What there is instead is asked for outside: in here all connections may be waiting.
    if (rows.length === 0) return undefined
    await claimName(tx, caller, { id: machine.id, name })
    await refuseBeyondCaps(tx, caller.accountId, ANOTHER_MACHINE)
    const detail = name === machine.name ? {} : { was: machine.name }
    await recordEvent(tx, caller, 'machine.untrashed', { id: machine.id, name }, detail)
    return { name, desired, slept: before === 'asleep' || before === 'paused' }
  })
  if (!back) throw await notInTrash(app, caller, was)
  if (back.desired === 'running' && isWaitedFor) {
    await whilePatient(context, (waiting) => untilSshWorks(waiting, machine.id))
  }
  return back
}

function told(back: readonly Back[], took: string, sshTo: (name: string) => string): string {
  const running = back.filter(({ desired }) => desired === 'running')
  const off = back.filter(({ desired }) => desired === 'stopped')
  const are = (some: readonly Back[]) => `${sayList(some.map(({ name }) => name))} ${some.length === 1 ? 'is' : 'are'}`
  const [up] = running
  const [down] = off
  const asBefore = off.some(({ slept }) => slept) ? '' : `, as ${off.length === 1 ? 'it was' : 'they were'}`
  return [
    up ? `${are(running)} back${took}${running.length === 1 ? `: ${sshTo(up.name)}` : ''}\n` : '',
    down
      ? `${are(off)} back and stopped${asBefore}; to start ${off.length === 1 ? `it: start ${down.name}` : 'them: start NAME..'}\n`
      : '',
  ].join('')
}

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
