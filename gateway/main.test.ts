import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { createSocket } from 'node:dgram'
import { once } from 'node:events'
import { chmodSync, chownSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { hostname, tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { type TestDatabase, testDatabase } from '../test/database.ts'
import { run } from '../test/gateway.ts'

const MAIN = join(import.meta.dirname, 'main.ts')
/** Of the loopback interface, and of these tests alone. */
const ADDRESS = '127.0.0.77'

type Ready = { ready: true; ssh: string; https?: string; lines: [string, string][] }

let database: TestDatabase
let directory: string
let port: number
const children = new Set<ChildProcess>()

beforeAll(() => {
  if (spawnSync('getent', ['passwd', 'berth']).status === 0) return
  execFileSync('useradd', ['--system', '--user-group', '--shell', '/usr/sbin/nologin', 'berth'])
})

beforeEach(async () => {
  database = await testDatabase()
  directory = mkdtempSync(join(tmpdir(), 'berth-main-'))
  chmodSync(directory, 0o755)
  const key = join(directory, 'secret.key')
  writeFileSync(key, randomBytes(32), { mode: 0o600 })
  chownSync(key, Number(execFileSync('id', ['-u', 'berth'])), Number(execFileSync('id', ['-g', 'berth'])))
  port = await freePort()
})

afterEach(async () => {
  for (const child of children) {
    if (child.exitCode === null && child.signalCode === null) {
      child.kill('SIGKILL')
      await once(child, 'exit')
    }
  }
  children.clear()
  await database[Symbol.asyncDispose]()
  rmSync(directory, { recursive: true, force: true })
})

// Each test starts processes, which take a few seconds each where something else keeps the machine busy.
describe('the gateway’s process', { timeout: 120_000 }, () => {
  it('gives root up, serves, and makes the starter the owner', async () => {
    const key = starterKey('owner', 'carol@laptop')
    const gateway = start({ SUDO_USER: '', USER: 'dave' })
    const ready = await gateway.ready
    expect(ready).toEqual({ ready: true, ssh: `ssh -p ${port} localhost`, lines: [] })
    const status = readFileSync(`/proc/${gateway.child.pid}/status`, 'utf8')
    const uid = execFileSync('id', ['-u', 'berth'], { encoding: 'utf8' }).trim()
    expect(status).toMatch(new RegExp(`^Uid:\\s+${uid}\\s+${uid}\\s+${uid}\\s+${uid}$`, 'm'))
    expect(status).toMatch(/^CapEff:\s+0+$/m)
    const gid = execFileSync('id', ['-g', 'berth'], { encoding: 'utf8' }).trim()
    expect(status).toMatch(new RegExp(`^Groups:\\s+${gid} *$`, 'm'))

    const sql = database.as('owner')
    expect(await sql`select is_owner, (select count(*)::int from keys) as keys from accounts`).toEqual([
      { is_owner: true, keys: 1 },
    ])
    expect((await sql`select name from lobby_names order by name`).map((row) => row.name)).toEqual(['carol', 'dave'])
    for (const user of ['lobby', 'carol', 'dave']) {
      const result = await ssh(key, ['whoami', '--json'], user)
      expect(result).toMatchObject({ status: 0, stderr: '' })
    }
  })

  it('writes down the ports that it has, for the vmhost to let machines through to: none that it does not serve', async () => {
    const [httpsPort, httpPort] = [await freePort(), await freePort()]
    const written = () =>
      database.as('owner')<{ value: string }[]>`select value from settings where key = ${`gateway_ports@${hostname()}`}`
    const has = (...ports: number[]) => [
      { value: JSON.stringify(ports.map((bound) => ({ protocol: 'tcp', port: bound, address: ADDRESS }))) },
    ]
    const http = { BERTH_HTTP: `${ADDRESS}:${httpPort}` }
    const gateway = start({ ...http, BERTH_HTTPS: `${ADDRESS}:${httpsPort}` })
    await gateway.ready
    expect(await written()).toEqual(has(port, httpsPort, httpPort))
    gateway.child.kill('SIGKILL')
    await start(http).ready
    expect(await written()).toEqual(has(port))
  })

  it('prints a join code when the starter has no keys, the same at the next start', async () => {
    const first = await start({}).ready
    const [word, text = ''] = first.lines[0] ?? []
    expect(word).toBe('join code')
    expect(text).toMatch(/^[0-9a-z]{4}(-[0-9a-z]{4}){3} {3}\(asked for once, by the first ssh -p \d+ localhost\)$/)
    for (const child of children) child.kill('SIGKILL')
    expect((await start({}).ready).lines).toEqual(first.lines)
  })

  it('takes the owner’s keys from BERTH_OWNER, lines and files, and passes over lines with options', async () => {
    const [one, two, restricted] = ['one', 'two', 'restricted'].map((name) => makeKey(name))
    if (!one || !two || !restricted) throw new Error('no keys')
    const file = join(directory, 'team.pub')
    writeFileSync(file, `# the team\n${publicKey(two)}\ncommand="date" ${publicKey(restricted)}\nnonsense\n`)
    await start({ BERTH_OWNER: `${publicKey(one)},${file}` }).ready
    expect((await ssh(one, ['whoami'])).status).toBe(0)
    expect((await ssh(two, ['whoami'])).status).toBe(0)
    expect((await ssh(restricted, ['whoami'])).status).toBe(4)
  })

  it.each([
    [{ BERTH_SSH: 'nowhere' }, 'BERTH_SSH is "nowhere": expected addresses such as :2222 or 127.0.0.1:2222, or off\n'],
    [{ BERTH_OWNER: 'me' }, 'BERTH_OWNER is "me": that is not a public key; expected a line such as ssh-ed25519'],
    [{ BERTH_OWNER: '/nowhere.pub' }, 'BERTH_OWNER is "/nowhere.pub": the file cannot be read\n'],
    [{ BERTH_SSH: '192.0.2.1:22' }, 'BERTH_SSH is "192.0.2.1:22": no such address here\n'],
  ])('refuses %o in one line, with status 2', async (env, message) => {
    const gateway = start(env)
    expect(await gateway.ended).toBe(2)
    expect(gateway.stderr()).toContain(message)
    expect(gateway.stderr().trim().split('\n')).toHaveLength(1)
  })

  it('does not serve on an ssh2 without our patch, and names the remedy', async () => {
    const unpatch = join(directory, 'unpatch.cjs')
    const protocol = join(import.meta.dirname, '../node_modules/ssh2/lib/protocol/Protocol.js')
    writeFileSync(unpatch, `delete require(${JSON.stringify(protocol)}).prototype.relayTo\n`)
    const gateway = start({ NODE_OPTIONS: `--require=${unpatch}` })
    expect(await gateway.ended).toBe(1)
    expect(gateway.stderr()).toMatch(
      /^the gateway did not start: Berth's patch of ssh2 is not applied.*npm run setup\.\n$/,
    )
  })

  it('serves HTTPS as the user without privileges, with a root certificate that everybody can read', async () => {
    starterKey('owner')
    const uid = Number(execFileSync('id', ['-u', 'berth']))
    mkdirSync(join(directory, 'gateway'), { mode: 0o711 })
    chownSync(join(directory, 'gateway'), uid, uid)
    const httpsPort = await freePort()
    const gateway = start({ BERTH_HTTPS: `${ADDRESS}:${httpsPort}`, BERTH_DRAIN: '1s' })
    expect(await gateway.ready).toMatchObject({ https: `https://localhost:${httpsPort}/` })
    const ca = join(directory, 'gateway', 'ca.pem')
    expect(statSync(ca).mode & 0o777).toBe(0o644)
    const resolve = ['--resolve', `localhost:${httpsPort}:${ADDRESS}`]
    const answer = await run('curl', ['-sS', '--cacert', ca, ...resolve, `https://localhost:${httpsPort}/readyz`])
    expect(answer).toMatchObject({ status: 0, stdout: 'ready\n' })
    gateway.child.kill('SIGTERM')
    expect(await gateway.ended).toBe(0)
  })

  it('answers DNS at port 53, by UDP and TCP, as the user without privileges', async () => {
    starterKey('owner')
    const gateway = start({ BERTH_DNS: `${ADDRESS}:53`, BERTH_DOMAIN: 'berth.test', BERTH_ADDRESSES: '192.0.2.1' })
    await gateway.ready
    for (const transport of ['+notcp', '+tcp']) {
      const answer = await run('dig', [`@${ADDRESS}`, transport, '+short', 'demo.berth.test', 'A'])
      expect(answer).toMatchObject({ status: 0, stdout: '192.0.2.1\n' })
    }
    gateway.child.kill('SIGTERM')
    expect(await gateway.ended).toBe(0)
    const other = createSocket('udp4')
    const taken = await freePort()
    await new Promise<void>((resolve) => other.bind(taken, ADDRESS, resolve))
    const second = start({ BERTH_DNS: `${ADDRESS}:${taken}` })
    expect(await second.ended).toBe(2)
    expect(second.stderr()).toBe(`BERTH_DNS is "${ADDRESS}:${taken}": another program listens there\n`)
    other.close()
  })

  it('stops for a port that was asked for and that another program has, of its lesser listeners too', async () => {
    const other = createServer()
    const taken = await freePort()
    await new Promise<void>((resolve) => other.listen(taken, ADDRESS, resolve))
    const gateway = start({ BERTH_HTTPS: `${ADDRESS}:${await freePort()}`, BERTH_METRICS: `${ADDRESS}:${taken}` })
    expect(await gateway.ended).toBe(2)
    expect(gateway.stderr()).toBe(`BERTH_METRICS is "${ADDRESS}:${taken}": another program listens there\n`)
    other.close()
  })

  it('names a port that another program has', async () => {
    const other = createServer()
    await new Promise<void>((resolve) => other.listen(port, ADDRESS, resolve))
    const gateway = start({})
    expect(await gateway.ended).toBe(2)
    expect(gateway.stderr()).toBe(`BERTH_SSH is "${ADDRESS}:${port}": another program listens there\n`)
    other.close()
  })

  it('says what to put back when secret.key is another one', async () => {
    await start({}).ready
    for (const child of children) child.kill('SIGKILL')
    writeFileSync(join(directory, 'secret.key'), randomBytes(32))
    const gateway = start({})
    expect(await gateway.ended).toBe(1)
    expect(gateway.stderr()).toContain('Put back the secret.key that belongs to this database')
  })

  it('shares its port with a second process, and neither loses a connection when one drains', async () => {
    const key = starterKey('owner')
    const first = start({ BERTH_DRAIN: '20s' })
    await first.ready
    const second = start({})
    await second.ready
    // A connection of the first process is open while it drains: a shell without a terminal waits for its next line.
    const both = await Promise.all(Array.from({ length: 12 }, () => ssh(key, ['whoami'])))
    expect(both.map((result) => result.status)).toEqual(Array(12).fill(0))
    const waiting = Array.from({ length: 12 }, () => open(key))
    await Promise.all(waiting.map((session) => session.said(/SHA256:/)))
    first.child.kill('SIGTERM')
    await once(first.stdout, 'data')
    const during = await Promise.all(Array.from({ length: 12 }, () => ssh(key, ['whoami'])))
    expect(during.map((result) => result.status)).toEqual(Array(12).fill(0))
    for (const session of waiting) session.end()
    expect(await Promise.all(waiting.map((session) => session.status))).toEqual(Array(12).fill(0))
    expect(await first.ended).toBe(0)
    expect(second.child.exitCode).toBeNull()
  })

  it.each([
    ['when BERTH_DRAIN has passed', '300ms', 'SIGTERM'],
    ['at once when its server goes down, however long it may drain', '1h', 'SIGPWR'],
  ] as const)('ends what is left %s, and tells whoever is connected', async (_when, drain, signal) => {
    const key = starterKey('owner')
    const gateway = start({ BERTH_DRAIN: drain })
    await gateway.ready
    const session = open(key)
    await session.said(/SHA256:/)
    gateway.child.kill(signal)
    expect(await session.status).toBe(255)
    expect(session.stderr()).toContain('Berth is restarting; connect again in a moment')
    expect(await gateway.ended).toBe(0)
  })

  it('ends at once at the second SIGTERM', async () => {
    const key = starterKey('owner')
    const gateway = start({ BERTH_DRAIN: '1h' })
    await gateway.ready
    const session = open(key)
    await session.said(/SHA256:/)
    gateway.child.kill('SIGTERM')
    await once(gateway.stdout, 'data')
    gateway.child.kill('SIGTERM')
    expect(await gateway.ended).toBe(0)
    await session.status
  })

  it('serves again after kill -9 with the same host key', async () => {
    const key = starterKey('owner')
    const first = start({})
    await first.ready
    expect((await ssh(key, ['whoami'])).status).toBe(0)
    first.child.kill('SIGKILL')
    await first.ended
    await start({}).ready
    // The known_hosts file of the first connection is the second one's too.
    expect((await ssh(key, ['whoami'])).status).toBe(0)
  })
})

function start(env: Record<string, string>) {
  const child = spawn(process.execPath, [MAIN], {
    env: {
      PATH: process.env.PATH,
      HOME: directory,
      USER: 'root',
      BERTH_DATA: directory,
      DATABASE_URL: database.url,
      BERTH_SSH: `${ADDRESS}:${port}`,
      BERTH_HTTPS: 'off',
      BERTH_HTTP: 'off',
      BERTH_METRICS: 'off',
      ...env,
    },
    stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
  })
  children.add(child)
  let stderr = ''
  child.stderr?.on('data', (chunk) => {
    stderr += chunk
  })
  child.stdout?.resume()
  const ended = new Promise<number | null>((resolve) => child.once('close', (status) => resolve(status)))
  const ready = new Promise<Ready>((resolve, reject) => {
    child.once('message', (message) => resolve(message as Ready))
    void ended.then((status) => reject(new Error(`ended with ${status}: ${stderr}`)))
  })
  ready.catch(() => {})
  if (!child.stdout) throw new Error('no stdout')
  return { child, ready, ended, stderr: () => stderr, stdout: child.stdout }
}

function options(key: string): string[] {
  return [
    ...['-F', '/dev/null', '-p', String(port), '-i', key, '-o', 'IdentitiesOnly=yes', '-o', 'IdentityAgent=none'],
    ...['-o', 'BatchMode=yes', '-o', 'StrictHostKeyChecking=accept-new', '-o', 'LogLevel=ERROR', '-T'],
    ...['-o', `UserKnownHostsFile=${join(directory, 'known_hosts')}`],
  ]
}

function ssh(key: string, command: string[], user = 'lobby') {
  return run('ssh', [...options(key), `${user}@${ADDRESS}`, ...command])
}

/** A shell session in the lobby that stays open until `end`. */
function open(key: string) {
  const child = spawn('ssh', ['-o', 'LogLevel=INFO', ...options(key), `lobby@${ADDRESS}`])
  children.add(child)
  let stdout = ''
  let stderr = ''
  child.stderr.on('data', (chunk) => {
    stderr += chunk
  })
  child.stdin.on('error', () => {})
  child.stdin.write('whoami\n')
  const status = new Promise<number | null>((resolve) => child.once('close', (code) => resolve(code)))
  return {
    status,
    stderr: () => stderr,
    end: () => child.stdin.end(),
    said: (pattern: RegExp) =>
      new Promise<void>((resolve, reject) => {
        child.stdout.on('data', (chunk) => {
          stdout += chunk
          if (pattern.test(stdout)) resolve()
        })
        void status.then((code) => reject(new Error(`ended with ${code}: ${stderr}`)))
      }),
  }
}

function makeKey(name: string, comment = `${name}@laptop`): string {
  const path = join(directory, name)
  execFileSync('ssh-keygen', ['-q', '-N', '', '-t', 'ed25519', '-C', comment, '-f', path])
  return path
}

function publicKey(path: string): string {
  return readFileSync(`${path}.pub`, 'utf8').trim()
}

/** A key in the starter's own ~/.ssh. */
function starterKey(name: string, comment?: string): string {
  mkdirSync(join(directory, '.ssh'), { recursive: true })
  return makeKey(join('.ssh', `id_${name}`), comment)
}

async function freePort(): Promise<number> {
  const server = createServer()
  await new Promise<void>((resolve) => server.listen(0, ADDRESS, resolve))
  const { port: free } = server.address() as { port: number }
  await new Promise((resolve) => server.close(resolve))
  return free
}
