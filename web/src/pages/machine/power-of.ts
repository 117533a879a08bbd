/** What can be done with a machine as it is now, and what takes it back. */
import type { MachineDocument } from './documents.ts'

export type PowerAction = {
  label: string
  words: readonly string[]
  undo?: readonly string[]
  /** programs end, which nothing takes back */
  ends?: true
  kind?: 'main' | 'danger'
}

export function powerOf(
  { vm_name: name, status }: Pick<MachineDocument, 'vm_name' | 'status'>,
  isHeld: boolean,
): PowerAction[] {
  const stop: PowerAction = { label: 'Stop', words: ['stop', name], ends: true }
  const restart: PowerAction = { label: 'Restart', words: ['restart', name], ends: true }
  switch (status) {
    case 'running':
      return [
        { label: 'Sleep', words: ['sleep', name], undo: ['wake', name] },
        { label: 'Pause', words: ['pause', name], undo: ['resume', name] },
        isHeld
          ? { label: 'End the hold', words: ['hold', name, '--end'], undo: ['hold', name, '--for', '1h'] }
          : { label: 'Hold for 1 h', words: ['hold', name, '--for', '1h'], undo: ['hold', name, '--end'] },
        restart,
        stop,
      ]
    case 'asleep':
      return [
        { label: 'Wake', words: ['wake', name], undo: ['sleep', name], kind: 'main' },
        { label: 'Pause', words: ['pause', name], undo: ['resume', name] },
        restart,
        stop,
      ]
    case 'paused':
      return [{ label: 'Resume', words: ['resume', name], undo: ['pause', name], kind: 'main' }, restart, stop]
    case 'stopped':
      return [{ label: 'Start', words: ['start', name], undo: ['stop', name], kind: 'main' }]
    case 'failed':
      return [
        { label: 'Restart', words: ['restart', name], kind: 'main' },
        { label: 'Stop', words: ['stop', name] },
      ]
    case 'creating':
      return [{ label: 'Stop', words: ['stop', name], undo: ['start', name] }]
    default:
      return []
  }
}
