/**
 * Loaded into a vmhost before anything of its own (`--import`): counts every step that changes something outside of the
 * process, and stops the process at the one that the test has named, before it or right after. The test then does what
 * it likes to the server, and kills the process or has it go on.
 *
 * Steps are: each change in the store (a file made, written, synced, renamed, removed; trees file by file), each program
 * that is run on it, each command to a hypervisor or an agent that is more than a question, each report to the database.
 *
 * Guests of a few bytes have no agent: whoever connects to one is led to the test's own, see lab.ts.
 */
import childProcess from 'node:child_process'
import fs from 'node:fs'
import { syncBuiltinESMExports } from 'node:module'
import net from 'node:net'
import { basename, dirname, join } from 'node:path'
import timersPromises from 'node:timers/promises'
import { promisify } from 'node:util'
import { isMainThread } from 'node:worker_threads'
import { FrameReader } from '../../guest/frames.ts'
import { messageType } from '../../guest/messages.ts'

/** What the test writes into `control.json` of the folder that BERTH_FAULTS names. */
export type Control = {
  /** counting begins anew with each */
  readonly round: number
  readonly stopAt?: { readonly step: string; readonly nth: number; readonly when: 'before' | 'after' }
}

const folder = process.env.BERTH_FAULTS ?? ''
const store = join(process.env.BERTH_DATA ?? '', 'store')

/** Node's modules, as those that import them see them after `syncBuiltinESMExports`. */
const mutable = <T extends object>(module: T) => module as { -readonly [name in keyof T]: T[name] }
const files = mutable(fs.promises)
const programs = mutable(childProcess)
const sockets = mutable(net)
const timers = mutable(timersPromises)
const real = {
  ...fs.promises,
  execFile: promisify(childProcess.execFile),
  spawn: childProcess.spawn,
  connect: net.connect,
  send: net.Socket.prototype.write,
  sleep: timersPromises.setTimeout,
}

let round = 0
const counts = new Map<string, number>()

/** @returns how often that step was done before in this round */
function before(step: string): number {
  const { stopAt } = control()
  const nth = counts.get(step) ?? 0
  counts.set(step, nth + 1)
  fs.appendFileSync(join(folder, 'steps'), `${round}\t${nth}\t${step}\n`)
  if (stopAt?.when === 'before' && stopAt.step === step && stopAt.nth === nth) standStill()
  return nth
}

function after(step: string, nth: number): void {
  const { stopAt } = control()
  if (stopAt?.when === 'after' && stopAt.step === step && stopAt.nth === nth) standStill()
}

function control(): Control {
  const now = JSON.parse(fs.readFileSync(join(folder, 'control.json'), 'utf8')) as Control
  if (now.round !== round) {
    round = now.round
    counts.clear()
  }
  return now
}

/** All threads of it, in this moment. */
function standStill(): void {
  fs.writeFileSync(join(folder, 'reached'), String(round))
  process.kill(process.pid, 'SIGSTOP')
}

/** As it is called in every round: without numbers and what is random. */
function named(path: unknown): string | undefined {
  if (typeof path !== 'string' || !path.startsWith(`${store}/`)) return undefined
  return path.slice(store.length + 1).replace(/^(machines|checkpoints)\/(\.new-|\.gone-)?\d+(-[0-9a-f]{8})?/, '$1/$2N')
}

async function step<T>(name: string | undefined, act: () => Promise<T>): Promise<T> {
  if (name === undefined) return act()
  const nth = before(name)
  const result = await act()
  after(name, nth)
  return result
}

type Act = (...args: unknown[]) => Promise<unknown>

