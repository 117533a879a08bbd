/** What one does to machines from the list: each is one command for however many, with its way back. */
import type { Machine } from '../../api/live.ts'

export type Action = {
  label: string
  /** whether it would do something to a machine as it is */
  fits: (machine: Machine) => boolean
  words: (names: readonly string[]) => readonly string[]
  undo?: (names: readonly string[]) => readonly (readonly string[])[]
}

const is =
  (...statuses: string[]) =>
  ({ status }: Machine) =>
    statuses.includes(status)

export const ACTIONS: readonly Action[] = [
  command('Wake', 'wake', is('asleep'), 'sleep'),
  command('Resume', 'resume', is('paused'), 'pause'),
  command('Start', 'start', is('stopped'), 'stop'),
  command('Sleep', 'sleep', is('running'), 'wake'),
  command('Pause', 'pause', is('running', 'asleep'), 'resume'),
  command('Stop', 'stop', is('running'), 'start'),
  command('Restart', 'restart', is('running', 'failed')),
  {
    label: 'Trash',
    fits: () => true,
    words: (names) => ['rm', ...names],
    undo: (names) => names.map((name) => ['untrash', name]),
  },
]

function command(label: string, verb: string, fits: Action['fits'], back?: string): Action {
  return {
    label,
    fits,
    words: (names) => [verb, ...names],
    ...(back === undefined ? {} : { undo: (names: readonly string[]) => [[back, ...names]] }),
  }
}
