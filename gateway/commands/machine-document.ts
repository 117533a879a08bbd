import type { App } from '../app.ts'
import { isWaking, type Machine, stageOf } from '../machines.ts'
import type { Settings } from '../settings.ts'
import type { Defaults } from './defaults.ts'
import { idleTimeOf } from './idle-time.ts'
import { quoteWord } from './words.ts'

/** A machine as `--json` shows it; programs rely on the names. Sizes in bytes, times in ISO 8601 UTC. */
export type MachineDocument = {
  vm_name: string
  status: string
  /** what `ssh` takes beside the port */
  ssh_dest: string
  ssh_host: string
  ssh_port: number
  ssh_user: string
  /** in the machine, for `ssh -J`; null until it has started once */
  login_user: string | null
  https_url: string
  image: string
  region: string
  tags: string[]
  comment: string
  allocated_cpus: number
  memory_capacity_bytes: number
  disk_capacity_bytes: number
  created_at: string
  /** why it is awake; null while it is not, is idle, or nothing is known */
  awake_because: string | null
  ip: string | null
  host: string
  /** why it failed or stopped by itself; only then */
  reason?: string
  /** only where a setup script was given */
  setup?: SetupDocument
}

export type SetupDocument = { state: string; exit_status: number | null; ended_at: string | null }

/** Names of all servers by id; there are few, and lists want them all. */
export async function hostNames(app: App): Promise<Map<number, string>> {
  const rows = await app.sql<{ id: number; name: string }[]>`select id, name from hosts`
  return new Map(rows.map((row) => [row.id, row.name]))
}

export function machineDocument(machine: Machine, settings: Settings, hosts: Map<number, string>): MachineDocument {
  const host = hosts.get(machine.hostId) ?? ''
  const dest = sshDest(settings, machine.name)
  const { setupState, observedReason } = machine
  return {
    vm_name: machine.name,
    status: statusOf(machine),
    ssh_dest: dest,
    ssh_host: settings.domain,
    ssh_port: sshPort(settings),
    ssh_user: machine.name,
    login_user: machine.observedLoginUser,
    https_url: httpsUrl(settings, machine.name),
    image: machine.image,
    region: host,
    tags: machine.tags,
    comment: machine.comment,
    allocated_cpus: machine.cpus,
    memory_capacity_bytes: machine.memoryBytes,
    disk_capacity_bytes: machine.diskBytes,
    created_at: machine.createdAt.toISOString(),
    awake_because: awakeBecause(machine),
    ip: machine.address,
    host,
    ...(observedReason !== null ? { reason: observedReason } : {}),
    ...(setupState === null ? {} : { setup: setupDocument(machine) }),
  }
}

/** What a list says of a machine besides: what it is doing, and why it is awake or asleep. */
export type ListedDocument = MachineDocument & {
  /** the status in words, and where it is going: `falling asleep` */
  status_text: string
  /** what a start or a wake is doing; null when there is none */
  stage: string | null
  /** nothing keeps it awake since then; null while something does, or it is not awake */
  idle_since: string | null
  /** it is never put to sleep for being idle */
  never_sleeps: boolean
  asleep_since: string | null
  asleep_because: string | null
}

/** @param defaults those of the machine's account */
export function listedDocument(
  machine: Machine,
  settings: Settings,
  { hosts, defaults }: { hosts: Map<number, string>; defaults: Defaults },
): ListedDocument {
  const { observedState, observedIdleSince, observedAsleepAt, observedAsleepBecause } = machine
  const words = statusInWords(machine)
  return {
    ...machineDocument(machine, settings, hosts),
    status_text: words,
    stage: ['creating', 'starting', 'waking'].includes(words) ? stageOf(machine) : null,
    idle_since: (observedState === 'running' && observedIdleSince?.toISOString()) || null,
    never_sleeps: idleTimeOf(machine, defaults).seconds === null,
    asleep_since: (observedState === 'asleep' && observedAsleepAt?.toISOString()) || null,
    asleep_because: observedState === 'asleep' ? observedAsleepBecause : null,
  }
}

function setupDocument(machine: Machine): SetupDocument {
  return {
    state: machine.setupState ?? 'none',
    exit_status: machine.setupExitStatus,
    ended_at: machine.setupEndedAt?.toISOString() ?? null,
  }
}

/** One of the states of `doc states`. A sleeper that nothing wakes is `paused`. */
export function statusOf(machine: Machine): string {
  if (machine.desiredState === 'paused' && machine.observedState === 'asleep') return 'paused'
  // It is back from the trash, and off until its server has seen that.
  if (machine.observedState === 'trashed' && machine.desiredState !== 'trashed') return 'stopped'
  return machine.observedState
}

/** The status, and where it is going when it has not arrived. */
export function statusInWords(machine: Machine): string {
  const status = statusOf(machine)
  const { desiredState, observedState } = machine
  if (observedState === 'creating') return 'creating'
  if (isWaking(machine)) return machine.observedBoot < machine.desiredBoot ? 'starting' : 'waking'
  if (desiredState === 'running' && observedState === 'running') {
    return machine.observedReadyAt === null || machine.observedBoot < machine.desiredBoot ? 'starting' : 'running'
  }
  if (desiredState === 'running' && status === 'stopped') return 'starting'
  if (desiredState === 'stopped' && observedState === 'running') return 'stopping'
  if (['asleep', 'paused'].includes(desiredState) && observedState === 'running') return 'falling asleep'
  return status
}

/** As its server says it; null while it does not run, or is idle. */
export function awakeBecause(machine: Machine): string | null {
  if (machine.observedState !== 'running') return null
  return machine.observedAwakeBecause ?? (machine.sleepNever ? 'never' : null)
}

export function sshPort(settings: Settings): number {
  return settings.ssh[0]?.port ?? 22
}

export function sshDest(settings: Settings, name: string): string {
  return `${name}@${settings.domain}`
}

/** `ssh -p 2222 demo@localhost`, as one types it. */
export function sshLine(settings: Settings, name: string, command?: string): string {
  const port = sshPort(settings)
  const line = `ssh ${port === 22 ? '' : `-p ${port} `}${sshDest(settings, name)}`
  return command === undefined ? line : `${line} ${quoteWord(command)}`
}

/** `ssh -p 2222 localhost <command>`: a lobby command from one's own shell. */
export function lobbyLine(settings: Settings, command: string): string {
  const port = sshPort(settings)
  return `ssh ${port === 22 ? '' : `-p ${port} `}${settings.domain} ${command}`.trimEnd()
}

export function httpsUrl(settings: Settings, name: string): string {
  const port = settings.https[0]?.port ?? 443
  return `https://${name}.${settings.machineDomain}${port === 443 ? '' : `:${port}`}`
}
