import type { MachineReport as StoredReport } from '../../migrations/schema.ts'
import type { MachineReport } from '../guest/messages.ts'

/** The table takes 16 KiB; 1,000 ports are 6. */
const portsMost = 1_000

/** What a guest says of itself, as the gateway reads it. A guest may lie: numbers are bounded, texts there are none. */
export function toStoredReport(report: MachineReport): StoredReport {
  return {
    cpuSeconds: finite(report.cpuBusyMs / 1000),
    memoryTotalBytes: finite(report.memoryTotalBytes),
    memoryAvailableBytes: finite(report.memoryAvailableBytes),
    load1: finite(report.load1),
    uptimeSeconds: finite(report.uptimeMs / 1000),
    listeningPorts: report.listeningPorts.filter((port) => port >= 1 && port <= 65_535).slice(0, portsMost),
    txBytes: finite(report.txBytes),
    rxBytes: finite(report.rxBytes),
  }
}

function finite(value: number): number {
  return Number.isFinite(value) ? Math.min(Math.max(value, 0), Number.MAX_SAFE_INTEGER) : 0
}
