import { spawn } from 'node:child_process'
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import type { Sql } from '../../migrations/connect.ts'
import { openTerminal } from '../../test/e2e/terminal.ts'
import { run } from '../../test/gateway.ts'
import { putToSleep, wakeWhenWanted } from '../activity/testing/sleeper.ts'
import { startWithMachine, type WithMachine } from './testing/with-machine.ts'

let world: WithMachine
let sql: Sql
let id: number
let names = 0
let name: string

beforeAll(async () => {
  world = await startWithMachine()
  ;({ sql } = world.gateway)
})
afterAll(() => world?.[Symbol.asyncDispose]())

/** A machine of its own for each: what one has open is none of the next one's. */
beforeEach(async () => {
  await sql`delete from addresses`
  name = `demo${names++}`
  id = await world.gateway.addMachine(world.account, name, world.running)
})

const wakings = async () =>
  (
    await sql`select detail ->> 'because' as because from events where machine_id = ${id} and kind = 'machine.woken'`
  ).map(({ because }) => because)
const isHeld = () => world.gateway.app.watches.of(id).isHeld

describe('ssh to a machine that sleeps', () => {
  it('wakes it, for a command, for files and through the lobby', async () => {
    const { gateway, key } = world
    await using sleeper = await wakeWhenWanted(sql, id)
    await putToSleep(sql, id)
    expect(await gateway.ssh({ key, user: name, command: ['echo', 'awake'] })).toMatchObject({
      status: 0,
      stdout: 'awake\n',
      stderr: '',
    })
    await putToSleep(sql, id)
    const batch = await run(
      'sftp',
      ['-q', '-b', '-', '-P', String(gateway.port), ...gateway.sshOptions(key).slice(4), `${name}@127.0.0.1`],
      'ls /etc/hostname\n',
    )
    expect(batch, batch.stderr).toMatchObject({ status: 0 })
    await putToSleep(sql, id)
    const jump = await run('ssh', [
      ...gateway.sshOptions(key),
      ...['-o', 'BatchMode=yes', '-W', `${name}:22`, 'lobby@127.0.0.1'],
    ])
    expect(jump.stdout).toMatch(/^SSH-2\.0-OpenSSH/)
    expect(await wakings()).toEqual(['an SSH session', 'an SSH session', 'a connection through the lobby'])
    expect(sleeper.wakes).toBe(3)
  })

  it('wakes it once, however many knock at the same time, and none is lost', async () => {
    const { gateway, key } = world
    await using sleeper = await wakeWhenWanted(sql, id)
    await putToSleep(sql, id)
    const knocks = Array.from({ length: 20 }, (_, n) => gateway.ssh({ key, user: name, command: ['echo', String(n)] }))
    const answers = await Promise.all(knocks)
    expect(answers.map(({ status, stdout }) => [status, stdout])).toEqual(answers.map((_, n) => [0, `${n}\n`]))
    expect([sleeper.wakes, await wakings()]).toEqual([1, ['an SSH session']])
  })

  it('says that it wakes when that takes long', async () => {
    const { gateway, key } = world
    const waited = Promise.withResolvers<void>()
    await using _sleeper = await wakeWhenWanted(sql, id, () => waited.promise)
    await putToSleep(sql, id)
    const child = spawn('ssh', [...gateway.sshOptions(key), '-o', 'BatchMode=yes', `${name}@127.0.0.1`, 'echo here'])
    let said = ''
    child.stderr.on('data', (bytes: Buffer) => {
      said += bytes
    })
    await expect
      .poll(() => said, { timeout: 60_000 })
      .toBe(`${name} is waking; the session begins as soon as it answers\n`)
    waited.resolve()
    expect(await new Promise((resolve) => child.once('close', resolve))).toBe(0)
  })

  it('does not wake one that is paused, and says what does', async () => {
    const { gateway, key } = world
    await putToSleep(sql, id, 'paused')
    expect(await gateway.ssh({ key, user: name, command: ['true'] })).toMatchObject({
      status: 255,
      stderr: `${name} is paused; to wake it: resume ${name}\n`,
    })
    expect(await wakings()).toEqual([])
  })
})

describe('a session that is open when its machine falls asleep', () => {
  async function openShell() {
    const { gateway, key } = world
    const options = { cwd: gateway.directory, home: gateway.directory, columns: 80 }
    const terminal = openTerminal('ssh', [...gateway.sshOptions(key), `${name}@127.0.0.1`], options)
    await terminal.expect(/[#$] $/)
    return terminal
  }

  it('stays, and a key typed in it wakes the machine and arrives', async () => {
    await using _sleeper = await wakeWhenWanted(sql, id)
    const terminal = await openShell()
    terminal.type('echo $((6*7)); echo $$ > /dev/null\r')
    await terminal.expect(/42\r\n/)
    await putToSleep(sql, id)
    await expect.poll(isHeld).toBe(true)
    terminal.type('echo $((6*8))\r')
    await terminal.expect(/48\r\n/, 10_000)
    expect(await wakings()).toEqual(['an SSH session'])
    terminal.type('exit 7\r')
    expect(await terminal.ended).toBe(7)
  })

  it('through the lobby stays as well, and what is sent there wakes the machine', async () => {
    const { gateway, key } = world
    await using _sleeper = await wakeWhenWanted(sql, id)
    const options = [...gateway.sshOptions(key), '-o', 'BatchMode=yes', '-W', `${name}:22`, 'lobby@127.0.0.1']
    const jump = spawn('ssh', options)
    let came = ''
    jump.stdout.on('data', (bytes: Buffer) => {
      came += bytes.toString('latin1')
    })
    await expect.poll(() => came, { timeout: 60_000 }).toMatch(/^SSH-2\.0-OpenSSH.*\r\n/)
    await putToSleep(sql, id)
    await expect.poll(isHeld).toBe(true)
    jump.stdin.write('SSH-2.0-test\r\n')
    // The machine's part of the key exchange.
    await expect.poll(() => came, { timeout: 60_000 }).toContain('curve25519-sha256')
    expect(await wakings()).toEqual(['a connection through the lobby'])
    jump.kill()
  })

  it('ends without waking it when the person leaves, and tells it afterwards', async () => {
    const { gateway } = world
    const terminal = await openShell()
    const { connections } = gateway.app.pool
    await putToSleep(sql, id)
    await expect.poll(isHeld).toBe(true)
    terminal.kill()
    await expect.poll(() => gateway.server.connectionCount).toBe(0)
    expect(await wakings()).toEqual([])
    // Kept, with the end that it is to be told of.
    expect(gateway.app.pool.connections).toBe(connections)
  })

  it('ends when the machine is stopped instead', async () => {
    const terminal = await openShell()
    await putToSleep(sql, id)
    await expect.poll(isHeld).toBe(true)
    await sql`update machines set desired_state = 'stopped', observed_state = 'stopped' where id = ${id}`
    await terminal.expect(`The connection to machine ${name} was lost.`)
    expect(await terminal.ended).toBe(255)
  })
})

it('what sessions and jumps carry is noted', async () => {
  const { gateway, key } = world
  await gateway.ssh({ key, user: name, command: ['echo', 'something'] })
  const noted = async () =>
    (await sql`select what from machine_activity where machine_id = ${id}`).map(({ what }) => what)
  await expect.poll(noted, { timeout: 60_000 }).toEqual(['ssh'])
})
