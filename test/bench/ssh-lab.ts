import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { cpus, release } from 'node:os'
import { createInterface } from 'node:readline'
import type { MachineTarget } from '../../gateway/ssh/pool/target.ts'
import { type Keys, makeKeys, run, startMachine } from '../../gateway/ssh/relay/fixtures.ts'
import settings from '../../package.json' with { type: 'json' }

/** How the launcher runs a gateway. */
export const nodeFlags = settings.config.nodeFlags.split(' ')

/** An sshd of the host and a gateway process in front of it. */
export type Lab = { keys: Keys; target: MachineTarget; gateway: GatewayProcess } & AsyncDisposable

export type GatewayProcess = { port: number; pid: number } & AsyncDisposable

export async function startLab(nodeArguments: readonly string[] = []): Promise<Lab> {
  const keys = makeKeys()
  const machine = await startMachine(keys)
  const gateway = await startGatewayProcess(keys, machine.target, nodeArguments)
  return {
    keys,
    target: machine.target,
    gateway,
    [Symbol.asyncDispose]: async () => {
      await gateway[Symbol.asyncDispose]()
      await machine[Symbol.asyncDispose]()
      keys[Symbol.dispose]()
    },
  }
}

export async function startGatewayProcess(
  keys: Keys,
  target: MachineTarget,
  nodeArguments: readonly string[] = [],
): Promise<GatewayProcess> {
  const script = new URL('ssh-gateway.ts', import.meta.url).pathname
  const child: ChildProcess = spawn(process.execPath, [...nodeFlags, ...nodeArguments, script], {
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  if (child.stdin === null || child.stdout === null || child.pid === undefined) throw new Error('gateway did not start')
  child.stdin.end(JSON.stringify({ keys, target: { ...target, hostKey: target.hostKey.toString('base64') } }))
  const [line] = (await once(createInterface({ input: child.stdout }), 'line')) as [string]
  return {
    port: Number(line),
    pid: child.pid,
    [Symbol.asyncDispose]: async () => {
      const gone = once(child, 'exit')
      child.kill()
      await gone
    },
  }
}

/** User plus system time of a process so far, all threads (proc(5), stat: fields 14 and 15, in ticks of 10 ms). */
export function cpuSeconds(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return (Number(fields[11]) + Number(fields[12])) / 100
}

/** Resident set size in bytes (proc(5), status). */
export function rssBytes(pid: number): number {
  const kib = /^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]
  return Number(kib) * 1024
}

export type Spread = { median: number; min: number; max: number }

export function spread(values: readonly number[]): Spread {
  const sorted = [...values].sort((a, b) => a - b)
  const middle = sorted.length / 2
  const at = (index: number) => sorted[Math.floor(index)] ?? Number.NaN
  return { median: (at(middle) + at((sorted.length - 1) / 2)) / 2, min: at(0), max: at(sorted.length - 1) }
}

export function show({ median, min, max }: Spread, digits = 2): string {
  return `${median.toFixed(digits)} (${min.toFixed(digits)} to ${max.toFixed(digits)})`
}

/** What the table names: facts/bench's machine, cores, kernel, Node and the rival's version. */
export async function surroundings(): Promise<Record<string, string>> {
  const { stderr } = await run('ssh', ['-V'])
  return {
    cpu: cpus()[0]?.model ?? 'unknown',
    cores: String(cpus().length),
    kernel: release(),
    node: process.version,
    openssh: stderr.toString().trim(),
  }
}

/** Prints a table for people on stderr and the JSON of everything on stdout. */
export function report(
  title: string,
  where: Record<string, string>,
  rows: Record<string, string>,
  figures: object,
): void {
  const width = Math.max(...Object.keys(rows).map((name) => name.length))
  const lines = Object.entries(rows).map(([name, value]) => `  ${name.padEnd(width)}  ${value}`)
  console.error([title, `  ${Object.values(where).join(', ')}`, ...lines, ''].join('\n'))
  console.log(JSON.stringify({ title, where, figures }))
}