function watchFiles(): void {
  for (const name of ['mkdir', 'chmod', 'chown', 'lchown', 'truncate'] as const) {
    const act = real[name] as Act
    const watched: Act = (...args) => {
      const path = named(args[0])
      return step(path && `${name} ${path}`, () => act(...args))
    }
    files[name] = watched as never
  }
  files.rename = (from, to) => {
    const path = named(from)
    const target = basename(String(to)).replace(/\d+(-[0-9a-f]{8})?$/, 'N')
    return step(path && `rename ${path} ${target}`, () => real.rename(from, to))
  }
  // A tree that is half removed is what somebody may find.
  const remove = async (path: string, force: boolean): Promise<void> => {
    const found = await real.lstat(path).catch(() => undefined)
    if (!found && force) return
    if (found?.isDirectory()) for (const name of await real.readdir(path)) await remove(join(path, name), true)
    await step(`rm ${named(path)}`, () => real.rm(path, { recursive: found?.isDirectory() === true, force }))
  }
  files.rm = (path, options) =>
    named(path) === undefined ? real.rm(path, options) : remove(String(path), options?.force === true)

  const opened = new WeakMap<object, string>()
  files.open = async (path, flags, mode) => {
    const name = named(path)
    const isMade = typeof flags === 'string' && /[wa]/.test(flags)
    const handle = await step(isMade && name ? `create ${name}` : undefined, () => real.open(path, flags, mode))
    if (name !== undefined) opened.set(handle, name)
    return handle
  }
  // A file that is half written, too.
  files.writeFile = async (path, content, options) => {
    const name = named(path)
    if (name === undefined || typeof options === 'string') return real.writeFile(path, content, options)
    const { mode, flag, flush } = options ?? {}
    const handle = await files.open(String(path), flag ?? 'w', mode)
    try {
      await step(`write ${name}`, () => handle.writeFile(content as string))
      if (flush) await handle.sync()
    } finally {
      await handle.close()
    }
  }
  const watchHandles = async () => {
    await using handle = await real.open('/dev/null')
    const prototype = Object.getPrototypeOf(handle) as Record<string, Act>
    for (const name of ['sync', 'write', 'writev']) {
      const act = prototype[name] as Act
      prototype[name] = function (this: object, ...args) {
        const path = opened.get(this)
        return step(path && `${name} ${path}`, () => act.apply(this, args))
      }
    }
  }
  void watchHandles()
}

function watchPrograms(): void {
  const watched = ((...args: Parameters<typeof childProcess.execFile>) => execFile(...args)) as typeof execFile
  const { execFile } = childProcess
  const run = async (program: string, args: readonly string[] = [], options = {}) => {
    const paths = args.map(named).filter((path) => path !== undefined)
    if (paths.length === 0) return real.execFile(program, args, options)
    const name = `${program} ${paths.join(' ')}`
    return step(name, () => {
      if (program !== 'cp') return real.execFile(program, args, options)
      // It makes its file first, and fills it then. Where it cannot, it says so itself.
      try {
        fs.writeFileSync(args.at(-1) ?? '', '')
      } catch {
        return real.execFile(program, args, options)
      }
      return step(`${name}, begun`, () => real.execFile(program, args, options))
    })
  }
  Object.defineProperty(watched, promisify.custom, { value: run })
  programs.execFile = watched

  const start = (program: string, args: readonly string[], options: childProcess.SpawnOptions) => {
    if (program !== 'setpriv' || named(options?.cwd) === undefined) return real.spawn(program, args, options)
    const nth = before('start of a hypervisor')
    const child = real.spawn(program, args, options)
    // One that goes on from its memory waits to be let.
    if (args.includes('-incoming')) fs.writeFileSync(stillMark(child.pid), '')
    after('start of a hypervisor', nth)
    return child
  }
  programs.spawn = start as typeof programs.spawn
}

/** There as long as this hypervisor's guest stands still: its agent says nothing then. */
const stillMark = (pid: number | undefined) => join(folder, 'still', String(pid))

