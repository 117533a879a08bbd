import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { runLine } from './run.ts'
import { niceTop, sparkline } from './sparkline.ts'
import { recordingIo, startWorld, type World } from './testing/world.ts'
import { textWidth } from './width.ts'

const GIB = 2 ** 30
const MIB = 2 ** 20

describe('stat', () => {
  let world: World
  let machineId = 0
  /** The minute of it that the samples end at. */
  let now: number

  beforeAll(async () => {
    world = await startWorld()
    await world.run('new demo --no-wait --memory 4G --disk 20G --cpu 2')
    await world.run('new quiet --no-wait --memory 1G --cpu 1')
    const [row] = await world.gateway.sql<{ id: number }[]>`select id from machines where name = 'demo'`
    machineId = row?.id ?? 0
    // Within what partitions are there for, and in the middle of a step of whatever length but the year's.
    now = Math.floor(Date.now() / 3_600_000) * 3_600_000 + 1_800_000 + 5_000
    vi.useFakeTimers({ toFake: ['Date'], now })
  })
  afterAll(async () => {
    vi.useRealTimers()
    await world?.[Symbol.asyncDispose]()
  })

  type Sample = { agoSeconds: number; cpuMs?: number; ms?: number; usedBytes?: number | null; out?: number }
  async function add(samples: Sample[], marks: { agoSeconds: number; state: string }[] = []): Promise<void> {
    const end = Math.floor(now / 10_000) * 10_000
    const at = (agoSeconds: number) => new Date(end - agoSeconds * 1000).toISOString()
    const rows = samples.map(({ agoSeconds, cpuMs = 0, ms = 10_000, usedBytes = GIB, out = 0 }) => ({
      machine_id: machineId,
      at: at(agoSeconds),
      ms,
      cpus: 2,
      cpu_ms: cpuMs,
      memory_limit_bytes: 4 * GIB,
      memory_held_bytes: 2 * GIB,
      memory_used_bytes: usedBytes,
      disk_ms: ms,
      disk_read_bytes: 10_000_000,
      disk_written_bytes: 0,
      network_ms: ms,
      network_out_bytes: out,
      network_in_bytes: 0,
      filesystem_used_bytes: 3 * GIB,
      filesystem_bytes: 20 * GIB,
    }))
    const vmhost = world.gateway.database.as('berth_vmhost')
    const told = marks.map(({ agoSeconds, state }) => ({ machine_id: machineId, at: at(agoSeconds), state }))
    const [host] = await vmhost<{ id: number; epoch: number }[]>`select id, lease_epoch as epoch from hosts limit 1`
    await vmhost`select add_load(${host?.id ?? 0}, ${host?.epoch ?? 0}, ${vmhost.json(rows as never)}, ${vmhost.json(told as never)})`
  }

  async function onTerminal(line: string, columns = 80): Promise<string> {
    const terminal = { term: 'dumb', columns, rows: 24, onResize: () => () => {} }
    const io = recordingIo({ terminal })
    expect(await runLine(world.app, world.owner, line, io)).toBe(0)
    return io.stdoutText().replaceAll('\r\n', '\n')
  }

  const document = async (line: string) => (await world.json(line)).document as Record<string, never>

  it('says so while there are no figures', async () => {
    const none = async (line: string) => (await world.run(line)).stdout
    expect(await none('stat demo')).toMatch(/^no figures of demo in the last 24 hours: figures come 20 s after/)
    expect(await none('stat demo --since 2h')).toMatch(/in the last 24 hours since \d{4}-\d\d-\d\d \d\d:\d\d UTC: fig/)
    await world.run('stop quiet')
    expect(await none('stat quiet')).toMatch(/in the last 24 hours: it did not run; it is stopped\n$/)
    expect(await document('stat demo')).toMatchObject({ vm_name: 'demo', range: '24h', points: null, starts: [] })
    expect(await world.run('stat tpyo')).toMatchObject({ status: 3 })
    expect(await world.run('stat demo --range 2d')).toMatchObject({ status: 2 })
    for (const time of ['whenever', '-1', '0', '1', "'Nov 24'", '2026-02-30', "''"]) {
      expect(await world.run(`stat demo --since=${time}`), time).toMatchObject({
        status: 2,
        stderr: expect.stringMatching(/^--since wants a time such as 2h, 7d, /),
      })
    }
    expect(await world.run('stat --range 7d')).toMatchObject({ status: 2 })
  })

  it('shows an hour in steps of ten seconds, with its gaps, its sleep and its starts', async () => {
    // It ran for ten minutes at half a processor, slept for forty, and runs since then at one and a half.
    const first = Array.from({ length: 60 }, (_, index) => ({
      agoSeconds: 3590 - index * 10,
      cpuMs: 5_000,
      out: 10_000,
    }))
    const last = Array.from({ length: 60 }, (_, index) => ({
      agoSeconds: 590 - index * 10,
      cpuMs: 15_000,
      usedBytes: 2 * GIB,
      out: 1_000_000,
    }))
    await add(
      [...first, ...last],
      [
        { agoSeconds: 7_200, state: 'running' },
        { agoSeconds: 2_990, state: 'asleep' },
        { agoSeconds: 590, state: 'running' },
      ],
    )
    const seen = (await document('stat demo --range 1h --columns')) as unknown as {
      step_seconds: number
      columns: Record<string, (number | null)[]>
      states: { state: string; from: string; to: string }[]
      starts: string[]
    }
    expect(seen.step_seconds).toBe(10)
    expect(Object.values(seen.columns).map((column) => column.length)).toEqual(Array.from({ length: 19 }, () => 360))
    const cpu = seen.columns.cpu_cores ?? []
    expect(cpu.slice(0, 61)).toEqual([...Array.from({ length: 60 }, () => 0.5), null])
    expect(cpu.slice(-61)).toEqual([null, ...Array.from({ length: 60 }, () => 1.5)])
    expect(seen.columns.disk_read_bytes_per_second?.at(-1)).toBe(1_000_000)
    expect(seen.states.map(({ state }) => state)).toEqual(['running', 'asleep', 'running'])
    expect(seen.starts).toHaveLength(1)
    expect(await onTerminal('stat demo --range 1h')).toBe(
      [
        `demo, the last hour up to ${new Date(now).toISOString().slice(11, 16)} UTC; a block is 2.5 min`,
        '                                        scale          now  average  most',
        'cpu           ▂▂▂▂zzzzzzzzzzzzzzzz▆▆▆▆  0 to 2 vCPUs   1.5        1   1.5',
        'memory        ▂▂▂▂zzzzzzzzzzzzzzzz▄▄▄▄  0 to 4 GiB       2      1.5     2',
        'held          ▄▄▄▄zzzzzzzzzzzzzzzz▄▄▄▄  0 to 4 GiB       2        2     2',
        'disk read     ████zzzzzzzzzzzzzzzz████  0 to 1 MB/s      1        1     1',
        'disk written  ▁▁▁▁zzzzzzzzzzzzzzzz▁▁▁▁  0 to 1 B/s       0        0     0',
        'sent          ▁▁▁▁zzzzzzzzzzzzzzzz████  0 to 100 kB/s  100     50.5   100',
        'received      ▁▁▁▁zzzzzzzzzzzzzzzz▁▁▁▁  0 to 1 B/s       0        0     0',
        'z: asleep',
        '',
      ].join('\n'),
    )
  })

  it('fits any terminal, and needs none', async () => {
    for (const columns of [60, 80, 132]) {
      for (const line of ['stat demo', 'stat demo --range 30d', 'stat']) {
        const widest = Math.max(...(await onTerminal(line, columns)).split('\n').map(textWidth))
        expect(widest, `${line} on ${columns}`).toBeLessThanOrEqual(columns)
      }
    }
    expect((await world.run('stat demo')).stdout).toContain('0 to 2 vCPUs')
  })

  it('has the same sums in every range, and the busiest ten seconds in the longest', async () => {
    await add([{ agoSeconds: 600, cpuMs: 20_000, usedBytes: null }])
    const used: number[] = []
    for (const range of ['1h', '24h', '7d', '30d', '1y']) {
      const { columns, step_seconds } = (await document(`stat demo --range ${range} --columns`)) as unknown as {
        step_seconds: number
        columns: Record<string, (number | null)[]>
      }
      expect(Math.max(...(columns.cpu_cores_most ?? []).map(Number)), range).toBe(2)
      expect(Math.max(...(columns.memory_used_bytes_most ?? []).map(Number)), range).toBe(2 * GIB)
      expect(columns.at?.length, range).toBeLessThanOrEqual(730)
      const known = (columns.cpu_cores ?? []).filter((value) => value !== null)
      if (step_seconds === 10) used.push(known.reduce((sum, value) => sum + value, 0))
    }
    expect(used[0]).toBeCloseTo(60 * 0.5 + 60 * 1.5 + 2)
  })

  it("gives exe.dev's points, and only what is new since a time", async () => {
    const { points } = (await document('stat demo --range 1h')) as unknown as { points: Record<string, unknown>[] }
    expect(points).toHaveLength(121)
    expect(points.at(-1)).toEqual({
      timestamp: new Date(Math.floor(now / 10_000) * 10_000).toISOString(),
      vm_name: 'demo',
      cpu_cores: 1.5,
      cpu_nominal: 2,
      mem_used_bytes: 2 * GIB,
      mem_total_bytes: 4 * GIB,
      mem_held_bytes: 2 * GIB,
      disk_size_gb: 20,
      disk_used_gb: 3,
      fs_used_gb: 3,
      fs_total_gb: 20,
      fs_free_gb: 17,
      fs_available_gb: 17,
      network_tx_mbps: 0.8,
      network_rx_mbps: 0,
      io_read_mbps: 1,
      io_write_mbps: 0,
    })
    const since = new Date(now - 60_000).toISOString()
    const { columns } = (await document(`stat demo --range 1h --columns --since ${since}`)) as unknown as {
      columns: Record<string, (number | null)[]>
    }
    expect(columns.at).toHaveLength(7)
    expect(columns.cpu_cores).toEqual(Array.from({ length: 7 }, () => 1.5))
  })

  it('a look that came late speaks of the steps that it covers', async () => {
    await add([{ agoSeconds: 1_200, ms: 20_000, cpuMs: 20_000 }])
    const { columns } = (await document('stat demo --range 1h --columns')) as unknown as {
      columns: Record<string, (number | null)[]>
    }
    const at = 359 - 120
    expect(columns.cpu_cores?.slice(at - 2, at + 2)).toEqual([null, 1, 1, null])
  })

  it('without a name is the last hour of all machines, and of nobody else', async () => {
    const { vms } = (await document('stat')) as unknown as { vms: Record<string, unknown>[] }
    expect(vms).toMatchObject([
      { vm_name: 'demo', allocated_cpus: 2, cpu_cores: expect.any(Array) },
      { vm_name: 'quiet', cpu_cores: null, memory_used_bytes: null },
    ])
    expect((vms as { cpu_cores: number[] | null }[])[0]?.cpu_cores?.at(-2)).toBe(1.5)
    type Glance = { from: string; vms: { vm_name: string; cpu_cores: (number | null)[] }[] }
    const all = (await document('stat')) as unknown as Glance
    const begin = Math.floor(now / 300_000) * 300 - 600
    const newer = (await document(`stat --since ${begin + 10}`)) as unknown as Glance
    expect(newer.vms.map(({ vm_name }) => vm_name)).toEqual(['demo'])
    expect(Date.parse(newer.from)).toBe(begin * 1000)
    const before = (begin * 1000 - Date.parse(all.from)) / 300_000
    const known = all.vms[0]?.cpu_cores.slice(before) ?? []
    expect(known.length).toBeGreaterThanOrEqual(3)
    expect(newer.vms[0]?.cpu_cores.slice(0, known.length)).toEqual(known)
    expect(await onTerminal('stat')).toMatch(/demo +\w+ +[▁-█ ]+ +1\.5 +2 vCPU +[▁-█ ]+ +2 +4 GiB\nquiet/)
    const stranger = await world.account()
    expect((await world.json('stat', { caller: stranger })).document).toMatchObject({ vms: [] })
    expect((await world.run('stat demo', { caller: stranger })).status).toBe(3)
  })
})

it('sparks are averages from the least to the most block, and never hide that nothing is known', () => {
  expect(sparkline([0, 1, 2, 4, 8], 8, 5)).toBe('▁▁▂▄█')
  expect(sparkline([null, 0, 100], 8, 3)).toBe(' ▁█')
  expect(sparkline([1, 3, null, null, 8, 8], 8, 3, () => 'z')).toBe('▂z█')
  expect(sparkline([1, 2, 3], 4, 80)).toHaveLength(3)
  expect([0, 0.9, 1, 1.1, 3, 7, 512 * MIB].map(niceTop)).toEqual([1, 1, 1, 2, 5, 10, 1e9])
})
