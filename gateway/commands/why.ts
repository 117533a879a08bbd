import type { ActivityKind } from '../../migrations/schema.ts'
import type { App } from '../app.ts'
import { isLeftAsleep, isReady, type Machine } from '../machines.ts'
import { TO_RAISE_A_LIMIT } from './admission.ts'
import { defineCommand } from './command.ts'
import { machineNames } from './complete.ts'
import { readDefaults } from './defaults.ts'
import { type IdleTime, idleTimeOf } from './idle-time.ts'
import { awakeBecause, statusInWords, statusOf } from './machine-document.ts'
import { reachable } from './machine-steps.ts'
import { harmless, wrap } from './text.ts'
import { sayAge, sayBytes, sayDuration, sayWhen } from './values.ts'

type Activity = { at: Date; what: ActivityKind }

const OVER: Record<ActivityKind, string> = { ssh: 'over SSH', https: 'by a web request', websocket: 'by a WebSocket' }

export const why = defineCommand({
  name: 'why',
  group: 'machines',
  onMachines: true,
  summary: 'what keeps a machine awake or asleep, and since when',
  arguments: { name: { label: 'NAME', complete: machineNames } },
  examples: ['why demo'],
  async run({ app, caller }, { args }) {
    const machine = await reachable(app, caller, args.name)
    const idle = idleTimeOf(machine, await readDefaults(app.sql, machine.accountId))
    const activity = await lastActivity(app, machine.id)
    const barred = await barredBecause(app, machine.accountId)
    const { observedIdleSince, observedAsleepAt, observedAsleepBecause, observedSavedBytes, holdUntil } = machine
    const hold = holdUntil !== null && holdUntil > new Date() ? holdUntil : null
    return {
      json: {
        vm_name: machine.name,
        status: statusOf(machine),
        awake_because: awakeBecause(machine),
        idle_since: observedIdleSince?.toISOString() ?? null,
        asleep_because: observedAsleepBecause,
        asleep_since: observedAsleepAt?.toISOString() ?? null,
        saved_bytes: observedSavedBytes,
        sleep_after_seconds: idle.seconds,
        sleep_after_is_default: idle.isDefault,
        hold_until: hold?.toISOString() ?? null,
        barred_because: barred?.because ?? null,
        last_activity: activity ? { at: activity.at.toISOString(), what: activity.what } : null,
        ...(machine.observedReason === null ? {} : { reason: machine.observedReason }),
      },
      text: (view) =>
        [head(machine), ...rest(machine, { idle, activity, barred })]
          .flatMap((line) => wrap(harmless(line), view.columns))
          .map((line) => `${line}\n`)
          .join(''),
    }
  },
})

/** Index: machine_activity_pkey. */
async function lastActivity({ sql }: App, machineId: number): Promise<Activity | undefined> {
  const [row] = await sql<Activity[]>`select at, what from machine_activity where machine_id = ${machineId}`
  return row
}

type Barred = { because: string; wayOn: string }

/** Why nothing wakes or starts what the account has. */
async function barredBecause({ sql }: App, accountId: number): Promise<Barred | undefined> {
  const [row] = await sql<{ suspended: boolean; over: boolean }[]>`
    select suspended_at is not null as suspended, over_limit_at is not null as over from accounts where id = ${accountId}`
  if (row?.suspended) return { because: 'its account is suspended', wayOn: 'the operator can lift that' }
  return row?.over ? { because: 'its account has reached its limit for the month', wayOn: TO_RAISE_A_LIMIT } : undefined
}

function head(machine: Machine): string {
  const { name, observedAsleepAt, observedAsleepBecause, observedIdleSince, observedReason } = machine
  const status = statusInWords(machine)
  if (machine.observedState === 'asleep') {
    const since = observedAsleepAt ? `, fell asleep ${sayWhen(observedAsleepAt)}` : ''
    return `${name} is ${status}${since}${observedAsleepBecause ? `: ${observedAsleepBecause}` : ''}`
  }
  if (machine.observedState === 'failed') return `${name} failed: ${observedReason ?? 'no reason was reported'}`
  if (!isReady(machine)) return `${name} is ${status}${observedReason ? `: ${observedReason}` : ''}`
  const because = awakeBecause(machine)
  if (because !== null) return `${name} is awake: ${because}`
  return observedIdleSince
    ? `${name} is awake, and idle: nothing has kept it awake for ${sayAge(observedIdleSince)}`
    : `${name} is awake; its server has not said yet what keeps it so`
}

type About = { idle: IdleTime; activity: Activity | undefined; barred: Barred | undefined }

function rest(machine: Machine, { idle, activity, barred }: About): string[] {
  const { name, desiredState, observedState, observedSavedBytes, observedReason } = machine
  const instead = barred && [`${barred.because}: nothing wakes or starts it`, barred.wayOn]
  const used = activity ? [`last used ${sayWhen(activity.at)}, ${OVER[activity.what]}`] : []
  if (observedState === 'asleep') {
    const bytes = observedSavedBytes === null ? [] : [`its memory takes ${sayBytes(observedSavedBytes)} on the disk`]
    const way = desiredState === 'paused' ? `nothing but this wakes it: resume ${name}` : wakers(name)
    const ways = isLeftAsleep(machine) ? leftAsleep(name) : desiredState === 'running' ? [] : [way]
    return [...(observedReason ? [observedReason] : []), ...bytes, ...used, ...(instead ?? ways)]
  }
  if (desiredState === 'stopped') return instead ?? [`to start it: start ${name}`]
  if (observedState === 'failed') return instead ?? [`to try again: restart ${name}`]
  if (!isReady(machine)) return []
  return [...(observedReason ? [observedReason] : []), ...holding(machine), ...used, idleLine(machine, idle)]
}

function leftAsleep(name: string): string[] {
  return [
    'its memory is kept, and whatever comes for it has it tried again',
    `to give its memory up and start it from its disk: restart ${name}`,
  ]
}

function wakers(name: string): string {
  return `ssh, its pages and a key typed in an open session wake it, and so does: wake ${name}`
}

function holding({ name, holdUntil }: Machine): string[] {
  if (!holdUntil || holdUntil <= new Date()) return []
  return [`held awake for ${sayDuration(holdUntil.getTime() - Date.now())} more; to end that: hold ${name} --end`]
}

function idleLine({ name, observedIdleSince }: Machine, { seconds, isDefault }: IdleTime): string {
  const whose = isDefault ? ', as your account has it' : ''
  if (seconds === null) return `it never sleeps for being idle${whose}; to change that: sleep-after ${name} 30m`
  const after = `it sleeps when it was idle for ${sayDuration(seconds * 1000)}${whose}`
  if (!observedIdleSince) return after
  const leftMs = observedIdleSince.getTime() + seconds * 1000 - Date.now()
  return leftMs > 0 ? `${after}: in ${sayDuration(leftMs)}` : `${after}: any moment`
}
