import { refuseBeyondCaps } from '../billing/caps.ts'
import { isReady, type Machine } from '../machines.ts'
import { admitStart, DISK_RESERVE_BYTES, refuseBeyondServer, type ServerSize, short } from './admission.ts'
import type { Context } from './command.ts'
import { defineCommand } from './command.ts'
import { machineNames } from './complete.ts'
import { CommandError, usageError } from './error.ts'
import { reachable, recordEvent, untilSettled, whilePatient } from './machine-steps.ts'
import { overtaken } from './power-steps.ts'
import { MACHINE_SIZES, sayBytes } from './values.ts'

const MEBIBYTE = 2 ** 20
/** Longer than an emulated guest takes to use its new processors. */
const GIVE_TIMEOUT_MS = 90_000

/** Undefined: as it is. */
type Wanted = { cpus: number | undefined; memoryBytes: number | undefined; diskBytes: number | undefined }

type Host = ServerSize & { store_free_bytes: number }

type DiskOutcome = 'grown' | 'growing' | 'when it is awake' | 'at its next start'

export const resize = defineCommand({
  name: 'resize',
  group: 'machines',
  onMachines: true,
  summary: 'other CPUs, other memory, a larger disk',
  description:
    'More is given at once where the machine runs and its server can, else when it starts the next time; fewer CPUs and less memory it has from its next start on. It says which. A disk only grows, and its filesystem with it. One that sleeps wakes as it fell asleep, and grows then.',
  flags: {
    cpu: { type: 'integer', min: 1, max: 256, summary: 'virtual CPUs' },
    memory: { type: 'size', min: MACHINE_SIZES.memory.min, summary: 'memory' },
    disk: { type: 'size', min: MACHINE_SIZES.disk.min, value: '40G', summary: 'disk; never less than it is' },
    'no-wait': { type: 'boolean', summary: 'do not wait until it has what it can be given at once' },
  },
  arguments: { name: { label: 'NAME', complete: machineNames } },
  examples: ['resize demo --disk 40G', 'resize demo --memory 8G --cpu 4'],
  async run(context, { flags, args }) {
    const wanted = {
      cpus: flags.cpu,
      memoryBytes: flags.memory === undefined ? undefined : wholeMebibytes(flags.memory),
      diskBytes: flags.disk === undefined ? undefined : wholeMebibytes(flags.disk),
    }
    if (Object.values(wanted).every((value) => value === undefined)) {
      throw usageError('nothing is given that could change', '--cpu, --memory or --disk')
    }
    const machine = await reachable(context.app, context.caller, args.name)
    const before = await change(context, machine, wanted)
    const grows = wanted.diskBytes !== undefined && wanted.diskBytes > before.disk_bytes
    const disk = grows
      ? await untilGrown(context, machine, wanted.diskBytes ?? 0, flags['no-wait'] === true)
      : undefined
    if (flags['no-wait'] !== true) await untilGiven(context, machine)
    const now = (await context.app.machines.byId(machine.id, context.caller)) ?? machine
    const waiting = waitsForStart(now)
    return {
      json: {
        vm_name: now.name,
        allocated_cpus: now.cpus,
        memory_capacity_bytes: now.memoryBytes,
        disk_capacity_bytes: now.diskBytes,
        at_next_start: waiting,
        ...(disk === undefined ? {} : { disk }),
      },
      text: sentences(now, wanted, sizesOf(now, before, waiting), disk)
        .map((line) => `${line}\n`)
        .join(''),
    }
  },
})

