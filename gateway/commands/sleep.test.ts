import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { machineRow } from './testing/rows.ts'
import { startWorld, type World } from './testing/world.ts'

let world: World
beforeAll(async () => {
  world = await startWorld({ sshd: true })
  await world.run('new demo --memory 512M')
})
afterAll(() => world?.[Symbol.asyncDispose]())
beforeEach(async () => {
  world.vmhost.sleepFailures.clear()
  world.vmhost.memoryLosses.clear()
  world.vmhost.paused = false
  await world.run('defaults delete sleep-after')
  await world.run('sleep-after demo default')
  await world.run('hold demo --end')
  const { status, stderr } = await world.run((await row())?.desired_state === 'paused' ? 'resume demo' : 'start demo')
  expect(status, stderr).toBe(0)
})

const row = () => machineRow(world, 'demo')
const kinds = async () => {
  const { document } = await world.json('audit demo -n 1000')
  return (document.events as { kind: string }[]).map(({ kind }) => kind)
}

describe('sleep and wake', () => {
  it('wait until it is so, and say how long that took', async () => {
    expect((await world.run('sleep demo')).stdout).toMatch(/^demo is asleep after [\d.]+ s\n$/)
    expect(await row()).toMatchObject({ desired_state: 'asleep', observed_state: 'asleep', desired_boot: 1 })
    expect((await world.run('ls')).stdout).toMatch(/demo +asleep +base/)
    expect((await world.json('ls')).document).toMatchObject({ vms: [{ status: 'asleep', awake_because: null }] })
    expect((await world.run('wake demo')).stdout).toMatch(/^demo is running after [\d.]+ s\n$/)
    expect(await row()).toMatchObject({ desired_state: 'running', observed_state: 'running', desired_boot: 1 })
    expect(await kinds()).toEqual(expect.arrayContaining(['machine.slept', 'machine.woken']))
  })

  it('give documents, and do not wait when told so', async () => {
    expect((await world.json('sleep demo')).document).toEqual({ vm_name: 'demo', status: 'asleep' })
    expect((await world.json('wake demo')).document).toEqual({ vm_name: 'demo', status: 'running' })
    world.vmhost.paused = true
    expect((await world.run('sleep demo --no-wait')).stdout).toBe('demo is falling asleep\n')
    expect((await world.run('ls')).stdout).toContain('falling asleep')
  })

  it('that something overtakes says so', async () => {
    world.vmhost.paused = true
    const sleeping = world.run('sleep demo')
    await expect.poll(async () => (await row())?.desired_state).toBe('asleep')
    expect((await world.run('ssh demo echo here')).stdout).toBe('here\n')
    expect(await sleeping).toMatchObject({
      status: 1,
      stderr: 'something came for demo, and it stays awake\nto see what: why demo\n',
    })
  })

  it('that its server cannot do fails with the reason instead of waiting for ever', async () => {
    world.vmhost.sleepFailures.set('demo', 'There is no room for 300 MiB of memory')
    const ran = await world.run('sleep demo')
    expect(ran).toMatchObject({ status: 1, stdout: '' })
    expect(ran.stderr).toBe(
      'demo does not fall asleep: There is no room for 300 MiB of memory\nit is tried again; to leave it awake: wake demo\n',
    )
  })

  it('are nothing for one that is off or has failed', async () => {
    await world.run('stop demo')
    for (const command of ['sleep', 'wake', 'pause', 'resume', 'hold']) {
      expect(await world.run(`${command} demo`), command).toMatchObject({
        status: 1,
        stderr: 'demo is off\nto start it: start demo\n',
      })
    }
    expect((await row())?.desired_state).toBe('stopped')
  })
})

describe('pause and resume', () => {
  it('are as the SDK wants them', async () => {
    expect((await world.json('pause demo')).document).toEqual({ vm_name: 'demo', status: 'paused' })
    expect((await world.json('ls')).document).toMatchObject({ vms: [{ status: 'paused' }] })
    expect((await world.json('resume demo')).document).toEqual({
      vm_name: 'demo',
      status: 'running',
      cold_booted: 'false',
    })
    await world.run('pause demo')
    world.vmhost.memoryLosses.set('demo', 'It lost its memory and was started from its disk: it was damaged')
    expect((await world.json('resume demo')).document).toMatchObject({ status: 'running', cold_booted: 'true' })
  })

  it('leave nothing but resume to wake it', async () => {
    await world.run('pause demo')
    for (const command of ['wake', 'start', 'hold']) {
      expect(await world.run(`${command} demo`), command).toMatchObject({
        status: 1,
        stderr: 'demo is paused, and nothing else wakes it\nresume demo\n',
      })
    }
    expect(await world.run('ssh demo true')).toMatchObject({
      status: 1,
      stderr: expect.stringContaining('demo is paused; to wake it: resume demo'),
    })
    expect((await world.run('sleep demo')).status).toBe(0)
    expect((await row())?.desired_state).toBe('paused')
    expect((await world.run('why demo')).stdout).toContain('nothing but this wakes it: resume demo')
  })
})

