/**
 * For tests: a gateway's host and a machine, each a network namespace, and the link between them that goes with the
 * machine's tap and comes back with it. What the machine's kernel has of its connections stays, as in a memory that was
 * saved; the host routes to the machine as vmhost/network does, and lets it speak as an answer only.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { promisify } from 'node:util'
import type { Asked, Said, StationOptions } from './station.ts'

const run = promisify(execFile)
const ADDRESS = '10.42.0.2'
let made = 0

export class Lab {
  readonly host: string
  /** the one that the link leads to */
  machine: string
  readonly address = ADDRESS
  readonly #namespaces: string[] = []
  readonly #children: ChildProcess[] = []

  private constructor(host: string, machine: string) {
    this.host = host
    this.machine = machine
    this.#namespaces.push(host, machine)
  }

  static async create(): Promise<Lab> {
    const lab = new Lab(await addNamespace('host'), await addNamespace('machine'))
    try {
      await lab.#prepare()
    } catch (error) {
      await lab[Symbol.asyncDispose]()
      throw error
    }
    return lab
  }

  async #prepare(): Promise<void> {
    await this.inside(this.host, 'ip address add 10.42.0.1/32 dev lo; ip route add unreachable 10.42.0.0/16')
    await this.inside(
      this.host,
      `nft 'add table inet test; add chain inet test to_host { type filter hook input priority 0; }'
      nft 'add rule inet test to_host iifname != "vm1" accept'
      nft 'add rule inet test to_host ct state established,related accept'
      nft 'add rule inet test to_host reject with icmpx admin-prohibited'`,
    )
    await this.linkUp()
  }

  async inside(namespace: string, commandLine: string): Promise<string> {
    return (await run('ip', ['netns', 'exec', namespace, 'sh', '-ec', commandLine])).stdout
  }

  /** The host's firewall has forgotten the machine's connections, as it does for each new tap. */
  async linkUp(): Promise<void> {
    await this.inside(
      this.host,
      `conntrack -F 2>/dev/null || true
      ip link add vm1 address 02:be:00:00:00:01 type veth peer name eth0 address 02:be:0a:2a:00:02 netns ${this.machine}
      ip neighbour replace ${ADDRESS} lladdr 02:be:0a:2a:00:02 dev vm1 nud permanent`,
    )
    await this.inside(
      this.machine,
      `ip address add ${ADDRESS}/32 dev eth0; ip link set eth0 up
      ip neighbour replace 10.42.0.1 lladdr 02:be:00:00:00:01 dev eth0 nud permanent
      ip route add default via 10.42.0.1 dev eth0 onlink`,
    )
    await this.inside(this.host, `ip link set vm1 up; ip route add ${ADDRESS}/32 dev vm1 src 10.42.0.1`)
  }

  async linkDown(): Promise<void> {
    await this.inside(this.host, 'ip link delete vm1')
  }

  /** While the link is down: when it is back it leads to a machine that was just started. */
  async reboot(): Promise<void> {
    this.machine = await addNamespace('machine')
    this.#namespaces.push(this.machine)
  }

  /** Sockets to the machine as the host's kernel has them: what waits in them, and which timer runs. */
  async sockets(): Promise<string[]> {
    const lines = await this.inside(this.host, `ss -Htno state established dst ${ADDRESS}`)
    return lines.split('\n').filter(Boolean)
  }

  /** A gateway's side of the connections, in the host's namespace. */
  async station(options: StationOptions): Promise<Station> {
    const script = join(import.meta.dirname, 'station.ts')
    const args = ['netns', 'exec', this.host, process.execPath, script, JSON.stringify(options)]
    const child = spawn('ip', args, { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] })
    this.#children.push(child)
    const station = new Station(child)
    await station.until((said) => said.is === 'there')
    return station
  }

  /** A server in the machine that says `tick` every 50 ms and sends back what it gets; its lines: `open`, `closed`. */
  tunnels(port: number): { lines: string[]; stop(): Promise<void> } {
    const script = join(import.meta.dirname, 'tunnels.py')
    const child = spawn('ip', ['netns', 'exec', this.machine, 'python3', '-u', script, ADDRESS, String(port)], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    this.#children.push(child)
    const lines: string[] = []
    createInterface({ input: child.stdout }).on('line', (line) => lines.push(line))
    return {
      lines,
      async stop() {
        const gone = once(child, 'exit')
        child.kill('SIGKILL')
        await gone
      },
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const child of this.#children) {
      if (child.exitCode !== null || child.signalCode !== null) continue
      const gone = once(child, 'exit')
      child.kill('SIGKILL')
      await gone
    }
    for (const name of this.#namespaces) {
      // What a failed test left behind, which is in here because the test put it here.
      const { stdout } = await run('ip', ['netns', 'pids', name])
      for (const pid of stdout.split('\n').filter(Boolean)) process.kill(Number(pid), 'SIGKILL')
      await run('ip', ['netns', 'delete', name])
    }
  }
}

async function addNamespace(role: string): Promise<string> {
  const name = `berth-test-${process.pid}-${made++}-${role}`
  await run('ip', ['netns', 'add', name])
  await run('ip', ['netns', 'exec', name, 'ip', 'link', 'set', 'lo', 'up'])
  return name
}

export class Station {
  readonly #child: ChildProcess
  readonly said: Said[] = []
  #waiting: (() => void)[] = []

  constructor(child: ChildProcess) {
    this.#child = child
    child.on('message', (said: Said) => {
      this.said.push(said)
      for (const wake of this.#waiting.splice(0)) wake()
    })
  }

  ask(asked: Asked): void {
    this.#child.send(asked)
  }

  /** @param from how much of what was said is old */
  async until(matches: (said: Said) => boolean, from = 0): Promise<Said> {
    for (;;) {
      const found = this.said.slice(from).find(matches)
      if (found) return found
      await new Promise<void>((resolve) => this.#waiting.push(resolve))
    }
  }
}
