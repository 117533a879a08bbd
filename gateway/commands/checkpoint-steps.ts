/** What the commands about checkpoints, and those that make machines of them, have in common. */
import type { CheckpointState } from '../../migrations/schema.ts'
import type { App, Caller } from '../app.ts'
import type { Machine } from '../machines.ts'
import type { Context } from './command.ts'
import { CommandError } from './error.ts'
import { recordEvent, type Tx, untilNews } from './machine-steps.ts'
import { sayBytes, sayList, shown } from './values.ts'

/** Each shares what it has in common with its machine, so they are cheap; what they hold alone is not, and adds up. */
export const CHECKPOINTS_MOST = 50
/** A disk that others write to takes its time for many gigabytes of memory. */
const TAKEN_TIMEOUT_MS = 600_000

export type Checkpoint = {
  id: number
  comment: string
  createdAt: Date
  desiredState: 'kept' | 'gone'
  state: CheckpointState
  reason: string | null
  takenAt: Date | null
  diskBytes: number | null
  cpus: number | null
  /** of the machine that it is; null: the disk alone, or not taken yet */
  memoryBytes: number | null
  /** what its memory takes on the disk */
  savedBytes: number | null
  heldBytes: number | null
  stillMs: number | null
}

/** Those of a machine that are there, or are to be: the oldest first, without those for copies. Index: checkpoints_by_machine. */
export async function listCheckpoints(sql: Tx, machineId: number): Promise<Checkpoint[]> {
  return await sql.unsafe<Checkpoint[]>(
    `${SELECT} where machine_id = $1 and not for_copy and observed_state <> 'gone' and desired_state = 'kept' order by id`,
    [machineId],
  )
}

async function oneCheckpoint(sql: Tx, id: number): Promise<Checkpoint | undefined> {
  const rows = await sql.unsafe<Checkpoint[]>(`${SELECT} where id = $1`, [id])
  return rows[0]
}

const SELECT = `select id, comment, created_at as "createdAt", desired_state as "desiredState", observed_state as state,
  observed_reason as reason, observed_taken_at as "takenAt", observed_disk_bytes as "diskBytes", observed_cpus as cpus,
  observed_memory_bytes as "memoryBytes", observed_saved_bytes as "savedBytes", observed_held_bytes as "heldBytes",
  observed_still_ms as "stillMs" from checkpoints`

/**
 * The checkpoint of that number among those of a machine, in whatever state.
 * @throws CommandError 'checkpoint.not_found' (3) that names those there are
 */
export async function findCheckpoint(sql: Tx, machine: Machine, typed: string): Promise<Checkpoint> {
  const all = await listCheckpoints(sql, machine.id)
  const found = all.find(({ id }) => String(id) === typed)
  if (found) return found
  const ids = all.map(({ id }) => String(id))
  throw new CommandError('checkpoint.not_found', 3, `${machine.name} has no checkpoint ${shown(typed)}`, {
    wayOn: ids.length
      ? `it has ${sayList(ids)}: checkpoints ${machine.name}`
      : `to take one: checkpoint ${machine.name}`,
  })
}

/**
 * Wants one more, within the transaction that wants it. Those that failed make room for it.
 * @param wanted.besides one that is needed, and not to be given up for it
 * @throws CommandError 'checkpoint.limit' (4)
 */
export async function wantCheckpoint(
  tx: Tx,
  caller: Caller,
  machine: { id: number; name: string },
  wanted: { comment: string; forCopy?: boolean; diskOnly: boolean; besides?: number },
): Promise<number> {
  // Two at once would both be the fiftieth.
  await tx.unsafe('select from machines where id = $1 for update', [machine.id])
  await tx.unsafe(
    `update checkpoints set desired_state = 'gone'
     where machine_id = $1 and observed_state = 'failed' and desired_state = 'kept'`,
    [machine.id],
  )
  const there = await listCheckpoints(tx, machine.id)
  if (!wanted.forCopy && there.length >= CHECKPOINTS_MOST) {
    throw new CommandError(
      'checkpoint.limit',
      4,
      `${machine.name} has ${there.length} checkpoints, which is as many as there may be`,
      {
        wayOn: `checkpoint rm ${machine.name} ${there.find(({ id }) => id !== wanted.besides)?.id} removes the oldest`,
      },
    )
  }
  const rows = await tx.unsafe<{ id: number }[]>(
    `insert into checkpoints (machine_id, account_id, comment, for_copy, disk_only)
     values ($1, $2, $3, $4, $5) returning id`,
    [machine.id, caller.accountId, wanted.comment, wanted.forCopy ?? false, wanted.diskOnly],
  )
  const [row] = rows
  if (!row) throw new Error('an inserted checkpoint was not returned')
  return row.id
}

