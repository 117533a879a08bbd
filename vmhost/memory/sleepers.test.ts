import { expect, test } from 'vitest'
import { chooseSleepers, type Sleeper, type SleepNeed } from './sleepers.ts'

const GiB = 2 ** 30
const now = new Date(Date.UTC(2026, 0, 1))
const minutesAgo = (minutes: number) => new Date(now.getTime() - minutes * 60_000)

const sleeper = (id: number, idleMinutes: number | null, more: Partial<Sleeper> = {}): Sleeper => ({
  id,
  heldBytes: GiB,
  promisedBytes: 4 * GiB,
  idleSince: idleMinutes === null ? null : minutesAgo(idleMinutes),
  activityAt: null,
  holdUntil: null,
  couldNotSleep: false,
  ...more,
})
const none = { count: 0, heldBytes: 0, promisedBytes: 0 }
const need = (more: Partial<SleepNeed>): SleepNeed => ({
  level: 'scarce',
  levelForMs: 10_000,
  missingBytes: GiB / 2,
  isForWake: false,
  overPromisedBytes: 0,
  falling: none,
  ...more,
})
const ids = (chosen: readonly Sleeper[]) => chosen.map(({ id }) => id)

test('the one idle longest sleeps, and no more than it takes', () => {
  const all = [sleeper(1, 5), sleeper(2, 600), sleeper(3, 60), sleeper(4, null)]
  expect(ids(chooseSleepers(need({}), all, now))).toEqual([2])
  expect(ids(chooseSleepers(need({ missingBytes: 1.5 * GiB }), all, now))).toEqual([2, 3])
})

test('nobody sleeps while balloons do, for a moment of shortage, or before it is scarce', () => {
  const all = [sleeper(1, 5)]
  expect(chooseSleepers(need({ missingBytes: 0 }), all, now)).toEqual([])
  expect(chooseSleepers(need({ levelForMs: 1_000 }), all, now)).toEqual([])
  expect(chooseSleepers(need({ level: 'short' }), all, now)).toEqual([])
  expect(ids(chooseSleepers(need({ level: 'desperate', levelForMs: 0 }), all, now))).toEqual([1])
})

test('two at once at most, and those on their way count', () => {
  const all = [sleeper(1, 5), sleeper(2, 6), sleeper(3, 7), sleeper(4, 8)]
  const much = { missingBytes: 100 * GiB }
  expect(ids(chooseSleepers(need(much), all, now))).toEqual([4, 3])
  const one = { count: 1, heldBytes: GiB, promisedBytes: 4 * GiB }
  expect(ids(chooseSleepers(need({ ...much, falling: one }), all, now))).toEqual([4])
  expect(chooseSleepers(need({ ...much, falling: { ...one, count: 2 } }), all, now)).toEqual([])
  expect(chooseSleepers(need({ falling: one }), all, now)).toEqual([])
})

test('one that works sleeps only when programs are about to be ended and nobody is idle: the one quiet longest, a held one last', () => {
  const held = sleeper(1, null, { activityAt: minutesAgo(500), holdUntil: minutesAgo(-60) })
  const quiet = sleeper(2, null, { activityAt: minutesAgo(8) })
  const used = sleeper(3, null, { activityAt: minutesAgo(1) })
  expect(chooseSleepers(need({}), [held, quiet, used], now)).toEqual([])
  const desperate = need({ level: 'desperate', missingBytes: 10 * GiB })
  expect(ids(chooseSleepers(desperate, [held, used, quiet], now))).toEqual([2])
  expect(ids(chooseSleepers(desperate, [held, used, quiet, sleeper(4, 1)], now))).toEqual([4])
  expect(ids(chooseSleepers(desperate, [held], now))).toEqual([1])
  const falling = { count: 1, heldBytes: GiB, promisedBytes: 4 * GiB }
  expect(chooseSleepers({ ...desperate, falling }, [held, used], now)).toEqual([])
})

test('one that could not sleep lately does when nobody else is left, nor on the way; one that works goes before it', () => {
  const failed = [sleeper(1, 600, { couldNotSleep: true }), sleeper(2, 500, { couldNotSleep: true })]
  const much = need({ missingBytes: 10 * GiB })
  expect(ids(chooseSleepers(much, [...failed, sleeper(3, 5)], now))).toEqual([3])
  expect(ids(chooseSleepers(much, [...failed, sleeper(3, null)], now))).toEqual([1, 2])
  const desperate: SleepNeed = { ...much, level: 'desperate' }
  expect(ids(chooseSleepers(desperate, [...failed, sleeper(3, null)], now))).toEqual([3])
  expect(ids(chooseSleepers(desperate, failed, now))).toEqual([1, 2])
  const falling = { count: 1, heldBytes: GiB, promisedBytes: 4 * GiB }
  expect(chooseSleepers({ ...desperate, falling }, failed, now)).toEqual([])
})

test('for one that waits to be woken those idle longest make room, be it for memory or for promises; those that work do not', () => {
  const all = [sleeper(1, 5), sleeper(2, 600), sleeper(3, null)]
  const waits = need({ level: 'enough', isForWake: true })
  expect(ids(chooseSleepers(waits, all, now))).toEqual([2])
  const promised = need({ level: 'ample', isForWake: true, missingBytes: 0, overPromisedBytes: 3 * GiB })
  expect(ids(chooseSleepers(promised, all, now))).toEqual([2])
  expect(ids(chooseSleepers({ ...promised, overPromisedBytes: 5 * GiB }, all, now))).toEqual([2, 1])
  expect(chooseSleepers(promised, [sleeper(3, null)], now)).toEqual([])
})
