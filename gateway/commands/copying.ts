/** Machines that are made of a checkpoint: of one that is there, or of one that is taken for it. */
import type { App, Caller } from '../app.ts'
import { ANOTHER_MACHINE, refuseBeyondCaps } from '../billing/caps.ts'
import type { Machine } from '../machines.ts'
import {
  ADMISSION_LOCK,
  admitStart,
  assertAccount,
  claimAddress,
  claimName,
  DISK_RESERVE_BYTES,
  refuseBeyondServer,
  type ServerSize,
  short,
  UNDRAIN,
} from './admission.ts'
import { type Checkpoint, untilTaken, wantCheckpoint } from './checkpoint-steps.ts'
import type { Context } from './command.ts'
import { CommandError } from './error.ts'
import { recordEvent, untilSshWorks, whilePatient } from './machine-steps.ts'
import { chooseName } from './names/choose.ts'
import { sayBytes } from './values.ts'

export type CopyWish = {
  /** undefined: a free two-word name */
  name: string | undefined
  cpus: number
  memoryBytes: number
  diskBytes: number
  tags: string[]
} & (
  | { checkpoint: Checkpoint }
  /** one is taken for it */
  | { checkpoint: undefined; diskOnly: boolean }
)

export type Copy = { id: number; name: string; checkpointId: number }

/**
 * Admits a machine that is made of what `source` is, or was: on its server, since the two share blocks, with an address,
 * a name and a host key of its own. Private, whatever the source is.
 * @throws CommandError 'machine.name_taken' (1), 'account.limit' (4), 'capacity.*' (5)
 */
export async function admitCopy(app: App, caller: Caller, source: Machine, wish: CopyWish): Promise<Copy> {
  return await app.sql.begin(async (tx) => {
    await tx`select pg_advisory_xact_lock(hashtextextended(${ADMISSION_LOCK}, 0))`
    await assertAccount(tx, caller)
    const [host] = await tx<(ServerSize & { draining: boolean; live: boolean; store_free_bytes: number })[]>`
      select name, draining, lease_expires_at > now() as live, cpus, memory_bytes, machine_overhead_bytes, store_bytes,
        store_free_bytes from hosts where id = ${source.hostId}`
    if (!host?.live) throw short('capacity.server', `the server of ${source.name} is not up`, 'try again in a minute')
    if (host.draining)
      throw short(
        'capacity.draining',
        `the server of ${source.name} is being emptied and takes no new machines`,
        UNDRAIN,
      )
    if (host.store_free_bytes < DISK_RESERVE_BYTES) {
      throw short(
        'capacity.disk',
        `there is no space left on server ${host.name} for another disk to grow into`,
        'rm a machine --now, or make space on the server',
      )
    }
    // What the machine has its server gave it, be it more than it would today.
    refuseBeyondServer(host, {
      ...(wish.cpus > source.cpus ? { cpus: wish.cpus } : {}),
      ...(wish.memoryBytes > source.memoryBytes ? { memoryBytes: wish.memoryBytes } : {}),
      ...(wish.diskBytes > source.diskBytes ? { diskBytes: wish.diskBytes } : {}),
    })
    const checkpointId =
      wish.checkpoint?.id ??
      (await wantCheckpoint(tx, caller, source, {
        comment: '',
        forCopy: true,
        diskOnly: !wish.checkpoint && wish.diskOnly,
      }))
    const name = wish.name ?? (await chooseName(tx))
    const [row] = await tx<{ id: number }[]>`
      insert into machines (account_id, host_id, name, image, cpus, memory_bytes, disk_bytes, env, command, tags, comment,
        sleep_after_seconds, sleep_never, restore_from, desired_restore)
      select ${caller.accountId}, host_id, ${name}, image, ${wish.cpus}, ${wish.memoryBytes}, ${wish.diskBytes}, env,
        command, ${wish.tags}, comment, sleep_after_seconds, sleep_never, ${checkpointId}, 1
      from machines where id = ${source.id} and desired_state not in ('trashed', 'gone')
        and (${wish.checkpoint === undefined} or exists (select from checkpoints where id = ${checkpointId}
          and machine_id = ${source.id} and desired_state = 'kept' and observed_state = 'kept'))
      returning id`
    if (!row) throw new CommandError('machine.overtaken', 1, `${source.name}, or its checkpoint, was removed meanwhile`)
    const machine = { id: row.id, name }
    await claimName(tx, caller, machine)
    await claimAddress(tx, app.settings.network, row.id)
    await admitStart(tx, { ...machine, memoryBytes: wish.memoryBytes })
    if (source.webPort !== null) await tx`update machines set web_port = ${source.webPort} where id = ${row.id}`
    await recordEvent(tx, caller, 'machine.created', machine, {
      of: source.name,
      ...(wish.checkpoint ? { checkpoint: checkpointId } : {}),
      cpus: wish.cpus,
      memoryBytes: wish.memoryBytes,
      diskBytes: wish.diskBytes,
      host: host.name,
    })
    await refuseBeyondCaps(tx, caller.accountId, ANOTHER_MACHINE)
    return { ...machine, checkpointId }
  })
}

/**
 * Waits until a copy answers.
 * @returns undefined when whoever asked cannot wait any longer
 * @throws CommandError 'checkpoint.failed' (1): the copy was not taken, and nothing is left of the machine
 */
export async function untilCopied(context: Context, source: Machine, copy: Copy): Promise<Machine | undefined> {
  context.progress.show(`${copy.name}: copying ${source.name}`)
  return await whilePatient(context, async (waiting) => {
    try {
      await untilTaken(waiting, { id: copy.id, name: source.name }, copy.checkpointId)
    } catch (error) {
      if (error instanceof CommandError && error.code === 'checkpoint.failed') await giveUp(context, copy)
      throw error
    }
    return await untilSshWorks(waiting, copy.id)
  })
}

/** There is nothing in it yet that anybody could miss. */
async function giveUp({ app, caller }: Context, { id, name }: Copy): Promise<void> {
  await app.sql.begin(async (tx) => {
    await tx`update machines set desired_state = 'gone' where id = ${id}`
    await tx`delete from machine_names where machine_id = ${id}`
    await recordEvent(tx, caller, 'machine.deleted', { id, name }, { was: 'creating' })
  })
}

/** @throws CommandError (usage) for a disk smaller than what is to be in it */
export function largerDisk(wantedBytes: number | undefined, hasBytes: number): number {
  if (wantedBytes === undefined) return hasBytes
  const bytes = Math.ceil(wantedBytes / 2 ** 20) * 2 ** 20
  if (bytes >= hasBytes) return bytes
  throw new CommandError('usage', 2, `a disk only grows, and what is copied has ${sayBytes(hasBytes)}`)
}