/**
 * Waits until a checkpoint was taken.
 * @returns as it is then; `gone` for one that was for a copy which is there already
 * @throws CommandError 'checkpoint.failed' (1) with the server's reason, 'machine.timeout' (1)
 */
export async function untilTaken(
  context: Context,
  machine: { id: number; name: string },
  id: number,
): Promise<Checkpoint> {
  const { app } = context
  let found: Checkpoint | undefined
  await untilNews(
    context,
    machine,
    async () => {
      found = await oneCheckpoint(app.sql, id)
      return found?.state !== 'waiting' || found.desiredState === 'gone'
    },
    TAKEN_TIMEOUT_MS,
  )
  // One that failed and was removed before anybody looked has its reason still.
  if (found?.state === 'failed' || (found?.state === 'gone' && found.reason !== null))
    throw notTaken(machine.name, found.reason)
  if (found?.state === 'kept' || found?.state === 'gone') return found
  throw new CommandError('checkpoint.not_found', 3, `checkpoint ${id} of ${machine.name} was removed meanwhile`)
}

function notTaken(name: string, reason: string | null): CommandError {
  return new CommandError(
    'checkpoint.failed',
    1,
    `the checkpoint of ${name} failed: ${reason ?? 'no reason was reported'}`,
    {
      wayOn: `${name} itself is as it was`,
    },
  )
}

/** Removes one that is to be had no more, unless a machine is about to become it. */
export async function unwantCheckpoint(
  app: App,
  caller: Caller,
  machine: { id: number; name: string },
  id: number,
): Promise<void> {
  await app.sql.begin(async (tx) => {
    const [used] = await tx<{ name: string }[]>`
      select name from machines where restore_from = ${id} and observed_restore < desired_restore
        and desired_state not in ('trashed', 'gone') and observed_state <> 'gone' limit 1`
    if (used) {
      throw new CommandError('checkpoint.in_use', 5, `checkpoint ${id} is just being made ${used.name}`, {
        wayOn: 'try again in a moment',
      })
    }
    const rows = await tx`update checkpoints set desired_state = 'gone'
      where id = ${id} and machine_id = ${machine.id} and desired_state = 'kept' returning id`
    if (rows.length) await recordEvent(tx, caller, 'machine.checkpoint-removed', machine, { checkpoint: id })
  })
}

/** A checkpoint as `--json` shows it. Sizes in bytes, times in ISO 8601 UTC. */
export function checkpointDocument(machine: { name: string }, checkpoint: Checkpoint) {
  const { id, comment, state, reason, createdAt, takenAt, diskBytes, savedBytes, heldBytes, stillMs, memoryBytes } =
    checkpoint
  return {
    id,
    vm_name: machine.name,
    comment,
    state,
    ...(reason === null ? {} : { reason }),
    /** null: not known yet */
    with_memory: state === 'kept' ? memoryBytes !== null : null,
    created_at: createdAt.toISOString(),
    taken_at: takenAt?.toISOString() ?? null,
    disk_bytes: diskBytes,
    memory_bytes: savedBytes,
    held_bytes: heldBytes,
    still_ms: stillMs,
  }
}

/** `disk and 125 MiB of memory`. */
export function contentOf({ state, memoryBytes, savedBytes }: Checkpoint): string {
  if (state === 'waiting') return 'is being taken'
  if (state === 'failed') return 'failed'
  return memoryBytes === null ? 'disk' : `disk and ${sayBytes(savedBytes ?? 0)} of memory`
}
