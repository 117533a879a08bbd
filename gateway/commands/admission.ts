import type postgres from 'postgres'
import type { HostImage } from '../../migrations/schema.ts'
import type { App, Caller } from '../app.ts'
import { ANOTHER_MACHINE, refuseBeyondCaps } from '../billing/caps.ts'
import { CommandError, usageError } from './error.ts'
import { mayBeReference } from './images.ts'
import { recordEvent } from './machine-steps.ts'
import { chooseName } from './names/choose.ts'
import { sayBytes, sayList, shown, typedSize } from './values.ts'

/**
 * Who may have what, decided under one lock for the whole installation: twenty `new` at once are admitted one after
 * the other, each seeing what those before it were promised, so nothing is promised twice.
 */
export const ADMISSION_LOCK = 'berth.admission'
/** Disks are thin, so their sizes may add up to more than there is; this much must be left for them to grow into. */
export const DISK_RESERVE_BYTES = 2 * 2 ** 30
/** What a machine that is still being made is about to write. */
const DISK_PER_NEW_MACHINE_BYTES = 256 * 2 ** 20
const MEBIBYTE = 2 ** 20
/** Of an account that the operator has not said anything about: one guest cannot take all memory and addresses. */
export const DEFAULT_MACHINES_MOST = 10

export type MachineWish = {
  /** undefined: a free two-word name */
  name: string | undefined
  image: string
  cpus: number
  memoryBytes: number
  diskBytes: number
  env: Record<string, string>
  tags: string[]
  comment: string
  command: string
  /** null: as its account's default is, unless `sleepNever` */
  sleepAfterSeconds: number | null
  sleepNever: boolean
  setupScript: string | null
}

type Tx = postgres.TransactionSql<{ int8: number }>

type Host = {
  id: number
  name: string
  cpus: number
  draining: boolean
  images: HostImage[]
  memory_bytes: number
  machine_overhead_bytes: number
  store_bytes: number
  store_free_bytes: number
  capacity_bytes: number
  promised_bytes: number
  being_made: number
}

/**
 * Admits a machine and writes it down: row, name, address and event in one transaction. From here on the server
 * makes it, whatever happens to this process.
 * @throws CommandError 'image.not_found' (3), 'machine.name_taken' (1), 'account.limit' (4), 'capacity.*' (5)
 */
export async function admitMachine(
  app: App,
  caller: Caller,
  asked: MachineWish,
): Promise<{ id: number; name: string }> {
  return await app.sql.begin((tx) => admitIn(tx, app, caller, asked))
}

/**
 * What `admitMachine` would say, and nothing is written.
 * @returns the machine as it would be, and its server's name
 */
export async function wouldAdmit(app: App, caller: Caller, asked: MachineWish): Promise<Admitted> {
  const undo = new Error('this was only to be tried')
  let admitted: Admitted | undefined
  try {
    await app.sql.begin(async (tx) => {
      admitted = await admitIn(tx, app, caller, asked)
      throw undo
    })
  } catch (error) {
    if (error !== undo || admitted === undefined) throw error
  }
  if (admitted === undefined) throw undo
  return admitted
}

export type Admitted = MachineWish & { id: number; name: string; host: string }

async function admitIn(tx: Tx, app: App, caller: Caller, asked: MachineWish): Promise<Admitted> {
  const wish = wholeMebibytes(asked)
  await tx`select pg_advisory_xact_lock(hashtextextended(${ADMISSION_LOCK}, 0))`
  await assertAccount(tx, caller)
  const host = chooseHost(await liveHosts(tx), wish)
  const name = wish.name ?? (await chooseName(tx))
  const [row] = await tx<{ id: number }[]>`
      insert into machines (account_id, host_id, name, image, cpus, memory_bytes, disk_bytes, env, command, tags, comment,
        sleep_after_seconds, sleep_never, setup_script, setup_state)
      values (${caller.accountId}, ${host.id}, ${name}, ${wish.image}, ${wish.cpus}, ${wish.memoryBytes}, ${wish.diskBytes},
        ${tx.json(wish.env)}, ${wish.command}, ${wish.tags}, ${wish.comment}, ${wish.sleepAfterSeconds},
        ${wish.sleepNever}, ${wish.setupScript}, ${wish.setupScript === null ? null : 'waiting'})
      returning id`
  if (!row) throw new Error('an inserted machine was not returned')
  const machine = { id: row.id, name }
  await claimName(tx, caller, machine)
  await claimAddress(tx, app.settings.network, row.id)
  await recordEvent(tx, caller, 'machine.created', machine, {
    image: wish.image,
    cpus: wish.cpus,
    memoryBytes: wish.memoryBytes,
    diskBytes: wish.diskBytes,
    host: host.name,
  })
  await refuseBeyondCaps(tx, caller.accountId, ANOTHER_MACHINE)
  return { ...wish, ...machine, host: host.name }
}

