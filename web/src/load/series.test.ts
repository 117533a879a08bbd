import { describe, expect, test } from 'vitest'
import { appended, followed, type GlanceDocument, newest, type Stat, type StateSpan, type Values } from './series.ts'
import { exactly, niceTop, onAxis, readable, unitFor } from './units.ts'

const time = (seconds: number) => new Date(seconds * 1000).toISOString()

function stat(first: number, cpu: (number | null)[], states: StateSpan[] = [], starts: number[] = []): Stat {
  const at = cpu.map((_, index) => first + index * 10)
  return {
    vm_name: 'demo',
    from: time(first),
    to: time(first + cpu.length * 10),
    step_seconds: 10,
    allocated_cpus: 2,
    memory_capacity_bytes: 1,
    states,
    starts: starts.map(time),
    columns: { at, cpu_cores: cpu },
  }
}
const span = (state: StateSpan['state'], from: number, to: number): StateSpan => ({
  state,
  from: time(from),
  to: time(to),
})

test('what is new goes at the end, once, and as much goes at the beginning', () => {
  const older = stat(100, [1, 2, 3, null], [span('asleep', 100, 120), span('running', 120, 140)], [95, 120])
  const newer = stat(120, [3, 4, 5], [span('running', 120, 140), span('asleep', 140, 150)], [])
  const all = appended(older, newer)
  expect(all.columns.at).toEqual([110, 120, 130, 140])
  expect(all.columns.cpu_cores).toEqual([2, 3, 4, 5])
  expect([all.from, all.to]).toEqual([time(110), time(150)])
  expect(all.states).toEqual([span('asleep', 110, 120), span('running', 120, 140), span('asleep', 140, 150)])
  expect(appended(all, newer)).toEqual(all)
  expect(all.starts).toEqual([])
  expect(appended(older, { ...newer, starts: [time(125)] }).starts).toEqual([time(125)])
})

test('a state that goes on is one, and nothing new changes nothing', () => {
  const older = stat(100, [1, 2], [span('running', 100, 120)], [105])
  expect(appended(older, stat(110, [2], [span('running', 110, 120)])).states).toEqual([span('running', 100, 120)])
  expect(appended(older, stat(120, [])).columns).toEqual(older.columns)
})

test('after a long absence nothing of before is left', () => {
  const older = stat(100, [1, 2], [span('running', 100, 120)])
  const all = appended(older, stat(500, [7, 8], [span('asleep', 500, 520)]))
  expect(all.columns).toEqual({ at: [500, 510], cpu_cores: [7, 8] })
  expect(all.states).toEqual([span('asleep', 500, 520)])
})

test('figures have the unit of their axis, and exactly as many digits as are known', () => {
  const unit = unitFor('rate', 2_000_000)
  expect([onAxis(500_000, unit), readable(1_234_567, unit), exactly(1_234_567.4, 'rate')]).toEqual([
    '0.5 MB/s',
    '1.2346 MB/s',
    '1,234,567 B/s',
  ])
  expect(unitFor('memory', 2 ** 29).name).toBe('MiB')
  expect(unitFor('rate', 0).name).toBe('B/s')
  expect(exactly(null, 'memory')).toBe('not known')
  expect([0, 3, 1e6].map(niceTop)).toEqual([1, 5, 1e6])
  expect([newest([1, 2, null]), newest([1, null, null]), newest([1, null, null, null]), newest(undefined)]).toEqual([
    2,
    1,
    null,
    null,
  ])
})

describe('all machines at a glance', () => {
  const glance = (from: number, to: number, vms: Record<number, Values | null>): GlanceDocument => ({
    from: time(from),
    to: time(to),
    step_seconds: 300,
    vms: Object.entries(vms).map(([id, cpu_cores]) => ({ id: Number(id), cpu_cores })),
  })
  const first = followed(undefined, glance(0, 1_200, { 1: [1, 2, 3, 4], 2: [null, null, null, 9], 3: null }))

  test('are all told at first, and those of whom nothing is known are none', () => {
    expect(first).toEqual({
      to: 1_200,
      stepSeconds: 300,
      length: 4,
      of: new Map<number, Values>([
        [1, [1, 2, 3, 4]],
        [2, [null, null, null, 9]],
      ]),
    })
  })

  test('what is new takes the place of what was known of its steps, and the oldest goes', () => {
    const next = followed(first, glance(600, 1_500, { 1: [3.5, 4.5, 5], 4: [null, null, 1] }))
    expect(next.to).toBe(1_500)
    expect(Object.fromEntries(next.of)).toEqual({ 1: [2, 3.5, 4.5, 5], 4: [null, null, null, 1] })
  })

  test('a machine of which there is nothing new keeps its values, the very same', () => {
    const next = followed(first, glance(600, 1_200, { 1: [3, 4], 2: [null, 10] }))
    expect(next.of.get(1)).toBe(first.of.get(1))
    expect(next.of.get(2)).toEqual([null, null, null, 10])
  })

  test('steps that nobody was told of are a gap, and after an hour all is as at first', () => {
    expect(Object.fromEntries(followed(first, glance(1_500, 1_800, { 1: [6] })).of)).toEqual({
      1: [3, 4, null, 6],
      2: [null, 9, null, null],
    })
    expect(Object.fromEntries(followed(first, glance(9_000, 10_200, { 1: [6, 7, 8, 9] })).of)).toEqual({
      1: [6, 7, 8, 9],
    })
  })
})
