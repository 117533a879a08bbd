import {
  type Checkpoint,
  checkpointDocument,
  contentOf,
  findCheckpoint,
  listCheckpoints,
  untilTaken,
  unwantCheckpoint,
  wantCheckpoint,
} from './checkpoint-steps.ts'
import { type Completer, type Context, defineCommand } from './command.ts'
import { machineNames } from './complete.ts'
import { validComment } from './labels.ts'
import { reachable, recordEvent, whilePatient } from './machine-steps.ts'
import { harmless, table } from './text.ts'
import { sayBytes, sayDuration, sayWhen } from './values.ts'

const COMMENT_MOST = 200

/** Of all machines that one can reach: which one was typed before is not known here. */
export const checkpointIds: Completer = async ({ app, caller }) => {
  const machines = await app.machines.list(caller)
  const lists = await Promise.all(machines.map(({ id }) => listCheckpoints(app.sql, id)))
  return lists.flat().map(({ id }) => String(id))
}

export const checkpoint = defineCommand({
  name: 'checkpoint',
  group: 'machines',
  onMachines: true,
  summary: 'keep a machine as it is in this moment: disk, and memory where it has any',
  description:
    'One that runs stands still while its memory is written, and goes on. restore brings it back to that moment, or makes another machine of it. What a checkpoint shares with its machine takes no space.',
  flags: {
    'disk-only': {
      type: 'boolean',
      summary: 'without memory: it does not stand still, and what is restored of it boots',
    },
    'no-wait': { type: 'boolean', summary: 'return at once' },
  },
  arguments: { name: { label: 'NAME', complete: machineNames }, comment: { label: 'COMMENT', optional: true } },
  examples: ['checkpoint demo', "checkpoint demo 'before the upgrade'"],
  async run(context, { flags, args }) {
    const { app, caller, progress } = context
    const comment = validComment(args.comment ?? '', COMMENT_MOST)
    const machine = await reachable(app, caller, args.name)
    const id = await app.sql.begin(async (tx) => {
      const wanted = await wantCheckpoint(tx, caller, machine, { comment, diskOnly: flags['disk-only'] === true })
      await recordEvent(tx, caller, 'machine.checkpoint', machine, { checkpoint: wanted, comment })
      return wanted
    })
    progress.show(`${machine.name}: taking checkpoint ${id}`)
    const taken = flags['no-wait']
      ? undefined
      : await whilePatient(context, (waiting) => untilTaken(waiting, machine, id))
    const shown = taken ?? (await findCheckpoint(app.sql, machine, String(id)))
    return { json: checkpointDocument(machine, shown), text: `${inWords(machine.name, shown)}\n` }
  },
})

function inWords(name: string, one: Checkpoint): string {
  if (one.state !== 'kept') return `checkpoint ${one.id} of ${name} is being taken`
  const still =
    one.memoryBytes !== null && one.stillMs !== null ? `; it stood still for ${sayDuration(one.stillMs)}` : ''
  return `checkpoint ${one.id} of ${name} has its ${contentOf(one)}${still}`
}

export const checkpoints = defineCommand({
  name: 'checkpoints',
  aliases: ['checkpoint ls', 'checkpoint list'],
  group: 'machines',
  onMachines: true,
  summary: 'the checkpoints of a machine, and what they take',
  description:
    'held is what its removal would give back: what it shares with its machine, or with another checkpoint, is not in it.',
  arguments: { name: { label: 'NAME', complete: machineNames } },
  examples: ['checkpoints demo'],
  async run({ app, caller }, { args }) {
    const machine = await reachable(app, caller, args.name)
    const all = await listCheckpoints(app.sql, machine.id)
    return {
      json: { checkpoints: all.map((one) => checkpointDocument(machine, one)) },
      text: (view) =>
        all.length === 0
          ? `${machine.name} has no checkpoint; to take one: checkpoint ${machine.name}\n`
          : table<Checkpoint>(
              all,
              [
                { title: 'id', value: ({ id }) => String(id), right: true },
                { title: 'taken', value: ({ takenAt }) => (takenAt ? sayWhen(takenAt) : '') },
                { title: 'holds', value: contentOf },
                {
                  title: 'held',
                  value: ({ heldBytes }) => (heldBytes === null ? '' : sayBytes(heldBytes)),
                  right: true,
                  optional: 1,
                },
                { title: 'comment', value: ({ comment, reason }) => harmless(reason ?? comment), flexible: true },
              ],
              view,
            ),
    }
  },
})

export const checkpointRm = defineCommand({
  name: 'checkpoint rm',
  aliases: ['checkpoint remove', 'checkpoint delete'],
  group: 'machines',
  onMachines: true,
  summary: 'remove a checkpoint; its machine, and what was made of it, stay',
  arguments: { name: { label: 'NAME', complete: machineNames }, id: { label: 'ID', complete: checkpointIds } },
  examples: ['checkpoint rm demo 3'],
  run: (context, { args }) => remove(context, args.name, args.id),
})

async function remove({ app, caller }: Context, name: string, typed: string) {
  const machine = await reachable(app, caller, name)
  const { id, heldBytes } = await findCheckpoint(app.sql, machine, typed)
  await unwantCheckpoint(app, caller, machine, id)
  const freed = heldBytes ? `; that gives ${sayBytes(heldBytes)} back` : ''
  return {
    json: { vm_name: machine.name, removed: id },
    text: `checkpoint ${id} of ${machine.name} is removed${freed}\n`,
  }
}
