import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { CHECKPOINTS_MOST } from './checkpoint-steps.ts'
import { machineRow } from './testing/rows.ts'
import { startWorld, type World } from './testing/world.ts'

let world: World
beforeAll(async () => {
  world = await startWorld({ sshd: true })
  await world.run("new demo --memory 512M --env A=1 --tag web --comment 'of mine' --sleep-after 30m")
})
afterAll(() => world?.[Symbol.asyncDispose]())
beforeEach(async () => {
  world.vmhost.checkpointFailures.clear()
  world.vmhost.paused = false
  await world.gateway.sql`update machines set memory_bytes = ${2 ** 29}, cpus = 2 where name = 'demo'`
  const { status, stderr } = await world.run('start demo')
  expect(status, stderr).toBe(0)
  for (const { vm_name } of (await world.json('ls')).document.vms as { vm_name: string }[])
    if (vm_name !== 'demo') await world.run(`rm --now -f ${vm_name}`)
  for (const { id } of await listed()) await world.run(`checkpoint rm demo ${id}`)
})

type Listed = { id: number; comment: string; with_memory: boolean; state: string }
const listed = async () => (await world.json('checkpoints demo')).document.checkpoints as Listed[]
const row = () => machineRow(world, 'demo')
async function take(line = 'checkpoint demo'): Promise<number> {
  const { status, document } = await world.json(line)
  expect(status, JSON.stringify(document)).toBe(0)
  return document.id as number
}

describe('checkpoint', () => {
  it('of one that runs has its memory, and says for how long it stood still', async () => {
    const ran = await world.run("checkpoint demo 'before the upgrade'")
    expect(ran.stdout).toMatch(
      /^checkpoint \d+ of demo has its disk and 100 MiB of memory; it stood still for 0\.3 s\n$/,
    )
    expect((await world.run('checkpoints demo')).stdout).toMatch(/disk and 100 MiB of memory +100 MiB +before the upgr/)
    expect(await listed()).toMatchObject([{ comment: 'before the upgrade', with_memory: true, state: 'kept' }])
  })

  it('of one that is off, or with --disk-only, is its disk', async () => {
    await world.run('checkpoint demo --disk-only')
    await world.run('stop demo')
    expect((await world.run('checkpoint demo')).stdout).toMatch(/^checkpoint \d+ of demo has its disk\n$/)
    expect((await listed()).map((one) => one.with_memory)).toEqual([false, false])
  })

  it('that fails gives the reason, and its row makes room for the next', async () => {
    world.vmhost.checkpointFailures.set('demo', "The server's disk is full")
    expect(await world.run('checkpoint demo')).toMatchObject({
      status: 1,
      stderr: "the checkpoint of demo failed: The server's disk is full\ndemo itself is as it was\n",
    })
    expect(await listed()).toMatchObject([{ state: 'failed' }])
    world.vmhost.checkpointFailures.clear()
    await take()
    expect(await listed()).toMatchObject([{ state: 'kept' }])
  })

  it('has a bound on their number, also for two at once', async () => {
    const { id } = (await row()) ?? {}
    await world.gateway.database.as('owner')`
      insert into checkpoints (machine_id, account_id, observed_state)
      select ${id ?? 0}, 1, 'kept' from generate_series(2, ${CHECKPOINTS_MOST})`
    const both = await Promise.all([world.run('checkpoint demo'), world.run('checkpoint demo')])
    expect(both.map(({ status }) => status).sort()).toEqual([0, 4])
    expect(both.find(({ status }) => status === 4)?.stderr).toMatch(/^demo has 50 checkpoints.*\ncheckpoint rm demo \d/)
    // One has to be kept of the state before, too.
    const [oldest, next] = await listed()
    expect(await world.run(`restore demo ${oldest?.id}`)).toMatchObject({
      status: 4,
      stderr: expect.stringContaining(`checkpoint rm demo ${next?.id} removes`),
    })
  })

  it('has a comment of 200 characters at most, and one that is longer is told so', async () => {
    for (const length of [201, 501]) {
      expect(await world.run(`checkpoint demo ${'x'.repeat(length)}`)).toMatchObject({
        status: 2,
        stderr: `a comment here has at most 200 characters, and this one has ${length}\n`,
      })
    }
    expect(await world.run(`checkpoint demo ${'x'.repeat(200)}`)).toMatchObject({ status: 0 })
  })

  it('rm takes it away, and nothing else', async () => {
    const id = await take()
    expect(await world.run(`checkpoint rm demo ${id}`)).toMatchObject({
      status: 0,
      stdout: `checkpoint ${id} of demo is removed; that gives 100 MiB back\n`,
    })
    expect(await world.run(`checkpoint rm demo ${id}`)).toMatchObject({ status: 3 })
    expect(await listed()).toEqual([])
    expect(await row()).toMatchObject({ observed_state: 'running' })
  })

  it("is its account's alone", async () => {
    const id = await take()
    const caller = await world.account()
    for (const line of [`checkpoints demo`, `checkpoint rm demo ${id}`, `restore demo ${id} --as mine`, 'cp demo mine'])
      expect(await world.run(line, { caller }), line).toMatchObject({ status: 3 })
    expect(await listed()).toHaveLength(1)
  })

  it('answers with a document when nobody waits', async () => {
    world.vmhost.paused = true
    expect((await world.json('checkpoint demo --no-wait')).document).toMatchObject({
      vm_name: 'demo',
      state: 'waiting',
      with_memory: null,
    })
    expect((await world.run('checkpoints demo')).stdout).toContain('is being taken')
    const [one] = await listed()
    expect(await world.run(`restore demo ${one?.id}`)).toMatchObject({ status: 5 })
    // The way out of one that is never taken.
    expect((await world.run(`checkpoint rm demo ${one?.id}`)).status).toBe(0)
  })
})

