import { describe, expect, it } from 'vitest'
import { addressesInUse, machineRow } from './testing/rows.ts'
import { startWorld, type World } from './testing/world.ts'
import { TRASH_DAYS } from './trash.ts'

const PATIENT = { timeout: 60_000, interval: 20 }

/** Two machines in the trash; `old` has lain there for as long as it may. */
async function startWithTrash(): Promise<World> {
  const world = await startWorld()
  for (const name of ['old', 'young']) {
    expect((await world.run(`new ${name} --memory 512M --no-wait`)).status).toBe(0)
    await expect.poll(async () => (await machineRow(world, name))?.observed_state, PATIENT).toBe('running')
    expect((await world.run(`rm ${name}`)).status).toBe(0)
    await expect.poll(() => observed(world, name), PATIENT).toBe('trashed')
  }
  await world.gateway
    .sql`update machines set trashed_at = now() - make_interval(days => ${TRASH_DAYS}) where name = 'old'`
  return world
}

async function observed(world: World, name: string): Promise<unknown> {
  return (await world.gateway.sql`select observed_state from machines where name = ${name}`)[0]?.observed_state
}

describe('several that are brought back by one line', () => {
  it('come back each as it was, and what cannot come says why and holds up nobody', async () => {
    await using world = await startWorld()
    for (const name of ['a', 'b', 'off', 'taken']) await world.run(`new ${name} --memory 512M --no-wait`)
    for (const name of ['a', 'b', 'off', 'taken']) {
      await expect.poll(async () => (await machineRow(world, name))?.observed_state, PATIENT).toBe('running')
    }
    expect((await world.run('stop off')).status).toBe(0)
    expect((await world.run('rm a b off taken')).status).toBe(0)
    expect((await world.run('new taken --memory 512M --no-wait')).status).toBe(0)
    expect(await world.run('untrash a b --as c')).toMatchObject({ status: 2, stderr: expect.stringContaining('--as') })
    expect(await world.json('untrash a off a taken tpyo --no-wait')).toEqual({
      status: 1,
      document: {
        vms: [expect.objectContaining({ vm_name: 'a' }), expect.objectContaining({ vm_name: 'off' })],
        errors: { taken: 'the name taken is taken', tpyo: 'nothing called tpyo is in the trash' },
      },
    })
    // Put there together, they may have arrived in any order.
    const { vms } = (await world.json('trash')).document as { vms: { vm_name: string }[] }
    expect(vms.map(({ vm_name }) => vm_name).toSorted()).toEqual(['b', 'taken'])
    expect((await world.run('rm a off')).status).toBe(0)
    for (const name of ['a', 'b', 'off']) await expect.poll(() => observed(world, name), PATIENT).toBe('trashed')
    expect(await world.run('untrash a b off --no-wait')).toMatchObject({
      status: 0,
      stdout: 'a and b are back\noff is back and stopped, as it was; to start it: start off\n',
    })
    expect(await world.run('untrash a b')).toMatchObject({ status: 3, stdout: '' })
  })
})

it('one that was off is stopped from the moment it is back, before its server has seen that', async () => {
  await using world = await startWorld()
  await world.run('new off --memory 512M --no-wait')
  await expect.poll(() => observed(world, 'off'), PATIENT).toBe('running')
  await world.run('stop off')
  await world.run('rm off')
  await expect.poll(() => observed(world, 'off'), PATIENT).toBe('trashed')
  world.vmhost.paused = true
  expect(await world.json('untrash off')).toMatchObject({ status: 0, document: { vm_name: 'off', status: 'stopped' } })
  expect((await world.run('ls')).stdout).toMatch(/^off +stopped +base/m)
  await world.run('start off --no-wait')
  expect((await world.run('ls')).stdout).toMatch(/^off +starting +base/m)
})

describe('a machine whose time in the trash is up', () => {
  it('is shown as such and comes back, as long as its server has not deleted it', async () => {
    await using world = await startWithTrash()
    const { stdout } = await world.run('trash')
    expect(stdout).toMatch(/young .* in 7 days\n/)
    expect(stdout).toMatch(/old .* any moment\n/)
    expect((await world.run('untrash old --no-wait')).status).toBe(0)
    await world.vmhost.emptyTrash(TRASH_DAYS)
    await expect.poll(() => observed(world, 'old'), PATIENT).toBe('running')
  })

  it('is out of reach from the moment its server deletes it, and leaves nothing behind', async () => {
    await using world = await startWithTrash()
    world.vmhost.paused = true
    await world.vmhost.emptyTrash(TRASH_DAYS)
    const gone = {
      status: 3,
      stdout: '',
      stderr: expect.stringMatching(/nothing called old is in the trash\nin the trash: young\n$/),
    }
    // Wanted gone and still seen in the trash: the server is at it.
    expect(await world.run('untrash old')).toMatchObject(gone)
    world.vmhost.paused = false
    world.vmhost.look()
    await expect.poll(() => observed(world, 'old'), PATIENT).toBe('gone')
    expect(await world.run('untrash old')).toMatchObject(gone)
    expect((await world.run('rm --now old')).status).toBe(3)
    expect((await world.json('trash')).document).toMatchObject({ vms: [{ vm_name: 'young' }] })
    expect(await addressesInUse(world)).toBe(1)
    expect((await world.run('new old --memory 512M --no-wait')).status).toBe(0)
  })
})
