import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import {
  chmodSync,
  createWriteStream,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Sql } from '../../migrations/connect.ts'
import { type TestDatabase, testDatabase } from '../../test/database.ts'
import { hypervisorUid } from '../hypervisor/driver.ts'
import { findProcesses } from '../hypervisor/process.ts'
import type { ReadyMessage } from '../main.ts'

/** What tests look at of a machine's row. */
export type SeenMachine = {
  id: number
  desired_state: string
  desired_boot: number
  observed_state: string
  observed_boot: number
  observed_reason: string | null
  observed_stage: string
  observed_ready_at: Date | null
  observed_host_key: Buffer | null
}

/**
 * A server of the test's own: a network namespace, a data directory with these artifacts, a database, and the real
 * vmhost process in it, which tests kill and start again as they like.
 */
export class TestServer implements AsyncDisposable {
  readonly namespace = `berth-t${randomBytes(3).toString('hex')}`
  readonly dataDirectory = mkdtempSync(join(tmpdir(), 'berth-vmhost-'))
  readonly database: TestDatabase
  readonly sql: Sql
  ready: ReadyMessage | undefined
  #child: ChildProcess | undefined
  #next = 2
  readonly #changes = new Set<() => void>()

  private constructor(database: TestDatabase) {
    this.database = database
    this.sql = database.as('owner')
  }

