import { randomUUID } from 'node:crypto'
import { beforeEach, expect, test } from 'vitest'
import { random } from '../../test/e2e/crash.rounds.ts'
import type { Counted, TransferReading } from '../network/counters.ts'
import { countedAt, parts, Readings } from './readings.ts'

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
  const kept = readings.kept
  reads(30)
  // Each of the four begins one.
  expect(readings.unsent).toHaveLength(4)
  const [[after] = []] = send()
  expect(after).not.toBe(series)
  reads(40)
  expect(send()).toContainEqual([after, 40])
  // By a vmhost that was killed before it had noted any of it.
  const next = new Readings(boot, kept)
  reads(50, {}, next)
  expect(send(next)).toContainEqual([after, 50])
  // And again.
  reads(5)
  const [[third] = []] = send()
  expect([series, after]).not.toContain(third)
})

type All = Record<(typeof parts)[number], Counted>

test('whatever counters are set back and when, each byte is sent once, whoever goes on with what is kept', () => {
  for (let seed = 1; seed <= 40; seed++) {
    const pick = random(seed)
    const whole = (most: number) => Math.floor(pick() * most)
    series = randomUUID()
    readings = new Readings(boot)
    const none = () => Object.fromEntries(parts.map((part) => [part, { bytes: 0, packets: 0 }])) as All
    const [counters, sent] = [none(), none()]
    /** by series, the last of each */
    const ledger = new Map<string, Record<string, unknown>>()
    for (let step = 0; step < 60; step++) {
      for (const part of parts) {
        const packets = pick() < 0.5 ? whole(20) : 0
        const bytes = packets * (40 + whole(1400))
        for (const all of [counters, sent])
          all[part] = { bytes: all[part].bytes + bytes, packets: all[part].packets + packets }
      }
      const at = Date.UTC(2026, 2, 30) + step * 3_600_000
      readings.take({ sequence: ++sequence, readings: [{ machineId: 1, series, ...counters }] }, at)
      if (pick() < 0.3) readings = new Readings(boot, JSON.parse(JSON.stringify(readings.kept)))
      if (pick() < 0.5)
        for (const reading of readings.unsent) {
          // As the ledger does: a series does not fall.
          for (const [name, value] of Object.entries(ledger.get(reading.series) ?? {}))
            if (/Bytes|Packets/.test(name))
              expect(reading[name as 'directInBytes'], `seed ${seed}`).toBeGreaterThanOrEqual(value as number)
          ledger.set(reading.series, reading)
          readings.sent(reading)
        }
      // It was read just before, and cannot have counted as much again when it is read next: so nothing is to be missing.
      for (const part of parts)
        if (counters[part].packets > 20 && pick() < 0.3) counters[part] = { bytes: 0, packets: 0 }
      if (pick() < 0.3) readings.take({ sequence: ++sequence, readings: [{ machineId: 1, series, ...counters }] }, at)
    }
    readings.take({ sequence: ++sequence, readings: [{ machineId: 1, series, ...counters }] }, Date.UTC(2026, 3, 9))
    for (const reading of readings.unsent) ledger.set(reading.series, reading)
    for (const part of parts) {
      const inAll = (name: string) => [...ledger.values()].reduce((sum, one) => sum + Number(one[name]), 0)
      const counted = { bytes: inAll(`${part}Bytes`), packets: inAll(`${part}Packets`) }
      expect(counted, `${part}, seed ${seed}`).toEqual(sent[part])
    }
  }
})

test('a counter that was set back alone leaves the others in their series', () => {
  reads(100)
  send()
  reads(120, { gatewayOut: { bytes: 7, packets: 1 } })
  const [life, alone] = readings.unsent.toSorted((one) => (one.series === series ? -1 : 1))
  expect(life).toMatchObject({ series, directOutBytes: 120, gatewayInBytes: 120, gatewayOutBytes: 100 })
  expect(alone).toMatchObject({ directOutBytes: 0, gatewayInBytes: 0, gatewayOutBytes: 7, part: 'gatewayOut' })
})

test('a counter that was seen set back and has counted nothing yet begins anew, however far it goes until the next look', () => {
  reads(100)
  send()
  const none = { bytes: 0, packets: 0 }
  reads(100, { directOut: none })
  expect(send()).toEqual([])
  const next = new Readings(boot, readings.kept)
  reads(100, { directOut: { bytes: 150, packets: 2 } }, next)
  expect(next.unsent).toMatchObject([{ part: 'directOut', directOutBytes: 150, directInBytes: 0 }])
})

test('one reading of each day waits, its last', () => {
  const day = 86_400_000
  for (const [bytes, at] of [
    [10, 0],
    [20, day - 1],
    [30, day],
    [40, 3 * day],
    [50, 3 * day + 5],
  ] as const) {
    const one = { bytes, packets: 1 }
    readings.take({ sequence: ++sequence, readings: [{ machineId: 1, series, directOut: one }] }, at)
  }
  const waiting = readings.unsent.map(({ at, directOutBytes }) => [at, directOutBytes])
  expect(waiting).toEqual([
    [day - 1, 20],
    [day, 30],
    [3 * day + 5, 50],
  ])
  // Also for the next vmhost, and when the first of them has arrived.
  const next = new Readings(boot, readings.kept)
  for (const reading of next.unsent.slice(0, 1)) next.sent(reading)
  expect(next.unsent.map(({ directOutBytes }) => directOutBytes)).toEqual([30, 50])
  // When they are too many, days are joined before anything is lost.
  expect(next.tooMany(1)).toEqual([])
  expect(next.unsent.map(({ directOutBytes }) => directOutBytes)).toEqual([50])
  expect(next.tooMany(0).map(({ directOutBytes }) => directOutBytes)).toEqual([50])
})

test('what was counted between two looks is of the day that most of the time between was in', () => {
  const midnight = Date.UTC(2026, 3, 1)
  expect(countedAt(midnight - 60_000, midnight + 5)).toBe(midnight - 1)
  expect(countedAt(midnight + 5, midnight + 60_000)).toBe(midnight + 60_000)
  expect(countedAt(midnight - 60_000, midnight - 1)).toBe(midnight - 1)
  expect(countedAt(midnight - 5, midnight + 60_000)).toBe(midnight + 60_000)
  // A clock that was set back by more than a day.
  expect(countedAt(midnight, midnight - 5 * 86_400_000)).toBe(midnight - 5 * 86_400_000)
})

test('a counter that was removed reads what it read last', () => {
  reads(100)
  const one = { bytes: 120, packets: 2 }
  readings.take({ sequence: ++sequence, readings: [{ machineId: 1, series, directOut: one, gatewayOut: one }] }, 5)
  expect(readings.kept).toMatchObject([{ series, directOutBytes: 120, directInBytes: 100, gatewayInBytes: 100 }])
})

test('what is known of a series is kept as long as its counters are there, and until it has arrived', () => {
  reads(100)
  readings.forgetGone({ sequence: ++sequence, readings: [] })
  expect(readings.kept).toHaveLength(1)
  send()
  readings.forgetGone({ sequence: ++sequence, readings: [{ machineId: 1, series }] })
  expect(readings.kept).toHaveLength(1)
  readings.forgetGone({ sequence: ++sequence, readings: [] })
  expect(readings.kept).toHaveLength(0)
})
