/**
 * A server, the internet and machines, each a network namespace: nothing here touches the namespace the tests run in.
 *
 *   machine 1 ── fake guest ── vm1 ┐                 ┌ eth0 203.0.113.2 ── 203.0.113.1 internet (and 198.51.100.10, ..)
 *   machine 2 ── fake guest ── vm2 ┴─ host ──────────┴ lan0 192.168.7.2 ── 192.168.7.1 lan
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { promisify } from 'node:util'
import type { TransferReading, TransferReadings } from '../counters.ts'
import type { MachineNetwork, NetworkSettings, ReconcileResult } from '../types.ts'
import type { Answer, Call, Kept, Said } from './network-process.ts'

const run = promisify(execFile)
let made = 0

export class Namespace {
  readonly name: string
  #children: ChildProcess[] = []

  private constructor(name: string) {
    this.name = name
  }

  static async create(role: string): Promise<Namespace> {
    const namespace = new Namespace(`berth-test-${process.pid}-${made++}-${role}`)
    await run('ip', ['netns', 'add', namespace.name])
    await namespace.run('ip link set lo up')
    return namespace
  }

  /** @returns standard output of a shell command line inside */
  async run(commandLine: string): Promise<string> {
    const { stdout } = await run('ip', ['netns', 'exec', this.name, 'sh', '-ec', commandLine], { maxBuffer: 2 ** 24 })
    return stdout
  }

  /** @returns ids of all processes inside */
  async processes(): Promise<number[]> {
    const { stdout } = await run('ip', ['netns', 'pids', this.name])
    return stdout.split('\n').filter(Boolean).map(Number)
  }

  /** Something to be ended with the namespace. */
  spawn(args: readonly string[], stdio: ('pipe' | 'inherit' | 'ipc')[]): ChildProcess {
    const child = spawn('ip', ['netns', 'exec', this.name, ...args], { stdio })
    this.#children.push(child)
    return child
  }

  own(child: ChildProcess): void {
    this.#children.push(child)
  }

  async delete(): Promise<void> {
    for (const child of this.#children) {
      if (child.exitCode !== null || child.signalCode !== null) continue
      const exited = once(child, 'exit')
      child.kill('SIGKILL')
      await exited
    }
    // What a failed test left behind, which is in here because the test put it here.
    for (const pid of await this.processes()) process.kill(pid, 'SIGKILL')
    await run('ip', ['netns', 'delete', this.name])
  }
}

export type ProbeAnswer = {
  readonly result?: string
  readonly text?: string
  readonly seen?: readonly string[]
  readonly arrived?: boolean
  readonly mtu?: number
  readonly mss?: number
  readonly peer?: string
  readonly error?: string
}

/** Somebody in a namespace who connects, sends and listens: probe.py. One command at a time. */
export class Probe {
  readonly #child: ChildProcess
  readonly #lines: AsyncIterator<string>
  #turn: Promise<unknown> = Promise.resolve()

  constructor(namespace: Namespace) {
    this.#child = namespace.spawn(['python3', fixture('probe.py')], ['pipe', 'pipe', 'inherit'])
    if (this.#child.stdout === null) throw new Error('no output')
    this.#lines = createInterface({ input: this.#child.stdout })[Symbol.asyncIterator]()
  }

  async ask(command: { do: string; [option: string]: unknown }): Promise<ProbeAnswer> {
    const answer = this.#turn.then(async () => {
      this.#child.stdin?.write(`${JSON.stringify(command)}\n`)
      const { value, done } = await this.#lines.next()
      if (done === true) throw new Error(`probe ended at ${JSON.stringify(command)}`)
      const parsed: ProbeAnswer = JSON.parse(value)
      if (parsed.error !== undefined) throw new Error(`${JSON.stringify(command)}: ${parsed.error}`)
      return parsed
    })
    this.#turn = answer.catch(() => {})
    return await answer
  }

  async listen(protocol: 'tcp' | 'udp' | 'raw', port: number, address = '0.0.0.0'): Promise<void> {
    await this.ask({ do: 'listen', protocol, port, address })
  }

  /** @returns `connected` or the name of the error number */
  async tcp(address: string, port: number): Promise<string> {
    return (await this.ask({ do: 'tcp', address, port })).result ?? 'nothing'
  }

  /**
   * Sends itself something of the same kind and waits for it: what had reached its kernel before has been seen then.
   * @returns whom everything else at this port came from since the last time
   */
  async settled(port: number, loopback = '127.0.0.1', how: 'udp' | 'reset' = 'udp'): Promise<readonly string[]> {
    await this.ask({ do: how, address: loopback, port })
    const { arrived } = await this.ask({ do: 'wait', port, source: loopback })
    if (arrived !== true) throw new Error(`port ${port} hears nothing`)
    return (await this.seen(port)).filter((source) => source !== loopback)
  }

  /** @returns whom datagrams and connections at this port came from since the last time */
  async seen(port: number): Promise<readonly string[]> {
    return (await this.ask({ do: 'seen', port })).seen ?? []
  }
}

