import { describe, expect, test } from 'vitest'
import {
  floorBytes,
  hasRoom,
  inflateLimitMs,
  keptBytes,
  type Level,
  levelOf,
  marksOf,
  type Need,
  plan,
  spentMs,
  type Tenant,
} from './policy.ts'

const MiB = 2 ** 20
const GiB = 2 ** 30
const totalBytes = 16 * GiB
const marks = marksOf(totalBytes)

const host = (availableBytes: number, stall?: { some: number; full: number }) => ({ totalBytes, availableBytes, stall })
const idleFor = (minutes: number) => new Date(Date.UTC(2026, 0, 1) - minutes * 60_000)

/** Half of its memory is free to be taken. */
function tenant(id: number, more: Partial<Tenant> = {}): Tenant {
  return {
    id,
    memoryBytes: 4 * GiB,
    heldBytes: 4 * GiB,
    balloonBytes: 0,
    askedBytes: 0,
    mostBytes: 0,
    askedAgoMs: Number.POSITIVE_INFINITY,
    availableBytes: 2 * GiB,
    relievedAgoMs: undefined,
    idleSince: idleFor(10),
    ...more,
  }
}

function need(availableBytes: number, level: Level, more: Partial<Need> = {}): Need {
  return { host: host(availableBytes), level, ampleForMs: 0, wantedBytes: 0, ...more }
}

describe('how short a server is', () => {
  test.each([
    [marks.least - 1, 'desperate'],
    [marks.scarce - 1, 'scarce'],
    [marks.low - 1, 'short'],
    [marks.low, 'enough'],
    [marks.ample, 'ample'],
  ] as const)('with %d bytes it is %s', (availableBytes, level) => {
    expect(levelOf(host(availableBytes), 'ample')).toBe(level)
  })

  test('it stays so until there is enough again, and not only just not short', () => {
    expect(levelOf(host(marks.enough - 1), 'enough')).toBe('enough')
    for (const was of ['short', 'scarce', 'desperate'] as const)
      expect(levelOf(host(marks.enough - 1), was)).toBe('short')
    expect(levelOf(host(marks.enough), 'short')).toBe('enough')
  })

  test('programs that wait for memory count where there is little of it, and only there', () => {
    const waiting = { some: 0.3, full: 0 }
    expect(levelOf(host(marks.ample - 1, waiting), 'ample')).toBe('short')
    expect(levelOf(host(marks.ample, waiting), 'ample')).toBe('ample')
    expect(levelOf(host(marks.enough - 1, { some: 0.5, full: 0.2 }), 'ample')).toBe('scarce')
    expect(levelOf(host(marks.enough, { some: 0.5, full: 0.2 }), 'ample')).toBe('short')
    expect(levelOf(host(marks.ample - 1, { some: 0.02, full: 0.01 }), 'ample')).toBe('enough')
  })

  test('the marks lie in their order on servers of every size', () => {
    for (const size of [GiB, 2 * GiB, 6 * GiB, 24 * GiB, 512 * GiB]) {
      const { least, scarce, low, enough, ample } = marksOf(size)
      expect([least, scarce, low, enough, ample].toSorted((a, b) => a - b)).toEqual([least, scarce, low, enough, ample])
      expect(ample).toBeLessThan(size * 0.6)
    }
  })
})

