import { randomBytes } from 'node:crypto'
import { chmodSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { pino } from 'pino'
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { connect, type DatabaseRole, type Sql } from '../migrations/connect.ts'
import { embeddedPaths, embeddedUrl, startEmbedded, stopEmbedded } from '../migrations/embedded.ts'
import { migrate } from '../migrations/migrate.ts'
import { openTerminal } from '../test/e2e/terminal.ts'
import { addKey, removeKey } from './accounts/keys.ts'
import { parseKeyLine } from './accounts/public-key.ts'
import { runLine } from './commands/run.ts'
import { runLobby } from './lobby/lobby.ts'
import { startNews } from './news.ts'
import { lookUp } from './ssh/sign-in.ts'
import { startWithMachine } from './ssh/testing/with-machine.ts'

const secretKey = randomBytes(32)
const PATIENT = { timeout: 60_000, interval: 50 }

/** A server of this file's own, because the others' would miss theirs. */
let directory: string
const opened: Sql[] = []
const as = (role: DatabaseRole) => {
  const sql = connect({ url: embeddedUrl(directory), role, max: 4 })
  opened.push(sql)
  return sql
}

beforeAll(async () => {
  directory = mkdtempSync(join(tmpdir(), 'berth-away-'))
  chmodSync(directory, 0o755)
  const url = await startEmbedded(directory)
  const owner = connect({ url, role: 'owner', max: 1 })
  await migrate(owner)
  await owner.end()
}, 120_000)
/** A test that failed may have left it down. */
beforeEach(async () => void (await startEmbedded(directory)))
afterAll(async () => {
  await Promise.all(opened.map((sql) => sql.end({ timeout: 1 })))
  await stopEmbedded(directory)
  rmSync(directory, { recursive: true, force: true })
})

/** @returns sessions of the gateway that were ended */
async function endSessions(owner: Sql, role = 'berth_gateway'): Promise<number> {
  return (await owner`select pg_terminate_backend(pid) from pg_stat_activity where usename = ${role}`).length
}

/**
 * Ends the gateway's sessions, whose processes hear of that, and the gateway from them, after `ask` has asked over them.
 * @returns what it got
 */
async function askOverEnded<T>(owner: Sql, ask: () => Promise<T>): Promise<T> {
  const sessions = await owner<{ pid: number }[]>`select pid from pg_stat_activity where usename = 'berth_gateway'`
  expect(sessions.length).toBeGreaterThan(1)
  for (const { pid } of sessions) process.kill(pid, 'SIGSTOP')
  let asked: Promise<T>
  try {
    await owner`select pg_terminate_backend(pid) from pg_stat_activity where usename = 'berth_gateway'`
    asked = ask()
    asked.catch(() => {})
    // postgres.js writes in the turn after it was asked.
    for (let turn = 0; turn < 5; turn++) await new Promise(setImmediate)
  } finally {
    for (const { pid } of sessions) process.kill(pid, 'SIGCONT')
  }
  return await asked
}

describe('news', () => {
  async function listening() {
    const news = await startNews(as('berth_gateway'), pino({ level: 'silent' }))
    const heard: string[] = []
    news.onRescan(() => heard.push('look again'))
    news.on('settings', (id) => heard.push(id))
    return { heard, [Symbol.asyncDispose]: () => news.close() }
  }

  it('are listened to again after every connection was ended, with one look at what was missed', async () => {
    await using news = await listening()
    const owner = as('owner')
    for (let round = 1; round <= 3; round++) {
      news.heard.length = 0
      expect(await endSessions(owner)).toBeGreaterThan(0)
      await expect.poll(() => news.heard, PATIENT).toEqual(['look again'])
      await owner`select pg_notify('settings', 'after')`
      await expect.poll(() => news.heard, PATIENT).toEqual(['look again', 'after'])
    }
  })

  it('are asked for once when Postgres is back, however often it was tried', async () => {
    await using news = await listening()
    await as('owner')`alter role berth_gateway set log_statement = 'all'`
    const log = embeddedPaths(directory).log
    const asked = () => readFileSync(log, 'utf8').split('statement: listen').length - 1
    await stopEmbedded(directory)
    const before = asked()
    // Some ten attempts fail in this time; there is no event to wait for.
    await delay(6_000)
    await startEmbedded(directory)
    await expect.poll(() => news.heard, PATIENT).toEqual(['look again'])
    expect(asked() - before).toBe(1)
    await as('owner')`select pg_notify('settings', 'after')`
    await expect.poll(() => news.heard, PATIENT).toEqual(['look again', 'after'])
  }, 60_000)
})

describe('a gateway whose Postgres goes away and comes back', () => {
  const AWAY = 'the database does not answer; try again in a moment'

  async function start() {
    const stack = new AsyncDisposableStack()
    const database = { url: embeddedUrl(directory), as, [Symbol.asyncDispose]: async () => {} }
    const options = { database, secretKey, lobby: { runLine, runLobby } }
    const world = stack.use(await startWithMachine(options))
    const { gateway, key, account } = world
    await addKey(gateway.sql, account, parseKeyLine(gateway.publicKey(gateway.makeKey('spare'))))
    await gateway.sql`truncate machine_names, addresses`
    await gateway.addMachine(account, 'demo', world.running)
    const visit = (user: string) => {
      const options = { cwd: gateway.directory, home: gateway.directory, columns: 200 }
      const terminal = openTerminal('ssh', [...gateway.sshOptions(key), `${user}@127.0.0.1`], options)
      stack.defer(() => terminal.kill())
      return terminal
    }
    return { gateway, key, account, visit, [Symbol.asyncDispose]: () => stack.disposeAsync() }
  }

  it('keeps open sessions, tells new ones to try again, and serves them and hears of changes afterwards', async () => {
    await using world = await start()
    const { gateway, key, account, visit } = world
    const [machine, lobby] = [visit('demo'), visit('lobby')]
    await machine.expect(/[#$] $/)
    await lobby.expect(/berth\S*> $/)

    await stopEmbedded(directory)
    machine.type('echo $((6*7))\r')
    await machine.expect(/42\r\n/, 10_000)
    lobby.type('ls\r')
    await lobby.expect('the database does not answer', 10_000)
    for (const user of ['demo', 'lobby', 'tpyo']) {
      expect(await gateway.ssh({ key, user, command: ['true'] })).toMatchObject({
        status: 255,
        stderr: expect.stringContaining(`Berth: ${AWAY}`),
      })
    }

    await startEmbedded(directory)
    const echo = () => gateway.ssh({ key, user: 'demo', command: ['echo', 'again'] })
    await expect.poll(async () => (await echo()).stdout, PATIENT).toBe('again\n')
    lobby.type('ls\r')
    await lobby.expect(/demo +running/, 10_000)
    machine.type('echo $((6*8))\r')
    await machine.expect(/48\r\n/, 10_000)

    await removeKey(as('owner'), account, 'ssh-ed25519')
    await machine.expect('the key that this connection signed in with was removed from the account')
    expect(await machine.ended).toBe(255)
    expect((await gateway.ssh({ key, user: 'demo', command: ['true'] })).status).toBe(4)
  }, 90_000)

  it('serves the next visitor when its sessions with Postgres are ended', async () => {
    await using world = await start()
    const { gateway, key } = world
    const owner = as('owner')
    for (let round = 0; round < 5; round++) {
      expect(await endSessions(owner)).toBeGreaterThan(0)
      const ran = await gateway.ssh({ key, user: 'demo', command: ['echo', 'on'] })
      expect(ran).toMatchObject({ status: 0, stdout: 'on\n' })
    }
  })

  it('asks again over another connection when what a visitor needs was asked over one that had ended', async () => {
    await using world = await start()
    const { gateway, key, account } = world
    const owner = as('owner')
    const { sql, machines } = gateway.app
    const { key: publicKey } = parseKeyLine(gateway.publicKey(key))
    const [demo] = await machines.list({ accountId: account })
    const id = demo?.id ?? 0
    const signIn = { accountId: account, machineId: id }
    for (const [ask, found] of [
      [() => lookUp(sql, publicKey.blob, 'demo'), signIn],
      [() => machines.byId(id, { accountId: account }), { id }],
      [() => machines.find('demo', { accountId: account }), { id }],
    ] as const) {
      // Each of the pool's connections is there, and none is in use.
      const all = () =>
        Promise.all([1, 2, 3, 4].map(() => sql`select pg_sleep(0.2)`)).then(({ length }) => length, String)
      await expect.poll(all, PATIENT).toBe(4)
      expect(await askOverEnded<unknown>(owner, ask)).toMatchObject(found)
    }
  })
})
