import { beforeEach, expect, test } from 'vitest'
import { nextMidnight, type Piece, Spans, type Standing } from './spans.ts'

const minute = 60_000
const noon = Date.UTC(2026, 2, 31, 12)
const runs: Standing = {
  state: 'running',
  process: 'boot:7:99',
  cpus: 2,
  memoryBytes: 2 ** 31,
  diskBytes: 2 ** 34,
  checkpointBytes: 0,
}
const stopped: Standing = { ...runs, state: 'stopped', process: null }
const asleep: Standing = { ...runs, state: 'asleep', process: null }

let spans: Spans
beforeEach(() => {
  spans = new Spans()
})

const brief = (pieces: readonly Piece[]) =>
  pieces.map(({ state, startedAt, endedAt }) => [state, (startedAt - noon) / minute, (endedAt - noon) / minute])

test('pieces touch, one for each state and size, and none for what lies in the trash', () => {
  const closed = [
    ...spans.note(1, { ...stopped, state: 'creating' }, noon),
    ...spans.note(1, runs, noon + minute),
    ...spans.note(1, runs, noon + 2 * minute),
    ...spans.note(1, { ...runs, diskBytes: 2 ** 35 }, noon + 3 * minute),
    ...spans.note(1, undefined, noon + 4 * minute),
    ...spans.note(1, undefined, noon + 5 * minute),
    ...spans.note(1, stopped, noon + 6 * minute),
    ...spans.note(1, runs, noon + 7 * minute),
  ]
  expect(brief(closed)).toEqual([
    ['creating', 0, 1],
    ['running', 1, 3],
    ['running', 3, 4],
    ['stopped', 6, 7],
  ])
  expect(closed.map(({ diskBytes }) => Math.log2(diskBytes))).toEqual([34, 34, 35, 34])
})

test('what has no hypervisor and is about to is what it was before; what lost one is stopped', () => {
  spans.note(1, asleep, noon)
  expect(spans.note(1, { ...asleep, state: 'between' }, noon + minute)).toEqual([])
  expect(brief(spans.note(1, runs, noon + 2 * minute))).toEqual([['asleep', 0, 2]])
  expect(brief(spans.note(1, { ...runs, state: 'between', process: null }, noon + 3 * minute))).toEqual([
    ['running', 2, 3],
  ])
  expect(brief(spans.note(1, { ...runs, process: 'boot:8:100' }, noon + 4 * minute))).toEqual([['stopped', 3, 4]])
})

test('while nothing changes, a piece of a machine that runs is closed every five minutes, of others every hour', () => {
  spans.note(1, runs, noon)
  spans.note(2, asleep, noon)
  const closed = Array.from({ length: 61 }, (_, at) => spans.cut(noon + at * minute)).flat()
  expect(brief(closed.filter(({ machineId }) => machineId === 1))).toEqual(
    Array.from({ length: 12 }, (_, five) => ['running', five * 5, five * 5 + 5]),
  )
  expect(brief(closed.filter(({ machineId }) => machineId === 2))).toEqual([['asleep', 0, 60]])
})

test('no piece is in two days, also of a machine that nobody looked at for days', () => {
  const midnight = nextMidnight(noon)
  spans.note(1, asleep, midnight - minute)
  expect(spans.cut(midnight - 1)).toEqual([])
  expect(brief(spans.cut(midnight + 2))).toEqual([['asleep', 719, 720]])
  const days = spans.note(1, undefined, midnight + 2.5 * 86_400_000)
  expect(brief(days)).toEqual([
    ['asleep', 720, 2160],
    ['asleep', 2160, 3600],
    ['asleep', 3600, 4320],
  ])
})

test('nothing is in the ledger for time that never was, and nothing twice for time that came twice', () => {
  spans.note(1, runs, noon)
  expect(brief(spans.jump(noon + minute, noon + 60 * minute))).toEqual([['running', 0, 1]])
  expect(brief(spans.note(1, stopped, noon + 61 * minute))).toEqual([['running', 60, 61]])
  // As after a start with another clock.
  const next = new Spans()
  next.endedAt(1, noon + 61 * minute)
  next.note(1, runs, noon)
  expect(next.note(1, { ...runs, cpus: 4 }, noon + minute)).toEqual([])
  expect(brief(next.note(1, stopped, noon + 62 * minute))).toEqual([['running', 61, 62]])
  // But a year ahead no clock was right.
  const wrong = new Spans()
  wrong.endedAt(1, noon + 365 * 86_400_000)
  wrong.note(1, runs, noon)
  expect(brief(wrong.note(1, stopped, noon + minute))).toEqual([['running', 0, 1]])
})

test('the same hypervisor, found by the next vmhost, ran all the while; so lay what slept', () => {
  for (const standing of [runs, asleep]) {
    const before = new Spans()
    before.note(1, standing, noon)
    const times = { now: noon + 10 * minute, provenUntil: noon + minute }
    expect(spans.goOn(1, before.open[0], standing, times)).toEqual([])
    expect(brief(spans.note(1, undefined, noon + 11 * minute))).toEqual([[standing.state, 0, 11]])
    spans = new Spans()
  }
})

test('a machine that ended unseen ran until the last proof of life, and there is nothing until it is seen again', () => {
  const before = new Spans()
  before.note(1, runs, noon)
  const times = { now: noon + 10 * minute, provenUntil: noon + minute }
  expect(brief(spans.goOn(1, before.open[0], stopped, times))).toEqual([['running', 0, 1]])
  expect(brief(spans.note(1, undefined, noon + 11 * minute))).toEqual([['stopped', 10, 11]])
})

test('another hypervisor than the one that was noted runs since its start, which ended what was before', () => {
  const times = { now: noon + 10 * minute, provenUntil: noon + minute, startedAt: noon + 3 * minute }
  const other = { ...runs, process: 'boot:8:100' }
  for (const [was, expected] of [
    [runs, ['running', 0, 1]],
    [asleep, ['asleep', 0, 3]],
  ] as const) {
    spans = new Spans()
    const before = new Spans()
    before.note(1, was, noon)
    expect(brief(spans.goOn(1, before.open[0], other, times))).toEqual([expected])
    expect(brief(spans.note(1, undefined, noon + 11 * minute))).toEqual([['running', 3, 11]])
  }
})

test('one that no vmhost has noted yet is seen from now on', () => {
  expect(spans.goOn(1, undefined, runs, { now: noon, provenUntil: noon })).toEqual([])
  expect(brief(spans.note(1, undefined, noon + minute))).toEqual([['running', 0, 1]])
})

test('one that is gone when the next vmhost looks was there until it was last seen', () => {
  const before = new Spans()
  before.note(1, stopped, noon)
  const times = { now: noon + 10 * minute, provenUntil: noon + minute }
  expect(brief(spans.goOn(1, before.open[0], undefined, times))).toEqual([['stopped', 0, 1]])
  expect(spans.open).toEqual([])
})