/** 1.3G is no whole number of mebibytes, which is all that a machine can be given: it gets a little more. */
function wholeMebibytes(wish: MachineWish): MachineWish {
  const up = (bytes: number) => Math.ceil(bytes / MEBIBYTE) * MEBIBYTE
  return { ...wish, memoryBytes: up(wish.memoryBytes), diskBytes: up(wish.diskBytes) }
}

/**
 * Admits the memory of a machine that is to run again on its own server, inside the transaction that wants it so.
 * @throws CommandError 'capacity.memory' (5)
 */
export async function admitStart(tx: Tx, machine: { id: number; name: string; memoryBytes: number }): Promise<void> {
  await tx`select pg_advisory_xact_lock(hashtextextended(${ADMISSION_LOCK}, 0))`
  const [host] = await tx<{ name: string; capacity_bytes: number; overhead_bytes: number; promised_bytes: number }[]>`
    select hosts.name, floor(hosts.memory_bytes * memory_overcommit)::bigint as capacity_bytes,
      machine_overhead_bytes as overhead_bytes, coalesce((
      select sum(greatest(m.memory_bytes, m.observed_memory_bytes) + hosts.machine_overhead_bytes)::bigint from machines m where m.host_id = hosts.id and m.id <> ${machine.id}
        and m.observed_state <> 'gone' and (m.desired_state = 'running' or m.observed_state in ('creating', 'running'))), 0)::bigint
      as promised_bytes
    from hosts join machines on machines.host_id = hosts.id where machines.id = ${machine.id}`
  if (!host) throw new Error(`machine ${machine.id} has no server`)
  const freeBytes = host.capacity_bytes - host.promised_bytes - host.overhead_bytes
  if (freeBytes >= machine.memoryBytes) return
  throw new CommandError(
    'capacity.memory',
    5,
    `${machine.name} needs ${sayBytes(machine.memoryBytes)} of memory and server ${host.name} has ${sayBytes(Math.max(0, freeBytes))} left`,
    { wayOn: 'sleep, stop or rm a machine to make room' },
  )
}

/** @throws CommandError 'machine.name_taken' (1) */
export async function claimName(tx: Tx, caller: Caller, machine: { id: number; name: string }): Promise<void> {
  await giveUpLobbyName(tx, caller, machine.name)
  try {
    // The error must not spoil the transaction before it is understood; it ends the transaction all the same.
    await tx`insert into machine_names (name, machine_id) values (${machine.name}, ${machine.id})`
  } catch (error) {
    throw nameTaken(error, machine.name)
  }
}

/** A name that this account recorded by typing it too early is its to give up, but not one that its ssh sends. */
export async function giveUpLobbyName(tx: Tx, caller: Caller, name: string): Promise<void> {
  const { accountId, sshName } = caller
  const rows =
    await tx`delete from lobby_names where account_id = ${accountId} and name = ${name} and name <> ${sshName}
    and not exists (select from keys where account_id = ${accountId} and comment like ${name} || '@%')
    returning name`
  if (rows.length > 0) await recordEvent(tx, caller, 'account.name_forgotten', null, { name })
}

/** What a unique violation on a name means to the person; any other error unchanged. */
export function nameTaken(error: unknown, name: string): unknown {
  if (!(error instanceof Error) || !('constraint_name' in error)) return error
  if (error.constraint_name === 'machine_names_pkey') {
    return new CommandError('machine.name_taken', 1, `the name ${name} is taken`, {
      wayOn: 'names are unique here; choose another',
    })
  }
  if (error.constraint_name === 'lobby_names_pkey') {
    return new CommandError('machine.name_taken', 1, `the name ${name} leads to the lobby`, {
      wayOn: 'somebody types it as their own user name; choose another',
    })
  }
  return error
}

/**
 * Admits a machine back from the trash, whatever it is to be there, inside the transaction that takes it out.
 * @throws CommandError 'account.limit' (4)
 */
export async function admitBack(tx: Tx, caller: Caller): Promise<void> {
  await tx`select pg_advisory_xact_lock(hashtextextended(${ADMISSION_LOCK}, 0))`
  refuseBeyondMost(await accountOf(tx, caller))
}

