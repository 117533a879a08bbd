import type { MachineStanding } from '../../meter/meter.ts'
import type { MachineState } from './state.ts'

/** What a machine's owner pays for; undefined: nothing. */
export function standingOf({
  over,
  said,
  ending,
  guest,
  runsWith,
  row,
  saved,
  isUnanswered,
}: MachineState): MachineStanding | undefined {
  if (over || said === 'trashed' || said === 'gone') return undefined
  const running = ending ? undefined : guest
  const { cpus, memoryBytes } = (running && runsWith) ?? row
  const diskBytes = running || row.hostKey !== null ? row.diskBytes : 0
  const size = { cpus, memoryBytes, diskBytes }
  // That it stands still is its server's fault, and its processors and memory are of no use to anybody.
  if (running?.standsStill) return { ...size, state: 'failed', pid: running.hypervisor.pid }
  // Nor that nobody can be asked whether it goes on.
  if (isUnanswered) return { ...size, state: 'failed' }
  if (running) return { ...size, state: said === 'creating' ? said : 'running', pid: running.hypervisor.pid }
  if (said === 'running') return { ...size, state: saved ? 'asleep' : 'between' }
  return { ...size, state: said }
}
