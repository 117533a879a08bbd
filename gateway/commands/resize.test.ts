import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest'
import { machineRow } from './testing/rows.ts'
import { startWorld, type World } from './testing/world.ts'

const GiB = 2 ** 30

let world: World
beforeAll(async () => {
  world = await startWorld({ host: { cpus: 4, memoryBytes: 8 * GiB, storeBytes: 100 * GiB, storeFreeBytes: 50 * GiB } })
})
afterAll(() => world?.[Symbol.asyncDispose]())
beforeEach(async () => {
  await world.run('rm --now demo')
  await world.run('new demo --cpu 2 --memory 2G --disk 20G --no-wait')
  await expect.poll(async () => (await row())?.observed_state).toBe('running')
  await runsWith(2, 2)
})

const row = () => machineRow(world, 'demo')
/** As its vmhost says it. */
const runsWith = (cpus: number, gibibytes: number) =>
  world.gateway.database.as('berth_vmhost')`
    update machines set observed_cpus = ${cpus}, observed_memory_bytes = ${gibibytes * GiB} where name = 'demo'`
const grown = (gibibytes: number) =>
  world.gateway.database.as('berth_vmhost')`
    update machines set observed_disk_bytes = ${gibibytes * GiB} where name = 'demo'`

describe('resize', () => {
  it('changes CPUs and memory at the next start where its server gives nothing at once, and says so', async () => {
    expect((await world.run('resize demo --cpu 4 --memory 4G')).stdout).toBe(
      'demo has 4 CPUs and 4 GiB of memory from its next start on: restart demo\n',
    )
    expect(await row()).toMatchObject({ cpus: 4, memory_bytes: 4 * GiB })
    const { document } = await world.json('resize demo --memory 4G')
    expect(document).toEqual({
      vm_name: 'demo',
      allocated_cpus: 4,
      memory_capacity_bytes: 4 * GiB,
      disk_capacity_bytes: 20 * GiB,
      at_next_start: ['cpu', 'memory'],
    })
    await runsWith(4, 4)
    expect((await world.run('resize demo --cpu 4')).stdout).toBe('demo has 4 CPUs as it has already\n')
    expect((await world.json('audit demo')).document.events).toContainEqual(
      expect.objectContaining({
        kind: 'machine.resized',
        detail: { cpus: 4, memoryBytes: 4 * GiB, diskBytes: 20 * GiB },
      }),
    )
    await world.run('stop demo')
    expect((await world.run('resize demo --cpu 1')).stdout).toBe('demo has 1 CPU from its next start on\n')
  })

  it('says what one that runs has at once, and what from its next start on', async () => {
    const { givesAtOnce } = world.vmhost
    try {
      givesAtOnce.cpu = true
      expect((await world.run('resize demo --cpu 3 --memory 3G')).stdout).toBe(
        'demo has 3 CPUs now\ndemo has 3 GiB of memory from its next start on: restart demo\n',
      )
      givesAtOnce.memory = true
      expect((await world.json('resize demo --cpu 4 --memory 4G')).document).toMatchObject({ at_next_start: [] })
      expect((await world.run('resize demo --cpu 1 --memory 4G')).stdout).toBe(
        'demo has 4 GiB of memory as it has already\ndemo has 1 CPU from its next start on: restart demo\n',
      )
    } finally {
      Object.assign(givesAtOnce, { cpu: false, memory: false })
    }
  })

  it('waits until the disk of one that runs has grown, and its filesystem', async () => {
    const growing = world.run('resize demo --disk 40G')
    await expect.poll(async () => (await row())?.disk_bytes).toBe(40 * GiB)
    await grown(40)
    expect((await growing).stdout).toBe('demo has a disk of 40 GiB, and its filesystem has grown with it\n')
    expect((await world.run('resize demo --disk 40G')).stdout).toBe('demo has a disk of 40 GiB already\n')
    expect((await world.json('resize demo --disk 41G --no-wait')).document).toMatchObject({
      disk: 'growing',
      disk_capacity_bytes: 41 * GiB,
    })
  })

  it('says when the disk of one that does not run grows', async () => {
    await world.run('stop demo')
    expect((await world.run('resize demo --disk 30G')).stdout).toBe(
      'the disk of demo grows to 30 GiB at its next start\n',
    )
    await world.run('start demo --no-wait')
    await expect.poll(async () => (await row())?.observed_state).toBe('running')
    await world.run('sleep demo')
    expect((await world.run('resize demo --disk 35G --cpu 3')).stdout).toBe(
      'demo has 3 CPUs when it is awake, or, where it cannot grow while it runs, from its next start on\nthe disk of demo grows to 35 GiB when it is awake\n',
    )
  })

  it('tells why a disk does not grow', async () => {
    const growing = world.run('resize demo --disk 40G')
    await expect.poll(async () => (await row())?.disk_bytes).toBe(40 * GiB)
    await world.gateway.database.as(
      'berth_vmhost',
    )`update machines set observed_reason = 'It has no room' where name = 'demo'`
    expect(await growing).toMatchObject({
      status: 1,
      stderr: expect.stringMatching(/^the disk of demo does not grow: It has no room\n.*restart demo\n$/),
    })
  })

  it.each([
    ['', 2, /nothing is given that could change\n.*--cpu, --memory or --disk/],
    ['--disk 10G', 1, /demo has a disk of 20 GiB, and a disk only grows\n.*make a new machine/],
    ['--disk 200G', 5, /its server server1 has 100 GiB for disks\n.*--disk 100G\n$/],
    ['--cpu 5', 5, /its server server1 has 4 CPUs\n.*--cpu 4/],
    ['--memory 9G', 5, /its server server1 can give a machine at most 8 GiB of memory\n.*--memory 8G\n$/],
    ['--memory 64M', 2, /at least 128M/],
  ])('refuses %j with what could be had instead', async (flags, status, message) => {
    expect(await world.run(`resize demo ${flags}`)).toMatchObject({ status, stderr: expect.stringMatching(message) })
    expect(await row()).toMatchObject({ cpus: 2, memory_bytes: 2 * GiB, disk_bytes: 20 * GiB })
  })

  it('promises a machine that runs the larger of what it has and what it gets; one that is off nothing', async () => {
    expect((await world.run('new other --memory 4G --no-wait')).status).toBe(0)
    expect(await world.run('resize demo --memory 5G')).toMatchObject({
      status: 5,
      stderr: expect.stringMatching(/demo needs 5 GiB of memory and server server1 has 4 GiB left/),
    })
    expect((await world.run('resize demo --memory 1G')).status).toBe(0)
    expect((await world.run('new third --memory 3G --no-wait')).status).toBe(5)
    expect((await world.run('host ls')).stdout).toMatch(/6 GiB of 8 GiB/)
    await world.run('stop demo')
    await world.gateway.database.as(
      'berth_vmhost',
    )`update machines set observed_memory_bytes = null where name = 'demo'`
    expect((await world.run('resize demo --memory 8G')).status).toBe(0)
    expect((await world.run('start demo')).status).toBe(5)
    await world.run('rm --now other')
  })
})
