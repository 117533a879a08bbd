import { describe, expect, test } from 'vitest'
import { durationSeconds, idleness, type LastMinute, Load, sayDuration, type Watched } from './idleness.ts'

const now = new Date('2026-11-23T06:00:00Z')
const ago = (minutes: number) => new Date(now.getTime() - minutes * 60_000)
const quiet: LastMinute = { cpuShare: 0.01, bytesPerSecond: 200, sshProcesses: 0 }
const watched: Watched = {
  holdUntil: null,
  activityAt: null,
  activity: null,
  sleepNever: false,
  sleepAfterSeconds: 1800,
  defaultSleepAfter: null,
  awakeBecause: null,
  idleSince: null,
}

describe('a machine is awake because', () => {
  test.each<[string, Partial<Watched>, Partial<LastMinute>, RegExp]>([
    [
      'it is held',
      { holdUntil: new Date('2026-11-23T07:30:00Z') },
      {},
      /^it is held awake until 2026-11-23 07:30 UTC$/,
    ],
    ['of SSH', { activity: 'ssh', activityAt: ago(9) }, {}, /^an SSH session/],
    ['of a request', { activity: 'https', activityAt: ago(9) }, {}, /^a web request/],
    ['of a WebSocket', { activity: 'websocket', activityAt: ago(0) }, {}, /^a WebSocket/],
    ['of its processors', {}, { cpuShare: 0.06 }, /processors/],
    ['of its network', {}, { bytesPerSecond: 10_001 }, /network/],
    ['of a program', {}, { sshProcesses: 1 }, /program that was started over SSH/],
  ])('%s', (_, change, load, words) => {
    const since = { idleSince: ago(120) }
    const found = idleness({ ...watched, ...since, ...change }, { ...quiet, ...load }, now)
    expect(found).toEqual({ awakeBecause: expect.stringMatching(words), idleSince: null, sleepBecause: null })
  })

  test('it is never to sleep, and yet is known to be idle, and since when', () => {
    const idle = { awakeBecause: expect.stringMatching(/never/), idleSince: now, sleepBecause: null }
    expect(idleness({ ...watched, sleepNever: true, defaultSleepAfter: '1m' }, quiet, now)).toEqual(idle)
    expect(idleness({ ...watched, sleepAfterSeconds: null }, quiet, now)).toEqual(idle)
    expect(idleness({ ...watched, sleepAfterSeconds: null, defaultSleepAfter: 'never' }, quiet, now)).toEqual(idle)
  })

  test('nothing is known of what it does, unless it was idle before', () => {
    expect(idleness(watched, undefined, now)).toMatchObject({ awakeBecause: expect.any(String), idleSince: null })
    const idle = { ...watched, idleSince: ago(40) }
    expect(idleness(idle, undefined, now)).toEqual({ awakeBecause: null, idleSince: ago(40), sleepBecause: null })
  })
})

describe('a machine of which nothing is heard', () => {
  test('is idle from then on, and to be put to sleep when it has been so for long enough', () => {
    const past = { ...watched, holdUntil: ago(1), activity: 'ssh', activityAt: ago(11) } as const
    expect(idleness(past, quiet, now)).toEqual({ awakeBecause: null, idleSince: now, sleepBecause: null })
    expect(idleness({ ...past, idleSince: ago(29) }, quiet, now).sleepBecause).toBeNull()
    expect(idleness({ ...past, idleSince: ago(30) }, quiet, now)).toEqual({
      awakeBecause: null,
      idleSince: ago(30),
      sleepBecause: 'idle for 30 minutes',
    })
  })

  test('goes by its own time before its account’s', () => {
    const idle = { ...watched, idleSince: ago(60), defaultSleepAfter: '2h' }
    expect(idleness(idle, quiet, now).sleepBecause).toBe('idle for 30 minutes')
    expect(idleness({ ...idle, sleepAfterSeconds: null }, quiet, now).sleepBecause).toBeNull()
    expect(idleness({ ...idle, sleepAfterSeconds: null, defaultSleepAfter: '1h' }, quiet, now).sleepBecause).toBe(
      'idle for 1 hour',
    )
  })
})

describe('what a guest did in the last minute', () => {
  const reading = (cpuBusyMs: number, txBytes: number, rxBytes = 0, sshProcessCount = 0) => ({
    cpuBusyMs,
    txBytes,
    rxBytes,
    sshProcessCount,
  })

  test('is the difference of two readings a minute apart, and the newest count', () => {
    const load = new Load()
    for (let second = 0; second <= 90; second += 15)
      load.add(reading(second * 100, second * 1000, second * 500, second === 90 ? 2 : 0), second * 1000)
    expect(load.lastMinute(95_000)).toEqual({ cpuShare: 0.1, bytesPerSecond: 1500, sshProcesses: 2 })
  })

  test('is unknown before there is a minute of it, after a silence, and after a boot', () => {
    const load = new Load()
    load.add(reading(1000, 1000), 0)
    load.add(reading(1001, 1001), 40_000)
    expect(load.lastMinute(40_000)).toBeUndefined()
    load.add(reading(1002, 1002), 60_000)
    expect(load.lastMinute(60_000)).toBeDefined()
    expect(load.lastMinute(120_000)).toBeUndefined()
    load.add(reading(1, 1), 61_000)
    expect(load.lastMinute(61_000)).toBeUndefined()
  })
})

test.each([
  ['30m', 1800],
  ['1h30m', 5400],
  ['7D', 604_800],
  ['never', undefined],
  ['0m', undefined],
  ['', undefined],
  ['5', undefined],
])('%j is %s seconds', (text, seconds) => {
  expect(durationSeconds(text)).toBe(seconds)
})

test.each([
  [1800, '30 minutes'],
  [5400, '1 hour 30 minutes'],
  [86_461, '1 day 1 minute 1 second'],
])('%d seconds are %s', (seconds, words) => {
  expect(sayDuration(seconds)).toBe(words)
})