describe('a machine that sleeps', () => {
  it('is woken by start, and boots from its disk by restart, which says so', async () => {
    const boots = (await row())?.desired_boot ?? 0
    await world.run('sleep demo')
    expect((await world.run('start demo')).stdout).toMatch(/^demo is running after/)
    expect((await row())?.desired_boot).toBe(boots)
    await world.run('sleep demo')
    expect(await world.run('restart demo')).toMatchObject({
      status: 0,
      stdout: expect.stringMatching(/^demo is running again after/),
      stderr: 'demo slept: what it had in memory is gone\n',
    })
    expect((await row())?.desired_boot).toBe(boots + 1)
  })

  it('is stopped and says what that costs; renamed it sleeps on; from the trash it comes back off', async () => {
    await world.run('sleep demo')
    await world.run('rename demo other')
    expect((await machineRow(world, 'other'))?.observed_state).toBe('asleep')
    await world.run('rename other demo')
    expect(await world.run('stop demo')).toMatchObject({
      stdout: expect.stringMatching(/^demo is stopped after/),
      stderr: 'demo slept: what it had in memory is gone\n',
    })
    await world.run('start demo')
    await world.run('sleep demo')
    expect(await world.run('rm demo')).toMatchObject({
      status: 0,
      stderr: 'demo slept: what it had in memory is gone\n',
    })
    expect((await world.run('untrash demo')).stdout).toBe('demo is back and stopped; to start it: start demo\n')
  })

  it('takes no memory from those that are made meanwhile', async () => {
    await world.run('sleep demo')
    const { document } = await world.json('host ls')
    expect(document).toMatchObject({ hosts: [{ memory_promised_bytes: 0 }] })
  })
})

describe('what keeps a machine awake', () => {
  it('is a hold for a time, until it is ended or the machine is told to sleep', async () => {
    const { document } = await world.json('hold demo --for 2h')
    const until = Date.parse(String(document.hold_until)) - Date.now()
    expect(until).toBeGreaterThan(7_190_000)
    expect(until).toBeLessThan(7_201_000)
    expect((await world.run('why demo')).stdout).toMatch(/held awake for 2 h more; to end that: hold demo --end\n/)
    expect((await world.run('hold demo --end')).stdout).toBe('demo is held awake no longer\n')
    expect((await row())?.hold_until).toBeNull()
    expect((await world.run('hold demo')).stdout).toBe('demo is held awake for 1 h; to end that: hold demo --end\n')
    await world.run('sleep demo')
    expect((await row())?.hold_until).toBeNull()
    // Of a sleeper it begins with waking it.
    expect((await world.run('hold demo')).status).toBe(0)
    expect(await row()).toMatchObject({ observed_state: 'running' })
    expect(await world.run('hold demo --for 2h --end')).toMatchObject({ status: 2 })
  })

  it('is its idle time, of its own or of its account', async () => {
    expect((await world.run('sleep-after demo')).stdout).toBe(
      'demo never sleeps for being idle, as your account has it\n',
    )
    expect((await world.run('defaults write sleep-after 30m')).stdout).toBe(
      'machines without a sleep-after of their own sleep when idle for 30m from now on\n',
    )
    expect((await world.json('sleep-after demo')).document).toEqual({
      vm_name: 'demo',
      sleep_after_seconds: 1800,
      is_default: true,
    })
    expect((await world.run('sleep-after demo 2h')).stdout).toBe('demo sleeps when it was idle for 2 h\n')
    expect(await row()).toMatchObject({ sleep_after_seconds: 7200, sleep_never: false })
    await world.run('sleep-after demo never')
    expect(await row()).toMatchObject({ sleep_after_seconds: null, sleep_never: true })
    expect((await world.json('sleep-after demo')).document).toMatchObject({
      sleep_after_seconds: null,
      is_default: false,
    })
    expect(await world.run('sleep-after demo soon')).toMatchObject({ status: 2 })
    await world.run('new other --memory 512M --sleep-after never')
    expect(await machineRow(world, 'other')).toMatchObject({ sleep_after_seconds: null, sleep_never: true })
    await world.run('rm other --now')
  })

  it('is what its server says it is', async () => {
    const { sql } = world.gateway
    // Nobody has used it: what was carried is written down up to 15 s later.
    await world.run('new quiet --memory 512M')
    await world.run('sleep-after quiet 30m')
    await sql`update machines set observed_awake_because = 'its processors were busy in the last minute'
      where name = 'quiet'`
    expect((await world.json('ls')).document).toMatchObject({
      vms: expect.arrayContaining([
        expect.objectContaining({ awake_because: 'its processors were busy in the last minute' }),
      ]),
    })
    expect((await world.run('ls -l')).stdout).toContain('  awake: its processors were busy in the last minute\n')
    expect((await world.run('why quiet')).stdout).toMatch(
      /^quiet is awake: its processors were busy in the last minute\n[\s\S]*it sleeps when it was idle for 30 min\n$/,
    )
    await sql`update machines set observed_awake_because = null, observed_idle_since = now() - interval '12 minutes'
      where name = 'quiet'`
    await sql`insert into machine_activity (machine_id, at, what)
      select id, now() - interval '22 minutes', 'ssh' from machines where name = 'quiet'
      on conflict (machine_id) do update set at = excluded.at`
    expect((await world.run('why quiet')).stdout).toBe(
      'quiet is awake, and idle: nothing has kept it awake for 12 min\nlast used 22 min ago, over SSH\nit sleeps when it was idle for 30 min: in 18 min\n',
    )
    expect((await world.run('ls')).stdout).toContain('idle for 12 min')
    await sql`update machines set desired_state = 'asleep', observed_asleep_because = 'idle for 30 minutes'
      where name = 'quiet'`
    await expect.poll(async () => (await machineRow(world, 'quiet'))?.observed_state).toBe('asleep')
    expect((await world.run('why quiet')).stdout).toMatch(
      /^quiet is asleep, fell asleep just now: idle for 30 minutes\nits memory takes 100 MiB on the disk\nlast used 22 min/,
    )
    expect((await world.json('why quiet')).document).toMatchObject({
      vm_name: 'quiet',
      status: 'asleep',
      asleep_because: 'idle for 30 minutes',
      saved_bytes: 100 * 2 ** 20,
      sleep_after_seconds: 1800,
      last_activity: { what: 'ssh' },
    })
    await world.run('rm quiet --now')
  })
})
