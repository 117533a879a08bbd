import { randomUUID } from 'node:crypto'
import { beforeEach, expect, test } from 'vitest'
import type { TransferReading } from '../network/counters.ts'
import { Readings } from './readings.ts'

const boot = randomUUID()
let series: string
let readings: Readings
let sequence: number

beforeEach(() => {
  series = randomUUID()
  readings = new Readings(boot)
  sequence = 0
})

function reads(bytes: number, rest: Partial<TransferReading> = {}, kept = readings): boolean {
  const one = { bytes, packets: 1 }
  const reading = { machineId: 1, series, directOut: one, directIn: one, gatewayOut: one, gatewayIn: one, ...rest }
  return kept.take({ sequence: ++sequence, readings: [reading] }, 1000 * sequence)
}

/** As `sendReadings` does, into what would be the ledger. */
function send(kept = readings): [series: string, bytes: number][] {
  return kept.unsent.map((reading) => {
    kept.sent(reading)
    return [reading.series, reading.directOutBytes]
  })
}

test('what has changed is to be sent, once', () => {
  expect(reads(100)).toBe(true)
  expect(send()).toEqual([[series, 100]])
  expect(reads(100)).toBe(false)
  expect(send()).toEqual([])
  reads(150)
  reads(170)
  expect(send()).toEqual([[series, 170]])
})

test('a reading that was overtaken by another reader is none', () => {
  sequence = 10
  reads(100)
  sequence = 5
  expect(reads(90)).toBe(false)
  expect(send()).toEqual([[series, 100]])
})

test('counters that were set back begin a series, the same one for whoever finds out once more', () => {
  reads(100)
  send()
  const kept = readings.last
  reads(30)
  const [[after] = []] = send()
  expect(after).not.toBe(series)
  reads(40)
  expect(send()).toEqual([[after, 40]])
  // By a vmhost that was killed before it had noted any of it.
  const next = new Readings(boot, kept)
  reads(50, {}, next)
  expect(send(next)).toEqual([[after, 50]])
  // And again.
  reads(5)
  const [[third] = []] = send()
  expect([series, after]).not.toContain(third)
})

test('a counter that was removed reads what it read last', () => {
  reads(100)
  const one = { bytes: 120, packets: 2 }
  readings.take({ sequence: ++sequence, readings: [{ machineId: 1, series, directOut: one, gatewayOut: one }] }, 5)
  expect(readings.last).toMatchObject([{ series, directOutBytes: 120, directInBytes: 100, gatewayInBytes: 100 }])
})

test('what is known of a series is kept as long as its counters are there, and until it has arrived', () => {
  reads(100)
  readings.forgetGone({ sequence: ++sequence, readings: [] })
  expect(readings.last).toHaveLength(1)
  send()
  readings.forgetGone({ sequence: ++sequence, readings: [{ machineId: 1, series }] })
  expect(readings.last).toHaveLength(1)
  readings.forgetGone({ sequence: ++sequence, readings: [] })
  expect(readings.last).toHaveLength(0)
})