export async function assertAccount(tx: Tx, caller: Caller): Promise<void> {
  const account = await accountOf(tx, caller)
  refuseBeyondMost(account)
  // What lies in the trash keeps its disk and its address.
  if (account.most !== null && account.trashed > account.most) {
    throw new CommandError('account.limit', 4, `this account has ${account.trashed} machines in the trash`, {
      wayOn: 'trash lists them; rm --now NAME removes one for good',
    })
  }
}

type Account = { suspended: boolean; over: boolean; most: number | null; machines: number; trashed: number }

/** @throws CommandError 'account.suspended', 'account.over_limit' (4) */
async function accountOf(tx: Tx, caller: Caller): Promise<Account> {
  const [account] = await tx<Account[]>`
    select suspended_at is not null as suspended, over_limit_at is not null as over,
      case when is_owner then null else coalesce(max_machines, ${DEFAULT_MACHINES_MOST}) end as most,
      (select count(*)::int from machines where account_id = accounts.id and desired_state not in ('trashed', 'gone')
        and observed_state <> 'gone') as machines,
      (select count(*)::int from machines where account_id = accounts.id and desired_state = 'trashed'
        and observed_state <> 'gone') as trashed
    from accounts where id = ${caller.accountId}`
  if (!account || account.suspended) {
    throw new CommandError('account.suspended', 4, 'this account is suspended', {
      wayOn: 'the operator can lift that, with: account unsuspend',
    })
  }
  if (account.over) throw overLimit()
  return account
}

export const TO_RAISE_A_LIMIT = 'billing plan shows it; to raise your own: billing limit AMOUNT'

export function overLimit(): CommandError {
  return new CommandError('account.over_limit', 4, 'this account has reached its limit for the month', {
    wayOn: TO_RAISE_A_LIMIT,
  })
}

function refuseBeyondMost({ most, machines }: Account): void {
  if (most === null || machines < most) return
  throw new CommandError('account.limit', 4, `this account has ${machines} of the ${most} machines it may have`, {
    wayOn: 'rm one, or ask the operator for more (account limit)',
  })
}

/**
 * Servers with a live lease. What is promised: the memory of every machine that runs or is wanted to, with its overhead;
 * the larger of what it has and what it gets at its next start.
 */
async function liveHosts(tx: Tx): Promise<Host[]> {
  return await tx<Host[]>`
    select id, name, cpus, draining, images, memory_bytes, machine_overhead_bytes, store_bytes, store_free_bytes,
      floor(memory_bytes * memory_overcommit)::bigint as capacity_bytes,
      coalesce((select sum(greatest(m.memory_bytes, m.observed_memory_bytes) + hosts.machine_overhead_bytes) from machines m where m.host_id = hosts.id and m.observed_state <> 'gone'
        and (m.desired_state = 'running' or m.observed_state in ('creating', 'running'))), 0)::bigint as promised_bytes,
      (select count(*)::int from machines m where m.host_id = hosts.id and m.observed_state = 'creating') as being_made
    from hosts where lease_expires_at > now() order by id`
}

/** The server with most memory left among those that can. Each refusal names what was short and how much there is. */
function chooseHost(live: Host[], wish: MachineWish): Host {
  if (live.length === 0) throw short('capacity.server', 'no server is up to make machines on', 'try again in a minute')
  const open = live.filter((host) => !host.draining)
  if (open.length === 0)
    throw short('capacity.draining', 'every server is being emptied and takes no new machines', UNDRAIN)
  const images = [...new Set(open.flatMap((host) => host.images.map((image) => image.name)))].sort()
  const having = open.filter((host) => host.images.some((image) => image.name === wish.image))
  // What no server has by name is fetched from a registry, by whichever server.
  const withImage = having.length > 0 || !mayBeReference(wish.image) ? having : open
  if (withImage.length === 0) {
    if (images.length === 0) throw short('capacity.images', 'the server has no image yet', 'doctor says why')
    throw new CommandError('image.not_found', 3, `no image called ${shown(wish.image)}`, {
      wayOn: `images: ${sayList([...images, 'any of a registry, as REGISTRY/NAME:TAG'], 20)}`,
    })
  }
  const imageBytes = Math.max(
    0,
    ...withImage.flatMap((host) => host.images.filter((i) => i.name === wish.image).map((i) => i.sizeBytes)),
  )
  if (wish.diskBytes < imageBytes) {
    throw usageError(`--disk is at least ${sayBytes(imageBytes)} for the image ${wish.image}`)
  }
  const withCpus = fitting(
    withImage,
    (host) => Math.max(2, host.cpus),
    wish.cpus,
    (most) => short('capacity.cpu', `no server has ${wish.cpus} CPUs; the largest has ${most}`, `--cpu ${most}`),
  )
  const withDisk = fitting(
    withCpus,
    (host) => Math.max(0, diskLeft(host)),
    wish.diskBytes,
    (most) =>
      short(
        'capacity.disk',
        most > 0
          ? `no server has room for a disk of ${sayBytes(wish.diskBytes)}; the most is ${sayBytes(most)}`
          : 'no server has room for a disk: there is no space left to grow into',
        most > 0 ? 'choose a smaller --disk, or rm a machine --now' : 'rm a machine --now, or make space on the server',
      ),
  )
  const withMemory = fitting(
    withDisk,
    // Overcommit is between machines: no single one has more than there is.
    (host) => Math.max(0, Math.min(memoryLeft(host), host.memory_bytes - host.machine_overhead_bytes)),
    wish.memoryBytes,
    (most) =>
      short(
        'capacity.memory',
        `no server has ${sayBytes(wish.memoryBytes)} of memory left; the most is ${sayBytes(most)}`,
        'choose a smaller --memory, or sleep, stop or rm a machine',
      ),
  )
  return withMemory.reduce((best, host) => (memoryLeft(host) > memoryLeft(best) ? host : best))
}

