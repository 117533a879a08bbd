import { refuseBeyondCaps } from '../billing/caps.ts'
import type { Machine } from '../machines.ts'
import { admitStart } from './admission.ts'
import { checkpointIds } from './checkpoint.ts'
import { type Checkpoint, findCheckpoint, wantCheckpoint } from './checkpoint-steps.ts'
import { type Context, defineCommand, type Result } from './command.ts'
import { machineNames } from './complete.ts'
import { admitCopy, untilCopied } from './copying.ts'
import { CommandError, usageError } from './error.ts'
import { hostNames, machineDocument, sshLine } from './machine-document.ts'
import { reachable, recordEvent, untilSettled, untilSshWorks, whilePatient } from './machine-steps.ts'
import { validName } from './names/valid.ts'
import { oneMachineOnly } from './permission.ts'
import { refuseSuspended } from './power-steps.ts'
import { sayDuration } from './values.ts'

/** The state before is written first, which takes as long as a sleep, and longer on a busy disk. */
const RESTORED_TIMEOUT_MS = 600_000

export const restore = defineCommand({
  name: 'restore',
  group: 'machines',
  onMachines: true,
  summary: 'bring a machine back to a checkpoint, or make another one of it',
  description:
    'The state before is kept as a checkpoint too, so that a restore can be taken back. One with memory goes on with every program as it was then; of a disk alone the machine boots. With --as the machine stays as it is, and NEW is another one.',
  flags: {
    as: { type: 'string', value: 'NEW', summary: 'as a machine of its own' },
    'no-wait': { type: 'boolean', summary: 'return at once' },
  },
  arguments: {
    name: { label: 'NAME', complete: machineNames },
    id: { label: 'ID', complete: checkpointIds },
  },
  examples: ['restore demo 3', 'restore demo 3 --as demo-before'],
  async run(context, { flags, args }) {
    const { app, caller } = context
    const machine = await reachable(app, caller, args.name)
    const checkpoint = await findCheckpoint(app.sql, machine, args.id)
    if (checkpoint.state !== 'kept') {
      throw new CommandError(
        'checkpoint.not_ready',
        checkpoint.state === 'waiting' ? 5 : 1,
        checkpoint.state === 'waiting'
          ? `checkpoint ${checkpoint.id} is still being taken`
          : `checkpoint ${checkpoint.id} failed: ${checkpoint.reason ?? 'no reason was reported'}`,
        { wayOn: `checkpoints ${machine.name}` },
      )
    }
    const noWait = flags['no-wait'] === true
    return flags.as === undefined
      ? await inPlace(context, machine, checkpoint, noWait)
      : await asAnother(context, machine, checkpoint, validName(flags.as), noWait)
  },
})

async function inPlace(context: Context, machine: Machine, checkpoint: Checkpoint, noWait: boolean): Promise<Result> {
  const { app, caller, progress } = context
  const startedAt = Date.now()
  const { restore: number, keeps } = await wantRestore(context, machine, checkpoint)
  app.pool.forget(machine.id)
  progress.show(`${machine.name}: going back to checkpoint ${checkpoint.id}`)
  const ready = noWait
    ? undefined
    : await whilePatient(context, async (waiting) => {
        await untilSettled(
          waiting,
          machine,
          (seen) => {
            if (!seen) throw new CommandError('machine.not_found', 3, `${machine.name} was deleted meanwhile`)
            return seen.observedRestore >= number
          },
          RESTORED_TIMEOUT_MS,
        )
        const seen = await app.machines.byId(machine.id, caller)
        const problem = seen?.observedRestoreProblem
        if (problem) {
          throw new CommandError('checkpoint.not_restored', 1, `${machine.name} is as it was: ${problem}`, {
            wayOn: `checkpoints ${machine.name}`,
          })
        }
        return await untilSshWorks(waiting, machine.id)
      })
  const shown = ready ?? (await app.machines.byId(machine.id, caller)) ?? machine
  if (ready?.observedReason) await context.remark(`${ready.name}: ${ready.observedReason}\n`)
  return {
    json: { ...machineDocument(shown, app.settings, await hostNames(app)), restored: checkpoint.id, kept_as: keeps },
    text: ready
      ? `${machine.name} is as it was at checkpoint ${checkpoint.id} after ${sayDuration(Date.now() - startedAt)}; what it was before is checkpoint ${keeps}\n`
      : `${machine.name} goes back to checkpoint ${checkpoint.id}; what it is now is kept as checkpoint ${keeps}\n`,
  }
}