describe('restore', () => {
  const isOver = async () => {
    const [seen] = await world.gateway
      .sql`select observed_restore = desired_restore as over from machines where name = 'demo'`
    return seen?.over
  }

  it('keeps what was before as a checkpoint, and runs', async () => {
    const id = await take()
    const { status, document } = await world.json(`restore demo ${id}`)
    expect(status, JSON.stringify(document)).toBe(0)
    expect(document).toMatchObject({ vm_name: 'demo', status: 'running', restored: id })
    expect(await listed()).toMatchObject([
      { id },
      { id: document.kept_as, comment: `before it went back to ${id}`, with_memory: true },
    ])
    expect(await row()).toMatchObject({ desired_restore: 1, observed_restore: 1 })
  })

  it('starts a machine that is off, and gives it the memory that the checkpoint has', async () => {
    const id = await take()
    await world.run('stop demo')
    await world.gateway.sql`update machines set memory_bytes = ${2 ** 30} where name = 'demo'`
    const ran = await world.run(`restore demo ${id}`)
    expect(ran.stdout).toMatch(/^demo is as it was at checkpoint \d+ after .*; what it was before is checkpoint \d+\n$/)
    expect(await row()).toMatchObject({ observed_state: 'running', memory_bytes: 2 ** 29 })
  })

  it('gives no more than the plan is for, though the machine had it once', async () => {
    const id = await take()
    await world.run('billing set-plan house --memory 300M --cpu 1')
    await world.gateway.sql`update machines set memory_bytes = ${2 ** 28} where name = 'demo'`
    expect(await world.run(`restore demo ${id}`)).toMatchObject({
      status: 4,
      stderr: expect.stringMatching(/^plan house is for 300 MiB of memory, and this would make it 512 MiB of memory\n/),
    })
    expect(await row()).toMatchObject({ memory_bytes: 2 ** 28 })
    expect(await listed()).toMatchObject([{ id }])
    // What there is more of already may stay.
    await world.run('billing set-plan house --memory none')
    expect((await world.run(`restore demo ${id}`)).status).toBe(0)
    await world.run('billing set-plan house --cpu none')
  })

  it('that cannot keep what was before leaves the machine as it is, and says why', async () => {
    const id = await take()
    world.vmhost.checkpointFailures.set('demo', 'There is no room for 300 MiB of memory')
    await world.gateway.sql`update machines set memory_bytes = ${2 ** 30}, cpus = 3 where name = 'demo'`
    expect(await world.run(`restore demo ${id}`)).toMatchObject({
      status: 1,
      stderr: 'demo is as it was: There is no room for 300 MiB of memory\ncheckpoints demo\n',
    })
    expect(await row()).toMatchObject({ observed_state: 'running', memory_bytes: 2 ** 30, cpus: 3 })
    expect((await world.run('ssh demo echo here')).stdout).toBe('here\n')
  })

  it('that fails leaves it the size that was asked for meanwhile', async () => {
    const id = await take()
    world.vmhost.checkpointFailures.set('demo', 'There is no room for 300 MiB of memory')
    world.vmhost.paused = true
    await world.gateway.sql`update machines set memory_bytes = ${2 ** 30}, cpus = 3 where name = 'demo'`
    expect((await world.run(`restore demo ${id} --no-wait`)).status).toBe(0)
    expect((await world.run('resize demo --memory 768M --no-wait')).status).toBe(0)
    world.vmhost.paused = false
    world.vmhost.look()
    await expect.poll(isOver, { timeout: 50_000 }).toBe(true)
    expect(await row()).toMatchObject({ memory_bytes: 768 * 2 ** 20, cpus: 3 })
  })

  it.each([
    ['stopped', 'stop demo'],
    ['asleep', 'sleep demo'],
  ])('that fails leaves a machine %s as it was', async (state, line) => {
    const id = await take()
    expect((await world.run(line)).status).toBe(0)
    world.vmhost.checkpointFailures.set('demo', 'There is no room for 300 MiB of memory')
    expect(await world.run(`restore demo ${id}`)).toMatchObject({ status: 1 })
    expect(await row()).toMatchObject({ desired_state: state, observed_state: state, restore_state_before: null })
  })

  it('that fails does not take back what was asked for meanwhile', async () => {
    const id = await take()
    await world.run('stop demo')
    world.vmhost.checkpointFailures.set('demo', 'There is no room for 300 MiB of memory')
    world.vmhost.paused = true
    expect((await world.run(`restore demo ${id} --no-wait`)).status).toBe(0)
    await world.gateway.sql`update machines set desired_state = 'running' where name = 'demo'`
    world.vmhost.paused = false
    world.vmhost.look()
    await expect.poll(isOver, { timeout: 50_000 }).toBe(true)
    expect(await row()).toMatchObject({ desired_state: 'running' })
  })

  it('--as makes another machine of it, which stays when the checkpoint goes', async () => {
    const id = await take()
    await world.gateway.sql`update machines set memory_bytes = ${2 ** 30} where name = 'demo'`
    const ran = await world.run(`restore demo ${id} --as before`)
    expect(ran.stdout).toMatch(/^before, demo as it was at checkpoint \d+, is ready after [\d.]+ s: ssh -p /)
    expect(await machineRow(world, 'before')).toMatchObject({ memory_bytes: 2 ** 29, tags: ['web'] })
    await world.gateway.sql`update machines set memory_bytes = ${2 ** 29} where name = 'demo'`
    await world.run(`checkpoint rm demo ${id}`)
    expect((await world.run('ssh before echo here')).stdout).toBe('here\n')
    expect(await world.run('restore demo 4711 --as other')).toMatchObject({
      status: 3,
      stderr: expect.stringContaining('demo has no checkpoint 4711'),
    })
  })

  it('does not let its checkpoint be removed meanwhile', async () => {
    const id = await take()
    world.vmhost.paused = true
    await world.run(`restore demo ${id} --no-wait`)
    expect(await world.run(`checkpoint rm demo ${id}`)).toMatchObject({ status: 5 })
    expect((await world.run(`restore demo ${id} --no-wait`)).status).toBe(1)
    world.vmhost.paused = false
    world.vmhost.look()
  })
})