/** Writes down what is wanted, where it can be had. @returns what the row said before */
async function change({ app, caller }: Context, machine: Machine, wanted: Wanted) {
  return await app.sql.begin(async (tx) => {
    const [row] = await tx<{ cpus: number; memory_bytes: number; disk_bytes: number; promised: boolean }[]>`
      select cpus, memory_bytes, disk_bytes, desired_state = 'running' or observed_state in ('creating', 'running') as promised
      from machines where id = ${machine.id} and desired_state not in ('trashed', 'gone') for update`
    if (!row) throw overtaken(machine.name)
    const [host] = await tx<Host[]>`
      select name, cpus, memory_bytes, machine_overhead_bytes, store_bytes, store_free_bytes from hosts
      where id = ${machine.hostId}`
    if (!host) throw new Error(`machine ${machine.id} has no server`)
    const { cpus = row.cpus, memoryBytes = row.memory_bytes, diskBytes = row.disk_bytes } = wanted
    if (cpus > row.cpus) refuseBeyondServer(host, { cpus })
    if (memoryBytes > row.memory_bytes) {
      refuseBeyondServer(host, { memoryBytes })
      // What sleeps or is off is admitted when it comes.
      if (row.promised) await admitStart(tx, { id: machine.id, name: machine.name, memoryBytes })
    }
    if (diskBytes !== row.disk_bytes) refuseDisk(machine.name, host, row.disk_bytes, diskBytes)
    const isSame = cpus === row.cpus && memoryBytes === row.memory_bytes && diskBytes === row.disk_bytes
    if (isSame) return row
    await tx`update machines set cpus = ${cpus}, memory_bytes = ${memoryBytes}, disk_bytes = ${diskBytes}
      where id = ${machine.id}`
    const raised = [
      ...(cpus > row.cpus ? (['cpus'] as const) : []),
      ...(memoryBytes > row.memory_bytes ? (['memory'] as const) : []),
      ...(diskBytes > row.disk_bytes ? (['disk'] as const) : []),
    ]
    if (raised.length > 0) await refuseBeyondCaps(tx, caller.accountId, raised)
    await recordEvent(tx, caller, 'machine.resized', machine, { cpus, memoryBytes, diskBytes })
    return row
  })
}

function refuseDisk(name: string, host: Host, hasBytes: number, diskBytes: number): void {
  if (diskBytes < hasBytes) {
    throw new CommandError(
      'machine.disk_shrinks',
      1,
      `${name} has a disk of ${sayBytes(hasBytes)}, and a disk only grows`,
      {
        wayOn: 'it takes only what was written to it; for a smaller one make a new machine and copy what you need',
        machineName: name,
      },
    )
  }
  if (host.store_free_bytes < DISK_RESERVE_BYTES) {
    throw short(
      'capacity.disk',
      `its server ${host.name} has no space left for a disk to grow into`,
      'rm a machine --now, or make space on the server',
    )
  }
  refuseBeyondServer(host, { diskBytes })
}

async function untilGrown(
  context: Context,
  machine: Machine,
  diskBytes: number,
  noWait: boolean,
): Promise<DiskOutcome> {
  const { app, caller, progress } = context
  const now = await app.machines.byId(machine.id, caller)
  if (now && ['asleep', 'paused'].includes(now.desiredState)) return 'when it is awake'
  if (!now || !isReady(now)) return 'at its next start'
  if (noWait) return 'growing'
  progress.show(`${machine.name}: its disk grows`)
  const grown = await whilePatient(context, async (waiting) => {
    await untilSettled(waiting, machine, (seen) => {
      if (!seen || !isReady(seen)) throw overtaken(machine.name)
      if ((seen.observedDiskBytes ?? 0) >= diskBytes) return true
      // Its server goes on trying; nobody needs to wait for that.
      if (seen.observedReason === null || seen.observedReason === now.observedReason) return false
      throw new CommandError('machine.disk', 1, `the disk of ${machine.name} does not grow: ${seen.observedReason}`, {
        wayOn: `it is tried again, and at its next start: restart ${machine.name}`,
      })
    })
    return true
  })
  return grown ? 'grown' : 'growing'
}