async function wantRestore({ app, caller }: Context, machine: Machine, checkpoint: Checkpoint) {
  return await app.sql.begin(async (tx) => {
    await refuseSuspended(tx, caller.accountId)
    const memoryBytes = checkpoint.memoryBytes ?? machine.memoryBytes
    const cpus = checkpoint.cpus ?? machine.cpus
    await admitStart(tx, { ...machine, memoryBytes })
    const keeps = await wantCheckpoint(tx, caller, machine, {
      comment: `before it went back to ${checkpoint.id}`,
      diskOnly: false,
      besides: checkpoint.id,
    })
    // Whoever removes it at this moment waits, and then sees that it is wanted.
    const held = await tx`select from checkpoints where id = ${checkpoint.id} and desired_state = 'kept' for update`
    const rows = held.length
      ? await tx<{ restore: number }[]>`
          update machines set desired_state = 'running', restore_from = ${checkpoint.id}, restore_keeps = ${keeps},
            desired_restore = desired_restore + 1, memory_bytes = ${memoryBytes}, cpus = ${cpus},
            restore_cpus_before = cpus, restore_memory_bytes_before = memory_bytes, restore_state_before = desired_state
          where id = ${machine.id} and desired_state not in ('trashed', 'gone') and observed_restore = desired_restore
          returning desired_restore as restore`
      : []
    const [row] = rows
    if (!row) {
      throw new CommandError(
        'machine.overtaken',
        1,
        `something else was asked of ${machine.name}, or its checkpoint, meanwhile`,
        {
          wayOn: `ls ${machine.name}`,
        },
      )
    }
    // A checkpoint has the size that the machine had, which may be more than its plan is for by now.
    const raised = [
      ...(cpus > machine.cpus ? (['cpus'] as const) : []),
      ...(memoryBytes > machine.memoryBytes ? (['memory'] as const) : []),
    ]
    if (raised.length > 0) await refuseBeyondCaps(tx, caller.accountId, raised)
    await recordEvent(tx, caller, 'machine.restore', machine, { checkpoint: checkpoint.id, kept_as: keeps })
    return { restore: row.restore, keeps }
  })
}

async function asAnother(
  context: Context,
  source: Machine,
  checkpoint: Checkpoint,
  name: string,
  noWait: boolean,
): Promise<Result> {
  const { app, caller } = context
  if (caller.scope?.machineId !== undefined) {
    throw oneMachineOnly()
  }
  if (name === source.name) throw usageError(`${name} is the machine itself`, `restore ${name} ${checkpoint.id}`)
  const startedAt = Date.now()
  const copy = await admitCopy(app, caller, source, {
    name,
    cpus: checkpoint.cpus ?? source.cpus,
    memoryBytes: checkpoint.memoryBytes ?? source.memoryBytes,
    diskBytes: checkpoint.diskBytes ?? source.diskBytes,
    tags: source.tags,
    checkpoint,
  })
  const ready = noWait ? undefined : await untilCopied(context, source, copy)
  const machine = ready ?? (await app.machines.byId(copy.id, caller))
  if (!machine) throw new CommandError('machine.not_found', 3, `${name} was deleted meanwhile`)
  if (ready?.observedReason) await context.remark(`${ready.name}: ${ready.observedReason}\n`)
  const line = sshLine(app.settings, name)
  return {
    json: machineDocument(machine, app.settings, await hostNames(app)),
    text: ready
      ? `${name}, ${source.name} as it was at checkpoint ${checkpoint.id}, is ready after ${sayDuration(Date.now() - startedAt)}: ${line}\n`
      : `${name}, ${source.name} as it was at checkpoint ${checkpoint.id}, is being made; ssh waits for it: ${line}\n`,
  }
}
