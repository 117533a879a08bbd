import { type MachineAccess, MachineNotReadyError } from '../../machines.ts'
import { isNavigation } from '../access/fields.ts'
import { type Visit, WakeError } from '../proxy/seams.ts'
import type { MachineRoute, RouteTable } from './routes.ts'

/** Most programs wait this long without giving up; then they are told to come again. */
const HOLD_MS = 25_000
const COME_AGAIN_S = 5
/** A person sees what goes on instead of an empty window; the page comes again by itself. */
const PERSON_HOLD_MS = 2_000
const PERSON_COMES_AGAIN_S = 2

/**
 * Holds a request while its machine starts. One that is off stays off: only its owner starts it.
 * What went wrong in detail is the owner's to see, so the page only says where.
 */
export function wakeOf(machines: MachineAccess, routes: RouteTable) {
  return async ({ route: asked, method, fields }: Visit, signal: AbortSignal): Promise<MachineRoute> => {
    const isPerson = isNavigation(method, fields)
    const comeAgain = () => starting(asked.name, isPerson ? PERSON_COMES_AGAIN_S : COME_AGAIN_S)
    const route = await routes.byId(asked.machineId)
    if (!route) throw new WakeError(`${asked.name} is gone.`, { code: 'machine.not_found', title: 'No such machine' })
    try {
      await machines.whenReady(
        route.machineId,
        { accountId: route.accountId },
        {
          signal,
          timeoutMs: isPerson ? PERSON_HOLD_MS : HOLD_MS,
        },
      )
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
    case 'machine.failed':
      return new WakeError(`Its owner sees why with: ls ${name} -l`, {
        code: 'machine.failed',
        title: `${name} has failed`,
        cause,
      })
    case 'machine.not_found':
      return new WakeError('It is in the trash.', { code: 'machine.not_found', title: `${name} is gone`, cause })
    case 'machine.timeout':
      return undefined
  }
}

function starting(name: string, retryAfterS: number): WakeError {
  return new WakeError('It answers as soon as it is up. This page looks again by itself.', {
    code: 'machine.starting',
    title: `${name} is starting`,
    retryAfterS,
  })
}
