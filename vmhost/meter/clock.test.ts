import { beforeEach, expect, test } from 'vitest'
import { MeterClock } from './clock.ts'

const day = 86_400_000
let wall: number, monotonic: number, boot: string
const clocks = () => ({ wallMs: () => wall, monotonicMs: () => monotonic, boot })

function passes(ms: number): void {
  wall += ms
  monotonic += ms
}

beforeEach(() => {
  wall = Date.UTC(2026, 2, 31, 12)
  monotonic = 5_000
  boot = 'first'
})

test('the time of the ledger goes as fast as time does, and drifts with the wall clock', () => {
  const clock = new MeterClock(clocks())
  const start = clock.now()
  passes(60_000)
  wall += 400
  expect(clock.adjust()).toBeUndefined()
  expect(clock.now() - start).toBe(60_400)
  passes(60_000)
  wall -= 900
  expect(clock.adjust()).toBeUndefined()
  expect(clock.now() - start).toBe(120_400)
})

test('put forward, it jumps, and says from where to where', () => {
  const clock = new MeterClock(clocks())
  const start = clock.now()
  passes(60_000)
  wall += 3_600_000
  expect(clock.now()).toBe(start + 60_000)
  expect(clock.adjust()).toEqual({ from: start + 60_000, to: wall })
  expect(clock.now()).toBe(wall)
})

test('put back by hours, it goes on ahead; put back by more than a day, it had been wrong', () => {
  const clock = new MeterClock(clocks())
  const start = clock.now()
  wall -= 3_600_000
  passes(1_000)
  expect(clock.adjust()).toBeUndefined()
  expect(clock.now()).toBe(start + 1_000)
  wall -= 30 * day
  expect(clock.adjust()).toEqual({ from: start + 1_000, to: wall })
})

test('the next vmhost goes on with it: in the same boot by the monotonic clock, after another never earlier', () => {
  const first = new MeterClock(clocks())
  wall -= 3_600_000
  passes(60_000)
  const kept = first.kept()
  passes(10_000)
  expect(new MeterClock(clocks(), kept).now()).toBe(kept.at + 10_000)
  boot = 'second'
  monotonic = 100
  expect(new MeterClock(clocks(), kept).now()).toBe(kept.at)
  wall += 2 * 3_600_000
  expect(new MeterClock(clocks(), kept).now()).toBe(wall)
  wall -= 2 * day
  expect(new MeterClock(clocks(), kept).now()).toBe(wall)
})
