import { describe, expect, it } from 'vitest'
import { machineRow } from './testing/rows.ts'
import { startWorld } from './testing/world.ts'

const GIBIBYTE = 2 ** 30
/** Waits for an event; this long only where the machine running the tests is busy. */
const PATIENT = { timeout: 60_000, interval: 20 }

describe('admission', () => {
  it('never promises more memory than there is, however many ask at once', async () => {
    await using world = await startWorld({ host: { memoryBytes: 4 * GIBIBYTE } })
    const asked = await Promise.all(Array.from({ length: 12 }, () => world.json('new --memory 1G --no-wait')))
    expect(asked.filter((one) => one.status === 0)).toHaveLength(4)
    const refused = asked.filter((one) => one.status === 5)
    expect(refused).toHaveLength(8)
    expect(refused[0]?.document.code).toBe('capacity.memory')
    const [sum] = await world.gateway.sql<{ bytes: number }[]>`select sum(memory_bytes)::bigint as bytes from machines`
    expect(sum?.bytes).toBe(4 * GIBIBYTE)
    // Overcommit is the operator's to say; what is stopped is promised to nobody.
    expect((await world.run('host overcommit 1.25')).status).toBe(0)
    expect((await world.run('new fifth --memory 1G --no-wait')).status).toBe(0)
    expect((await world.run('new sixth --memory 1G --no-wait')).status).toBe(5)
    expect((await world.run('stop fifth')).status).toBe(0)
    expect((await world.run('new sixth --memory 1G --no-wait')).status).toBe(0)
    const start = await world.run('start fifth')
    expect(start).toMatchObject({ status: 5, stdout: '' })
    expect(start.stderr).toMatch(/fifth needs 1 GiB of memory and server server1 has 0 B left/)
  })

  it('counts what the hypervisor of each machine takes beside it', async () => {
    const host = { memoryBytes: 4 * GIBIBYTE, machineOverheadBytes: 384 * 2 ** 20 }
    await using world = await startWorld({ host })
    for (const name of ['a', 'b']) expect((await world.run(`new ${name} --memory 1G --no-wait`)).status).toBe(0)
    expect((await world.run('host ls')).stdout).toMatch(/2\.8 GiB of 4 GiB/)
    expect(await world.run('new c --memory 1G --no-wait')).toMatchObject({
      status: 5,
      stderr: expect.stringMatching(/no server has 1 GiB of memory left; the most is 896 MiB/),
    })
    expect((await world.run('new c --memory 896M --no-wait')).status).toBe(0)
    await world.run('stop a')
    expect((await world.run('new d --memory 1G --no-wait')).status).toBe(0)
    expect((await world.run('start a')).stderr).toMatch(/a needs 1 GiB of memory and server server1 has 0 B left/)
  })

  it('says which server is missing, draining, or full', async () => {
    await using world = await startWorld({ host: { storeFreeBytes: GIBIBYTE } })
    expect((await world.run('new demo --no-wait')).stderr).toMatch(/room for a disk/)
    await world.run('host drain server1')
    expect((await world.run('new demo --no-wait')).stderr).toMatch(
      /emptied .*\ntry again later; .*host undrain HOST\n$/,
    )
    await world.gateway.sql`update hosts set lease_expires_at = now() - interval '1 minute'`
    expect(await world.run('new demo --no-wait')).toMatchObject({
      status: 5,
      stderr: expect.stringMatching(/no server is up/),
    })
    expect((await world.run('doctor')).stdout).toMatch(/fix +server1: has not reported for \d/)
  })

  it('gives the lowest free address, and none when all are in use', async () => {
    await using world = await startWorld({ env: { BERTH_NETWORK: '127.64.0.0/28' } })
    const ips = []
    for (let n = 0; n < 13; n++) ips.push((await world.json(`new m${n} --memory 512M --no-wait`)).document.ip)
    expect(ips).toEqual(Array.from({ length: 13 }, (_, n) => `127.64.0.${n + 2}`))
    const full = await world.run('new late --memory 512M --no-wait')
    expect(full).toMatchObject({
      status: 5,
      stderr: expect.stringMatching(/every address of 127.64.0.0\/28 is in use/),
    })
    expect(await machineRow(world, 'late')).toBeUndefined()
    await world.run('rm --now m4')
    expect((await world.json('new late --memory 512M --no-wait')).document.ip).toBe('127.64.0.6')
  })

  it('keeps to the limit of an account', async () => {
    await using world = await startWorld()
    const caller = await world.account()
    expect((await world.run(`account limit ${caller.accountId} 1`)).stdout).toBe(
      `account ${caller.accountId} may have one machine, and has 0\n`,
    )
    expect((await world.run('new a --memory 512M --no-wait', { caller })).status).toBe(0)
    expect(await world.run('new b --memory 512M --no-wait', { caller })).toMatchObject({
      status: 4,
      stderr: expect.stringMatching(/1 of the 1/),
    })
    await world.run(`account suspend ${caller.accountId}`)
    expect(await world.run('restart a', { caller })).toMatchObject({
      status: 4,
      stderr: expect.stringMatching(/account unsuspend/),
    })
    expect((await world.run('account ls')).stdout).toMatch(/1 of 1 +house +suspended/)
    await world.run(`account unsuspend ${caller.accountId}`)
    // The trash holds disks and addresses too, so it has a limit of its own.
    await world.run('rm a', { caller })
    expect((await world.run('new b --memory 512M --no-wait', { caller })).status).toBe(0)
    await world.run('rm b', { caller })
    expect(await world.run('new c --memory 512M --no-wait', { caller })).toMatchObject({
      status: 4,
      stderr: expect.stringMatching(/2 machines in the trash/),
    })
    // What comes back from the trash counts like what is new.
    expect((await world.run('untrash a --no-wait', { caller })).status).toBe(0)
    expect(await world.run('untrash b --no-wait', { caller })).toMatchObject({
      status: 4,
      stderr: expect.stringMatching(/1 of the 1/),
    })
    expect((await world.json('trash', { caller })).document).toMatchObject({ vms: [{ vm_name: 'b' }] })
  })

  it('gives an account ten machines when the operator has said nothing, and operators no limit', async () => {
    await using world = await startWorld()
    const caller = await world.account()
    const { document } = await world.json('account ls')
    expect(document.accounts).toEqual([
      expect.objectContaining({ id: world.owner.accountId, owner: true, machines_most: null }),
      expect.objectContaining({ id: caller.accountId, owner: false, machines_most: 10 }),
    ])
    for (const line of [`account limit ${world.owner.accountId} 1`, `account suspend ${world.owner.accountId}`])
      expect(await world.run(line), line).toMatchObject({ status: 4 })
    for (const line of ['account suspend nobody@example.com', 'account limit 77 1'])
      expect(await world.run(line), line).toMatchObject({ status: 3 })
    expect(await world.run(`account limit ${caller.accountId} many`)).toMatchObject({ status: 2 })
  })

  it('refuses a name that somebody types as their own, but gives up one that was a slip', async () => {
    await using world = await startWorld()
    const other = await world.account()
    await world.gateway
      .sql`insert into lobby_names (name, account_id) values ('alice', ${other.accountId}), ('api', ${world.owner.accountId})`
    expect(await world.run('new alice --no-wait --memory 512M')).toMatchObject({
      status: 1,
      stderr: expect.stringMatching(/leads to the lobby/),
    })
    expect((await world.run('new api --no-wait --memory 512M')).status).toBe(0)
  })

  it('leaves a machine that is waited for when the person leaves, and says so', async () => {
    await using world = await startWorld()
    world.vmhost.paused = true
    const leave = new AbortController()
    const making = world.run('new slow --memory 512M', { signal: leave.signal })
    await expect.poll(() => machineRow(world, 'slow'), PATIENT).toBeDefined()
    leave.abort()
    const ran = await making
    expect(ran.status).toBe(130)
    expect(ran.stderr).toMatch(/no longer waiting; slow goes on being made/)
    expect(await machineRow(world, 'slow')).toMatchObject({ desired_state: 'running' })
  })
})
