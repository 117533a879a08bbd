import { expect, test } from 'vitest'
import { toStoredReport } from './report.ts'

const honest = {
  stage: 'init',
  uptimeMs: 61_500,
  cpuBusyMs: 12_250,
  cpuCount: 2,
  memoryTotalBytes: 2 ** 31,
  memoryAvailableBytes: 2 ** 30,
  load1: 0.25,
  listeningPorts: [22, 8000],
  txBytes: 1000,
  txPackets: 10,
  rxBytes: 2000,
  rxPackets: 20,
  diskTotalBytes: 2 ** 34,
  diskFreeBytes: 2 ** 33,
  processCount: 40,
  sshProcessCount: 1,
} as const

test('a report is stored as the gateway reads it: seconds, bytes, ports', () => {
  expect(toStoredReport({ ...honest, listeningPorts: [22, 8000] })).toEqual({
    cpuSeconds: 12.25,
    memoryTotalBytes: 2 ** 31,
    memoryAvailableBytes: 2 ** 30,
    load1: 0.25,
    uptimeSeconds: 61.5,
    listeningPorts: [22, 8000],
    txBytes: 1000,
    rxBytes: 2000,
  })
})

test('a guest that lies writes no nonsense and no more than the table takes', () => {
  const lies = {
    ...honest,
    load1: Number.NaN,
    uptimeMs: Number.POSITIVE_INFINITY,
    cpuBusyMs: -1,
    txBytes: 2 ** 60,
    listeningPorts: [-1, 0, 65_536, ...Array.from({ length: 65_535 }, (_, index) => index + 1)],
  }
  const stored = toStoredReport(lies)
  expect(stored).toMatchObject({ load1: 0, uptimeSeconds: 0, cpuSeconds: 0, txBytes: Number.MAX_SAFE_INTEGER })
  expect(stored.listeningPorts).toHaveLength(1000)
  expect(stored.listeningPorts.every((port) => port >= 1 && port <= 65_535)).toBe(true)
  expect(JSON.stringify(stored).length).toBeLessThan(16 * 1024)
})
