/** For tests: what a gateway has of a machine, in a process of its own that can be put into a network namespace. */
import { connect, type Socket } from 'node:net'
import { pino } from 'pino'
import { type MachineProcess, openOnMachine } from '../../ssh/pool/open-on-machine.ts'
import { MachinePool } from '../../ssh/pool/pool.ts'
import type { LifeRow } from '../life.ts'
import type { Tie } from '../tie.ts'
import { MachineWatch } from '../watch.ts'

export type StationOptions = { address: string; sshPort: number; privateKey: string; hostKey: string }

export type Asked =
  /** the machine's row as it is now */
  | { do: 'see'; state: 'running' | 'asleep' | 'waking' }
  /** runs `cat` there */
  | { do: 'session' }
  | { do: 'type'; text: string }
  | { do: 'resize' }
  /** connects to a port, as the proxy and jumps do */
  | { do: 'tunnel'; name: string; port: number }
  | { do: 'send'; name: string; text: string }
  | { do: 'destroy'; name: string }

export type Said =
  | { is: 'there' }
  | { is: 'open'; name: string }
  | { is: 'heard'; name: string; text: string }
  | { is: 'closed'; name: string; because: string }
  /** somebody wants it awake */
  | { is: 'wanted'; because: string }

const { address, sshPort, privateKey, hostKey }: StationOptions = JSON.parse(process.argv[2] ?? '')
const say = (said: Said): void => void process.send?.(said)
const watch = new MachineWatch(1, {
  get nowMs() {
    return performance.now()
  },
  wake: async (_id, because) => {
    say({ is: 'wanted', because })
    return true
  },
  look: () => {},
})
const pool = new MachinePool({
  privateKey,
  log: pino({ level: 'silent' }),
  watches: { of: () => watch },
  // Four of them unanswered end a connection that knows nothing of sleep.
  keepaliveIntervalMs: 50,
})
const target = {
  machineId: 1,
  name: 'demo',
  address,
  port: sshPort,
  hostKey: Buffer.from(hostKey, 'base64'),
  user: 'root',
  accountId: 1,
}
const tunnels = new Map<string, { socket: Socket; tie: Tie }>()
let session: MachineProcess | undefined
let readyAt = new Date()

function rowOf(state: 'running' | 'asleep' | 'waking'): LifeRow {
  const row = {
    desiredBoot: 1,
    observedBoot: 1,
    observedStage: 'ready',
    desiredRestore: 0,
    observedRestore: 0,
  } as const
  if (state === 'asleep') return { ...row, desiredState: 'asleep', observedState: 'running', observedReadyAt: readyAt }
  if (state === 'waking') return { ...row, desiredState: 'running', observedState: 'asleep', observedReadyAt: null }
  return { ...row, desiredState: 'running', observedState: 'running', observedReadyAt: readyAt }
}

function hear(name: string, stream: NodeJS.ReadableStream): void {
  stream.on('data', (bytes: Buffer) => say({ is: 'heard', name, text: bytes.toString() }))
}

process.on('message', async (asked: Asked) => {
  switch (asked.do) {
    case 'see':
      if (asked.state === 'waking') readyAt = new Date(readyAt.getTime() + 1)
      watch.see(rowOf(asked.state))
      break
    case 'session':
      session = await openOnMachine(pool, target, { command: 'cat' })
      hear('session', session.stdout)
      session.exit.catch((error: Error) => say({ is: 'closed', name: 'session', because: error.message }))
      say({ is: 'open', name: 'session' })
      break
    case 'type':
      session?.stdin.write(asked.text)
      break
    case 'resize':
      session?.resize(100, 40)
      break
    case 'tunnel': {
      const { name, port } = asked
      const socket = connect({ host: address, port, noDelay: true, keepAlive: true, keepAliveInitialDelay: 1000 })
      const tie = watch.attach(socket, { keepAliveMs: 1000, onEnded: () => socket.destroy() })
      tunnels.set(name, { socket, tie })
      hear(name, socket)
      socket.once('connect', () => say({ is: 'open', name }))
      socket.on('error', (error: NodeJS.ErrnoException) => say({ is: 'closed', name, because: error.code ?? '' }))
      break
    }
    case 'send': {
      const tunnel = tunnels.get(asked.name)
      if (tunnel?.tie.isHeld) tunnel.tie.want('a tunnel')
      tunnel?.socket.write(asked.text)
      break
    }
    case 'destroy':
      tunnels.get(asked.name)?.tie.destroy()
  }
})
process.on('disconnect', () => process.exit(0))
watch.see(rowOf('running'))
say({ is: 'there' })
