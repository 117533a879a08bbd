/** What browsers say, checked, and what they are told of a machine. */
import type { FromBrowser, ToBrowser, WayOn } from '../../../web/terminal/protocol.ts'
import type { Machine } from '../../machines.ts'

export type TerminalSize = { columns: number; rows: number }

const COLUMNS_MOST = 1000
const ROWS_MOST = 500
/** None of ours is longer. */
const MESSAGE_MOST_BYTES = 128

/** @returns undefined when it is none of ours */
export function readMessage(bytes: Buffer): FromBrowser | undefined {
  let message: unknown
  if (bytes.length > MESSAGE_MOST_BYTES) return undefined
  try {
    message = JSON.parse(bytes.toString('utf8'))
  } catch {
    return undefined
  }
  if (typeof message !== 'object' || message === null) return undefined
  if ('resize' in message && Array.isArray(message.resize)) {
    const size = readSize(message.resize[0], message.resize[1])
    return size && { resize: [size.columns, size.rows] }
  }
  if ('seen' in message && isCount(message.seen)) return { seen: message.seen }
  if ('ping' in message && isCount(message.ping)) return { ping: message.ping }
  return undefined
}

/** @returns undefined unless both are whole numbers that a terminal can have */
export function readSize(columns: unknown, rows: unknown): TerminalSize | undefined {
  if (!isCount(columns) || !isCount(rows)) return undefined
  if (columns < 1 || columns > COLUMNS_MOST || rows < 1 || rows > ROWS_MOST) return undefined
  return { columns, rows }
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && Number(value) >= 0
}

/** What is told of a machine that is off; undefined when it is none any more. */
export function offState(machine: Machine, lobby: (command: string) => string): ToBrowser | undefined {
  const { name, desiredState, observedState } = machine
  const off = (text: string, verb: WayOn['verb']): ToBrowser => ({
    state: 'off',
    text,
    wayOn: { verb, command: lobby(`${verb} ${name}`) },
  })
  if (desiredState === 'trashed' || desiredState === 'gone' || observedState === 'gone') return undefined
  if (desiredState === 'stopped') {
    return off(observedState === 'stopped' ? `${name} is stopped.` : `${name} is stopping.`, 'start')
  }
  if (desiredState === 'paused') return off(`${name} is paused.`, 'resume')
  if (observedState === 'failed')
    return off(`${name} failed: ${machine.observedReason ?? 'no reason is known'}.`, 'restart')
  return { state: 'waiting', text: `${name} is ${observedState}.` }
}