describe('cp', () => {
  it('makes another machine that is as this one, under its own name and address, and leaves no checkpoint', async () => {
    const { status, document } = await world.json('cp demo twin')
    expect(status, JSON.stringify(document)).toBe(0)
    expect(document).toMatchObject({
      vm_name: 'twin',
      name: 'twin',
      ssh: document.ssh_dest,
      state: 'running',
      tags: ['web'],
      comment: 'of mine',
    })
    const [source, copy] = [await row(), await machineRow(world, 'twin')]
    expect(copy).toMatchObject({ env: { A: '1' }, memory_bytes: 2 ** 29, sleep_after_seconds: 1800 })
    expect(copy?.address).not.toBe(source?.address)
    expect(await listed()).toEqual([])
    await expect
      .poll(() => world.gateway.sql`select from checkpoints where for_copy and observed_state <> 'gone'`)
      .toHaveLength(0)
  })

  it('chooses a name, leaves tags behind when told so, and takes a larger disk but no smaller one', async () => {
    const { document } = await world.json('cp demo --copy-tags=false --disk 40G')
    expect(document).toMatchObject({ tags: [], disk_capacity_bytes: 40 * 2 ** 30 })
    expect(document.name).toMatch(/^[a-z]+-[a-z]+$/)
    expect(await world.run('cp demo small --disk 1G')).toMatchObject({
      status: 2,
      stderr: expect.stringContaining('a disk only grows'),
    })
  })

  it('with other memory is of the disk alone, and says so', async () => {
    const ran = await world.run('cp demo big --memory 1G')
    expect(ran).toMatchObject({ status: 0, stderr: expect.stringContaining('boots from its disk') })
    expect(await world.gateway.sql`select disk_only from checkpoints where for_copy order by id desc limit 1`).toEqual([
      { disk_only: true },
    ])
    expect(await machineRow(world, 'big')).toMatchObject({ memory_bytes: 2 ** 30 })
  })

  it('says why its checkpoint failed, though that was removed before anybody looked', async () => {
    world.vmhost.paused = true
    const copying = world.run('cp demo twin')
    const waiting = () =>
      world.gateway.database.as('owner')`select id from checkpoints where for_copy and observed_state = 'waiting'`
    await expect.poll(async () => (await waiting()).length, { timeout: 60_000 }).toBe(1)
    await world.gateway.database.as('owner')`update checkpoints set desired_state = 'gone', observed_state = 'gone',
      observed_reason = 'There is no room for it' where for_copy and observed_state = 'waiting'`
    expect(await copying).toMatchObject({
      status: 1,
      stderr: 'the checkpoint of demo failed: There is no room for it\ndemo itself is as it was\n',
    })
  })

  it('that cannot be taken fails with the reason, and leaves nothing behind', async () => {
    world.vmhost.checkpointFailures.set('demo', "The server's disk is full")
    expect(await world.run('cp demo twin')).toMatchObject({
      status: 1,
      stderr: expect.stringContaining("The server's disk is full"),
    })
    expect(await machineRow(world, 'twin')).toBeUndefined()
    expect((await world.run('new twin --no-wait')).status).toBe(0)
  })

  it.each([
    ['cp nothing', 3, /no machine/],
    ['cp demo demo', 1, /taken/],
    ['cp demo Twin', 2, /a-z/],
    ['cp demo twin --memory 1T', 5, /at most 64 GiB of memory\n--memory 64G\n$/],
    ['cp demo twin --memory 100G --disk-only --no-wait', 5, /at most 64 GiB of memory\n--memory 64G\n$/],
    ['cp demo twin --cpu 9', 5, /has 8 CPUs\n--cpu 8\n$/],
    ['cp demo twin --disk 501G', 5, /has 500 GiB for disks\n--disk 500G\n$/],
  ])('%s is refused, and nothing is left of it', async (line, status, sentence) => {
    const before = await world.gateway.sql`select from addresses`
    await world.run('host overcommit 20')
    const ran = await world.run(line)
    await world.run('host overcommit 1')
    expect(ran, ran.stderr).toMatchObject({ status, stdout: '', stderr: expect.stringMatching(sentence) })
    expect(ran.stderr).not.toMatch(/boots from its disk/)
    expect(await world.gateway.sql`select from addresses`).toHaveLength(before.length)
    expect(await world.gateway.sql`select from checkpoints where for_copy and desired_state = 'kept'`).toHaveLength(0)
  })
})
