/**
 * The product as its README starts it, inside a network namespace of its own, and an outside world in a second one.
 *
 *     outside 203.0.113.2/24, 198.51.100.7 ("the internet")  <— veth —>  server 203.0.113.1/24: `npm start`
 *
 * Every test that talks to it uses real clients (OpenSSH, scp, git …) from the outside namespace.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  symlinkSync,
} from 'node:fs'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'
import { connect, type DatabaseRole, type Sql } from '../../migrations/connect.ts'
import { embeddedUrl } from '../../migrations/embedded.ts'
import { testArtifacts } from './artifacts.ts'
import { openTerminal, type Terminal } from './terminal.ts'

const run = promisify(execFile)

export const CHECKOUT = join(import.meta.dirname, '..', '..')
export const SERVER_ADDRESS = '203.0.113.1'
export const OUTSIDE_ADDRESS = '203.0.113.2'
/** An address of "the internet" that is no neighbour of the server. */
export const INTERNET_ADDRESS = '198.51.100.7'
export const SSH_PORT = 2222

/** Under emulation on two cores; a test that waits for an event ends at the event. */
const START_LIMIT_MS = 120_000

export type Finished = {
  status: number | null
  signal: NodeJS.Signals | null
  stdout: string
  stderr: string
  stdoutBytes: Buffer
}
export type RunOptions = { input?: string | Buffer; timeoutMs?: number; env?: Record<string, string> }

export type Product = {
  /** name of the network namespace that the product runs in, and of the outside world's */
  readonly serverNamespace: string
  readonly outsideNamespace: string
  readonly dataDirectory: string
  /** folder for the test's own files: keys, known_hosts */
  readonly home: string
  /** what `npm start` has printed so far */
  output(): string
  /** options that every OpenSSH client gets: key, port, known hosts; no user configuration */
  readonly sshOptions: readonly string[]
  /** runs a program in the outside world */
  outside(program: string, parameters: readonly string[], options?: RunOptions): Promise<Finished>
  /** `ssh … <destination> <command…>` from the outside world, without a terminal */
  ssh(parameters: readonly string[], options?: RunOptions): Promise<Finished>
  /** `ssh lobby@server <command line>` */
  lobby(line: string, options?: RunOptions): Promise<Finished>
  /** a program of the outside world on a real terminal */
  terminal(program: string, parameters: readonly string[], size?: { columns: number; rows: number }): Terminal
  /** process ids of the children by role, as they are now */
  processes(): {
    launcher: number
    gateway?: number
    vmhost?: number
    postgres?: number
    /** of machines */
    hypervisors: number[]
    /** of a guest that a template is being made of */
    templates: number[]
  }
  /** a connection to its database */
  sql(role?: DatabaseRole): Sql
  /** what a path of the data directory holds, in the product's own mount namespace */
  storePath(relative: string): string
  /** SIGTERM to the launcher, and waits; hypervisors stay */
  stop(): Promise<void>
  /** starts it again over the same data directory */
  start(): Promise<void>
  [Symbol.asyncDispose](): Promise<void>
}

export type ProductOptions = { env?: Record<string, string> }

/**
 * Starts the product over an empty data directory.
 * @throws with everything it printed when it is not ready in two minutes
 */