/** vmhost's network, running in a namespace. */
export class NetworkProcess {
  readonly child: ChildProcess
  /** What it logged: the messages. */
  readonly said: string[] = []
  /** What it handed on of counters that it then removed. */
  readonly kept: TransferReading[] = []
  readonly #waiting = new Map<number, PromiseWithResolvers<unknown>>()
  readonly #listeners = new Set<() => void>()
  #calls = 0

  constructor(namespace: Namespace, settings: NetworkSettings) {
    const args = [process.execPath, fixture('network-process.ts'), JSON.stringify(settings)]
    this.child = namespace.spawn(args, ['inherit', 'inherit', 'inherit', 'ipc'])
    this.child.on('message', (message: Answer | Said | Kept) => {
      if ('kept' in message) {
        this.kept.push(...message.kept.readings)
        return
      }
      if ('said' in message) {
        this.said.push(message.said)
        for (const listener of this.#listeners) listener()
        return
      }
      const waiting = this.#waiting.get(message.id)
      this.#waiting.delete(message.id)
      if (message.error === undefined) waiting?.resolve(message.result)
      else waiting?.reject(new Error(message.error))
    })
    this.child.once('exit', () => {
      for (const { reject } of this.#waiting.values()) reject(new Error('the network process ended'))
    })
  }

  async call(call: Call): Promise<unknown> {
    const id = this.#calls++
    const waiting = Promise.withResolvers<unknown>()
    this.#waiting.set(id, waiting)
    this.child.send({ id, call })
    return await waiting.promise
  }

  async reconcile(wanted: readonly MachineNetwork[]): Promise<ReconcileResult> {
    // What went through IPC is what network-process.ts sent.
    return (await this.call({ do: 'reconcile', wanted })) as ReconcileResult
  }

  async readTransfer(): Promise<readonly TransferReading[]> {
    // What went through IPC is what network-process.ts sent.
    return ((await this.call({ do: 'readTransfer' })) as TransferReadings).readings
  }

  /** Resolves when it has logged a message that matches. */
  async hears(pattern: RegExp): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>()
    const listener = (): void => {
      if (this.said.some((message) => pattern.test(message))) resolve()
    }
    this.#listeners.add(listener)
    listener()
    await promise
    this.#listeners.delete(listener)
  }

  async kill(): Promise<void> {
    const exited = once(this.child, 'exit')
    this.child.kill('SIGKILL')
    await exited
  }
}

/** Plugs a namespace into a machine's tap, as the machine's user. @throws Error when the tap refuses this user */
export async function plugIn(
  machine: MachineNetwork,
  host: Namespace,
  guest: Namespace,
  mac: string,
): Promise<ChildProcess> {
  const child = spawn(
    'python3',
    [fixture('fake-guest.py'), `vm${machine.machineId}`, String(machine.uid), host.name, guest.name],
    {
      stdio: ['pipe', 'pipe', 'inherit'],
    },
  )
  guest.own(child)
  const [line] = await once(createInterface({ input: child.stdout }), 'line')
  if (line !== 'ready') throw new Error(String(line))
  // As the guest's kernel sets itself up from `ip=`: the whole network is on the link, the gateway the default route.
  await guest.run(
    `ip link set eth0 address ${mac} up; ip addr add ${machine.address}/16 dev eth0; ip route add default via 10.42.0.1`,
  )
  return child
}

export type Lab = AsyncDisposable & {
  readonly host: Namespace
  readonly internet: Namespace
  readonly lan: Namespace
  /** A further namespace, deleted with the rest. */
  add(role: string): Promise<Namespace>
}

/** Host, internet and LAN, wired. */
export async function createLab(): Promise<Lab> {
  const all: Namespace[] = []
  const add = async (role: string): Promise<Namespace> => {
    const namespace = await Namespace.create(role)
    all.push(namespace)
    return namespace
  }
  const [host, internet, lan] = [await add('host'), await add('internet'), await add('lan')]
  for (const [device, peer] of [
    ['eth0', internet],
    ['lan0', lan],
  ] as const)
    await host.run(`ip link add ${device} type veth peer name eth0 netns ${peer.name}`)
  await host.run(
    'ip addr add 203.0.113.2/24 dev eth0; ip link set eth0 up; ip addr add 192.168.7.2/24 dev lan0; ip link set lan0 up;' +
      'ip route add default via 203.0.113.1',
  )
  await internet.run('ip addr add 203.0.113.1/24 dev eth0; ip link set eth0 up; ip addr add 198.51.100.10/32 dev lo')
  await lan.run('ip addr add 192.168.7.1/24 dev eth0; ip link set eth0 up; ip route add default via 192.168.7.2')
  return {
    host,
    internet,
    lan,
    add,
    async [Symbol.asyncDispose]() {
      for (const namespace of all) await namespace.delete()
    },
  }
}

function fixture(name: string): string {
  return new URL(name, import.meta.url).pathname
}
