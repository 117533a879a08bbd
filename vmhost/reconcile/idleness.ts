import type { ActivityKind } from '../../migrations/schema.ts'
import type { MachineReport } from '../guest/messages.ts'

/**
 * When a machine is idle, and what keeps it from being so, as `doc sleep` says it to its owner.
 *
 *     awake because of something --nothing of it any more--> idle since now --that long--> to be put to sleep
 *     idle --anything--> awake because of it
 *
 * A machine of which is not known what it does (it came up less than a minute ago, or its agent is silent) stays what it
 * was, and is not put to sleep: a vmhost that was just started has seen nothing yet, and idleness outlives it.
 */
export type Watched = {
  readonly holdUntil: Date | null
  /** the last that a gateway carried */
  readonly activityAt: Date | null
  readonly activity: ActivityKind | null
  readonly sleepNever: boolean
  readonly sleepAfterSeconds: number | null
  /** as its account's `defaults` have it: `30m`, `never` */
  readonly defaultSleepAfter: string | null
  /** as reported last */
  readonly awakeBecause: string | null
  readonly idleSince: Date | null
}

export type Idleness = {
  /** what keeps it awake, for people; null: nothing, and it sleeps when it has been so for long enough */
  readonly awakeBecause: string | null
  readonly idleSince: Date | null
  /** it has been idle for as long as its owner set; why, for people */
  readonly sleepBecause: string | null
}

/** What a guest did in the last minute, by its own readings. */
export type LastMinute = {
  /** of one core */
  readonly cpuShare: number
  /** both ways */
  readonly bytesPerSecond: number
  /** programs that were started over SSH and run; shells that wait for a command are none */
  readonly sshProcesses: number
}

const activityLastsMs = 10 * 60_000
const busyCpuShare = 0.05
const busyBytesPerSecond = 10_000

const carried: Record<ActivityKind, string> = {
  ssh: 'an SSH session carried something within the last 10 minutes',
  https: 'a web request came within the last 10 minutes',
  websocket: 'a WebSocket carried something within the last 10 minutes',
}
const never = 'nothing but its being set never to sleep'
const unknown = 'it came up less than a minute ago, or does not say what it does'

export function idleness(watched: Watched, load: LastMinute | undefined, now: Date): Idleness {
  const busy = busyBecause(watched, load, now)
  if (busy !== undefined) return { awakeBecause: busy, idleSince: null, sleepBecause: null }
  if (!load && watched.idleSince === null) return { awakeBecause: unknown, idleSince: null, sleepBecause: null }
  const idleSince = watched.idleSince ?? now
  const afterSeconds = sleepAfterSeconds(watched)
  if (afterSeconds === undefined) return { awakeBecause: never, idleSince, sleepBecause: null }
  const isLongEnough = load !== undefined && now.getTime() - idleSince.getTime() >= afterSeconds * 1000
  return { awakeBecause: null, idleSince, sleepBecause: isLongEnough ? `idle for ${sayDuration(afterSeconds)}` : null }
}

function busyBecause(watched: Watched, load: LastMinute | undefined, now: Date): string | undefined {
  const { holdUntil, activity, activityAt } = watched
  if (holdUntil && holdUntil > now) return `it is held awake until ${sayTime(holdUntil)}`
  if (activity && activityAt && now.getTime() - activityAt.getTime() < activityLastsMs) return carried[activity]
  if (!load) return undefined
  if (load.cpuShare > busyCpuShare) return 'its processors were busy in the last minute'
  if (load.bytesPerSecond > busyBytesPerSecond) return 'its network was busy in the last minute'
  if (load.sshProcesses > 0) return 'a program that was started over SSH still runs'
  return undefined
}

/** @returns undefined: never */
function sleepAfterSeconds(watched: Watched): number | undefined {
  if (watched.sleepNever) return undefined
  if (watched.sleepAfterSeconds !== null) return watched.sleepAfterSeconds
  return watched.defaultSleepAfter === null ? undefined : durationSeconds(watched.defaultSleepAfter)
}

const unitSeconds: Readonly<Record<string, number>> = { s: 1, m: 60, h: 3600, d: 86_400, w: 604_800 }

/** `1h30m` in seconds; undefined when it is none, `never` among them. */
export function durationSeconds(text: string): number | undefined {
  if (!/^(\d{1,9}[smhdw])+$/i.test(text)) return undefined
  let seconds = 0
  for (const [, count, unit = ''] of text.matchAll(/(\d+)([smhdw])/gi))
    seconds += Number(count) * (unitSeconds[unit.toLowerCase()] ?? 0)
  return seconds > 0 ? seconds : undefined
}

/** `30 minutes`, `1 hour 30 minutes` */
export function sayDuration(seconds: number): string {
  const parts: string[] = []
  let rest = Math.round(seconds)
  for (const [unit, length] of [
    ['day', 86_400],
    ['hour', 3600],
    ['minute', 60],
    ['second', 1],
  ] as const) {
    const count = Math.floor(rest / length)
    rest %= length
    if (count > 0) parts.push(`${count} ${unit}${count === 1 ? '' : 's'}`)
  }
  return parts.join(' ') || '0 seconds'
}

function sayTime(at: Date): string {
  return `${at.toISOString().slice(0, 16).replace('T', ' ')} UTC`
}

type Reading = { readonly atMs: number } & Pick<MachineReport, 'cpuBusyMs' | 'txBytes' | 'rxBytes' | 'sshProcessCount'>

/** Readings are taken every 15 s or so, never in step. */
const minuteLeastMs = 55_000
const keptMs = 100_000
const silentMs = 45_000

/** A guest's readings of the last minute. They are absolute, and begin anew when it boots. */
export class Load {
  #readings: Reading[] = []

  /** @param atMs monotonic */
  add({ cpuBusyMs, txBytes, rxBytes, sshProcessCount }: Omit<Reading, 'atMs'>, atMs = performance.now()): void {
    const newest = this.#readings.at(-1)
    if (newest && (cpuBusyMs < newest.cpuBusyMs || txBytes < newest.txBytes || rxBytes < newest.rxBytes)) this.forget()
    this.#readings.push({ atMs, cpuBusyMs, txBytes, rxBytes, sshProcessCount })
    this.#readings = this.#readings.filter((reading) => atMs - reading.atMs < keptMs)
  }

  forget(): void {
    this.#readings = []
  }

  /** @returns undefined when it is not known for a whole minute, or not any more */
  lastMinute(nowMs = performance.now()): LastMinute | undefined {
    const newest = this.#readings.at(-1)
    if (!newest || nowMs - newest.atMs > silentMs) return undefined
    const oldest = this.#readings.findLast((reading) => newest.atMs - reading.atMs >= minuteLeastMs)
    if (!oldest) return undefined
    const ms = newest.atMs - oldest.atMs
    return {
      cpuShare: (newest.cpuBusyMs - oldest.cpuBusyMs) / ms,
      bytesPerSecond: ((newest.txBytes - oldest.txBytes + newest.rxBytes - oldest.rxBytes) * 1000) / ms,
      sshProcesses: newest.sshProcessCount,
    }
  }
}