export async function startProduct({ env = {} }: ProductOptions = {}): Promise<Product> {
  const id = randomBytes(4).toString('hex')
  const serverNamespace = `berth-s-${id}`
  const outsideNamespace = `berth-o-${id}`
  const home = mkdtempSync('/var/tmp/berth-e2e-')
  const dataDirectory = join(home, 'data')
  chmodSync(home, 0o711)
  mkdirSync(dataDirectory)
  symlinkSync(await testArtifacts(), join(dataDirectory, 'artifacts'))
  await makeNamespaces(serverNamespace, outsideNamespace)

  const key = join(home, 'id_ed25519')
  await run('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-C', 'sam@laptop', '-f', key])
  const knownHosts = join(home, 'known_hosts')
  const sshOptions = [
    ...['-F', 'none', '-o', `UserKnownHostsFile=${knownHosts}`, '-o', 'StrictHostKeyChecking=accept-new'],
    ...[
      '-o',
      'IdentitiesOnly=yes',
      '-i',
      key,
      '-o',
      `Port=${SSH_PORT}`,
      '-o',
      'ConnectTimeout=60',
      '-o',
      'LogLevel=ERROR',
    ],
  ]

  let launcher: ChildProcess | undefined
  let printed = ''
  const opened = new Map<DatabaseRole, Sql>()

  const start = async () => {
    const child = spawn('ip', ['netns', 'exec', serverNamespace, 'npm', 'start', '--silent'], {
      cwd: CHECKOUT,
      env: {
        ...process.env,
        DATABASE_URL: undefined,
        BERTH_DATA: dataDirectory,
        BERTH_OWNER: `${key}.pub`,
        BERTH_ACCEL: 'tcg',
        BERTH_RESOLVERS: `${INTERNET_ADDRESS},${OUTSIDE_ADDRESS}`,
        BERTH_NTP: INTERNET_ADDRESS,
        ...env,
      },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    launcher = child
    const from = printed.length
    await new Promise<void>((resolve, reject) => {
      const giveUp = setTimeout(
        () => reject(new Error(`not ready in ${START_LIMIT_MS} ms:\n${printed}`)),
        START_LIMIT_MS,
      )
      const hear = (chunk: Buffer) => {
        printed += chunk
        if (/^\s*ssh .*-p 2222/m.test(printed.slice(from))) {
          clearTimeout(giveUp)
          resolve()
        }
      }
      child.stdout?.on('data', hear)
      child.stderr?.on('data', hear)
      child.once('exit', (status) => {
        clearTimeout(giveUp)
        reject(new Error(`npm start ended with ${status}:\n${printed}`))
      })
    })
  }

  const stop = async () => {
    const pid = launcherPid(dataDirectory)
    const child = launcher
    if (!child || child.exitCode !== null || child.signalCode !== null) return
    const ended = new Promise((resolve) => child.once('exit', resolve))
    if (pid) process.kill(pid, 'SIGTERM')
    else child.kill('SIGTERM')
    await ended
  }

  const outside = (program: string, parameters: readonly string[], options: RunOptions = {}) =>
    finish(
      spawn('ip', ['netns', 'exec', outsideNamespace, program, ...parameters], {
        cwd: home,
        env: { ...process.env, HOME: home, ...options.env },
      }),
      options,
    )

  const product: Product = {
    serverNamespace,
    outsideNamespace,
    dataDirectory,
    home,
    sshOptions,
    output: () => printed,
    outside,
    ssh: (parameters, options) => outside('ssh', [...sshOptions, ...parameters], options),
    lobby: (line, options) => outside('ssh', [...sshOptions, `lobby@${SERVER_ADDRESS}`, line], options),
    terminal: (program, parameters, size) =>
      openTerminal('ip', ['netns', 'exec', outsideNamespace, program, ...parameters], { cwd: home, home, ...size }),
    processes: () => processesOf(dataDirectory),
    sql: (role = 'owner') => {
      const known = opened.get(role)
      if (known) return known
      const sql = connect({ url: embeddedUrl(dataDirectory), role, max: 2, applicationName: 'berth e2e' })
      opened.set(role, sql)
      return sql
    },
    storePath: (relative) =>
      join(`/proc/${processesOf(dataDirectory).vmhost ?? process.pid}/root`, dataDirectory, 'store', relative),
    stop,
    start,
    [Symbol.asyncDispose]: async () => {
      await Promise.all([...opened.values()].map((sql) => sql.end({ timeout: 1 }).catch(() => {})))
      await stop().catch(() => {})
      for (const pid of pidsNaming(dataDirectory)) kill(pid)
      await Promise.all(
        [serverNamespace, outsideNamespace].map((ns) => run('ip', ['netns', 'delete', ns]).catch(() => {})),
      )
      await detachVolume(dataDirectory)
      rmSync(home, { recursive: true, force: true, maxRetries: 20, retryDelay: 250 })
    },
  }
  try {
    await start()
  } catch (error) {
    await product[Symbol.asyncDispose]()
    throw error
  }
  return product
}

async function makeNamespaces(server: string, outside: string) {
  const ip = (...parameters: string[]) => run('ip', parameters)
  await ip('netns', 'add', server)
  await ip('netns', 'add', outside)
  await ip('-n', server, 'link', 'set', 'lo', 'up')
  await ip('-n', outside, 'link', 'set', 'lo', 'up')
  await ip('-n', server, 'link', 'add', 'wan', 'type', 'veth', 'peer', 'name', 'wan', 'netns', outside)
  await ip('-n', server, 'address', 'add', `${SERVER_ADDRESS}/24`, 'dev', 'wan')
  await ip('-n', outside, 'address', 'add', `${OUTSIDE_ADDRESS}/24`, 'dev', 'wan')
  await ip('-n', outside, 'address', 'add', `${INTERNET_ADDRESS}/32`, 'dev', 'lo')
  await ip('-n', server, 'link', 'set', 'wan', 'up')
  await ip('-n', outside, 'link', 'set', 'wan', 'up')
  await ip('-n', server, 'route', 'add', 'default', 'via', OUTSIDE_ADDRESS)
}

async function finish(child: ChildProcess, { input, timeoutMs = 120_000 }: RunOptions): Promise<Finished> {
  const stdout: Buffer[] = []
  const stderr: Buffer[] = []
  child.stdout?.on('data', (chunk: Buffer) => stdout.push(chunk))
  child.stderr?.on('data', (chunk: Buffer) => stderr.push(chunk))
  child.stdin?.on('error', () => {})
  child.stdin?.end(input ?? '')
  const limit = setTimeout(() => child.kill('SIGKILL'), timeoutMs)
  const [status, signal] = await new Promise<[number | null, NodeJS.Signals | null]>((resolve, reject) => {
    child.once('error', reject)
    child.once('close', (code, by) => resolve([code, by]))
  })
  clearTimeout(limit)
  const stdoutBytes = Buffer.concat(stdout)
  return { status, signal, stdout: stdoutBytes.toString(), stderr: Buffer.concat(stderr).toString(), stdoutBytes }
}

function commandLine(pid: number | string) {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0').filter(Boolean)
  } catch {
    return []
  }
}