  /** @param mount puts another filesystem where the data directory is */
  static async make(
    artifacts: string,
    database?: TestDatabase,
    mount?: (dataDirectory: string) => void,
  ): Promise<TestServer> {
    const server = new TestServer(database ?? (await testDatabase()))
    mount?.(server.dataDirectory)
    chmodSync(server.dataDirectory, 0o755)
    symlinkSync(artifacts, join(server.dataDirectory, 'artifacts'))
    execFileSync('ip', ['netns', 'add', server.namespace])
    execFileSync('ip', ['-n', server.namespace, 'link', 'set', 'lo', 'up'])
    await server.sql`insert into accounts (is_owner) values (true)`
    await server.sql.listen('machines', () => {
      for (const changed of server.#changes) changed()
    })
    return server
  }

  get pid(): number {
    const pid = this.#child?.pid
    if (pid === undefined) throw new Error('no vmhost runs')
    return pid
  }

  /** Starts the vmhost and waits until it says that it is ready. @returns what it said */
  async start(env: Record<string, string> = {}): Promise<ReadyMessage> {
    const log = createWriteStream(join(this.dataDirectory, 'vmhost.log'), { flags: 'a' })
    await once(log, 'open')
    const child = spawn(
      'nsenter',
      [`--net=/run/netns/${this.namespace}`, process.execPath, new URL('../main.ts', import.meta.url).pathname],
      {
        env: {
          PATH: process.env.PATH ?? '',
          BERTH_DATA: this.dataDirectory,
          DATABASE_URL: this.database.url,
          BERTH_ACCEL: 'tcg',
          BERTH_LOG: 'debug',
          ...env,
        },
        stdio: ['ignore', 'ignore', log, 'ipc'],
      },
    )
    // Its own by now, and in the way of whoever unmounts what it lies on.
    log.close()
    this.#child = child
    const ready = await Promise.race([
      once(child, 'message').then(([message]) => message as ReadyMessage),
      once(child, 'exit').then(() => undefined),
    ])
    if (!ready) throw new Error(`the vmhost ended:\n${this.log()}`)
    this.ready = ready
    return ready
  }

  /** Resolves when the vmhost has ended by itself. @returns its exit status */
  async ended(): Promise<number | null> {
    const child = this.#child
    if (!child) throw new Error('no vmhost runs')
    const [code] = child.exitCode === null ? await once(child, 'exit') : [child.exitCode]
    return code
  }

  /** As if the launcher had been killed: its end of the channel closes. */
  disconnect(): void {
    this.#child?.disconnect()
  }

  /** Ends the vmhost and waits for it. */
  async end(signal: NodeJS.Signals = 'SIGTERM'): Promise<number | null> {
    const child = this.#child
    this.#child = undefined
    if (!child || child.exitCode !== null || child.signalCode !== null) return child?.exitCode ?? null
    const exit = once(child, 'exit')
    child.kill(signal)
    const [code] = await exit
    return code
  }

  /** As a gateway does it: machine, name and address in one transaction. */
  async insert(values: { [column: string]: string | number | object } = {}): Promise<number> {
    const number = this.#next++
    const row = {
      account_id: 1,
      host_id: 1,
      name: `m${number}`,
      image: 'minimal',
      cpus: 2,
      memory_bytes: 512 * 2 ** 20,
      disk_bytes: 2 ** 31,
      ...values,
    }
    return this.sql.begin(async (sql) => {
      const [made] = await sql<{ id: number }[]>`insert into machines ${sql(row)} returning id`
      const id = made?.id ?? 0
      await sql`insert into machine_names values (${row.name}, ${id})`
      await sql`insert into addresses values (${`10.42.0.${number}`}, ${id})`
      return id
    })
  }

  async update(id: number, values: Record<string, unknown>): Promise<void> {
    await this.sql`update machines set ${this.sql(values as never)} where id = ${id}`
  }

  async machine(id: number): Promise<SeenMachine> {
    const [row] = await this.sql<SeenMachine[]>`select * from machines where id = ${id}`
    if (!row) throw new Error(`no machine ${id}`)
    return row
  }

  /** Waits for the row to be as told; fails with the row and the log when it is not within the time. */
  async until(id: number, holds: (row: SeenMachine) => boolean, limitMs = 30_000): Promise<SeenMachine> {
    const deadline = Date.now() + limitMs
    for (;;) {
      const changed = new Promise<void>((resolve) => {
        const done = () => {
          this.#changes.delete(done)
          resolve()
        }
        this.#changes.add(done)
      })
      const row = await this.machine(id)
      if (holds(row)) return row
      const left = deadline - Date.now()
      if (left <= 0) throw new Error(`not so within ${limitMs} ms: ${JSON.stringify(row)}\n${this.log()}`)
      const late = Promise.withResolvers<void>()
      const timer = setTimeout(late.resolve, left)
      await Promise.race([changed, late.promise])
      clearTimeout(timer)
    }
  }

  /** Pids of this machine's hypervisor. */
  async hypervisors(id: number): Promise<number[]> {
    const found = await findProcesses(hypervisorUid(id), join(this.dataDirectory, 'store', 'machines', String(id)))
    return found.map(({ pid }) => pid)
  }

  taps(): string[] {
    const links = execFileSync('ip', ['-n', this.namespace, '-o', 'link'], { encoding: 'utf8' })
    return [...links.matchAll(/^\d+: (vm\d+)[:@]/gm)].map(([, name]) => name ?? '')
  }

  disks(): string[] {
    return readdirSync(join(this.dataDirectory, 'store', 'machines')).sort()
  }

  /** Runs a program in the server's network namespace. @returns its standard output */
  exec(program: string, args: string[], timeoutMs = 60_000): string {
    return execFileSync('ip', ['netns', 'exec', this.namespace, program, ...args], {
      encoding: 'utf8',
      timeout: timeoutMs,
    })
  }

  log(lines = 40): string {
    const text = readFileSync(join(this.dataDirectory, 'vmhost.log'), 'utf8')
    return text.split('\n').slice(-lines).join('\n')
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.end()
    const [{ ids } = { ids: [] }] = await this.sql<
      { ids: number[] }[]
    >`select coalesce(array_agg(id), '{}') as ids from machines`
    for (const id of ids) for (const pid of await this.hypervisors(id)) process.kill(pid, 'SIGKILL')
    execFileSync('ip', ['netns', 'del', this.namespace])
    for (const mounted of [join(this.dataDirectory, 'store'), this.dataDirectory]) await unmount(mounted)
    await this.database[Symbol.asyncDispose]()
    rmSync(this.dataDirectory, { recursive: true, force: true })
  }
}

async function unmount(path: string): Promise<void> {
  for (let attempt = 0; attempt < 50; attempt++) {
    try {
      execFileSync('umount', [path], { stdio: 'ignore' })
      return
    } catch {
      // A hypervisor that was just killed holds it for a moment, or it is no mount.
      if (!readFileSync('/proc/self/mountinfo', 'utf8').includes(` ${path} `)) return
      await new Promise((resolve) => setTimeout(resolve, 100))
    }
  }
  // A namespace that another test began meanwhile holds what is mounted in it for as long as that test takes.
  execFileSync('umount', ['--lazy', path])
}

/** An empty folder for artifacts of the test's own. */
export function artifactsFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), 'berth-artifacts-'))
  mkdirSync(join(folder, 'boot'))
  mkdirSync(join(folder, 'images'))
  return folder
}
