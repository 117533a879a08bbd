import { type MachineAccess, MachineNotReadyError } from '../../machines.ts'
import { type Route, WakeError } from '../proxy/seams.ts'
import type { MachineRoute, RouteTable } from './routes.ts'

/** A browser, and most programs, wait this long for a page without giving up; then they are told to come again. */
const HOLD_MS = 25_000
const COME_AGAIN_S = 5

/**
 * Holds a request while its machine starts. One that is off stays off: only its owner starts it.
 * What went wrong in detail is the owner's to see, so the page only says where.
 */
export function wakeOf(machines: MachineAccess, routes: RouteTable) {
  return async (asked: Route, signal: AbortSignal): Promise<MachineRoute> => {
    const route = await routes.byId(asked.machineId)
    if (!route) throw new WakeError(`${asked.name} is gone.`, { code: 'machine.not_found', title: 'No such machine' })
    try {
      await machines.whenReady(route.machineId, { accountId: route.accountId }, { signal, timeoutMs: HOLD_MS })
    } catch (error) {
      if (error instanceof MachineNotReadyError) throw wakeError(error, route.name)
      if (signal.aborted) throw new WakeError('The request was given up.')
      throw error
    }
    const now = await routes.byId(route.machineId)
    if (!now?.awake) throw starting(asked.name)
    return now
  }
}

function wakeError(cause: MachineNotReadyError, name: string): WakeError {
  switch (cause.code) {
    case 'machine.off':
      return new WakeError(`Its owner starts it with: start ${name}`, {
        code: 'machine.stopped',
        title: `${name} is stopped`,
        cause,
      })
    case 'machine.failed':
      return new WakeError(`Its owner sees why with: ls ${name} -l`, {
        code: 'machine.failed',
        title: `${name} has failed`,
        cause,
      })
    case 'machine.not_found':
      return new WakeError('It is in the trash.', { code: 'machine.not_found', title: `${name} is gone`, cause })
    case 'machine.timeout':
      return starting(name)
  }
}

function starting(name: string): WakeError {
  return new WakeError('It answers as soon as it is up. This page looks again by itself.', {
    code: 'machine.starting',
    title: `${name} is starting`,
    retryAfterS: COME_AGAIN_S,
  })
}
