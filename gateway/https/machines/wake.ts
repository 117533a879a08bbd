import { type MachineAccess, MachineNotReadyError } from '../../machines.ts'
import { isNavigation } from '../access/fields.ts'
import { type Visit, WakeError } from '../proxy/seams.ts'
import type { MachineRoute, RouteTable } from './routes.ts'

/** Most programs wait this long without giving up; then they are told to come again. */
const HOLD_MS = 25_000
/** For a machine that wakes, which it does as a rule: many programs wait for a minute. */
const WAKE_HOLD_MS = 55_000
const COME_AGAIN_S = 5
/** A person sees what goes on instead of an empty window; the page comes again by itself. */
const PERSON_HOLD_MS = 2_000
const PERSON_COMES_AGAIN_S = 2
/** Those who use its server's memory rarely leave it sooner. */
const NO_ROOM_COME_AGAIN_S = 30
/** One that failed stays so until its owner does something about it. */
const FAILED_COME_AGAIN_S = 30

/**
 * Holds a request while its machine starts or wakes; one that sleeps is woken. One that is off or paused stays so: only
 * its owner changes that. What went wrong in detail is the owner's to see, so the page only says where.
 */
export function wakeOf(machines: MachineAccess, routes: RouteTable) {
  return async ({ route: asked, method, fields, upgrade }: Visit, signal: AbortSignal): Promise<MachineRoute> => {
    const isPerson = isNavigation(method, fields)
    const route = await routes.byId(asked.machineId)
    if (!route) throw new WakeError(`${asked.name} is gone.`, { code: 'machine.not_found', title: 'No such machine' })
    const isWaking = route.life === 'held'
    const comeAgain = () => coming(asked.name, isWaking, isPerson ? PERSON_COMES_AGAIN_S : COME_AGAIN_S)
    const timeoutMs = isPerson ? PERSON_HOLD_MS : isWaking ? WAKE_HOLD_MS : HOLD_MS
    const knock = upgrade === undefined ? 'a web request' : 'a WebSocket'
    try {
      await machines.whenReady(route.machineId, { accountId: route.accountId }, { signal, knock, timeoutMs })
    } catch (error) {
      if (error instanceof MachineNotReadyError) throw wakeError(error, route.name) ?? comeAgain()
      if (signal.aborted) throw new WakeError('The request was given up.')
      throw error
    }
    const now = await routes.byId(route.machineId)
    if (!now?.awake) throw comeAgain()
    return now
  }
}

/** @returns undefined when it only takes longer */
function wakeError(cause: MachineNotReadyError, name: string): WakeError | undefined {
  switch (cause.code) {
    case 'machine.off':
      return new WakeError(`Its owner starts it with: start ${name}`, {
        code: 'machine.stopped',
        title: `${name} is stopped`,
        cause,
      })
    case 'machine.paused':
      return new WakeError(`Its owner wakes it with: resume ${name}`, {
        code: 'machine.paused',
        title: `${name} is paused`,
        cause,
      })
    case 'machine.failed':
      return new WakeError(`Its owner sees why with: ls ${name} -l`, {
        code: 'machine.failed',
        title: `${name} has failed`,
        retryAfterS: FAILED_COME_AGAIN_S,
        cause,
      })
    case 'machine.no_room':
      return new WakeError('Its server has no memory for it at the moment.', {
        code: 'machine.no_room',
        title: `${name} cannot wake now`,
        retryAfterS: NO_ROOM_COME_AGAIN_S,
        cause,
      })
    case 'machine.cannot_restore':
      return new WakeError(`Its server cannot restore its memory. Its owner sees why with: why ${name}`, {
        code: 'machine.cannot_restore',
        title: `${name} cannot wake now`,
        retryAfterS: FAILED_COME_AGAIN_S,
        cause,
      })
    case 'machine.not_found':
      return new WakeError('It is in the trash.', { code: 'machine.not_found', title: `${name} is gone`, cause })
    case 'account.suspended':
      return new WakeError('The account that it belongs to is suspended.', {
        code: 'account.suspended',
        title: 'Not available',
        cause,
      })
    case 'account.over_limit':
      return new WakeError('The account that it belongs to has reached its limit for the month.', {
        code: 'account.over_limit',
        title: `${name} sleeps`,
        cause,
      })
    case 'machine.timeout':
      return undefined
  }
}

function coming(name: string, isWaking: boolean, retryAfterS: number): WakeError {
  const detail = `It answers as soon as it is ${isWaking ? 'awake' : 'up'}.`
  return new WakeError(detail, {
    code: isWaking ? 'machine.waking' : 'machine.starting',
    title: `${name} is ${isWaking ? 'waking' : 'starting'}`,
    retryAfterS,
  })
}