function fitting(hosts: Host[], has: (host: Host) => number, wanted: number, refusal: (most: number) => CommandError) {
  const fit = hosts.filter((host) => has(host) >= wanted)
  if (fit.length === 0) throw refusal(Math.max(...hosts.map(has)))
  return fit as [Host, ...Host[]]
}

/** For one machine more, without what it takes beside its own. */
const memoryLeft = (host: Host) => host.capacity_bytes - host.promised_bytes - host.machine_overhead_bytes

/** The largest disk a server would take: all of its store while some of it is free, nothing when it is nearly full. */
function diskLeft(host: Host): number {
  const soonWritten = (host.being_made + 1) * DISK_PER_NEW_MACHINE_BYTES
  return host.store_free_bytes - soonWritten < DISK_RESERVE_BYTES ? 0 : host.store_bytes
}

/** What a server has in all, whatever runs there. */
export type ServerSize = {
  name: string
  cpus: number
  memory_bytes: number
  machine_overhead_bytes: number
  store_bytes: number
}

/**
 * Of what no machine of a server can have, however much its operator promises and however little runs there.
 * @param wish what is more than it was; undefined: not that
 * @throws CommandError 'capacity.*' (5) with the most that it can have
 */
export function refuseBeyondServer(
  host: ServerSize,
  { cpus = 0, memoryBytes = 0, diskBytes = 0 }: { cpus?: number; memoryBytes?: number; diskBytes?: number },
): void {
  const server = `its server ${host.name}`
  const whole = (bytes: number) => typedSize(Math.floor(bytes / 2 ** 20) * 2 ** 20)
  const cpusMost = Math.max(2, host.cpus)
  if (cpus > cpusMost) throw short('capacity.cpu', `${server} has ${host.cpus} CPUs`, `--cpu ${cpusMost}`)
  const memoryMost = host.memory_bytes - host.machine_overhead_bytes
  if (memoryBytes > memoryMost) {
    const message = `${server} can give a machine at most ${sayBytes(memoryMost)} of memory`
    throw short('capacity.memory', message, `--memory ${whole(memoryMost)}`)
  }
  if (diskBytes > host.store_bytes) {
    const message = `${server} has ${sayBytes(host.store_bytes)} for disks`
    throw short('capacity.disk', message, `--disk ${whole(host.store_bytes)}`)
  }
}

/** Who can end it. */
export const UNDRAIN = 'try again later; the operator ends that with: host undrain HOST'

export function short(code: string, message: string, wayOn?: string): CommandError {
  return new CommandError(code, 5, message, wayOn === undefined ? {} : { wayOn })
}

/**
 * The lowest free address. The first two of the network (its own, and the servers' end of every tap) and the last
 * (broadcast) are nobody's.
 */
export async function claimAddress(tx: Tx, network: string, machineId: number): Promise<void> {
  // The index on addresses (its primary key) answers both the walk and the "not exists".
  const rows = await tx`
    insert into addresses (address, machine_id)
    select candidate, ${machineId} from (
      select host(${network}::inet)::inet + 2 as candidate
      union all
      select host(address)::inet + 1 from addresses where address << ${network}::inet
    ) as next
    where candidate << ${network}::inet and candidate <> host(broadcast(${network}::inet))::inet
      and not exists (select from addresses where address = candidate)
    order by candidate limit 1
    returning address`
  if (rows.length === 0) {
    throw short(
      'capacity.address',
      `every address of ${network} is in use`,
      'rm a machine --now, or ask the operator for a larger BERTH_NETWORK',
    )
  }
}
