import {
  existsSync,
  linkSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { createServer, type ServerResponse } from 'node:http'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { RecordedCall, RecordedState, Recording } from './record-cloud-hypervisor.ts'

/**
 * A fake of Cloud Hypervisor for tests without the program: the same command line, the same socket, the same
 * descriptors, and answers as the real one has given them (recorded/), by state and call. There is no guest in it:
 * signals stand for what a guest does.
 *
 *     SIGUSR1 the guest switches itself off · SIGUSR2 it panics · SIGHUP it reboots
 *
 * FAKE_PLANTS has it, taken over, make something else of what it saves: `symlink FILE` and `hardlink FILE` to that file in
 * the place of its state, `swap FOLDER` a link to that folder in the place of the one that it saves to.
 *
 * Every request goes, one JSON document a line, to the file that FAKE_REQUESTS names. They are carried out one after the
 * other, and FAKE_HELD, a call and a file, has that one, and all that come after it, wait until the file is there.
 */

const recording: Recording = JSON.parse(readFileSync(process.env.FAKE_RECORDING ?? '', 'utf8'))
const version = process.env.FAKE_VERSION ?? recording.version

function parameter(name: string): string {
  return process.argv[process.argv.indexOf(`--${name}`) + 1] ?? ''
}

if (process.argv.includes('--version')) {
  process.stdout.write(`cloud-hypervisor ${version}\n`)
  process.exit(0)
}

let state: RecordedState = 'fresh'
let config: Record<string, unknown> = {}
let balloonBytes = 0
const monitor = Number(parameter('event-monitor').replace('fd=', ''))

function tell(what: string): void {
  writeSync(monitor, recording.events[what] ?? '')
}

const moves: Record<string, { to: RecordedState; event?: string }> = {
  'vm.create': { to: 'created' },
  'vm.boot': { to: 'running', event: 'boot' },
  'vm.pause': { to: 'paused', event: 'pause' },
  'vm.resume': { to: 'running', event: 'resume' },
  'vm.restore': { to: 'restored', event: 'restore' },
}

/** A call with this body where one was recorded, else with any. */
function find(method: string, name: string, body: unknown): RecordedCall | undefined {
  // A restored guest stands still; what was asked in one state alone is answered alike in all.
  const states = state === 'restored' ? ['restored', 'paused'] : name === 'vmm.ping' ? ['fresh'] : [state]
  const known = states.flatMap((one) =>
    recording.calls.filter((call) => call.state === one && call.method === method && call.name === name),
  )
  return (
    known.find((call) => JSON.stringify(call.body) === JSON.stringify(body)) ??
    known.find(({ status }) => status < 300) ??
    known[0]
  )
}

/** The one loop that works off all requests. */
let loop = Promise.resolve()

const server = createServer(async (question, answer) => {
  let text = ''
  for await (const chunk of question) text += chunk
  const body = text === '' ? null : JSON.parse(text)
  const method = question.method ?? ''
  const name = (question.url ?? '').replace('/api/v1/', '')
  const requests = process.env.FAKE_REQUESTS
  if (requests !== undefined) writeFileSync(requests, `${JSON.stringify({ method, name, body })}\n`, { flag: 'a' })
  loop = loop.then(() => respond({ method, name, body }, answer))
})

type Question = { method: string; name: string; body: Record<string, unknown> | null }

async function respond({ method, name, body }: Question, answer: ServerResponse): Promise<void> {
  const [held, until = ''] = process.env.FAKE_HELD?.split(' ') ?? []
  while (name === held && !existsSync(until)) await sleep(10)
  const failing = process.env.FAKE_FAILURE?.split(' ')[0] === name
  const found = find(method, name, body)
  const status = failing ? 500 : (found?.status ?? 404)
  if (status < 300) carryOut(name, body)
  const said = failing ? process.env.FAKE_FAILURE?.split(' ').slice(1).join(' ').split(' | ') : found?.answer
  answer.writeHead(status, { 'content-type': 'application/json', server: 'Cloud Hypervisor API' })
  answer.end(said === null || said === undefined ? undefined : JSON.stringify(dress(name, said)))
  if (name === 'vmm.shutdown') answer.once('close', () => process.exit(0))
}

function carryOut(name: string, body: Record<string, unknown> | null): void {
  if (name === 'vm.create') config = body ?? {}
  if (name === 'vm.resize') resize(body ?? {})
  if (name === 'vm.snapshot') save(String(body?.destination_url).replace('file://', ''))
  if (name === 'vm.restore') {
    const folder = String(body?.source_url).replace('file://', '')
    config = JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8'))
    for (const file of ['state.json', 'memory-ranges']) readFileSync(join(folder, file))
  }
  const move = moves[name]
  if (move) {
    state = move.to
    if (move.event) tell(move.event)
  }
}

/** What a guest was given is in its configuration from then on. */
function resize({ desired_vcpus: cpus, desired_ram: bytes, desired_balloon: balloon }: Record<string, unknown>): void {
  if (cpus !== undefined) config = { ...config, cpus: { ...(config.cpus as object), boot_vcpus: cpus } }
  if (bytes !== undefined) config = { ...config, memory: { ...(config.memory as object), size: bytes } }
  if (balloon !== undefined) balloonBytes = Number(balloon)
}

function save(folder: string): void {
  writeFileSync(join(folder, 'config.json'), JSON.stringify(config), { flag: 'wx' })
  const text = JSON.stringify({ of: 'a fake' })
  // A disk that fills up in the middle of it, which the real one does not notice.
  writeFileSync(join(folder, 'state.json'), process.env.FAKE_SHORT ? text.slice(0, 5) : text, { flag: 'wx' })
  writeFileSync(join(folder, 'memory-ranges'), 'memory', { flag: 'wx' })
  truncateSync(join(folder, 'memory-ranges'), Number((config.memory as { size: number }).size))
  plant(folder)
  tell('snapshot')
}

function plant(folder: string): void {
  const [how, target = ''] = process.env.FAKE_PLANTS?.split(' ') ?? []
  if (how === undefined) return
  try {
    if (how === 'swap') {
      renameSync(folder, `${folder}.away`)
      symlinkSync(target, folder)
      return
    }
    rmSync(join(folder, 'state.json'))
    if (how === 'symlink') symlinkSync(target, join(folder, 'state.json'))
    else linkSync(target, join(folder, 'state.json'))
  } catch (error) {
    writeFileSync('run/refused', String((error as NodeJS.ErrnoException).code))
  }
}

/** The answers that say what was told before say it of this guest. */
function dress(name: string, said: unknown): unknown {
  if (name === 'vmm.ping') return { ...(said as object), version, pid: process.pid }
  if (name !== 'vm.info' || !('config' in (said as object))) return said
  const size = Number((config.memory as { size: number }).size)
  return { ...(said as object), config, memory_actual_size: size - balloonBytes }
}

process.on('SIGTERM', () => {
  tell('quit')
  process.exit(0)
})
process.on('SIGUSR1', () => {
  state = 'off'
  tell('powersOff')
})
process.on('SIGUSR2', () => tell('panics'))
process.on('SIGHUP', () => tell('resets'))
server.listen(parameter('api-socket').replace('path=', ''))
// The console's descriptor is its standard output.
say(`${process.env.FAKE_SAYS ?? 'the fake comes up'}\r\n`)
say('x'.repeat(Number(process.env.FAKE_FLOOD ?? 0)))

function say(text: string): void {
  try {
    writeSync(1, text)
  } catch (error) {
    // As the real one: what finds no room is dropped.
    if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error
  }
}
