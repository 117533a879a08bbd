import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { request } from 'node:http'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { z } from 'zod'
import { restoredConfig, vmConfig } from '../cloud-hypervisor-config.ts'
import type { MachineSpec } from '../driver.ts'
import { makeTinyPvhGuest } from '../tiny-guest.ts'

/**
 * Writes down what a real Cloud Hypervisor answers to every call that the driver makes, in every state in which it may
 * make it, and what its event monitor says; fake-cloud-hypervisor.ts answers from that. Not part of any test:
 *
 *     CLOUD_HYPERVISOR=/path/of/it node vmhost/hypervisor/testing/record-cloud-hypervisor.ts
 *
 * on a machine with KVM. Its output is recorded/cloud-hypervisor-<version>.json.
 */

/** What of the guest's life a call was made in. */
export type RecordedState = 'fresh' | 'created' | 'running' | 'paused' | 'off' | 'restored'

export type RecordedCall = {
  readonly state: RecordedState
  readonly method: 'GET' | 'PUT'
  readonly name: string
  readonly body: unknown
  readonly status: number
  /** parsed; null for none */
  readonly answer: unknown
}

export type Recording = {
  readonly version: string
  readonly calls: readonly RecordedCall[]
  /** as it came, by what made it come */
  readonly events: Readonly<Record<string, string>>
}

const binary = process.env.CLOUD_HYPERVISOR
if (binary === undefined) throw new Error('CLOUD_HYPERVISOR names no program')
const home = mkdtempSync(join(tmpdir(), 'berth-record-'))
const calls: RecordedCall[] = []
const events: Record<string, string> = {}

async function main(): Promise<void> {
  for (const guest of ['idle', 'powersOff', 'resets', 'panics'] as const)
    await makeTinyPvhGuest(join(home, guest), guest)
  const idle = new Vmm('idle')
  await idle.start()
  await idle.call('fresh', 'GET', 'vmm.ping')
  await idle.call('fresh', 'GET', 'vm.info')
  await idle.call('fresh', 'PUT', 'vm.boot')
  await idle.call('fresh', 'PUT', 'vm.pause')
  await idle.call('fresh', 'PUT', 'vm.nonsense')
  await idle.call('fresh', 'PUT', 'vm.create', vmConfig(idle.spec, false))
  await idle.call('created', 'GET', 'vm.info')
  await idle.call('created', 'PUT', 'vm.create', vmConfig(idle.spec, false))
  await idle.call('created', 'PUT', 'vm.boot')
  events.boot = idle.takeEvents()
  await idle.call('running', 'GET', 'vmm.ping')
  await idle.call('running', 'GET', 'vm.info')
  await idle.call('running', 'GET', 'vm.counters')
  await idle.call('running', 'PUT', 'vm.resume')
  await idle.call('running', 'PUT', 'vm.snapshot', { destination_url: 'file://run/save' })
  await idle.call('running', 'PUT', 'vm.power-button')
  await idle.call('running', 'PUT', 'vm.resize', { desired_balloon: 16 * 2 ** 20 })
  await idle.call('running', 'PUT', 'vm.resize', { desired_balloon: 2 ** 40 })
  await idle.call('running', 'PUT', 'vm.resize', { desired_balloon: 0 })
  await idle.call('running', 'PUT', 'vm.resize', { desired_vcpus: 3 })
  await idle.call('running', 'PUT', 'vm.resize', { desired_vcpus: 4 })
  await idle.call('running', 'PUT', 'vm.resize', { desired_ram: 192 * 2 ** 20 })
  await idle.call('running', 'PUT', 'vm.resize', { desired_ram: 193 * 2 ** 20 })
  await idle.call('running', 'PUT', 'vm.resize', { desired_ram: 1216 * 2 ** 20 })
  truncateSync(idle.spec.disk, 96 * 2 ** 20)
  await idle.call('running', 'PUT', 'vm.resize-disk', { id: 'root', desired_size: 96 * 2 ** 20 })
  await idle.call('running', 'PUT', 'vm.resize-disk', { id: 'nonsense', desired_size: 96 * 2 ** 20 })
  events.resize = idle.takeEvents()
  await idle.call('running', 'PUT', 'vm.pause')
  events.pause = idle.takeEvents()
  await idle.call('paused', 'GET', 'vm.info')
  await idle.call('paused', 'PUT', 'vm.pause')
  await idle.call('paused', 'PUT', 'vm.snapshot', { destination_url: 'file://run/nowhere' })
  mkdirSync(join(idle.directory, 'run/save'))
  await idle.call('paused', 'PUT', 'vm.snapshot', { destination_url: 'file://run/save' })
  events.snapshot = idle.takeEvents()
  await idle.call('paused', 'PUT', 'vm.resume')
  events.resume = idle.takeEvents()
  await idle.call('running', 'PUT', 'vmm.shutdown')
  events.quit = await idle.end()

  const saved = join(idle.directory, 'run/save')
  const restored = new Vmm('restored')
  await restored.start()
  mkdirSync(join(restored.directory, 'run/restore'))
  await restored.call('fresh', 'PUT', 'vm.restore', { source_url: 'file://run/nowhere' })
  if (existsSync(join(saved, 'state.json'))) await recordRestore(restored, saved)
  else await restored.call(undefined, 'PUT', 'vmm.shutdown')
  await restored.end()

  for (const guest of ['powersOff', 'resets', 'panics'] as const) {
    const vmm = new Vmm(guest)
    await vmm.start()
    await vmm.call(undefined, 'PUT', 'vm.create', vmConfig(vmm.spec, false))
    await vmm.call(undefined, 'PUT', 'vm.boot')
    await vmm.until({ powersOff: 'shutdown', resets: 'rebooted', panics: 'panic' }[guest])
    events[guest] = afterBoot(vmm.takeEvents())
    if (guest === 'powersOff') {
      await vmm.call('off', 'GET', 'vm.info')
      await vmm.call('off', 'PUT', 'vm.pause')
      await vmm.call('off', 'PUT', 'vm.resume')
      await vmm.call('off', 'PUT', 'vmm.shutdown')
    } else await vmm.call(undefined, 'PUT', 'vmm.shutdown')
    await vmm.end()
  }
  const { version } = z.object({ version: z.string() }).parse(calls[0]?.answer)
  const recording: Recording = { version, calls, events }
  process.stdout.write(`${JSON.stringify(recording, undefined, 1)}\n`)
}