function watchSockets(): void {
  /** machine's directory, of a socket to its hypervisor */
  const toHypervisor = new WeakMap<net.Socket, string>()
  const toAgent = new WeakMap<net.Socket, FrameReader>()
  const toDatabase = new WeakMap<net.Socket, Map<string, string>>()
  const connect = (options: net.NetConnectOpts, ...more: []) => {
    const path = 'path' in options ? socketAt(options.path) : ''
    if (basename(path) === 'agent.sock') {
      const pid = hypervisorIn(dirname(dirname(path)))
      const socket = real.connect({ path: pid === undefined ? path : join(folder, 'agents.sock') })
      real.send.call(socket, `${pid}\n`)
      toAgent.set(socket, new FrameReader())
      return socket
    }
    const socket = real.connect(options, ...more)
    if (basename(path) === 'qmp.sock') toHypervisor.set(socket, dirname(dirname(path)))
    return socket
  }
  sockets.connect = connect as typeof net.connect

  const send = function (this: net.Socket, chunk: string | Uint8Array, ...more: []) {
    const directory = toHypervisor.get(this)
    const reader = toAgent.get(this)
    const steps =
      directory !== undefined ? ofHypervisor(chunk) : reader ? ofAgent(reader, chunk) : ofDatabase(this, chunk)
    const done = steps.map((name) => [name, before(name)] as const)
    const isTaken = real.send.call(this, chunk, ...more)
    if (directory !== undefined && steps.length > 0) noteStill(directory, steps[0] ?? '')
    for (const [name, nth] of done) after(name, nth)
    return isTaken
  }
  net.Socket.prototype.write = send

  function ofDatabase(socket: net.Socket, chunk: string | Uint8Array): string[] {
    if (typeof chunk === 'string' || (socket as { encrypted?: boolean }).encrypted) return []
    const statements = toDatabase.get(socket) ?? new Map<string, string>()
    toDatabase.set(socket, statements)
    return reports(Buffer.from(chunk), statements)
  }
}

/** Where a socket lies that is connected to by a descriptor of it, see own-socket.ts. */
const socketAt = (path: string) => (path.startsWith('/proc/self/fd/') ? fs.readlinkSync(path) : path)

function ofHypervisor(chunk: string | Uint8Array): string[] {
  const command = /"execute":"([a-z_-]+)"/.exec(String(chunk))?.[1] ?? ''
  const isQuestion = command === '' || /^(query-|qom-get|qmp_capabilities)/.test(command)
  return isQuestion ? [] : [`hypervisor: ${command}`]
}

const messageNames = new Map(Object.entries(messageType).map(([name, number]) => [number as number, name]))
function ofAgent(reader: FrameReader, chunk: string | Uint8Array): string[] {
  const names = reader.push(Buffer.from(chunk)).map(({ type }) => messageNames.get(type) ?? '')
  return names.filter((name) => !['hello', 'ping', 'report'].includes(name)).map((name) => `agent: ${name}`)
}

/**
 * Those statements among the messages that report what becomes of machines and checkpoints.
 * @param statements those that are prepared, by name
 * @see https://www.postgresql.org/docs/current/protocol-message-formats.html, Parse and Bind
 */
function reports(bytes: Buffer, statements: Map<string, string>): string[] {
  const found: string[] = []
  for (let at = 0; at + 5 <= bytes.length; ) {
    const kind = String.fromCharCode(bytes[at] ?? 0)
    const end = at + 1 + bytes.readUInt32BE(at + 1)
    if (end > bytes.length || end <= at + 1) break
    const [first = '', second = ''] = bytes.toString('utf8', at + 5, end).split('\0', 2)
    if (kind === 'P') statements.set(first, second)
    const said = kind === 'B' ? (statements.get(second) ?? '') : ''
    const about = /^\s*(update (?:machines|checkpoints)|insert into events)\b/.exec(said)?.[1]
    if (about !== undefined) found.push(`database: ${about}`)
    at = end
  }
  return found
}

function noteStill(directory: string, command: string): void {
  const pid = hypervisorIn(directory)
  if (pid === undefined) return
  if (command === 'hypervisor: stop') fs.writeFileSync(stillMark(pid), '')
  if (command === 'hypervisor: cont') fs.rmSync(stillMark(pid), { force: true })
}

function hypervisorIn(directory: string): number | undefined {
  for (const name of fs.readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue
    try {
      if (fs.readlinkSync(`/proc/${name}/cwd`) !== directory) continue
      if (fs.readFileSync(`/proc/${name}/comm`, 'utf8').startsWith('qemu-system')) return Number(name)
    } catch {
      // It has ended.
    }
  }
  return undefined
}

/** What a wake leaves time for, nobody here needs. */
function hurry(): void {
  const sleep = (ms: number, ...more: []) => real.sleep(ms === 3_000 ? 100 : ms, ...more)
  timers.setTimeout = sleep as typeof timers.setTimeout
}

if (isMainThread && folder !== '' && process.argv[1]?.endsWith('/vmhost/main.ts')) {
  watchFiles()
  watchPrograms()
  watchSockets()
  hurry()
  syncBuiltinESMExports()
}
