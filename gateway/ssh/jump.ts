import type { Connection } from 'ssh2'
import type { MachineWatch } from '../activity/watch.ts'
import type { App, Caller } from '../app.ts'
import { shown } from '../commands/values.ts'
import { faultSentence } from '../fault.ts'
import { type Machine, MachineNotReadyError } from '../machines.ts'
import { rejectChannel } from './internals.ts'
import { Carriage, Carriages, KNOCK } from './jump-carriage.ts'

const CONNECT_TIMEOUT_MS = 10_000

/**
 * `ssh -J host dev@demo`, -W and -L through the lobby: direct-tcpip channels (RFC 4254, 7.2) to machines of the
 * caller's, never to anything else. End to end encrypted where what flows is SSH.
 */
export function serveJumps(client: Connection, app: App, caller: Caller): void {
  const gone = new AbortController()
  const carriages = new Carriages()
  client.on('close', () => {
    gone.abort()
    carriages.close()
  })
  client.on('tcpip', (accept, reject, { destIP, destPort }) => {
    open(app, caller, destIP, destPort, carriages, gone.signal)
      .then((carriage) => carriage.start(accept()))
      .catch((error) => {
        const sentence = error instanceof JumpError ? error.message : faultSentence(error, app.log, 'a jump failed')
        rejectChannel(client, reject, sentence)
      })
  })
  // Both would make the gateway listen for the client.
  client.on('request', (_accept, reject) => reject?.())
}

class JumpError extends Error {
  override readonly name = 'JumpError'
}

/** The machine's name in a jump target: `demo`, `demo.<machine domain>`; undefined for anything else. */
export function machineOfTarget(target: string, machineDomain: string): string | undefined {
  const host = target.toLowerCase().replace(/\.$/, '')
  const suffix = `.${machineDomain.toLowerCase()}`
  const name = host.endsWith(suffix) ? host.slice(0, -suffix.length) : host
  return /^[a-z][a-z0-9-]{0,39}$/.test(name) ? name : undefined
}

/** SSH and what people serve; a machine's owner reaches every port of it. */
function mayReach(machine: Machine, caller: Caller, port: number): boolean {
  return machine.accountId === caller.accountId || port === 22 || (port >= 3000 && port <= 9999)
}

async function open(
  app: App,
  caller: Caller,
  host: string,
  port: number,
  carriages: Carriages,
  signal: AbortSignal,
): Promise<Carriage> {
  const name = machineOfTarget(host, app.settings.machineDomain)
  const machine = name === undefined ? undefined : await app.machines.find(name, caller)
  if (!machine) {
    throw new JumpError(`no machine called ${shown(host)}; only your machines can be reached through the lobby`)
  }
  if (!mayReach(machine, caller, port)) {
    throw new JumpError(`port ${port} of ${machine.name} is not open to you; ports 22 and 3000-9999 are`)
  }
  try {
    const ready = await app.machines.whenReady(machine.id, caller, { signal, knock: KNOCK })
    return await connectTo(app.machines.target(ready, caller), port, app.watches.of(ready.id), carriages, signal)
  } catch (error) {
    if (error instanceof MachineNotReadyError) throw new JumpError(error.message, { cause: error })
    if (signal.aborted) throw new JumpError('the client is gone', { cause: error })
    throw error
  }
}

async function connectTo(
  target: { name: string; address: string; port: number },
  port: number,
  watch: MachineWatch,
  carriages: Carriages,
  signal: AbortSignal,
): Promise<Carriage> {
  if (carriages.full) throw new JumpError('too many connections to machines at once')
  // `target.port` is where the platform's sshd is; guests know it as 22.
  const carriage = new Carriage(carriages, target.address, port === 22 ? target.port : port, watch)
  const { socket } = carriage
  const { promise, resolve, reject } = Promise.withResolvers<Carriage>()
  const timer = setTimeout(
    () => reject(new JumpError(`${target.name} did not answer on port ${port}`)),
    CONNECT_TIMEOUT_MS,
  )
  const onAbort = () => reject(new JumpError('the client is gone'))
  signal.addEventListener('abort', onAbort, { once: true })
  socket.once('connect', () => resolve(carriage))
  socket.once('error', (cause: NodeJS.ErrnoException) => {
    const refused = cause.code === 'ECONNREFUSED'
    reject(
      new JumpError(
        refused
          ? `nothing listens on port ${port} of ${target.name}`
          : `${target.name} cannot be reached on port ${port}`,
        { cause },
      ),
    )
  })
  try {
    return await promise
  } catch (error) {
    socket.on('error', () => {})
    socket.destroy()
    throw error
  } finally {
    clearTimeout(timer)
    signal.removeEventListener('abort', onAbort)
  }
}