/** Not every KVM gives the state of its processors away: Cloud Hypervisor cannot save a guest then. */
async function recordRestore(restored: Vmm, saved: string): Promise<void> {
  for (const name of ['state.json', 'memory-ranges']) {
    execFileSync('cp', ['--sparse=always', join(saved, name), join(restored.directory, 'run/restore', name)])
  }
  const config = restoredConfig(readFileSync(join(saved, 'config.json'), 'utf8'), restored.spec, false)
  writeFileSync(join(restored.directory, 'run/restore/config.json'), JSON.stringify(config))
  await restored.call('fresh', 'PUT', 'vm.restore', { source_url: 'file://run/restore' })
  events.restore = restored.takeEvents()
  await restored.call('restored', 'GET', 'vm.info')
  await restored.call('restored', 'PUT', 'vmm.shutdown')
}

/** What follows the event `booted`, which every start has. */
function afterBoot(text: string): string {
  const booted = text.indexOf('"booted"')
  return booted < 0 ? text : text.slice(text.indexOf('\n\n', booted) + 2)
}

class Vmm {
  readonly directory: string
  readonly spec: MachineSpec
  #child: ReturnType<typeof spawn> | undefined
  #events = ''

  constructor(name: string) {
    this.directory = join(home, `machine-${name}`)
    mkdirSync(join(this.directory, 'run'), { recursive: true })
    const disk = join(this.directory, 'root.raw')
    writeFileSync(disk, '')
    truncateSync(disk, 64 * 2 ** 20)
    const kernel = join(home, name === 'restored' ? 'idle' : name)
    this.spec = {
      machineId: 1,
      directory: this.directory,
      cpus: 2,
      memoryBytes: 64 * 2 ** 20,
      most: { cpus: 3, memoryBytes: 320 * 2 ** 20 },
      kernel,
      commandLine: 'a, b',
      disk,
    }
  }

  async start(): Promise<void> {
    const parameters = ['--api-socket', 'path=run/api.sock', '--event-monitor', 'fd=3', '--no-shutdown']
    const child = spawn(String(binary), parameters, {
      cwd: this.directory,
      stdio: ['ignore', 'ignore', 'inherit', 'pipe'],
    })
    this.#child = child
    child.stdio[3]?.on('data', (chunk: Buffer) => {
      this.#events += chunk.toString('utf8')
    })
    for (let tries = 0; tries < 200; tries++) {
      if (
        await this.#send('GET', 'vmm.ping', undefined).then(
          () => true,
          () => false,
        )
      )
        return
      await sleep(50)
    }
    throw new Error('it does not listen')
  }

  async call(state: RecordedState | undefined, method: 'GET' | 'PUT', name: string, body?: object): Promise<void> {
    const { status, text } = await this.#send(method, name, body)
    const answer = text === '' ? null : JSON.parse(text)
    if (state !== undefined) calls.push({ state, method, name, body: body ?? null, status, answer })
    process.stderr.write(`${state} ${method} ${name} ${status} ${text.slice(0, 200)}\n`)
  }

  async until(event: string): Promise<void> {
    for (let tries = 0; tries < 400 && !this.#events.includes(`"${event}"`); tries++) await sleep(50)
  }

  takeEvents(): string {
    const taken = this.#events
    this.#events = ''
    return taken
  }

  async end(): Promise<string> {
    if (this.#child && this.#child.exitCode === null) await once(this.#child, 'exit')
    await sleep(50)
    return this.takeEvents()
  }

  #send(method: string, name: string, body: object | undefined): Promise<{ status: number; text: string }> {
    const text = body === undefined ? '' : JSON.stringify(body)
    return new Promise((resolve, reject) => {
      const call = request(
        {
          socketPath: join(this.directory, 'run/api.sock'),
          path: `/api/v1/${name}`,
          method,
          headers: { 'content-length': Buffer.byteLength(text) },
          agent: false,
        },
        async (answer) => {
          let said = ''
          for await (const chunk of answer) said += chunk
          resolve({ status: answer.statusCode ?? 0, text: said })
        },
      )
      call.on('error', reject)
      call.end(text)
    })
  }
}

await main().finally(() => rmSync(home, { recursive: true }))