describe('what is taken', () => {
  test('nothing as long as there is enough', () => {
    expect(plan(need(marks.enough, 'enough'), [tenant(1)])).toEqual({ asks: [], missingBytes: 0, pendingBytes: 0 })
  })

  test('from those idle longest first, and no more than the server needs', () => {
    const tenants = [
      tenant(1, { idleSince: null }),
      tenant(2, { idleSince: idleFor(5) }),
      tenant(3, { idleSince: idleFor(90) }),
    ]
    const missing = 300 * MiB
    const { asks, missingBytes } = plan(need(marks.enough - missing, 'short'), tenants)
    expect(asks).toEqual([{ id: 3, bytes: missing, relieves: false }])
    expect(missingBytes).toBe(0)
  })

  test('then from those that work, which keep more; never what a guest needs', () => {
    const [working, idle] = [tenant(1, { idleSince: null }), tenant(2)]
    const gives = [idle, working].map((one) => 2 * GiB - keptBytes(one))
    const { asks, missingBytes } = plan(need(0, 'desperate', { wantedBytes: 10 * GiB }), [working, idle])
    expect(asks).toEqual([
      { id: 2, bytes: gives[0], relieves: false },
      { id: 1, bytes: gives[1], relieves: false },
    ])
    expect(missingBytes).toBe(10 * GiB + marks.low - (gives[0] ?? 0) - (gives[1] ?? 0))
    expect(keptBytes(working)).toBeGreaterThan(keptBytes(idle))
    expect(keptBytes(idle)).toBeGreaterThan(floorBytes(idle))
  })

  test('on top of what was taken before, by what the guest says is left to it', () => {
    const taken = { balloonBytes: GiB, askedBytes: GiB, mostBytes: GiB }
    const one = tenant(1, { ...taken, availableBytes: 600 * MiB })
    expect(plan(need(0, 'desperate'), [one]).asks).toEqual([
      { id: 1, bytes: GiB + 600 * MiB - keptBytes(one), relieves: false },
    ])
  })

  test('what guests are about to give counts as given, until it is clear that they will not', () => {
    const giving = tenant(1, { askedBytes: GiB, askedAgoMs: 2_000 })
    const other = tenant(2, { idleSince: idleFor(1) })
    const little = need(marks.enough - 512 * MiB, 'short')
    expect(plan(little, [giving, other])).toEqual({ asks: [], missingBytes: 0, pendingBytes: GiB })
    const stuck = { ...giving, askedAgoMs: inflateLimitMs }
    expect(plan(little, [stuck, other]).asks.map(({ id }) => id)).toEqual([2])
    expect(plan(little, [stuck])).toEqual({ asks: [], missingBytes: 512 * MiB, pendingBytes: 0 })
    expect(plan(little, [{ ...stuck, askedAgoMs: spentMs }]).asks.map(({ id }) => id)).toEqual([1])
  })

  test('what a guest never used is no gain: it is taken on top, and a guest that holds nothing else gives nothing', () => {
    const idle = { memoryBytes: 4 * GiB, availableBytes: 3 * GiB }
    const half = tenant(1, { ...idle, heldBytes: 2 * GiB })
    const little = need(marks.enough - 300 * MiB, 'short')
    expect(plan(little, [half])).toEqual({
      asks: [{ id: 1, bytes: 2 * GiB + 300 * MiB, relieves: false }],
      missingBytes: 0,
      pendingBytes: 300 * MiB,
    })
    const giving = { ...half, askedBytes: 2 * GiB + 300 * MiB, askedAgoMs: 1_000 }
    expect(plan(little, [{ ...giving, balloonBytes: GiB }])).toEqual({
      asks: [],
      missingBytes: 0,
      pendingBytes: 300 * MiB,
    })
    const small = tenant(2, { ...idle, heldBytes: 1.1 * GiB })
    expect(plan(little, [small])).toMatchObject({ asks: [], missingBytes: 300 * MiB })
  })

  test('nothing from a guest that is silent, has little, or had to have it back a moment ago', () => {
    const tenants = [
      tenant(1, { availableBytes: undefined }),
      tenant(2, { availableBytes: 290 * MiB }),
      tenant(3, { relievedAgoMs: 30_000 }),
    ]
    const { asks, missingBytes } = plan(need(0, 'desperate'), tenants)
    expect(asks).toEqual([])
    expect(missingBytes).toBe(marks.enough)
    expect(plan(need(0, 'desperate'), [tenant(3, { relievedAgoMs: 60_000 })]).asks).toHaveLength(1)
  })

  test('for a machine that waits to be woken, though the server itself has enough', () => {
    const waiting = need(marks.enough, 'enough', { wantedBytes: 2 * GiB })
    const { asks, missingBytes } = plan(waiting, [tenant(1), tenant(2, { idleSince: idleFor(1) })])
    const takes = asks.reduce((sum, { bytes }) => sum + bytes, 0)
    expect(takes + missingBytes).toBe(2 * GiB + marks.low - marks.enough)
    expect(hasRoom(host(marks.enough), 2 * GiB)).toBe(false)
    expect(hasRoom(host(marks.scarce + 2 * GiB), 2 * GiB)).toBe(true)
  })
})

describe('what is given back', () => {
  const taken = { balloonBytes: GiB, askedBytes: GiB, mostBytes: GiB }

  test('all of it at once to a guest that has little left, however short the server is', () => {
    const low = tenant(1, { ...taken, availableBytes: floorBytes(tenant(1)) - 1 })
    expect(plan(need(0, 'desperate'), [low]).asks).toEqual([{ id: 1, bytes: 0, relieves: true }])
  })

  test('to one that took some back by itself, or that does not answer any more', () => {
    const desperate = tenant(1, { ...taken, balloonBytes: GiB - 5 * MiB })
    const silent = tenant(2, { ...taken, availableBytes: undefined })
    expect(plan(need(0, 'desperate'), [desperate, silent]).asks).toEqual([
      { id: 1, bytes: 0, relieves: true },
      { id: 2, bytes: 0, relieves: true },
    ])
  })

  test('what one needs that begins to work, unless others would be put to sleep for it', () => {
    const working = tenant(1, { ...taken, availableBytes: 500 * MiB, idleSince: null })
    const missing = keptBytes(working) - 500 * MiB
    expect(plan(need(marks.low, 'short'), [working]).asks).toEqual([{ id: 1, bytes: GiB - missing, relieves: true }])
    expect(plan(need(0, 'scarce'), [working]).asks).toEqual([])
  })

  test('part by part when there has been plenty for a while; those that work first', () => {
    const [idle, working] = [tenant(1, taken), tenant(2, { ...taken, idleSince: null })]
    const plenty = need(marks.enough + 3 * GiB, 'ample', { ampleForMs: 30_000 })
    expect(plan(plenty, [idle, working]).asks).toEqual([
      { id: 2, bytes: 0, relieves: false },
      { id: 1, bytes: 512 * MiB, relieves: false },
    ])
    expect(plan({ ...plenty, ampleForMs: 29_999 }, [idle, working]).asks).toEqual([])
    expect(plan({ ...plenty, level: 'enough' }, [idle, working]).asks).toEqual([])
  })

  test('and none of it is taken again by the next look: between the two lies a margin', () => {
    const one = tenant(1, taken)
    const before = need(marks.ample, 'ample', { ampleForMs: 60_000 })
    const [ask] = plan(before, [one]).asks
    const given = GiB - (ask?.bytes ?? 0)
    // Even if the guest fills at once what it got.
    const after = host(marks.ample - given)
    expect(given).toBeGreaterThan(0)
    expect(levelOf(after, 'ample')).toBe('enough')
  })
})