function variable(pid: number | string, name: string) {
  try {
    return readFileSync(`/proc/${pid}/environ`, 'utf8')
      .split('\0')
      .find((entry) => entry.startsWith(`${name}=`))
      ?.slice(name.length + 1)
  } catch {
    return undefined
  }
}

const allPids = () =>
  readdirSync('/proc')
    .filter((entry) => /^\d+$/.test(entry))
    .map(Number)

/** Processes that belong to a data directory: it stands in their command line or environment, or they work in it. */
function pidsNaming(dataDirectory: string) {
  return allPids().filter(
    (pid) =>
      pid !== process.pid &&
      (commandLine(pid).some((word) => word.includes(dataDirectory)) ||
        variable(pid, 'BERTH_DATA') === dataDirectory ||
        workingDirectory(pid).startsWith(`${dataDirectory}/`)),
  )
}

function workingDirectory(pid: number) {
  try {
    return readlinkSync(`/proc/${pid}/cwd`)
  } catch {
    return ''
  }
}

function launcherPid(dataDirectory: string) {
  return pidsNaming(dataDirectory).find((pid) => {
    const words = commandLine(pid)
    return dirname(words[0] ?? '') !== '' && /(^|\/)node$/.test(words[0] ?? '') && /berth\.mjs$/.test(words[1] ?? '')
  })
}

function processesOf(dataDirectory: string): ReturnType<Product['processes']> {
  const pids = pidsNaming(dataDirectory).map((pid) => ({ pid, words: commandLine(pid) }))
  const having = (pattern: RegExp) =>
    pids.find(({ words }) => words.slice(0, 6).some((word) => pattern.test(word)))?.pid
  const gateway = having(/gateway\/main\.ts$/)
  const vmhost = having(/vmhost\/main\.ts$/)
  const hypervisors = pids.filter(({ words }) => /qemu-system-x86_64$/.test(words[0] ?? ''))
  const isOfTemplate = ({ words }: { words: string[] }) => words.includes('guest=vm2000000000,debug-threads=on')
  const postgres = pids.find(({ words }) => /\/postgres$/.test(words[0] ?? ''))?.pid
  return {
    launcher: launcherPid(dataDirectory) ?? 0,
    ...(gateway ? { gateway } : {}),
    ...(vmhost ? { vmhost } : {}),
    ...(postgres ? { postgres } : {}),
    hypervisors: hypervisors.filter((one) => !isOfTemplate(one)).map(({ pid }) => pid),
    templates: hypervisors.filter(isOfTemplate).map(({ pid }) => pid),
  }
}

function kill(pid: number) {
  try {
    process.kill(pid, 'SIGKILL')
  } catch {
    // It ended by itself in between.
  }
}

/** The mount went with its namespace's last process; a loop device that nobody mounts is let go. */
async function detachVolume(dataDirectory: string) {
  const volume = join(dataDirectory, 'volume.xfs')
  if (!existsSync(volume)) return
  const { stdout } = await run('losetup', ['-j', volume, '-n', '-O', 'NAME'])
  for (const device of stdout.split('\n').filter(Boolean)) await run('losetup', ['-d', device.trim()]).catch(() => {})
}