/** Until its server has given it what it can be given while it runs; one that is silent is not waited for for long. */
async function untilGiven(context: Context, machine: Machine): Promise<void> {
  const isGiven = (seen: Machine | undefined) => {
    if (!seen || !isReady(seen) || waitsForStart(seen).length === 0) return true
    context.progress.show(`${seen.name}: it is given what it can be given at once`)
    return seen.observedResizeCpus === seen.cpus && seen.observedResizeMemoryBytes === seen.memoryBytes
  }
  await whilePatient(context, (waiting) => untilSettled(waiting, machine, isGiven, GIVE_TIMEOUT_MS)).catch(
    (error: unknown) => {
      if (!(error instanceof CommandError) || error.code !== 'machine.timeout') throw error
    },
  )
}

/** What it runs, or sleeps, with is not what it is to have. */
function waitsForStart({ cpus, memoryBytes, observedCpus, observedMemoryBytes, observedState }: Machine): string[] {
  if (observedState !== 'running' && observedState !== 'creating') return []
  const waits = (is: number | null, wanted: number) => is !== null && is !== wanted
  return [...(waits(observedCpus, cpus) ? ['cpu'] : []), ...(waits(observedMemoryBytes, memoryBytes) ? ['memory'] : [])]
}

type Size = {
  readonly kind: 'cpu' | 'memory'
  readonly when: 'already' | 'now' | 'awake' | 'off' | 'next start'
  readonly text: string
}

/** When it has what of its size. */
function sizesOf(
  { cpus, memoryBytes, observedCpus, observedMemoryBytes, observedState }: Machine,
  before: { cpus: number; memory_bytes: number },
  waiting: readonly string[],
): Size[] {
  const when = (kind: Size['kind'], is: number | null, had: number, wanted: number): Size['when'] => {
    if (observedState === 'asleep') return wanted > had ? 'awake' : 'next start'
    if (observedState !== 'running' || is === null) return 'off'
    if (waiting.includes(kind)) return 'next start'
    return had === wanted ? 'already' : 'now'
  }
  return [
    {
      kind: 'cpu',
      when: when('cpu', observedCpus, before.cpus, cpus),
      text: `${cpus} ${cpus === 1 ? 'CPU' : 'CPUs'}`,
    },
    {
      kind: 'memory',
      when: when('memory', observedMemoryBytes, before.memory_bytes, memoryBytes),
      text: `${sayBytes(memoryBytes)} of memory`,
    },
  ]
}

function sentences(machine: Machine, wanted: Wanted, sizes: Size[], disk: DiskOutcome | undefined): string[] {
  const { name } = machine
  const isAsked = { cpu: wanted.cpus !== undefined, memory: wanted.memoryBytes !== undefined }
  const asked = sizes.filter(({ kind }) => isAsked[kind])
  const words = {
    already: 'as it has already',
    now: 'now',
    awake: 'when it is awake, or, where it cannot grow while it runs, from its next start on',
    off: 'from its next start on',
    'next start': `from its next start on: restart ${name}`,
  }
  const said = (Object.keys(words) as (keyof typeof words)[]).flatMap((when) => {
    const has = asked.filter((size) => size.when === when).map(({ text }) => text)
    return has.length > 0 ? [`${name} has ${has.join(' and ')} ${words[when]}`] : []
  })
  return [...said, ...(wanted.diskBytes === undefined ? [] : [diskSentence(machine, disk)])]
}

function diskSentence({ name, diskBytes }: Machine, disk: DiskOutcome | undefined): string {
  const size = sayBytes(diskBytes)
  switch (disk) {
    case undefined:
      return `${name} has a disk of ${size} already`
    case 'grown':
      return `${name} has a disk of ${size}, and its filesystem has grown with it`
    case 'growing':
      return `the disk of ${name} grows to ${size}`
    default:
      return `the disk of ${name} grows to ${size} ${disk}`
  }
}

/** 1.3G is no whole number of mebibytes, which is all that a machine can be given: it gets a little more. */
function wholeMebibytes(bytes: number): number {
  return Math.ceil(bytes / MEBIBYTE) * MEBIBYTE
}
