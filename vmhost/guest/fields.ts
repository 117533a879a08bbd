import type { Field } from './frames.ts'
import { type BootStage, bootStages, fieldTag, type MachineReport } from './messages.ts'

/** What fields hold, both ways. What comes in was written by a machine: nothing in it is believed further than its form. */

export function parseReport(fields: Field[]): MachineReport {
  const value = (tag: number) => numberIn(fields, tag)
  const ports = fields.filter((field) => field.tag === fieldTag.listeningPort).map((field) => numberOf(field.bytes))
  return {
    stage: stageIn(fields) ?? 'kernel',
    uptimeMs: value(fieldTag.uptimeMs),
    cpuBusyMs: value(fieldTag.cpuBusyMs),
    cpuCount: value(fieldTag.cpuCount),
    memoryTotalBytes: value(fieldTag.memoryTotalBytes),
    memoryAvailableBytes: value(fieldTag.memoryAvailableBytes),
    load1: value(fieldTag.load1Milli) / 1000,
    listeningPorts: [...new Set(ports.filter((port) => port > 0 && port < 65536))].sort((a, b) => a - b),
    txBytes: value(fieldTag.txBytes),
    txPackets: value(fieldTag.txPackets),
    rxBytes: value(fieldTag.rxBytes),
    rxPackets: value(fieldTag.rxPackets),
    diskTotalBytes: value(fieldTag.diskTotalBytes),
    diskFreeBytes: value(fieldTag.diskFreeBytes),
    processCount: value(fieldTag.processCount),
    sshProcessCount: value(fieldTag.sshProcessCount),
  }
}

export function text(tag: number, value: string): Field {
  return { tag, bytes: Buffer.from(value, 'utf8') }
}

export function number(tag: number, value: number): Field {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64BE(BigInt(Math.max(0, Math.round(value))))
  return { tag, bytes }
}

export function textIn(fields: Field[], tag: number): string | undefined {
  return fields.find((field) => field.tag === tag)?.bytes.toString('utf8')
}

/** 0 when missing, malformed or beyond what a JavaScript number holds exactly: the sender is a machine. */
export function numberIn(fields: Field[], tag: number): number {
  const field = fields.find((candidate) => candidate.tag === tag)
  return field ? numberOf(field.bytes) : 0
}

function numberOf(bytes: Buffer): number {
  const value = bytes.length === 8 ? Number(bytes.readBigUInt64BE()) : 0
  return Number.isSafeInteger(value) ? value : 0
}

export function stageIn(fields: Field[]): BootStage | undefined {
  const name = textIn(fields, fieldTag.stage)
  return bootStages.find((stage) => stage === name)
}

/** A machine's text, fit for a log and a terminal. */
export function plain(value: string): string {
  return value.replace(/[\u0000-\u001f\u007f-\u009f]/g, ' ').slice(0, 500)
}
