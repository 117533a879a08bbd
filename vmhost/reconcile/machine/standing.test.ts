import { expect, test } from 'vitest'
import { standingOf } from './standing.ts'
import type { MachineState } from './state.ts'

const row = { cpus: 2, memoryBytes: 2 ** 30, diskBytes: 2 ** 32, hostKey: 'one' }

/** As `standingOf` sees it: what is not given here it does not look at. */
function state(guest: { standsStill: boolean } | undefined, isUnanswered = false): MachineState {
  const seen: unknown = { said: 'running', row, isUnanswered, guest: guest && { ...guest, hypervisor: { pid: 7 } } }
  return seen as MachineState
}

test('what its owner pays for is a machine that runs, and not one that its server has stopped', () => {
  const { cpus, memoryBytes, diskBytes } = row
  const size = { cpus, memoryBytes, diskBytes, pid: 7 }
  expect(standingOf(state({ standsStill: false }))).toEqual({ ...size, state: 'running' })
  expect(standingOf(state({ standsStill: true }))).toEqual({ ...size, state: 'failed' })
})

test('nor one whose hypervisor does not answer', () => {
  const { cpus, memoryBytes, diskBytes } = row
  expect(standingOf(state(undefined, true))).toEqual({ cpus, memoryBytes, diskBytes, state: 'failed' })
})
