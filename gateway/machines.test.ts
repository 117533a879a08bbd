import { afterEach, describe, expect, it, vi } from 'vitest'
import { cannotRestore } from '../migrations/schema.ts'
import { putToSleep, refuseWhenWanted } from './activity/testing/sleeper.ts'
import { startWorld, type World } from './commands/testing/world.ts'

afterEach(() => {
  vi.restoreAllMocks()
})

describe('a failed machine that shall start again', () => {
  it('is waited for, however long its start is queued, and has failed only when that start has', async () => {
    await using world = await startWorld()
    const id = await failedAndRestarted(world)
    const waited = waitThroughHour(world, id)
    await waited.looked
    world.vmhost.failures.clear()
    world.vmhost.paused = false
    world.vmhost.look()
    expect(await waited.outcome).toMatchObject({ name: 'demo', observedState: 'running' })
  })

  it('has failed when its server is silent', async () => {
    await using world = await startWorld()
    const id = await failedAndRestarted(world)
    await world.gateway.sql`update hosts set lease_expires_at = now() - interval '1 minute'`
    expect(await waitThroughHour(world, id).outcome).toMatchObject({ code: 'machine.failed' })
  })
})

describe('a machine that sleeps on a server without memory for it', () => {
  it('is tried once, and whoever came is told', async () => {
    await using world = await startWorld()
    const { sql } = world.gateway
    const id = await asleep(world)
    // What an earlier sleep left in the row refuses nobody.
    await sql`update machines set observed_reason = 'It has lost its memory' where id = ${id}`
    await using sleeper = await refuseWhenWanted(sql, id, 'Its server has no memory left for it: all of it is in use')
    const options = { signal: new AbortController().signal, knock: 'a test' }
    await expect(world.app.machines.whenReady(id, world.owner, options)).rejects.toMatchObject({
      code: 'machine.no_room',
      message: 'demo cannot wake now: its server has no memory left for it: all of it is in use; try again in a while',
    })
    expect(sleeper.wakes).toBe(1)
    expect(await world.json('wake demo')).toMatchObject({ status: 5, document: { code: 'machine.no_room' } })
  })
})

describe('a machine that its server cannot restore', () => {
  it('is tried once, and whoever comes is told why and what gives its memory up', async () => {
    await using world = await startWorld()
    const { sql } = world.gateway
    const id = await asleep(world)
    const reason = 'Its memory was saved by QEMU 8.2 under KVM, which its server does not use now'
    const sleeper = await refuseWhenWanted(sql, id, reason, cannotRestore)
    const options = { signal: new AbortController().signal, knock: 'a test' }
    const refusal = {
      code: 'machine.cannot_restore',
      message:
        'demo cannot wake now: its memory was saved by QEMU 8.2 under KVM, which its server does not use now; its memory is kept, and whatever comes for it later has it tried again; to give its memory up and start it from its disk: restart demo',
    }
    await expect(world.app.machines.whenReady(id, world.owner, options)).rejects.toMatchObject(refusal)
    await sql`update machines set observed_at = now() + interval '1 hour' where id = ${id}`
    await expect(world.app.machines.whenReady(id, world.owner, options)).rejects.toMatchObject(refusal)
    expect(sleeper.wakes).toBe(1)
    // By now its server may have what it lacked.
    await sql`update machines set observed_at = now() - interval '1 hour' where id = ${id}`
    expect(await world.json('start demo')).toMatchObject({ status: 1, document: { code: 'machine.cannot_restore' } })
    expect(sleeper.wakes).toBe(2)
    expect((await world.run('why demo')).stdout).toMatch(
      /^demo is asleep, .*: its server cannot restore its memory now\nIts memory was saved by QEMU 8\.2 .*\n(.*\n)*to give its memory up and start it from its disk: restart demo\n$/,
    )
    await sleeper[Symbol.asyncDispose]()
    expect((await world.json('restart demo --no-wait')).status).toBe(0)
    expect(await world.app.machines.find('demo', world.owner)).toMatchObject({
      desiredState: 'running',
      desiredBoot: 2,
    })
  })
})

/** @returns a machine that sleeps, on a server that does nothing more by itself */
async function asleep(world: World): Promise<number> {
  await world.run('new demo --no-wait')
  await expect.poll(() => world.app.machines.find('demo', world.owner)).toMatchObject({ observedState: 'running' })
  world.vmhost.paused = true
  const { id = 0 } = (await world.app.machines.find('demo', world.owner)) ?? {}
  await putToSleep(world.gateway.sql, id)
  return id
}

/** @returns a machine whose row shows the failure of the start before the one that is wanted */
async function failedAndRestarted(world: World): Promise<number> {
  world.vmhost.failures.set('demo', 'its disk is odd')
  const { document } = await world.json('new demo')
  expect(document.code).toBe('machine.failed')
  world.vmhost.paused = true
  expect((await world.run('restart demo --no-wait')).status).toBe(0)
  const machine = await world.app.machines.find('demo', world.owner)
  expect(machine).toMatchObject({ observedState: 'failed', observedBoot: 1, desiredBoot: 2 })
  return machine?.id ?? 0
}

/** Waits for the machine while the clock goes on by an hour between the first look and the next. */
function waitThroughHour(world: World, id: number) {
  const { machines, news } = world.app
  const byId = vi.spyOn(machines, 'byId')
  const { now } = performance
  const outcome = machines
    .whenReady(id, world.owner, { signal: new AbortController().signal, knock: 'a test', timeoutMs: 2 * 3_600_000 })
    .catch((error: unknown) => error)
  const looked = (async () => {
    await byId.mock.results[0]?.value
    vi.spyOn(performance, 'now').mockImplementation(() => now.call(performance) + 3_600_000)
    // Any change of the row wakes the wait; it is heard here as it is there.
    const heard = new Promise<void>((resolve) => {
      const stop = news.on('machines', () => {
        stop()
        resolve()
      })
    })
    await world.gateway.sql`update machines set observed_stage = 'disk' where id = ${id}`
    await heard
    await vi.waitFor(() => expect(byId.mock.calls.length).toBeGreaterThan(1))
    await byId.mock.results.at(-1)?.value
  })()
  return { looked, outcome }
}
